"""The values of a training run: defaults by stage, a checkpoint's own, what was given; and what is refused.

Knows flags and their rules only. What they lead to is in `main`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from errors import InputError

STAGES = ("backbone", "coreset")
PRECISIONS = ("32", "16-mixed", "bf16-mixed")

# METHOD 6: AdaFace's recipe, and that of the published FaceCoresetNet.
STAGE_DEFAULTS: dict[str, dict[str, Any]] = {
    "backbone": {
        "batch_size": 512,
        "epochs": 26,
        "lr": 0.1,
        "lr_milestones": (12, 20, 24),
        "weight_decay": 5e-4,
        "gradient_clip_val": 0.0,
        "m": 0.4,
        "h": 0.333,
        "low_res_augmentation_prob": 0.2,
        "crop_augmentation_prob": 0.2,
        "photometric_augmentation_prob": 0.2,
    },
    "coreset": {
        "batch_size": 20,
        "epochs": 150,
        "lr": 1e-4,
        "lr_milestones": (60,),
        "weight_decay": 1e-4,
        "gradient_clip_val": 1.0,
        "m": 0.85,
        "h": 0.666,
        "low_res_augmentation_prob": 0.5,
        "crop_augmentation_prob": 0.5,
        "photometric_augmentation_prob": 0.5,
    },
}
# Flags that have no effect outside of their stage.
ONLY_IN = {"momentum": "backbone"} | dict.fromkeys(
    (
        *("coreset_size", "gamma", "gamma_lr", "max_template_size", "sample_by", "held_out"),
        *("selection_temperature", "selection_temperature_end", "learn_temperature"),
        *("finetune_backbone", "backbone_lr"),
    ),
    "coreset",
)
# What a resumed run may do in another way than the run it goes on from; all else would make it another run.
CHANGEABLE = {
    *("data_root", "train_data_path", "val_data_path", "use_mxrecord", "swap_color_channel"),
    *("epochs", "num_workers", "gpus", "num_nodes", "cpu_processes", "precision"),
    *("fast_dev_run", "save_all_models"),
}


@dataclass(frozen=True)
class Settings:
    """All that a run follows from; the flags of main.py under their own names.

    `m` None is the head's own margin; `epoch_items` None are all images (backbone stage) or a tenth of them.
    """

    stage: str
    train_data_path: str
    batch_size: int
    epochs: int
    lr: float
    lr_milestones: tuple[int, ...]
    weight_decay: float
    gradient_clip_val: float
    m: float | None
    h: float
    low_res_augmentation_prob: float
    crop_augmentation_prob: float
    photometric_augmentation_prob: float
    data_root: str = "."
    val_data_path: str | None = None
    train_data_subset: str | None = None
    use_mxrecord: bool = False
    swap_color_channel: bool = False
    held_out: float = 0.1
    arch: str | None = None
    start_from_model_statedict: str | None = None
    head: str = "adaface"
    s: float = 64.0
    t_alpha: float = 0.01
    coreset_size: int = 3
    gamma: float = 0.01
    gamma_lr: float = 1e-4
    selection_temperature: float = 1.0
    selection_temperature_end: float | None = None
    learn_temperature: bool = False
    max_template_size: int = 30
    sample_by: str = "image"
    finetune_backbone: bool = False
    backbone_lr: float = 1e-5
    momentum: float = 0.9
    lr_gamma: float = 0.1
    accumulate_grad_batches: int = 1
    epoch_items: int | None = None
    seed: int = 42
    prefix: str = "run"
    out: str = "experiments"
    num_workers: int = 4
    gpus: int | None = None
    num_nodes: int = 1
    cpu_processes: int = 1
    precision: str = "32"
    fast_dev_run: bool = False
    test_run: bool = False
    save_all_models: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The values as plain types."""
        return asdict(self)


def resolve(given: Mapping[str, Any], saved: Mapping[str, Any] | None) -> Settings:
    """Joins what was given with a checkpoint's own values (a resumed run) or the defaults of the stage.

    `given`: flags that stand on the command line, by name. `saved`: `hparams` of the checkpoint that is
    resumed or evaluated.

    Raises:
        InputError: all faults of the command line in one message.
    """
    values = dict(given)
    use_16bit = values.pop("use_16bit", False)
    if use_16bit and values.setdefault("precision", "16-mixed") != "16-mixed":
        raise InputError(
            f"--use_16bit is --precision 16-mixed, but --precision {values['precision']} stands there too."
        )
    if saved is not None:
        return _checked(_resumed(values, saved), values)
    started = values.get("start_from_model_statedict") is not None
    stage = values.setdefault("stage", "coreset" if started else "backbone")
    defaults = dict(STAGE_DEFAULTS[stage])
    if values.get("head", "adaface") != "adaface":
        defaults["m"] = None
    if "train_data_path" not in values:
        raise InputError(
            "--train_data_path is missing: the folder of <subject>/<image> to train on, below --data_root."
        )
    return _checked(Settings(**(defaults | values)), values)


def _resumed(values: Mapping[str, Any], saved: Mapping[str, Any]) -> Settings:
    known = {field.name for field in fields(Settings)}
    faults = [
        f"--{name} {_shown(value)}: the run that is resumed has {_shown(saved.get(name))}, and would be "
        "another one. Leave the flag away, or start a new run."
        for name, value in values.items()
        if name not in CHANGEABLE and name in known and _plain(value) != _plain(saved.get(name))
    ]
    if faults:
        raise InputError.from_faults(faults)
    merged = {name: value for name, value in saved.items() if name in known} | dict(values)
    merged["lr_milestones"] = tuple(merged["lr_milestones"])
    return Settings(**merged)


def _checked(settings: Settings, given: Mapping[str, Any]) -> Settings:
    faults = [*_misplaced(settings, given), *_out_of_range(settings)]
    if faults:
        raise InputError.from_faults(faults)
    return settings


def _misplaced(settings: Settings, given: Mapping[str, Any]) -> list[str]:
    """Flags that have no effect in this run."""
    faults = [
        f"--{name} belongs to the {stage} stage, and this is the {settings.stage} stage. Leave it away, or "
        f"add --stage {stage}."
        for name, stage in ONLY_IN.items()
        if name in given and settings.stage != stage
    ]
    faults += [
        f"--{name} belongs to the head adaface, and this run has {settings.head}. Leave it away."
        for name in ("h", "t_alpha")
        if name in given and settings.head != "adaface"
    ]
    if "backbone_lr" in given and settings.stage == "coreset" and not settings.finetune_backbone:
        faults.append("--backbone_lr has no effect on a frozen backbone. Add --finetune_backbone.")
    if settings.learn_temperature and settings.selection_temperature_end is not None:
        faults.append("--learn_temperature and --selection_temperature_end: choose one of them.")
    if "held_out" in given and settings.val_data_path is not None:
        faults.append("--held_out and --val_data_path: in the coreset stage, choose one of them.")
    if settings.stage == "coreset" and settings.start_from_model_statedict is None:
        faults.append(
            "--stage coreset needs the weights of a backbone: give --start_from_model_statedict FILE."
        )
    return faults


def _out_of_range(settings: Settings) -> list[str]:
    faults = [
        f"--{name} {getattr(settings, name)}: expected {expected}."
        for names, holds, expected in _RANGES
        for name in names
        if getattr(settings, name) is not None and not holds(getattr(settings, name))
    ]
    milestones = settings.lr_milestones
    if list(milestones) != sorted(set(milestones)) or any(epoch < 1 for epoch in milestones):
        faults.append(
            f"--lr_milestones {_shown(milestones)}: expected rising whole numbers of epochs from 1 on, "
            "separated by commas."
        )
    return faults


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


_AT_LEAST_ONE = (
    *("batch_size", "epochs", "coreset_size", "max_template_size", "accumulate_grad_batches"),
    *("epoch_items", "num_nodes", "cpu_processes"),
)
_NOT_NEGATIVE = (
    *("num_workers", "gpus", "seed", "lr", "gamma_lr", "backbone_lr", "weight_decay", "momentum"),
    *("gradient_clip_val", "gamma"),
)
_SHARES = ("low_res_augmentation_prob", "crop_augmentation_prob", "photometric_augmentation_prob")
_RANGES: tuple[tuple[tuple[str, ...], Any, str], ...] = (
    (_AT_LEAST_ONE, lambda value: value >= 1, "1 or more"),
    (_NOT_NEGATIVE, lambda value: 0 <= value < float("inf"), "0 or more"),
    (_SHARES, lambda value: 0 <= value <= 1, "a probability from 0 to 1"),
    (
        ("selection_temperature", "selection_temperature_end", "lr_gamma"),
        lambda value: 0 < value < float("inf"),
        "a number above 0",
    ),
    (("held_out",), lambda value: value > 0, "a share of the subjects below 1, or their number"),
)

"""The values of a training run: defaults by stage, a checkpoint's own, what was given.

Knows flags and their rules only; what is refused is in `settings_checks`, what they lead to in `main`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from coreset.published import LEARNED_GAMMA
from errors import InputError
from settings_checks import faults_of, shown

STAGES = ("backbone", "coreset")
PRECISIONS = ("32", "16-mixed", "bf16-mixed")
# Images that go through the backbone at once where no gradient is kept. On a CPU what fits its caches is
# fast: MobileFaceNet on one core embeds 80 images/s by 16, 52 by 64 and 34 by 192.
FACES_AT_ONCE = {"cpu": 16, "cuda": 512}

# Epochs of --test_run, whatever --epochs says.
TEST_RUN_EPOCHS = 2
# METHOD 6: AdaFace's recipe, and that of the FaceCoresetNet paper (its supplement, arXiv 2308.14075v2).
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
        "s": 64.0,
        "low_res_augmentation_prob": 0.2,
        "crop_augmentation_prob": 0.2,
        "photometric_augmentation_prob": 0.2,
    },
    "coreset": {
        "batch_size": 20,
        "epochs": 150,
        "lr": 1e-4,
        "lr_milestones": (20,),
        "weight_decay": 1e-3,
        "gradient_clip_val": 1.0,
        "m": 0.8,
        "h": 0.333,
        "s": 48.0,
        "low_res_augmentation_prob": 0.5,
        "crop_augmentation_prob": 0.5,
        "photometric_augmentation_prob": 0.5,
    },
}
_OPTIMISED: dict[str, dict[str, Any]] = {
    # METHOD 10: what learns in minutes from cached features.
    "good": {
        "aggregator": "weighted_coreset",
        "batch_size": 96,
        "epochs": 20,
        "epoch_items": 9600,
        "lr": 1e-3,
        "lr_schedule": "one_cycle",
        "weight_decay": 1e-4,
        "head": "cosface",
        "m": 0.25,
        "s": 32.0,
        "head_init": "centroids",
        "contrast_weight": 1.0,
        "template_style": "media",
        "max_template_size": 160,
        "share_wrong_media": 0.1,
        "share_foreign_faces": 0.2,
        "share_virtual_subjects": 0.5,
        "sample_by": "subject",
    },
    # The stage's defaults are the published recipe; its training may choose a face again, and gamma may be
    # negative.
    "published": {"quality": "norm", "aggregator_options": {"mask_picked": False, "clamp_gamma": False}},
}
PRESETS = tuple(_OPTIMISED)
# What a resumed run may do in another way than the run it goes on from; all else would make it another run.
CHANGEABLE = {
    *("data_root", "train_data_path", "val_data_path", "use_mxrecord", "swap_color_channel"),
    *("cache_features", "features", "out", "prefix"),
    *("epochs", "num_workers", "gpus", "num_nodes", "cpu_processes", "precision"),
    *("fast_dev_run", "save_all_models", "compile", "skip_bad_images"),
}


@dataclass(frozen=True)
class Settings:
    """All that a run follows from; the flags of main.py under their own names.

    `m` None is the head's own margin; `quality` None is what the backbone's weights say; `epoch_items` None
    are all images (backbone stage) or a tenth of them; `train_data_path` None stands where `features` are
    trained from; an empty `cache_features` is a folder among the run folders.
    """

    stage: str
    train_data_path: str | None
    batch_size: int
    epochs: int
    lr: float
    lr_milestones: tuple[int, ...]
    weight_decay: float
    gradient_clip_val: float
    m: float | None
    h: float
    s: float
    low_res_augmentation_prob: float
    crop_augmentation_prob: float
    photometric_augmentation_prob: float
    data_root: str = "."
    val_data_path: str | None = None
    train_data_subset: str | None = None
    use_mxrecord: bool = False
    swap_color_channel: bool = False
    held_out: float = 0.1
    fewest_images: int = 1
    without_subjects: str | None = None
    skip_bad_images: bool = False
    arch: str | None = None
    start_from_model_statedict: str | None = None
    head: str = "adaface"
    t_alpha: float = 0.01
    coreset_size: int = 3
    gamma: float = LEARNED_GAMMA
    gamma_lr: float = 1e-4
    selection_temperature: float = 1.0
    selection_temperature_end: float | None = None
    learn_temperature: bool = False
    preset: str | None = None
    aggregator: str = "coreset"
    aggregator_options: Mapping[str, Any] | None = None
    quality: str | None = None
    cache_features: str | None = None
    views: int = 16
    cache_dtype: str = "float16"
    features: str | None = None
    template_style: str = "clips"
    longest_clip: int = 40
    share_wrong_media: float = 0.0
    share_foreign_faces: float = 0.0
    share_virtual_subjects: float = 0.0
    contrast_weight: float = 0.0
    head_init: str = "random"
    lr_schedule: str = "milestones"
    max_template_size: int = 20
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
    compile: bool = False
    fast_dev_run: bool = False
    test_run: bool = False
    save_all_models: bool = False

    @property
    def learns_gamma(self) -> bool:
        """Whether gamma is learned and not fixed; with one pick it chooses nothing."""
        return self.gamma == LEARNED_GAMMA and self.coreset_size > 1

    @property
    def trained_epochs(self) -> int:
        """Epochs that are trained; all schedules span these."""
        return TEST_RUN_EPOCHS if self.test_run else self.epochs

    @property
    def trained_milestones(self) -> tuple[int, ...]:
        """`lr_milestones`; those of a test run lie where they lie in the whole run."""
        if not self.test_run:
            return self.lr_milestones
        return tuple(max(1, round(epoch * TEST_RUN_EPOCHS / self.epochs)) for epoch in self.lr_milestones)

    @property
    def feature_folder(self) -> Path:
        """Where cached features are kept."""
        return Path(self.cache_features or Path(self.out) / "features")

    @property
    def from_features(self) -> bool:
        """Whether templates are features and not images."""
        return self.cache_features is not None or self.features is not None

    def to_dict(self) -> dict[str, Any]:
        """The values as types that JSON and YAML have."""
        return asdict(self) | {"lr_milestones": list(self.lr_milestones)}


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
    started = {"start_from_model_statedict", "features", "preset"} & values.keys()
    stage = values.setdefault("stage", "coreset" if started else "backbone")
    defaults = STAGE_DEFAULTS[stage] | _OPTIMISED.get(values.get("preset", ""), {})
    if values.get("aggregator", "coreset") == "coreset":
        values = _with_options_of_preset(values, values.get("preset"))
    else:
        defaults.pop("aggregator_options", None)
    if values.get("head", defaults.get("head", "adaface")) != defaults.get("head", "adaface"):
        defaults["m"] = None
    if "features" in values:
        values.setdefault("train_data_path", None)
    if "train_data_path" not in values:
        raise InputError(
            "--train_data_path is missing: the folder of <subject>/<image> to train on, below --data_root."
        )
    return _checked(Settings(**(defaults | values)), values)


def _with_options_of_preset(values: Mapping[str, Any], preset: str | None) -> dict[str, Any]:
    """Options of the aggregator that are given stand beside those of the preset, not in their place."""
    options = _OPTIMISED.get(preset or "", {}).get("aggregator_options")
    if options is None or "aggregator_options" not in values:
        return dict(values)
    return {**values, "aggregator_options": options | values["aggregator_options"]}


def _resumed(values: Mapping[str, Any], saved: Mapping[str, Any]) -> Settings:
    known = {field.name for field in fields(Settings)}
    saved = {field.name: field.default for field in fields(Settings) if field.default is not MISSING} | dict(
        saved
    )
    missing = [field.name for field in fields(Settings) if field.name not in saved]
    if missing:
        raise InputError(
            f"The checkpoint does not say {', '.join(missing)} among its hparams. Start a new run."
        )
    if saved["aggregator"] == "coreset":
        values = _with_options_of_preset(values, saved["preset"])
    faults = [
        f"--{name} {shown(value)}: the run that is resumed has {shown(saved.get(name))}, and would be "
        "another one. Leave the flag out, or start a new run."
        for name, value in values.items()
        if name not in CHANGEABLE and name in known and _plain(value) != _plain(saved.get(name))
    ]
    faults += _other_epochs(values["epochs"], saved) if "epochs" in values else []
    if faults:
        raise InputError.from_faults(faults)
    merged = {name: value for name, value in saved.items() if name in known} | dict(values)
    merged["lr_milestones"] = tuple(merged["lr_milestones"])
    if "out" in values and "cache_features" not in values and saved["cache_features"] == "":
        # The store stays where it is.
        merged["cache_features"] = str(Settings(**merged | {"out": saved["out"]}).feature_folder)
    return Settings(**merged)


def _other_epochs(epochs: int, saved: Mapping[str, Any]) -> list[str]:
    """What follows from the number of epochs and could not go on with another one."""
    if epochs == saved["epochs"]:
        return []
    if saved["test_run"]:
        return [
            f"--epochs {epochs} has no effect: the run that is resumed is a --test_run of {TEST_RUN_EPOCHS} "
            "epochs. Start a new run."
        ]
    schedules = {
        "--lr_schedule one_cycle": saved["lr_schedule"] == "one_cycle",
        "--selection_temperature_end": saved["selection_temperature_end"] is not None,
    }
    return [
        f"--epochs {epochs}: {flag} of the run that is resumed spans its {saved['epochs']} epochs, and "
        "cannot be continued over another number. Remove --epochs, or start a new run."
        for flag, spans in schedules.items()
        if spans
    ]


def _checked(settings: Settings, given: Mapping[str, Any]) -> Settings:
    if faults := faults_of(settings, given):
        raise InputError.from_faults(faults)
    return settings


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

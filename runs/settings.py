"""The values of a training run: defaults by stage, a checkpoint's own, what was given.

Knows flags and their rules only: which have no effect in a run, and which values are out of range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from coreset.catalogue import LEARNED_GAMMA
from runtime.errors import InputError

STAGES = ("backbone", "coreset")

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
        "impostor_media_prob": 0.1,
        "impostor_face_prob": 0.2,
        "identity_mixup_prob": 0.5,
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
    min_images_per_subject: int = 1
    exclude_subjects: str | None = None
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
    impostor_media_prob: float = 0.0
    impostor_face_prob: float = 0.0
    identity_mixup_prob: float = 0.0
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


# Flags that have no effect outside of their stage.
ONLY_IN = {"momentum": "backbone"} | dict.fromkeys(
    (
        *("coreset_size", "gamma", "gamma_lr", "max_template_size", "sample_by", "held_out"),
        *("selection_temperature", "selection_temperature_end", "learn_temperature"),
        *("finetune_backbone", "backbone_lr", "compile"),
        *("preset", "aggregator", "aggregator_options", "quality", "contrast_weight", "head_init"),
        *("cache_features", "features", "views", "cache_dtype"),
        *("template_style", "longest_clip", "impostor_media_prob", "impostor_face_prob"),
        "identity_mixup_prob",
    ),
    "coreset",
)
# Flags that have no effect unless features are trained from, and unless they are made here.
_OF_FEATURES = (
    *("template_style", "longest_clip", "impostor_media_prob", "impostor_face_prob"),
    "identity_mixup_prob",
)
_OF_CACHING = ("views", "cache_dtype")
# Options of one aggregator.
_OF_CORESET = (
    *("coreset_size", "gamma", "gamma_lr"),
    *("selection_temperature", "selection_temperature_end", "learn_temperature"),
)
# Options of its constructor that are not for --aggregator_options, and the flag that says each.
_HAS_FLAG = {
    **{name: name for name in ("coreset_size", "selection_temperature", "learn_temperature")},
    **{"learn_gamma": "gamma", "quality": "quality"},
}


def faults_of(settings: Settings, given: Mapping[str, Any]) -> list[str]:
    """A sentence for each flag of `given` without effect, and for each value out of its range."""
    return [*_mislabelled(settings, given), *_out_of_range(settings)]


def shown(value: Any) -> str:
    """A value as it stands on the command line."""
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _mislabelled(settings: Settings, given: Mapping[str, Any]) -> list[str]:
    """Flags that have no effect in this run."""
    faults = [
        f"--{name} belongs to the {stage} stage, and this is the {settings.stage} stage. Leave it out, or "
        f"add --stage {stage}."
        for name, stage in ONLY_IN.items()
        if name in given and settings.stage != stage
    ]
    faults += [
        f"--{name} belongs to the head adaface, and this run has {settings.head}. Leave it out."
        for name in ("h", "t_alpha")
        if name in given and settings.head != "adaface"
    ]
    if "backbone_lr" in given and settings.stage == "coreset" and not settings.finetune_backbone:
        faults.append("--backbone_lr has no effect on a frozen backbone. Add --finetune_backbone.")
    if settings.identity_mixup_prob and not settings.contrast_weight:
        faults.append(
            "--identity_mixup_prob needs pairs of templates of one subject: give --contrast_weight above "
            "0, or --identity_mixup_prob 0."
        )
    if settings.learn_temperature and settings.selection_temperature_end is not None:
        faults.append("--learn_temperature and --selection_temperature_end: choose one of them.")
    if "held_out" in given and settings.val_data_path is not None:
        faults.append("--held_out and --val_data_path: in the coreset stage, choose one of them.")
    if settings.stage == "coreset" and settings.start_from_model_statedict is None and not settings.features:
        faults.append(
            "--stage coreset needs the weights of a backbone: give --start_from_model_statedict FILE."
        )
    if settings.quality == "detector":
        faults.append(
            "--quality detector: training data carry no detector scores. Choose norm, learned or none; "
            "detector is for the poolings of validate_ijb.py, whose meta files have scores."
        )
    faults += [
        f"--{name} has no effect on the schedule {settings.lr_schedule}. Remove it."
        for name in ("lr_milestones", "lr_gamma")
        if name in given and settings.lr_schedule != "milestones"
    ]
    if settings.fast_dev_run and settings.test_run:
        faults.append("--fast_dev_run and --test_run: choose one of them.")
    return faults + _mislabelled_of_coreset(settings, given) + _mislabelled_of_features(settings, given)


def _mislabelled_of_coreset(settings: Settings, given: Mapping[str, Any]) -> list[str]:
    """Flags about the coreset aggregator that have no effect in this run."""
    if settings.stage != "coreset":
        return []
    if settings.aggregator != "coreset":
        return [
            f"--{name} belongs to --aggregator coreset; options of others stand in --aggregator_options."
            for name in _OF_CORESET
            if name in given
        ]
    options = settings.aggregator_options or {}
    faults = [
        f"--aggregator_options {name}: has a flag of its own, --{flag}."
        for name, flag in _HAS_FLAG.items()
        if name in options
    ]
    if "gamma" in options and settings.gamma != -1:
        faults.append(
            f"--aggregator_options gamma={options['gamma']}: is where a learned gamma starts, and --gamma "
            f"{settings.gamma:g} fixes it. Remove one of them."
        )
    if settings.coreset_size == 1 and "gamma" in given:
        faults.append("--gamma has no effect on a single pick (--coreset_size 1). Remove it.")
    if "gamma_lr" in given and not (settings.learns_gamma or settings.learn_temperature):
        faults.append(
            "--gamma_lr has no effect: neither gamma (--gamma -1) nor the temperature "
            "(--learn_temperature) is learned. Remove it."
        )
    return faults


def _mislabelled_of_features(settings: Settings, given: Mapping[str, Any]) -> list[str]:
    """Flags about cached features that have no effect in this run, or need what is not there."""
    faults = []
    if settings.cache_features is not None and settings.features is not None:
        faults.append(
            "--cache_features makes features and --features takes those that are there: choose one."
        )
    if settings.features is not None:
        images = (
            *("train_data_path", "train_data_subset", "use_mxrecord", "swap_color_channel", "num_workers"),
            "skip_bad_images",
        )
        faults += [
            f"--{name} is about images, and --features needs none. Leave it out."
            for name in images
            if name in given and given[name] is not None
        ]
        if "arch" in given and settings.start_from_model_statedict is None:
            faults.append("--arch has no effect on features without --start_from_model_statedict. Remove it.")
    if settings.from_features:
        faults += [
            f"--{name} has no effect on features that are made before. Leave it out."
            for name in (*_SHARES[:3], "finetune_backbone", "backbone_lr")
            if name in given
        ]
    elif settings.stage == "coreset":
        needs = [f"--{name}" for name in _OF_FEATURES if name in given]
        needs += ["--head_init centroids"] if settings.head_init == "centroids" else []
        if settings.preset == "good":
            needs = ["--preset good"]
        faults += [f"{flag} needs features: add --cache_features, or --features DIR." for flag in needs]
    if settings.cache_features is None:
        faults += [f"--{name} belongs to --cache_features." for name in _OF_CACHING if name in given]
    if "longest_clip" in given and settings.template_style != "media":
        faults.append("--longest_clip belongs to --template_style media.")
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
            f"--lr_milestones {shown(milestones)}: expected rising whole numbers of epochs from 1 on, "
            "separated by commas."
        )
    return faults


_AT_LEAST_ONE = (
    *("batch_size", "epochs", "coreset_size", "max_template_size", "accumulate_grad_batches"),
    *("epoch_items", "num_nodes", "cpu_processes", "views", "longest_clip", "min_images_per_subject"),
)
_NOT_NEGATIVE = (
    *("num_workers", "gpus", "seed", "lr", "backbone_lr", "weight_decay", "momentum"),
    *("gradient_clip_val", "contrast_weight"),
)
_SHARES = (
    *("low_res_augmentation_prob", "crop_augmentation_prob", "photometric_augmentation_prob"),
    "impostor_media_prob",
    "impostor_face_prob",
    "identity_mixup_prob",
)
# Counts may come from a checkpoint too: what a machine has, and what a template or an epoch can hold.
_MOST = {
    1_000: ("num_workers", "gpus", "num_nodes", "cpu_processes", "views"),
    100_000: ("coreset_size", "longest_clip", "max_template_size", "accumulate_grad_batches"),
    1_000_000: ("batch_size", "epochs"),
    10**12: ("epoch_items",),
}
_RANGES: tuple[tuple[tuple[str, ...], Any, str], ...] = (
    (_AT_LEAST_ONE, lambda value: value >= 1, "1 or more"),
    (_NOT_NEGATIVE, lambda value: 0 <= value < float("inf"), "0 or more"),
    *((names, lambda value, most=most: value <= most, f"{most:,} or less") for most, names in _MOST.items()),
    (_SHARES, lambda value: 0 <= value <= 1, "a probability from 0 to 1"),
    (
        ("selection_temperature", "selection_temperature_end", "lr_gamma"),
        lambda value: 0 < value < float("inf"),
        "a number above 0",
    ),
    (
        ("gamma_lr",),
        lambda value: 0 < value < float("inf"),
        "a number above 0; --gamma VALUE fixes gamma, without --learn_temperature the temperature is fixed",
    ),
    (("gamma",), lambda value: abs(value) < float("inf"), "-1 to learn it, or the value to fix it at"),
    (
        ("held_out",),
        lambda value: 0 < value < float("inf"),
        "a share of the subjects below 1, or their number",
    ),
)

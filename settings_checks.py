"""What is refused of a training run's flags: those without effect in the run, and values out of range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from settings import Settings

# Flags that have no effect outside of their stage.
ONLY_IN = {"momentum": "backbone"} | dict.fromkeys(
    (
        *("coreset_size", "gamma", "gamma_lr", "max_template_size", "sample_by", "held_out"),
        *("selection_temperature", "selection_temperature_end", "learn_temperature"),
        *("finetune_backbone", "backbone_lr", "compile"),
        *("preset", "aggregator", "aggregator_options", "quality", "contrast_weight", "head_init"),
        *("cache_features", "features", "views", "cache_dtype"),
        *("template_style", "longest_clip", "share_wrong_media", "share_foreign_faces"),
        "share_virtual_subjects",
    ),
    "coreset",
)
# Flags that have no effect unless features are trained from, and unless they are made here.
_OF_FEATURES = (
    *("template_style", "longest_clip", "share_wrong_media", "share_foreign_faces"),
    "share_virtual_subjects",
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
    return [*_misplaced(settings, given), *_out_of_range(settings)]


def shown(value: Any) -> str:
    """A value as it stands on the command line."""
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _misplaced(settings: Settings, given: Mapping[str, Any]) -> list[str]:
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
    if settings.share_virtual_subjects and not settings.contrast_weight:
        faults.append(
            "--share_virtual_subjects needs pairs of templates of one subject: give --contrast_weight above "
            "0, or --share_virtual_subjects 0."
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
    return faults + _misplaced_of_coreset(settings, given) + _misplaced_of_features(settings, given)


def _misplaced_of_coreset(settings: Settings, given: Mapping[str, Any]) -> list[str]:
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


def _misplaced_of_features(settings: Settings, given: Mapping[str, Any]) -> list[str]:
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
    *("epoch_items", "num_nodes", "cpu_processes", "views", "longest_clip", "fewest_images"),
)
_NOT_NEGATIVE = (
    *("num_workers", "gpus", "seed", "lr", "backbone_lr", "weight_decay", "momentum"),
    *("gradient_clip_val", "contrast_weight"),
)
_SHARES = (
    *("low_res_augmentation_prob", "crop_augmentation_prob", "photometric_augmentation_prob"),
    "share_wrong_media",
    "share_foreign_faces",
    "share_virtual_subjects",
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

"""The configuration of a training run: its groups, defaults by stage and preset, and how values are joined.

Importable without torch. Rules between fields are in `runs.config_rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from training.config import (
    AggregatorConfig,
    ModelConfig,
    OptimiserConfig,
    Option,
    Stage,
    option,
    stage_option,
)

# Flags that say what is done with a configuration, which are no part of it.
ACTIONS = ("config", "print_config", "resume_from_checkpoint", "evaluate", "dry_run", "list_aggregators")
# Recipe for training from cached features in minutes.
_GOOD: dict[str, Any] = {
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
}
PRESETS: dict[str, dict[str, Any]] = {
    "good": _GOOD,
    # The defaults of the coreset stage are the published recipe; the published training may select a face
    # twice, and its gamma may become negative.
    "published": {"quality": "norm", "aggregator_options": {"mask_picked": False, "clamp_gamma": False}},
}


@dataclass(frozen=True)
class DataConfig:
    """Images or features, augmentation, and templates made of them.

    `train_data_path` None: the run trains from `features`. An empty `cache_features` is the folder
    `features` among the run folders; an empty `train_data_subset` is the published subset.
    """

    data_root: str = option(".", "folder that the data paths are relative to", resumable=True)
    train_data_path: str | None = option(
        None, "folder of <subject>/<image>, aligned faces of 112 x 112", resumable=True
    )
    val_data_path: str | None = option(
        None,
        "backbone stage: folder of pair sets (lfw.bin, ...); coreset stage: folder of other subjects to "
        "validate on, in place of held-out ones",
        resumable=True,
    )
    train_data_subset: str | None = option(
        None,
        "published index file, or fraction of the subjects; without a value the file beside the data, else "
        "a tenth of the subjects",
        metavar="FILE_OR_FRACTION",
        without_value="",
    )
    use_mxrecord: bool = option(False, "read train.rec of the folder without unpacking it", resumable=True)
    swap_color_channel: bool = option(
        False,
        "swap red and blue of the training images, for folders that the published convert.py wrote",
        resumable=True,
    )
    skip_bad_images: bool = option(
        False,
        "decode all images first and exclude those that cannot be used; run.json counts them",
        resumable=True,
    )
    min_images_per_subject: int = option(1, "exclude subjects with fewer images", minimum=1)
    exclude_subjects: str | None = option(
        None, "exclude the subjects named in this file, one per line, such as test subjects", metavar="FILE"
    )
    held_out: float = option(
        0.1,
        "subjects for validation that are not trained on: a fraction below 1, or their number",
        above=0,
        stage="coreset",
    )
    low_res_augmentation_prob: float = stage_option(
        0.2, 0.5, "fraction of images with reduced resolution", minimum=0, maximum=1
    )
    crop_augmentation_prob: float = stage_option(0.2, 0.5, "fraction of cropped images", minimum=0, maximum=1)
    photometric_augmentation_prob: float = stage_option(
        0.2, 0.5, "fraction of images with changed colours", minimum=0, maximum=1
    )
    max_template_size: int = option(
        20, "maximum number of faces per template", minimum=1, maximum=100_000, stage="coreset"
    )
    sample_by: Literal["image", "subject"] = option("image", "unit that an epoch counts", stage="coreset")
    cache_features: str | None = option(
        None,
        "embed each image once in several views and train from these features, about a hundred times as "
        "fast; without a value they are kept in <out>/features",
        metavar="DIR",
        without_value="",
        stage="coreset",
        resumable=True,
    )
    views: int = option(16, "views per image", minimum=1, maximum=1_000, stage="coreset")
    cache_dtype: Literal["float32", "float16"] = option(
        "float16", "data type of cached features", stage="coreset"
    )
    features: str | None = option(
        None,
        "train from precomputed features: a folder of --cache_features, or an npz with 'features', 'norms', "
        "'labels' and optionally 'media'",
        metavar="DIR_OR_NPZ",
        stage="coreset",
        resumable=True,
    )
    template_style: Literal["clips", "media"] = option(
        "clips",
        "templates from features: clips as published, or media (moderate stills, poor stills, poor clips)",
        stage="coreset",
    )
    longest_clip: int = option(
        40,
        "maximum frames of such a clip; lengths are log-uniform from 2",
        minimum=1,
        maximum=100_000,
        stage="coreset",
    )
    impostor_media_prob: float = option(
        0.0, "fraction of templates with a medium of another subject", minimum=0, maximum=1, stage="coreset"
    )
    impostor_face_prob: float = option(
        0.0,
        "fraction of templates with single faces of other subjects",
        minimum=0,
        maximum=1,
        stage="coreset",
    )

    @property
    def from_features(self) -> bool:
        """Whether templates consist of features and not of images."""
        return self.cache_features is not None or self.features is not None


@dataclass(frozen=True)
class RunConfig:
    """Stage, devices, and where the run writes."""

    stage: Literal["backbone", "coreset"] = option(
        "backbone", "default: coreset where weights are given, else backbone"
    )
    preset: str | None = option(
        None,
        "good: best recipe for cached features; published: the paper's recipe. Other flags override it",
        choices=tuple(PRESETS),
        stage="coreset",
    )
    seed: int = option(42, "seed of all random numbers", minimum=0, maximum=2**63 - 1)
    prefix: str = option("run", "name of the run folder, to which a number is added", resumable=True)
    out: str = option("experiments", "folder of the run folders", resumable=True)
    gpus: int | None = option(
        None,
        "GPUs per node (default: one if available, else the CPU)",
        minimum=0,
        maximum=1_000,
        resumable=True,
    )
    num_nodes: int = option(1, "machines", minimum=1, maximum=1_000, resumable=True)
    cpu_processes: int = option(1, "processes on a CPU", minimum=1, maximum=1_000, resumable=True)
    precision: Literal["32", "16-mixed", "bf16-mixed"] = option(
        "32", "precision of the network", resumable=True
    )
    num_workers: int = option(4, "data loading workers per process", minimum=0, maximum=1_000, resumable=True)
    fast_dev_run: bool = option(False, "one training step and one validation batch, no files", resumable=True)
    save_all_models: bool = option(False, "keep a checkpoint of every epoch", resumable=True)


@dataclass(frozen=True)
class TrainingConfig:
    """The whole configuration of a run. Field names are unique across the groups."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    aggregator: AggregatorConfig = field(default_factory=AggregatorConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """From values by field name; fields that are missing have the defaults of the backbone stage."""
        milestones = values.get("lr_milestones")
        values = dict(values) | ({} if milestones is None else {"lr_milestones": tuple(milestones)})
        return cls(
            **{
                name: kind(**{each.name: values[each.name] for each in fields(kind) if each.name in values})
                for name, kind in GROUPS.items()
            }
        )

    def to_flat(self) -> dict[str, Any]:
        """All values by field name, as types that JSON and YAML have."""
        flat = {
            each.name: getattr(group, each.name)
            for group in (getattr(self, name) for name in GROUPS)
            for each in fields(group)
        }
        options = flat["aggregator_options"]
        return flat | {
            "lr_milestones": list(flat["lr_milestones"]),
            "aggregator_options": None if options is None else dict(options),
        }

    @property
    def stage(self) -> Stage:
        """The stage that is trained."""
        return self.run.stage

    @property
    def feature_folder(self) -> Path:
        """Where cached features are kept."""
        return Path(self.data.cache_features or Path(self.run.out) / "features")


GROUPS: dict[str, type] = {each.name: each.default_factory for each in fields(TrainingConfig)}  # type: ignore[misc]


@dataclass(frozen=True)
class ConfigField:
    """A field of a group with its flag's properties. `kind`: its type; `base`: without None."""

    name: str
    group: str
    kind: Any
    default: Any
    option: Option

    @property
    def base(self) -> Any:
        """The type without None."""
        kinds = [each for each in get_args(self.kind) if each is not type(None)]
        is_union = type(None) in get_args(self.kind)
        return kinds[0] if is_union and len(kinds) == 1 else self.kind

    @property
    def choices(self) -> tuple[str, ...]:
        """The accepted texts; empty where any value is."""
        return get_args(self.base) if get_origin(self.base) is Literal else self.option.choices

    def default_in(self, stage: str) -> Any:
        """The default in a stage."""
        defaults = self.option.stage_defaults
        return self.default if defaults is None else defaults[stage == "coreset"]


@cache
def config_fields() -> dict[str, ConfigField]:
    """The fields of all groups by name."""
    return {
        each.name: ConfigField(each.name, group, hints[each.name], each.default, each.metadata["option"])
        for group, kind in GROUPS.items()
        for hints in [get_type_hints(kind)]
        for each in fields(kind)
    }


def new_run_values(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The defaults of a new run for which `values` are given, and all of its values, by field name."""
    preset = PRESETS.get(str(values.get("preset")), {})
    implies_coreset = any(
        values.get(name) is not None for name in ("start_from_model_statedict", "features", "preset")
    )
    stage = values.get("stage") or ("coreset" if implies_coreset else "backbone")
    defaults = {name: each.default_in(stage) for name, each in config_fields().items()}
    defaults |= preset | {"stage": stage}
    if values.get("aggregator", "coreset") != "coreset":
        defaults["aggregator_options"] = None
    if values.get("head", defaults["head"]) != defaults["head"]:
        # The margin of another head.
        defaults["m"] = None
    return defaults, defaults | with_preset_options(values, values.get("preset"))


def with_preset_options(values: Mapping[str, Any], preset: str | None) -> dict[str, Any]:
    """The values, where given options of the aggregator extend those of the preset."""
    options = PRESETS.get(preset or "", {}).get("aggregator_options")
    given = values.get("aggregator_options")
    if options is None or given is None or values.get("aggregator", "coreset") != "coreset":
        return dict(values)
    return {**values, "aggregator_options": options | given}


def same_value(first: Any, second: Any) -> bool:
    """Whether two values of a field are equal; lists and tuples are."""
    plain = [list(value) if isinstance(value, tuple) else value for value in (first, second)]
    return bool(plain[0] == plain[1])


def shown(value: Any) -> str:
    """A value as on the command line."""
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def whole_numbers(text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas, as on the command line; ValueError for others."""
    return tuple(int(part) for part in text.split(",") if part)

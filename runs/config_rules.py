"""Join the values of a run (defaults, preset, checkpoint, file, flags) and check all rules between them.

All faults are reported in one message, before any work starts. Importable without torch.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coreset.catalogue import AGGREGATOR_NAMES, requires_training
from runs.config import (
    ACTIONS,
    TrainingConfig,
    config_fields,
    new_run_values,
    same_value,
    shown,
    with_preset_options,
)
from runs.config_files import ConfigFile
from runtime.errors import InputError
from training.config import TEST_RUN_EPOCHS

# Flags that imply the coreset stage.
_OF_CORESET_STAGE = ("features", "cache_features", "preset")
_OF_IMAGES = (
    *("train_data_path", "train_data_subset", "use_mxrecord", "swap_color_channel", "num_workers"),
    "skip_bad_images",
)
_OF_EMBEDDING = (
    *("low_res_augmentation_prob", "crop_augmentation_prob", "photometric_augmentation_prob"),
    *("finetune_backbone", "backbone_lr"),
)
_OF_FEATURES = (
    *("template_style", "longest_clip", "impostor_media_prob", "impostor_face_prob"),
    "identity_mixup_prob",
)
_OF_CORESET_AGGREGATOR = (
    *("coreset_size", "gamma", "gamma_lr"),
    *("selection_temperature", "selection_temperature_end", "learn_temperature"),
)
_NEEDS_FEATURES = "needs features: add --cache_features, or --features DIR."
# Options of the coreset aggregator's constructor, and the flag that sets each.
_OPTION_FLAGS = {
    **{name: name for name in ("coreset_size", "selection_temperature", "learn_temperature")},
    **{"learn_gamma": "gamma", "quality": "quality"},
}


@dataclass(frozen=True)
class Machine:
    """What a run can use on this node."""

    gpus: int
    has_compiler: bool

    @classmethod
    def here(cls) -> Machine:
        """GPUs that PyTorch sees, and whether there is a C compiler for torch.compile."""
        import torch

        names = [*(os.environ.get(name, "") for name in ("CC", "CXX")), "gcc", "g++", "clang", "clang++"]
        return cls(torch.cuda.device_count(), any(name and shutil.which(name) for name in names))


def training_devices(config: TrainingConfig, gpus_here: int) -> tuple[str, int]:
    """Lightning's accelerator, and the number of processes on this node."""
    gpus = min(1, gpus_here) if config.run.gpus is None else config.run.gpus
    return ("gpu", gpus) if gpus else ("cpu", config.run.cpu_processes)


def resolve(
    given: Mapping[str, Any],
    saved: Mapping[str, Any] | None = None,
    *,
    file: ConfigFile | None = None,
    machine: Machine | None = None,
    checkpoint: Path | None = None,
    is_complete: bool = True,
) -> TrainingConfig:
    """The configuration of a run.

    Args:
        given: flags of the command line, by name; they override the file.
        saved: `hparams` of the checkpoint that is resumed or evaluated.
        file: values of --config.
        machine: what the run has; None leaves rules about devices unchecked.
        checkpoint: path of the checkpoint, for messages.
        is_complete: False for a configuration to which values may still be added: only single values are
            checked, and not the rules between them.

    Raises:
        InputError: all faults in one message.
    """
    file = file or ConfigFile()
    flags = {name: value for name, value in given.items() if name not in ACTIONS}
    in_file = dict(file.values)
    faults = [*_faults_of_16bit(in_file), *_faults_of_16bit(flags)]
    # Those of the file also where a flag overrides them.
    of_values = [*_faults_of_values(in_file, file.places), *_faults_of_values(flags, {})]
    evaluates_weights = bool(given.get("evaluate")) and "resume_from_checkpoint" not in given
    if evaluates_weights:
        in_file["stage"] = flags["stage"] = "backbone"
    values = {**in_file, **flags}
    if not is_complete and any(config_fields()[name].option.stage == "coreset" for name in values):
        values.setdefault("stage", "coreset")
    defaults, merged = new_run_values(values) if saved is None else (dict(saved), {})
    if saved is not None:
        merged, more = _resumed(values, saved, {**file.places, **dict.fromkeys(flags)})
        faults += more
    places = {name: place for name, place in file.places.items() if name not in flags}
    kept = {} if saved is None else {name: merged[name] for name in merged.keys() - values.keys()}
    if checkpoint is not None:
        places |= {name: f"{checkpoint}, hparams: {name}" for name in kept}
    of_values += _faults_of_values(kept, places)
    changed = {name for name, value in in_file.items() if not same_value(value, defaults.get(name))}
    given_flags = {name for name, value in flags.items() if value is not None}
    rules = _Rules(TrainingConfig.from_flat(merged), frozenset(changed | given_flags), places)
    if is_complete:
        if evaluates_weights:
            faults += _faults_of_evaluation(given, file)
        elif saved is None and rules.config.data.train_data_path is None and not rules.config.data.features:
            faults.append("--train_data_path is missing: the folder of <subject>/<image>, below --data_root.")
        faults += rules.faults(machine, trains=not evaluates_weights, values_are_valid=not of_values)
    if faults or of_values:
        raise InputError.from_faults([*faults, *of_values])
    return rules.config


def _faults_of_16bit(values: dict[str, Any]) -> Iterator[str]:
    """Replace `use_16bit` by the precision that it means."""
    if values.pop("use_16bit", False) and values.setdefault("precision", "16-mixed") != "16-mixed":
        yield f"--use_16bit means --precision 16-mixed, but --precision is {values['precision']}."


def _faults_of_values(values: Mapping[str, Any], places: Mapping[str, str]) -> Iterator[str]:
    """Faults of single values; `places`: where those are that are no flags of the command line."""
    for name, value in values.items():
        if value is None:
            continue
        each = config_fields()[name]
        limits, place = each.option, f"{places.get(name, f'--{name}')} {shown(value)}"
        if each.choices and value not in each.choices:
            yield f"{place}: expected {', '.join(each.choices)}."
        if isinstance(value, str) and "\0" in value:
            yield f"{place}: expected a text without NUL characters."
        if name == "lr_milestones" and (list(value) != sorted(set(value)) or min(value, default=1) < 1):
            yield f"{place}: expected increasing whole numbers of epochs, 1 or more, separated by commas."
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        low, high = limits.minimum, limits.maximum
        holds = (
            abs(value) < float("inf")
            and (low is None or value >= low)
            and (limits.above is None or value > limits.above)
            and (high is None or value <= high)
        )
        if not holds:
            yield f"{place}: expected {_range(limits.above, low, high)}."


def _resumed(
    values: Mapping[str, Any], saved: Mapping[str, Any], places: Mapping[str, str | None]
) -> tuple[dict[str, Any], list[str]]:
    """The values of a resumed run, and faults of changes that would make it another run."""
    if saved["aggregator"] == "coreset":
        values = with_preset_options(values, saved["preset"])
    faults = [
        f"{places.get(name) or f'--{name}'} {shown(value)}: the resumed run has {shown(saved[name])}. "
        "Remove it, or start a new run."
        for name, value in values.items()
        if not config_fields()[name].option.resumable and not same_value(value, saved[name])
    ]
    faults += _faults_of_other_epochs(values.get("epochs", saved["epochs"]), saved)
    merged = {**saved, **values}
    if "out" in values and "cache_features" not in values and saved["cache_features"] == "":
        # The features remain where they are.
        merged["cache_features"] = str(TrainingConfig.from_flat(saved).feature_folder)
    return merged, faults


def _faults_of_other_epochs(epochs: int, saved: Mapping[str, Any]) -> Iterator[str]:
    """Faults of a number of epochs that the schedules of the saved run do not allow."""
    schedules = {
        "--test_run": saved["test_run"],
        "--lr_schedule one_cycle": saved["lr_schedule"] == "one_cycle",
        "--selection_temperature_end": saved["selection_temperature_end"] is not None,
    }
    spanned = TEST_RUN_EPOCHS if saved["test_run"] else saved["epochs"]
    for flag in (flag for flag, spans in schedules.items() if spans and epochs != saved["epochs"]):
        yield (
            f"--epochs {epochs}: {flag} of the resumed run spans {spanned} epochs and cannot continue over "
            "another number. Remove --epochs, or start a new run."
        )


def _faults_of_evaluation(given: Mapping[str, Any], file: ConfigFile) -> Iterator[str]:
    """Faults of --evaluate without a checkpoint, which evaluates the weights of a backbone."""
    values = {**file.values, **given}
    flags = [f"--{name}" for name in _OF_CORESET_STAGE if values.get(name) is not None]
    flags += ["--stage coreset"] if values.get("stage") == "coreset" else []
    for flag in flags:
        yield (
            f"{flag} --evaluate: the weights of a backbone contain no trained aggregator. Evaluate a "
            "checkpoint with --resume_from_checkpoint, or remove the flag to evaluate the backbone."
        )
    if values.get("start_from_model_statedict") is None:
        yield (
            "--evaluate needs something trained: give --start_from_model_statedict WEIGHTS of a backbone, or "
            "--resume_from_checkpoint of a run."
        )
    if values.get("val_data_path") is None:
        yield "--val_data_path is missing: the folder of the pair sets (lfw.bin, ...) to evaluate on."
    for name in ("dry_run", "fast_dev_run", "test_run"):
        if values.get(name):
            yield f"--{name} has no effect with --evaluate. Remove it."


@dataclass(frozen=True)
class _Rules:
    """Rules between the fields of a configuration.

    `given`: names of fields that were set to other values than the default; `places`: where those are that
    are no flags of the command line.
    """

    config: TrainingConfig
    given: frozenset[str]
    places: Mapping[str, str] = field(default_factory=dict)

    def faults(self, machine: Machine | None, *, trains: bool, values_are_valid: bool) -> list[str]:
        """All faults; those of batches and options only where single values are valid."""
        faults = [*self._of_stage(), *self._without_effect(), *self._conflicts(), *self._of_coreset_stage()]
        if machine is not None:
            faults += self._of_devices(machine)
            if values_are_valid:
                faults += self._of_aggregator_options()
                faults += self._of_batches(machine) if trains else ()
        return faults

    def _at(self, name: str) -> str:
        return self.places.get(name, f"--{name}")

    def _of_stage(self) -> Iterator[str]:
        for name, each in config_fields().items():
            stage = each.option.stage
            if stage is not None and name in self.given and stage != self.config.stage:
                yield (
                    f"{self._at(name)} belongs to the {stage} stage, and this is the {self.config.stage} "
                    f"stage. Remove it, or add --stage {stage}."
                )

    def _each(self, names: tuple[str, ...], why: str) -> Iterator[str]:
        return (f"{self._at(name)} {why}" for name in names if name in self.given)

    def _without_effect(self) -> Iterator[str]:
        """Values that this run does not read."""
        config, data, aggregator = self.config, self.config.data, self.config.aggregator
        is_coreset = config.stage == "coreset"
        if (head := config.model.head) != "adaface":
            why = f"belongs to the head adaface, and this run has {head}. Remove it."
            yield from self._each(("h", "t_alpha"), why)
        if (schedule := config.optimiser.lr_schedule) != "milestones":
            why = f"has no effect on the schedule {schedule}. Remove it."
            yield from self._each(("lr_milestones", "lr_gamma"), why)
        if is_coreset and not config.model.finetune_backbone:
            why = "has no effect on a frozen backbone. Add --finetune_backbone."
            yield from self._each(("backbone_lr",), why)
        if is_coreset and aggregator.aggregator != "coreset":
            why = "belongs to --aggregator coreset; set options of others by --aggregator_options."
            yield from self._each(_OF_CORESET_AGGREGATOR, why)
        elif is_coreset:
            if aggregator.coreset_size == 1:
                why = "has no effect on a coreset of one face (--coreset_size 1). Remove it."
                yield from self._each(("gamma",), why)
            if not (aggregator.learns_gamma or aggregator.learn_temperature):
                why = (
                    "has no effect: neither gamma (--gamma -1) nor --learn_temperature is learned. Remove it."
                )
                yield from self._each(("gamma_lr",), why)
        if data.features is not None:
            yield from self._each(_OF_IMAGES, "is about images, and --features reads none. Remove it.")
            if config.model.start_from_model_statedict is None:
                why = "has no effect on features without --start_from_model_statedict. Remove it."
                yield from self._each(("arch",), why)
        if data.from_features:
            why = "has no effect on features that are computed before training. Remove it."
            yield from self._each(_OF_EMBEDDING, why)
        elif is_coreset and config.run.preset != "good":
            yield from self._each(_OF_FEATURES, _NEEDS_FEATURES)
        if data.cache_features is None:
            yield from self._each(("views", "cache_dtype"), "belongs to --cache_features.")
        if data.template_style != "media":
            yield from self._each(("longest_clip",), "belongs to --template_style media.")

    def _conflicts(self) -> Iterator[str]:
        config, data, aggregator = self.config, self.config.data, self.config.aggregator
        if config.optimiser.identity_mixup_prob and not config.optimiser.contrast_weight:
            yield (
                f"{self._at('identity_mixup_prob')} needs pairs of templates of one subject: give "
                "--contrast_weight above 0, or --identity_mixup_prob 0."
            )
        if "held_out" in self.given and data.val_data_path is not None:
            yield f"{self._at('held_out')} and --val_data_path: in the coreset stage, choose one of them."
        if config.run.fast_dev_run and config.optimiser.test_run:
            yield "--fast_dev_run and --test_run: choose one of them."
        if data.cache_features is not None and data.features is not None:
            yield "--cache_features makes features and --features reads existing ones: choose one."
        if aggregator.learn_temperature and aggregator.selection_temperature_end is not None:
            yield "--learn_temperature and --selection_temperature_end: choose one of them."
        if aggregator.quality == "detector":
            yield (
                f"{self._at('quality')} detector: training data have no detector scores. Choose norm, "
                "learned or none; detector is for the poolings of validate_ijb.py, whose meta files have "
                "scores."
            )

    def _of_coreset_stage(self) -> Iterator[str]:
        config, aggregator = self.config, self.config.aggregator
        if config.stage != "coreset":
            return
        if config.model.start_from_model_statedict is None and not config.data.features:
            yield "--stage coreset needs the weights of a backbone: give --start_from_model_statedict FILE."
        if not config.data.from_features:
            if config.run.preset == "good":
                yield f"--preset good {_NEEDS_FEATURES}"
            elif config.model.head_init == "centroids":
                yield f"--head_init centroids {_NEEDS_FEATURES}"
        if aggregator.aggregator != "coreset":
            if aggregator.aggregator in AGGREGATOR_NAMES and not requires_training(aggregator.aggregator):
                yield f"--aggregator {aggregator.aggregator}: has nothing to train. Evaluate it as it is."
            return
        options = aggregator.aggregator_options or {}
        for name, flag in _OPTION_FLAGS.items():
            if name in options:
                yield f"--aggregator_options {name}: has its own flag, --{flag}."
        if "gamma" in options and aggregator.gamma != -1:
            yield (
                f"--aggregator_options gamma={options['gamma']} is the initial value of a learned gamma, and "
                f"--gamma {aggregator.gamma:g} fixes it. Remove one of them."
            )

    def _of_aggregator_options(self) -> list[str]:
        """Checked before images are read and features cached; imports torch."""
        aggregator = self.config.aggregator
        if not aggregator.aggregator_options:
            return []
        from coreset.registry import option_faults

        faults = option_faults(aggregator.aggregator, aggregator.aggregator_options)
        return [f"{self._at('aggregator_options')}: {fault}" for fault in faults]

    def _of_devices(self, machine: Machine) -> Iterator[str]:
        run = self.config.run
        accelerator, devices = training_devices(self.config, machine.gpus)
        if accelerator == "gpu" and devices > machine.gpus:
            yield f"--gpus {devices}: PyTorch sees {machine.gpus} GPUs here. --gpus 0 trains on the CPU."
        if accelerator == "gpu" and run.cpu_processes > 1:
            yield "--cpu_processes is for training without GPUs. Remove it, or pass --gpus 0."
        if accelerator == "cpu" and run.precision == "16-mixed":
            yield "--use_16bit needs a GPU; on a CPU use --precision bf16-mixed for half precision."
        if self.config.aggregator.compile and not machine.has_compiler:
            yield (
                "--compile needs a C compiler, and neither gcc nor clang is found. Install one, set its path "
                "in CC and CXX, or remove the flag."
            )

    def _of_batches(self, machine: Machine) -> Iterator[str]:
        _, devices = training_devices(self.config, machine.gpus)
        processes, size = devices * self.config.run.num_nodes, self.config.optimiser.batch_size
        # Batch statistics of one face are undefined.
        least = 2 if self.config.stage == "backbone" else 1
        if size % processes:
            yield (
                f"--batch_size {size} is for all {processes} processes together and must be a multiple of "
                f"{processes}, such as {size // processes * processes or processes}."
            )
        elif size < least * processes:
            yield (
                f"--batch_size {size} is for all {processes} processes together, and batch normalisation "
                f"needs {least} faces or more on each. Give {least * processes} or more."
            )
        elif self.config.optimiser.contrast_weight and (fault := template_pair_fault(size, processes)):
            yield fault


def template_pair_fault(batch_size: int, processes: int) -> str:
    """A fault unless each process's part of a batch consists of pairs of templates."""
    if batch_size % (2 * processes) == 0:
        return ""
    return (
        f"--batch_size {batch_size}: batches consist of pairs of templates of one subject here, so each of "
        f"{processes} processes needs an even number. Give a multiple of {2 * processes}."
    )


def _range(above: float | None, low: float | None, high: float | None) -> str:
    if above is not None:
        return f"a number above {above:g}"
    if low is None:
        return "a finite number"
    return f"{low:g} or more" if high is None else f"{low:g} to {high:,}"

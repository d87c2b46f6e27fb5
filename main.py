"""Trains face recognition: a backbone on single faces, or the coreset aggregator on sets of faces.

python main.py --data_root DATA --train_data_path faces_emore/imgs --val_data_path faces_emore ...
    backbone stage: a backbone and a margin head on single faces
python main.py --data_root DATA --train_data_path faces_emore/imgs --start_from_model_statedict WEIGHTS ...
    coreset stage: the aggregator on templates, over that backbone, which stays frozen
python main.py --resume_from_checkpoint experiments/RUN/last.ckpt
    goes on with a run exactly where it stopped, with its own flags
python main.py --start_from_model_statedict WEIGHTS --evaluate --val_data_path faces_emore
    ten-fold accuracy of a backbone on the pair sets of a folder
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, _ArgumentGroup
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only

from evaluation.metrics.verification import FoldAccuracy
from evaluation.reporting.report import markdown_table, percent
from features.options import PRECISIONS
from features.process_group import interruptible, take_rank, watch_launched
from head import HEADS
from net import BACKBONES
from runs.assembly import build_run
from runs.backbone_evaluation import evaluate_backbone, evaluation_settings
from runs.checkpoints import (
    StoppedBySignal,
)
from runs.components import Run, skipped_text
from runs.coreset_flags import add_coreset_flags, add_feature_flags, add_label_flags, add_recipe_flags
from runs.folder import (
    BEST,
    LAST,
    earlier_starts,
    pair_summary,
    run_folder,
    validation_summary,
    write_run_json,
)
from runs.label_audit import checked_labels
from runs.saved_run import check_epochs, read_saved_run
from runs.settings import STAGE_DEFAULTS, STAGES, TEST_RUN_EPOCHS, Settings, resolve
from runs.trainer import checkpoint_bytes, make_loggers, make_trainer, training_devices
from runtime.command import build_parser, run_command
from runtime.disk_faults import fault_text
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.matmul_precision import GpuMode
from runtime.output_checks import require_free_space, require_output_folder
from train_val import BackboneTrainer, FaceCoresetNet
from training.held_out import held_out_table

# Warnings that cannot be true here. Old metrics are moved before their folder is logged to, and checkpoints
# are replaced on purpose; the other one is of PyTorch's own code.
_NEVER_TRUE = ("(Experiment logs|Checkpoint) directory", ".*LeafSpec")


def main() -> int:
    """Runs the command; gives its exit code."""
    # What Lightning says at this level is said here in other words, or advertises.
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for message in _NEVER_TRUE:
        warnings.filterwarnings("ignore", message=message)
    given = vars(flags().parse_args())
    try:
        return run_command(lambda: _train_watched(given))
    except StoppedBySignal as stop:
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            print(f"stopped by {stop}; nothing is lost.", file=sys.stderr)
        return 128 + stop.signum


def _train_watched(given: Mapping[str, Any]) -> None:
    watch_launched()
    train(given)


def train(given: Mapping[str, Any]) -> None:
    """Trains or evaluates as the flags say.

    Raises:
        InputError: flags, paths or data that cannot be used, or a loss that is not finite.
        StoppedBySignal: after SIGINT or SIGTERM, with everything kept.
    """
    if given.get("evaluate") and "resume_from_checkpoint" not in given:
        _evaluate_backbone(given)
        return
    flags_given = dict(given)
    evaluate, dry = (flags_given.pop(name, False) for name in ("evaluate", "dry_run"))
    checkpoint = flags_given.pop("resume_from_checkpoint", None)
    saved = None if checkpoint is None else read_saved_run(Path(checkpoint))
    step = 0 if saved is None else saved.step
    settings = resolve(flags_given, None if saved is None else saved.hparams)
    if saved is not None:
        _check_choices(settings, saved.path)
    if saved is not None and not evaluate:
        check_epochs(saved, settings.trained_epochs)
        # A damaged record is refused before anything is made.
        earlier_starts(saved.path.parent)
    if saved is not None and settings.cache_features is not None and "cache_features" not in flags_given:
        saved = replace(saved, cache_is_given=False)
    accelerator, devices = training_devices(settings)
    processes = devices * settings.num_nodes
    rank = take_rank(devices, settings.num_nodes)
    mode = GpuMode.of_training(settings.stage, gpu=accelerator == "gpu")
    folder = Path(settings.out)
    _check_output(settings)
    run = build_run(settings, saved, processes=processes, gpu=accelerator == "gpu", dry_run=dry)
    if rank == 0:
        each = f"{processes} x {accelerator}, {settings.batch_size // processes} of a batch on each"
        _say(run, settings, checkpoint, evaluate, each)
        if dry:
            print(checked_labels(run, folder))
        elif not settings.fast_dev_run:
            # One checkpoint replaces another that is still there.
            require_free_space(folder, 0 if evaluate else 2 * checkpoint_bytes(run.module))
            resumed = None if saved is None or evaluate else saved.path
            folder = run_folder(folder, settings.prefix, resumed, step=step)
            write_run_json(folder, settings.to_dict(), run.facts | asdict(mode))
            print(f"run      {folder}", flush=True)
    if dry:
        return
    for message in run.module.expected_warnings + run.data.expected_warnings:
        warnings.filterwarnings("ignore", message)
    loggers = make_loggers(settings, folder, step)
    torch.set_float32_matmul_precision(mode.float32_matmul_precision)
    trainer = make_trainer(settings, run, folder, accelerator, devices, loggers, mode)
    if evaluate:
        with interruptible():
            trainer.validate(run.module, run.data, ckpt_path=checkpoint, verbose=False)
    else:
        with _telling_what_is_kept(folder):
            trainer.fit(run.module, run.data, ckpt_path=checkpoint)
        best = folder / BEST
        if not settings.fast_dev_run and run.validates:
            ckpt_path = trainer.strategy.broadcast(str(best) if best.is_file() else None)
            with interruptible():
                trainer.validate(run.module, run.data, ckpt_path=ckpt_path, verbose=False)
    if trainer.is_global_zero and not settings.fast_dev_run and run.validates:
        _tell(run.module, folder)
    if trainer.is_global_zero and run.skipped:
        print(f"\n{skipped_text(run.skipped)}")


def _check_output(settings: Settings) -> None:
    """Raises InputError unless the run's folder and its features can be written, before the work."""
    if not settings.fast_dev_run:
        require_output_folder(Path(settings.out), "--out")
    if settings.cache_features is not None:
        require_output_folder(settings.feature_folder, "--cache_features")


@contextmanager
def _telling_what_is_kept(folder: Path) -> Iterator[None]:
    """Says of a fault of the machine, such as a full disk, where the training can go on."""
    try:
        yield
    except OSError as fault:
        text, last = fault_text(fault), folder / LAST
        if text is None or not last.is_file():
            raise
        raise InputError(
            f"{text}\nTraining stopped. --resume_from_checkpoint {last} goes on from the last checkpoint."
        ) from fault


def _evaluate_backbone(given: Mapping[str, Any]) -> None:
    """Accuracy of weights on pair sets, into a run folder."""
    settings = evaluation_settings({name: value for name, value in given.items() if name != "evaluate"})
    accelerator, devices = training_devices(settings)
    if take_rank(devices, settings.num_nodes) == 0:
        print(f"evaluates {settings.start_from_model_statedict} on pair sets, {devices} x {accelerator}")
    require_output_folder(Path(settings.out), "--out")
    accuracies = evaluate_backbone(settings, gpu=accelerator == "gpu", devices=devices)
    if accuracies is None:
        return
    folder = run_folder(Path(settings.out), settings.prefix, None)
    write_run_json(folder, settings.to_dict(), {"evaluated": settings.start_from_model_statedict})
    _write_validation(folder, pair_summary(accuracies))
    print(f"\n{_pair_table(accuracies)}\n\neverything is in {folder}: validation.json, run.json")


def flags() -> ArgumentParser:
    """The command's flags; what is not given is absent from the namespace."""
    parser = build_parser(__doc__)
    parser.argument_default = SUPPRESS
    data = parser.add_argument_group("data")
    _data_flags(data)
    add_label_flags(data)
    _model_flags(parser.add_argument_group("model"))
    add_coreset_flags(parser.add_argument_group("coreset stage"))
    add_feature_flags(parser.add_argument_group("coreset stage from features"))
    recipe = parser.add_argument_group("recipe")
    add_recipe_flags(recipe)
    _recipe_flags(recipe)
    _run_flags(parser.add_argument_group("run"))
    return parser


def _data_flags(group: _ArgumentGroup) -> None:
    group.add_argument("--data_root", help="folder that the data paths are in" + _default("data_root"))
    group.add_argument("--train_data_path", help="folder of <subject>/<image>, aligned faces of 112 x 112")
    group.add_argument(
        "--val_data_path",
        help="backbone stage: folder with pair sets (lfw.bin, ...); coreset stage: folder of other subjects "
        "to validate on, in place of held-out ones",
    )
    group.add_argument(
        "--train_data_subset",
        nargs="?",
        const="",
        metavar="FILE_OR_FRACTION",
        help="published index file, or share of the subjects; without a value the file beside the data, else "
        "a tenth of the subjects",
    )
    group.add_argument(
        "--use_mxrecord", action="store_true", help="read train.rec of the folder, without unpacking it"
    )
    group.add_argument(
        "--swap_color_channel",
        action="store_true",
        help="swap red and blue of the training images, for folders that the old published convert.py wrote",
    )
    for name in ("low_res", "crop", "photometric"):
        flag = f"{name}_augmentation_prob"
        group.add_argument(f"--{flag}", type=float, help=f"share of images changed so{_by_stage(flag)}")


def _model_flags(group: _ArgumentGroup) -> None:
    group.add_argument(
        "--stage", choices=STAGES, help="default: coreset where weights are given, else backbone"
    )
    group.add_argument(
        "--arch", choices=BACKBONES, help="backbone (default: that of the weights, else ir_18)"
    )
    group.add_argument(
        "--start_from_model_statedict",
        metavar="SOURCE",
        help="weights of the backbone: a file, a name of the catalogue, or hf://OWNER/REPO",
    )
    group.add_argument("--head", choices=HEADS, help="margin head" + _default("head"))
    group.add_argument(
        "--m", type=float, help="margin of the head" + _by_stage("m") + "; arcface 0.5, cosface 0.4"
    )
    group.add_argument("--h", type=float, help="concentration of adaface" + _by_stage("h"))
    group.add_argument("--s", type=float, help="scale of the logits" + _by_stage("s"))
    group.add_argument(
        "--t_alpha", type=float, help="adaface: weight of a batch's statistics" + _default("t_alpha")
    )


def _recipe_flags(group: _ArgumentGroup) -> None:
    group.add_argument("--epochs", type=int, help="epochs in all" + _by_stage("epochs"))
    group.add_argument(
        "--epoch_items",
        type=int,
        help="faces or templates of an epoch (default: all images, coreset stage a tenth)",
    )
    group.add_argument(
        "--batch_size", type=int, help="faces or templates on all processes" + _by_stage("batch_size")
    )
    group.add_argument("--lr", type=float, help="learning rate" + _by_stage("lr"))
    group.add_argument(
        "--lr_milestones", type=_milestones, help="epochs after which it falls" + _by_stage("lr_milestones")
    )
    group.add_argument("--lr_gamma", type=float, help="factor by which it falls" + _default("lr_gamma"))
    group.add_argument("--weight_decay", type=float, help="weight decay" + _by_stage("weight_decay"))
    group.add_argument("--momentum", type=float, help="of SGD, backbone stage" + _default("momentum"))
    group.add_argument(
        "--gradient_clip_val",
        type=float,
        help="largest norm of a gradient, 0: any" + _by_stage("gradient_clip_val"),
    )
    group.add_argument(
        "--accumulate_grad_batches", type=int, help="batches of a step" + _default("accumulate_grad_batches")
    )
    group.add_argument("--seed", type=int, help="all that is random follows from it" + _default("seed"))


def _run_flags(group: _ArgumentGroup) -> None:
    group.add_argument(
        "--prefix", help="name of the run's folder, to which a number is added" + _default("prefix")
    )
    group.add_argument("--out", help="folder of the run folders" + _default("out"))
    group.add_argument("--gpus", type=int, help="GPUs of a node (default: one if there is one, else the CPU)")
    group.add_argument("--num_nodes", type=int, help="machines" + _default("num_nodes"))
    group.add_argument("--cpu_processes", type=int, help="processes on a CPU" + _default("cpu_processes"))
    group.add_argument("--use_16bit", action="store_true", help="the same as --precision 16-mixed")
    group.add_argument("--precision", choices=PRECISIONS, help="of the network" + _default("precision"))
    group.add_argument("--num_workers", type=int, help="loaders of each process" + _default("num_workers"))
    group.add_argument("--resume_from_checkpoint", metavar="CKPT", help="go on with this run")
    group.add_argument(
        "--evaluate",
        action="store_true",
        help="validate only: the run of --resume_from_checkpoint, else "
        "the backbone of --start_from_model_statedict on the pair sets of --val_data_path",
    )
    group.add_argument(
        "--fast_dev_run", action="store_true", help="one step and one batch of validation, no files"
    )
    group.add_argument(
        "--test_run",
        action="store_true",
        help=f"the whole way in short: {TEST_RUN_EPOCHS} epochs of 10 steps",
    )
    group.add_argument("--save_all_models", action="store_true", help="keep a checkpoint of every epoch")


def _check_choices(settings: Settings, checkpoint: Path) -> None:
    """Raises InputError where a checkpoint says for a flag what the command line does not take."""
    values = settings.to_dict()
    faults = [
        f"{checkpoint}: hparams, {action.dest}: {values[action.dest]!r}; expected "
        f"{', '.join(action.choices)}."
        for action in flags()._actions
        if action.choices is not None and values.get(action.dest) not in (None, *action.choices)
    ]
    if faults:
        raise InputError.from_faults(faults)


def _default(name: str) -> str:
    return f" (default: {Settings.__dataclass_fields__[name].default})"


def _by_stage(name: str) -> str:
    values = [STAGE_DEFAULTS[stage][name] for stage in STAGES]
    shown = [",".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in values]
    return f" (default: {shown[0]}, coreset stage {shown[1]})"


def _milestones(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise ArgumentTypeError(f"expected whole numbers separated by commas, found {text!r}") from None


def _say(run: Run, settings: Settings, checkpoint: str | None, evaluate: bool, processes: str) -> None:
    """The first lines: what will be trained, on what, with which classes and batches."""
    print(f"stage    {settings.stage}: {run.what}")
    if checkpoint is not None:
        print(f"{'model' if evaluate else 'resumes':<9}{checkpoint}")
    for line in run.lines:
        print(line)
    print(f"devices  {processes}, precision {settings.precision}")
    for warning in run.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _tell(module: BackboneTrainer | FaceCoresetNet, folder: Path) -> None:
    """The last words: figures of the best checkpoint, and where everything is."""
    _write_validation(folder, validation_summary(module))
    print()
    if isinstance(module, FaceCoresetNet):
        print("held-out subjects, per cent (one gallery template each, two probe templates)")
        print(held_out_table(module.figures))
    else:
        print(_pair_table(module.accuracies))
    print(f"\neverything is in {folder}: best.ckpt, last.ckpt, metrics.csv, plots/, training_samples/")


def _pair_table(accuracies: Mapping[str, FoldAccuracy]) -> str:
    rows = [
        [name, percent(result.accuracy, result.interval95), f"{result.threshold:.3f}"]
        for name, result in accuracies.items()
    ]
    return markdown_table(["pair set", "ten-fold accuracy [95 %]", "threshold (squared distance)"], rows)


def _write_validation(folder: Path, summary: Mapping[str, Any]) -> None:
    atomic_write(folder / "validation.json", json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

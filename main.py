"""Train face recognition: a backbone on single faces, or the coreset aggregator on sets of faces.

python main.py --data_root DATA --train_data_path faces_emore/imgs --val_data_path faces_emore ...
    backbone stage: a backbone and a margin head on single faces
python main.py --data_root DATA --train_data_path faces_emore/imgs --start_from_model_statedict WEIGHTS ...
    coreset stage: the aggregator on templates, over that backbone, which stays frozen
python main.py --config RUN.yaml --epochs 10
    values of a file (or of the run.json of a run), which flags override
python main.py --resume_from_checkpoint experiments/RUN/last.ckpt
    continue a run exactly where it stopped, with its own flags
python main.py --start_from_model_statedict WEIGHTS --evaluate --val_data_path faces_emore
    ten-fold accuracy of a backbone on the pair sets of a folder
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs.config import TrainingConfig
from runs.config_files import config_text, read_config
from runs.config_rules import Machine, resolve, training_devices
from runs.flags import training_flags
from runtime.command import run_command
from runtime.disk_faults import fault_text
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.output_checks import require_free_space, require_output_folder

if TYPE_CHECKING:
    from evaluation.metrics.verification import FoldAccuracy
    from runs.components import Run
    from runs.saved_run import SavedRun
    from train_val import BackboneTrainer, FaceCoresetNet

# Warnings of Lightning and PyTorch about what is intended: metrics and checkpoints are kept on purpose.
_INTENDED = ("(Experiment logs|Checkpoint) directory", ".*LeafSpec")


def main() -> int:
    """Run the command and return its exit code."""
    given = vars(flags().parse_args())
    if given.get("print_config"):
        return run_command(lambda: print(config_text(_config(given, prints=True)), end=""))
    from pytorch_lightning.utilities import rank_zero_only

    from runs.checkpoints import StoppedBySignal

    # Lightning's messages at this level are advertisements, or printed here in other words.
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for message in _INTENDED:
        warnings.filterwarnings("ignore", message=message)
    try:
        return run_command(lambda: _train_watched(given))
    except StoppedBySignal as stop:
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            print(f"stopped by {stop}; the checkpoint is complete.", file=sys.stderr)
        return 128 + stop.signum


def flags() -> ArgumentParser:
    """The parser of the command; flags that are not given are absent from the namespace."""
    return training_flags(__doc__)


def _train_watched(given: Mapping[str, Any]) -> None:
    from features.process_group import watch_launched

    watch_launched()
    train(given)


def train(given: Mapping[str, Any]) -> None:
    """Train or evaluate as the flags say.

    Raises:
        InputError: flags, paths or data that cannot be used, or a loss that is not finite.
        StoppedBySignal: after SIGINT or SIGTERM, with a checkpoint written.
    """
    import torch

    from features.process_group import interruptible, take_rank
    from runs.assembly import build_run
    from runs.components import RunRequest, skipped_text
    from runs.folder import BEST, earlier_starts, run_folder, write_run_json
    from runs.label_audit import audit_labels
    from runs.saved_run import read_saved_run
    from runs.trainer import checkpoint_bytes, make_loggers, make_trainer
    from runtime.matmul_precision import GpuMode

    evaluate, dry_run = bool(given.get("evaluate")), bool(given.get("dry_run"))
    checkpoint = given.get("resume_from_checkpoint")
    if evaluate and checkpoint is None:
        _evaluate_backbone(given)
        return
    saved = None if checkpoint is None else read_saved_run(Path(checkpoint))
    step = 0 if saved is None else saved.step
    config = _config(given, saved)
    if saved is not None and not evaluate:
        saved.check_epochs(config.optimiser.trained_epochs)
        # A damaged run.json is reported before anything is written.
        earlier_starts(saved.path.parent)
    if saved is not None and config.data.cache_features is not None and "cache_features" not in given:
        saved = replace(saved, cache_is_given=False)
    accelerator, devices = training_devices(config, torch.cuda.device_count())
    processes = devices * config.run.num_nodes
    rank = take_rank(devices, config.run.num_nodes)
    mode = GpuMode.of_training(config.stage, gpu=accelerator == "gpu")
    folder = Path(config.run.out)
    if not config.run.fast_dev_run:
        require_output_folder(folder, "--out")
    if config.data.cache_features is not None:
        require_output_folder(config.feature_folder, "--cache_features")
    run = build_run(RunRequest(config, saved, processes, gpu=accelerator == "gpu", dry_run=dry_run))
    if saved is not None:
        saved.check_fits(run.module, resumes=not evaluate)
    if rank == 0:
        each = f"{processes} x {accelerator}, {config.optimiser.batch_size // processes} of a batch on each"
        _print_start(run, config, checkpoint, evaluate, each)
        if dry_run:
            print(audit_labels(run, folder))
        elif not config.run.fast_dev_run:
            # A new checkpoint is written before the old one is removed.
            require_free_space(folder, 0 if evaluate else 2 * checkpoint_bytes(run.module))
            resumed = None if saved is None or evaluate else saved.path
            folder = run_folder(folder, config.run.prefix, resumed, step=step)
            write_run_json(folder, config.to_flat(), run.facts | asdict(mode))
            print(f"run      {folder}", flush=True)
    if dry_run:
        return
    for message in run.module.expected_warnings + run.data.expected_warnings:
        warnings.filterwarnings("ignore", message)
    loggers = make_loggers(config, folder, step)
    torch.set_float32_matmul_precision(mode.float32_matmul_precision)
    trainer = make_trainer(config, run, folder, accelerator, devices, loggers, mode)
    if evaluate:
        with interruptible():
            trainer.validate(run.module, run.data, ckpt_path=checkpoint, verbose=False)
    else:
        with _resume_hint(folder):
            trainer.fit(run.module, run.data, ckpt_path=checkpoint)
        best = folder / BEST
        if not config.run.fast_dev_run and run.validates:
            ckpt_path = trainer.strategy.broadcast(str(best) if best.is_file() else None)
            with interruptible():
                trainer.validate(run.module, run.data, ckpt_path=ckpt_path, verbose=False)
    if trainer.is_global_zero and not config.run.fast_dev_run and run.validates:
        _print_figures(run.module, folder)
    if trainer.is_global_zero and run.skipped:
        print(f"\n{skipped_text(run.skipped)}")


def _config(
    given: Mapping[str, Any], saved: SavedRun | None = None, *, prints: bool = False
) -> TrainingConfig:
    """The configuration of flags, --config and checkpoint; InputError with all faults.

    `prints`: the configuration may be incomplete and need not suit this machine.
    """
    if saved is None and given.get("resume_from_checkpoint") is not None:
        from runs.saved_run import read_saved_run

        saved = read_saved_run(Path(given["resume_from_checkpoint"]))
    file = None if given.get("config") is None else read_config(Path(given["config"]))
    return resolve(
        given,
        None if saved is None else saved.hparams,
        file=file,
        machine=None if prints else Machine.here(),
        checkpoint=None if saved is None else saved.path,
        is_complete=not prints,
    )


@contextmanager
def _resume_hint(folder: Path) -> Iterator[None]:
    """Add to a fault of the machine, such as a full disk, how training can be resumed."""
    from runs.folder import LAST

    try:
        yield
    except OSError as fault:
        text, last = fault_text(fault), folder / LAST
        if text is None or not last.is_file():
            raise
        raise InputError(
            f"{text}\nTraining stopped. --resume_from_checkpoint {last} continues from the last checkpoint."
        ) from fault


def _evaluate_backbone(given: Mapping[str, Any]) -> None:
    """Write the accuracy of weights on pair sets into a run folder."""
    import torch

    from features.process_group import take_rank
    from runs.backbone_run import evaluate_backbone
    from runs.folder import pair_summary, run_folder, write_run_json

    config = _config(given)
    weights = config.model.start_from_model_statedict
    accelerator, devices = training_devices(config, torch.cuda.device_count())
    if take_rank(devices, config.run.num_nodes) == 0:
        print(f"evaluates {weights} on pair sets, {devices} x {accelerator}")
    require_output_folder(Path(config.run.out), "--out")
    accuracies = evaluate_backbone(config, gpu=accelerator == "gpu", devices=devices)
    if accuracies is None:
        return
    folder = run_folder(Path(config.run.out), config.run.prefix, None)
    write_run_json(folder, config.to_flat(), {"evaluated": weights})
    _write_validation(folder, pair_summary(accuracies))
    print(f"\n{_pair_table(accuracies)}\n\nresults are in {folder}: validation.json, run.json")


def _print_start(
    run: Run, config: TrainingConfig, checkpoint: str | None, evaluate: bool, processes: str
) -> None:
    """Print what will be trained, on which data, classes and batches."""
    print(f"stage    {config.stage}: {run.what}")
    if checkpoint is not None:
        print(f"{'model' if evaluate else 'resumes':<9}{checkpoint}")
    for line in run.lines:
        print(line)
    print(f"devices  {processes}, precision {config.run.precision}")
    for warning in run.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _print_figures(module: BackboneTrainer | FaceCoresetNet, folder: Path) -> None:
    """Write and print the figures of the best checkpoint."""
    from runs.folder import validation_summary
    from train_val import FaceCoresetNet
    from training.held_out import held_out_table

    _write_validation(folder, validation_summary(module))
    print()
    if isinstance(module, FaceCoresetNet):
        print("held-out subjects, per cent (one gallery template each, two probe templates)")
        print(held_out_table(module.figures))
    else:
        print(_pair_table(module.accuracies))
    names = ("validation.json", "best.ckpt", "last.ckpt", "metrics.csv", "plots", "training_samples")
    print(f"\nresults are in {folder}: {', '.join(name for name in names if (folder / name).exists())}")


def _pair_table(accuracies: Mapping[str, FoldAccuracy]) -> str:
    from evaluation.reporting.report import markdown_table, percent

    rows = [
        [name, percent(result.accuracy, result.interval95), f"{result.threshold:.3f}"]
        for name, result in accuracies.items()
    ]
    return markdown_table(["pair set", "ten-fold accuracy [95 %]", "threshold (squared distance)"], rows)


def _write_validation(folder: Path, summary: Mapping[str, Any]) -> None:
    atomic_write(folder / "validation.json", json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

"""What a training run leaves in its folder: checkpoints, pictures of what it is fed and chooses, run.json.

Callbacks of the Trainer; the training itself is in `train_val`. A kill at any moment leaves the last
checkpoint whole.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypedDict

import pytorch_lightning as pl
import torch
from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.callbacks import Callback, Checkpoint, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from data.checks.contact_sheets import face_sheet, template_sheet
from data.sources.batch_faults import UnusableBatch
from evaluation.metrics.rates import FoldAccuracy
from evaluation.reporting.report import versions
from runs.learning_curves import draw_curves
from runtime.distributed import gathered_union
from runtime.errors import InputError
from runtime.files import atomic_path, atomic_write, private_folder
from runtime.json_files import json_text, read_json
from runtime.process_faults import stop_watching
from runtime.process_group import STOP_SIGNALS
from train_val import UNUSABLE_SUBJECTS, BackboneTrainer, FaceCoresetNet
from weights.reading import read_checkpoint

LAST = "last.ckpt"
METRICS = "metrics.csv"
RUN_JSON = "run.json"
BEST = "best.ckpt"
# An epoch of MS1MV2 takes an hour and more: so much work at most is lost to a kill.
_SECONDS_BETWEEN_CHECKPOINTS = 600.0
_SECONDS_BETWEEN_PLOTS = 30.0
_PICTURED_TEMPLATES = 8


class StoppedBySignal(SystemExit):
    """Training was asked to stop and has kept everything."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.step = step

    def __str__(self) -> str:
        return f"{signal.Signals(self.signum).name} at step {self.step}"


class SafeCheckpointIO(TorchCheckpointIO):
    """Checkpoints are written whole or not at all, and nothing but tensors and plain values is unpickled."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """See the base class."""
        # PyTorch tells the fault of a disk only where it writes to a stream of Python's.
        with atomic_path(Path(path)) as temporary, temporary.open("wb") as stream:
            torch.save(checkpoint, stream)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = True) -> Any:
        """See the base class."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)


class KeepBest(ModelCheckpoint):
    """Writes best.ckpt: the epoch with the highest monitored value, the later one of equal epochs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"mode": "max"})

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """See the base class, which keeps the earlier one of equal epochs."""
        if current is None:
            return False
        best = self.best_model_score
        return trainer.strategy.reduce_boolean_decision(best is None or bool(current >= best))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the best.ckpt of its own folder, wherever that was when the checkpoint was written."""
        path = Path(str(self.dirpath)) / f"{self.filename}{self.FILE_EXTENSION}"
        if state_dict["best_model_score"] is None or not path.is_file():
            return
        here = str(path)
        paths = {"best_model_path": here, "kth_best_model_path": here, "dirpath": self.dirpath}
        models = {here: state_dict["best_model_score"]}
        super().load_state_dict({**state_dict, **paths, "best_k_models": models})


class _AppendingWriter(ExperimentWriter):
    """Goes on with a metrics.csv that is there, which the base class deletes.

    A checkpoint that was written before an epoch's validation makes a resumed run validate again: a row of
    the last step that is there with the same columns is not written twice.
    """

    def _check_log_dir_exists(self) -> None:
        self._last_step, self._columns_there = -1, set[frozenset[str]]()
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            self.metrics_keys = list(rows.fieldnames or [])
            for row in rows:
                if int(row["step"]) > self._last_step:
                    self._last_step, self._columns_there = int(row["step"]), set()
                self._columns_there.add(frozenset(name for name, value in row.items() if value))

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """See the base class."""
        if step != self._last_step or {"step", *metrics_dict} not in self._columns_there:
            super().log_metrics(metrics_dict, step)


class MetricsLogger(CSVLogger):
    """Writes metrics.csv row by row, behind the rows of the run so far."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "", "", flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """See the base class."""
        if not isinstance(self._experiment, _AppendingWriter):
            self._experiment = _AppendingWriter(self.log_dir)
        return self._experiment


class KeepLast(Checkpoint):
    """Writes last.ckpt before and after validation, every ten minutes, and when a signal asks to stop.

    Stands behind the callback that keeps the best checkpoint, whose state of the epoch belongs into the file.

    SIGINT and SIGTERM stop after the step under way, with `StoppedBySignal` on every rank; a second one ends
    the process (`process_faults.second_signal_ends`).
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LAST
        self._signum = 0
        self._previous: dict[int, Any] = {}
        self._written = time.monotonic()
        self._step = 0
        self._stops = False

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Takes the path from process 0, which alone knows the run's number."""
        self._path = Path(trainer.strategy.broadcast(str(self._path)))
        if trainer.ckpt_path is not None:
            pl_module.last_checkpoint = str(trainer.ckpt_path)
        # Before Lightning has set its own handlers, which it takes back after a fault alone.
        self._previous = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the signals over from Lightning, which would leave in the middle of an accumulation."""
        self._step = trainer.global_step
        # What `on_validation_start` counted is counted by the validation itself now.
        validated: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        validated.ready = validated.started = validated.processed
        for signum in STOP_SIGNALS:
            signal.signal(signum, self._asked)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves if it is time; never between the batches of one optimiser step, nor where an epoch ends."""
        if trainer.global_step == self._step or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        self._step = trainer.global_step
        due = self._signum or time.monotonic() - self._written > _SECONDS_BETWEEN_CHECKPOINTS
        if trainer.strategy.reduce_boolean_decision(bool(due), all=False):
            self._save(trainer, pl_module)
            self._stops = trainer.strategy.reduce_boolean_decision(bool(self._signum), all=False)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Stops between two batches: only now are the metrics of the step that was saved written."""
        if self._stops:
            self._stop(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Saves the epoch, so that a fault of validation costs no training; a resumed run validates it."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        # A resumed run skips the validation of an epoch whose batches are done, unless these counts say that
        # a batch of it was under way.
        validated: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        validated.ready += 1
        validated.started += 1
        self._save(trainer, pl_module)
        validated.ready -= 1
        validated.started -= 1

    def save_before_batch(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Saves the last optimiser step, when the next batch has been fetched and no more.

        Where a step is of several batches, the running statistics of batch norms have seen those of its
        batches that came before, and will see them again.
        """
        progress = trainer.fit_loop.epoch_loop.batch_progress
        last = progress.is_last_batch
        counts: list[Any] = [progress.total, progress.current]
        before = [replace(count) for count in counts]
        for count in counts:
            done = count.completed - progress.current.completed % trainer.accumulate_grad_batches
            count.ready = count.started = count.processed = count.completed = done
        progress.is_last_batch = False
        self._save(trainer, pl_module)
        for count, known in zip(counts, before, strict=True):
            vars(count).update(vars(known))
        progress.is_last_batch = last

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Saves, after validation."""
        self._step = trainer.global_step
        self._save(trainer, pl_module)
        is_last = trainer.current_epoch + 1 >= (trainer.max_epochs or 0)
        if not is_last and trainer.strategy.reduce_boolean_decision(bool(self._signum), all=False):
            self._stop(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the signals back."""
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _save(self, trainer: pl.Trainer, pl_module: Any) -> None:
        trainer.save_checkpoint(self._path)
        pl_module.last_checkpoint = str(self._path)
        self._written = time.monotonic()

    def _stop(self, trainer: pl.Trainer) -> NoReturn:
        # Each process ends for itself, not as the fault of another.
        stop_watching()
        raise StoppedBySignal(self._signum or signal.SIGTERM, trainer.global_step)

    def _asked(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum
        if multiprocessing.parent_process() is None:
            # os.write: a handler may interrupt a print under way.
            os.write(2, b"\nstopping after this step; press Ctrl-C again to stop at once\n")


class StopAtUnusable(Callback):
    """Stops all processes with the sentences of the images of a batch that cannot be used, and keeps all.

    Stands before all callbacks that look at a batch. `keep_last`: None where no files are written.
    """

    def __init__(self, keep_last: KeepLast | None) -> None:
        self._keep_last = keep_last

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """All processes learn of it before any of them waits for the others in the step."""
        faults = batch.faults if isinstance(batch, UnusableBatch) else {}
        if trainer.strategy.reduce_boolean_decision(not faults, all=True):
            return
        said = gathered_union({trainer.global_rank: faults})
        found = {fault: label for rank in sorted(said) for fault, label in said[rank].items()}
        lines = list(found)
        pl_module.identity[UNUSABLE_SUBJECTS] = sorted(
            {label for label in found.values() if label is not None}
        )
        if self._keep_last is not None:
            self._keep_last.save_before_batch(trainer, pl_module)
            lines.append(
                f"Training stopped at step {trainer.global_step}. When the image is mended or removed, "
                f"--resume_from_checkpoint {pl_module.last_checkpoint} goes on; --skip_bad_images leaves "
                "out all images of this kind."
            )
        raise InputError.from_faults(lines)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """The images were usable when training began."""
        if isinstance(batch, UnusableBatch):
            raise InputError.from_faults(list(batch.faults))


class Pictures(Callback):
    """A sheet of the first batch, learning curves, and some held-out templates with their chosen faces."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fed = False
        self._drawn = time.monotonic()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Draws what the network is fed, once a run."""
        if self._fed or not trainer.is_global_zero:
            return
        self._fed = True
        path = self._folder / "training_samples" / f"step_{trainer.global_step}.png"
        if isinstance(pl_module, FaceCoresetNet):
            shown = trainer.datamodule.pictured(batch)  # type: ignore[attr-defined]
            if shown is not None:
                template_sheet(shown, pl_module.model.spec, path)
        else:
            face_sheet(batch[0], pl_module.model.spec, path)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the curves anew now and then."""
        if trainer.is_global_zero and time.monotonic() - self._drawn > _SECONDS_BETWEEN_PLOTS:
            self._curves(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the curves to the end."""
        if trainer.is_global_zero:
            self._curves(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draws the chosen faces, when validation runs for itself: after training, or with --evaluate."""
        if (
            isinstance(pl_module, FaceCoresetNet)
            and trainer.is_global_zero
            and trainer.state.fn == TrainerFn.VALIDATING
        ):
            chosen_faces(trainer, pl_module, self._folder / "plots" / "chosen_faces.png")

    def _curves(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()
        draw_curves(self._folder, self._folder / "plots" / "curves.png")
        self._drawn = time.monotonic()


@torch.no_grad()
def chosen_faces(trainer: pl.Trainer, module: FaceCoresetNet, path: Path) -> None:
    """Draws some held-out templates, a row each, with the chosen faces framed and numbered by their order."""
    batch = trainer.datamodule.example(_PICTURED_TEMPLATES)  # type: ignore[attr-defined]
    shown = trainer.datamodule.pictured(batch)  # type: ignore[attr-defined]
    if shown is None:
        return
    descriptor = module.aggregator(module.embedded(batch.to(module.device)))
    template_sheet(shown, module.model.spec, path, picks=descriptor.picks.cpu())


def place_of(checkpoint: Path) -> tuple[str, str]:
    """`root` and `prefix`, as `run_folder` takes them, of the run folder that a checkpoint lies in.

    Nothing that the checkpoint says has a part in it: a run folder is where its checkpoint lies.
    """
    folder = Path(os.path.abspath(checkpoint)).parent
    return str(folder.parent), folder.name.rpartition("_")[0] or folder.name


def run_folder(root: Path, prefix: str, resumed: Path | None = None, *, step: int = 0) -> Path:
    """The folder of a run: that of a last.ckpt which is resumed, else `<root>/<prefix>_<n>` with a free n.

    A run that is resumed from another checkpoint than last.ckpt, or with another `root` or `prefix` than
    those of its folder (`place_of`), goes on in a new folder, and takes its metrics, its best checkpoint and
    its record along.

    Args:
        root: folder of the run folders.
        prefix: start of a new folder's name.
        resumed: checkpoint that the run goes on from.
        step: optimiser steps that the checkpoint has done; metrics from then on are logged anew.

    Raises:
        InputError: the record or the metrics of the resumed run are damaged; nothing was written.
    """
    if resumed is None:
        return _free_folder(root, prefix)
    before = resumed.parent
    earlier_starts(before)
    metrics = metrics_before(before / METRICS, step) if (before / METRICS).is_file() else None
    its_root, its_prefix = place_of(resumed)
    goes_on = resumed.name == LAST and (Path(its_root), its_prefix) == (Path(os.path.abspath(root)), prefix)
    best = before / BEST
    # One that is later than the checkpoint belongs to epochs that are trained anew.
    takes_best = not goes_on and best.is_file() and step_of(best, read_checkpoint(best)) <= step
    folder = before if goes_on else _free_folder(root, prefix)
    if metrics is not None:
        atomic_write(folder / METRICS, metrics)
    if takes_best:
        _copy(best, folder / BEST)
    if not goes_on and (before / RUN_JSON).is_file():
        _copy(before / RUN_JSON, folder / RUN_JSON)
    return folder


def step_of(path: Path, checkpoint: object) -> int:
    """Optimiser steps done, as a checkpoint of ours says it; InputError where it does not."""
    step = checkpoint.get("global_step") if isinstance(checkpoint, Mapping) else None
    if type(step) is not int or not 0 <= step < 1 << 63:
        raise InputError(f"{path}: is no checkpoint of main.py: its global_step is {step!r}.")
    return step


def metrics_before(path: Path, step: int) -> str:
    """The rows of a metrics.csv that were logged before an optimiser step, as they stand there.

    A row that a kill left unfinished is no row.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = file.read().splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as fault:
        raise InputError(f"{path}: cannot be read ({fault}). Restore it from a copy, or remove it.") from None
    if not lines:
        return ""
    try:
        names = next(csv.reader(lines[:1]))
        rows = zip(lines[1:], csv.reader(lines[1:]), strict=True)
        place = names.index("step")
        whole = ((line, cells) for line, cells in rows if len(cells) == len(names) and line.endswith("\n"))
        return lines[0] + "".join(line for line, cells in whole if int(cells[place]) < step)
    except (ValueError, csv.Error) as fault:
        raise InputError(
            f"{path}: is damaged ({fault}). Expected columns of figures with 'step' among them. Restore it "
            "from a copy, or remove it: the run then goes on without the figures so far."
        ) from None


def _free_folder(root: Path, prefix: str) -> Path:
    private_folder(root)
    for number in range(sys.maxsize):
        folder = root / f"{prefix}_{number}"
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return folder
    raise InputError(f"{root}: no number is left for another run of {prefix}.")


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def write_run_json(folder: Path, flags: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes how the run was made, so that it can be made again; resuming adds a start to those before."""
    start = {"command": sys.argv, "versions": versions(), "commit": _commit()}
    run = {"flags": dict(flags), **facts, "starts": [*earlier_starts(folder), start]}
    atomic_write(folder / RUN_JSON, json_text(run))


class _Record(TypedDict):
    """What is read again of a run.json."""

    starts: list[dict[str, Any]]


def earlier_starts(folder: Path) -> list[dict[str, Any]]:
    """How a run was started before, as its run.json says; nothing where it has none.

    Raises:
        InputError: run.json is damaged.
    """
    path = folder / RUN_JSON
    if not path.exists():
        return []
    try:
        record, _ = read_json(path, _Record, "the record of a training run")
    except InputError as fault:
        raise InputError(f"{fault} Without it the run goes on too, and forgets how it was started.") from None
    starts: list[dict[str, Any]] = record["starts"]
    return starts


def validation_summary(module: BackboneTrainer | FaceCoresetNet) -> dict[str, Any]:
    """The figures of the last validation as plain values, fractions."""
    if isinstance(module, FaceCoresetNet):
        return {name: figures.named() for name, figures in module.figures.items()}
    return pair_summary(module.accuracies)


def pair_summary(accuracies: Mapping[str, FoldAccuracy]) -> dict[str, Any]:
    """Figures of pair sets as plain values, fractions."""
    return {
        name: {"accuracy": result.accuracy, "standard_error": result.standard_error}
        for name, result in accuracies.items()
    }


def _commit() -> str | None:
    """The commit of this code, with a plus where files differ from it; None outside of a checkout."""
    here = Path(__file__).resolve().parent
    asked = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None

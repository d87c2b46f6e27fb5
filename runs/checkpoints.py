"""Checkpoint callbacks of a training run: the best, the latest, and stopping with a checkpoint."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from data.sources.unusable_images import UnusableBatch
from features.process_group import STOP_SIGNALS
from runs.folder import LAST
from runtime.distributed import gather_union
from runtime.errors import InputError
from runtime.files import atomic_path
from runtime.process_faults import stop_watching
from train_val import UNUSABLE_SUBJECTS
from weights import read_checkpoint

# An epoch of MS1MV2 takes over an hour; a kill loses this much at most.
_SECONDS_BETWEEN_CHECKPOINTS = 600.0


class StoppedBySignal(SystemExit):
    """Training was stopped by a signal, after a checkpoint was written."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.step = step

    def __str__(self) -> str:
        return f"{signal.Signals(self.signum).name} at step {self.step}"


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, and unpickles only tensors and plain values."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """See the base class."""
        # PyTorch reports a full disk only when it writes to a Python stream.
        with atomic_path(Path(path)) as temporary, temporary.open("wb") as stream:
            torch.save(checkpoint, stream)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = True) -> Any:
        """See the base class."""
        return read_checkpoint(Path(path))


class BestCheckpoint(ModelCheckpoint):
    """Writes best.ckpt: the epoch with the highest monitored value, the later one of equals."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"mode": "max"})

    @property
    def state_key(self) -> str:
        """Key in checkpoints, which contains the former name of this class."""
        return super().state_key.replace(type(self).__qualname__, "KeepBest", 1)

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """See the base class, which keeps the earlier one of equals."""
        if current is None:
            return False
        best = self.best_model_score
        return trainer.strategy.reduce_boolean_decision(best is None or bool(current >= best))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the best.ckpt of the present folder, which may have been moved."""
        path = Path(str(self.dirpath)) / f"{self.filename}{self.FILE_EXTENSION}"
        if state_dict["best_model_score"] is None or not path.is_file():
            return
        here = str(path)
        paths = {"best_model_path": here, "kth_best_model_path": here, "dirpath": self.dirpath}
        models = {here: state_dict["best_model_score"]}
        super().load_state_dict({**state_dict, **paths, "best_k_models": models})


class PeriodicCheckpoint(Checkpoint):
    """Writes last.ckpt before and after validation, every ten minutes, and when a signal asks to stop.

    It must come after `BestCheckpoint`, whose state is part of the file. SIGINT and SIGTERM stop after the
    current step, with `StoppedBySignal` on every rank; a second one ends the process.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LAST
        self._signum = 0
        self._previous: dict[int, Any] = {}
        self._written = time.monotonic()
        self._step = 0
        self._stops = False

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Take the path from process 0, which created the run folder."""
        self._path = Path(trainer.strategy.broadcast(str(self._path)))
        if trainer.ckpt_path is not None:
            pl_module.last_checkpoint = str(trainer.ckpt_path)
        # Before Lightning sets its own handlers, which it removes only after a fault.
        self._previous = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace Lightning's handlers, which would stop between the batches of one step."""
        self._step = trainer.global_step
        # Undo the counts of `on_validation_start`; the validation counts itself.
        validated: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        validated.ready = validated.started = validated.processed
        for signum in STOP_SIGNALS:
            signal.signal(signum, self._on_signal)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, but not within an optimiser step or at the end of an epoch."""
        if trainer.global_step == self._step or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        self._step = trainer.global_step
        due = self._signum or time.monotonic() - self._written > _SECONDS_BETWEEN_CHECKPOINTS
        if trainer.strategy.reduce_boolean_decision(bool(due), all=False):
            self._save(trainer, pl_module)
            self._stops = trainer.strategy.reduce_boolean_decision(bool(self._signum), all=False)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Stop between two batches, when the metrics of the saved step are written."""
        if self._stops:
            self._stop(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Save the epoch before its validation; a run resumed from it validates first."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        # A resumed run skips the validation of a complete epoch, unless these counts say that it had begun.
        validated: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        validated.ready += 1
        validated.started += 1
        self._save(trainer, pl_module)
        validated.ready -= 1
        validated.started -= 1

    def save_before_batch(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Save the last optimiser step after the next batch was fetched.

        With accumulated batches, BatchNorm statistics include the batches of the incomplete step, which a
        resumed run repeats.
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
        """Save after validation."""
        self._step = trainer.global_step
        self._save(trainer, pl_module)
        is_last = trainer.current_epoch + 1 >= (trainer.max_epochs or 0)
        if not is_last and trainer.strategy.reduce_boolean_decision(bool(self._signum), all=False):
            self._stop(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the signal handlers."""
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _save(self, trainer: pl.Trainer, pl_module: Any) -> None:
        trainer.save_checkpoint(self._path)
        pl_module.last_checkpoint = str(self._path)
        self._written = time.monotonic()

    def _stop(self, trainer: pl.Trainer) -> NoReturn:
        # This is not a fault that ends the other processes.
        stop_watching()
        raise StoppedBySignal(self._signum or signal.SIGTERM, trainer.global_step)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum
        if multiprocessing.parent_process() is None:
            # os.write, since the handler may interrupt a print.
            os.write(2, b"\nstopping after this step; press Ctrl-C again to stop at once\n")


class StopAtUnusable(Callback):
    """Stops all processes, with a checkpoint, at a batch with images that cannot be used.

    It must come before callbacks that use the batch. `checkpoint`: None where no files are written.
    """

    def __init__(self, checkpoint: PeriodicCheckpoint | None) -> None:
        self._checkpoint = checkpoint

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Stop all processes before the step, in which they would wait for each other."""
        faults = batch.faults if isinstance(batch, UnusableBatch) else {}
        if trainer.strategy.reduce_boolean_decision(not faults, all=True):
            return
        gathered = gather_union({trainer.global_rank: faults})
        found = {fault: label for rank in sorted(gathered) for fault, label in gathered[rank].items()}
        lines = list(found)
        pl_module.identity[UNUSABLE_SUBJECTS] = sorted(
            {label for label in found.values() if label is not None}
        )
        if self._checkpoint is not None:
            self._checkpoint.save_before_batch(trainer, pl_module)
            lines.append(
                f"Training stopped at step {trainer.global_step}. Repair or remove the image and continue "
                f"with --resume_from_checkpoint {pl_module.last_checkpoint}; --skip_bad_images excludes all "
                "images of this kind."
            )
        raise InputError.from_faults(lines)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop at an image that became unusable after training began."""
        if isinstance(batch, UnusableBatch):
            raise InputError.from_faults(list(batch.faults))

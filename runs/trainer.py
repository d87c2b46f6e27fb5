"""The Trainer of a run: its devices, callbacks, loggers and progress bars."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from features.process_group import EndAtSignal, WatchedDDP
from runs.checkpoints import (
    BestCheckpoint,
    PeriodicCheckpoint,
    SafeCheckpointIO,
    StopAtUnusable,
)
from runs.components import Run
from runs.folder import (
    BEST,
)
from runs.metrics_log import MetricsLogger
from runs.settings import Settings
from runs.visualizer import TrainingVisualizer
from runtime.errors import InputError
from runtime.escaping import escaped
from runtime.matmul_precision import GpuMode
from runtime.progress import progress_bar
from train_val import BACKBONE_MONITOR, CORESET_MONITOR, BackboneTrainer, FaceCoresetNet


def checkpoint_bytes(module: BackboneTrainer | FaceCoresetNet) -> int:
    """At the least: the weights, and one moment of each that is trained."""
    weights = [*module.parameters(), *module.buffers()]
    return sum(each.nbytes * (2 if each.requires_grad else 1) for each in weights)


def training_devices(settings: Settings) -> tuple[str, int]:
    """Accelerator, and processes on this machine."""
    there = torch.cuda.device_count()
    gpus = min(1, there) if settings.gpus is None else settings.gpus
    faults = []
    if gpus > there:
        faults.append(
            f"--gpus {gpus}: this machine shows {there} GPUs to PyTorch. --gpus 0 trains on the CPU."
        )
    if gpus and settings.cpu_processes > 1:
        faults.append("--cpu_processes is for training without GPUs. Leave it out, or pass --gpus 0.")
    if not gpus and settings.precision == "16-mixed":
        faults.append(
            "--use_16bit needs a GPU; on a CPU --precision bf16-mixed is the half precision there is."
        )
    if faults:
        raise InputError.from_faults(faults)
    return ("gpu", gpus) if gpus else ("cpu", settings.cpu_processes)


def make_loggers(settings: Settings, folder: Path, step: int) -> list[Logger]:
    """Metrics in metrics.csv and for TensorBoard, flags in hparams.yaml; a resumed run goes on at `step`."""
    # TensorBoard hides what a stopped run logged from there on.
    board = TensorBoardLogger(folder, "", "", default_hp_metric=False, purge_step=step or None)
    loggers = [MetricsLogger(folder), board]
    if not settings.fast_dev_run:
        shown = {
            name: escaped(value) if isinstance(value, str) else value
            for name, value in settings.to_dict().items()
        }
        for logger in loggers:
            logger.log_hyperparams(shown)
    return loggers


def make_trainer(
    settings: Settings,
    run: Run,
    folder: Path,
    accelerator: str,
    devices: int,
    loggers: list[Logger],
    mode: GpuMode,
) -> pl.Trainer:
    """The Trainer with the callbacks of a run."""
    processes = devices * settings.num_nodes
    # The buffers of a frozen backbone never change; the head's are the same on all ranks by themselves.
    distributed = WatchedDDP(
        broadcast_buffers=settings.stage == "backbone",
        process_group_backend="gloo" if accelerator == "cpu" else "nccl",
    )
    key = CORESET_MONITOR if settings.stage == "coreset" else BACKBONE_MONITOR
    keep_last = None if settings.fast_dev_run else PeriodicCheckpoint(folder)
    keep: list[pl.Callback] = [EndAtSignal(), StopAtUnusable(keep_last)]
    keep += [] if settings.fast_dev_run else [TrainingVisualizer(folder)]
    if run.validates:
        keep.append(_checkpoints(BestCheckpoint, folder, Path(BEST).stem, monitor=key))
    if settings.save_all_models:
        keep.append(_checkpoints(ModelCheckpoint, folder, "epoch_{epoch}", save_top_k=-1))
    keep += [] if keep_last is None else [keep_last]
    steps = run.steps_per_epoch
    return pl.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=settings.num_nodes,
        strategy=distributed if processes > 1 else "auto",
        precision=settings.precision,  # type: ignore[arg-type]
        benchmark=mode.cudnn_benchmark,
        max_epochs=settings.trained_epochs,
        accumulate_grad_batches=settings.accumulate_grad_batches,
        gradient_clip_val=settings.gradient_clip_val or None,
        fast_dev_run=settings.fast_dev_run,
        use_distributed_sampler=False,
        log_every_n_steps=max(1, min(50, steps // 2)),
        num_sanity_val_steps=0,
        enable_model_summary=False,
        limit_val_batches=1.0 if run.validates else 0,
        logger=loggers,
        callbacks=[*keep, LearningRateMonitor("epoch"), _TrainingBar(refresh_rate=max(1, steps // 100))],
        plugins=[SafeCheckpointIO()],
    )


class _TrainingBar(TQDMProgressBar):
    """Lightning's bars on a terminal; in a log, of training alone, the lines of `progress`."""

    def init_train_tqdm(self) -> Tqdm:
        """Of all epochs."""
        if sys.stdout.isatty():
            return super().init_train_tqdm()
        return cast("Tqdm", progress_bar(desc=self.train_description, disable=self.is_disabled))

    def init_validation_tqdm(self) -> Tqdm:
        """Of one validation."""
        if sys.stdout.isatty():
            return super().init_validation_tqdm()
        return cast("Tqdm", progress_bar(disable=True))


def _checkpoints(kind: type[ModelCheckpoint], folder: Path, name: str, **which: Any) -> ModelCheckpoint:
    return kind(
        folder,
        name,
        auto_insert_metric_name=False,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
        **which,
    )

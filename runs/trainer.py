"""The Trainer of a run: callbacks, loggers and progress bars."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from features.process_group import EndAtSignal, WatchedDDP
from runs.checkpoints import BestCheckpoint, PeriodicCheckpoint, SafeCheckpointIO, StopAtUnusable
from runs.components import Run
from runs.config import TrainingConfig
from runs.folder import BEST
from runs.metrics_log import MetricsLogger
from runs.visualizer import TrainingVisualizer
from runtime.escaping import escaped
from runtime.matmul_precision import GpuMode
from runtime.progress import progress_bar
from train_val import BACKBONE_MONITOR, CORESET_MONITOR, BackboneTrainer, FaceCoresetNet


def checkpoint_bytes(module: BackboneTrainer | FaceCoresetNet) -> int:
    """Lower bound of a checkpoint's size: the weights, and one moment of each trained one."""
    weights = [*module.parameters(), *module.buffers()]
    return sum(each.nbytes * (2 if each.requires_grad else 1) for each in weights)


def make_loggers(config: TrainingConfig, folder: Path, step: int) -> list[Logger]:
    """Metrics in metrics.csv and for TensorBoard, flags in hparams.yaml; continues at `step`."""
    # TensorBoard hides what the stopped run logged after this step.
    board = TensorBoardLogger(folder, "", "", default_hp_metric=False, purge_step=step or None)
    loggers = [MetricsLogger(folder), board]
    if not config.run.fast_dev_run:
        flags = {
            name: escaped(value) if isinstance(value, str) else value
            for name, value in config.to_flat().items()
        }
        for logger in loggers:
            logger.log_hyperparams(flags)
    return loggers


def make_trainer(
    config: TrainingConfig,
    run: Run,
    folder: Path,
    accelerator: str,
    devices: int,
    loggers: list[Logger],
    mode: GpuMode,
) -> pl.Trainer:
    """The Trainer with the callbacks of a run; `devices`: processes on this node."""
    # The buffers of a frozen backbone never change, and those of the head are equal on all ranks.
    distributed = WatchedDDP(
        broadcast_buffers=config.stage == "backbone",
        process_group_backend="gloo" if accelerator == "cpu" else "nccl",
    )
    writes, steps = not config.run.fast_dev_run, run.module.steps_per_epoch
    latest = PeriodicCheckpoint(folder) if writes else None
    callbacks: list[pl.Callback] = [EndAtSignal(), StopAtUnusable(latest)]
    callbacks += [TrainingVisualizer(folder)] if writes else []
    if run.validates:
        monitor = CORESET_MONITOR if config.stage == "coreset" else BACKBONE_MONITOR
        callbacks.append(_model_checkpoint(BestCheckpoint, folder, Path(BEST).stem, monitor=monitor))
    if config.run.save_all_models:
        callbacks.append(_model_checkpoint(ModelCheckpoint, folder, "epoch_{epoch}", save_top_k=-1))
    callbacks += [] if latest is None else [latest]
    callbacks += [LearningRateMonitor("epoch"), _TrainingBar(refresh_rate=max(1, steps // 100))]
    return pl.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=config.run.num_nodes,
        strategy=distributed if devices * config.run.num_nodes > 1 else "auto",
        precision=config.run.precision,
        benchmark=mode.cudnn_benchmark,
        max_epochs=config.optimiser.trained_epochs,
        accumulate_grad_batches=config.optimiser.accumulate_grad_batches,
        gradient_clip_val=config.optimiser.gradient_clip_val or None,
        fast_dev_run=config.run.fast_dev_run,
        use_distributed_sampler=False,
        log_every_n_steps=max(1, min(50, steps // 2)),
        num_sanity_val_steps=0,
        enable_model_summary=False,
        limit_val_batches=1.0 if run.validates else 0,
        logger=loggers,
        callbacks=callbacks,
        plugins=[SafeCheckpointIO()],
    )


class _TrainingBar(TQDMProgressBar):
    """Lightning's progress bars on a terminal; in a log, a few lines about training only."""

    def init_train_tqdm(self) -> Tqdm:
        """See the base class."""
        if sys.stdout.isatty():
            return super().init_train_tqdm()
        return cast("Tqdm", progress_bar(desc=self.train_description, disable=self.is_disabled))

    def init_validation_tqdm(self) -> Tqdm:
        """See the base class."""
        if sys.stdout.isatty():
            return super().init_validation_tqdm()
        return cast("Tqdm", progress_bar(disable=True))


def _model_checkpoint(
    kind: type[ModelCheckpoint], folder: Path, name: str, **details: Any
) -> ModelCheckpoint:
    return kind(
        folder,
        name,
        auto_insert_metric_name=False,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
        **details,
    )

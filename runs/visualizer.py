"""Preview images of a training run: what the network is fed, learning curves, selected faces."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn

from data.checks.contact_sheets import face_sheet, template_sheet
from runs.learning_curves import draw_curves
from train_val import FaceCoresetNet

_SECONDS_BETWEEN_PLOTS = 30.0


_PICTURED_TEMPLATES = 8


class TrainingVisualizer(Callback):
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
            shown = trainer.datamodule.preview_images(batch)  # type: ignore[attr-defined]
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
    shown = trainer.datamodule.preview_images(batch)  # type: ignore[attr-defined]
    if shown is None:
        return
    descriptor = module.aggregator(module.embedded(batch.to(module.device)))
    template_sheet(shown, module.model.spec, path, picks=descriptor.picks.cpu())

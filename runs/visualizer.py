"""Preview images of a training run: input of the network, learning curves, selected faces."""

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
_PREVIEWED_TEMPLATES = 8


class TrainingVisualizer(Callback):
    """Draws a contact sheet of the first batch, learning curves, and templates with their selected faces."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._has_drawn_batch = False
        self._drawn = time.monotonic()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Draw the first batch of the run."""
        if self._has_drawn_batch or not trainer.is_global_zero:
            return
        self._has_drawn_batch = True
        path = self._folder / "training_samples" / f"step_{trainer.global_step}.png"
        if isinstance(pl_module, FaceCoresetNet):
            previews = trainer.datamodule.preview_images(batch)  # type: ignore[attr-defined]
            if previews is not None:
                template_sheet(previews, pl_module.model.spec, path)
        else:
            face_sheet(batch[0], pl_module.model.spec, path)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Redraw the learning curves from time to time."""
        if trainer.is_global_zero and time.monotonic() - self._drawn > _SECONDS_BETWEEN_PLOTS:
            self._draw_curves(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the complete learning curves."""
        if trainer.is_global_zero:
            self._draw_curves(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw selected faces when validation runs on its own: after training, or with --evaluate."""
        if (
            isinstance(pl_module, FaceCoresetNet)
            and trainer.is_global_zero
            and trainer.state.fn == TrainerFn.VALIDATING
        ):
            draw_selected_faces(trainer, pl_module, self._folder / "plots" / "chosen_faces.png")

    def _draw_curves(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()
        draw_curves(self._folder, self._folder / "plots" / "curves.png")
        self._drawn = time.monotonic()


@torch.no_grad()
def draw_selected_faces(trainer: pl.Trainer, module: FaceCoresetNet, path: Path) -> None:
    """Draw some held-out templates, one per row, with the selected faces framed and numbered in order."""
    batch = trainer.datamodule.example(_PREVIEWED_TEMPLATES)  # type: ignore[attr-defined]
    previews = trainer.datamodule.preview_images(batch)  # type: ignore[attr-defined]
    if previews is None:
        return
    descriptor = module.aggregator(module.embedded(batch.to(module.device)))
    template_sheet(previews, module.model.spec, path, picks=descriptor.picks.cpu())

"""Preview images of a training run: input of the network, learning curves, selected faces."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn

from data.checks.contact_sheets import face_sheet, template_sheet
from runtime.files import atomic_path
from train_val import FaceCoresetNet

_SECONDS_BETWEEN_PLOTS = 30.0
_PREVIEWED_TEMPLATES = 8
_COLUMNS = 3
# Metrics that share a panel.
_FAMILIES = {
    "loss": ("train/loss",),
    "held-out TAR@FAR 1e-02": (
        "val/tar_at_far_1e-02",
        "val/mean_tar_at_far_1e-02",
        "val/norm_weighted_tar_at_far_1e-02",
    ),
    "held-out rank 1": ("val/rank1", "val/mean_rank1", "val/norm_weighted_rank1"),
    "agreement of selections in training and evaluation": ("train/pick_agreement",),
    "gamma": ("train/gamma",),
    "selection temperature": ("train/temperature",),
}
_OWN_PANELS = {name for names in _FAMILIES.values() for name in names}
_SMOOTHED = ("train/loss", "train/pick_agreement")


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


def read_metrics(folder: Path) -> pd.DataFrame:
    """Metrics of a run, one row per logged step; empty if there are none."""
    path = folder / "metrics.csv"
    is_empty = not path.is_file() or not path.stat().st_size
    return pd.DataFrame({"step": []}) if is_empty else pd.read_csv(path)


def draw_curves(folder: Path, path: Path) -> None:
    """Write a PNG with a panel for each family of metrics that the run has."""
    metrics = read_metrics(folder)
    panels = {title: [n for n in names if n in metrics] for title, names in _FAMILIES.items()}
    others = [
        n for n in metrics.columns if n.startswith("val/") and n not in _OWN_PANELS and "tar_at" not in n
    ]
    panels["ten-fold accuracy"] = [name for name in others if "rank1" not in name]
    panels["learning rate"] = [name for name in metrics.columns if name.startswith("lr-")]
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        return
    rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(5.2 * min(_COLUMNS, len(panels)), 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (title, names) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, min(_COLUMNS, len(panels)), number)
        for name in names:
            values = metrics[["step", name]].dropna()
            if name in _SMOOTHED and len(values) > 20:
                axes.plot(values["step"], values[name], alpha=0.25, color="C0")
                values = values.assign(**{name: values[name].ewm(span=len(values) / 10).mean()})
            axes.plot(
                values["step"], values[name], marker="." if len(values) < 40 else "", label=_label(name)
            )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("optimiser steps")
        axes.grid(alpha=0.3)
        if title == "learning rate":
            axes.set_yscale("log")
        if len(names) > 1:
            axes.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _label(name: str) -> str:
    """Label of a metric; those without an aggregator's name are of the trained one."""
    short = name.removeprefix("val/").removeprefix("train/").removeprefix("lr-")
    if short in ("tar_at_far_1e-02", "rank1"):
        return "trained aggregator"
    return short.removesuffix("_tar_at_far_1e-02").removesuffix("_rank1").replace("_", " ")

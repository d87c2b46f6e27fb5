"""Plots of the metrics of a run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from runtime.files import atomic_path

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

"""Plot of error-versus-discard characteristics as PNG."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes

from evaluation.metrics.verification import rate_key
from evaluation.reporting.plots import write_plot
from quality.error_versus_discard import (
    MAX_DISCARDED,
    PARTIAL,
    RANDOM,
    DiscardCurves,
    discard_fractions,
    ideal_curve,
)


def plot_discard_curves(path: Path, found: DiscardCurves, *, title: str) -> None:
    """Plot FNMR over the discarded fraction, one line for each measure of quality."""

    def draw(axes: Axes) -> None:
        percent = 100 * discard_fractions()
        start = float(found.curves[RANDOM].fnmr[0])
        for name, curve in found.curves.items():
            if name != RANDOM:
                chosen = " (chosen)" if name == found.choice else ""
                axes.plot(percent, 100 * curve.fnmr, label=f"{name}{chosen}")
        axes.plot(percent, 100 * found.curves[RANDOM].fnmr, label=RANDOM, color="0.45", linestyle=":")
        axes.plot(percent, 100 * ideal_curve(start), label="ideal", color="0.75", linestyle="-")
        axes.axvspan(0, 100 * PARTIAL, color="0.95", zorder=0)
        axes.set_xlim(0, 100 * MAX_DISCARDED)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("discarded mated pairs, %, lowest quality first (grey: range of the ranking)")
        axes.set_ylabel(f"FNMR at FMR {rate_key(found.fmr)}, %")

    write_plot(path, title, draw, "lower left")

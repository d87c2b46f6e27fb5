"""Plot of error-versus-discard characteristics as PNG."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes

from evaluation.metrics.verification import rate_key
from evaluation.reporting.plots import write_plot
from quality.error_versus_discard import (
    MOST_REJECTED,
    PARTIAL,
    RANDOM,
    RejectCurves,
    best_possible,
    rejected_shares,
)


def plot_reject(path: Path, found: RejectCurves, *, title: str) -> None:
    """Missed mated pairs over the share that is rejected as PNG, one line a measure of quality."""

    def draw(axes: Axes) -> None:
        shares = 100 * rejected_shares()
        start = float(found.curves[RANDOM].fnmr[0])
        for name, curve in found.curves.items():
            if name != RANDOM:
                chosen = " (chosen)" if name == found.choice else ""
                axes.plot(shares, 100 * curve.fnmr, label=f"{name}{chosen}")
        axes.plot(shares, 100 * found.curves[RANDOM].fnmr, label=RANDOM, color="0.45", linestyle=":")
        axes.plot(shares, 100 * best_possible(start), label="best possible", color="0.75", linestyle="-")
        axes.axvspan(0, 100 * PARTIAL, color="0.95", zorder=0)
        axes.set_xlim(0, 100 * MOST_REJECTED)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("rejected, % of the mated pairs, poorest first (grey: what the choice goes by)")
        axes.set_ylabel(f"missed (FNMR) at FMR {rate_key(found.fmr)}, %")

    write_plot(path, title, draw, "lower left")

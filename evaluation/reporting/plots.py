"""Plots of evaluations as PNG: ROC, DET, CMC, several aggregators in one picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from evaluation.metrics.verification import FEWEST_DECIDING, RULE_OF_30, RocCurve, rate_key
from runtime.escaping import escaped
from runtime.files import atomic_path

Corner = Literal["lower left", "lower right"]

# Okabe and Ito's colours, told apart by colour-blind readers and on grey paper with the line styles.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_STYLES = ("-", "--", "-.", ":")


def plot_roc(path: Path, curves: Mapping[str, RocCurve], *, title: str) -> None:
    """TAR over FAR on a log axis as PNG, one line per name; grey where chance decides.

    TAR@FAR is the name of the published figure. Every template has a face here, so that no attempt fails
    before the comparison and the FAR of ISO/IEC 19795-1 equals the FMR.
    """

    def draw(axes: Axes) -> None:
        for name, curve in curves.items():
            axes.plot(curve.far, 100 * curve.tar, drawstyle="steps-post", label=name)
        axes.set_ylabel("true accept rate (TAR), %")
        _floor(axes, [100 * curve.tar for curve in curves.values()])
        _false_rates(axes, "false accept rate (FAR)", [curve.far for curve in curves.values()], "pairs")

    write_plot(path, title, draw, "lower right")


def plot_det(path: Path, curves: Mapping[str, RocCurve], *, title: str) -> None:
    """FNMR over FMR (ISO/IEC 19795-1), both on log axes, as PNG: the same counts as the ROC's."""
    rates = {name: (curve.far, curve.tar) for name, curve in curves.items()}
    _plot_missed(path, rates, title, "false match rate (FMR)", "false non-match rate (FNMR), %", "pairs")


def plot_identification(
    path: Path, curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], *, title: str
) -> None:
    """Missed mated probes over FPIR, both on log axes, as PNG; the curves are (fpir, tpir)."""
    false = "false positive identification rate (FPIR)"
    missed = "false negative identification rate (FNIR = 1 - TPIR), %"
    _plot_missed(path, curves, title, false, missed, "probes")


def _plot_missed(
    path: Path,
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    title: str,
    false: str,
    missed: str,
    of: str,
) -> None:
    """1 - true rate over false rate, on log axes; a line ends where nothing is missed any more."""

    def draw(axes: Axes) -> None:
        for name, (rate, found) in curves.items():
            shown = np.where(found < 1, 100 * (1 - found), np.nan)
            axes.plot(rate, shown, drawstyle="steps-post", label=name)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel(missed)
        _false_rates(axes, false, [rate for rate, _ in curves.values()], of)

    write_plot(path, title, draw, "lower left")


def plot_cmc(path: Path, curves: Mapping[str, Mapping[str, float]], *, title: str) -> None:
    """Share of mated probes found up to each rank as PNG; the curves are as `metrics.cmc` gives them."""

    def draw(axes: Axes) -> None:
        for name, rates in curves.items():
            marker = "." if len(rates) <= 20 else ""
            axes.plot(
                [int(rank) for rank in rates],
                [100 * rate for rate in rates.values()],
                label=name,
                marker=marker,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda rank, _: f"{rank:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(left=1)
        axes.set_xlabel("rank")
        axes.set_ylabel("mated probes found, %")

    write_plot(path, title, draw, "lower right")


def write_plot(path: Path, title: str, draw: Callable[[Axes], None], legend: Corner) -> None:
    """Draw one axis, with title, grid and legend, and write it to `path` as PNG, atomically."""
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    looks = range(len(_COLOURS) * len(_STYLES))
    axes.set_prop_cycle(
        color=[_COLOURS[n % len(_COLOURS)] for n in looks],
        linestyle=[_STYLES[n % len(_STYLES)] for n in looks],
    )
    draw(axes)
    axes.set_title(escaped(title), fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(loc=legend, fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _floor(axes: Axes, values: Sequence[NDArray[np.float64]]) -> None:
    lowest = min(float(part.min()) for part in values)
    axes.set_ylim(max(0.0, lowest - 0.05 * (100 - lowest)), 100 + 0.03 * (100 - lowest) + 0.02)


def _false_rates(axes: Axes, label: str, rates: Sequence[NDArray[np.float64]], of: str) -> None:
    """A log axis of false rates, grey where fewer than `FEWEST_DECIDING` non-mated scores decide."""
    least = min(float(part[0]) for part in rates)
    axes.set_xscale("log")
    axes.set_xlim(least, 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: rate_key(float(f"{rate:.1e}"))))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
    for errors, grey in ((RULE_OF_30, "0.96"), (FEWEST_DECIDING, "0.92")):
        axes.axvspan(least, min(1.0, errors * least), color=grey, zorder=0)
    axes.annotate(
        f"grey: fewer than {FEWEST_DECIDING} non-mated {of} accepted (light: {RULE_OF_30}, rule of 30)",
        (0.01, 0.985),
        xycoords="axes fraction",
        fontsize=7,
        color="0.35",
        va="top",
    )

"""Tables and curves of benchmarks/studies/robustness.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from runtime.files import atomic_path

AMOUNTS: dict[str, tuple[float, ...]] = {
    "repeats": (1, 5, 20, 100, 500),
    "impostors": (0, 0.1, 0.2, 0.3, 0.4),
    "unreadable": (0, 0.1, 0.2, 0.3, 0.4),
    "wrong": (0, 0.25, 0.5, 1),
    "among_several": (0, 0.25, 0.5, 1),
    "size": (1, 3, 10, 30, 100, 300, 1000),
}
LABELS = {
    "repeats": "times that the worst face is there",
    "impostors": "fraction of impostor faces",
    "unreadable": "share of unreadable faces",
    "wrong": "share of templates with an impostor medium",
    "among_several": "the same, of templates of several media",
    "size": "faces of a template",
}
REQUIRED_COSINE, REQUIRED_SHARE = 0.98, 0.5
REFERENCE = "norm_weighted"
STROKES = ("-", "--", ":")
# Of an aggregator with the two-identity split; it has the colour of the one without.
SPLIT_SUFFIX, SPLIT_STROKE = ", two-identity split", "-."


def report(table: pd.DataFrame, cosines: Mapping[str, tuple[float, float]], name: str) -> str:
    """Markdown: a table of each way, and what the repeats and a fifth of impostor faces do."""
    parts = [f"# {name}: robustness to changes of a set (TAR@FAR 1e-02 / 1e-03 / rank 1, %)"]
    figures = [column for column in table.columns if column.startswith("tar") or column == "rank1"]
    for kind, amounts in AMOUNTS.items():
        here = table[table["change"] == kind]
        lines = [f"| {LABELS[kind]} | {' | '.join(f'{amount:g}' for amount in amounts)} |"]
        lines.append("|---|" + "---:|" * len(amounts))
        for aggregator, of_it in here.groupby("aggregator", sort=False):
            cells = [" / ".join(f"{value:.1f}" for value in row) for row in of_it[figures].to_numpy()]
            lines.append(f"| {aggregator} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    first = table[(table["change"] == "impostors")].set_index(["aggregator", "amount"])["tar_at_far_1e-02"]
    limit = REQUIRED_SHARE * (first[REFERENCE, 0.0] - first[REFERENCE, 0.2])
    lines = [
        "| | cosine after 500 repeats: mean (least) | TAR@FAR 1e-02 lost at 20 % impostor faces |",
        "|---|---|---|",
    ]
    for aggregator, (mean, least) in cosines.items():
        lost = first[aggregator, 0.0] - first[aggregator, 0.2]
        lines.append(
            f"| {aggregator} | {mean:.3f} ({least:.3f}), {_holds(mean >= REQUIRED_COSINE)} | "
            f"{lost:.1f}, {_holds(lost <= limit)} |"
        )
    parts.append("\n".join(lines))
    parts.append(
        f"Asked: mean cosine of {REQUIRED_COSINE} or more; at most half of what {REFERENCE} "
        f"loses, {limit:.1f}."
    )
    return "\n\n".join(parts)


def _holds(is_so: bool) -> str:
    return "holds" if is_so else "does not hold"


def draw(table: pd.DataFrame, path: Path) -> None:
    """A column for each way, TAR@FAR 1e-02 above and rank 1 below."""
    figures = [name for name in ("tar_at_far_1e-02", "rank1") if name in table]
    figure = Figure(figsize=(4.2 * len(AMOUNTS), 3.4 * len(figures) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    names = list(dict.fromkeys(name.removesuffix(SPLIT_SUFFIX) for name in table["aggregator"]))
    axes = figure.subplots(len(figures), len(AMOUNTS), squeeze=False)
    for column, kind in enumerate(AMOUNTS):
        here = table[table["change"] == kind]
        for row, name in enumerate(figures):
            panel = axes[row, column]
            for aggregator, of_it in here.groupby("aggregator", sort=False):
                number = names.index(str(aggregator).removesuffix(SPLIT_SUFFIX))
                # Ten colours; those after them are told apart by their stroke.
                stroke = {"color": f"C{number % 10}", "linestyle": STROKES[number // 10 % len(STROKES)]}
                if str(aggregator).endswith(SPLIT_SUFFIX):
                    stroke["linestyle"] = SPLIT_STROKE
                panel.plot(of_it["amount"], of_it[name], marker="o", markersize=3, label=aggregator, **stroke)
            if kind in ("repeats", "size"):
                panel.set_xscale("log")
            panel.set_xlabel(LABELS[kind])
            panel.set_ylabel("rank 1, %" if name == "rank1" else "TAR@FAR 1e-02, %")
            panel.grid(alpha=0.3)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)

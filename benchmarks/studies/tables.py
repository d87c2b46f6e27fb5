"""Tables of `baselines.py`: rows of single trainings to means over seeds and paired intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.bootstrap import difference_interval95
from evaluation.metrics.score_normalisation import LOCAL_SCALING
from evaluation.metrics.verification import rate_key
from evaluation.reporting.report import markdown_table
from runtime.files import atomic_write

FARS = (1e-1, 1e-2, 1e-3)
# The FARs that are compared with the reference.
COMPARED = (1e-2, 1e-3)


@dataclass(frozen=True)
class Row:
    """One aggregator trained with one seed and evaluated; rates are fractions.

    `drawn`: TAR of each draw of subjects (R, FARs), the same draws for every row; `rank1`, `tpir` (at the
    largest FPIR, 0.1) are means over the galleries; `templates_per_second` of one core's time; `agreement`:
    share of the picks of training that evaluation makes too, `duplicates`: that are made again, None where
    nothing is drawn; `people`: subjects with mated pairs, None in rows that were written without.
    """

    name: str
    seed: int
    options: dict[str, Any]
    preset: str | None
    train_seconds: float
    train_cpu_seconds: float
    command: str
    tar: dict[str, float]
    drawn: list[list[float]]
    rank1: float | None
    tpir: float | None
    templates_per_second: float
    parameters: int
    agreement: float | None = None
    duplicates: float | None = None
    people: int | None = None

    def summary(self) -> str:
        """The figures in a line."""
        tar = ", ".join(f"{key} {_percent([value])}" for key, value in self.tar.items())
        return f"TAR@FAR {tar}; rank-1 {_percent([self.rank1])}, TPIR {_percent([self.tpir])}"


@dataclass(frozen=True)
class Difference:
    """TAR at a FAR less the reference's on the same draws: mean over the seeds, and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def score_normalisation_of(made_with: Mapping[str, Any]) -> str | None:
    """How the scores of a stored row were normalised; before there was a choice, by local scaling."""
    method: str | None = made_with.get("score_normalisation", LOCAL_SCALING)
    return method if "cohort" in made_with else None


def write_tables(
    out: Path, rows: Sequence[Row], reference: str, title: str = "baselines", cohort: str | None = None
) -> str:
    """Write <title>.md (one line per aggregator) and <title>.csv (one line per row); return the table.

    `cohort`: the people whom scores know of; None: scores are cosines.
    """
    names = list(dict.fromkeys(row.name for row in rows))
    of_name = {name: [row for row in rows if row.name == name] for name in names}
    table = markdown_table(
        [
            "aggregator",
            "seeds",
            *(f"TAR@FAR {rate_key(far)}" for far in FARS),
            "rank-1",
            "TPIR@FPIR 0.1",
            "parameters",
            "training, CPU minutes",
            "templates/s",
            "picks as in evaluation",
            "picked again",
            *(f"less {reference}, {rate_key(far)}" for far in COMPARED),
        ],
        [_line(of_name[name], of_name[reference]) for name in names],
    )
    text = (
        f"{table}\n\nPer cent; mean over seeds, with the standard deviation where there are several. "
        f"Differences to {reference}: points, with the 95 % interval of a paired bootstrap over subjects. "
        "Templates/s of one core." + (f" Scores with a cohort: {cohort}." if cohort else "") + "\n\n"
    )
    commands = {row.name: row.command for row in rows if row.command}
    text += "".join(f"- {name}: `{command}`\n" for name, command in commands.items())
    atomic_write(out / f"{title}.md", text)
    atomic_write(out / f"{title}.csv", _csv(rows))
    return table


def difference(rows: Sequence[Row], reference: Sequence[Row], far: float) -> Difference:
    """Of one aggregator's rows against the reference's; both are means over their seeds."""
    return pooled_difference([(rows, reference)], far)


def pooled_difference(folds: Sequence[tuple[Sequence[Row], Sequence[Row]]], far: float) -> Difference:
    """Of one aggregator's rows less the reference's, in each fold: mean over folds, and its interval."""
    key = rate_key(far)
    means = [
        np.mean([row.tar[key] for row in rows]) - np.mean([row.tar[key] for row in reference])
        for rows, reference in folds
    ]
    # All folds were drawn by one seed; permuted, draws of different folds are independent.
    rng = np.random.default_rng(0)
    drawn = [
        rng.permutation(_mean_replicates(rows, far) - _mean_replicates(base, far)) for rows, base in folds
    ]
    people = sum(rows[0].people or 1 for rows, _ in folds)
    low, high = difference_interval95(np.mean(drawn, axis=0)[:, None], people)
    return Difference(float(np.mean(means)), float(low[0]), float(high[0]))


def _mean_replicates(rows: Sequence[Row], far: float) -> NDArray[np.float64]:
    drawn = np.array([row.drawn for row in rows], np.float64)
    mean: NDArray[np.float64] = drawn[:, :, FARS.index(far)].mean(axis=0)
    return mean


def _line(rows: Sequence[Row], reference: Sequence[Row]) -> list[str]:
    keys = [rate_key(far) for far in FARS]
    first = rows[0]
    compared = ["reference"] * len(COMPARED)
    if first.name != reference[0].name:
        compared = [str(difference(rows, reference, far)) for far in COMPARED]
    return [
        first.name,
        str(len(rows)) if first.preset else "-",
        *(_percent([row.tar[key] for row in rows]) for key in keys),
        _percent([row.rank1 for row in rows]),
        _percent([row.tpir for row in rows]),
        f"{first.parameters:,}",
        f"{np.mean([row.train_cpu_seconds for row in rows]) / 60:.1f}" if first.preset else "-",
        f"{np.mean([row.templates_per_second for row in rows]):,.0f}",
        _percent([row.agreement for row in rows]),
        _percent([row.duplicates for row in rows]),
        *compared,
    ]


def _percent(values: Sequence[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {np.std(known, ddof=1):.1f}" if len(known) > 1 else ""
    return f"{np.mean(known):.1f}{spread}"


def _csv(rows: Sequence[Row]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    tars = [f"tar_at_far_{rate_key(far)}" for far in FARS]
    others = [
        "rank1",
        "tpir_at_fpir_0.1",
        "parameters",
        "train_cpu_seconds",
        "train_seconds",
        "agreement",
        "duplicates",
    ]
    writer.writerow(["aggregator", "seed", "preset", *tars, *others, "templates_per_second", "command"])
    for row in rows:
        rates = [*(row.tar[rate_key(far)] for far in FARS), row.rank1, row.tpir]
        costs = [row.parameters, row.train_cpu_seconds, row.train_seconds, row.agreement, row.duplicates]
        costs.append(row.templates_per_second)
        writer.writerow([row.name, row.seed, row.preset or "", *rates, *costs, row.command])
    return stream.getvalue()

"""Decisions whether two sets show one person, by the thresholds of a calibration.

A pair has the threshold of its set sizes if the calibration supports the rate for them, else that of all
sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.set_pairs import cell_name, cells_of
from recognition.calibration.thresholds import Calibration, Group
from recognition.records import AggregatedSet
from runtime.escaping import csv_text
from runtime.files import atomic_write
from runtime.text import shortened

# In the terminal and on the page; decisions.csv has all.
PAIRS_SHOWN = 20
_NAME_WIDTH = 44
_COLUMNS = (
    *("first", "second", "cosine", "score", "threshold", "threshold_low", "threshold_high"),
    *("fmr", "one_person", "flips_at_fmr", "of_sizes"),
)

Doubles = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Decisions:
    """Decisions on pairs; all arrays have the shape of the scores.

    Attributes:
        fmr: the chosen false match rate.
        normalisation: method of score normalisation; None: scores are cosines.
        scores: similarities.
        thresholds: of each pair.
        low: lower end of the 95 % interval of the threshold; NaN where not known.
        high: upper end.
        is_same: whether the score reaches the threshold.
        fmr_at_score: the false match rate of a threshold at the score: one person at this rate and above, two
            below; NaN where not known.
        is_bound: `fmr_at_score` is only an upper bound, as no non-mated score is that high.
        cells: rows of `evaluation.metrics.set_pairs.CELLS`.
        of_own_sizes: whether the threshold is that of the pair's set sizes.
    """

    fmr: str
    normalisation: str | None
    scores: Doubles
    thresholds: Doubles
    low: Doubles
    high: Doubles
    is_same: NDArray[np.bool_]
    fmr_at_score: Doubles
    is_bound: NDArray[np.bool_]
    cells: NDArray[np.int64]
    of_own_sizes: NDArray[np.bool_]

    def verdict(self, place: tuple[int, ...]) -> str:
        """The decision on one pair."""
        return "one person" if self.is_same[place] else "two people"

    def threshold_text(self, place: tuple[int, ...]) -> str:
        """The threshold of one pair with its interval."""
        value, low, high = (each[place] for each in (self.thresholds, self.low, self.high))
        return f"{value:.4f}" + ("" if np.isnan(low) else f" ({low:.4f} to {high:.4f})")

    def fmr_text(self, place: tuple[int, ...]) -> str:
        """The false match rate at the score of one pair."""
        if np.isnan(self.fmr_at_score[place]):
            return "not known"
        rate = f"{self.fmr_at_score[place]:.1e}"
        return f"below {rate}" if self.is_bound[place] else rate

    def sizes_text(self, place: tuple[int, ...]) -> str:
        """The set sizes of the threshold of one pair."""
        return cell_name(int(self.cells[place])) if self.of_own_sizes[place] else "all sizes"


def decide(
    calibration: Calibration, scores: Doubles, first_sizes: NDArray[np.int64], second_sizes: NDArray[np.int64]
) -> Decisions:
    """Decide on pairs by their scores, of any shape, from `Calibration.compared`.

    The sizes are the numbers of faces of the first and second set of each pair, broadcast to the scores.
    """
    cells = np.broadcast_to(cells_of(first_sizes, second_sizes), scores.shape)
    shape = scores.shape
    thresholds, low, high, fmr_at_score = (np.full(shape, np.nan) for _ in range(4))
    is_bound, of_own_sizes = np.zeros(shape, bool), np.zeros(shape, bool)
    for cell in np.unique(cells):
        here = cells == cell
        own = calibration.by_size.get(cell_name(int(cell)))
        has_own = own is not None and calibration.fmr in own.thresholds
        group = own if own is not None and has_own else calibration.everything
        threshold = group.thresholds[calibration.fmr]
        thresholds[here] = threshold.value
        low[here], high[here] = threshold.interval95 or (np.nan, np.nan)
        of_own_sizes[here] = has_own
        fmr_at_score[here], is_bound[here] = _fmr_at(group, scores[here])
    return Decisions(
        fmr=calibration.fmr,
        normalisation=None if calibration.normalisation is None else calibration.normalisation.method,
        scores=scores,
        thresholds=thresholds,
        low=low,
        high=high,
        is_same=scores >= thresholds,
        fmr_at_score=fmr_at_score,
        is_bound=is_bound,
        cells=np.asarray(cells),
        of_own_sizes=of_own_sizes,
    )


def decide_sets(
    calibration: Calibration, sets: Sequence[AggregatedSet], matrix: NDArray[np.float32]
) -> Decisions:
    """Decide on all pairs of B sets; `matrix`: their (B, B) cosines."""
    embeddings = np.stack([each.embedding for each in sets])
    sizes = np.array([len(each.faces) for each in sets])
    scores = calibration.compared(matrix, embeddings, embeddings)
    return decide(calibration, scores, sizes[:, None], sizes[None, :])


def nearest_pairs(decisions: Decisions, count: int = PAIRS_SHOWN) -> list[tuple[int, int]]:
    """Pairs of a (B, B) matrix, those with the score nearest to the threshold first."""
    rows, columns = np.triu_indices(len(decisions.scores), 1)
    distance = np.abs(decisions.scores - decisions.thresholds)[rows, columns]
    order = np.argsort(distance, kind="stable")[:count]
    return [*zip(rows[order].tolist(), columns[order].tolist(), strict=True)]


def about_threshold(decisions: Decisions) -> str:
    """Describe the threshold of the pairs of a (B, B) matrix, without a full stop."""
    rows, columns = np.triu_indices(len(decisions.scores), 1)
    values = np.unique(decisions.thresholds[rows, columns])
    kind = (
        f", of scores normalised with a cohort ({decisions.normalisation})" if decisions.normalisation else ""
    )
    several = f" to {values[-1]:.4f}, by the sizes of the two sets" if len(values) > 1 else ""
    return f"threshold for a false match rate of {decisions.fmr}{kind}: {values[0]:.4f}{several}"


def decisions_text(sets: Sequence[AggregatedSet], decisions: Decisions) -> str:
    """The pairs nearest to their threshold, for the terminal."""
    pairs = nearest_pairs(decisions)
    names = [shortened(f"{sets[row].name} - {sets[column].name}", _NAME_WIDTH, 20) for row, column in pairs]
    width = max(map(len, names))
    lines = [
        f"{'decisions, nearest first':<{width}}  {'score':>8}  {'decision':<10}  {'threshold (95 %)':<26}  "
        f"{'of sizes':<11}  FMR at this score"
    ]
    for name, place in zip(names, pairs, strict=True):
        lines.append(
            f"{name:<{width}}  {decisions.scores[place]:8.4f}  {decisions.verdict(place):<10}  "
            f"{decisions.threshold_text(place):<26}  {decisions.sizes_text(place):<11}  "
            f"{decisions.fmr_text(place)}"
        )
    total = len(sets) * (len(sets) - 1) // 2
    if total > len(pairs):
        lines.append(f"... and {total - len(pairs):,} more in decisions.csv.")
    return "\n".join(lines)


def write_decisions(
    path: Path, sets: Sequence[AggregatedSet], matrix: NDArray[np.float32], decisions: Decisions
) -> None:
    """Write all pairs as a CSV file."""

    def rows() -> Iterator[Sequence[object]]:
        yield _COLUMNS
        for row, column in zip(*np.triu_indices(len(sets), 1), strict=True):
            place = int(row), int(column)
            low, high = decisions.low[place], decisions.high[place]
            bound = "<" if decisions.is_bound[place] else ""
            yield [
                *(sets[place[0]].name, sets[place[1]].name, f"{matrix[place]:.6f}"),
                *(f"{decisions.scores[place]:.6f}", f"{decisions.thresholds[place]:.6f}"),
                *("" if np.isnan(value) else f"{value:.6f}" for value in (low, high)),
                *(decisions.fmr, int(decisions.is_same[place])),
                "" if np.isnan(rate := decisions.fmr_at_score[place]) else f"{bound}{rate:.3e}",
                decisions.sizes_text(place),
            ]

    atomic_write(path, csv_text(rows()))


def _fmr_at(group: Group, scores: Doubles) -> tuple[Doubles, NDArray[np.bool_]]:
    """The false match rate of each score, and whether it is only a bound."""
    if not group.fmr:
        return np.full(scores.shape, np.nan), np.zeros(scores.shape, bool)
    thresholds, rates = np.array(group.score), np.array([*group.fmr, 1.0])
    # The first threshold at or below the score; below all of them every pair is accepted.
    place = np.searchsorted(-thresholds, -scores)
    # A rate of 0 is only known to be below the next one.
    is_bound = rates[place] == 0
    return rates[np.where(is_bound, place + 1, place)], is_bound

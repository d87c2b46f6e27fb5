"""Thresholds for target false match rates, by set sizes, with confidence intervals.

Arrays in, figures out. A score is accepted when it is at or above the threshold. Comparisons of the same
subjects depend on each other: rates are counted over pairs of sets, but the number of subject pairs decides
which rates are supported, and intervals resample subjects (`evaluation.metrics.bootstrap`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.binomial import Interval
from evaluation.metrics.bootstrap import draw_subjects, interval95, rate_interval95
from evaluation.metrics.set_pairs import CELLS, SetPairs, bootstrap_fnmr, bootstrap_thresholds, cell_name
from evaluation.metrics.thresholds import Floats, accepted_counts, at_or_above, thresholds_of_counts
from evaluation.metrics.verification import FEWEST_DECIDING, RULE_OF_30, check_rates, rate_key
from runtime.errors import InputError

# Fewer subjects say nothing about a size group.
MIN_SUBJECTS = 10
_CURVE_POINTS = 120


@dataclass(frozen=True)
class RateFigures:
    """A threshold for one false match rate.

    Attributes:
        threshold: the lowest that keeps the rate, see `evaluation.metrics.thresholds`.
        interval95: of the threshold, over bootstrap draws of subjects.
        fmr: of these pairs at the threshold, at most the target.
        fmr_interval95: of the FMR on as many other subjects: thresholds of one draw, rates of another. If no
            false match was observed, it contains the exact interval for that number of subject pairs.
        fnmr: share of the mated pairs below the threshold; None without mated pairs.
        fnmr_interval95: of the FNMR on as many other subjects. If no false non-match was observed, it
            contains the exact interval for that number of subjects with mated pairs.
    """

    threshold: float
    interval95: Interval
    fmr: float
    fmr_interval95: Interval
    fnmr: float | None
    fnmr_interval95: Interval | None


@dataclass(frozen=True, eq=False)
class GroupFigures:
    """Figures of all pairs, or of the pairs of two size groups.

    Attributes:
        mated: number of pairs of sets of one subject.
        nonmated: number of pairs of sets of two subjects.
        subject_pairs: different pairs of subjects among the latter.
        median_mated: median score; None without mated pairs.
        median_nonmated: median score.
        rates: by `rate_key`.
        refused: why a rate is not supported, by `rate_key`.
        curve: false match rates, rising from 0, and the lowest threshold that keeps each.
    """

    mated: int
    nonmated: int
    subject_pairs: int
    median_mated: float | None
    median_nonmated: float
    rates: dict[str, RateFigures]
    refused: dict[str, str]
    curve: tuple[list[float], list[float]]


@dataclass(frozen=True)
class OneThreshold:
    """Effect of one threshold for all sizes, at one false match rate.

    Attributes:
        cells: false match and false non-match rate (None without mated pairs) by the name of the cell.
        fnmr_one: of all mated pairs, with one threshold.
        fnmr_by_size: of all mated pairs, with the threshold of their cell where it has one.
    """

    cells: dict[str, tuple[float, float | None]]
    fnmr_one: float | None
    fnmr_by_size: float | None


def calibrate(
    pairs: SetPairs, rates: Sequence[float], *, replicates: int = 200, seed: int = 0
) -> tuple[GroupFigures, dict[str, GroupFigures]]:
    """Find thresholds of all pairs, and of each pair of size groups with non-mated pairs, by its name.

    Raises:
        InputError: fewer than `MIN_SUBJECTS` subjects, or a rate outside its range.
    """
    check_rates(rates, "FMR")
    subjects = len(np.unique(pairs.subjects))
    if subjects < MIN_SUBJECTS:
        raise InputError(
            f"{subjects} subjects are too few to estimate a false match rate. Give {MIN_SUBJECTS} or more; a "
            f"false match rate of 1e-02 needs {num_subjects_for(FEWEST_DECIDING * 100)}."
        )
    drawn = draw_subjects(int(pairs.subjects.max()) + 1, replicates=replicates, seed=seed)
    cells = {
        cell_name(cell): _group(pairs, cell, rates, drawn)
        for cell in range(len(CELLS))
        if pairs.count_subject_pairs(cell)
    }
    return _group(pairs, None, rates, drawn), cells


def one_threshold(
    pairs: SetPairs, everything: GroupFigures, cells: dict[str, GroupFigures]
) -> dict[str, OneThreshold]:
    """Effect of one threshold for all sizes, by `rate_key` of the rates that all pairs support."""
    others, mated = ~pairs.is_mated, np.flatnonzero(pairs.is_mated)
    own_scores, own_cells = pairs.scores[mated], pairs.cell[mated]
    numbers = {cell_name(cell): cell for cell in range(len(CELLS)) if cell_name(cell) in cells}
    found = {}
    for key, figures in everything.rates.items():
        false = np.bincount(
            pairs.cell[others & at_or_above(pairs.scores, figures.threshold)], minlength=len(CELLS)
        )
        accepted = at_or_above(own_scores, figures.threshold)
        by_size = accepted.copy()
        per_cell: dict[str, tuple[float, float | None]] = {}
        for name, group in cells.items():
            here = own_cells == numbers[name]
            missed = None if not group.mated else float(1 - accepted[here].mean())
            per_cell[name] = (float(false[numbers[name]] / group.nonmated), missed)
            if key in group.rates:
                by_size[here] = at_or_above(own_scores[here], group.rates[key].threshold)
        fnmr = [float(1 - each.mean()) if len(mated) else None for each in (accepted, by_size)]
        found[key] = OneThreshold(per_cell, fnmr[0], fnmr[1])
    return found


def num_subjects_for(subject_pairs: int) -> int:
    """The smallest number of subjects with that many pairs."""
    return math.ceil((1 + math.sqrt(1 + 8 * subject_pairs)) / 2)


def _group(
    pairs: SetPairs, cell: int | None, rates: Sequence[float], drawn: NDArray[np.unsignedinteger]
) -> GroupFigures:
    rising, own = pairs.nonmated(cell), pairs.mated(cell)
    subject_pairs = pairs.count_subject_pairs(cell)
    few = "" if cell is None else _too_few_subjects(pairs.count_subjects(cell))
    supported = [rate for rate in rates if subject_pairs * rate >= FEWEST_DECIDING and not few]
    refused = {
        rate_key(rate): f"FMR {rate_key(rate)}: {few or _refusal(rate, subject_pairs, len(rising))}"
        for rate in rates
        if rate not in supported
    }
    return GroupFigures(
        mated=len(own[0]),
        nonmated=len(rising),
        subject_pairs=subject_pairs,
        median_mated=float(np.median(own[0].astype(np.float64))) if len(own[0]) else None,
        median_nonmated=float(rising[[(len(rising) - 1) // 2, len(rising) // 2]].mean(dtype=np.float64)),
        rates=_rates(pairs, cell, rising, own, supported, drawn) if supported else {},
        refused=refused,
        curve=_curve(rising, supported),
    )


def _rates(
    pairs: SetPairs,
    cell: int | None,
    rising: Floats,
    own: tuple[Floats, NDArray[np.int64]],
    rates: Sequence[float],
    drawn: NDArray[np.unsignedinteger],
) -> dict[str, RateFigures]:
    """`rising`: scores of the non-mated pairs; `own`: scores and subjects of the mated ones."""
    accepted = accepted_counts(rising, rates)
    thresholds = thresholds_of_counts(rising, accepted)
    drawn_thresholds, false = bootstrap_thresholds(pairs, rising, rates, drawn, cell)
    scores, subjects = own
    # Thresholds of the draw before: what is calibrated on some subjects is used on others.
    before = np.where(np.isnan(false), np.nan, np.roll(drawn_thresholds, 1, axis=0))
    missed = bootstrap_fnmr(scores, subjects, before, drawn)
    spans = _intervals(interval95(drawn_thresholds))
    fmr = (accepted / len(rising)).tolist()
    fmr_spans = _intervals(rate_interval95(false[1:], fmr, pairs.count_subject_pairs(cell)))
    fnmr: list[float | None] = [None] * len(rates)
    fnmr_spans: list[Interval | None] = [None] * len(rates)
    if len(scores):
        observed = [float((~at_or_above(scores, at)).mean()) for at in thresholds.tolist()]
        fnmr = [*observed]
        if not np.isnan(missed).all():
            fnmr_spans = [*_intervals(rate_interval95(missed[1:], observed, len(np.unique(subjects))))]
    columns = zip(rates, thresholds.tolist(), spans, fmr, fmr_spans, fnmr, fnmr_spans, strict=True)
    return {rate_key(rate): RateFigures(*values) for rate, *values in columns}


def _intervals(bounds: tuple[NDArray[np.float64], NDArray[np.float64]]) -> list[Interval]:
    return [(float(low), float(high)) for low, high in zip(*bounds, strict=True)]


def _too_few_subjects(subjects: dict[str, int]) -> str:
    """Why few subjects with sets of a size support no rate, whatever they are compared with; '' if enough."""
    for name, count in subjects.items():
        if count < MIN_SUBJECTS:
            return f"only {count} subjects have sets of {name} faces, {MIN_SUBJECTS} are needed."
    return ""


def _refusal(rate: float, subject_pairs: int, comparisons: int) -> str:
    needed = math.ceil(FEWEST_DECIDING / rate)
    return (
        f"{FEWEST_DECIDING} false matches are needed (the rule of {RULE_OF_30} asks for {RULE_OF_30}), so "
        f"{needed:,} comparisons of different subject pairs, as {num_subjects_for(needed):,} subjects have; "
        f"there are {subject_pairs:,} (in {comparisons:,} comparisons of their sets)."
    )


def _curve(rising: Floats, rates: Sequence[float]) -> tuple[list[float], list[float]]:
    """False match rates, 0 and then log-spaced, each with the lowest threshold that keeps it.

    `rates` are among them, so that a rate read from the curve agrees with a decision at that rate.
    """
    wanted = np.unique(np.geomspace(1, len(rising), _CURVE_POINTS).round()) / len(rising)
    counts = np.unique(accepted_counts(rising, [0, *wanted.tolist(), *rates]))
    # Where all may be accepted, the lowest score.
    thresholds = np.maximum(thresholds_of_counts(rising, counts), float(rising[0]))
    return (counts / len(rising)).tolist(), thresholds.tolist()

"""Scores of labelled pairs of sets -> thresholds for a false match rate, by set sizes, with intervals.

Knows no network and no files: descriptors' scores, subjects and set sizes in, figures out. A score is
accepted when it is at or above the threshold. What hangs together is the subjects, so that rates are counted
over pairs of sets but are supported by pairs of people, and intervals draw subjects
(`evaluation.metrics.bootstrap`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.bootstrap import draw_subjects, interval95, rate_interval95
from evaluation.metrics.set_pairs import CELLS, SetPairs, bootstrap_thresholds, cell_name
from evaluation.metrics.thresholds import Floats, accepted_counts, at_or_above, thresholds_of_counts
from evaluation.metrics.verification import FEWEST_DECIDING, RULE_OF_30, check_rates, rate_key
from runtime.errors import InputError

# Of people; what fewer could say of sizes is noise.
FEWEST_PEOPLE = 10
_CURVE_POINTS = 120


@dataclass(frozen=True)
class RateFigures:
    """A threshold for one false match rate.

    Attributes:
        threshold: the lowest that keeps the rate, see `evaluation.metrics.thresholds`.
        interval95: of the threshold, as subjects are drawn anew.
        fmr: of these pairs at the threshold, at most the rate.
        fmr95: where it would be found on as many other people: thresholds of one draw of subjects, rates of
            another. Observed as 0, at least the exact interval of so many pairs of people.
        fnmr: share of the mated pairs below the threshold; None where there are none.
        fnmr95: where it would be found on as many other people. Observed as 0, at least the exact interval of
            so many people with mated pairs.
    """

    threshold: float
    interval95: tuple[float, float]
    fmr: float
    fmr95: tuple[float, float]
    fnmr: float | None
    fnmr95: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class GroupFigures:
    """What the pairs of some sizes, or all, say.

    Attributes:
        mated: pairs of sets of one person.
        nonmated: of two.
        people_pairs: different pairs of people among the latter.
        median_mated: None where there are none.
        median_nonmated: of the scores.
        rates: by `rate_key`.
        refused: sentences on the rates that are not supported, by `rate_key`.
        curve: rising false match rates from 0 on, and the lowest threshold that keeps each.
    """

    mated: int
    nonmated: int
    people_pairs: int
    median_mated: float | None
    median_nonmated: float
    rates: dict[str, RateFigures]
    refused: dict[str, str]
    curve: tuple[list[float], list[float]]


@dataclass(frozen=True)
class OneThreshold:
    """What the threshold of all sizes together does at one rate.

    `cells`: by the cell's name its false match and false non-match rate (None without mated pairs);
    `fnmr_one` and `fnmr_by_size`: of all mated pairs with one threshold, and with that of each cell where the
    cell has one.
    """

    cells: dict[str, tuple[float, float | None]]
    fnmr_one: float | None
    fnmr_by_size: float | None


def calibrate(
    pairs: SetPairs, rates: Sequence[float], *, replicates: int = 200, seed: int = 0
) -> tuple[GroupFigures, dict[str, GroupFigures]]:
    """The figures of all pairs, and of each pair of size groups that has non-mated pairs, by its name.

    Raises:
        InputError: no non-mated pair, fewer than `FEWEST_PEOPLE` subjects, or a rate that is none.
    """
    check_rates(rates, "FMR")
    people = len(np.unique(pairs.subjects))
    if people < FEWEST_PEOPLE:
        raise InputError(
            f"{people} people: their pairs say nothing of strangers in general. Give {FEWEST_PEOPLE} or "
            f"more; a false match rate of 1e-02 needs {people_for(FEWEST_DECIDING * 100)}."
        )
    drawn = draw_subjects(int(pairs.subjects.max()) + 1, replicates=replicates, seed=seed)
    cells = {
        cell_name(cell): _group(pairs, cell, rates, drawn)
        for cell in range(len(CELLS))
        if pairs.count_people_pairs(cell)
    }
    return _group(pairs, None, rates, drawn), cells


def one_threshold(
    pairs: SetPairs, everything: GroupFigures, cells: dict[str, GroupFigures]
) -> dict[str, OneThreshold]:
    """What one threshold for all sizes costs, by `rate_key` of the rates that all pairs support."""
    others, mated = ~pairs.is_mated, np.flatnonzero(pairs.is_mated)
    own_scores, own_cells = pairs.scores[mated], pairs.cell[mated]
    numbers = {cell_name(cell): cell for cell in range(len(CELLS)) if cell_name(cell) in cells}
    found = {}
    for key, figures in everything.rates.items():
        false = np.bincount(
            pairs.cell[others & at_or_above(pairs.scores, figures.threshold)], minlength=len(CELLS)
        )
        accepted = at_or_above(own_scores, figures.threshold)
        own = accepted.copy()
        per_cell: dict[str, tuple[float, float | None]] = {}
        for name, group in cells.items():
            here = own_cells == numbers[name]
            missed = None if not group.mated else float(1 - accepted[here].mean())
            per_cell[name] = (float(false[numbers[name]] / group.nonmated), missed)
            if key in group.rates:
                own[here] = at_or_above(own_scores[here], group.rates[key].threshold)
        fnmr = [float(1 - each.mean()) if len(mated) else None for each in (accepted, own)]
        found[key] = OneThreshold(per_cell, fnmr[0], fnmr[1])
    return found


def people_for(people_pairs: int) -> int:
    """The fewest people who make so many pairs."""
    return math.ceil((1 + math.sqrt(1 + 8 * people_pairs)) / 2)


# -------------------------------------------------------------------------------------------- a group


def _group(
    pairs: SetPairs, cell: int | None, rates: Sequence[float], drawn: NDArray[np.unsignedinteger]
) -> GroupFigures:
    rising, own = pairs.nonmated(cell), pairs.mated(cell)
    people_pairs = pairs.count_people_pairs(cell)
    few = "" if cell is None else _too_few_people(pairs.people(cell))
    supported = [rate for rate in rates if people_pairs * rate >= FEWEST_DECIDING and not few]
    refused = {
        rate_key(rate): f"FMR {rate_key(rate)}: {few}" if few else _refusal(rate, people_pairs, len(rising))
        for rate in rates
        if rate not in supported
    }
    return GroupFigures(
        mated=len(own[0]),
        nonmated=len(rising),
        people_pairs=people_pairs,
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
    missed = np.full(false.shape, np.nan)
    for draw in np.flatnonzero(~np.isnan(false).any(axis=1)).tolist():
        # Of another draw: what is calibrated on some people is used on others.
        mine = drawn[subjects, draw].astype(np.int64)
        if mine.sum():
            before = drawn_thresholds[draw - 1].tolist()
            missed[draw] = [mine @ ~at_or_above(scores, at) / mine.sum() for at in before]
    low, high = interval95(drawn_thresholds)
    fmr = (accepted / len(rising)).tolist()
    fmr95 = _pairs_of(rate_interval95(false[1:], fmr, pairs.count_people_pairs(cell)))
    fnmr: list[float | None] = [None] * len(rates)
    fnmr95: list[tuple[float, float] | None] = [None] * len(rates)
    if len(scores):
        observed = [float((~at_or_above(scores, at)).mean()) for at in thresholds.tolist()]
        fnmr = [*observed]
        if not np.isnan(missed).all():
            fnmr95 = [*_pairs_of(rate_interval95(missed[1:], observed, len(np.unique(subjects))))]
    return {
        rate_key(rate): RateFigures(float(thresholds[n]), span, fmr[n], fmr95[n], fnmr[n], fnmr95[n])
        for n, (rate, span) in enumerate(zip(rates, _pairs_of((low, high)), strict=True))
    }


def _pairs_of(bounds: tuple[NDArray[np.float64], NDArray[np.float64]]) -> list[tuple[float, float]]:
    return [(float(low), float(high)) for low, high in zip(*bounds, strict=True)]


def _too_few_people(people: dict[str, int]) -> str:
    """What is said where few people have sets of a size, with however many others they are compared."""
    for name, count in people.items():
        if count < FEWEST_PEOPLE:
            return f"only {count} people have sets of {name} faces, {FEWEST_PEOPLE} are needed."
    return ""


def _refusal(rate: float, people_pairs: int, comparisons: int) -> str:
    needed = math.ceil(FEWEST_DECIDING / rate)
    return (
        f"FMR {rate_key(rate)}: {FEWEST_DECIDING} false matches are needed to tell it (the rule of "
        f"{RULE_OF_30} asks for {RULE_OF_30}), so {needed:,} comparisons of different pairs of people, which "
        f"{people_for(needed):,} people give; there are "
        f"{people_pairs:,} (in {comparisons:,} comparisons of their sets)."
    )


def _curve(rising: Floats, rates: Sequence[float]) -> tuple[list[float], list[float]]:
    """Rising false match rates, 0 and then log-spaced, each with the lowest threshold that keeps it.

    Those of `rates` are among them, so that what is read from the curve agrees with a decision by them.
    """
    wanted = np.unique(np.geomspace(1, len(rising), _CURVE_POINTS).round()) / len(rising)
    counts = np.unique(accepted_counts(rising, [0, *wanted.tolist(), *rates]))
    # Where all may be accepted, the lowest score.
    thresholds = np.maximum(thresholds_of_counts(rising, counts), float(rising[0]))
    return (counts / len(rising)).tolist(), thresholds.tolist()

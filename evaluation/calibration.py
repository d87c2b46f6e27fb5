"""Scores of labelled pairs of sets -> thresholds for a false match rate, by set sizes, with intervals.

Knows no network and no files: descriptors' scores, subjects and set sizes in, figures out. A score is
accepted when it is at or above the threshold. What hangs together is the subjects, so that rates are counted
over pairs of sets but are supported by pairs of people, and intervals draw subjects (`evaluation.intervals`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from errors import InputError
from evaluation.identification import Floats, Integers
from evaluation.intervals import draw_subjects, interval95, rate_interval95
from evaluation.metrics import FEWEST_DECIDING, RULE_OF_30, rate_key
from evaluation.roc import check_finite, check_rates
from evaluation.thresholds import score_levels, thresholds_of_levels

# Fewest and most faces of a set in each group.
SIZE_GROUPS = ((1, 1), (2, 4), (5, 16), (17, None))
GROUP_NAMES = ("1", "2-4", "5-16", "17+")
# Of people; what fewer could say of sizes is noise.
FEWEST_PEOPLE = 10
_CURVE_POINTS = 120


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """Pairs of sets.

    Attributes:
        scores: (n,) similarities.
        first: (n,) int64 subject of the first set, numbered from 0 without gaps.
        second: (n,) of the second.
        first_group: (n,) int64 row of `SIZE_GROUPS` of the first set.
        second_group: (n,) of the second.
    """

    scores: Floats
    first: Integers
    second: Integers
    first_group: Integers
    second_group: Integers

    @property
    def cell(self) -> Integers:
        """(n,) int64 rows of `CELLS`."""
        return np.asarray(_CELL_OF[self.first_group, self.second_group])

    @property
    def is_mated(self) -> NDArray[np.bool_]:
        """(n,) whether both sets are of one subject."""
        return np.asarray(self.first == self.second)

    def only(self, rows: NDArray[np.bool_] | Integers) -> ScoredPairs:
        """Some of them, by mask or in the order of rows."""
        return ScoredPairs(
            self.scores[rows],
            self.first[rows],
            self.second[rows],
            self.first_group[rows],
            self.second_group[rows],
        )


@dataclass(frozen=True)
class RateFigures:
    """A threshold for one false match rate.

    Attributes:
        threshold: the lowest that keeps the rate, see `evaluation.thresholds`.
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


CELLS = tuple((i, j) for i in range(len(SIZE_GROUPS)) for j in range(i, len(SIZE_GROUPS)))
_CELL_OF = np.zeros((len(SIZE_GROUPS), len(SIZE_GROUPS)), np.int64)
for _row, (_i, _j) in enumerate(CELLS):
    _CELL_OF[_i, _j] = _CELL_OF[_j, _i] = _row


def cell_name(cell: int) -> str:
    """A pair of size groups as files and tables write it."""
    first, second = CELLS[cell]
    return f"{GROUP_NAMES[first]} x {GROUP_NAMES[second]}"


def cells_of(first_sizes: Integers, second_sizes: Integers) -> Integers:
    """Rows of `CELLS` for pairs of sets with so many faces; shapes broadcast."""
    return np.asarray(_CELL_OF[groups_of(first_sizes), groups_of(second_sizes)])


def groups_of(sizes: Integers) -> Integers:
    """Rows of `SIZE_GROUPS` for sets of so many faces."""
    return np.asarray(np.searchsorted([low for low, _ in SIZE_GROUPS[1:]], sizes, side="right"))


def all_pairs(similarity: Floats, subjects: Integers, sizes: Integers) -> ScoredPairs:
    """Every two of N sets.

    Args:
        similarity: (N, N) symmetric scores.
        subjects: (N,) numbered from 0 without gaps.
        sizes: (N,) faces of each set, 1 or more.

    Raises:
        InputError: shapes differ, or a score is not finite.
    """
    count = len(subjects)
    if similarity.shape != (count, count) or sizes.shape != (count,):
        raise InputError(
            f"similarity {similarity.shape}, subjects {subjects.shape}, sizes {sizes.shape}: expected "
            "(N, N), (N,) and (N,)."
        )
    rows, columns = np.triu_indices(count, 1)
    scores = np.asarray(similarity[rows, columns], np.float64)
    check_finite(scores, "score of pair")
    groups = groups_of(sizes)
    return ScoredPairs(scores, subjects[rows], subjects[columns], groups[rows], groups[columns])


def calibrate(
    pairs: ScoredPairs, rates: Sequence[float], *, replicates: int = 200, seed: int = 0
) -> tuple[GroupFigures, dict[str, GroupFigures]]:
    """The figures of all pairs, and of each pair of size groups that has non-mated pairs, by its name.

    Raises:
        InputError: no non-mated pair, fewer than `FEWEST_PEOPLE` subjects, or a rate that is none.
    """
    check_rates(rates, "FMR")
    people = len(np.union1d(pairs.first, pairs.second))
    if people < FEWEST_PEOPLE:
        raise InputError(
            f"{people} people: their pairs say nothing of strangers in general. Give {FEWEST_PEOPLE} or "
            f"more; a false match rate of 1e-02 needs {people_for(FEWEST_DECIDING * 100)}."
        )
    drawn = draw_subjects(
        int(max(pairs.first.max(), pairs.second.max())) + 1, replicates=replicates, seed=seed
    )
    cells = {}
    for cell in range(len(CELLS)):
        inside = pairs.only(pairs.cell == cell)
        if (~inside.is_mated).any():
            cells[cell_name(cell)] = _group(inside, rates, drawn)
    return _group(pairs, rates, drawn), cells


def one_threshold(
    pairs: ScoredPairs, everything: GroupFigures, cells: dict[str, GroupFigures]
) -> dict[str, OneThreshold]:
    """What one threshold for all sizes costs, by `rate_key` of the rates that all pairs support."""
    names = np.array([cell_name(cell) for cell in range(len(CELLS))])[pairs.cell]
    mated = pairs.is_mated
    found = {}
    for key, figures in everything.rates.items():
        accepted = pairs.scores >= figures.threshold
        own = accepted.copy()
        per_cell: dict[str, tuple[float, float | None]] = {}
        for name, group in cells.items():
            here = names == name
            missed = None if not group.mated else float(1 - accepted[here & mated].mean())
            per_cell[name] = (float(accepted[here & ~mated].mean()), missed)
            if key in group.rates:
                own[here] = pairs.scores[here] >= group.rates[key].threshold
        fnmr = [float(1 - each[mated].mean()) if mated.any() else None for each in (accepted, own)]
        found[key] = OneThreshold(per_cell, fnmr[0], fnmr[1])
    return found


def people_for(people_pairs: int) -> int:
    """The fewest people who make so many pairs."""
    return math.ceil((1 + math.sqrt(1 + 8 * people_pairs)) / 2)


# -------------------------------------------------------------------------------------------- a group


def _group(pairs: ScoredPairs, rates: Sequence[float], drawn: NDArray[np.unsignedinteger]) -> GroupFigures:
    mated = pairs.is_mated
    others, own = pairs.only(~mated), pairs.only(mated)
    if not len(others.scores):
        raise InputError("no pair of sets of two people: no false match rate can be measured.")
    people_pairs = _count_people_pairs(others)
    few = _too_few_people(others)
    supported = [rate for rate in rates if people_pairs * rate >= FEWEST_DECIDING and not few]
    refused = {
        rate_key(rate): f"FMR {rate_key(rate)}: {few}"
        if few
        else _refusal(rate, people_pairs, len(others.scores))
        for rate in rates
        if rate not in supported
    }
    falling = others.only(np.argsort(-others.scores, kind="stable"))
    found = _rates(falling, own, supported, drawn) if supported else {}
    return GroupFigures(
        mated=len(own.scores),
        nonmated=len(others.scores),
        people_pairs=people_pairs,
        median_mated=float(np.median(own.scores)) if len(own.scores) else None,
        median_nonmated=float(np.median(others.scores)),
        rates=found,
        refused=refused,
        curve=_curve(falling.scores, supported),
    )


def _rates(
    others: ScoredPairs, own: ScoredPairs, rates: Sequence[float], drawn: NDArray[np.unsignedinteger]
) -> dict[str, RateFigures]:
    """`others`: non-mated pairs, their scores falling; `own`: mated."""
    replicates = drawn.shape[1]
    levels, ends = score_levels(others.scores)
    thresholds = thresholds_of_levels(levels, ends, rates)
    drawn_thresholds = np.full((replicates, len(rates)), np.nan)
    false, missed = np.full((2, replicates, len(rates)), np.nan)
    for draw in range(replicates):
        count = drawn[:, draw].astype(np.int64)
        weight = (count[others.first] * count[others.second]).cumsum()[ends - 1]
        if not weight[-1]:
            continue
        drawn_thresholds[draw] = thresholds_of_levels(levels, weight, rates)
        if draw and not np.isnan(drawn_thresholds[draw - 1]).any():
            # Of another draw: what is calibrated on some people is used on others.
            before = drawn_thresholds[draw - 1]
            above = np.searchsorted(-levels, -before, side="right")
            false[draw] = np.concatenate([[0], weight])[above] / weight[-1]
            mine = count[own.first]
            if mine.sum():
                missed[draw] = (mine[:, None] * (own.scores[:, None] < before)).sum(axis=0) / mine.sum()
    low, high = interval95(drawn_thresholds)
    fmr = [float((others.scores >= at).mean()) for at in thresholds]
    fmr95 = _pairs_of(rate_interval95(false[1:], fmr, _count_people_pairs(others)))
    fnmr: list[float | None] = [None] * len(rates)
    fnmr95: list[tuple[float, float] | None] = [None] * len(rates)
    if len(own.scores):
        observed = [float((own.scores < at).mean()) for at in thresholds]
        fnmr = [*observed]
        if not np.isnan(missed).all():
            fnmr95 = [*_pairs_of(rate_interval95(missed[1:], observed, len(np.unique(own.first))))]
    return {
        rate_key(rate): RateFigures(float(thresholds[n]), span, fmr[n], fmr95[n], fnmr[n], fnmr95[n])
        for n, (rate, span) in enumerate(zip(rates, _pairs_of((low, high)), strict=True))
    }


def _pairs_of(bounds: tuple[NDArray[np.float64], NDArray[np.float64]]) -> list[tuple[float, float]]:
    return [(float(low), float(high)) for low, high in zip(*bounds, strict=True)]


def _count_people_pairs(others: ScoredPairs) -> int:
    low, high = np.minimum(others.first, others.second), np.maximum(others.first, others.second)
    return len(np.unique(low * (int(high.max()) + 1) + high))


def _too_few_people(others: ScoredPairs) -> str:
    """What is said where few people have sets of a size, with however many others they are compared."""
    for group, name in enumerate(GROUP_NAMES):
        own = [others.first[others.first_group == group], others.second[others.second_group == group]]
        people = len(np.unique(np.concatenate(own)))
        if 0 < people < FEWEST_PEOPLE and len(np.unique(others.cell)) == 1:
            return f"only {people} people have sets of {name} faces, {FEWEST_PEOPLE} are needed."
    return ""


def _refusal(rate: float, people_pairs: int, comparisons: int) -> str:
    needed = math.ceil(FEWEST_DECIDING / rate)
    return (
        f"FMR {rate_key(rate)}: {FEWEST_DECIDING} false matches are needed to tell it (the rule of "
        f"{RULE_OF_30} asks for {RULE_OF_30}), so {needed:,} comparisons of different pairs of people, which "
        f"{people_for(needed):,} people give; there are "
        f"{people_pairs:,} (in {comparisons:,} comparisons of their sets)."
    )


def _curve(falling: Floats, rates: Sequence[float]) -> tuple[list[float], list[float]]:
    """Rising false match rates, 0 and then log-spaced, each with the lowest threshold that keeps it.

    Those of `rates` are among them, so that what is read from the curve agrees with a decision by them.
    """
    levels, ends = score_levels(falling)
    wanted = np.unique(np.geomspace(1, len(falling), _CURVE_POINTS).round()) / len(falling)
    shares = np.append(0, ends) / len(falling)
    places = np.searchsorted(shares, np.concatenate([[0], wanted, rates]), side="right") - 1
    reached = shares[np.unique(places)]
    thresholds = thresholds_of_levels(levels, ends, reached.tolist())
    # Where all may be accepted, the lowest score.
    return reached.tolist(), np.maximum(thresholds, levels[-1]).tolist()

"""Scores of all pairs of N labelled sets, in a few bytes per pair, and counts over them.

The index of a pair determines its two sets, so that subjects and sizes are kept once per set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.thresholds import Floats, Integers, at_or_above, thresholds_of_falling
from evaluation.metrics.verification import check_finite
from runtime.errors import InputError
from runtime.rows import row_slices

# Smallest and largest number of faces of a set in each group.
SIZE_GROUPS = ((1, 1), (2, 4), (5, 16), (17, None))
GROUP_NAMES = ("1", "2-4", "5-16", "17+")
CELLS = tuple((i, j) for i in range(len(SIZE_GROUPS)) for j in range(i, len(SIZE_GROUPS)))
_CELL_OF = np.zeros((len(SIZE_GROUPS), len(SIZE_GROUPS)), np.uint8)
for _row, (_i, _j) in enumerate(CELLS):
    _CELL_OF[_i, _j] = _CELL_OF[_j, _i] = _row
# Pairs processed at a time: tens of megabytes.
_PAIRS_AT_ONCE = 1_048_576


@dataclass(frozen=True, eq=False)
class InnerProducts:
    """A lazy (N, N) matrix of inner products: `self[rows]` is left[rows] @ right.T.

    Attributes:
        left: (N, E).
        right: (N, E).
        clip: whether to clip to [-1, 1], for cosines.
    """

    left: Floats
    right: Floats
    clip: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(N, N)."""
        return len(self.left), len(self.right)

    def __getitem__(self, rows: slice) -> Floats:
        products = np.asarray(self.left[rows] @ self.right.T)
        return products.clip(-1, 1, out=products) if self.clip else products


@dataclass(frozen=True, eq=False)
class SetPairs:
    """All n = N (N - 1) / 2 pairs of N sets, in the order of `np.triu_indices(N, 1)`.

    Attributes:
        scores: (n,) similarities.
        cell: (n,) uint8 rows of `CELLS`.
        is_mated: (n,) whether both sets are of one subject.
        subjects: (N,) of the sets, numbered from 0 without gaps.
        groups: (N,) rows of `SIZE_GROUPS`.
    """

    scores: Floats
    cell: NDArray[np.uint8]
    is_mated: NDArray[np.bool_]
    subjects: Integers
    groups: Integers

    def sets_at(self, places: Integers) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The two sets (m,), (m,) of the pairs with indices (m,)."""
        count = len(self.subjects)
        sets = np.arange(count)
        starts = sets * (count - 1) - sets * (sets - 1) // 2
        first = np.searchsorted(starts[:-1], places, side="right") - 1
        return first, places - starts[first] + first + 1

    def nonmated(self, cell: int | None = None) -> Floats:
        """The non-mated scores of all sizes or of one cell, ascending."""
        scores = self.scores[self._nonmated(cell)]
        scores.sort()
        return scores

    def mated(self, cell: int | None = None) -> tuple[Floats, NDArray[np.int64]]:
        """The mated scores and their subjects."""
        places = np.flatnonzero(self.is_mated if cell is None else self.is_mated & (self.cell == cell))
        return self.scores[places], np.asarray(self.subjects[self.sets_at(places)[0]], np.int64)

    def highest_nonmated(self, lowest: float, cell: int | None = None) -> NDArray[np.int64]:
        """Indices of the non-mated pairs whose score, in the dtype of scores, is `lowest` or more."""
        return np.flatnonzero(self._nonmated(cell) & (self.scores >= self.scores.dtype.type(lowest)))

    def _nonmated(self, cell: int | None) -> NDArray[np.bool_]:
        return ~self.is_mated if cell is None else ~self.is_mated & (self.cell == cell)

    @cached_property
    def _held(self) -> NDArray[np.int64]:
        """(groups, subjects) numbers of sets."""
        held = np.zeros((len(SIZE_GROUPS), int(self.subjects.max(initial=-1)) + 1), np.int64)
        np.add.at(held, (self.groups, self.subjects), 1)
        return held

    def count_subjects(self, cell: int) -> dict[str, int]:
        """Number of subjects with sets of each of the two sizes of a cell, by the name of the size."""
        return {GROUP_NAMES[group]: int((self._held[group] > 0).sum()) for group in sorted(set(CELLS[cell]))}

    def count_subject_pairs(self, cell: int | None = None) -> int:
        """Number of different pairs of subjects among the non-mated pairs."""
        one, other = (held > 0 for held in self._sides(cell))
        both = int((one & other).sum())
        return int(one.sum()) * int(other.sum()) - both - both * (both - 1) // 2

    def nonmated_weights(self, drawn: Integers, cell: int | None = None) -> NDArray[np.int64]:
        """(R,) number of non-mated pairs, each weighted by how often its subjects are drawn, (subjects,
        R).
        """
        one, other = self._sides(cell)
        counts = drawn.astype(np.int64)
        # Without pairs of a subject with itself; within one group every pair was counted twice.
        pairs = (one @ counts) * (other @ counts) - (one * other) @ counts**2
        return np.asarray(pairs // 2 if one is other else pairs)

    def _sides(self, cell: int | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if cell is None:
            everything = self._held.sum(axis=0)
            return everything, everything
        one, other = CELLS[cell]
        first = self._held[one]
        return first, first if one == other else self._held[other]


def groups_of(sizes: Integers) -> Integers:
    """Rows of `SIZE_GROUPS` for sets by their numbers of faces."""
    return np.asarray(np.searchsorted([low for low, _ in SIZE_GROUPS[1:]], sizes, side="right"))


def cells_of(first_sizes: Integers, second_sizes: Integers) -> NDArray[np.uint8]:
    """Rows of `CELLS` for pairs of sets by their numbers of faces; shapes broadcast."""
    return np.asarray(_CELL_OF[groups_of(first_sizes), groups_of(second_sizes)])


def cell_name(cell: int) -> str:
    """Name of a pair of size groups in files and tables."""
    first, second = CELLS[cell]
    return f"{GROUP_NAMES[first]} x {GROUP_NAMES[second]}"


def all_pairs(similarity: Floats | InnerProducts, subjects: Integers, sizes: Integers) -> SetPairs:
    """Score all pairs of N sets.

    Args:
        similarity: (N, N) scores, of which those above the diagonal are used.
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
    pairs = count * (count - 1) // 2
    groups = groups_of(sizes)
    scores = np.empty(pairs, similarity[0:0].dtype)
    cell, is_mated = np.empty(pairs, np.uint8), np.empty(pairs, np.bool_)
    start = 0
    for rows in row_slices(count, count, _PAIRS_AT_ONCE):
        upper = np.arange(count) > np.arange(rows.start, rows.stop)[:, None]
        part = slice(start, start + int(upper.sum()))
        scores[part] = similarity[rows][upper]
        cell[part] = _CELL_OF[groups[rows, None], groups][upper]
        is_mated[part] = (subjects[rows, None] == subjects)[upper]
        start = part.stop
    check_finite(scores, "score of pair")
    return SetPairs(scores, cell, is_mated, subjects, groups)


def bootstrap_thresholds(
    pairs: SetPairs, rising: Floats, rates: Sequence[float], drawn: Integers, cell: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Thresholds for each false match rate in each draw of subjects (`evaluation.metrics.thresholds`).

    Args:
        pairs: with non-mated pairs in the cell.
        rising: their scores, from `SetPairs.nonmated`.
        rates: each in [0, 1].
        drawn: (subjects, R) how often each subject is drawn.
        cell: None is all sizes.

    Returns:
        (R, F) thresholds, NaN where a draw has no non-mated pair; and (R, F) the false match rates of a draw
        at the thresholds of the draw before, NaN where either has none.
    """
    totals = pairs.nonmated_weights(drawn, cell)
    wanted = int(1.3 * max(rates) * len(rising)) + 1024
    while True:
        # Only the highest scores matter; how many depends on the draw.
        lowest = rising[max(0, len(rising) - wanted)]
        places = pairs.highest_nonmated(lowest, cell)
        found = _thresholds_of_top(pairs, places, rates, drawn, totals)
        if len(places) == len(rising) or not np.isneginf(found[0]).any():
            return found
        wanted *= 4


def bootstrap_fnmr(
    scores: Floats, subjects: Integers, thresholds: NDArray[np.float64], drawn: Integers
) -> NDArray[np.float64]:
    """False non-match rates in each draw of subjects.

    Args:
        scores: (P,) of mated pairs.
        subjects: (P,) of the same pairs.
        thresholds: (R, F) of each draw; a draw with a NaN is left out.
        drawn: (subjects, R) how often each subject is drawn.

    Returns:
        (R, F), NaN where the draw is left out or has no mated pair.
    """
    missed = np.full(thresholds.shape, np.nan)
    for draw in np.flatnonzero(~np.isnan(thresholds).any(axis=1)).tolist():
        weights = drawn[subjects, draw].astype(np.int64)
        if weights.sum():
            missed[draw] = [
                weights @ ~at_or_above(scores, at) / weights.sum() for at in thresholds[draw].tolist()
            ]
    return missed


def _thresholds_of_top(
    pairs: SetPairs,
    places: NDArray[np.int64],
    rates: Sequence[float],
    drawn: Integers,
    totals: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`bootstrap_thresholds` from some of the pairs; -inf where their weight does not suffice."""
    places = places[np.argsort(-pairs.scores[places], kind="stable")]
    falling = pairs.scores[places].astype(np.float64)
    first, second = (pairs.subjects[sets].astype(np.int32) for sets in pairs.sets_at(places))
    thresholds, false = np.full((2, len(totals), len(rates)), np.nan)
    for draw, total in enumerate(totals.tolist()):
        if not total:
            continue
        count = drawn[:, draw].astype(np.uint32)
        accepted = (count[first] * count[second]).cumsum(dtype=np.int64)
        thresholds[draw] = thresholds_of_falling(falling, accepted, rates, total)
        if draw and not np.isnan(thresholds[draw - 1]).any():
            above = np.searchsorted(-falling, -thresholds[draw - 1], side="right")
            false[draw] = np.append(0, accepted)[above] / total
    return thresholds, false

"""1:1 on a list of template pairs: descriptors -> scores, TAR@FAR, ROC. Fast, and exact where it decides.

Pairs of template lists are dense (each template against many), so scores come from float32 matrix products
over blocks of templates; where they are not, rows are gathered. The scores that decide a rate are computed
again in float64. Rates are defined in `evaluation.metrics.verification`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.search import exact_products, rounding_of_products
from evaluation.metrics.thresholds import Floats, Integers
from evaluation.metrics.verification import (
    RocCurve,
    RocPoints,
    TarAtFar,
    check_rates,
    rate_key,
    roc_curve_of_sorted,
    roc_points,
    split_scores,
)
from runtime.errors import InputError
from runtime.machine import usable_cores

# Products of one block of templates with all others: IJB-C's are two blocks. Fewer are faster, and larger.
_BLOCK_BYTES = 150 << 20
# Pairs a thread takes at a time; their indices stay in its cache.
_CHUNK_PAIRS = 1 << 17
_CHUNK_EXACT = 1 << 12
# A product within a matrix costs about 10 ns, a gathered pair of rows 300 ns.
_WORTH_A_MATRIX = 1 / 30
# Non-mated scores on either side of a target that are computed exactly at first.
_FIRST_REACH = 256


@dataclass(frozen=True)
class Verification:
    """Figures of one pair list: rates by `rate_key`, the ROC, and the scores (n,) float32 for intervals."""

    rates: dict[str, TarAtFar]
    curve: RocCurve
    scores: NDArray[np.float32]


def verify(
    descriptors: Floats,
    first: Integers,
    second: Integers,
    is_mated: NDArray[np.bool_],
    fars: Sequence[float],
    *,
    second_descriptors: Floats | None = None,
) -> Verification:
    """Score all pairs by inner product and return the rates.

    The rates are those of scores in float64; the area under the ROC is that of scores in float32.

    Args:
        descriptors: (M, D) float32 or float64; unit rows where cosine is meant. Or (M, P, D): templates of up
            to P identities (`coreset.two_identity_split`), whose score is the best of their descriptors'.
        first: (n,) row of the first template of each pair.
        second: (n,) row of the second.
        is_mated: (n,).
        fars: each in [0, 1].
        second_descriptors: of the second templates, where they are compared as other vectors than the first
            (`evaluation.metrics.score_normalisation`); of the shape of `descriptors`.

    Raises:
        InputError: shapes differ, a row does not exist, a descriptor that is used is not finite, or there is
            no mated or no non-mated pair.
    """
    check_rates(fars, "FAR")
    others = descriptors if second_descriptors is None else second_descriptors
    scores, margin = _scores_and_margin(descriptors, others, first, second)
    mated, nonmated = split_scores(scores, is_mated)

    def exact(pairs: NDArray[np.int64]) -> NDArray[np.float64]:
        found = np.empty(len(pairs))

        def fill(part: slice) -> None:
            own = pairs[part]
            found[part] = np.max(
                [
                    exact_products(left, right, first[own], second[own])
                    for left, right in _identity_pairs(descriptors, others)
                ],
                axis=0,
            )

        _in_threads(fill, len(pairs), chunk=_CHUNK_EXACT)
        return found

    # In place: both are copies.
    mated.sort()
    nonmated.sort()
    decisions = _Decisions(scores, is_mated, mated, nonmated, margin, exact)
    rates = {rate_key(far): decisions.decide(far) for far in fars}
    return Verification(rates, roc_curve_of_sorted(mated, nonmated), scores)


def pair_scores(descriptors: Floats, first: Integers, second: Integers) -> NDArray[np.float32]:
    """Scores (n,) of the pairs, in their order; arguments as `verify`.

    Needs 4 bytes per pair for the result and about 250 MiB at IJB-C's size beside float32 descriptors.

    Raises:
        InputError: shapes differ, a row does not exist, a descriptor that is used is not finite.
    """
    return _scores_and_margin(descriptors, descriptors, first, second)[0]


def _scores_and_margin(
    descriptors: Floats, others: Floats, first: Integers, second: Integers
) -> tuple[NDArray[np.float32], float]:
    """The scores, and how far they may be from those in float64."""
    is_alike = descriptors.shape == others.shape and descriptors.ndim in (2, 3)
    if first.shape != second.shape or first.ndim != 1 or not is_alike:
        raise InputError(
            f"descriptors {descriptors.shape}, pairs {first.shape} and {second.shape}: "
            "expected (M, D) or (M, P, D), (n,) and (n,)."
        )
    best, margin = np.empty(0, np.float32), 0.0
    for left, right in _identity_pairs(descriptors, others):
        scores, rounding = _products(left, right, first, second)
        best = np.maximum(best, scores, out=best) if len(best) else scores
        margin = max(margin, rounding)
    return best, margin


def _identity_pairs(descriptors: Floats, others: Floats) -> list[tuple[Floats, Floats]]:
    """(M, D) descriptors of either side of a pair, for each choice of an identity on either side."""
    if descriptors.ndim == 2:
        return [(descriptors, others)]
    identities = range(descriptors.shape[1])
    return [(descriptors[:, one], others[:, other]) for one in identities for other in identities]


def _products(
    left_descriptors: Floats, right_descriptors: Floats, first: Integers, second: Integers
) -> tuple[NDArray[np.float32], float]:
    with ThreadPoolExecutor(2) as pool:
        left, right = pool.map(_Side.of, (left_descriptors, right_descriptors), (first, second))
    scores = np.empty(len(first), np.float32)
    if len(first) < _WORTH_A_MATRIX * len(left.descriptors) * len(right.descriptors):
        _gather(left, right, first, second, scores)
    else:
        _multiply(left, right, first, second, scores)
    return scores, rounding_of_products(left.descriptors, right.descriptors)


@dataclass(frozen=True)
class _Side:
    """The templates on one side of the pairs: descriptors (U, D) float32, and the place among them
    of each row of all descriptors (M,), int64.
    """

    descriptors: NDArray[np.float32]
    place: NDArray[np.int64]

    @classmethod
    def of(cls, descriptors: Floats, rows: Integers) -> _Side:
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(descriptors)):
            raise InputError(
                f"pairs name rows {rows.min()} to {rows.max()}, but there are {len(descriptors)} descriptors."
            )
        is_used = np.zeros(len(descriptors), np.bool_)
        is_used[rows] = True
        used = np.flatnonzero(is_used)
        mine = descriptors[used].astype(np.float32, copy=False)
        if not (finite := np.isfinite(mine).all(axis=1)).all():
            broken = int(used[~finite][0])
            raise InputError(
                f"descriptor {broken} is not finite; the features of its template may be broken."
            )
        place = np.zeros(len(descriptors), np.int64)
        place[used] = np.arange(len(used))
        return cls(mine, place)


def _multiply(
    left: _Side, right: _Side, first: Integers, second: Integers, scores: NDArray[np.float32]
) -> None:
    """All products of a block of left templates, then those of its pairs; for each block in turn."""
    height, width = len(left.descriptors), len(right.descriptors)
    # The place of each pair among all products, row by row.
    kind = np.uint32 if height * width < 1 << 32 else np.int64
    row_starts, columns = (left.place * width).astype(kind), right.place.astype(kind)
    place = np.empty(len(first), kind)

    def find(pairs: slice) -> None:
        place[pairs] = row_starts.take(first[pairs])
        place[pairs] += columns.take(second[pairs])

    _in_threads(find, len(first))
    # Blocks of equal height, so that the last one is no remnant.
    blocks = -(-4 * height * width // _BLOCK_BYTES)
    block_rows = -(-height // min(blocks, height))
    buffer = np.empty((block_rows, width), np.float32)
    for start in range(0, height, block_rows):
        block = left.descriptors[start : start + block_rows]
        products = np.matmul(block, right.descriptors.T, out=buffer[: len(block)]).ravel()
        begin, end = start * width, (start + len(block)) * width

        def fill(
            pairs: slice, products: NDArray[np.float32] = products, begin: int = begin, end: int = end
        ) -> None:
            mine = place[pairs]
            own = np.flatnonzero((mine >= begin) & (mine < end))
            scores[pairs][own] = products.take(mine.take(own) - kind(begin))

        _in_threads(fill, len(first))


def _gather(
    left: _Side, right: _Side, first: Integers, second: Integers, scores: NDArray[np.float32]
) -> None:
    def fill(pairs: slice) -> None:
        for start in range(pairs.start, pairs.stop, 4096):
            part = slice(start, min(start + 4096, pairs.stop))
            rows = left.descriptors.take(left.place[first[part]], axis=0)
            others = right.descriptors.take(right.place[second[part]], axis=0)
            scores[part] = np.einsum("ij,ij->i", rows, others)

    _in_threads(fill, len(first))


def _in_threads(work: Callable[[slice], None], pairs: int, chunk: int | None = None) -> None:
    """Call `work` on slices of the pairs; NumPy lets go of the interpreter while it copies."""
    chunk = chunk or _CHUNK_PAIRS
    slices = [slice(start, min(start + chunk, pairs)) for start in range(0, pairs, chunk)]
    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(work, slices))


class _Decisions:
    """TAR@FAR of scores that are known within `margin`, by exact scores wherever these could matter.

    `mated` and `nonmated` are the rounded scores, rising; `exact` computes the scores of pairs in float64.
    """

    def __init__(
        self,
        scores: NDArray[np.float32],
        is_mated: NDArray[np.bool_],
        mated: Floats,
        nonmated: Floats,
        margin: float,
        exact: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    ) -> None:
        self.scores, self.is_mated, self.mated, self.nonmated = scores, is_mated, mated, nonmated
        self.margin, self.exact = margin, exact

    def decide(self, far: float) -> TarAtFar:
        """The rates at one FAR."""
        N, reach = len(self.nonmated), _FIRST_REACH
        target = int(far * N)
        while True:
            # So many non-mated scores on either side of the target; the scores decide how many are needed.
            lowest = float(self.nonmated[N - target - reach]) if target + reach < N else -np.inf
            highest = float(self.nonmated[N - 1 - target + reach]) if target >= reach else np.inf
            if (rates := self._points(lowest, highest).decide(far)) is not None:
                return rates
            reach = max(4 * reach, self._distance_to_mated(target) + _FIRST_REACH)

    def _distance_to_mated(self, target: int) -> int:
        """Non-mated scores between the target and the nearer of its two mated neighbours.

        The nearest point of the ROC is at least that far away.
        """
        N = len(self.nonmated)
        place = int(np.searchsorted(self.mated, self.nonmated[max(0, N - 1 - target)]))
        neighbours = self.mated[max(0, place - 1) : place + 1]
        ranks = N - np.searchsorted(self.nonmated, neighbours)
        return int(np.abs(ranks - target).min())

    def _points(self, lowest: float, highest: float) -> RocPoints:
        """The points of exact scores from `lowest` to `highest`.

        Scores that rounding may have moved over a bound are computed too, and counted on their side of it.
        """
        below, above = np.float32(lowest - 2 * self.margin), np.float32(highest + 2 * self.margin)
        near = np.flatnonzero((self.scores >= below) & (self.scores <= above))
        exact, is_mated = self.exact(near), self.is_mated[near]
        over = exact > highest + self.margin
        within = ~over & (exact >= lowest - self.margin)
        nonmated_above, mated_above = (
            len(rising)
            - int(np.searchsorted(rising, above, side="right"))
            + int(np.count_nonzero(over & kind))
            for rising, kind in ((self.nonmated, ~is_mated), (self.mated, is_mated))
        )
        return roc_points(
            exact[within & ~is_mated],
            exact[within & is_mated],
            nonmated=len(self.nonmated),
            mated=len(self.mated),
            nonmated_above=nonmated_above,
            mated_above=mated_above,
        )

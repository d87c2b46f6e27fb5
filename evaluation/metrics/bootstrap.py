"""Confidence intervals of rates by bootstrap over subjects.

Scores of one subject are correlated, so subjects are drawn with replacement, not pairs: a subject drawn twice
counts its mated pairs twice, and a non-mated pair counts as often as the product of its two subjects. Two
aggregators are compared on the same draws. Every replicate is the strict rate of
`evaluation.metrics.verification` on the weighted pairs. Where all replicates are equal, as for a rate of
0 or 1, the exact binomial interval of the number of subjects is used (`evaluation.metrics.binomial`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.binomial import exact_interval95
from evaluation.metrics.identification import identification_scores, mated_only
from evaluation.metrics.search import Search
from evaluation.metrics.thresholds import Floats, Integers, allowed_counts
from evaluation.metrics.verification import check_rates
from runtime.errors import InputError

# Weights (count, R) of the scores that a slice names.
Weights = Callable[[slice], NDArray[np.unsignedinteger]]

# Sums of so many weights fit uint16: a weight in uint8 is at most 15 x 15.
_CHUNK = 128
_CHUNKS_AT_ONCE = 64


def draw_subjects(subjects: int, *, replicates: int, seed: int) -> NDArray[np.unsignedinteger]:
    """How often each subject is drawn: (subjects, replicates), columns that sum to `subjects`.

    Raises:
        InputError: fewer than two subjects, or no replicate.
    """
    if subjects < 2 or replicates < 1:
        raise InputError(
            f"{subjects} subjects, {replicates} replicates: an interval needs two or more of the first, "
            "one or more of the second."
        )
    drawn = np.random.default_rng(seed).multinomial(
        subjects, np.full(subjects, 1 / subjects), size=replicates
    )
    kind = np.uint8 if drawn.max() <= 15 else np.uint32
    return np.ascontiguousarray(drawn.T.astype(kind))


class PairBootstrap:
    """The draws for one pair list; every aggregator's scores of these pairs are weighted by the same ones."""

    def __init__(
        self,
        first_subjects: Integers,
        second_subjects: Integers,
        is_mated: NDArray[np.bool_],
        *,
        replicates: int = 200,
        seed: int = 0,
    ) -> None:
        """Draw the subjects and weigh all non-mated pairs.

        Args:
            first_subjects: (n,) subject of the first template of each pair, numbered from 0 without gaps.
            second_subjects: (n,) of the second.
            is_mated: (n,) as the pair list says; must agree with the subjects.
            replicates: how many times the subjects are drawn; results have a row for each.
            seed: of the draws.

        Raises:
            InputError: shapes differ, a label disagrees with the subjects, fewer than two subjects.
        """
        if not first_subjects.shape == second_subjects.shape == is_mated.shape:
            raise InputError(
                f"subjects {first_subjects.shape}, {second_subjects.shape} and is_mated {is_mated.shape}: "
                "expected one of each for every pair."
            )
        wrong = np.flatnonzero((first_subjects == second_subjects) != is_mated)
        if len(wrong):
            pair = int(wrong[0])
            raise InputError(
                f"{len(wrong)} pairs have a label that their subjects contradict. The first is pair {pair}: "
                f"subjects {first_subjects[pair]} and {second_subjects[pair]}, label {int(is_mated[pair])}."
            )
        subjects = 1 + max(int(side.max(initial=0)) for side in (first_subjects, second_subjects))
        self.drawn = draw_subjects(subjects, replicates=replicates, seed=seed)
        self.first, self.second, self.is_mated = first_subjects, second_subjects, is_mated
        self.mated_weights = self.drawn[first_subjects[is_mated]]
        self.mated_subjects = len(np.unique(first_subjects[is_mated]))
        everything = _chunk_sums(self._weights(first_subjects, second_subjects), len(is_mated))
        self.total = everything.sum(axis=0, dtype=np.int64)
        self.total -= (self.mated_weights.astype(np.int64) ** 2).sum(axis=0)

    def tar(self, scores: Floats, fars: Sequence[float]) -> NDArray[np.float64]:
        """Strict TAR of each replicate: (R, len(fars)); NaN where a replicate drew no mated or no other pair.

        Args:
            scores: (n,) of the pairs.
            fars: each in [0, 1].

        Raises:
            InputError: the shape differs, or a FAR is none.
        """
        check_rates(fars, "FAR")
        if scores.shape != self.is_mated.shape:
            raise InputError(f"scores {scores.shape}: expected one for each of {len(self.is_mated)} pairs.")
        mated, nonmated = scores[self.is_mated], scores[~self.is_mated]
        wanted = int(1.3 * max(fars, default=0.0) * len(nonmated)) + 1024
        while True:
            # Only the top matters; drawing subjects moves how far down a threshold can lie.
            at = max(0, len(nonmated) - wanted)
            top = np.flatnonzero((scores >= np.partition(nonmated, at)[at]) & ~self.is_mated)
            top = top[np.argsort(-scores[top])]
            weights = self._weights(self.first[top], self.second[top])
            rates = weighted_tar(scores[top], weights, self.total, mated, self.mated_weights, fars)
            if len(top) == len(nonmated) or not np.isneginf(rates).any():
                # What all scores together cannot exceed is a FAR of 1.
                return np.where(np.isneginf(rates), 1.0, rates)
            wanted *= 4

    def _weights(self, first: Integers, second: Integers) -> Weights:
        def weights(part: slice) -> NDArray[np.unsignedinteger]:
            both = self.drawn.take(first[part], axis=0)
            both *= self.drawn.take(second[part], axis=0)
            return both

        return weights


class ProbeBootstrap:
    """The draws for the probes of one search protocol; the galleries stay as they are."""

    def __init__(self, probe_subjects: Integers, *, replicates: int = 200, seed: int = 0) -> None:
        """Draw the subjects among those of the probes (P,), in any numbering.

        Raises:
            InputError: fewer than two subjects.
        """
        names, self.subject = np.unique(probe_subjects, return_inverse=True)
        self.weights = draw_subjects(len(names), replicates=replicates, seed=seed)[self.subject]

    def mated_subjects(self, search: Search) -> int:
        """Subjects of the mated probes."""
        return len(np.unique(self.subject[search.is_mated]))

    def cmc(self, search: Search, ranks: Sequence[int]) -> NDArray[np.float64]:
        """Share of mated probes found at each rank: (R, len(ranks)); NaN where no mated probe was drawn.

        Raises:
            InputError: no probe is mated.
        """
        rank = mated_only(search, search.rank)
        weights = self.weights[search.is_mated].astype(np.float64)
        found = (rank[:, None] <= np.asarray(ranks)).astype(np.float64)
        return _ratio(weights.T @ found, weights.sum(axis=0)[:, None])

    def tpir(self, search: Search, fpirs: Sequence[float]) -> NDArray[np.float64]:
        """TPIR of each replicate: (R, len(fpirs)); NaN where a replicate drew no mated or no other probe.

        Raises:
            InputError: no probe is mated, or none is non-mated.
        """
        check_rates(fpirs, "FPIR")
        identified, nonmated = identification_scores(search)
        order = np.argsort(-nonmated)
        weights = self.weights[~search.is_mated][order]
        rates = weighted_tar(
            nonmated[order],
            lambda part: weights[part],
            weights.sum(axis=0, dtype=np.int64),
            identified,
            self.weights[search.is_mated],
            fpirs,
        )
        everything = _ratio(
            (self.weights[search.is_mated] * np.isfinite(identified)[:, None]).sum(axis=0, dtype=np.int64),
            self.weights[search.is_mated].sum(axis=0, dtype=np.int64),
        )
        return np.where(np.isneginf(rates), everything[:, None], rates)


def interval95(replicates: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile interval of each column of (R, F), replicates without a value left out: low (F,), high (F,).

    For values that are no rates; those have `rate_interval95` and `difference_interval95`.

    Raises:
        InputError: a column has no value, for too few subjects.
    """
    if np.isnan(replicates).all(axis=0).any():
        raise InputError(
            "no draw of subjects had a mated and a non-mated pair: too few subjects for an interval."
        )
    low, high = np.nanpercentile(replicates, [2.5, 97.5], axis=0)
    return low, high


def rate_interval95(
    replicates: NDArray[np.float64], observed: Sequence[float], num_subjects: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`interval95` of rates, which where 0 or 1 was observed reaches at least as far as the exact one.

    Args:
        replicates: (R, F).
        observed: (F,) the rates of all subjects.
        num_subjects: of the comparisons; see `evaluation.metrics.binomial` for why not the
        comparisons.

    Raises:
        InputError: as `interval95`.
    """
    low, high = interval95(replicates)
    rates = np.asarray(observed, np.float64)
    none, everything = exact_interval95(0, num_subjects), exact_interval95(num_subjects, num_subjects)
    high = np.where(rates == 0, np.maximum(high, none[1]), high)
    return np.where(rates == 1, np.minimum(low, everything[0]), low), high


def difference_interval95(
    differences: NDArray[np.float64], num_subjects: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Paired interval of the differences (R, F) of two rates on the same draws.

    Where every draw gives the same difference, the exact upper bound
    of a rate observed as 0 is put on either side.

    Raises:
        InputError: as `interval95`.
    """
    low, high = interval95(differences)
    margin = np.where(low == high, exact_interval95(0, num_subjects)[1], 0)
    return np.maximum(low - margin, -1), np.minimum(high + margin, 1)


def weighted_tar(
    nonmated: Floats,
    weights: Weights,
    total: NDArray[np.int64],
    mated: Floats,
    mated_weights: NDArray[np.unsignedinteger],
    fars: Sequence[float],
) -> NDArray[np.float64]:
    """Strict TAR of R weightings at once: (R, len(fars)).

    -inf where the given non-mated scores do not weigh enough to pass a FAR; NaN where a weighting is empty.

    Args:
        nonmated: (T,) falling, the largest of all.
        weights: of these.
        total: (R,) weight of all non-mated scores.
        mated: (M,) all.
        mated_weights: (M, R).
        fars: each in [0, 1].
    """
    order = np.argsort(-mated)
    falling = mated[order]
    accepted = np.zeros((len(mated) + 1, len(total)), np.int64)
    np.cumsum(mated_weights[order], axis=0, out=accepted[1:])
    sums = _chunk_sums(weights, len(nonmated)).cumsum(axis=0, dtype=np.int64)
    rates = np.full((len(total), len(fars)), -np.inf)
    column = np.arange(len(total))
    for number, far in enumerate(fars):
        # The chunk in which the weight first exceeds the FAR, then the score in it.
        allowed = allowed_counts(total, far)
        exceeds = sums > allowed
        chunk = exceeds.argmax(axis=0)
        for place in np.unique(chunk[exceeds[chunk, column]]):
            mine = np.flatnonzero((chunk == place) & exceeds[chunk, column])
            part = slice(int(place) * _CHUNK, (int(place) + 1) * _CHUNK)
            weight = weights(part)[:, mine].cumsum(axis=0, dtype=np.int64)
            weight += sums[place - 1, mine] if place else 0
            first = (weight > allowed[mine]).argmax(axis=0)
            above = np.searchsorted(-falling, -nonmated[part][first], side="left")
            rates[mine, number] = _ratio(accepted[above, mine], accepted[-1, mine])
    return np.where(((total == 0) | (accepted[-1] == 0))[:, None], np.nan, rates)


def _chunk_sums(weights: Weights, count: int) -> NDArray[np.unsignedinteger]:
    """Sums of the weights of chunk after chunk: (chunks, R)."""
    sums = []
    step = _CHUNK * _CHUNKS_AT_ONCE
    for start in range(0, count, step):
        block = weights(slice(start, min(start + step, count)))
        whole = len(block) // _CHUNK * _CHUNK
        kind = np.uint16 if block.dtype == np.uint8 else np.uint64
        sums.append(block[:whole].reshape(-1, _CHUNK, block.shape[1]).sum(axis=1, dtype=kind))
        if whole < len(block):
            sums.append(block[whole:].sum(axis=0, dtype=kind, keepdims=True))
    return np.concatenate(sums)


def _ratio(part: NDArray[np.integer] | Floats, whole: NDArray[np.integer] | Floats) -> NDArray[np.float64]:
    """Quotient, NaN where `whole` is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(part / whole, np.float64)

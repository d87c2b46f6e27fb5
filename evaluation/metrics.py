"""Figures of face recognition from plain arrays: TAR@FAR, ROC, ten-fold accuracy, CMC, TPIR@FPIR.

The one place where a rate is defined. A score is a similarity and is accepted when it is at or above the
threshold. Knows no templates, files or networks; NumPy alone. Source: METHOD 7 and 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from errors import InputError

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

# A figure that rests on fewer non-mated scores than this deserves a warning.
FEWEST_DECIDING = 10
# Probes of which similarities are looked at together in 1:N: a block stays in the processor's cache.
_BLOCK_PROBES = 512
_SQUARED_DISTANCE_STEPS = 400


def rate_key(rate: float) -> str:
    """A false accept rate as files and tables write it: 1e-4 is '1e-04'."""
    for digits in range(17):
        key = f"{rate:.{digits}e}"
        if float(key) == rate:
            return key
    return repr(rate)


# ------------------------------------------------------------------------------------------------ 1:1


@dataclass(frozen=True)
class TarAtFar:
    """True accept rates at one false accept rate; fractions.

    `strict` is the largest TAR with FAR at most the target. `nearest` is the published rule: scikit-learn's
    `roc_curve`, of its points the one whose FPR is nearest to the target, the largest TPR on ties; its FAR may
    exceed the target. `threshold` and `nonmated_above`, the non-mated scores accepted at it, are of `strict`.
    """

    strict: float
    nearest: float
    threshold: float
    nonmated_above: int


def tar_at_far(scores: Floats, is_mated: NDArray[np.bool_], fars: Sequence[float]) -> dict[str, TarAtFar]:
    """TAR at each FAR, by its `rate_key`; exact on the scores given, ties included.

    Args:
        scores: (n,) finite.
        is_mated: (n,).
        fars: each in [0, 1].

    Raises:
        InputError: shapes differ, a score is not finite, there is no mated or no non-mated pair.
    """
    check_rates(fars, "FAR")
    mated, nonmated = split_scores(scores, is_mated)
    wanted = int(max(fars, default=0.0) * len(nonmated) * 1.25) + 64
    while True:
        # Only the scores at the top matter; how far down the published rule looks depends on the scores.
        at = max(0, len(nonmated) - wanted)
        lowest = np.partition(nonmated, at)[at] if at else -np.inf
        tail = nonmated[nonmated >= lowest], mated[mated >= lowest]
        points = roc_points(*tail, nonmated=len(nonmated), mated=len(mated))
        decided = {rate_key(far): points.decide(far) for far in fars}
        if found := {key: value for key, value in decided.items() if value is not None}:
            if len(found) == len(decided):
                return found
        elif not decided:
            return {}
        wanted *= 4


@dataclass(frozen=True)
class RocPoints:
    """A stretch of the ROC without gaps: one point for each distinct score as threshold, falling.

    `false_accepts` and `true_accepts` (C,) count over all scores; `kept` (C,) says which points scikit-learn's
    `drop_intermediate` keeps. The first point is the one above the stretch: at the start of the ROC it accepts
    nothing; elsewhere it serves as a neighbour and `kept` is False. So it is for the last one, but at the end.
    """

    thresholds: Floats
    false_accepts: NDArray[np.int64]
    true_accepts: NDArray[np.int64]
    kept: NDArray[np.bool_]
    nonmated: int
    mated: int

    def decide(self, far: float) -> TarAtFar | None:
        """The rates at `far`, or None when this stretch does not reach far enough to be sure."""
        fpr = self.false_accepts / self.nonmated
        at_start = self.false_accepts[0] == self.true_accepts[0] == 0
        at_end = self.false_accepts[-1] == self.nonmated and self.true_accepts[-1] == self.mated
        last = int(np.searchsorted(fpr, far, side="right")) - 1
        if last < 0 or (last == 0 and not at_start) or (last == len(fpr) - 1 and not at_end):
            return None
        kept = np.flatnonzero(self.kept)
        beyond = kept[np.searchsorted(fpr[kept], far) :]
        surely_nearest = len(beyond) and (at_end or fpr[-1] > fpr[beyond[0]])
        if not surely_nearest or not (len(kept) and fpr[kept[0]] <= far):
            return None
        distance = np.abs(fpr[kept] - far)
        nearest = kept[len(kept) - 1 - int(np.argmin(distance[::-1]))]
        return TarAtFar(
            strict=float(self.true_accepts[last] / self.mated),
            nearest=float(self.true_accepts[nearest] / self.mated),
            threshold=float(self.thresholds[last]),
            nonmated_above=int(self.false_accepts[last]),
        )


def roc_points(
    nonmated_scores: Floats,
    mated_scores: Floats,
    *,
    nonmated: int,
    mated: int,
    nonmated_above: int = 0,
    mated_above: int = 0,
) -> RocPoints:
    """The points of all scores of a stretch, in any order: of all that lie between two scores.

    Args:
        nonmated_scores: those within the stretch.
        mated_scores: those within the stretch.
        nonmated: number of all.
        mated: number of all.
        nonmated_above: how many lie above the stretch.
        mated_above: how many lie above the stretch.
    """
    scores = np.concatenate([nonmated_scores, mated_scores]).astype(np.float64)
    order = np.argsort(-scores)
    scores = scores[order]
    true = np.cumsum(order >= len(nonmated_scores))
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])
    true_accepts = mated_above + true[last]
    false_accepts = nonmated_above + last + 1 - true[last]
    at_end = nonmated_above + len(nonmated_scores) == nonmated and mated_above + len(mated_scores) == mated
    at_start = nonmated_above == mated_above == 0
    true_accepts = np.concatenate([[mated_above], true_accepts])
    false_accepts = np.concatenate([[nonmated_above], false_accepts])
    kept = np.zeros(len(true_accepts), np.bool_)
    kept[1:-1] = (np.diff(false_accepts, 2) != 0) | (np.diff(true_accepts, 2) != 0)
    kept[-1] = at_end
    if at_start:
        # The point that accepts nothing is added after dropping, so the first score has no neighbour above.
        kept[:2] = True
    nothing = np.nextafter(scores[0], np.inf) if len(scores) else np.inf
    thresholds = np.concatenate([[nothing], scores[last]])
    return RocPoints(thresholds, false_accepts, true_accepts, kept, nonmated, mated)


@dataclass(frozen=True)
class RocCurve:
    """The strict TAR (C,) at rising FARs (C,), for plots, and the exact area under the whole ROC."""

    far: NDArray[np.float64]
    tar: NDArray[np.float64]
    auc: float


def roc_curve(scores: Floats, is_mated: NDArray[np.bool_], *, points: int = 400) -> RocCurve:
    """The ROC at log-spaced FARs from one accepted non-mated score to all, and its area (ties count half).

    Raises:
        InputError: as `tar_at_far`.
    """
    mated, nonmated = split_scores(scores, is_mated)
    return roc_curve_from_counts(*nonmated_at_or_above(mated, nonmated), len(nonmated), points=points)


def roc_curve_from_counts(
    at_or_above: NDArray[np.int64], above: NDArray[np.int64], nonmated: int, *, points: int = 400
) -> RocCurve:
    """The curve from the counts (M,) of non-mated scores at or above, and above, each mated score."""
    counts = np.sort(at_or_above)
    allowed = np.unique(np.geomspace(1, nonmated, points).round().astype(np.int64))
    tar = np.searchsorted(counts, allowed, side="right") / len(counts)
    auc = 1 - float((at_or_above.sum() + above.sum()) / (2 * len(counts) * nonmated))
    return RocCurve(allowed / nonmated, tar, auc)


def nonmated_at_or_above(mated: Floats, nonmated: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each mated score how many non-mated scores are at or above it, and above it: (M,), (M,)."""
    rising = np.sort(nonmated)
    at_or_above = len(rising) - np.searchsorted(rising, mated, side="left")
    return at_or_above, len(rising) - np.searchsorted(rising, mated, side="right")


def split_scores(scores: Floats, is_mated: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Mated and non-mated scores, checked.

    Raises:
        InputError: shapes differ, a score is not finite, there is no mated or no non-mated pair.
    """
    if scores.ndim != 1 or scores.shape != is_mated.shape:
        raise InputError(
            f"scores {scores.shape} and is_mated {is_mated.shape}: expected one of each for every pair."
        )
    check_finite(scores, "score")
    mated, nonmated = scores[is_mated], scores[~is_mated]
    for kind, part in (("mated", mated), ("non-mated", nonmated)):
        if not len(part):
            raise InputError(f"{len(scores)} pairs, none of them {kind}: no rate can be given.")
    return mated, nonmated


def check_finite(values: Floats, name: str) -> None:
    """Raises InputError with the place of the first value that is NaN or infinite."""
    wrong = ~np.isfinite(values)
    if wrong.any():
        where = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise InputError(
            f"{name} {where[0] if len(where) == 1 else where} is {values[where]}; expected a finite number. "
            "A descriptor may be of zero norm or the features broken."
        )


def check_rates(rates: Sequence[float], name: str) -> None:
    """Raises InputError for a rate outside [0, 1]."""
    for rate in rates:
        if not 0 <= rate <= 1:
            raise InputError(f"{name} {rate}: expected a fraction between 0 and 1, as 1e-4.")


@dataclass(frozen=True)
class FoldAccuracy:
    """Mean accuracy over the folds, its standard error (sample deviation / sqrt(folds)), fractions.

    `threshold` is the mean of the folds' best thresholds, a squared distance.
    """

    accuracy: float
    standard_error: float
    threshold: float


def fold_accuracy(squared_distances: Floats, is_mated: NDArray[np.bool_], folds: Integers) -> FoldAccuracy:
    """The LFW protocol: each fold at the threshold that is best on all other folds (the lowest of equals).

    Args:
        squared_distances: (n,) Euclidean, between unit vectors; accepted when below the threshold.
        is_mated: (n,).
        folds: (n,) the fold of each pair, in any numbering.

    Raises:
        InputError: shapes differ, a distance is not finite, or there are fewer than two folds.
    """
    if not squared_distances.shape == is_mated.shape == folds.shape or squared_distances.ndim != 1:
        raise InputError(
            f"distances {squared_distances.shape}, is_mated {is_mated.shape}, folds {folds.shape}: "
            "expected one of each for every pair."
        )
    check_finite(squared_distances, "squared distance")
    names, fold = np.unique(folds, return_inverse=True)
    if len(names) < 2:
        raise InputError(f"{len(names)} fold: a threshold is chosen on the other folds, so two are needed.")
    thresholds = np.arange(_SQUARED_DISTANCE_STEPS) * (4 / _SQUARED_DISTANCE_STEPS)
    # A pair is accepted from the first threshold that exceeds its distance.
    first = np.searchsorted(thresholds, squared_distances, side="right")
    gain = np.zeros((len(names), len(thresholds) + 1), np.int64)
    np.add.at(gain, (fold, first), np.where(is_mated, 1, -1))
    rejected = np.bincount(fold[~is_mated], minlength=len(names))
    right = rejected[:, None] + gain.cumsum(axis=1)[:, :-1]
    best = (right.sum(axis=0) - right).argmax(axis=1)
    accuracies = right[np.arange(len(names)), best] / np.bincount(fold)
    return FoldAccuracy(
        accuracy=float(accuracies.mean()),
        standard_error=float(accuracies.std(ddof=1) / np.sqrt(len(names))),
        threshold=float(thresholds[best].mean()),
    )


# ------------------------------------------------------------------------------------------------ 1:N


@dataclass(frozen=True)
class Search:
    """What the figures need of the search of P probes in one gallery.

    `rank` (P,): 1 + the gallery entries of other subjects at or above the best entry of the probe's own
    subject, so ties count against us; 0 where the gallery lacks the subject (a non-mated probe).
    `own` (P,): score of that best entry, -inf where non-mated. `other` (P,): best score of all other entries.
    """

    rank: NDArray[np.int64]
    own: Floats
    other: Floats

    @property
    def is_mated(self) -> NDArray[np.bool_]:
        """(P,) whether the gallery holds the probe's subject."""
        return self.rank > 0


@dataclass(frozen=True)
class TpirAtFpir:
    """The largest true positive identification rate with FPIR at most the target; a fraction.

    `nonmated_above` is the number of non-mated probes with a candidate at or above `threshold`.
    """

    tpir: float
    threshold: float
    nonmated_above: int


def cmc(
    similarity: Floats, probe_subjects: Integers, gallery_subjects: Integers, ranks: Sequence[int]
) -> dict[str, float]:
    """Share of the mated probes with an entry of their subject among the first so many; ties count against us.

    Args:
        similarity: (P, G).
        probe_subjects: (P,).
        gallery_subjects: (G,); a subject may have several entries.
        ranks: each 1 or more.

    Raises:
        InputError: shapes differ, a similarity is not finite, or no probe is mated.
    """
    return cmc_of(search_similarity(similarity, probe_subjects, gallery_subjects), ranks)


def tpir_at_fpir(
    similarity: Floats, probe_subjects: Integers, gallery_subjects: Integers, fpirs: Sequence[float]
) -> dict[str, TpirAtFpir]:
    """Open-set identification (METHOD 8), by FPIR as '0.01'.

    The threshold comes from the best candidate of each non-mated probe; a mated probe counts when its subject
    is at rank 1 (ties against us) and at or above the threshold. Arguments as `cmc`.

    Raises:
        InputError: as `cmc`, or no probe is non-mated.
    """
    return tpir_at_fpir_of(search_similarity(similarity, probe_subjects, gallery_subjects), fpirs)


def cmc_of(search: Search, ranks: Sequence[int]) -> dict[str, float]:
    """`cmc` of a search that was made before."""
    found = _mated_only(search, search.rank)
    return {str(rank): float(np.mean(found <= rank)) for rank in ranks}


def tpir_at_fpir_of(search: Search, fpirs: Sequence[float]) -> dict[str, TpirAtFpir]:
    """`tpir_at_fpir` of a search that was made before."""
    check_rates(fpirs, "FPIR")
    identified, nonmated = identification_scores(search)
    rates = {}
    for fpir in fpirs:
        # A probe that is not at rank 1 is never accepted, whatever the threshold.
        accepted = identified[np.isfinite(identified)]
        points = roc_points(nonmated, accepted, nonmated=len(nonmated), mated=len(accepted))
        false_accepts = points.false_accepts
        last = int(np.searchsorted(false_accepts / len(nonmated), fpir, side="right")) - 1
        rates[f"{fpir:g}"] = TpirAtFpir(
            tpir=float(points.true_accepts[last] / len(identified)),
            threshold=float(points.thresholds[last]),
            nonmated_above=int(false_accepts[last]),
        )
    return rates


def identification_scores(search: Search) -> tuple[Floats, Floats]:
    """Scores that a threshold decides on: of mated probes (-inf unless at rank 1), best ones of non-mated.

    Raises:
        InputError: no probe is mated, or none is non-mated.
    """
    own, rank = _mated_only(search, search.own), _mated_only(search, search.rank)
    nonmated = search.other[~search.is_mated]
    if not len(nonmated):
        raise InputError(
            "every probe's subject is in the gallery: open-set identification needs probes of other subjects. "
            "With two galleries, search each by itself."
        )
    return np.where(rank == 1, own, -np.inf), nonmated


def search_similarity(similarity: Floats, probe_subjects: Integers, gallery_subjects: Integers) -> Search:
    """Searches every probe in one gallery; arguments and errors as `cmc`, but mated probes may be absent."""
    P, G = len(probe_subjects), len(gallery_subjects)
    if similarity.shape != (P, G) or G == 0:
        raise InputError(f"similarity {similarity.shape}: expected {P} probes x {G} gallery entries.")
    own_columns = columns_of_subjects(probe_subjects, gallery_subjects)
    parts = [
        search_block(
            similarity[start : start + _BLOCK_PROBES].copy(), own_columns[start : start + _BLOCK_PROBES]
        )
        for start in range(0, P, _BLOCK_PROBES)
    ]
    search = Search(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return search


def columns_of_subjects(probe_subjects: Integers, gallery_subjects: Integers) -> NDArray[np.int64]:
    """(P, E) gallery columns of each probe's own subject, -1 where there are fewer than E (1 or more)."""
    order = np.argsort(gallery_subjects, kind="stable")
    rising = gallery_subjects[order]
    start = np.searchsorted(rising, probe_subjects, side="left")
    stop = np.searchsorted(rising, probe_subjects, side="right")
    place = start[:, None] + np.arange(max(1, int((stop - start).max(initial=0))))
    return np.where(place < stop[:, None], order[np.minimum(place, len(order) - 1)], -1)


def search_block(
    similarity: Floats, own_columns: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Rank, own and other of `Search` for similarities (P, G), which are overwritten.

    Raises:
        InputError: a similarity is not finite.
    """
    rows = np.arange(len(similarity))[:, None]
    own_scores = np.where(own_columns >= 0, similarity[rows, own_columns], -np.inf)
    own = own_scores.max(axis=1)
    at = np.nonzero(own_columns >= 0)
    similarity[at[0], own_columns[at]] = -np.inf
    other = similarity.max(axis=1)
    if np.isnan(own).any() or np.isnan(other).any() or np.isposinf(np.maximum(own, other)).any():
        raise InputError(
            "a similarity is not finite. A descriptor may be of zero norm or the features broken."
        )
    is_mated = own_columns[:, 0] >= 0
    rank = np.where(is_mated, 1 + np.count_nonzero(similarity >= own[:, None], axis=1), 0)
    return rank, own, other


def _mated_only(search: Search, values: Any) -> Any:
    mated = values[search.is_mated]
    if not len(mated):
        raise InputError("no probe's subject is in the gallery: check that both use the same subject ids.")
    return mated

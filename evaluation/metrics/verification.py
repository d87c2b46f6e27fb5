"""1:1 verification figures of labelled scores: TAR at a FAR, ROC, ten-fold accuracy.

A score is a similarity and is accepted when it is at or above the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.binomial import folds_interval95
from evaluation.metrics.thresholds import Floats, Integers, allowed_counts, just_above
from runtime.errors import InputError

# Rates that rest on fewer errors (accepted non-mated scores) are reported with a warning.
FEWEST_DECIDING = 10
# The rule of 30 (Doddington et al., 2000; ISO/IEC 19795-1): with 30 independent errors the true rate is
# within 30 % of the observed one with 90 % confidence (1.645 / sqrt(30)); with ten within 52 %.
RULE_OF_30 = 30
_SQUARED_DISTANCE_STEPS = 400


def rate_key(rate: float) -> str:
    """A rate as files and tables write it: 1e-4 is '1e-04'."""
    for digits in range(17):
        key = f"{rate:.{digits}e}"
        if float(key) == rate:
            return key
    return repr(rate)


def few_scores_warnings(rates: dict[str, TarAtFar]) -> list[str]:
    """A sentence for each rate that rests on fewer than `FEWEST_DECIDING` non-mated scores."""
    return [
        f"TAR@FAR {key} rests on {rate.nonmated_above or 'no'} non-mated "
        f"score{'' if rate.nonmated_above == 1 else 's'}, so its variance is high. Report a larger FAR, one "
        f"with {FEWEST_DECIDING} or more (the rule of 30: {RULE_OF_30} or more)."
        for key, rate in rates.items()
        if rate.nonmated_above < FEWEST_DECIDING
    ]


@dataclass(frozen=True)
class TarAtFar:
    """True accept rates at one false accept rate; fractions.

    Attributes:
        strict: the largest TAR with FAR at most the target.
        nearest: the published rule: TPR of the point of scikit-learn's `roc_curve` whose FPR is nearest to
            the target, the largest TPR on ties. Its FAR may exceed the target.
        threshold: of `strict`; as `evaluation.metrics.thresholds`, or the lowest score where all may be
            accepted.
        nonmated_above: number of non-mated scores that `threshold` accepts.
    """

    strict: float
    nearest: float
    threshold: float
    nonmated_above: int


@dataclass(frozen=True)
class RocPoints:
    """A contiguous part of the ROC: one point for each distinct score as threshold, falling.

    The first point lies above the part: at the start of the ROC it accepts nothing, elsewhere it is only a
    neighbour and not `kept`. The last point is not `kept` either unless the ROC ends there.

    Attributes:
        thresholds: (C,).
        false_accepts: (C,) counts over all scores.
        true_accepts: (C,) counts over all scores.
        kept: (C,) whether scikit-learn keeps the point with `drop_intermediate`.
        nonmated: number of all non-mated scores.
        mated: number of all mated scores.
    """

    thresholds: Floats
    false_accepts: NDArray[np.int64]
    true_accepts: NDArray[np.int64]
    kept: NDArray[np.bool_]
    nonmated: int
    mated: int

    def decide(self, far: float) -> TarAtFar | None:
        """The rates at `far`, or None when this part does not reach far enough to be sure."""
        fpr = self.false_accepts / self.nonmated
        at_start = self.false_accepts[0] == self.true_accepts[0] == 0
        at_end = self.false_accepts[-1] == self.nonmated and self.true_accepts[-1] == self.mated
        last = int(np.searchsorted(self.false_accepts, allowed_counts(self.nonmated, far), side="right")) - 1
        if last < 0 or (last == 0 and not at_start) or (last == len(fpr) - 1 and not at_end):
            return None
        if (nearest := self._nearest_true_accepts(fpr, far, bool(at_end))) is None:
            return None
        # The lowest threshold that accepts what the point accepts: the next point is a non-mated score's.
        threshold = max(float(just_above(self.thresholds, last + 1)), float(self.thresholds[-1]))
        return TarAtFar(
            strict=float(self.true_accepts[last] / self.mated),
            nearest=float(nearest / self.mated),
            threshold=threshold,
            nonmated_above=int(self.false_accepts[last]),
        )

    def _nearest_true_accepts(self, fpr: Floats, far: float, at_end: bool) -> int | None:
        """True accepts at the kept point with the nearest FPR; None where it may be a point of another
        part.
        """
        if self.true_accepts[0] == self.mated:
            # Where the last mated score is accepted the ROC turns, so that point is kept.
            return self.mated
        kept = np.flatnonzero(self.kept)
        distance = np.abs(fpr - far)
        place = int(np.searchsorted(fpr[kept], far, side="right"))
        beyond = kept[np.searchsorted(fpr[kept], far) :]
        # A kept point at or beyond the target of which all with the same FPR are known.
        is_closed = len(beyond) > 0 and (at_end or bool(fpr[-1] > fpr[beyond[0]]))
        if place:
            # Points after this part are further away than its last one.
            is_sure = is_closed or distance[-1] > distance[kept[place - 1]]
        else:
            # Points before this part are no nearer than its first one.
            is_sure = is_closed and distance[beyond[0]] < distance[0]
        if not is_sure:
            return None
        nearest = kept[len(kept) - 1 - int(np.argmin(distance[kept][::-1]))]
        return int(self.true_accepts[nearest])


def roc_points(
    nonmated_scores: Floats,
    mated_scores: Floats,
    *,
    nonmated: int,
    mated: int,
    nonmated_above: int = 0,
    mated_above: int = 0,
) -> RocPoints:
    """The ROC points of all scores between two scores, given in any order.

    Args:
        nonmated_scores: those of the part.
        mated_scores: those of the part.
        nonmated: number of all.
        mated: number of all.
        nonmated_above: how many lie above the part.
        mated_above: how many lie above the part.
    """
    scores = np.concatenate([nonmated_scores, mated_scores])
    order = np.argsort(-scores)
    scores = scores[order]
    true = np.cumsum(order >= len(nonmated_scores))
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])
    true_accepts = mated_above + true[last]
    false_accepts = nonmated_above + last + 1 - true[last]
    at_end = nonmated_above + len(nonmated_scores) == nonmated and mated_above + len(mated_scores) == mated
    true_accepts = np.concatenate([[mated_above], true_accepts])
    false_accepts = np.concatenate([[nonmated_above], false_accepts])
    kept = np.zeros(len(true_accepts), np.bool_)
    kept[1:-1] = (np.diff(false_accepts, 2) != 0) | (np.diff(true_accepts, 2) != 0)
    kept[-1] = at_end
    if nonmated_above == mated_above == 0:
        # The point that accepts nothing is added after dropping, so the first score has no neighbour above.
        kept[:2] = True
    nothing = np.nextafter(scores[:1], scores.dtype.type(np.inf)) if len(scores) else [np.inf]
    thresholds = np.concatenate([nothing, scores[last]], dtype=scores.dtype)
    return RocPoints(thresholds, false_accepts, true_accepts, kept, nonmated, mated)


def tar_at_far(scores: Floats, is_mated: NDArray[np.bool_], fars: Sequence[float]) -> dict[str, TarAtFar]:
    """TAR at each FAR, by its `rate_key`; exact for the given scores, ties included.

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
        # Only the highest scores matter; how far down the published rule looks depends on the scores.
        at = max(0, len(nonmated) - wanted)
        lowest = np.partition(nonmated, at)[at] if at else -np.inf
        tail = nonmated[nonmated >= lowest], mated[mated >= lowest]
        points = roc_points(*tail, nonmated=len(nonmated), mated=len(mated))
        decided = {rate_key(far): points.decide(far) for far in fars}
        found = {key: value for key, value in decided.items() if value is not None}
        if len(found) == len(decided):
            return found
        wanted *= 4


@dataclass(frozen=True)
class RocCurve:
    """The strict TAR (C,) at rising FARs (C,), for plots, and the exact area under the whole ROC."""

    far: NDArray[np.float64]
    tar: NDArray[np.float64]
    auc: float


def roc_curve(scores: Floats, is_mated: NDArray[np.bool_], *, points: int = 400) -> RocCurve:
    """The ROC at log-spaced FARs, from one accepted non-mated score to all, and its area (ties count half).

    Raises:
        InputError: as `tar_at_far`.
    """
    mated, nonmated = split_scores(scores, is_mated)
    return roc_curve_of_sorted(np.sort(mated), np.sort(nonmated), points=points)


def roc_curve_of_sorted(mated: Floats, nonmated: Floats, *, points: int = 400) -> RocCurve:
    """`roc_curve` of rising scores (M,), (N,)."""
    # Non-mated scores at or above, and above, each mated score: falling.
    at_or_above, above = (len(nonmated) - np.searchsorted(nonmated, mated, s) for s in ("left", "right"))
    allowed = np.unique(np.geomspace(1, len(nonmated), points).round().astype(np.int64))
    tar = np.searchsorted(at_or_above[::-1], allowed, side="right") / len(mated)
    auc = 1 - float((at_or_above.sum() + above.sum()) / (2 * len(mated) * len(nonmated)))
    return RocCurve(allowed / len(nonmated), tar, auc)


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
    """Raise InputError with the place of the first value that is NaN or infinite."""
    wrong = ~np.isfinite(values)
    if wrong.any():
        where = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise InputError(
            f"{name} {where[0] if len(where) == 1 else where} is {values[where]}; expected a finite number. "
            "A descriptor may be of zero norm or the features broken."
        )


def check_rates(rates: Sequence[float], name: str) -> None:
    """Raise InputError for a rate outside [0, 1]."""
    for rate in rates:
        if not 0 <= rate <= 1:
            raise InputError(f"{name} {rate}: expected a fraction between 0 and 1, as 1e-4.")


@dataclass(frozen=True)
class FoldAccuracy:
    """Mean accuracy over the folds and its standard error (sample deviation / sqrt(folds)); fractions.

    `threshold` is the mean of the folds' best thresholds, a squared distance; `interval95` is
    `evaluation.metrics.binomial.folds_interval95`.
    """

    accuracy: float
    standard_error: float
    threshold: float
    interval95: tuple[float, float]


def fold_accuracy(squared_distances: Floats, is_mated: NDArray[np.bool_], folds: Integers) -> FoldAccuracy:
    """The LFW protocol: each fold at the threshold that is best on all other folds (the lowest on ties).

    Args:
        squared_distances: (n,) Euclidean, between unit vectors; accepted when below the threshold.
        is_mated: (n,).
        folds: (n,) the fold of each pair, with any numbering.

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
    chosen = right[np.arange(len(names)), best]
    accuracies = chosen / np.bincount(fold)
    return FoldAccuracy(
        accuracy=float(accuracies.mean()),
        standard_error=float(accuracies.std(ddof=1) / np.sqrt(len(names))),
        threshold=float(thresholds[best].mean()),
        interval95=folds_interval95(accuracies, int(chosen.sum()), len(fold)),
    )

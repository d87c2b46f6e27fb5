"""Figures of face recognition from plain arrays: TAR@FAR, ROC, ten-fold accuracy, CMC, TPIR@FPIR.

The one place where a rate is defined. A score is a similarity and is accepted when it is at or above the
threshold. Knows no templates, files or networks; NumPy and SciPy alone. Source: METHOD 7 and 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.binomial import folds_interval95
from evaluation.metrics.identification import Floats, Integers, Search, search_similarity
from evaluation.metrics.roc import (
    RocCurve,
    TarAtFar,
    check_finite,
    check_rates,
    roc_curve,
    roc_points,
    split_scores,
)
from evaluation.metrics.thresholds import threshold_at
from runtime.errors import InputError

__all__ = [
    "FEWEST_DECIDING",
    "RULE_OF_30",
    "FoldAccuracy",
    "RocCurve",
    "Search",
    "TarAtFar",
    "TpirAtFpir",
    "cmc",
    "cmc_of",
    "fold_accuracy",
    "identification_scores",
    "mated_only",
    "rate_key",
    "roc_curve",
    "tar_at_far",
    "threshold_at",
    "tpir_at_fpir",
    "tpir_at_fpir_of",
    "tpir_curve",
]

_Number = TypeVar("_Number", bound=np.generic)

# A figure that rests on fewer errors (non-mated scores accepted) than this deserves a warning.
FEWEST_DECIDING = 10
# The rule of 30 (Doddington et al., 2000; ISO/IEC 19795-1): with so many independent errors the true rate is
# within 30 % of the observed one with 90 % confidence (1.645 / sqrt(30)); with ten within 52 %.
RULE_OF_30 = 30
_SQUARED_DISTANCE_STEPS = 400


def rate_key(rate: float) -> str:
    """A false accept rate as files and tables write it: 1e-4 is '1e-04'."""
    for digits in range(17):
        key = f"{rate:.{digits}e}"
        if float(key) == rate:
            return key
    return repr(rate)


# ------------------------------------------------------------------------------------------------ 1:1


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
        found = {key: value for key, value in decided.items() if value is not None}
        if len(found) == len(decided):
            return found
        wanted *= 4


@dataclass(frozen=True)
class FoldAccuracy:
    """Mean accuracy over the folds, its standard error (sample deviation / sqrt(folds)), fractions.

    `threshold` is the mean of the folds' best thresholds, a squared distance; `interval95` is that of
    `evaluation.metrics.binomial.folds_interval95`.
    """

    accuracy: float
    standard_error: float
    threshold: float
    interval95: tuple[float, float]


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
    chosen = right[np.arange(len(names)), best]
    accuracies = chosen / np.bincount(fold)
    return FoldAccuracy(
        accuracy=float(accuracies.mean()),
        standard_error=float(accuracies.std(ddof=1) / np.sqrt(len(names))),
        threshold=float(thresholds[best].mean()),
        interval95=folds_interval95(accuracies, int(chosen.sum()), len(fold)),
    )


# ------------------------------------------------------------------------------------------------ 1:N


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
    """Share of mated probes with an entry of their subject among the first so many; ties count against us.

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
    found = mated_only(search, search.rank)
    return {str(rank): float(np.mean(found <= rank)) for rank in ranks}


def tpir_at_fpir_of(search: Search, fpirs: Sequence[float]) -> dict[str, TpirAtFpir]:
    """`tpir_at_fpir` of a search that was made before."""
    check_rates(fpirs, "FPIR")
    identified, nonmated = identification_scores(search)
    # A probe that is not at rank 1 is never accepted, whatever the threshold.
    accepted = identified[np.isfinite(identified)]
    lowest = float(min(nonmated.min(), accepted.min(initial=np.inf)))
    rates = {}
    for fpir in fpirs:
        threshold = max(threshold_at(nonmated, fpir), lowest)
        rates[f"{fpir:g}"] = TpirAtFpir(
            tpir=float(np.count_nonzero(accepted >= threshold) / len(identified)),
            threshold=threshold,
            nonmated_above=int(np.count_nonzero(nonmated >= threshold)),
        )
    return rates


def tpir_curve(search: Search, *, points: int = 200) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """TPIR (C,) at log-spaced FPIRs (C,) from one accepted non-mated probe to all, for plots.

    Raises:
        InputError: as `tpir_at_fpir`.
    """
    nonmated = int(np.count_nonzero(~search.is_mated))
    allowed = np.unique(np.geomspace(1, max(1, nonmated), points).round())
    fpirs = allowed / max(1, nonmated)
    identified, scores = identification_scores(search)
    rising = np.sort(scores)
    above = len(rising) - np.searchsorted(rising, identified, side="left")
    above = np.sort(np.where(np.isfinite(identified), above, len(rising) + 1))
    return fpirs, np.searchsorted(above, allowed, side="right") / len(identified)


def identification_scores(search: Search) -> tuple[Floats, Floats]:
    """Scores that a threshold decides on: of mated probes (-inf unless at rank 1), best ones of non-mated.

    Raises:
        InputError: no probe is mated, or none is non-mated.
    """
    own, rank = mated_only(search, search.own), mated_only(search, search.rank)
    nonmated = search.other[~search.is_mated]
    if not len(nonmated):
        raise InputError(
            "every probe's subject is in the gallery: open-set identification needs probes of other "
            "subjects. With two galleries, search each by itself."
        )
    return np.where(rank == 1, own, -np.inf), nonmated


def mated_only(search: Search, values: NDArray[_Number]) -> NDArray[_Number]:
    """Those of the values (P,) that are of mated probes; InputError when there is none."""
    mated = values[search.is_mated]
    if not len(mated):
        raise InputError("no probe's subject is in the gallery: check that both use the same subject ids.")
    return mated

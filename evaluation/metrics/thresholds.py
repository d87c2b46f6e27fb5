"""The threshold for a false match rate.

One rule for point estimates, intervals, verification, calibration, open-set search and subgroups: the largest
observed rate that does not exceed the target. A score is accepted when it is at or above the threshold, so
the threshold lies just above the highest non-mated score that has to be rejected. Published rates at
scikit-learn's nearest ROC point follow another rule: see `evaluation.metrics.verification.TarAtFar.nearest`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


def threshold_at(nonmated: Floats, rate: float, weights: Integers | None = None) -> float:
    """The lowest threshold at which the accepted share of the non-mated scores is at most `rate`.

    Args:
        nonmated: (n,) finite scores, in any order.
        rate: in [0, 1].
        weights: (n,) how often each counts, as in a bootstrap; not all 0.

    Returns:
        The next number of the scores' dtype above the highest score to be rejected, ties included; -inf if
        none is.
    """
    order = np.argsort(-nonmated, kind="stable")
    levels, ends = score_levels(nonmated[order])
    counts = np.arange(1, len(order) + 1) if weights is None else weights[order].cumsum(dtype=np.int64)
    return float(thresholds_of_levels(levels, counts[ends - 1], [rate])[0])


def score_levels(falling: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """The distinct scores (L,) of descending scores (n,), and how many are at or above each (L,)."""
    last = np.append(falling[1:] != falling[:-1], True)[: len(falling)]
    return falling[last], np.flatnonzero(last) + 1


def thresholds_of_levels(
    levels: Floats, accepted: Integers, rates: Sequence[float], total: int | None = None
) -> NDArray[np.float64]:
    """`threshold_at` for several rates (F,).

    Args:
        levels: (L,) distinct scores, descending.
        accepted: (L,) total weight of the scores at or above each.
        rates: each in [0, 1].
        total: weight of all scores if `levels` holds only the highest; None: the last of `accepted`. If the
            weight of the highest does not exceed a rate, its threshold is -inf.
    """
    whole = accepted[-1] if total is None else total
    # Quotients, since 7 / 100 equals the literal 0.07, and 0.07 * 100 is not 7.
    rejected = np.searchsorted(accepted / whole, np.asarray(rates, np.float64), side="right")
    above = np.append(np.nextafter(levels, levels.dtype.type(np.inf)).astype(np.float64), -np.inf)
    return np.asarray(above[rejected])


def accepted_counts(rising: Floats, rates: Sequence[float]) -> NDArray[np.int64]:
    """(F,) how many of n ascending scores the threshold for each rate accepts."""
    count, wanted = len(rising), np.asarray(rates, np.float64)
    most = np.floor(wanted * count).astype(np.int64).clip(0, count)
    # By quotients, as above.
    most += (most < count) & ((most + 1) / count <= wanted)
    most -= most / count > wanted
    # What ties with the first rejected score is rejected.
    rejected = rising[np.maximum(count - 1 - most, 0)]
    return np.where(most == count, count, count - np.searchsorted(rising, rejected, side="right"))


def thresholds_of_counts(rising: Floats, accepted: Integers) -> NDArray[np.float64]:
    """(F,) lowest thresholds that accept the given numbers (F,) of ascending scores (n,); -inf for all."""
    rejected = rising[np.maximum(len(rising) - 1 - accepted, 0)].astype(np.float64)
    return np.where(accepted == len(rising), -np.inf, np.nextafter(rejected, np.inf))


def at_or_above(scores: Floats, threshold: float) -> NDArray[np.bool_]:
    """Mask of the scores that a threshold accepts, compared as float64 whatever their dtype."""
    lowest = scores.dtype.type(threshold)
    if float(lowest) < threshold:
        lowest = np.nextafter(lowest, scores.dtype.type(np.inf))
    return np.asarray(scores >= lowest)

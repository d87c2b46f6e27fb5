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
    counts = np.arange(1, len(order) + 1) if weights is None else weights[order].cumsum(dtype=np.int64)
    return float(thresholds_of_falling(nonmated[order], counts, [rate])[0])


def allowed_counts(total: int | Integers, rates: float | Sequence[float]) -> NDArray[np.int64]:
    """The largest counts whose share of `total` is at most `rates`; shapes broadcast."""
    whole, wanted = np.asarray(total, np.int64), np.asarray(rates, np.float64)
    counts = np.floor(wanted * whole).astype(np.int64).clip(0, whole)
    # By quotients, since 7 / 100 equals the literal 0.07, and 0.07 * 100 is not 7.
    divisor = np.maximum(whole, 1)
    counts += (counts < whole) & ((counts + 1) / divisor <= wanted)
    counts -= counts / divisor > wanted
    return np.asarray(counts)


def thresholds_of_falling(
    falling: Floats, accepted: Integers, rates: Sequence[float], total: int | None = None
) -> NDArray[np.float64]:
    """`threshold_at` for several rates (F,).

    Args:
        falling: (n,) scores, descending.
        accepted: (n,) total weight of the scores up to and including each.
        rates: each in [0, 1].
        total: weight of all scores if `falling` holds only the highest; None: the last of `accepted`. If the
            weight of the highest does not exceed a rate, its threshold is -inf.
    """
    allowed = allowed_counts(accepted[-1] if total is None else total, rates)
    return just_above(falling, np.searchsorted(accepted, allowed, side="right"))


def accepted_counts(rising: Floats, rates: Sequence[float]) -> NDArray[np.int64]:
    """(F,) how many of n ascending scores the threshold for each rate accepts."""
    count, allowed = len(rising), allowed_counts(len(rising), rates)
    # What ties with the first rejected score is rejected.
    rejected = rising[np.maximum(count - 1 - allowed, 0)]
    return np.where(allowed == count, count, count - np.searchsorted(rising, rejected, side="right"))


def thresholds_of_counts(rising: Floats, accepted: Integers) -> NDArray[np.float64]:
    """(F,) lowest thresholds that accept the given numbers (F,) of ascending scores (n,); -inf for all."""
    return just_above(rising[::-1], accepted, np.float64)


def just_above(
    falling: Floats, places: Integers | int, kind: type[np.floating[Any]] | None = None
) -> NDArray[np.float64]:
    """(F,) the next number of a dtype above the scores at `places`; -inf for a place after the last score."""
    rejected = falling[np.minimum(places, len(falling) - 1)].astype(kind or falling.dtype)
    above = np.nextafter(rejected, rejected.dtype.type(np.inf)).astype(np.float64)
    return np.where(places == len(falling), -np.inf, above)


def at_or_above(scores: Floats, threshold: float) -> NDArray[np.bool_]:
    """Mask of the scores that a threshold accepts, compared as float64 whatever their dtype."""
    lowest = scores.dtype.type(threshold)
    if float(lowest) < threshold:
        lowest = np.nextafter(lowest, scores.dtype.type(np.inf))
    return np.asarray(scores >= lowest)

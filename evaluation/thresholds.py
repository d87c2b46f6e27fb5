"""The threshold for a false match rate. NumPy alone.

One rule for point estimates, intervals, verification, calibration, open-set search and subgroups: the largest
rate that is not above the target. A score is accepted when it is at or above the threshold, so the threshold
is just above the highest non-mated score that has to be rejected: the lowest one that keeps the target. It
depends on non-mated scores alone. Of the rates that papers publish, those of scikit-learn's nearest ROC point
follow another rule; they stand beside it as `evaluation.roc.TarAtFar.nearest`.
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
        The next number of the scores' dtype above the highest score that is to be rejected, ties included;
        -inf where none is.
    """
    order = np.argsort(-nonmated, kind="stable")
    levels, ends = score_levels(nonmated[order])
    counts = np.arange(1, len(order) + 1) if weights is None else weights[order].cumsum(dtype=np.int64)
    return float(thresholds_of_levels(levels, counts[ends - 1], [rate])[0])


def score_levels(falling: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """The distinct scores (L,), falling, and how many of all (n,) are at or above each (L,)."""
    last = np.append(falling[1:] != falling[:-1], True)[: len(falling)]
    return falling[last], np.flatnonzero(last) + 1


def thresholds_of_levels(levels: Floats, accepted: Integers, rates: Sequence[float]) -> NDArray[np.float64]:
    """`threshold_at` for several rates (F,).

    Args:
        levels: (L,) distinct scores, falling.
        accepted: (L,) weight of what is at or above each; the last is the total, above 0.
        rates: each in [0, 1].
    """
    # Quotients, since 7 / 100 equals the literal 0.07, and 0.07 * 100 is not 7.
    rejected = np.searchsorted(accepted / accepted[-1], np.asarray(rates, np.float64), side="right")
    above = np.append(np.nextafter(levels, levels.dtype.type(np.inf)).astype(np.float64), -np.inf)
    return np.asarray(above[rejected])

"""Exact intervals of rates from counts, where a bootstrap says nothing.

A bootstrap repeats what was observed: a rate of 0 stays 0 in every draw, however few people it was observed
on. These intervals hold for independent trials. Comparisons of one person depend on each other, so the number
of trials is that of people, unless a function says otherwise: with fully dependent comparisons that is exact,
with independent ones it is too wide, never too narrow.
"""

from __future__ import annotations

import numpy as np
from scipy.special import betaincinv, stdtrit

Interval = tuple[float, float]

_OUTSIDE = 0.05


def exact_interval95(count: float, trials: float) -> Interval:
    """Clopper-Pearson interval of a rate; at 0 or all, the 5 % lie on the open side.

    That one-sided form is the exact one of the rule of 3 (ISO/IEC 19795-1): 3 / trials is its limit.

    Args:
        count: of the trials, 0 to `trials`; a fraction where trials are weighted.
        trials: above 0.
    """
    if count <= 0:
        return 0.0, float(1 - _OUTSIDE ** (1 / trials))
    if count >= trials:
        return float(_OUTSIDE ** (1 / trials)), 1.0
    low = betaincinv(count, trials - count + 1, _OUTSIDE / 2)
    high = betaincinv(count + 1, trials - count, 1 - _OUTSIDE / 2)
    return float(low), float(high)


def threshold_rate_interval95(accepted: float, trials: float) -> Interval:
    """Interval of the true rate at a threshold just above the score that comes after `accepted` of `trials`.

    Not Clopper-Pearson, which is for a threshold that was fixed beforehand: the true rate above the next
    score of independent trials has the distribution Beta(accepted + 1, trials - accepted), whatever that of
    the scores (Wilks, 1941).

    Args:
        accepted: below `trials`; a fraction where trials are weighted.
        trials: all.
    """
    low, high = betaincinv(accepted + 1, trials - accepted, [_OUTSIDE / 2, 1 - _OUTSIDE / 2])
    return (float(low) if accepted else 0.0), float(high)


def folds_interval95(accuracies: np.ndarray, right: int, pairs: int) -> Interval:
    """Interval of an accuracy from its folds: Student's t over them; the exact one where all are equal.

    Args:
        accuracies: (F,) of the folds.
        right: pairs that were decided rightly.
        pairs: all. They count as independent, as pair sets do not name their people.
    """
    error = float(accuracies.std(ddof=1) / np.sqrt(len(accuracies)))
    if error == 0:
        return exact_interval95(right, pairs)
    mean, half = float(accuracies.mean()), float(stdtrit(len(accuracies) - 1, 1 - _OUTSIDE / 2)) * error
    return max(0.0, mean - half), min(1.0, mean + half)

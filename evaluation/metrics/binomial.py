"""Exact confidence intervals of rates from counts, where a bootstrap fails.

In a bootstrap, an observed rate of 0 stays 0 in every draw, however few subjects were observed. These
intervals hold for independent trials. Comparisons of one subject depend on each other, so trials are subjects
unless a function says otherwise: exact for fully dependent comparisons, too wide for independent ones.
"""

from __future__ import annotations

import numpy as np

Interval = tuple[float, float]

_OUTSIDE = 0.05


def exact_interval95(count: float, trials: float) -> Interval:
    """Clopper-Pearson interval of a rate, one-sided for a count of 0 or of all trials.

    The one-sided form is the exact version of the rule of 3 (ISO/IEC 19795-1), whose limit is 3 / trials.

    Args:
        count: successes, 0 to `trials`; a fraction if trials are weighted.
        trials: above 0.
    """
    if count <= 0:
        return 0.0, float(1 - _OUTSIDE ** (1 / trials))
    if count >= trials:
        return float(_OUTSIDE ** (1 / trials)), 1.0
    from scipy.special import betaincinv

    low = betaincinv(count, trials - count + 1, _OUTSIDE / 2)
    high = betaincinv(count + 1, trials - count, 1 - _OUTSIDE / 2)
    return float(low), float(high)


def threshold_rate_interval95(accepted: float, trials: float) -> Interval:
    """Interval of the true rate at a threshold just above the highest rejected of `trials` scores.

    Clopper-Pearson holds for a threshold fixed beforehand. Here the threshold is an order statistic: the true
    rate above it is Beta(accepted + 1, trials - accepted) distributed, whatever the distribution of the
    scores (Wilks, 1941).

    Args:
        accepted: scores above the threshold, fewer than `trials`; a fraction if trials are weighted.
        trials: number of scores.
    """
    from scipy.special import betaincinv

    low, high = betaincinv(accepted + 1, trials - accepted, [_OUTSIDE / 2, 1 - _OUTSIDE / 2])
    return (float(low) if accepted else 0.0), float(high)


def folds_interval95(accuracies: np.ndarray, right: int, pairs: int) -> Interval:
    """Interval of an accuracy: Student's t over its folds, or the exact one if all folds are equal.

    Args:
        accuracies: (F,) of the folds.
        right: pairs decided correctly.
        pairs: all pairs, taken as independent, since pair sets do not name their subjects.
    """
    error = float(accuracies.std(ddof=1) / np.sqrt(len(accuracies)))
    if error == 0:
        return exact_interval95(right, pairs)
    from scipy.special import stdtrit

    mean, half = float(accuracies.mean()), float(stdtrit(len(accuracies) - 1, 1 - _OUTSIDE / 2)) * error
    return max(0.0, mean - half), min(1.0, mean + half)

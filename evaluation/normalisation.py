"""Adaptive score normalisation with a cohort, and what it gains or loses. Arrays in, figures out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from errors import InputError
from evaluation.calibration import ScoredPairs, threshold_at
from evaluation.identification import Floats
from evaluation.intervals import PairBootstrap, interval95
from evaluation.metrics import rate_key

# Of a cohort; the deviation of fewer scores is noise.
FEWEST_IN_COHORT = 20
# The nearest of the cohort that a score is compared with, at most half of it.
TOP = 100


@dataclass(frozen=True)
class Gain:
    """False non-match rates of the same pairs at one rate: with plain and with normalised scores.

    `difference95`: of the second minus the first, on the same draws of subjects; below 0 is a gain.
    """

    before: float
    after: float
    difference95: tuple[float, float]


def cohort_statistics(scores: Floats, top: int) -> tuple[Floats, Floats]:
    """Mean and standard deviation, (N,) each, of the `top` highest scores of each row.

    Args:
        scores: (N, C) of N descriptors with C of a cohort: people who are none of them.
        top: at most C.
    """
    highest = np.partition(np.asarray(scores, np.float64), -top, axis=1)[:, -top:]
    # Copies of one descriptor deviate in nothing.
    return highest.mean(axis=1), np.maximum(highest.std(axis=1), 1e-6)


def adaptive_snorm(
    scores: Floats, first: tuple[Floats, Floats], second: tuple[Floats, Floats]
) -> NDArray[np.float64]:
    """How far scores stand out of those with the nearest of a cohort, symmetric (Matejka et al., 2017).

    Half the sum of (score - mean) / deviation by the cohort statistics of either side.

    Args:
        scores: any shape.
        first: mean and deviation from `cohort_statistics` of one side, broadcast to `scores`.
        second: of the other.
    """
    wide = np.asarray(scores, np.float64)
    return np.asarray(((wide - first[0]) / first[1] + (wide - second[0]) / second[1]) / 2)


def gains(
    pairs: ScoredPairs, normalised: Floats, rates: Sequence[float], *, replicates: int = 200, seed: int = 0
) -> dict[str, Gain]:
    """What normalised scores (n,) of the same pairs gain, by `rate_key`; one threshold for all sizes.

    Raises:
        InputError: no mated pair.
    """
    mated = pairs.is_mated
    if not mated.any():
        raise InputError("no pair of sets of one person: no false non-match rate can be measured.")
    bootstrap = PairBootstrap(pairs.first, pairs.second, mated, replicates=replicates, seed=seed)
    low, high = interval95(bootstrap.tar(pairs.scores, rates) - bootstrap.tar(normalised, rates))
    found = {}
    for place, rate in enumerate(rates):
        before, after = (
            float((scores[mated] < threshold_at(scores[~mated], rate)).mean())
            for scores in (pairs.scores, normalised)
        )
        found[rate_key(rate)] = Gain(before, after, (float(low[place]), float(high[place])))
    return found

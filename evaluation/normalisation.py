"""Scores that know how near a descriptor is to strangers, by a cohort of them, and what is gained or lost.

Adaptive normalisation of scores, and lengths of descriptors, whose plain inner products are then the scores.
Arrays in, figures out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from errors import InputError
from evaluation.calibration import ScoredPairs
from evaluation.identification import Floats
from evaluation.intervals import PairBootstrap, difference_interval95
from evaluation.metrics import rate_key, threshold_at

# Of a cohort; the deviation of fewer scores is noise.
FEWEST_IN_COHORT = 20
# The nearest of the cohort that a score is compared with, at most half of it.
TOP = 100
# Of the mean cosine to the nearest: a descriptor that is far from all people must not count without limit.
_LEAST_NEARNESS = 0.01
_ROWS_AT_ONCE = 4_096


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


def cohort_lengths(descriptors: Floats, cohort: Floats, top: int = TOP) -> NDArray[np.float32]:
    """Lengths (M,) to give to descriptors by how near each is to strangers: nearness to the power -1/2.

    Nearness is the mean of the `top` highest cosines to the cohort. An inner product of descriptors of these
    lengths is their cosine over the geometric mean of both nearnesses (local scaling, as Zelnik-Manor and
    Perona, 2004, have it for distances). What a poor set has in common with many strangers, blur and
    darkness, lifts its scores with all of them; this takes it back, so that scores of all sets can share a
    threshold.

    Args:
        descriptors: (M, D) unit rows.
        cohort: (C, D) unit rows of people who are none of them.
        top: at most half of the cohort is taken.

    Raises:
        InputError: fewer than `FEWEST_IN_COHORT` in the cohort, or descriptors of another size.
    """
    if cohort.shape[0] < FEWEST_IN_COHORT or cohort.shape[1:] != descriptors.shape[1:]:
        raise InputError(
            f"cohort {cohort.shape}: expected {FEWEST_IN_COHORT} or more descriptors of "
            f"{descriptors.shape[1]} values."
        )
    top = min(top, len(cohort) // 2)
    lengths = np.empty(len(descriptors), np.float32)
    for start in range(0, len(descriptors), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        nearness, _ = cohort_statistics(descriptors[rows] @ cohort.T, top)
        lengths[rows] = np.maximum(nearness, _LEAST_NEARNESS) ** -0.5
    return lengths


def compared(descriptors: Floats, cohort: Floats | None) -> Floats:
    """Descriptors (M, D) or (M, P, D) at their `cohort_lengths`, as inner products compare them; without a
    cohort as they are.
    """
    if cohort is None:
        return descriptors
    rows = descriptors.reshape(-1, descriptors.shape[-1])
    return (rows * cohort_lengths(rows, cohort)[:, None]).reshape(descriptors.shape)


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
    low, high = difference_interval95(
        bootstrap.tar(pairs.scores, rates) - bootstrap.tar(normalised, rates), bootstrap.mated_people
    )
    found = {}
    for place, rate in enumerate(rates):
        before, after = (
            float((scores[mated] < threshold_at(scores[~mated], rate)).mean())
            for scores in (pairs.scores, normalised)
        )
        found[rate_key(rate)] = Gain(before, after, (float(low[place]), float(high[place])))
    return found

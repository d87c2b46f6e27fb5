"""Score normalisation with a cohort, by two methods, and what is gained or lost by it.

Blur and darkness raise the scores of a set with all other sets. A cohort of other subjects measures that, so
that all sets can share a threshold. Evaluation, calibration,
inference and benchmarks all normalise here. Arrays in, figures out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.bootstrap import difference_interval95, draw_subjects
from evaluation.metrics.set_pairs import SetPairs, bootstrap_fnmr, bootstrap_thresholds
from evaluation.metrics.thresholds import Floats, accepted_counts, at_or_above, thresholds_of_counts
from evaluation.metrics.verification import rate_key
from runtime.errors import InputError

LOCAL_SCALING, AS_NORM = "local_scaling", "as_norm"
METHODS = (LOCAL_SCALING, AS_NORM)
# Of every command.
DEFAULT_METHOD = LOCAL_SCALING
METHODS_HELP = (
    f"{LOCAL_SCALING}: the cosine over the geometric mean of the mean cosines of both sets to their nearest "
    "cohort members; "
    f"{AS_NORM}: adaptive symmetric score normalisation (AS-norm)"
)
NEEDS_COHORT = "--score_normalisation has no effect without --cohort. Remove it, or add --cohort."
# Of a cohort; the deviation of fewer scores is noise.
MIN_COHORT = 20
# The nearest of the cohort that a score is compared with, at most half of it.
TOP = 100
# Of the mean cosine to the nearest: bounds the scale of a descriptor that is far from all others.
_LEAST_NEARNESS = 0.01
# Copies of one descriptor deviate in nothing.
_LEAST_DEVIATION = 1e-6
_ROWS_AT_ONCE = 4_096


@dataclass(frozen=True)
class Gain:
    """False non-match rates of the same pairs at one rate: with plain and with normalised scores.

    `difference95`: of the second minus the first, on the same draws of subjects; below 0 is a gain.
    """

    before: float
    after: float
    difference95: tuple[float, float]


@dataclass(frozen=True, eq=False)
class ScoreNormalisation:
    """A method and the cohort that it compares with.

    With m and d the mean and standard deviation of a descriptor's `top` highest cosines to the cohort, the
    score of x and y is

    - local_scaling: cos(x, y) / sqrt(m_x m_y), as Zelnik-Manor and Perona (2004) scale distances by those to
      near points; m is at least 0.01.
    - as_norm: the mean of (cos(x, y) - m_x) / d_x and (cos(x, y) - m_y) / d_y, the adaptive symmetric score
      normalisation of speaker recognition (Matejka et al., 2017).

    Attributes:
        method: of `METHODS`.
        cohort: (C, D) unit rows of subjects who are not among those compared.
        top: of the cohort, the nearest ones that count.
    """

    method: str
    cohort: Floats
    top: int

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"score normalisation {self.method!r}: expected one of {', '.join(METHODS)}.")

    @classmethod
    def with_cohort(cls, method: str, cohort: Floats, top: int = TOP) -> ScoreNormalisation:
        """With the `top` nearest, at most half of the cohort.

        Raises:
            InputError: fewer than `MIN_COHORT` in the cohort, or no such method.
        """
        if cohort.ndim != 2 or len(cohort) < MIN_COHORT:
            raise InputError(f"cohort {cohort.shape}: expected {MIN_COHORT} or more descriptors.")
        return cls(method, cohort, min(top, len(cohort) // 2))

    def sides(self, descriptors: Floats) -> tuple[Floats, Floats]:
        """Vectors whose inner products are the scores, so that whatever compares descriptors compares these.

        Args:
            descriptors: (M, D), or (M, P, D) of templates of up to P identities; unit rows.

        Returns:
            The vectors of the first descriptor of a comparison and of the second, (M, E) or (M, P, E), of
            the dtype of `descriptors`; the score of the i-th with the k-th is `first[i] @ second[k]`.

        Raises:
            InputError: descriptors of another size than the cohort's.
        """
        rows = descriptors.reshape(-1, descriptors.shape[-1])
        mean, deviation = (column[:, None] for column in self.statistics(rows))
        if self.method == LOCAL_SCALING:
            first = second = rows / np.sqrt(np.maximum(mean, _LEAST_NEARNESS))
        else:
            ones, offset = np.ones_like(mean), -mean / (2 * deviation)
            first = np.concatenate([rows / (2 * deviation), rows / 2, offset, ones], axis=1)
            second = np.concatenate([rows, rows / deviation, ones, offset], axis=1)
        shape, kind = descriptors.shape[:-1], descriptors.dtype
        return first.astype(kind).reshape(*shape, -1), second.astype(kind).reshape(*shape, -1)

    def statistics(self, rows: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation (M,) of the `top` highest cosines of rows (M, D) to the cohort.

        Raises:
            InputError: as `sides`.
        """
        if rows.shape[1:] != self.cohort.shape[1:]:
            raise InputError(
                f"cohort {self.cohort.shape}: expected descriptors of {rows.shape[1]} values, as those that "
                "are compared."
            )
        mean, deviation = np.empty((2, len(rows)))
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            cosines = np.asarray(rows[part] @ self.cohort.T, np.float64)
            nearest = np.partition(cosines, -self.top, axis=1)[:, -self.top :]
            mean[part], deviation[part] = nearest.mean(axis=1), nearest.std(axis=1)
        return mean, np.maximum(deviation, _LEAST_DEVIATION)


def compared(descriptors: Floats, normalisation: ScoreNormalisation | None) -> tuple[Floats, Floats]:
    """Either side of the comparisons as inner products compare them: `sides`, or descriptors as they are."""
    return (descriptors, descriptors) if normalisation is None else normalisation.sides(descriptors)


def gains(
    pairs: SetPairs, normalised: Floats, rates: Sequence[float], *, replicates: int = 200, seed: int = 0
) -> dict[str, Gain]:
    """What normalised scores (n,) of the same pairs gain, by `rate_key`; one threshold for all sizes.

    Raises:
        InputError: no mated pair.
    """
    if not pairs.is_mated.any():
        raise InputError("no mated pair of sets: no false non-match rate can be measured.")
    drawn = draw_subjects(int(pairs.subjects.max()) + 1, replicates=replicates, seed=seed)
    both = [_missed(each, rates, drawn) for each in (pairs, replace(pairs, scores=normalised))]
    (before, drawn_before), (after, drawn_after) = both
    low, high = difference_interval95(drawn_after - drawn_before, len(np.unique(pairs.mated()[1])))
    return {
        rate_key(rate): Gain(before[place], after[place], (float(low[place]), float(high[place])))
        for place, rate in enumerate(rates)
    }


def _missed(
    pairs: SetPairs, rates: Sequence[float], drawn: NDArray[np.unsignedinteger]
) -> tuple[list[float], NDArray[np.float64]]:
    """False non-match rates of all pairs, and (R, F) of each draw, NaN where a kind of pair is missing."""
    scores, subjects = pairs.mated()
    rising = pairs.nonmated()
    observed = thresholds_of_counts(rising, accepted_counts(rising, rates)).tolist()
    thresholds, _ = bootstrap_thresholds(pairs, rising, rates, drawn)
    missed = bootstrap_fnmr(scores, subjects, thresholds, drawn)
    return [float((~at_or_above(scores, at)).mean()) for at in observed], missed

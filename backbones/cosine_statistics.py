"""How alike two faces are for a backbone: statistics of its cosines, and limits of cosine expressed in them.

A limit that was chosen with one backbone means something else for another: for some, photos of two people
have a cosine of 0.8. Limits are therefore written down for the reference, and each backbone's statistics say
where they lie for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError

# Median cosine of two people from which on the vector that all features share is subtracted. MobileFaceNet's
# is 0.00, so that its features and the aggregators over it stay as they are; dlib's ResNet's is 0.84.
_LARGEST_COMMON = 0.1
# Of fewer people the shared vector cannot be told from theirs: the median of other people's cosines would be
# off by one over their number.
FEWEST_PEOPLE = 30
FEWEST_OWNERS = 5
# Median absolute deviation -> standard deviation of a normal distribution.
_MAD_TO_STD = 1.4826
_SMALLEST_STD = 1e-3
_MOST_COMPARED = 1000


@dataclass(frozen=True)
class CosineStatistics:
    """Cosines of single photos, of two people (non-mated) and of one (mated), for one backbone.

    Attributes:
        nonmated_mean: of pairs of different subjects; of all pairs where subjects are not known.
        nonmated_std: above 0.
        mated_mean: of two photos of one subject; None where nobody knows which photos are of one.
        mated_std: above 0; None together with the mean.
        num_faces: how many photos were measured.
        num_subjects: of how many people; None where subjects are not known.
        log_norm_std: of the logarithm of the photos' norms, above 0; None where they were not measured.

    Raises:
        InputError: a value that none of these can be.
    """

    nonmated_mean: float
    nonmated_std: float
    mated_mean: float | None
    mated_std: float | None
    num_faces: int
    num_subjects: int | None = None
    log_norm_std: float | None = None

    def __post_init__(self) -> None:
        means = [mean for mean in (self.nonmated_mean, self.mated_mean) if mean is not None]
        spreads = (self.nonmated_std, self.mated_std, self.log_norm_std)
        deviations = [std for std in spreads if std is not None]
        faults = []
        if not all(_is_number(value) for value in (*means, *deviations)):
            faults.append("means and standard deviations must be finite numbers")
        elif not all(-1 <= mean < 1 for mean in means) or min(deviations) <= 0:
            faults.append("means must be in -1..1 and standard deviations above 0")
        elif self.mated_mean is not None and self.mated_mean <= self.nonmated_mean:
            faults.append("the mated mean must be above the non-mated one")
        if (self.mated_mean is None) != (self.mated_std is None):
            faults.append("mated_mean and mated_std must be given together")
        counts = [count for count in (self.num_faces, self.num_subjects) if count is not None]
        if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 1 for count in counts):
            faults.append("num_faces and num_subjects must be positive integers")
        if faults:
            raise InputError(f"cosine statistics: {'; '.join(faults)}; found {self.to_dict()}.")

    @property
    def mated(self) -> tuple[float, float]:
        """Mean and standard deviation of mated pairs; where unknown, as far from 1 as the reference's are.

        That is, in the same proportion between the non-mated mean and 1. With MobileFaceNet and with dlib's
        ResNet, with its mean subtracted or not, the mean is off by 0.02 at most.
        """
        if self.mated_mean is not None and self.mated_std is not None:
            return self.mated_mean, self.mated_std
        scale = (1 - self.nonmated_mean) / (1 - REFERENCE.nonmated_mean)
        mean, std = REFERENCE.mated
        return 1 - (1 - mean) * scale, std * scale

    def limit(self, reference: float) -> float:
        """The cosine that means for this backbone what `reference` means for the reference; monotone.

        Between the two means: the point at which the distances to both, in their standard deviations, have
        the same ratio. Below: as many standard deviations under the non-mated mean. Above: in the same
        proportion between the mated mean and 1, which is where copies are.
        """
        return float(_translated(np.array(reference), REFERENCE, self))

    def in_reference(self, cosines: NDArray[np.float64]) -> NDArray[np.float64]:
        """The inverse of `limit`, of an array: cosines as the reference would have them."""
        return _translated(cosines, self, REFERENCE)

    def difference(self, reference: float) -> float:
        """A difference of two cosines, in proportion to the distance of the two means."""
        scale = self.mated[0] - self.nonmated_mean
        return reference * scale / (REFERENCE.mated[0] - REFERENCE.nonmated_mean)

    def norm_share(self, reference: float) -> float:
        """A share of a good face's norm, as many standard deviations of the logarithm below it."""
        if self.log_norm_std is None or REFERENCE.log_norm_std is None:
            return reference
        return float(reference ** (self.log_norm_std / REFERENCE.log_norm_std))

    def text(self) -> str:
        """The figures for a person."""
        who = "unlabelled" if self.num_subjects is None else f"{self.num_subjects:,} people"
        mated = "unknown" if self.mated_mean is None else f"{self.mated_mean:.3f} ± {self.mated_std:.3f}"
        return (
            f"cosine of two people {self.nonmated_mean:.3f} ± {self.nonmated_std:.3f}, of one {mated} "
            f"({self.num_faces:,} faces, {who})"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: object) -> CosineStatistics:
        """The inverse of `to_dict`; InputError on a missing, unknown or wrong field."""
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) | {"log_norm_std"} != known:
            raise InputError(
                f"cosine statistics: expected {', '.join(sorted(known))}, found "
                f"{', '.join(sorted(map(str, values))) if isinstance(values, dict) else repr(values)}."
            )
        return cls(**values)


def measure_cosines(
    features: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    norms: NDArray[np.float32] | None = None,
    *,
    keep_common: bool = False,
) -> tuple[tuple[float, ...] | None, CosineStatistics]:
    """The vector that all features share, where there is one to be subtracted, and statistics without it.

    Mean and deviation are the median and the scaled median absolute deviation, which a few mislabelled or
    repeated photos do not move. Where nobody knows the subjects, all pairs count as of different people: so
    there should be many.

    Args:
        features: (N, D) unit rows, without auxiliary values; of more than 1,000, so many
            are drawn.
        labels: (N,) subjects; None where they are not known.
        norms: (N,) of the features before they were made unit rows; None where they are not known.
        keep_common: measure the features as they are.

    Returns:
        the vector (D,), None where nothing is to be subtracted, and the statistics.

    Raises:
        InputError: too few people (photos, where people are not known), or features that do not tell people
            apart.
    """
    rows = _some(np.arange(len(features)) if labels is None else labels)
    unit, subjects = features[rows].astype(np.float64), np.arange(len(rows))
    if labels is not None:
        subjects = np.unique(labels[rows], return_inverse=True)[1].reshape(-1)
    people = int(subjects.max(initial=-1)) + 1
    if people < FEWEST_PEOPLE:
        who = "photos of as many people" if labels is None else "people"
        raise InputError(
            f"{people} {who} are too few to measure how alike two people are; expected {FEWEST_PEOPLE} or "
            "more."
        )
    statistics = _statistics(unit, subjects, is_labelled=labels is not None)
    spread = _log_std(norms)
    if keep_common or statistics.nonmated_mean <= _LARGEST_COMMON:
        return None, replace(statistics, log_norm_std=spread)
    sums = np.zeros((people, unit.shape[1]))
    np.add.at(sums, subjects, unit)
    # Seven digits, as float32 has them: the same in every file.
    common = (sums / np.bincount(subjects)[:, None]).mean(axis=0).round(7)
    rest = unit - common
    rest /= np.linalg.norm(rest, axis=1, keepdims=True).clip(1e-12)
    statistics = _statistics(rest, subjects, is_labelled=labels is not None)
    return tuple(common.tolist()), replace(statistics, log_norm_std=spread)


def _some(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of all, or up to `_MOST_COMPARED` drawn by chance: some of each subject, or two of some."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    subjects = np.unique(labels, return_inverse=True)[1].reshape(-1)[order]
    grouped = np.argsort(rng.permutation(len(labels))[subjects], kind="stable")
    ranked = subjects[grouped]
    starts = np.flatnonzero(np.diff(ranked, prepend=-1))
    place = np.arange(len(ranked)) - np.repeat(starts, np.diff(starts, append=len(ranked)))
    each = max(2, _MOST_COMPARED // max(1, len(starts)))
    return np.sort(order[grouped[place < each]][:_MOST_COMPARED])


def _statistics(
    features: NDArray[np.float64], subjects: NDArray[np.int64], *, is_labelled: bool
) -> CosineStatistics:
    pairs = np.triu_indices(len(features), 1)
    cosines = (features @ features.T)[pairs]
    is_mated = (subjects[:, None] == subjects)[pairs]
    mean, std = _spread(cosines[~is_mated])
    mated_mean, mated_std = None, None
    if int(is_mated.sum()) >= FEWEST_PEOPLE:
        mated_mean, mated_std = _spread(cosines[is_mated])
    people = int(subjects.max()) + 1 if is_labelled else None
    return CosineStatistics(mean, std, mated_mean, mated_std, len(features), people)


def _spread(cosines: NDArray[np.float64]) -> tuple[float, float]:
    median = float(np.median(cosines))
    deviation = _MAD_TO_STD * float(np.median(np.abs(cosines - median)))
    return round(min(median, 1 - _SMALLEST_STD), 4), round(max(deviation, _SMALLEST_STD), 4)


def median_nonmated_cosine(features: NDArray[np.float32], owners: NDArray[np.int64]) -> float | None:
    """Median cosine of features of different owners; None of fewer than `FEWEST_OWNERS`.

    Fewer may all show one person, who was photographed several times.

    Args:
        features: (N, D) unit rows; of more than 1,000, so many are drawn.
        owners: (N,) the subject or set of each.
    """
    rows = _some(owners)
    if len(np.unique(owners[rows])) < FEWEST_OWNERS:
        return None
    pairs = owners[rows][:, None] != owners[rows]
    return float(np.median((features[rows] @ features[rows].T)[pairs]))


def _log_std(norms: NDArray[np.float32] | None) -> float | None:
    if norms is None or not (norms > 0).all():
        return None
    logs = np.log(norms.astype(np.float64))
    return round(max(_MAD_TO_STD * float(np.median(np.abs(logs - np.median(logs)))), _SMALLEST_STD), 4)


def _translated(
    cosines: NDArray[np.float64], source: CosineStatistics, target: CosineStatistics
) -> NDArray[np.float64]:
    """Cosines that mean for one backbone what these mean for another; see `CosineStatistics.limit`."""
    (high, high_std), (other_high, other_high_std) = source.mated, target.mated
    from_low = (cosines - source.nonmated_mean) / source.nonmated_std
    to_high = (high - cosines) / high_std
    below = target.nonmated_mean + from_low * target.nonmated_std
    above = 1 - (1 - other_high) * (1 - cosines) / (1 - high)
    parts = from_low.clip(0) * target.nonmated_std, to_high.clip(0) * other_high_std
    between = target.nonmated_mean + parts[0] / (parts[0] + parts[1]) * (other_high - target.nonmated_mean)
    return np.where(from_low <= 0, below.clip(-1), np.where(to_high <= 0, above, between))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# MobileFaceNet by `measure` on two photos of each of 1,251 subjects of LFW, with which the limits were
# chosen; weights that nobody measured count as it.
REFERENCE = CosineStatistics(0.003, 0.095, 0.691, 0.115, 2502, 1251, log_norm_std=0.098)

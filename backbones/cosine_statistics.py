"""Statistics of a backbone's cosine similarities, by which cosine thresholds are translated between
backbones.

A threshold chosen with one backbone does not suit another: with some, two subjects have a cosine of 0.8.
Thresholds are therefore stated for `REFERENCE` and translated by each backbone's statistics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.json_files import is_plain
from runtime.rows import unit_rows

# Median non-mated cosine above which the vector that all features share is subtracted. MobileFaceNet's is
# 0.00, so that its features and aggregators are unchanged; that of dlib's ResNet is 0.84.
_MAX_NONMATED = 0.1
# With fewer subjects the shared vector is confounded with theirs: the median non-mated cosine would be off by
# one over their number.
_MIN_SUBJECTS = 30
_MIN_OWNERS = 5
# Median absolute deviation to standard deviation, for a normal distribution.
_MAD_TO_STD = 1.4826
_MIN_STD = 1e-3
_MAX_SAMPLES = 1000


@dataclass(frozen=True)
class CosineStatistics:
    """Robust statistics of cosines between single images, for one backbone.

    Attributes:
        nonmated_mean: of pairs of different subjects; of all pairs where subjects are unknown.
        nonmated_std: above 0.
        mated_mean: of pairs of one subject; None where subjects are unknown.
        mated_std: above 0; None together with the mean.
        num_faces: number of images measured.
        num_subjects: None where subjects are unknown.
        log_norm_std: of the logarithm of the feature norms, above 0; None where they were not measured.

    Raises:
        InputError: a value out of range.
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
        if not all(is_plain(value, float) and math.isfinite(value) for value in (*means, *deviations)):
            faults.append("means and standard deviations must be finite numbers")
        elif not all(-1 <= mean < 1 for mean in means) or min(deviations) <= 0:
            faults.append("means must be in -1..1 and standard deviations above 0")
        elif self.mated_mean is not None and self.mated_mean <= self.nonmated_mean:
            faults.append("the mated mean must be above the non-mated one")
        if (self.mated_mean is None) != (self.mated_std is None):
            faults.append("mated_mean and mated_std must be given together")
        counts = [count for count in (self.num_faces, self.num_subjects) if count is not None]
        if not all(is_plain(count, int) and count >= 1 for count in counts):
            faults.append("num_faces and num_subjects must be positive integers")
        if faults:
            raise InputError(f"cosine statistics: {'; '.join(faults)}; found {self.to_dict()}.")

    @property
    def mated(self) -> tuple[float, float]:
        """Mean and standard deviation of mated pairs.

        Where unknown, the reference's, scaled to the same position between the non-mated mean and 1. For
        MobileFaceNet and dlib's ResNet the mean is off by at most 0.02.
        """
        if self.mated_mean is not None and self.mated_std is not None:
            return self.mated_mean, self.mated_std
        scale = (1 - self.nonmated_mean) / (1 - REFERENCE.nonmated_mean)
        mean, std = REFERENCE.mated
        return 1 - (1 - mean) * scale, std * scale

    def limit(self, reference: float) -> float:
        """Translate a cosine threshold from the reference backbone; monotone.

        Between the two means, distances to both in standard deviations keep their ratio. Below the non-mated
        mean the distance to it in standard deviations is kept, above the mated mean the relative position
        between it and 1.
        """
        return float(_translated(np.array(reference), REFERENCE, self))

    def in_reference(self, cosines: NDArray[np.float64]) -> NDArray[np.float64]:
        """Invert `limit` for an array."""
        return _translated(cosines, self, REFERENCE)

    def difference(self, reference: float) -> float:
        """Translate a difference of two cosines, in proportion to the distance between the means."""
        scale = self.mated[0] - self.nonmated_mean
        return reference * scale / (REFERENCE.mated[0] - REFERENCE.nonmated_mean)

    def norm_share(self, reference: float) -> float:
        """Translate a fraction of a good face's norm, in standard deviations of the logarithm."""
        if self.log_norm_std is None or REFERENCE.log_norm_std is None:
            return reference
        return float(reference ** (self.log_norm_std / REFERENCE.log_norm_std))

    def text(self) -> str:
        """The statistics in one line."""
        subjects = "unlabelled" if self.num_subjects is None else f"{self.num_subjects:,} subjects"
        mated = "unknown" if self.mated_mean is None else f"{self.mated_mean:.3f} ± {self.mated_std:.3f}"
        return (
            f"non-mated cosine {self.nonmated_mean:.3f} ± {self.nonmated_std:.3f}, mated {mated} "
            f"({self.num_faces:,} faces, {subjects})"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: object) -> CosineStatistics:
        """Invert `to_dict`.

        Raises:
            InputError: a missing, unknown or wrong field.
        """
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
    """Measure the vector that all features share, and statistics of the features without it.

    Mean and deviation are the median and the scaled median absolute deviation, robust to mislabelled and
    repeated images. Where subjects are unknown, all pairs count as non-mated.

    Args:
        features: (N, D) unit rows, without auxiliary features; at most 1,000 are sampled.
        labels: (N,) subjects; None where unknown.
        norms: (N,) of the features before normalisation; None where unknown.
        keep_common: do not subtract a shared vector.

    Returns:
        The shared vector (D,), None where it is not subtracted, and the statistics.

    Raises:
        InputError: too few subjects (images, where subjects are unknown), or features that do not separate
            subjects.
    """
    rows = _sample(np.arange(len(features)) if labels is None else labels)
    unit, subjects = features[rows].astype(np.float64), np.arange(len(rows))
    if labels is not None:
        subjects = np.unique(labels[rows], return_inverse=True)[1].reshape(-1)
    num_subjects = int(subjects.max(initial=-1)) + 1
    if num_subjects < _MIN_SUBJECTS:
        counted = "images of different subjects" if labels is None else "subjects"
        raise InputError(
            f"{num_subjects} {counted} are too few to measure non-mated cosines; expected {_MIN_SUBJECTS} or "
            "more."
        )
    statistics = _statistics(unit, subjects, is_labelled=labels is not None)
    log_norm_std = _log_std(norms)
    if keep_common or statistics.nonmated_mean <= _MAX_NONMATED:
        return None, replace(statistics, log_norm_std=log_norm_std)
    sums = np.zeros((num_subjects, unit.shape[1]))
    np.add.at(sums, subjects, unit)
    # Seven digits, as float32 has, so that all files agree.
    common = (sums / np.bincount(subjects)[:, None]).mean(axis=0).round(7)
    rest = unit_rows(unit - common)
    statistics = _statistics(rest, subjects, is_labelled=labels is not None)
    return tuple(common.tolist()), replace(statistics, log_norm_std=log_norm_std)


def _sample(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Up to `_MAX_SAMPLES` random rows: some of each subject, or two of some subjects."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    subjects = np.unique(labels, return_inverse=True)[1].reshape(-1)[order]
    grouped = np.argsort(rng.permutation(len(labels))[subjects], kind="stable")
    ranked = subjects[grouped]
    starts = np.flatnonzero(np.diff(ranked, prepend=-1))
    within = np.arange(len(ranked)) - np.repeat(starts, np.diff(starts, append=len(ranked)))
    each = max(2, _MAX_SAMPLES // max(1, len(starts)))
    return np.sort(order[grouped[within < each]][:_MAX_SAMPLES])


def _statistics(
    features: NDArray[np.float64], subjects: NDArray[np.int64], *, is_labelled: bool
) -> CosineStatistics:
    pairs = np.triu_indices(len(features), 1)
    cosines = (features @ features.T)[pairs]
    is_mated = (subjects[:, None] == subjects)[pairs]
    mean, std = _median_and_std(cosines[~is_mated])
    mated_mean, mated_std = None, None
    if int(is_mated.sum()) >= _MIN_SUBJECTS:
        mated_mean, mated_std = _median_and_std(cosines[is_mated])
    num_subjects = int(subjects.max()) + 1 if is_labelled else None
    return CosineStatistics(mean, std, mated_mean, mated_std, len(features), num_subjects)


def _median_and_std(values: NDArray[np.float64]) -> tuple[float, float]:
    median = float(np.median(values))
    deviation = _MAD_TO_STD * float(np.median(np.abs(values - median)))
    return round(min(median, 1 - _MIN_STD), 4), round(max(deviation, _MIN_STD), 4)


def median_nonmated_cosine(features: NDArray[np.float32], owners: NDArray[np.int64]) -> float | None:
    """Median cosine between features of different owners; None for fewer than five owners.

    A few sets may all be of one subject.

    Args:
        features: (N, D) unit rows; at most 1,000 are sampled.
        owners: (N,) subject or set of each feature.
    """
    rows = _sample(owners)
    if len(np.unique(owners[rows])) < _MIN_OWNERS:
        return None
    pairs = owners[rows][:, None] != owners[rows]
    return float(np.median((features[rows] @ features[rows].T)[pairs]))


def _log_std(norms: NDArray[np.float32] | None) -> float | None:
    if norms is None or not (norms > 0).all():
        return None
    return _median_and_std(np.log(norms.astype(np.float64)))[1]


def _translated(
    cosines: NDArray[np.float64], source: CosineStatistics, target: CosineStatistics
) -> NDArray[np.float64]:
    """Translate cosines from one backbone to another; see `CosineStatistics.limit`."""
    (high, high_std), (other_high, other_high_std) = source.mated, target.mated
    from_low = (cosines - source.nonmated_mean) / source.nonmated_std
    to_high = (high - cosines) / high_std
    below = target.nonmated_mean + from_low * target.nonmated_std
    above = 1 - (1 - other_high) * (1 - cosines) / (1 - high)
    parts = from_low.clip(0) * target.nonmated_std, to_high.clip(0) * other_high_std
    between = target.nonmated_mean + parts[0] / (parts[0] + parts[1]) * (other_high - target.nonmated_mean)
    return np.where(from_low <= 0, below.clip(-1), np.where(to_high <= 0, above, between))


# MobileFaceNet by `measure_cosines` on two images of each of 1,251 subjects of LFW, with which thresholds
# were chosen. Also assumed for weights that were not measured.
REFERENCE = CosineStatistics(0.003, 0.095, 0.691, 0.115, 2502, 1251, log_norm_std=0.098)

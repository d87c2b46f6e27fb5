"""Checks of a set before it is enrolled: near-duplicates, identities, outliers, low quality, influence."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backbones.spec import BackboneSpec
from recognition.enrolment.identities import IdentityLimits, find_identities, split_videos, unmatched_samples
from recognition.enrolment.leave_one_out import descriptor_shifts, similarity_to_rest
from recognition.enrolment.limits import EnrolmentLimits
from recognition.enrolment.outliers import outlier_probability
from recognition.enrolment.samples import duplicate_groups, independent_samples, known_media, pool_samples
from recognition.model import FaceModel
from recognition.records import AggregatedSet
from runtime.errors import InputWarning

# Quantile of the norms that counts as a good face of the set: high, but not the maximum.
_GOOD_QUANTILE = 0.9


@dataclass(frozen=True, eq=False)
class EnrolmentCheck:
    """Findings for each of T faces.

    Attributes:
        group: (T,) int64 group of near-duplicates, numbered by first face; -1 for none.
        similarity: (T,) cosine with the norm-weighted mean of the other faces; NaN for a single face.
        identity: (T,) int64 identity that the face shows, 0 the one with the most photos
            (`recognition.enrolment.identities`); -1 if it matches none.
        outlier_prob: (T,) probability that its photo or video shows a different person than the others; NaN
            in sets of fewer than three photos, and where the set may show several identities.
        outlier: (T,) bool, whether this probability reaches its limit, or a good photo matches no identity.
        poor: (T,) bool, low quality; False where the backbone's norm does not measure quality.
        shift: (T,) 1 - cosine of the descriptors with and without this face; NaN if not measured.
        is_calibrated: False if near-duplicates and identities were not looked for because no limits of
            cosine are known for the backbone.
    """

    group: NDArray[np.int64]
    similarity: NDArray[np.float64]
    identity: NDArray[np.int64]
    outlier_prob: NDArray[np.float64]
    outlier: NDArray[np.bool_]
    poor: NDArray[np.bool_]
    shift: NDArray[np.float64]
    is_calibrated: bool = True

    @property
    def num_groups(self) -> int:
        """Number of groups of near-duplicates."""
        return int(self.group.max(initial=-1)) + 1

    @property
    def num_identities(self) -> int:
        """Number of identities that the set may show, without those of single unmatched photos."""
        return int(self.identity.max(initial=-1)) + 1

    @property
    def is_contaminated(self) -> bool:
        """Whether the set may show more than one identity."""
        return self.num_identities > 1 or bool(self.outlier.any())


def check_sets(
    model: FaceModel,
    sets: Sequence[AggregatedSet],
    limits: EnrolmentLimits,
    *,
    others: NDArray[np.float32] | None = None,
    leave_out: bool = True,
) -> list[EnrolmentCheck]:
    """Check each set.

    Limits of cosine are not applied if the descriptors contradict the backbone's cosine statistics; this
    raises an InputWarning.

    Args:
        model: that aggregated the sets.
        sets: one or more.
        limits: when a face is reported.
        others: (G, D) descriptors of other subjects, such as a gallery's.
        leave_out: see `check_set`.
    """
    descriptors = np.stack([each.embedding for each in sets])
    descriptors = descriptors if others is None else np.concatenate([descriptors, others])
    reason = model.spec.unmeasured_warning(descriptors, np.arange(len(descriptors)))
    if reason:
        warnings.warn(
            f"{reason}. Until then near-duplicates and photos of other people are not looked for.",
            InputWarning,
            stacklevel=2,
        )
    return [check_set(model, each, limits, leave_out=leave_out, is_calibrated=not reason) for each in sets]


def check_set(
    model: FaceModel,
    aggregated: AggregatedSet,
    limits: EnrolmentLimits,
    *,
    leave_out: bool = True,
    is_calibrated: bool = True,
) -> EnrolmentCheck:
    """Check one set. Time is quadratic in the number of faces (3,000: about a second without `leave_out`).

    Args:
        model: that aggregated the set.
        aggregated: the set.
        limits: when a face is reported.
        leave_out: whether to measure `EnrolmentCheck.shift`, which takes the most time.
        is_calibrated: whether to apply limits of cosine; a given `limits.duplicate` is always applied.
    """
    features, norms, spec = aggregated.features, aggregated.norms, model.spec
    count = len(norms)
    duplicate, poor_share = limits.of(spec)
    group = np.full(count, -1)
    if is_calibrated or limits.duplicate is not None:
        group = duplicate_groups(features, duplicate)
    identity, probability, outlier = (
        np.zeros(count, np.int64),
        np.full(count, np.nan),
        np.zeros(count, np.bool_),
    )
    if is_calibrated:
        media = split_videos(known_media(aggregated), group, features, norms, spec)
        samples = independent_samples(media, group)
        identity, probability, outlier = check_identities(features, norms, samples, spec, limits.outlier)
    good = float(np.quantile(norms, _GOOD_QUANTILE))
    poor = norms < poor_share * good if spec.norm_is_quality else np.zeros(count, np.bool_)
    return EnrolmentCheck(
        group=group,
        similarity=similarity_to_rest(features, norms),
        identity=identity,
        outlier_prob=probability,
        outlier=outlier,
        poor=np.asarray(poor, np.bool_),
        shift=descriptor_shifts(model, aggregated) if leave_out else np.full(count, np.nan),
        is_calibrated=is_calibrated,
    )


def check_identities(
    features: NDArray[np.float32],
    norms: NDArray[np.float32],
    samples: NDArray[np.int64],
    spec: BackboneSpec,
    limit: float,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Find the identities and outliers of a set.

    Args:
        features: (T, D) unit rows.
        norms: (T,).
        samples: (T,) from `independent_samples`.
        spec: of the backbone.
        limit: outlier probability.

    Returns:
        (T,) `identity`, `outlier_prob` and `outlier` of `EnrolmentCheck`; equal within a sample.
    """
    directions, lengths = pool_samples(features, norms, samples)
    limits, is_quality = IdentityLimits.of(spec), bool(spec.norm_is_quality)
    identity = find_identities(directions, lengths, limits, norm_is_quality=is_quality)
    outlier = unmatched_samples(directions, lengths, identity, limits, norm_is_quality=is_quality)[samples]
    probability = np.full(len(samples), np.nan)
    if identity.max() == 0:
        probability = outlier_probability(features, norms, samples, spec)
        # Comparisons with NaN are False.
        outlier |= probability >= limit
    return np.where(outlier, -1, identity[samples]), probability, outlier

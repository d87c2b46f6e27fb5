"""Checks of a set before it is enrolled: near-duplicates, identities, outliers, low quality, influence."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from backbones.spec import BackboneSpec
from coreset import FaceSets
from recognition.enrolment.identities import IdentityLimits, find_identities, split_videos, unmatched_samples
from recognition.enrolment.limits import EnrolmentLimits
from recognition.enrolment.outliers import outlier_probability
from recognition.enrolment.samples import duplicate_groups, independent_samples, known_media, pool_samples
from recognition.model import FaceModel, aggregate_batch
from recognition.records import AggregatedSet
from runtime.errors import InputWarning

# Quantile of the norms that counts as a good face of the set: high, but not the maximum.
_GOOD_QUANTILE = 0.9
# Leaving out each face aggregates T sets of T - 1 faces. In larger sets only the selected faces and those of
# the largest weights are left out, as no other face can move the descriptor.
_LARGEST_SET = 128
_HEAVIEST = 32
# Faces in one batch of sets: 64 MB at 512 values.
_FACES_PER_BATCH = 32_768


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
    limits = IdentityLimits.of(spec)
    identity = find_identities(directions, lengths, limits)
    outlier = unmatched_samples(directions, lengths, identity, limits)[samples]
    probability = np.full(len(samples), np.nan)
    if identity.max() == 0:
        probability = outlier_probability(features, norms, samples, spec)
        # Comparisons with NaN are False.
        outlier |= probability >= limit
    return np.where(outlier, -1, identity[samples]), probability, outlier


def similarity_to_rest(features: NDArray[np.float32], norms: NDArray[np.float32]) -> NDArray[np.float64]:
    """(T,) cosine of each face with the norm-weighted mean of the others; NaN for a single face."""
    if len(norms) < 2:
        return np.full(len(norms), np.nan)
    vectors = features.astype(np.float64) * norms.astype(np.float64)[:, None]
    rest = vectors.sum(axis=0) - vectors
    lengths = np.linalg.norm(rest, axis=1)
    cosines: NDArray[np.float64] = np.divide(
        (features * rest).sum(axis=1), lengths, out=np.full(len(norms), np.nan), where=lengths > 0
    )
    return cosines


def descriptor_shifts(model: FaceModel, aggregated: AggregatedSet) -> NDArray[np.float64]:
    """(T,) 1 - cosine of the descriptor with and without each face; NaN where it was not measured."""
    count = len(aggregated.faces)
    shifts = np.full(count, np.nan)
    if count < 2:
        return shifts
    wanted = np.arange(count)
    if count > _LARGEST_SET:
        weights = aggregated.norms if aggregated.weights is None else aggregated.weights
        heaviest = np.argsort(-weights, kind="stable")[:_HEAVIEST]
        wanted = np.unique(np.concatenate([aggregated.picks, heaviest]))
    sets_per_batch = max(1, _FACES_PER_BATCH // count)
    for start in range(0, len(wanted), sets_per_batch):
        left_out = wanted[start : start + sets_per_batch]
        without = aggregate_batch(model, _sets_without(aggregated, left_out, model.auxiliary_size))
        cosines = np.stack([each.embedding for each in without]) @ aggregated.embedding
        shifts[left_out] = np.maximum(0, 1 - cosines)
    return shifts


def _sets_without(aggregated: AggregatedSet, left_out: NDArray[np.int64], auxiliary_size: int) -> FaceSets:
    count, media = len(aggregated.faces), aggregated.media
    rows = np.concatenate([np.delete(np.arange(count), face) for face in left_out])
    # Media of different sets are different media.
    offset = np.repeat(np.arange(len(left_out)), count - 1) * (int(media.max()) + 1)
    return FaceSets.from_rows(
        torch.from_numpy(aggregated.features[rows]),
        torch.from_numpy(aggregated.norms[rows]),
        torch.arange(len(left_out) + 1) * (count - 1),
        auxiliary_size,
        media=torch.from_numpy(media[rows] + offset),
    )

"""Find label noise from features: mislabelled images, split identities, duplicate images.

The findings are candidates for inspection (`data.checks.label_noise_report`); nothing is removed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backbones.spec import BackboneSpec
from data.sources.subject_index import SubjectIndex
from runtime.errors import InputError
from runtime.rows import row_slices, unit_rows

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

# Similarities per block: 64 MB.
_CELLS_AT_ONCE = 16_000_000
_SHORTEST = 1e-6
# Largest number of images for the quadratic search for duplicates across subjects (about a minute).
MAX_COMPARED = 100_000


@dataclass(frozen=True)
class LabelLimits:
    """Thresholds of the label audit.

    The defaults were measured with MobileFaceNet on 4,144 images of 1,101 subjects of LFW. All of 124
    relabelled images are found, with 26 others, the first of which is an error of LFW. All of 60 subjects
    with six or more images split under two names are found; of 605,550 pairs of different subjects one
    exceeds 0.6, a true split identity. For subjects of few images, 14 of 100 splits are missed.

    Attributes:
        duplicate: minimum cosine of two images that are considered duplicates.
        split_identity: minimum cosine of two subjects' mean features for a possible split identity.
        lead: minimum margin by which another subject is nearer than the labelled one.

    Raises:
        InputError: a value outside [-1, 1].
    """

    duplicate: float = 0.95
    split_identity: float = 0.6
    lead: float = 0.1

    def __post_init__(self) -> None:
        faults = [
            f"label audit: {name} {value:g}; expected -1 to 1."
            for name, value in vars(self).items()
            if not (math.isfinite(value) and -1 <= value <= 1)
        ]
        if faults:
            raise InputError.from_faults(faults)

    @classmethod
    def of(cls, spec: BackboneSpec) -> LabelLimits:
        """The limits for the features of a backbone."""
        limits = cls()
        return cls(
            spec.cosine_limit(limits.duplicate),
            spec.cosine_limit(limits.split_identity),
            spec.cosine_difference(limits.lead),
        )


@dataclass(frozen=True)
class Mislabelled:
    """An image nearer to subject `other` (cosine `to_other`) than to the rest of its own (`to_own`)."""

    image: int
    other: int
    to_own: float
    to_other: float


@dataclass(frozen=True)
class SimilarPair:
    """Two images, or two subjects, `first` < `second`, and their cosine."""

    first: int
    second: int
    similarity: float


@dataclass(frozen=True)
class LabelFindings:
    """All findings, the most significant first.

    Attributes:
        mislabelled: images that probably show another subject; of subjects with two or more images.
        split_identities: pairs of subjects, possibly a split identity.
        duplicates: pairs of images of one subject.
        duplicates_across: pairs of images of two subjects; None with more than `MAX_COMPARED` images.
        single: subjects with one image, which cannot be checked for mislabelling.
    """

    mislabelled: list[Mislabelled]
    split_identities: list[SimilarPair]
    duplicates: list[SimilarPair]
    duplicates_across: list[SimilarPair] | None
    single: list[int]


def check_labels(features: Floats, labels: Ints, limits: LabelLimits | None = None) -> LabelFindings:
    """Compare every image with the other images of its subject and with all other subjects.

    A subject is the mean of its images' unit features; an image is compared with the mean of the other images
    of its subject without its duplicates. Images of a split identity are reported as a pair of subjects, not
    as mislabelled.

    Args:
        features: (N, D) unit rows, one per image.
        labels: (N,) 0..S-1, each at least once.
        limits: thresholds.

    Raises:
        InputError: shapes that do not fit, or fewer than two subjects.
    """
    limits = limits or LabelLimits()
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise InputError(
            f"label audit: features {features.shape} and labels {labels.shape}; expected (N, D) and (N,)."
        )
    counts = np.bincount(labels)
    if len(counts) < 2 or not counts.all():
        raise InputError("label audit: expected two or more subjects, numbered consecutively from 0.")
    sums = np.zeros((len(counts), features.shape[1]), np.float32)
    np.add.at(sums, labels, features)
    centres = unit_rows(sums, _SHORTEST)
    same = _pairs(centres, limits.split_identity)
    within = _within(features, labels, limits)
    others, num_others = sums[labels] - features, counts[labels] - 1
    for pair in within:
        for image, copy in ((pair.first, pair.second), (pair.second, pair.first)):
            others[image] -= features[copy]
            num_others[image] -= 1
    own = (features * unit_rows(others, _SHORTEST)).sum(axis=1)
    # Without another image of its subject nothing is known of an image.
    own[num_others == 0] = np.inf
    searched = len(features) <= MAX_COMPARED
    across = _pairs(features, limits.duplicate, labels) if searched else None
    return LabelFindings(
        mislabelled=_mislabelled(features, labels, centres, own, same, limits.lead),
        split_identities=same,
        duplicates=within,
        duplicates_across=across,
        single=np.flatnonzero(counts == 1).tolist(),
    )


def _mislabelled(
    features: Floats,
    labels: Ints,
    centres: Floats,
    own: Floats,
    same: list[SimilarPair],
    lead: float,
) -> list[Mislabelled]:
    """`own` (N,): cosine of each image to the others of its subject."""
    alike: dict[int, list[int]] = {}
    for pair in same:
        alike.setdefault(pair.first, []).append(pair.second)
        alike.setdefault(pair.second, []).append(pair.first)
    found = []
    for part in row_slices(len(features), len(centres), _CELLS_AT_ONCE):
        near = features[part] @ centres.T
        near[np.arange(len(near)), labels[part]] = -np.inf
        for row, label in enumerate(labels[part].tolist()):
            near[row, alike.get(label, [])] = -np.inf
        other = near.argmax(axis=1)
        best = near[np.arange(len(near)), other]
        wrong = best - own[part] > lead
        found += [
            Mislabelled(part.start + row, int(other[row]), float(own[part.start + row]), float(best[row]))
            for row in np.flatnonzero(wrong).tolist()
        ]
    return sorted(found, key=lambda each: (each.to_own - each.to_other, each.image))


def _within(features: Floats, labels: Ints, limits: LabelLimits) -> list[SimilarPair]:
    found = []
    for rows in SubjectIndex(labels).groups():
        found += [
            SimilarPair(rows[pair.first], rows[pair.second], pair.similarity)
            for pair in _pairs(features[rows], limits.duplicate)
        ]
    return sorted(found, key=_by_similarity)


def _pairs(rows: Floats, limit: float, labels: Ints | None = None) -> list[SimilarPair]:
    """Pairs with a cosine of `limit` or more; if labels are given, only pairs of different labels."""
    found = []
    for part in row_slices(len(rows), len(rows), _CELLS_AT_ONCE):
        near = rows[part] @ rows.T
        first, second = np.nonzero(near >= limit)
        kept = second > first + part.start
        if labels is not None:
            kept &= labels[first + part.start] != labels[second]
        found += [
            SimilarPair(part.start + row, column, float(near[row, column]))
            for row, column in zip(first[kept].tolist(), second[kept].tolist(), strict=True)
        ]
    return sorted(found, key=_by_similarity)


def _by_similarity(pair: SimilarPair) -> tuple[float, int, int]:
    return -pair.similarity, pair.first, pair.second

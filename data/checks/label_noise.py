"""What may be wrong with the names of training images: faces in the wrong folder, two names for one person.

And the same photo twice. Features in, findings out; nothing is decided here, a person looks at the lists and
at the sheets that `data.checks.label_noise_report` makes of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backbones.spec import BackboneSpec
from runtime.errors import InputError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

# Rows of a block of similarities: 64 MB at so many columns.
_CELLS_AT_ONCE = 16_000_000
# Copies among all images are sought up to here: time grows with the square (100,000: about a minute).
MOST_COMPARED = 100_000


@dataclass(frozen=True)
class LabelLimits:
    """When a finding is one.

    The defaults were measured with MobileFaceNet on 4,144 images of 1,101 subjects of LFW. Of 124 images put
    under another name all are found, beside 26 others, the first of which is a mistake of LFW. 60 subjects of
    six images or more under two names are all found; of 605,550 pairs of other subjects one is at 0.6 or
    more, and it is one person; halves of a subject of few images are below in 14 of 100.

    Attributes:
        duplicate: cosine of two images from which on they are the same photo, or nearly.
        same_person: cosine of two subjects' mean features from which on they may be one person.
        lead: by so much the other subject has to be nearer than the own one.

    Raises:
        InputError: a value outside -1..1.
    """

    duplicate: float = 0.95
    same_person: float = 0.6
    lead: float = 0.1

    def __post_init__(self) -> None:
        faults = [
            f"label check: {name} {value:g}; expected -1 to 1."
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
            spec.cosine_limit(limits.same_person),
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
class SamePair:
    """Two images, or two subjects, `first` < `second`, and their cosine."""

    first: int
    second: int
    similarity: float


@dataclass(frozen=True)
class LabelFindings:
    """All findings, the most striking first.

    Attributes:
        mislabelled: images that are probably of somebody else; of subjects with two images or more.
        same_person: pairs of subjects.
        duplicates: pairs of images of one subject.
        duplicates_across: pairs of images of two subjects; None where there are more images than
            `MOST_COMPARED`, and nobody looked.
        single: subjects with one image, of which nothing can be said but whom they are like.
    """

    mislabelled: list[Mislabelled]
    same_person: list[SamePair]
    duplicates: list[SamePair]
    duplicates_across: list[SamePair] | None
    single: list[int]


def check_labels(features: Floats, labels: Ints, limits: LabelLimits | None = None) -> LabelFindings:
    """Compares every image with its own subject's other images and with all other subjects.

    A subject is the mean of its images' unit features; an image is compared with the mean of the others of
    its subject, copies of it left out, so that it does not vouch for itself. Where two subjects are one
    person, their images are not mislabelled: they are told as a pair of subjects.

    Args:
        features: (N, D) unit rows, one an image.
        labels: (N,) 0..S-1, each at least once.
        limits: when a finding is one.

    Raises:
        InputError: shapes that do not fit, or fewer than two subjects.
    """
    limits = limits or LabelLimits()
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise InputError(
            f"label check: features {features.shape} and labels {labels.shape}; expected (N, D) and (N,)."
        )
    counts = np.bincount(labels)
    if len(counts) < 2 or not counts.all():
        raise InputError("label check: expected two subjects or more, numbered from 0 without a gap.")
    sums = np.zeros((len(counts), features.shape[1]), np.float32)
    np.add.at(sums, labels, features)
    same = _same_person(_unit(sums), limits)
    within = _within(features, labels, limits)
    others, num_others = sums[labels] - features, counts[labels] - 1
    for pair in within:
        for image, copy in ((pair.first, pair.second), (pair.second, pair.first)):
            others[image] -= features[copy]
            num_others[image] -= 1
    across = _across(features, labels, limits) if len(features) <= MOST_COMPARED else None
    return LabelFindings(
        mislabelled=_mislabelled(features, labels, _unit(sums), _Others(others, num_others), same, limits),
        same_person=same,
        duplicates=within,
        duplicates_across=across,
        single=np.flatnonzero(counts == 1).tolist(),
    )


@dataclass(frozen=True, eq=False)
class _Others:
    """Of each image the other ones of its subject: `sums` (N, D) of their features, `counts` (N,)."""

    sums: Floats
    counts: Ints


def _mislabelled(
    features: Floats,
    labels: Ints,
    centres: Floats,
    others: _Others,
    same: list[SamePair],
    limits: LabelLimits,
) -> list[Mislabelled]:
    own = (features * _unit(others.sums)).sum(axis=1)
    alike: dict[int, list[int]] = {}
    for pair in same:
        alike.setdefault(pair.first, []).append(pair.second)
        alike.setdefault(pair.second, []).append(pair.first)
    found = []
    for part in _blocks(len(features), len(centres)):
        near = features[part] @ centres.T
        near[np.arange(len(near)), labels[part]] = -np.inf
        for row, label in enumerate(labels[part].tolist()):
            near[row, alike.get(label, [])] = -np.inf
        other = near.argmax(axis=1)
        best = near[np.arange(len(near)), other]
        wrong = (best - own[part] > limits.lead) & (others.counts[part] > 0)
        found += [
            Mislabelled(part.start + row, int(other[row]), float(own[part.start + row]), float(best[row]))
            for row in np.flatnonzero(wrong).tolist()
        ]
    return sorted(found, key=lambda each: (each.to_own - each.to_other, each.image))


def _same_person(centres: Floats, limits: LabelLimits) -> list[SamePair]:
    return _pairs(centres, limits.same_person, None)


def _across(features: Floats, labels: Ints, limits: LabelLimits) -> list[SamePair]:
    return _pairs(features, limits.duplicate, labels)


def _within(features: Floats, labels: Ints, limits: LabelLimits) -> list[SamePair]:
    order = np.argsort(labels, kind="stable")
    found = []
    for rows in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        found += [
            SamePair(int(rows[pair.first]), int(rows[pair.second]), pair.similarity)
            for pair in _pairs(features[rows], limits.duplicate, None)
        ]
    return sorted(found, key=_by_similarity)


def _pairs(rows: Floats, limit: float, labels: Ints | None) -> list[SamePair]:
    """Pairs of cosine `limit` or more; where labels are given, of different labels alone."""
    found = []
    for part in _blocks(len(rows), len(rows)):
        near = rows[part] @ rows.T
        first, second = np.nonzero(near >= limit)
        kept = second > first + part.start
        if labels is not None:
            kept &= labels[first + part.start] != labels[second]
        found += [
            SamePair(part.start + row, column, float(near[row, column]))
            for row, column in zip(first[kept].tolist(), second[kept].tolist(), strict=True)
        ]
    return sorted(found, key=_by_similarity)


def _by_similarity(pair: SamePair) -> tuple[float, int, int]:
    return -pair.similarity, pair.first, pair.second


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _CELLS_AT_ONCE // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def _unit(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / lengths.clip(1e-6), np.float32)

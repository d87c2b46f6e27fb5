"""What is wrong with a set before it is enrolled: duplicates, strangers, faces too poor to help.

And how far its descriptor moves when a face is left out. Features and numbers only; the page and the table
are made of what is said here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from backbones.spec import BackboneSpec
from coreset import FaceSets
from recognition.enrolment.identities import IdentityLimits, find_identities, shows_another
from recognition.enrolment.outliers import face_units, pooled, stranger_odds
from recognition.model import FaceModel, describe_batch
from recognition.sets import DescribedSet
from runtime.errors import InputError, InputWarning

# Leaving each face out describes T sets of T - 1 faces: in full up to here, beyond for the faces that can
# move anything, the picks and the heaviest ones.
_ALL_LEFT_OUT = 128
_HEAVIEST = 32
# Cosines of one block of the search for near-duplicates; a pair takes up to 64 bytes.
_PAIRS_AT_ONCE = 262_144
# Faces of one batch of sets with a face left out: 64 MB at 512 values.
_FACES_AT_ONCE = 32_768
# Beyond, a probability is 0 or 1.
_LARGEST_ODDS = 50.0
# What a good face of the set has: high, but not the single luckiest one.
_GOOD_SHARE = 0.9
# Of `EnrolmentLimits`, for backbones like the reference (`cosine_statistics`).
NEAR_DUPLICATE, POOR = 0.95, 0.6


@dataclass(frozen=True)
class EnrolmentLimits:
    """When a face is worth a word.

    The defaults were measured with MobileFaceNet. On LFW, of two photos of one person the nearest in 2,000
    were at 0.95, and so were 19 in 20 re-encoded ones and above. On LFWS with one foreign medium in every
    second template, 0.22 finds 8 in 10 of them and accuses 1 in 20 of the right ones, which are poor ones; of
    plain photos of LFW it accuses 1 in 400 (`benchmarks/studies/impostor_media.py`).

    Attributes:
        duplicate: cosine of two faces from which on they are near-duplicates; None: what `NEAR_DUPLICATE` is
            for the backbone.
        stranger: probability that a photo or video shows somebody else (`recognition.enrolment.outliers`)
        from which
            on its faces are named.
        poor: share of the norm of the set's good faces below which a face is too poor to help; None: what
            `POOR` is for the backbone.

    Raises:
        InputError: a value outside its range.
    """

    duplicate: float | None = None
    stranger: float = 0.22
    poor: float | None = None

    def __post_init__(self) -> None:
        ranges = {"duplicate": (-1, 1), "stranger": (0, 1), "poor": (0, 1)}
        faults = [
            f"--{name} {value:g}: expected {low} to {high}."
            for name, (low, high) in ranges.items()
            if (value := getattr(self, name)) is not None
            and not (math.isfinite(value) and low <= value <= high)
        ]
        if faults:
            raise InputError.from_faults(faults)

    def of(self, spec: BackboneSpec) -> tuple[float, float]:
        """`duplicate` and `poor` for a backbone."""
        duplicate = spec.cosine_limit(NEAR_DUPLICATE) if self.duplicate is None else self.duplicate
        return duplicate, spec.norm_share(POOR) if self.poor is None else self.poor


@dataclass(frozen=True, eq=False)
class EnrolmentCheck:
    """What there is to say about each of T faces.

    Attributes:
        group: (T,) int64 number of its near-duplicates, counted by their first face; -1 where it has none.
        similarity: (T,) cosine with the norm-weighted mean of the other faces; NaN for a face alone.
        identity: (T,) int64 number of the person it shows, 0 the one with the most photos
            (`recognition.enrolment.identities`); -1 where it agrees with none.
        doubt: (T,) probability that its photo or video shows someone else than the others; NaN in sets of
            fewer than three, and where the set may show several people.
        stranger: (T,) bool, where the doubt reaches its limit, or a good photo agrees with no person.
        poor: (T,) bool; nowhere where the backbone's norm does not tell quality.
        shift: (T,) 1 - cosine of the set's descriptor with the one without this face; NaN where it was not
            measured.
        is_trusted: False where near-duplicates and people were not looked for, as no limit is known for the
            backbone.
    """

    group: NDArray[np.int64]
    similarity: NDArray[np.float64]
    identity: NDArray[np.int64]
    doubt: NDArray[np.float64]
    stranger: NDArray[np.bool_]
    poor: NDArray[np.bool_]
    shift: NDArray[np.float64]
    is_trusted: bool = True

    @property
    def num_groups(self) -> int:
        """Groups of near-duplicates."""
        return int(self.group.max(initial=-1)) + 1

    @property
    def num_identities(self) -> int:
        """People that the set may show; those of single photos that agree with nobody are not counted."""
        return int(self.identity.max(initial=-1)) + 1

    @property
    def is_contaminated(self) -> bool:
        """Whether the set may show more than one person."""
        return self.num_identities > 1 or bool(self.stranger.any())


def check_sets(
    model: FaceModel,
    sets: Sequence[DescribedSet],
    limits: EnrolmentLimits,
    *,
    others: NDArray[np.float32] | None = None,
    leave_out: bool = True,
) -> list[EnrolmentCheck]:
    """Checks each set, without the limits of cosine where these sets show that they cannot be trusted.

    That is an InputWarning.

    Args:
        model: that described them.
        sets: one or more.
        limits: when a face is worth a word.
        others: (G, D) descriptors of other people, such as a gallery's.
        leave_out: see `check_set`.
    """
    descriptors = np.stack([each.embedding for each in sets])
    descriptors = descriptors if others is None else np.concatenate([descriptors, others])
    why = model.spec.unmeasured_warning(descriptors, np.arange(len(descriptors)))
    if why:
        left_out = "Until then near-duplicates and photos of other people are not looked for in the sets"
        warnings.warn(f"{why}. {left_out}.", InputWarning, stacklevel=2)
    return [check_set(model, each, limits, leave_out=leave_out, is_trusted=not why) for each in sets]


def check_set(
    model: FaceModel,
    described: DescribedSet,
    limits: EnrolmentLimits,
    *,
    leave_out: bool = True,
    is_trusted: bool = True,
) -> EnrolmentCheck:
    """Checks one set; time grows with the square of its faces (3,000: about a second beside the rest).

    Args:
        model: that described it.
        described: the set.
        limits: when a face is worth a word.
        leave_out: False: `shift` is not measured, which takes the most time.
        is_trusted: False: limits of cosine are not applied, but for a `duplicate` that was given.
    """
    features, norms = described.features, described.norms
    duplicate, poor_share = limits.of(model.spec)
    group = np.full(len(norms), -1)
    if is_trusted or limits.duplicate is not None:
        group = duplicate_groups(features, duplicate)
    identity, doubt, stranger = np.zeros(len(norms), np.int64), np.full(len(norms), np.nan), group < -1
    if is_trusted:
        media = part_videos(told_media(described), group, features, norms, model.spec)
        units = face_units(media, group)
        identity, doubt, stranger = check_people(features, norms, units, model.spec, limits.stranger)
    good = float(np.quantile(norms, _GOOD_SHARE))
    poor = norms < poor_share * good if model.spec.norm_is_quality else np.zeros(len(norms), bool)
    return EnrolmentCheck(
        group=group,
        similarity=similarity_to_rest(features, norms),
        identity=identity,
        doubt=doubt,
        stranger=stranger,
        poor=np.asarray(poor, np.bool_),
        shift=shifts(model, described) if leave_out else np.full(len(norms), np.nan),
        is_trusted=is_trusted,
    )


def check_people(
    features: NDArray[np.float32],
    norms: NDArray[np.float32],
    units: NDArray[np.int64],
    spec: BackboneSpec,
    limit: float,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Whom the faces of a set show; see `EnrolmentCheck` for the three results.

    Args:
        features: (T, D) unit rows.
        norms: (T,).
        units: (T,) of `face_units`.
        spec: of the backbone.
        limit: of the doubt.

    Returns:
        (T,) identities, doubts, and whether each shows someone else; equal within a unit.
    """
    directions, lengths = pooled(features, norms, units)
    limits, is_quality = IdentityLimits.of(spec), bool(spec.norm_is_quality)
    identity = find_identities(directions, lengths, limits, norm_is_quality=is_quality)
    another = shows_another(directions, lengths, identity, limits, norm_is_quality=is_quality)
    doubt = np.full(len(units), np.nan)
    stranger = another[units]
    if identity.max() == 0:
        odds = stranger_odds(features, norms, units, spec=spec)
        doubt = 1 / (1 + np.exp(-odds.clip(-_LARGEST_ODDS, _LARGEST_ODDS)))
        # A comparison with NaN is False: of two photos nobody knows which one is wrong.
        stranger |= doubt >= limit
    return np.where(stranger, -1, identity[units]), doubt, stranger


def told_media(described: DescribedSet) -> NDArray[np.int64]:
    """(T,) numbers of photos and videos that are known to show one person.

    Where a photo or a frame gave several faces, each face counts for itself.
    """
    media = np.array([face.medium for face in described.faces], np.int64)
    crowded = np.unique(media[[not face.alone for face in described.faces]])
    apart = np.isin(media, crowded)
    media[apart] = media.max() + 1 + np.arange(int(apart.sum()))
    return media


def part_videos(
    media: NDArray[np.int64],
    group: NDArray[np.int64],
    features: NDArray[np.float32],
    norms: NDArray[np.float32],
    spec: BackboneSpec,
) -> NDArray[np.int64]:
    """(T,) `media`, where frames of a video that show several people are a medium for each of them.

    With MobileFaceNet none of 546 degraded clips of one person (LFWS, 4 to 40 frames) was parted, and 4 in
    2,730 draws of two of their frames; two frames each of two people of LFW were parted in 497 of 500 draws.

    Args:
        media: (T,) of `told_media`.
        group: (T,) of near-duplicates, -1 for none.
        features: (T, D) unit rows.
        norms: (T,).
        spec: of the backbone.
    """
    limits, is_quality = IdentityLimits.of(spec), bool(spec.norm_is_quality)
    # Frames of one moment are more alike than photos of two days.
    limits = replace(limits, pair=limits.same)
    parted = media.copy()
    for medium in np.flatnonzero(np.bincount(media) > 1):
        rows = np.flatnonzero(media == medium)
        units = face_units(np.arange(len(rows)), group[rows])
        directions, lengths = pooled(features[rows], norms[rows], units)
        people = find_identities(directions, lengths, limits, norm_is_quality=is_quality)
        another = shows_another(directions, lengths, people, limits, norm_is_quality=is_quality)
        people = np.where(another, people.max() + 1, people.clip(0))
        if people.max() > 0:
            parted[rows] = parted.max() + 1 + people[units]
    return np.asarray(parted, np.int64)


def duplicate_groups(features: NDArray[np.float32], limit: float) -> NDArray[np.int64]:
    """Numbers of groups that are connected by pairs of cosine `limit` or more.

    Args:
        features: (T, D) unit rows.
        limit: cosine.

    Returns:
        (T,) group of each face, numbered in the order of their first faces; -1 for a face without any.
    """
    count = len(features)
    roots = np.arange(count)
    rows_at_once = max(1, _PAIRS_AT_ONCE // max(1, count))
    for start in range(0, count, rows_at_once):
        near = features[start : start + rows_at_once] @ features[start:].T >= limit
        rows, columns = np.nonzero(np.triu(near, 1))
        # With an edge from each face to the first one of its group so far, blocks need no memory of pairs.
        first, second = np.append(rows + start, roots), np.append(columns + start, np.arange(count))
        graph = coo_array((np.ones(len(first), np.bool_), (first, second)), shape=(count, count))
        _, part = connected_components(graph, directed=False)
        _, leader, inverse = np.unique(part, return_index=True, return_inverse=True)
        roots = leader[inverse]
    _, first, inverse, sizes = np.unique(roots, return_index=True, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(sizes > 1)
    numbers = np.full(len(sizes), -1)
    numbers[shared[np.argsort(first[shared])]] = np.arange(len(shared))
    return np.asarray(numbers[inverse.reshape(-1)], np.int64)


def similarity_to_rest(features: NDArray[np.float32], norms: NDArray[np.float32]) -> NDArray[np.float64]:
    """(T,) cosine of each face with the norm-weighted mean of all others; NaN for a face alone."""
    vectors = features.astype(np.float64) * norms.astype(np.float64)[:, None]
    rest = vectors.sum(axis=0) - vectors
    lengths = np.linalg.norm(rest, axis=1)
    cosines = (features * rest).sum(axis=1)
    found: NDArray[np.float64] = np.divide(
        cosines, lengths, out=np.full(len(norms), np.nan), where=lengths > 0
    )
    return found if len(norms) > 1 else np.full(len(norms), np.nan)


def shifts(model: FaceModel, described: DescribedSet) -> NDArray[np.float64]:
    """(T,) 1 - cosine of the descriptor with and without each face; NaN where it was not measured."""
    count = len(described.faces)
    moved = np.full(count, np.nan)
    if count < 2:
        return moved
    wanted = np.arange(count)
    if count > _ALL_LEFT_OUT:
        weights = described.norms if described.weights is None else described.weights
        wanted = np.unique(np.concatenate([described.picks, np.argsort(-weights, kind="stable")[:_HEAVIEST]]))
    at_once = max(1, _FACES_AT_ONCE // count)
    for start in range(0, len(wanted), at_once):
        left_out = wanted[start : start + at_once]
        found = describe_batch(model, _sets_without(described, left_out))
        cosines = np.stack([each.embedding for each in found]) @ described.embedding
        moved[left_out] = np.maximum(0, 1 - cosines)
    return moved


def _sets_without(described: DescribedSet, left_out: NDArray[np.int64]) -> FaceSets:
    count = len(described.faces)
    rows = np.concatenate([np.delete(np.arange(count), face) for face in left_out])
    media = np.array([face.medium for face in described.faces], np.int64)
    return FaceSets(
        torch.from_numpy(described.features[rows]),
        torch.from_numpy(described.norms[rows]),
        torch.arange(len(left_out) + 1) * (count - 1),
        # Media of different sets are different media.
        torch.from_numpy(
            media[rows] + np.repeat(np.arange(len(left_out)), count - 1) * (int(media.max()) + 1)
        ),
    )

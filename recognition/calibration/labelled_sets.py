"""A folder of people whose names are known -> described sets of several sizes, for a calibration.

Every subfolder of the root is a subject. The subfolders of a subject are its sets. Photos that lie in a
subject's own folder are split into sets that share no photo or video, of sizes drawn from each size group
that the photos suffice for, so that one folder a person is enough.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.checks.near_duplicates import SKETCHED_FRAMES, copies_text, find_copies, sketch
from data.sources.decoding import decode_image
from data.sources.image_files import beside_note, people_root, subfolders, unpacked_note
from data.sources.subject_names import check_distinct
from evaluation.metrics.calibration import FEWEST_PEOPLE
from evaluation.metrics.enrolment_failures import EnrolmentFailures
from evaluation.metrics.set_pairs import SIZE_GROUPS
from recognition.aggregation import aggregate_sets
from recognition.enrolment.quality_feedback import contamination_text, face_choice_text
from recognition.enrolment.rejections import rejection_reasons, rejection_text
from recognition.face_reading import PhotoOptions
from recognition.model import FaceModel, aggregate_features
from recognition.records import AggregatedSet, EmptySet
from recognition.sources import SetSource
from runtime.errors import InputError, InputWarning
from runtime.escaping import escaped
from set_benchmark.media import evenly

# Of a set that is drawn: beyond, descriptors change little.
_LARGEST_SET = 32
# People whose photos may show several.
_MIXED_SHOWN = 20
# Folders without photos.
_BARE_SHOWN = 5
# Of one person's photos, so that nobody with hundreds decides alone.
_MOST_SETS = 8


@dataclass(frozen=True)
class LabelledSource:
    """A folder with photos of a subject; `is_set`: all of one set, not to be split."""

    subject: str
    source: SetSource
    is_set: bool


@dataclass(frozen=True, eq=False)
class LabelledSets:
    """N sets of known people.

    Attributes:
        people: S names, of those who have a set.
        subjects: (N,) int64 rows of `people`.
        names: N of the sets.
        sizes: (N,) int64 faces of each.
        descriptors: (N, D) float32, unit rows.
        notes: sentences on what was left out after it had been described.
        rejected: text on files and frames without a usable face (`rejection_text`), on photos of several
            faces, and on folders that may show several people.
        left_out: these files and frames one by one, as `<set>/<file>`, and why.
        failures: sets without a usable face, where a subject's loose photos are one set.
    """

    people: list[str]
    subjects: NDArray[np.int64]
    names: list[str]
    sizes: NDArray[np.int64]
    descriptors: NDArray[np.float32]
    notes: list[str]
    failures: EnrolmentFailures
    rejected: str = ""
    left_out: tuple[tuple[str, str], ...] = ()


def find_labelled(root: Path, flag: str, fewest: int = FEWEST_PEOPLE) -> list[LabelledSource]:
    """The folders with photos below `root`.

    Raises:
        InputError: no folder, fewer subjects than `fewest`, or two names for one folder.
    """
    notes = [unpacked_note(root), beside_note(people_root(root))] if root.is_dir() else []
    for note in filter(None, notes):
        warnings.warn(f"{flag} {root}: {note}.", InputWarning, stacklevel=2)
    root = people_root(root)
    subjects = subfolders(root) if root.is_dir() else []
    check_distinct((subject.name for subject in subjects), f"{flag} {root}")
    if not subjects:
        raise InputError(
            f"{flag} {root}: expected a folder whose subfolders are people, each with photos, or with a "
            "subfolder for each set."
        )
    found = []
    real: dict[Path, Path] = {}
    for subject in subjects:
        places = [(subject, False), *((folder, True) for folder in subfolders(subject))]
        for folder, is_set in places:
            first = real.setdefault(folder.resolve(), folder)
            if first != folder:
                raise InputError(
                    f"{flag} {root}: {first.relative_to(root)} and {folder.relative_to(root)} are one folder "
                    "under two names. Keep one of them."
                )
            source = SetSource(folder.relative_to(root).as_posix(), folder, with_subfolders=is_set)
            if _has_files(source):
                found.append(LabelledSource(escaped(subject.name), source, is_set))
    people = {each.subject for each in found}
    if bare := [escaped(each.name) for each in subjects if escaped(each.name) not in people]:
        more = f" and {len(bare) - _BARE_SHOWN:,} more" if len(bare) > _BARE_SHOWN else ""
        warnings.warn(
            f"{flag} {root}: there are no photos or videos in {', '.join(bare[:_BARE_SHOWN])}{more}.",
            InputWarning,
            stacklevel=2,
        )
    if len(people) < fewest:
        raise InputError(
            f"{flag} {root}: {len(people)} people with photos; expected {fewest} or more, each a subfolder."
        )
    return found


def describe_labelled(
    model: FaceModel, sources: Sequence[LabelledSource], options: PhotoOptions, *, seed: int = 0
) -> LabelledSets:
    """Describes all sets; the same seed splits photos alike, whoever else is in the folder.

    A photo that a subject has twice counts once: two sets that share a picture are no mated pair.

    Raises:
        InputError: no face in any folder, or all photos of a subject are another one's too.
    """
    described, empty = aggregate_sets(model, [each.source for each in sources], options)
    of_name = {each.source.name: each for each in sources}
    rejected = rejection_text(described, empty, all_in="left_out of the file that is written")
    rejected += face_choice_text(described) + mixed_text(
        model, described, [of_name[each.name].subject for each in described]
    )
    if not described:
        raise InputError(
            f"nothing was written, as no file of the folders is usable: {rejection_reasons(empty)}"
        )
    kept, said = without_copies(described, [of_name[each.name].subject for each in described])
    notes = said
    names, sizes, descriptors, subjects = [], [], [], []
    for each, rows_kept in zip(described, kept, strict=True):
        labelled = of_name[each.name]
        media = np.array([face.medium for face in each.faces], np.int64)
        if not len(rows_kept):
            notes.append(f"{each.name}: all of it are copies; it is left out.")
            continue
        parts = [rows_kept]
        if not labelled.is_set:
            rng = np.random.default_rng([seed, zlib.crc32(each.name.encode())])
            parts = [rows_kept[part] for part in split_photos(media[rows_kept], rng)]
        for number, rows in enumerate(parts):
            names.append(each.name if labelled.is_set else f"{each.name} (set {number + 1})")
            sizes.append(len(rows))
            descriptors.append(_descriptor(model, each, rows, media))
            subjects.append(labelled.subject)
    people, numbers = np.unique(subjects, return_inverse=True)
    everything: list[AggregatedSet | EmptySet] = [*empty, *described]
    return LabelledSets(
        people=people.tolist(),
        subjects=numbers.astype(np.int64),
        names=names,
        sizes=np.array(sizes, np.int64),
        descriptors=np.stack(descriptors),
        notes=notes,
        failures=_failures(sources, {each.name for each in empty}),
        rejected=rejected,
        left_out=tuple(
            (f"{each.name}/{one.name}", one.reason) for each in everything for one in each.rejected
        ),
    )


def mixed_text(model: FaceModel, described: Sequence[AggregatedSet], subjects: Sequence[str]) -> str:
    """Whose photos may show more than one person, a line each; '' for none, and where that is not known."""
    if model.spec.unmeasured_warning(
        np.stack([each.embedding for each in described]), np.arange(len(described))
    ):
        return ""
    people: dict[str, list[AggregatedSet]] = {}
    for subject, each in zip(subjects, described, strict=True):
        people.setdefault(subject, []).append(each)
    lines = []
    for subject, sets in people.items():
        whole = sets[0] if len(sets) == 1 else _joined(subject, sets)
        if text := contamination_text(model, whole):
            lines.append(f"  {subject}: {text}\n")
    if not lines:
        return ""
    more = f"  ... and {len(lines) - _MIXED_SHOWN:,} more.\n" if len(lines) > _MIXED_SHOWN else ""
    return (
        f"warning: the photos of {len(lines):,} of {len(people):,} people may show someone else too, which "
        f"makes all thresholds wrong:\n{''.join(lines[:_MIXED_SHOWN])}{more}"
    )


def _joined(subject: str, sets: Sequence[AggregatedSet]) -> AggregatedSet:
    """All sets of a person as one, for a check: the descriptor is that of the first."""
    faces, first = [], 0
    for each in sets:
        faces += [
            replace(face, name=f"{each.name}/{face.name}", medium=first + face.medium) for face in each.faces
        ]
        first += 1 + max(face.medium for face in each.faces)
    return replace(
        sets[0],
        name=subject,
        faces=faces,
        features=np.concatenate([each.features for each in sets]),
        norms=np.concatenate([each.norms for each in sets]),
    )


def _failures(sources: Sequence[LabelledSource], empty: set[str]) -> EnrolmentFailures:
    enrolled = {each.subject for each in sources if each.source.name not in empty}
    people = {each.subject for each in sources}
    return EnrolmentFailures(len(sources), len(empty), len(people), len(people - enrolled))


def without_copies(
    described: Sequence[AggregatedSet], subjects: Sequence[str]
) -> tuple[list[NDArray[np.int64]], list[str]]:
    """Rows of each set's faces that are left when copies of photos and videos are not counted; and sentences.

    Args:
        described: sets.
        subjects: whose each is.

    Raises:
        InputError: as `find_copies`.
    """
    people = sorted(set(subjects))
    number = {name: place for place, name in enumerate(people)}
    owners: list[int] = []
    rows: list[NDArray[np.int64]] = []
    sketches: list[NDArray[np.float32]] = []
    names: list[str] = []
    for place, each in enumerate(described):
        media = np.array([face.medium for face in each.faces], np.int64)
        for medium in np.unique(media).tolist():
            own = np.flatnonzero(media == medium)
            faces = [each.faces[row] for row in evenly(own.tolist(), SKETCHED_FRAMES)]
            # Thumbnails have six times the side of a sketch.
            sketches.append(np.stack([sketch(decode_image(face.thumbnail, upright=False)) for face in faces]))
            owners.append(place)
            rows.append(own)
            names.append(f"{each.name}/{faces[0].name}")
    copies = find_copies(sketches, np.array([number[subjects[owner]] for owner in owners], np.int64), people)
    gone = copies.left_out
    kept: list[list[NDArray[np.int64]]] = [[] for _ in described]
    for medium, owner in enumerate(owners):
        if medium not in gone:
            kept[owner].append(rows[medium])
    return [
        np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64) for parts in kept
    ], copies_text("photos", copies, names)


def split_photos(media: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Rows of a subject's faces as sets: disjoint by photo and video, two or more where it can be.

    Each set is of a size group drawn from those that the photos left over suffice for. At most eight sets.

    Args:
        media: (T,) number of the photo or video of each face.
        rng: draws.
    """
    numbers, counts = np.unique(media, return_counts=True)
    order = rng.permutation(len(numbers))
    numbers, counts = numbers[order], counts[order]
    parts: list[NDArray[np.int64]] = []
    at = 0
    while at < len(numbers) and len(parts) < _MOST_SETS:
        # The first leaves something for a second.
        end = len(numbers) - (1 if not parts and len(numbers) > 1 else 0)
        left = int(counts[at:end].sum())
        groups = [(low, high) for low, high in SIZE_GROUPS if low <= left]
        low, high = groups[rng.integers(len(groups))]
        target = int(rng.integers(low, min(high or _LARGEST_SET, left) + 1))
        taken = at + 1 + int(np.searchsorted(counts[at:end].cumsum(), target))
        parts.append(np.flatnonzero(np.isin(media, numbers[at : min(taken, end)])))
        at = min(taken, end)
    return parts


def _descriptor(
    model: FaceModel, each: AggregatedSet, rows: NDArray[np.int64], media: NDArray[np.int64]
) -> NDArray[np.float32]:
    if len(rows) == len(media):
        return each.embedding
    return aggregate_features(model, each.features[rows], each.norms[rows], media[rows]).embedding


def _has_files(source: SetSource) -> bool:
    return any(each.is_file() for each in source.files())

"""Labelled sets of several sizes from a folder of subjects, for a calibration.

Every subfolder of the root is a subject, and the subfolders of a subject are its sets. Photos directly in the
folder of a subject are split into sets without a common photo or video, whose sizes are drawn from the size
groups that the photos suffice for.
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
from data.sources.image_files import beside_note, subfolders, subjects_root, unpacked_note
from data.sources.subject_names import check_distinct
from evaluation.metrics.calibration import MIN_SUBJECTS
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
from runtime.text import first_lines, listed
from set_benchmark.media import evenly

# Faces of a drawn set; descriptors of larger ones differ little.
_LARGEST_SET = 32
_MIXED_SHOWN = 20
_NAMES_SHOWN = 5
# Sets of one subject, so that a subject with hundreds of photos does not dominate.
_MOST_SETS = 8


@dataclass(frozen=True)
class LabelledSource:
    """A folder with photos of a subject; `is_set`: whether they are one set, not to be split."""

    subject: str
    source: SetSource
    is_set: bool


@dataclass(frozen=True, eq=False)
class LabelledSets:
    """N sets of labelled subjects.

    Attributes:
        subject_names: S names, of the subjects with a set.
        subjects: (N,) int64 rows of `subject_names`.
        names: N names of sets.
        sizes: (N,) int64 numbers of faces.
        descriptors: (N, D) float32, unit rows.
        notes: sentences on sets that were left out.
        rejected: text on files and frames without a usable face (`rejection_text`), on photos of several
            faces, and on folders that may show several subjects.
        left_out: each of these files and frames as `<set>/<file>`, and why.
        failures: sets without a usable face, where a subject's loose photos are one set.
    """

    subject_names: list[str]
    subjects: NDArray[np.int64]
    names: list[str]
    sizes: NDArray[np.int64]
    descriptors: NDArray[np.float32]
    notes: list[str]
    failures: EnrolmentFailures
    rejected: str = ""
    left_out: tuple[tuple[str, str], ...] = ()


def find_labelled(root: Path, flag: str, min_subjects: int = MIN_SUBJECTS) -> list[LabelledSource]:
    """Find the folders with photos below `root`, which messages call `flag`.

    Raises:
        InputError: no folder, fewer subjects than `min_subjects`, or two names for one folder.
    """
    notes = [unpacked_note(root), beside_note(subjects_root(root))] if root.is_dir() else []
    for note in filter(None, notes):
        warnings.warn(f"{flag} {root}: {note}.", InputWarning, stacklevel=2)
    root = subjects_root(root)
    subjects = subfolders(root) if root.is_dir() else []
    check_distinct((subject.name for subject in subjects), f"{flag} {root}")
    if not subjects:
        raise InputError(
            f"{flag} {root}: expected a folder whose subfolders are subjects, each with photos, or with "
            "a subfolder for each set."
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
            if any(each.is_file() for each in source.files()):
                found.append(LabelledSource(escaped(subject.name), source, is_set))
    there = {each.subject for each in found}
    if bare := [escaped(each.name) for each in subjects if escaped(each.name) not in there]:
        warnings.warn(
            f"{flag} {root}: there are no photos or videos in {listed(bare, _NAMES_SHOWN)}.",
            InputWarning,
            stacklevel=2,
        )
    if len(there) < min_subjects:
        raise InputError(
            f"{flag} {root}: {len(there)} subjects with photos; expected {min_subjects} or more, each a "
            "subfolder."
        )
    return found


def aggregate_labelled(
    model: FaceModel, sources: Sequence[LabelledSource], options: PhotoOptions, *, seed: int = 0
) -> LabelledSets:
    """Aggregate all sets. How photos are split depends on the seed and the subject, not on other subjects.

    Copies of a photo count once: two sets with a common photo are no mated pair.

    Raises:
        InputError: no usable face in any folder, or all photos of a subject are also those of another.
    """
    described, empty = aggregate_sets(model, [each.source for each in sources], options)
    if not described:
        raise InputError(
            f"nothing was written, as no file of the folders is usable: {rejection_reasons(empty)}"
        )
    of_name = {each.source.name: each for each in sources}
    owners = [of_name[each.name].subject for each in described]
    rejected = rejection_text(described, empty, all_in="left_out of the calibration file")
    rejected += face_choice_text(described) + mixed_text(model, described, owners)
    kept, notes = without_copies(described, owners)
    names, sizes, descriptors, subjects = [], [], [], []
    for each, rows_kept in zip(described, kept, strict=True):
        labelled = of_name[each.name]
        media = np.array([face.medium for face in each.faces], np.int64)
        if not len(rows_kept):
            notes.append(f"{each.name}: all of its photos are copies.")
            continue
        parts = [rows_kept]
        if not labelled.is_set:
            rng = np.random.default_rng([seed, zlib.crc32(each.name.encode())])
            parts = [rows_kept[part] for part in split_photos(media[rows_kept], rng)]
        for number, rows in enumerate(parts):
            names.append(each.name if labelled.is_set else f"{each.name} (set {number + 1})")
            sizes.append(len(rows))
            descriptors.append(
                each.embedding
                if len(rows) == len(media)
                else aggregate_features(model, each.features[rows], each.norms[rows], media[rows]).embedding
            )
            subjects.append(labelled.subject)
    subject_names, numbers = np.unique(subjects, return_inverse=True)
    everything: list[AggregatedSet | EmptySet] = [*empty, *described]
    everyone = {each.subject for each in sources}
    return LabelledSets(
        subject_names=subject_names.tolist(),
        subjects=numbers.astype(np.int64),
        names=names,
        sizes=np.array(sizes, np.int64),
        descriptors=np.stack(descriptors),
        notes=notes,
        failures=EnrolmentFailures(len(sources), len(empty), len(everyone), len(everyone - set(owners))),
        rejected=rejected,
        left_out=tuple(
            (f"{each.name}/{one.name}", one.reason) for each in everything for one in each.rejected
        ),
    )


def mixed_text(model: FaceModel, described: Sequence[AggregatedSet], subjects: Sequence[str]) -> str:
    """Subjects whose photos may show more than one person, one per line; '' if none, or if not known."""
    if model.spec.unmeasured_warning(
        np.stack([each.embedding for each in described]), np.arange(len(described))
    ):
        return ""
    of_subject: dict[str, list[AggregatedSet]] = {}
    for subject, each in zip(subjects, described, strict=True):
        of_subject.setdefault(subject, []).append(each)
    lines = []
    for subject, sets in of_subject.items():
        whole = sets[0] if len(sets) == 1 else _joined(subject, sets)
        if text := contamination_text(model, whole):
            lines.append(f"  {subject}: {text}")
    if not lines:
        return ""
    shown = first_lines(lines, _MIXED_SHOWN, "  ... and {} more.")
    return (
        f"warning: the photos of {len(lines):,} of {len(of_subject):,} subjects may show other persons too, "
        "which makes all thresholds wrong:\n" + "".join(f"{line}\n" for line in shown)
    )


def _joined(subject: str, sets: Sequence[AggregatedSet]) -> AggregatedSet:
    """Join all sets of a subject for a check; the descriptor is that of the first."""
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


def without_copies(
    described: Sequence[AggregatedSet], subjects: Sequence[str]
) -> tuple[list[NDArray[np.int64]], list[str]]:
    """Rows of each set's faces without copies of photos and videos, and sentences on the copies.

    `subjects`: the subject of each set. Raises InputError as `find_copies`.
    """
    everyone, numbers = np.unique(subjects, return_inverse=True)
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
    copies = find_copies(sketches, numbers[owners].astype(np.int64), everyone.tolist())
    kept = [[np.zeros(0, np.int64)] for _ in described]
    for medium, owner in enumerate(owners):
        if medium not in copies.left_out:
            kept[owner].append(rows[medium])
    return [np.sort(np.concatenate(parts)) for parts in kept], copies_text("photos", copies, names)


def split_photos(media: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Split the rows of a subject's faces into sets without a common photo or video, two or more if possible.

    The size group of each set is drawn from those that the remaining photos suffice for. At most eight sets.

    Args:
        media: (T,) number of the photo or video of each face.
        rng: of the draws.
    """
    numbers, counts = np.unique(media, return_counts=True)
    order = rng.permutation(len(numbers))
    numbers, counts = numbers[order], counts[order]
    parts: list[NDArray[np.int64]] = []
    at = 0
    while at < len(numbers) and len(parts) < _MOST_SETS:
        # Leave a photo for a second set.
        end = len(numbers) - (1 if not parts and len(numbers) > 1 else 0)
        left = int(counts[at:end].sum())
        groups = [(low, high) for low, high in SIZE_GROUPS if low <= left]
        low, high = groups[rng.integers(len(groups))]
        target = int(rng.integers(low, min(high or _LARGEST_SET, left) + 1))
        taken = at + 1 + int(np.searchsorted(counts[at:end].cumsum(), target))
        parts.append(np.flatnonzero(np.isin(media, numbers[at : min(taken, end)])))
        at = min(taken, end)
    return parts

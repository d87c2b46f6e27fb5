"""Collect the media of a set benchmark: stills and clips of subjects from a folder, a pack or features.

A folder contains `<subject>/<image>`, `<subject>/<clip>/<frame>` and `<subject>/<video>`; faces in images
that are not 112 x 112 are detected and aligned.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from data.checks.near_duplicates import SKETCHED_FRAMES, Floats, find_copies, sketch
from data.sources.decoding import (
    FACE_SIZE,
    Image,
    WrongSizeError,
    decode_face,
    decode_image,
    encode_image,
    read_encoded,
    suffix_of,
)
from data.sources.face_source import FaceSource, open_source
from data.sources.image_files import (
    beside_note,
    is_image_file,
    is_video,
    pair_set_folders,
    subfolders,
    subjects_root,
    visible,
)
from data.sources.recordio import REC_NAME
from data.sources.subject_names import check_distinct, match_names, unknown_names
from features.bank import FeatureBank
from photos.detection import FaceDetector, find_detector
from photos.photo_files import decode_photo
from photos.videos import frames
from runtime.errors import InputError
from runtime.progress import progress_bar
from set_benchmark.protocol import BenchmarkProtocol

_Thing = TypeVar("_Thing")
# Subjects and their numbers of media -> subjects to read.
Choice = Callable[[dict[str, int]], list[str]]

# Formats that are copied; others are written as PNG.
_KEPT_SUFFIXES = (".jpg", ".png")


@dataclass(frozen=True)
class Frame:
    """A face: `row` of a pack or of features, or a file; `score` of the detector, 1 for aligned images."""

    row: int = -1
    path: Path | None = None
    score: float = 1.0


@dataclass(frozen=True)
class Medium:
    """A still or a clip of a subject (its index); `name`: its origin."""

    subject: int
    name: str
    frames: tuple[Frame, ...]
    is_clip: bool


@dataclass
class MediaPool:
    """All usable media in order, and what was excluded.

    `source`: a pack, None for files; `bank`: features instead of pixels; `rejected`: (file, reason);
    `duplicates`: (medium, earlier near-duplicate of its subject); `two_names`: pairs of near-duplicates of
    two subjects, both excluded; `named_out`: a sentence on subjects excluded by name.
    """

    subjects: list[str]
    media: list[Medium]
    source: FaceSource | None = None
    bank: FeatureBank | None = None
    rejected: list[tuple[str, str]] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    two_names: list[tuple[str, str]] = field(default_factory=list)
    named_out: str = ""

    def encoded(self, frame: Frame) -> bytes:
        """The encoded image as stored."""
        if self.source is not None:
            return self.source.read_bytes(frame.row)
        if frame.path is None:
            raise InputError("there are features only, no images.")
        try:
            return read_encoded(frame.path)
        except InputError as fault:
            raise InputError(f"{frame.path}: {fault}") from None

    def image(self, frame: Frame) -> Image:
        """(112, 112, 3) RGB."""
        return decode_face(self.encoded(frame), str(frame.path or frame.row))


def kept_suffix(encoded: bytes) -> str | None:
    """The suffix of an image that can be copied; None for other formats."""
    suffix = suffix_of(encoded)
    return suffix if suffix in _KEPT_SUFFIXES else None


def collect_media(
    source: Path,
    protocol: BenchmarkProtocol,
    work: Path,
    *,
    detector: Path | None,
    exclude: frozenset[str],
    chosen: Choice,
) -> MediaPool:
    """Find, read and check all media.

    Args:
        source: a folder of subjects, or one with train.rec.
        protocol: for the number of frames of a clip.
        work: folder for faces cropped from photos and videos.
        detector: YuNet's file; None means the cached one.
        exclude: subjects to exclude.
        chosen: selects the subjects to read.

    Raises:
        InputError: no subjects, two subjects with the same folder or images, or no usable face.
    """
    if (source / REC_NAME).is_file():
        pool = _media_of_pack(open_source(source, use_mxrecord=True), exclude, chosen)
        reader = None
    else:
        folders = _subject_folders(subjects_root(source))
        away, named_out = _named(exclude, folders, source)
        folders = {name: path for name, path in folders.items() if name not in away}
        names = chosen({name: len(visible(folder)) for name, folder in folders.items()})
        pool = MediaPool(names, [], named_out=named_out)
        pool.rejected += [(folder.name, "is an unpacked pair set") for folder in pair_set_folders(source)]
        if note := beside_note(subjects_root(source)):
            pool.rejected.append((source.name, note))
        reader = _FolderReader(protocol, work, detector, pool)
        for number, name in enumerate(names):
            reader.add(number, name, folders[name])
    _check_pictures(pool)
    if not pool.media:
        first = [f": {name}: {why} ({len(pool.rejected):,} in all)" for name, why in pool.rejected[:1]]
        raise InputError(f"{source}: no usable image{''.join(first)}.")
    return pool


def media_of_bank(bank: FeatureBank, exclude: frozenset[str], chosen: Choice) -> MediaPool:
    """The media of features: an image with its views is a still, frames of one medium are a clip."""
    away, named_out = _named(exclude, bank.subjects, bank.name)
    bank = bank.of_subjects(chosen(_counts(bank.subjects, bank.labels, away)))
    media = []
    for label, start, length in zip(bank.labels, bank.starts, bank.lengths, strict=True):
        rows = range(int(start), int(start + length))
        is_clip = bank.plan is None and len(rows) > 1
        media.append(Medium(int(label), f"row {start}", tuple(Frame(row) for row in rows), is_clip))
    return MediaPool(list(bank.subjects), media, bank=bank, named_out=named_out)


def _media_of_pack(source: FaceSource, exclude: frozenset[str], chosen: Choice) -> MediaPool:
    away, named_out = _named(exclude, source.subjects, source.name)
    names = chosen(_counts(source.subjects, source.labels, away))
    number = {name: place for place, name in enumerate(names)}
    media = [
        Medium(number[name], source.describe(row).removeprefix(f"{source.location}/"), (Frame(row),), False)
        for row, label in enumerate(source.labels.tolist())
        if (name := source.subjects[label]) in number
    ]
    return MediaPool(names, media, source=source, named_out=named_out)


def _named(exclude: frozenset[str], subjects: Iterable[str], data: object) -> tuple[frozenset[str], str]:
    """The subjects excluded by name, and a sentence; raises InputError if no name matches."""
    if not exclude:
        return frozenset(), ""
    there = list(subjects)
    matches = match_names(exclude, there, "--exclude_subjects", str(data))
    return matches.subjects, (
        f"{len(matches.subjects):,} of {len(exclude):,} names to exclude are subjects of the source"
        + unknown_names(matches, there)
    )


def _counts(subjects: list[str], labels: NDArray[np.int64], exclude: frozenset[str]) -> dict[str, int]:
    counts = np.bincount(labels, minlength=len(subjects)).tolist()
    return {name: count for name, count in zip(subjects, counts, strict=True) if name not in exclude}


# -------------------------------------------------------------------------------------------- folders


def _subject_folders(source: Path) -> dict[str, Path]:
    if not source.is_dir():
        raise InputError(
            f"{source}: no such folder. Expected <folder>/<subject>/<image>, a folder with "
            f"{REC_NAME}, or features."
        )
    found = {path.name: path for path in subfolders(source)}
    check_distinct(found, str(source))
    if not found:
        raise InputError(f"{source}: no subject folders found. Expected {source}/<subject>/<image>.")
    real: dict[Path, list[str]] = {}
    for name, path in found.items():
        real.setdefault(path.resolve(), []).append(name)
    if twice := [names for names in real.values() if len(names) > 1]:
        raise InputError.from_faults(
            [
                f"{source}: {' and '.join(names)} are names of the same folder. Keep one of them."
                for names in twice
            ]
        )
    return found


class _FolderReader:
    """Adds the media of subject folders to a pool; cropped faces are written to `work`."""

    def __init__(
        self, protocol: BenchmarkProtocol, work: Path, detector: Path | None, pool: MediaPool
    ) -> None:
        self._most, self._fps = protocol.clip_frames[1], protocol.fps
        self._work, self._given, self._pool = work, detector, pool
        self._count = 0

    @cached_property
    def _detector(self) -> FaceDetector:
        return FaceDetector(find_detector(self._given))

    def add(self, subject: int, name: str, folder: Path) -> None:
        """Add all media of a subject, sorted by name."""
        before = len(self._pool.media)
        for path in visible(folder):
            where = f"{name}/{path.name}"
            is_still = False
            if path.is_dir():
                faces = self._frames_of(path, where)
            elif is_video(path):
                faces = self._frames_of_video(path, where)
            elif is_still := is_image_file(str(path)):
                faces = self._still(path, where)
            else:
                self._pool.rejected.append((where, "is neither an image nor a video"))
                continue
            if found := tuple(faces):
                self._pool.media.append(Medium(subject, where, found, is_clip=not is_still))
        if len(self._pool.media) == before:
            self._pool.rejected.append((name, "has no usable image"))

    def _frames_of(self, folder: Path, name: str) -> Iterator[Frame]:
        inside = visible(folder)
        paths = sorted((path for path in inside if path.is_file() and is_image_file(str(path))), key=_natural)
        self._pool.rejected += [
            (f"{name}/{path.name}", "is not an image") for path in inside if path not in paths
        ]
        if not paths:
            self._pool.rejected.append((name, "has no images"))
        for path in evenly(paths, self._most):
            yield from self._still(path, f"{name}/{path.name}")

    def _frames_of_video(self, path: Path, name: str) -> Iterator[Frame]:
        """Read the video twice, to count its frames and to choose some, with one frame in memory."""
        count = 0
        try:
            for _ in frames(path, self._fps):
                count += 1
        except InputError as fault:
            self._pool.rejected.append((name, str(fault).removeprefix(f"{path}: ").rstrip(".")))
        wanted = evenly(range(count), self._most)
        found = False
        if wanted:
            for number, frame in enumerate(islice(frames(path, self._fps), wanted[-1] + 1)):
                for face in self._cut(frame.image) if number in wanted else ():
                    found = True
                    yield face
        if count and not found:
            self._pool.rejected.append((name, "no face detected in its frames"))

    def _still(self, path: Path, name: str) -> Iterator[Frame]:
        """The file itself if it is an aligned face, else the detected face."""
        try:
            encoded = read_encoded(path)
            try:
                decode_image(encoded, upright=False, side=FACE_SIZE)
            except WrongSizeError:
                found = list(self._cut(decode_photo(encoded)))
            else:
                found = [Frame(path=path)]
        except InputError as fault:
            self._pool.rejected.append((name, str(fault).rstrip(".")))
            return
        if not found:
            self._pool.rejected.append((name, "no face detected"))
        yield from found

    def _cut(self, photo: Image) -> Iterator[Frame]:
        if photo.shape[:2] == (FACE_SIZE, FACE_SIZE):
            yield Frame(path=self._keep(photo))
            return
        for face in self._detector.detect(photo):
            yield Frame(path=self._keep(face.aligned(photo)), score=face.score)

    def _keep(self, face: Image) -> Path:
        self._work.mkdir(parents=True, exist_ok=True)
        path = self._work / f"{self._count}.png"
        self._count += 1
        path.write_bytes(encode_image(face, ".png"))
        return path


def evenly(things: Sequence[_Thing], most: int) -> list[_Thing]:
    """At most `most` elements of a sequence, evenly spaced, including the first and the last."""
    if len(things) <= most:
        return list(things)
    places = (
        np.linspace(0, len(things) - 1, most).round().astype(int)
        if most > 1
        else np.array([len(things) // 2])
    )
    return [things[place] for place in places.tolist()]


def _natural(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Sort key of natural order: frame 10 after frame 9, with or without leading zeros."""
    # Without the text after the last number, such as the suffix.
    parts = filter(None, re.split(r"(\d+)", path.name)[:-1])
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)


# ----------------------------------------------------------------------------------- the same picture twice


def _check_pictures(pool: MediaPool) -> None:
    """Read all faces once; remove unreadable media and near-duplicates."""
    sketches: list[Floats] = []
    readable: list[Medium] = []
    for medium in progress_bar(pool.media, desc="reading", unit=" media", mininterval=0.5):
        try:
            own = [sketch(pool.image(frame)) for frame in evenly(medium.frames, SKETCHED_FRAMES)]
        except InputError as fault:
            pool.rejected.append((medium.name, str(fault)))
            continue
        sketches.append(np.stack(own))
        readable.append(medium)
    subjects = np.array([medium.subject for medium in readable], np.int64)
    copies = find_copies(sketches, subjects, pool.subjects)
    names, gone = [medium.name for medium in readable], copies.left_out
    pool.duplicates += [(names[again], names[first]) for again, first in copies.within.items()]
    pool.two_names += [(names[first], names[second]) for first, second in copies.between]
    pool.media = [medium for place, medium in enumerate(readable) if place not in gone]

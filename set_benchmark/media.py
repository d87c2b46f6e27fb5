"""The media that a set benchmark is made of: stills and clips of subjects, from a folder, a pack or features.

A folder holds `<subject>/<image>`, `<subject>/<clip>/<frame>` and `<subject>/<video>`; what is not 112 x 112
is found and aligned by the detector. Which media make which template is said in `set_benchmark.plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from data.checks.near_duplicates import SKETCHED_FRAMES, Floats, find_copies, sketch
from data.sources.decoding import (
    FACE_SIZE,
    Image,
    WrongSizeError,
    decode_face,
    decode_image,
    read_encoded,
    suffix_of,
)
from data.sources.face_source import FaceSource, open_source
from data.sources.image_files import (
    beside_note,
    is_image_file,
    is_video,
    pair_set_folders,
    people_root,
    subfolders,
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
# Names of subjects and how many media each has -> those that are looked at.
Choice = Callable[[dict[str, int]], list[str]]

# Images that are written as they are; others as PNG.
_KEPT_SUFFIXES = (".jpg", ".png")


@dataclass(frozen=True)
class Frame:
    """A face: `row` of a pack or of features, or a file; `score` the detector's, 1 for aligned images."""

    row: int = -1
    path: Path | None = None
    score: float = 1.0


@dataclass(frozen=True)
class Medium:
    """A still or a clip of one subject (its number); `name`: where it comes from."""

    subject: int
    name: str
    frames: tuple[Frame, ...]
    is_clip: bool


@dataclass
class MediaPool:
    """All media that can be used, in order, and what was left out.

    `rejected`: files and why; `duplicates`: media and what they show again; `two_names`: media that stand
    under two subjects, both left out; `named_out`: who is left out by name. `source`: of the pixels, None
    where they are files; `bank`: features in place of pixels.
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
        """The bytes of an image as they are stored."""
        if self.source is not None:
            return self.source.read_bytes(frame.row)
        if frame.path is None:
            raise InputError("features have no images.")
        try:
            return read_encoded(frame.path)
        except InputError as fault:
            raise InputError(f"{frame.path}: {fault}") from None

    def image(self, frame: Frame) -> Image:
        """(112, 112, 3) RGB."""
        return decode_face(self.encoded(frame), str(frame.path or frame.row))


def kept_suffix(encoded: bytes) -> str | None:
    """The suffix of an image whose bytes can be written as they are; None for other formats."""
    suffix = suffix_of(encoded)
    return suffix if suffix in _KEPT_SUFFIXES else None


def collect_media(
    source: Path,
    protocol: BenchmarkProtocol,
    work: Path,
    *,
    detector: Path | None,
    without: frozenset[str],
    chosen: Choice,
) -> MediaPool:
    """Finds, reads and checks all media.

    Args:
        source: a folder of subjects, or one with train.rec.
        protocol: says how many frames of a clip are used.
        work: a folder for faces that have to be cut out of photos and videos.
        detector: YuNet's file; None is the one in the cache.
        without: subjects to leave out.
        chosen: says which subjects are looked at.

    Raises:
        InputError: no subjects, two names for one folder or for the same images, or no face that can be used.
    """
    if (source / REC_NAME).is_file():
        pool = _media_of_pack(open_source(source, use_mxrecord=True), without, chosen)
        reader = None
    else:
        folders = _subject_folders(people_root(source))
        away, named_out = _named(without, folders, source)
        folders = {name: path for name, path in folders.items() if name not in away}
        names = chosen({name: _count(folder) for name, folder in folders.items()})
        pool = MediaPool(names, [], named_out=named_out)
        pool.rejected += [
            (folder.name, "is an unpacked pair set, and no person") for folder in pair_set_folders(source)
        ]
        if note := beside_note(people_root(source)):
            pool.rejected.append((source.name, note))
        reader = _FolderReader(protocol, work, detector, pool)
        for number, name in enumerate(names):
            reader.add(number, name, folders[name])
    _check_pictures(pool)
    if not pool.media:
        raise InputError(f"{source}: {_why_nothing(pool)}")
    return pool


def media_of_bank(bank: FeatureBank, without: frozenset[str], chosen: Choice) -> MediaPool:
    """The media of features: an image and its views are a still, frames of one medium are a clip."""
    away, named_out = _named(without, bank.subjects, bank.name)
    bank = bank.of_subjects(chosen(_counts(bank.subjects, bank.labels, away)))
    media = []
    for label, start, length in zip(bank.labels, bank.starts, bank.lengths, strict=True):
        rows = range(int(start), int(start + length))
        is_clip = bank.plan is None and len(rows) > 1
        media.append(Medium(int(label), f"row {start}", tuple(Frame(row) for row in rows), is_clip))
    return MediaPool(list(bank.subjects), media, bank=bank, named_out=named_out)


def _media_of_pack(source: FaceSource, without: frozenset[str], chosen: Choice) -> MediaPool:
    away, named_out = _named(without, source.subjects, source.name)
    names = chosen(_counts(source.subjects, source.labels, away))
    number = {name: place for place, name in enumerate(names)}
    media = [
        Medium(number[name], source.describe(row).removeprefix(f"{source.location}/"), (Frame(row),), False)
        for row, label in enumerate(source.labels.tolist())
        if (name := source.subjects[label]) in number
    ]
    return MediaPool(names, media, source=source, named_out=named_out)


def _named(without: frozenset[str], subjects: Iterable[str], data: object) -> tuple[frozenset[str], str]:
    """The subjects that are left out by name, and a sentence; InputError where a list names none of them."""
    if not without:
        return frozenset(), ""
    there = list(subjects)
    matches = match_names(without, there, "--exclude_subjects", str(data))
    return matches.subjects, (
        f"{len(matches.subjects):,} of {len(without):,} names to leave out are subjects of the source"
        + unknown_names(matches, there)
    )


def _counts(subjects: list[str], labels: NDArray[np.int64], without: frozenset[str]) -> dict[str, int]:
    counts = np.bincount(labels, minlength=len(subjects)).tolist()
    return {name: count for name, count in zip(subjects, counts, strict=True) if name not in without}


# -------------------------------------------------------------------------------------------- folders


def _count(folder: Path) -> int:
    return len(visible(folder))


def _subject_folders(source: Path) -> dict[str, Path]:
    if not source.is_dir():
        raise InputError(
            f"{source}: there is no such folder. Expected <folder>/<subject>/<image>, a folder with "
            f"{REC_NAME}, or features."
        )
    found = {path.name: path for path in subfolders(source)}
    check_distinct(found, str(source))
    if not found:
        raise InputError(f"{source}: holds no subject folders. Expected {source}/<subject>/<image>.")
    real: dict[Path, list[str]] = {}
    for name, path in found.items():
        real.setdefault(path.resolve(), []).append(name)
    if twice := [names for names in real.values() if len(names) > 1]:
        raise InputError.from_faults(
            [
                f"{source}: {' and '.join(names)} are two names for one folder. Keep one of them."
                for names in twice
            ]
        )
    return found


class _FolderReader:
    """Adds the media of subject folders to a pool; faces that have to be cut out are kept in `work`."""

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
        """All media of a subject, in the order of their names."""
        before = len(self._pool.media)
        for path in visible(folder):
            where = f"{name}/{path.name}"
            if path.is_dir():
                self._add(subject, where, list(self._frames_of(path, where)), is_clip=True)
            elif is_video(path):
                self._add(subject, where, list(self._frames_of_video(path, where)), is_clip=True)
            elif is_image_file(str(path)):
                self._add(subject, where, list(self._still(path, where)), is_clip=False)
            else:
                self._pool.rejected.append((where, "is neither an image nor a video"))
        if len(self._pool.media) == before:
            self._pool.rejected.append((name, "holds no image that can be used"))

    def _add(self, subject: int, name: str, found: list[Frame], *, is_clip: bool) -> None:
        if found:
            self._pool.media.append(Medium(subject, name, tuple(found), is_clip))

    def _frames_of(self, folder: Path, name: str) -> Iterator[Frame]:
        inside = visible(folder)
        paths = sorted((path for path in inside if path.is_file() and is_image_file(str(path))), key=_natural)
        self._pool.rejected += [
            (f"{name}/{path.name}", "is no image") for path in inside if path not in paths
        ]
        if not paths:
            self._pool.rejected.append((name, "holds no images"))
        for path in evenly(paths, self._most):
            yield from self._still(path, f"{name}/{path.name}")

    def _frames_of_video(self, path: Path, name: str) -> Iterator[Frame]:
        """Reads the video twice, to count its frames and to take some: one frame is held at a time."""
        count = 0
        try:
            for _ in frames(path, self._fps):
                count += 1
        except InputError as fault:
            self._pool.rejected.append((name, _without_path(fault, path)))
        wanted = evenly(range(count), self._most)
        found = False
        if wanted:
            for number, frame in enumerate(islice(frames(path, self._fps), wanted[-1] + 1)):
                for face in self._cut(frame.image) if number in wanted else ():
                    found = True
                    yield face
        if count and not found:
            self._pool.rejected.append((name, "no face is found in its frames"))

    def _still(self, path: Path, name: str) -> Iterator[Frame]:
        """The file itself, if it is an aligned face; else what is cut out of it."""
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
            self._pool.rejected.append((name, "no face is found in it"))
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
        path.write_bytes(encode_png(face))
        return path


def encode_png(face: Image) -> bytes:
    """The bytes of a PNG of (H, W, 3) RGB."""
    return bytes(cv2.imencode(".png", cv2.cvtColor(face, cv2.COLOR_RGB2BGR))[1])


def evenly(things: Sequence[_Thing], most: int) -> list[_Thing]:
    """At most so many of a sequence, evenly spaced over it, the first and the last among them."""
    if len(things) <= most:
        return list(things)
    places = (
        np.linspace(0, len(things) - 1, most).round().astype(int)
        if most > 1
        else np.array([len(things) // 2])
    )
    return [things[place] for place in places.tolist()]


def _natural(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Frame 10 comes after frame 9, whatever the zeros before it."""
    parts: list[tuple[int, int, str]] = []
    text = ""
    for character in path.name + " ":
        if text and character.isdecimal() != text[-1].isdecimal():
            parts.append((0, int(text), "") if text.isdecimal() else (1, 0, text))
            text = ""
        text += character
    return tuple(parts)


def _without_path(fault: InputError, path: Path) -> str:
    return str(fault).removeprefix(f"{path}: ").rstrip(".")


# ----------------------------------------------------------------------------------- the same picture twice


def _check_pictures(pool: MediaPool) -> None:
    """Reads all faces once; leaves out what cannot be read, and what shows the same picture again."""
    sketches: list[Floats] = []
    readable: list[Medium] = []
    for medium in progress_bar(pool.media, desc="reading", unit=" media", mininterval=0.5):
        own: list[Floats] = []
        try:
            own.extend(sketch(pool.image(frame)) for frame in evenly(medium.frames, SKETCHED_FRAMES))
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


def _why_nothing(pool: MediaPool) -> str:
    if pool.rejected:
        name, why = pool.rejected[0]
        return f"there is no image that can be used: {name}: {why} ({len(pool.rejected):,} in all)."
    return "there is no image that can be used."

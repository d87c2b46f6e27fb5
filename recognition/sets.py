"""From what a person has (folders, photos, videos) to described sets: each face with its source and its part.

Photos are read, searched and embedded in a stream: what is kept of a face is its feature, a thumbnail and
what there is to say about it. How faces are found is in `data`; what is wrong with a set is said in
`enrolment`.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from data.sources.decoding import Image, memory_to_decode
from data.sources.image_files import (
    beside_note,
    files_below,
    is_video,
    people_root,
    subfolders,
    unpacked_note,
    visible,
)
from photos.detection import FaceDetector, find_detector
from photos.face_measures import FaceMeasures, measure_face
from photos.photo_files import check_aligned, read_aligned, read_photo, thumbnail
from photos.videos import expected_frames, frames
from recognition.colour_check import ColourSample
from recognition.enrolment.face_choice import AGREES, choose_faces
from recognition.model import FaceModel, describe_features, embed_images
from runtime.errors import InputError, InputWarning
from runtime.escaping import escaped
from runtime.files import kind_of_special
from runtime.progress import progress_bar

# Photos that are read and searched at a time, all within `data.sources.decoding.MOST_MEMORY`.
_READERS = max(1, min(4, os.cpu_count() or 1))


@dataclass(frozen=True)
class SetSource:
    """Where a set is: a folder of photos and videos, one photo, or one video; `name` is `escaped`.

    `with_subfolders`: what lies in subfolders of the folder belongs to the set.
    """

    name: str
    path: Path
    with_subfolders: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", escaped(self.name))


@dataclass(frozen=True)
class SetOptions:
    """How photos are read: `faces` of `photos.detection.FACES`; `fps` of videos; `detector`: YuNet's file."""

    faces: str = "largest"
    aligned: bool = False
    fps: float = 2.0
    detector: Path | None = None


@dataclass(frozen=True)
class Rejected:
    """A file or frame that gave no face, and why; all are `escaped`.

    `file`: the photo or video that it is, or is a frame of; `medium`: its number within the set.
    """

    name: str
    reason: str
    file: str = ""
    medium: int = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", escaped(self.name))
        object.__setattr__(self, "reason", escaped(self.reason))
        object.__setattr__(self, "file", escaped(self.file))


@dataclass(frozen=True)
class FaceChoice:
    """How one of several faces of about the same size in a photo or frame was chosen.

    Attributes:
        num_faces: of about the same size in the photo, the chosen one included.
        from_left: its number among them, counted from the left edge of the photo, 1 to num_faces.
        agrees: chosen because it resembles the rest of the set; False: because it is the largest.
    """

    num_faces: int
    from_left: int
    agrees: bool = False


@dataclass(frozen=True, eq=False)
class FaceRecord:
    """What is known of a face.

    Attributes:
        name: file, with the second of a video and the number among several faces of a photo; `escaped`.
        file: of the photo or video, below the set's folder; `escaped`.
        medium: number of the photo or video within its set.
        thumbnail: the aligned face as JPEG.
        size: height of the face in its photo, pixels; None for aligned images.
        score: the detector's, 0 to 1; None for aligned images.
        landmarks: (5, 2) x, y in its photo; None for aligned images.
        measures: pose, sharpness and light; None where nobody measured.
        alone: no other face of the same photo or frame is in the set.
        turned: degrees clockwise by which its photo was turned, which was upside down or lay on its side.
        choice: how it was chosen where its photo shows several faces of about the same size; else None.
    """

    name: str
    medium: int
    thumbnail: bytes
    size: float | None = None
    score: float | None = None
    landmarks: NDArray[np.float32] | None = None
    measures: FaceMeasures | None = None
    alone: bool = True
    choice: FaceChoice | None = None
    file: str = ""
    turned: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", escaped(self.name))
        object.__setattr__(self, "file", escaped(self.file))


@dataclass(frozen=True, eq=False)
class DescribedSet:
    """A set with at least one face, and its descriptor.

    Attributes:
        faces: T of them; `features` (T, D) float32 unit rows; `norms` (T,).
        embedding: (D,) float32, of length one.
        norm: its length before.
        picks: (k,) int64 chosen faces in the order of choice, may be empty.
        weights: (T,) float32 share of each face; None where the aggregator tells none.
        rejected: what gave no face.
    """

    name: str
    path: Path
    faces: list[FaceRecord]
    features: NDArray[np.float32]
    norms: NDArray[np.float32]
    embedding: NDArray[np.float32]
    norm: float
    picks: NDArray[np.int64]
    weights: NDArray[np.float32] | None
    rejected: list[Rejected]

    @property
    def files(self) -> list[str]:
        """(T,) names of the faces' sources."""
        return [face.name for face in self.faces]


@dataclass(frozen=True)
class EmptySet:
    """A set in which no face was found, and why."""

    name: str
    path: Path
    rejected: list[Rejected]


def find_sets(paths: Sequence[Path], images_root: Path | None = None) -> list[SetSource]:
    """The sets that are meant, named by folder or file; equal names get their parents in front.

    Raises:
        InputError: no set, or paths that are none; all in one message.
    """
    faults = [fault for path in paths if (fault := _fault_of_set(path))]
    found = list(paths)
    if images_root is not None:
        folders = subfolders(people_root(images_root)) if images_root.is_dir() else []
        notes = [unpacked_note(images_root), beside_note(people_root(images_root))] if folders else []
        for note in filter(None, notes):
            warnings.warn(f"--images_root {images_root}: {note}.", InputWarning, stacklevel=2)
        if not folders:
            faults.append(f"--images_root {images_root}: expected a folder whose subfolders are sets.")
        found += folders
    if not found and not faults:
        faults.append("no set: give folders of photos, images or videos, one for each person.")
    if faults:
        raise InputError.from_faults(faults)
    return [SetSource(name, path) for name, path in zip(_names(found), found, strict=True)]


def describe_sets(
    model: FaceModel, sources: Sequence[SetSource], options: SetOptions, *, progress: bool = True
) -> tuple[list[DescribedSet], list[EmptySet]]:
    """Describes sets, in their order; those without any face are told apart.

    Args:
        model: from `load_model`.
        sources: from `find_sets`.
        options: how they are read.
        progress: shows a bar.

    Raises:
        InputError: no detector. A file that cannot be read is no error: it is among `rejected`.
    """
    detector = None if options.aligned else find_detector(options.detector)
    gathered = [_Gathered([], [], [], [], []) for _ in sources]
    waiting: list[tuple[_Gathered, Image]] = []
    colours = ColourSample()
    with progress_bar(desc="finding faces", unit=" images", disable=not progress, mininterval=0.5) as bar:
        bar.total = sum(_expected(file, options.fps) for each in sources for file in files_of_set(each))
        for number, look in looks(sources, options, detector):
            into = gathered[number]
            into.rejected.extend(look.rejected)
            into.faces.extend(record for record, _ in look.faces)
            into.photos.extend([into.photos[-1] + 1 if into.photos else 0] * len(look.faces))
            for _, image in look.faces:
                colours.add(number, image)
            waiting.extend((into, image) for _, image in look.faces)
            while len(waiting) >= model.batch_size:
                _embed(model, waiting[: model.batch_size])
                del waiting[: model.batch_size]
            bar.update()
        _embed(model, waiting)
    if warning := colours.warning(model):
        warnings.warn(warning, InputWarning, stacklevel=2)
    described = [
        _described(model, source, into) for source, into in zip(sources, gathered, strict=True) if into.faces
    ]
    empty = [
        EmptySet(source.name, source.path, into.rejected)
        for source, into in zip(sources, gathered, strict=True)
        if not into.faces
    ]
    return described, empty


@dataclass(frozen=True, eq=False)
class Look:
    """What one photo or one frame gave: faces as record and (112, 112, 3) RGB, or why there are none.

    Where `SetOptions.faces` is 'largest', all faces of about the largest one's size, of which the set keeps
    one (`face_choice`).
    """

    faces: list[tuple[FaceRecord, Image]]
    rejected: list[Rejected]


def looks(
    sources: Sequence[SetSource], options: SetOptions, detector: Path | None
) -> Iterator[tuple[int, Look]]:
    """The number of a set, and what its next photo or frame gave; in order, while photos are read ahead."""
    reader = _Reader(options, detector)
    files = [
        (number, _Medium(file, medium, source.path))
        for number, source in enumerate(sources)
        for medium, file in enumerate(files_of_set(source))
    ]
    photos = iter([medium for _, medium in files if not is_video(medium.file)])
    ahead: deque[Future[Look]] = deque()
    with ThreadPoolExecutor(_READERS) as pool:
        for number, medium in files:
            if is_video(medium.file):
                for look in reader.video(medium):
                    yield number, look
                continue
            while len(ahead) < 2 * _READERS and (job := next(photos, None)) is not None:
                ahead.append(pool.submit(reader.photo, job))
            yield number, ahead.popleft().result()


@dataclass(frozen=True)
class _Medium:
    """A photo or video, and its number within the set at `root`."""

    file: Path
    number: int
    root: Path

    @property
    def name(self) -> str:
        """Below the set's folder."""
        return self.file.name if self.file == self.root else self.file.relative_to(self.root).as_posix()

    def rejected(self, fault: InputError) -> Rejected:
        return Rejected(self.name, str(fault).removeprefix(f"{self.file}: "), self.name, self.number)


class _Reader:
    """Photos and videos to looks. Threads take turns at the detectors, of which each serves one at a time."""

    def __init__(self, options: SetOptions, detector: Path | None) -> None:
        self._options = options
        self._detectors: SimpleQueue[FaceDetector] = SimpleQueue()
        if detector is not None:
            for _ in range(_READERS + 1):
                self._detectors.put(FaceDetector(detector))

    def photo(self, medium: _Medium) -> Look:
        try:
            if self._options.aligned:
                return self._faces(read_aligned(medium.file), medium.name, medium)
            with memory_to_decode(medium.file):
                return self._faces(read_photo(medium.file), medium.name, medium)
        except InputError as fault:
            return Look([], [medium.rejected(fault)])

    def video(self, medium: _Medium) -> Iterator[Look]:
        try:
            for frame in frames(medium.file, self._options.fps):
                yield self._faces(frame.image, f"{medium.name} at {frame.seconds:.2f} s", medium)
        except InputError as fault:
            yield Look([], [medium.rejected(fault)])

    def _faces(self, photo: Image, name: str, medium: _Medium) -> Look:
        if self._options.aligned:
            try:
                check_aligned(photo)
                own = FaceRecord(
                    name,
                    medium.number,
                    thumbnail(photo),
                    measures=measure_face(photo, None),
                    file=medium.name,
                )
                return Look([(own, photo)], [])
            except InputError as fault:
                return Look([], [Rejected(name, str(fault), medium.name, medium.number)])
        detector = self._detectors.get()
        try:
            found = detector.detect(photo, self._options.faces, with_similar=True)
        finally:
            self._detectors.put(detector)
        several = len(found) > 1
        keeps_all = self._options.faces == "all"
        from_left = sorted(range(len(found)), key=lambda place: found[place].box[0])
        records = []
        for number, face in enumerate(found):
            aligned = face.aligned(photo)
            about = FaceRecord(
                f"{name} #{number + 1}" if several and keeps_all else name,
                medium.number,
                thumbnail(aligned),
                face.height,
                face.score,
                face.landmarks,
                measure_face(aligned, face.landmarks),
                alone=not (several and keeps_all),
                choice=FaceChoice(len(found), from_left.index(number) + 1)
                if several and not keeps_all
                else None,
                file=medium.name,
                turned=face.turned,
            )
            records.append((about, aligned))
        rejected = [] if found else [Rejected(name, "no face was found in it.", medium.name, medium.number)]
        return Look(records, rejected)


@dataclass(frozen=True, eq=False)
class _Gathered:
    """A set while its faces come in; `photos`: number of the photo or frame of each face."""

    faces: list[FaceRecord]
    photos: list[int]
    features: list[NDArray[np.float32]]
    norms: list[NDArray[np.float32]]
    rejected: list[Rejected]


def _embed(model: FaceModel, faces: list[tuple[_Gathered, Image]]) -> None:
    if not faces:
        return
    features, norms = embed_images(model, np.stack([image for _, image in faces]))
    for (into, _), feature, norm in zip(faces, features, norms, strict=True):
        into.features.append(feature)
        into.norms.append(norm)


def _described(model: FaceModel, source: SetSource, gathered: _Gathered) -> DescribedSet:
    features, norms = np.stack(gathered.features), np.stack(gathered.norms)
    faces = gathered.faces
    if any(face.choice is not None for face in faces):
        limit = model.spec.cosine_limit(AGREES)
        rows, agrees = choose_faces(features, norms, np.array(gathered.photos, np.int64), limit)
        faces = [_chosen(faces[row], bool(agree)) for row, agree in zip(rows, agrees, strict=True)]
        features, norms = features[rows], norms[rows]
    media = np.array([face.medium for face in faces], np.int64)
    found = describe_features(model, features, norms, media)
    return DescribedSet(
        name=source.name,
        path=source.path,
        faces=faces,
        features=features,
        norms=norms,
        embedding=found.embedding,
        norm=found.norm,
        picks=found.picks,
        weights=found.weights,
        rejected=gathered.rejected,
    )


def _chosen(face: FaceRecord, agrees: bool) -> FaceRecord:
    return face if face.choice is None else replace(face, choice=replace(face.choice, agrees=agrees))


def files_of(path: Path) -> list[Path]:
    """The files of a folder itself by name, or the one file; with broken links and special files."""
    return [file for file in visible(path) if not file.is_dir()] if path.is_dir() else [path]


def files_of_set(source: SetSource) -> list[Path]:
    """All files of a set."""
    below = source.with_subfolders and source.path.is_dir()
    return files_below(source.path) if below else files_of(source.path)


def _fault_of_set(path: Path) -> str | None:
    if not path.exists():
        return f"{path}: there is no such folder, image or video."
    if kind := kind_of_special(path.stat().st_mode):
        return f"{path}: is {kind}, which is not opened. Expected a folder, an image or a video."
    if path.is_dir() and not files_of(path):
        hint = (
            f" Its subfolders hold some: did you mean --images_root {path}? If all are of one person, move "
            "the photos into this folder."
            if files_below(path)
            else ""
        )
        return f"{path}: there are no photos in this folder.{hint}"
    return None


def _names(paths: Sequence[Path]) -> list[str]:
    """Last parts of the paths, as many as tell them apart; the same path twice is numbered."""
    whole = [Path(os.path.abspath(path)).parts for path in paths]
    names = [parts[-1] for parts in whole]
    for depth in range(2, max((len(parts) for parts in whole), default=1)):
        counts = Counter(names)
        if len(counts) == len(names):
            return names
        names = [
            "/".join(parts[-depth:]) if counts[name] > 1 else name
            for name, parts in zip(names, whole, strict=True)
        ]
    seen: Counter[str] = Counter()
    for number, name in enumerate(names):
        seen[name] += 1
        names[number] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return names


def _expected(path: Path, fps: float) -> int:
    return expected_frames(path, fps) if is_video(path) else 1

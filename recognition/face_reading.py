"""Photos and videos to aligned faces with their records."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from data.sources.decoding import FACE_SIZE, Image, memory_to_decode
from data.sources.image_files import is_video
from photos.detection import FaceDetector
from photos.face_measures import measure_face
from photos.photo_files import not_aligned, read_aligned, read_photo, thumbnail
from photos.videos import frames
from recognition.records import FaceChoice, FaceRecord, Rejection
from recognition.sources import SetSource
from runtime.errors import InputError

# Photos that are decoded and searched concurrently; `memory_to_decode` limits their memory.
_READERS = max(1, min(4, os.cpu_count() or 1))


@dataclass(frozen=True)
class PhotoOptions:
    """How photos and videos are read.

    Attributes:
        faces: which faces of a photo are used, of `photos.detection.FACES`.
        aligned: whether images are aligned faces; nothing is detected then.
        fps: frames per second read from videos.
        detector: YuNet's model file; None for the cache folder's.
    """

    faces: str = "largest"
    aligned: bool = False
    fps: float = 2.0
    detector: Path | None = None


@dataclass(frozen=True, eq=False)
class PhotoFaces:
    """Faces of one photo or frame as records and (112, 112, 3) RGB images, or why there are none.

    If `PhotoOptions.faces` is 'largest', these are all faces of similar size as the largest one;
    `enrolment.face_choice` selects one of them.
    """

    faces: list[tuple[FaceRecord, Image]]
    rejected: list[Rejection]


def read_faces(
    sources: Sequence[SetSource], options: PhotoOptions, detector: Path | None
) -> Iterator[tuple[int, PhotoFaces]]:
    """Yield the index of a set and the faces of its next photo or frame, in order; photos are prefetched.

    Args:
        sources: sets to read.
        options: how they are read.
        detector: YuNet's model file; None if `options.aligned`.
    """
    reader = _Reader(options, detector)
    files = [
        (index, _Medium(file, medium, source.path))
        for index, source in enumerate(sources)
        for medium, file in enumerate(source.files())
    ]
    photos = iter([medium for _, medium in files if not is_video(medium.file)])
    ahead: deque[Future[PhotoFaces]] = deque()
    with ThreadPoolExecutor(_READERS) as pool:
        for index, medium in files:
            if is_video(medium.file):
                for found in reader.video(medium):
                    yield index, found
                continue
            while len(ahead) < 2 * _READERS and (job := next(photos, None)) is not None:
                ahead.append(pool.submit(reader.photo, job))
            yield index, ahead.popleft().result()


@dataclass(frozen=True)
class _Medium:
    """A photo or video and its number within the set at `root`."""

    file: Path
    number: int
    root: Path

    @property
    def name(self) -> str:
        """Path relative to the set's folder."""
        return self.file.name if self.file == self.root else self.file.relative_to(self.root).as_posix()

    def rejection(self, reason: str, name: str | None = None) -> PhotoFaces:
        reason = reason.removeprefix(f"{self.file}: ")
        return PhotoFaces([], [Rejection(name or self.name, reason, self.name, self.number)])


class _Reader:
    """Reads photos and videos. Threads share the detectors, each of which serves one thread at a time."""

    def __init__(self, options: PhotoOptions, detector: Path | None) -> None:
        self._options = options
        self._detectors: SimpleQueue[FaceDetector] = SimpleQueue()
        if detector is not None:
            for _ in range(_READERS + 1):
                self._detectors.put(FaceDetector(detector))

    def photo(self, medium: _Medium) -> PhotoFaces:
        try:
            if self._options.aligned:
                return self._faces(read_aligned(medium.file), medium.name, medium)
            with memory_to_decode(medium.file):
                return self._faces(read_photo(medium.file), medium.name, medium)
        except InputError as fault:
            return medium.rejection(str(fault))

    def video(self, medium: _Medium) -> Iterator[PhotoFaces]:
        try:
            for frame in frames(medium.file, self._options.fps):
                yield self._faces(frame.image, f"{medium.name} at {frame.seconds:.2f} s", medium)
        except InputError as fault:
            yield medium.rejection(str(fault))

    def _faces(self, photo: Image, name: str, medium: _Medium) -> PhotoFaces:
        if self._options.aligned:
            height, width = photo.shape[:2]
            if (height, width) != (FACE_SIZE, FACE_SIZE):
                return medium.rejection(not_aligned(width, height), name)
            measures = measure_face(photo, None)
            record = FaceRecord(name, medium.number, thumbnail(photo), measures=measures, file=medium.name)
            return PhotoFaces([(record, photo)], [])
        detector = self._detectors.get()
        try:
            found = detector.detect(photo, self._options.faces, with_similar=True)
        finally:
            self._detectors.put(detector)
        if not found:
            return medium.rejection("no face was found in it.", name)
        several, keeps_all = len(found) > 1, self._options.faces == "all"
        from_left = sorted(range(len(found)), key=lambda index: found[index].box[0])
        faces = []
        for number, face in enumerate(found):
            aligned = face.aligned(photo)
            record = FaceRecord(
                name=f"{name} #{number + 1}" if several and keeps_all else name,
                medium=medium.number,
                thumbnail=thumbnail(aligned),
                size=face.height,
                score=face.score,
                measures=measure_face(aligned, face.landmarks),
                alone=not (several and keeps_all),
                choice=FaceChoice(len(found), from_left.index(number) + 1)
                if several and not keeps_all
                else None,
                file=medium.name,
                rotation=face.rotation,
            )
            faces.append((record, aligned))
        return PhotoFaces(faces, [])

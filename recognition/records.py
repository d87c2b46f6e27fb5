"""Records of faces, rejected files and aggregated sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.escaping import escaped

if TYPE_CHECKING:
    from photos.face_measures import FaceMeasures

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Rejection:
    """A file or video frame without a usable face, and the reason. All text is `escaped`.

    Attributes:
        name: file, with the second of a frame.
        reason: a sentence.
        file: photo or video, relative to the set's folder.
        medium: number of the photo or video within the set.
    """

    name: str
    reason: str
    file: str = ""
    medium: int = -1

    def __post_init__(self) -> None:
        _escape(self, "name", "reason", "file")


@dataclass(frozen=True)
class FaceChoice:
    """How one of several faces of similar size in a photo or frame was chosen.

    Attributes:
        num_faces: faces of similar size in the photo, including the chosen one.
        from_left: position of the chosen face among them, counted from the left, from 1.
        agrees: True if it was chosen by its similarity to the rest of the set, False if by its size.
    """

    num_faces: int
    from_left: int
    agrees: bool = False


@dataclass(frozen=True, eq=False)
class FaceRecord:
    """A face and its source.

    Attributes:
        name: file, with the second of a frame and the number among several faces; `escaped`.
        medium: number of the photo or video within its set.
        thumbnail: aligned face as JPEG.
        size: height of the face in its photo in pixels; None for aligned images.
        score: detection score in [0, 1]; None for aligned images.
        measures: pose, sharpness and illumination; None if not measured.
        alone: whether the set has no other face of the same photo or frame.
        choice: how it was chosen among several faces of similar size, if there were any.
        file: photo or video, relative to the set's folder; `escaped`.
        rotation: clockwise rotation in degrees that made the photo upright.
    """

    name: str
    medium: int
    thumbnail: bytes
    size: float | None = None
    score: float | None = None
    measures: FaceMeasures | None = None
    alone: bool = True
    choice: FaceChoice | None = None
    file: str = ""
    rotation: int = 0

    def __post_init__(self) -> None:
        _escape(self, "name", "file")


@dataclass(frozen=True, eq=False)
class SetEmbedding:
    """Descriptor of one set.

    Attributes:
        embedding: (D,) float32 unit vector, without auxiliary features.
        norm: its length before normalisation, in the aggregator's scale.
        picks: (k,) int64 selected faces in the order of selection; may be empty.
        weights: (T,) float32 weights of the faces, summing to 1; None if the aggregator has none.
    """

    embedding: Floats
    norm: float
    picks: NDArray[np.int64]
    weights: Floats | None


@dataclass(frozen=True, eq=False)
class AggregatedSet(SetEmbedding):
    """A set of T >= 1 faces and its descriptor.

    Attributes:
        name: name of the set.
        path: folder or file.
        faces: T records.
        features: (T, D) float32 unit rows.
        norms: (T,) float32.
        rejected: files and frames without a usable face.
    """

    name: str
    path: Path
    faces: list[FaceRecord]
    features: Floats
    norms: Floats
    rejected: list[Rejection]

    @property
    def files(self) -> list[str]:
        """(T,) names of the faces."""
        return [face.name for face in self.faces]

    @property
    def media(self) -> NDArray[np.int64]:
        """(T,) number of the photo or video of each face."""
        return np.array([face.medium for face in self.faces], np.int64)


@dataclass(frozen=True)
class EmptySet:
    """A set without any usable face."""

    name: str
    path: Path
    rejected: list[Rejection]


def _escape(record: object, *fields: str) -> None:
    for name in fields:
        object.__setattr__(record, name, escaped(getattr(record, name)))

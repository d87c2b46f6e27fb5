"""Sets of photos and videos to descriptors.

Photos are read, searched and embedded as a stream: of a face only its feature, a thumbnail and its record
are kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from data.checks.colour_order import MIN_PAIRS, GivenFaces, check_colour_order, wrong_order_advice
from data.sources.decoding import Image
from data.sources.image_files import is_video
from photos.detection import find_detector
from photos.videos import expected_frames
from recognition.enrolment.face_choice import AGREEMENT, choose_faces
from recognition.face_reading import PhotoOptions, read_faces
from recognition.model import FaceModel, aggregate_features, embed_images
from recognition.records import AggregatedSet, EmptySet, FaceRecord, Rejection
from recognition.sources import SetSource
from runtime.errors import InputWarning
from runtime.progress import progress_bar

# Faces on which the channel order of a backbone is checked.
_MAX_SETS, _FACES_PER_SET = 40, 2


def aggregate_sets(
    model: FaceModel, sources: Sequence[SetSource], options: PhotoOptions
) -> tuple[list[AggregatedSet], list[EmptySet]]:
    """Aggregate the faces of each set.

    Args:
        model: from `load_model`.
        sources: from `find_sets`.
        options: how photos are read.

    Returns:
        Sets with a usable face and sets without, each in the order of `sources`. Files that cannot be read
        are in their `rejected`.

    Raises:
        InputError: no detector.
    """
    detector = None if options.aligned else find_detector(options.detector)
    collected = [_Collected() for _ in sources]
    waiting: list[tuple[_Collected, Image]] = []
    colours = ColourSample()
    with progress_bar(desc="finding faces", unit=" images", mininterval=0.5) as bar:
        bar.total = sum(
            expected_frames(file, options.fps) if is_video(file) else 1
            for source in sources
            for file in source.files()
        )
        for index, found in read_faces(sources, options, detector):
            into = collected[index]
            into.rejected.extend(found.rejected)
            into.faces.extend(record for record, _ in found.faces)
            into.photos.extend([into.photos[-1] + 1 if into.photos else 0] * len(found.faces))
            for _, image in found.faces:
                colours.add(index, image)
            waiting.extend((into, image) for _, image in found.faces)
            while len(waiting) >= model.batch_size:
                _embed(model, waiting[: model.batch_size])
                del waiting[: model.batch_size]
            bar.update()
        _embed(model, waiting)
    if warning := colours.warning(model):
        warnings.warn(warning, InputWarning, stacklevel=2)
    pairs = list(zip(sources, collected, strict=True))
    aggregated = [_aggregated(model, source, into) for source, into in pairs if into.faces]
    empty = [EmptySet(source.name, source.path, into.rejected) for source, into in pairs if not into.faces]
    return aggregated, empty


@dataclass(frozen=True, eq=False)
class _Collected:
    """A set while its faces arrive; `photos`: number of the photo or frame of each face."""

    faces: list[FaceRecord] = field(default_factory=list)
    photos: list[int] = field(default_factory=list)
    features: list[NDArray[np.float32]] = field(default_factory=list)
    norms: list[NDArray[np.float32]] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)


def _embed(model: FaceModel, faces: list[tuple[_Collected, Image]]) -> None:
    if not faces:
        return
    features, norms = embed_images(model, np.stack([image for _, image in faces]))
    for (into, _), feature, norm in zip(faces, features, norms, strict=True):
        into.features.append(feature)
        into.norms.append(norm)


def _aggregated(model: FaceModel, source: SetSource, collected: _Collected) -> AggregatedSet:
    features, norms = np.stack(collected.features), np.stack(collected.norms)
    faces = collected.faces
    if any(face.choice is not None for face in faces):
        limit = model.spec.cosine_limit(AGREEMENT)
        rows, agrees = choose_faces(features, norms, np.array(collected.photos, np.int64), limit)
        faces = [_with_agreement(faces[row], bool(agree)) for row, agree in zip(rows, agrees, strict=True)]
        features, norms = features[rows], norms[rows]
    descriptor = aggregate_features(
        model, features, norms, np.array([face.medium for face in faces], np.int64)
    )
    return AggregatedSet(
        name=source.name,
        path=source.path,
        faces=faces,
        features=features,
        norms=norms,
        rejected=collected.rejected,
        **vars(descriptor),
    )


def _with_agreement(face: FaceRecord, agrees: bool) -> FaceRecord:
    return face if face.choice is None else replace(face, choice=replace(face.choice, agrees=agrees))


@dataclass
class ColourSample:
    """Two faces of each of the first sets, collected while faces are read."""

    faces: dict[int, list[Image]] = field(default_factory=dict)

    def add(self, index: int, face: Image) -> None:
        """Keep a face (112, 112, 3) RGB of a set if the sample needs it."""
        if index not in self.faces and len(self.faces) >= _MAX_SETS:
            return
        kept = self.faces.setdefault(index, [])
        if len(kept) < _FACES_PER_SET:
            kept.append(face)

    def warning(self, model: FaceModel) -> str:
        """A sentence if mated faces are more similar with red and blue swapped; else empty."""
        pairs = [faces for faces in self.faces.values() if len(faces) == _FACES_PER_SET]
        if len(pairs) < MIN_PAIRS:
            return ""
        images = [face for faces in pairs for face in faces]
        labels = np.repeat(np.arange(len(pairs)), _FACES_PER_SET)
        report = check_colour_order(
            GivenFaces("the sets", labels, images.__getitem__),
            lambda faces: embed_images(model, faces)[0],
            model.spec,
            advice=wrong_order_advice(model.spec),
        )
        return report.sentence if report.verdict == "swapped" else ""

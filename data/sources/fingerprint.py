"""Fingerprints of image sources: subjects, labels, image contents, decoder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from data.sources.decoding import DECODER
from data.sources.face_source import FaceSource
from data.sources.subject_names import normal

# Each release of them may give other pixels for the same bytes and the same views.
PIXEL_LIBRARIES = {"decoder": DECODER, "opencv": cv2.__version__}


def fingerprint(source: FaceSource) -> dict[str, str]:
    """What a run or a store is made from, part by part: who, how many images, their content, their colours.

    Equal for a pack and the folder unpacked from it, and for copies. Names of files count by their order
    alone.
    """
    return data_parts(source.subjects, source.labels, source.stamps()) | reading_parts(source)


def data_parts(
    subjects: Sequence[str], labels: NDArray[np.int64], stamps: NDArray[np.uint64]
) -> dict[str, str]:
    """The parts of a fingerprint that S names, labels (N,) and stamps (N,) of images give."""
    names = b"".join(os.fsencode(normal(subject)) + b"\0" for subject in subjects)
    labels, stamps = labels.astype("<i8"), stamps.astype("<u8")
    return {
        "subjects": f"{len(subjects):,}, {_short_digest(names)}",
        "labels": f"{len(labels):,}, {_short_digest(labels.tobytes())}",
        "images": f"{len(stamps):,}, {_short_digest(stamps.tobytes())}",
    }


def reading_parts(source: FaceSource) -> dict[str, str]:
    """The parts that say how encoded images become pixels."""
    return {"colours": source.colours, **PIXEL_LIBRARIES}


def _short_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]

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

# Another release may decode or degrade the same bytes to other pixels.
PIXEL_LIBRARIES = {"decoder": DECODER, "opencv": cv2.__version__}


def fingerprint(source: FaceSource) -> dict[str, str]:
    """Subjects, labels, image contents and colours of a source, each as count and digest.

    Equal for copies, and for a pack and the folder unpacked from it: only the order of file names matters.
    """
    return data_parts(source.subjects, source.labels, source.stamps()) | reading_parts(source)


def data_parts(
    subjects: Sequence[str], labels: NDArray[np.int64], stamps: NDArray[np.uint64]
) -> dict[str, str]:
    """The entries for S subject names, labels (N,) and image stamps (N,)."""
    names = b"".join(os.fsencode(normal(subject)) + b"\0" for subject in subjects)
    labels, stamps = labels.astype("<i8"), stamps.astype("<u8")
    return {
        "subjects": f"{len(subjects):,}, {_short_digest(names)}",
        "labels": f"{len(labels):,}, {_short_digest(labels.tobytes())}",
        "images": f"{len(stamps):,}, {_short_digest(stamps.tobytes())}",
    }


def reading_parts(source: FaceSource) -> dict[str, str]:
    """The entries that determine how encoded images become pixels."""
    return {"colours": source.colours, **PIXEL_LIBRARIES}


def _short_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]

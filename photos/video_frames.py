"""Frames of videos as data sets keep them (YouTube Faces): folders of images, faces in their middle.

Aligned faces of 112 x 112 are taken as they are. In others the face is found and aligned; where none is
found, the middle half of the frame is the face, as in YouTube Faces, whose frames are about twice as large.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from data.sources.decoding import FACE_SIZE, Image, WrongSizeError, decode_image
from photos.detection import FaceDetector
from photos.photo_files import decode_photo
from runtime.errors import InputError

# What makes these faces differ from those of another rule, for fingerprints and reports.
FRAME_ALIGNMENT = "YuNet, the most central face; where none is found, the middle half of the frame"


def aligned_frame(encoded: bytes, where: str, detector: Path | None) -> Image:
    """(112, 112, 3) RGB of an encoded frame; `where` names it in messages.

    Raises:
        InputError: no image; or one of another size, and no detector.
    """
    try:
        return decode_image(encoded, upright=False, side=FACE_SIZE)
    except WrongSizeError:
        frame = None
    except InputError as fault:
        raise InputError(f"{where}: {fault}") from None
    try:
        frame = decode_photo(encoded)
    except InputError as fault:
        raise InputError(f"{where}: {fault}") from None
    if detector is None:
        raise InputError(
            f"{where}: is {frame.shape[1]} x {frame.shape[0]} pixels, while the first frames of all videos "
            f"are {FACE_SIZE} x {FACE_SIZE}. Align this one too, or remove it."
        )
    found = _opened(detector).detect(frame, "central", is_upright=True)
    return found[0].aligned(frame) if found else _middle(frame)


def is_aligned(encoded: bytes) -> bool:
    """Whether the bytes are an image of 112 x 112; False for what is no image."""
    try:
        return decode_image(encoded, upright=False, side=FACE_SIZE) is not None
    except InputError:
        return False


# Each process of a loader opens its own.
@lru_cache(maxsize=1)
def _opened(detector: Path) -> FaceDetector:
    return FaceDetector(detector)


def _middle(frame: Image) -> Image:
    height, width = frame.shape[:2]
    top, left = height // 4, width // 4
    middle = frame[top : height - top, left : width - left]
    return np.asarray(cv2.resize(middle, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_AREA), np.uint8)

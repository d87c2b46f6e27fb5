"""Faces from video frames stored as images (YouTube Faces).

Frames of 112 x 112 are used as they are. In others the central face is detected and aligned; if none is
found, the central half of the frame is used: in YouTube Faces, frames are about twice as large as faces.
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

# For fingerprints and reports.
FRAME_ALIGNMENT = "YuNet, the most central face; where none is found, the middle half of the frame"


def aligned_frame(encoded: bytes, where: str, detector: Path | None) -> Image:
    """(112, 112, 3) RGB of an encoded frame; `where` names it in messages.

    Raises:
        InputError: undecodable, or of another size without a detector.
    """
    try:
        try:
            return decode_image(encoded, upright=False, side=FACE_SIZE)
        except WrongSizeError:
            frame = decode_photo(encoded)
    except InputError as fault:
        raise InputError(f"{where}: {fault}") from None
    if detector is None:
        raise InputError(
            f"{where}: is {frame.shape[1]} x {frame.shape[0]} pixels, but the first frames of all videos are "
            f"{FACE_SIZE} x {FACE_SIZE}. Align this one too, or remove it."
        )
    found = _opened(detector).detect(frame, "central", is_upright=True)
    return found[0].aligned(frame) if found else _middle(frame)


def is_aligned(encoded: bytes) -> bool:
    """Whether the bytes are an image of 112 x 112."""
    try:
        return decode_image(encoded, upright=False, side=FACE_SIZE) is not None
    except InputError:
        return False


# One per process of a loader.
@lru_cache(maxsize=1)
def _opened(detector: Path) -> FaceDetector:
    return FaceDetector(detector)


def _middle(frame: Image) -> Image:
    height, width = frame.shape[:2]
    top, left = height // 4, width // 4
    middle = frame[top : height - top, left : width - left]
    return np.asarray(cv2.resize(middle, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_AREA), np.uint8)

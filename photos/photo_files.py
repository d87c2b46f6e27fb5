"""Read photos as upright RGB, and aligned faces as stored."""

from __future__ import annotations

from pathlib import Path

import cv2

from data.sources.decoding import FACE_SIZE, Image, WrongSizeError, decode_image, read_encoded
from runtime.errors import InputError

_THUMBNAIL_SIDE, _THUMBNAIL_QUALITY = 96, 72


def read_photo(path: Path) -> Image:
    """(H, W, 3) RGB, upright. Raises InputError that names the file and the fault."""
    try:
        return decode_photo(read_encoded(path))
    except InputError as fault:
        raise InputError(f"{path}: {fault}") from None


def read_aligned(path: Path) -> Image:
    """(112, 112, 3) RGB of an aligned face; orientation tags are ignored.

    Raises:
        InputError: the file cannot be read or has another size.
    """
    try:
        return decode_image(read_encoded(path), upright=False, side=FACE_SIZE)
    except WrongSizeError as fault:
        raise InputError(f"{path}: {not_aligned(fault.width, fault.height)}") from None
    except InputError as fault:
        raise InputError(f"{path}: {fault}") from None


def decode_photo(encoded: bytes) -> Image:
    """(H, W, 3) RGB, upright; see `decode_image`."""
    return decode_image(encoded, upright=True)


def not_aligned(width: int, height: int) -> str:
    """Why an image of this size is not an aligned face."""
    return (
        f"is {width} x {height} pixels, but aligned faces are {FACE_SIZE} x {FACE_SIZE}. Use inference.py "
        "without --aligned to detect the face."
    )


def thumbnail(face: Image) -> bytes:
    """A JPEG of about 2 KB of an aligned face."""
    side = (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE)
    small = cv2.cvtColor(cv2.resize(face, side, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _THUMBNAIL_QUALITY])[1])

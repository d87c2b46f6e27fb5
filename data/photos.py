"""Photos as people have them -> upright RGB pixels; whatever cannot be used says why, and nothing crashes.

Orientation tags, grey, transparency and 16 bit are dealt with here. Faces are found in `data.detection`.
"""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from data.sources import FACE_SIZE, Image
from errors import InputError

# Photos are judged here: a reason for each that is left out, and no lines of a library between them.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Three bytes a pixel: 450 MB. Cameras of phones reach 108 million; Pillow refuses from 179 million on.
MOST_PIXELS = 150_000_000
_SMALLEST_SIDE = 16
_THUMBNAIL_SIDE, _THUMBNAIL_QUALITY = 96, 72
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
# What Pillow was seen to raise on damaged files, beside its own.
_DAMAGED = (OSError, SyntaxError, ValueError, struct.error, EOFError, KeyError, IndexError, OverflowError)


def read_photo(path: Path) -> Image:
    """(H, W, 3) RGB, upright. Raises InputError that names the file and what is wrong with it."""
    try:
        encoded = path.read_bytes()
    except OSError as fault:
        raise InputError(f"{path}: cannot be read ({fault.strerror}).") from None
    try:
        return decode_photo(encoded)
    except InputError as fault:
        raise InputError(f"{path}: {fault}") from None


def decode_photo(encoded: bytes) -> Image:
    """Decodes a photo: upright as its EXIF tag says, transparent parts on white, 16 bit scaled to 8.

    Returns:
        (H, W, 3) uint8 RGB; of an animation the first frame.

    Raises:
        InputError: empty, no image, cut short, or too large; the size is read from the header, before any
            pixel is decoded.
    """
    if not encoded:
        raise InputError("the file is empty.")
    try:
        with Pillow.open(io.BytesIO(encoded)) as photo:
            _check_size(*photo.size)
            return _pixels(photo)
    except Pillow.DecompressionBombError:
        raise InputError(
            f"its header says more than {MOST_PIXELS / 1e6:.0f} million pixels; it is not decoded. Make it "
            "smaller."
        ) from None
    except UnidentifiedImageError:
        if _is_heif(encoded):
            raise InputError("is a HEIC photo, which is not read here. Export it as JPEG.") from None
        raise InputError("is not an image, or of a kind that is not read here.") from None
    except _DAMAGED as fault:
        raise InputError(f"cannot be decoded: {_sentence(fault)} The file may be cut short.") from None


def check_aligned(image: Image) -> Image:
    """The image, if it has the size of an aligned face; else InputError."""
    if image.shape[:2] != (FACE_SIZE, FACE_SIZE):
        raise InputError(
            f"is {image.shape[1]} x {image.shape[0]} pixels, but aligned faces are "
            f"{FACE_SIZE} x {FACE_SIZE}. Leave --aligned away, so that the face is found."
        )
    return image


def thumbnail(face: Image) -> bytes:
    """A JPEG of about 2 KB of an aligned face."""
    side = (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE)
    small = cv2.cvtColor(cv2.resize(face, side, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _THUMBNAIL_QUALITY])[1])


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise InputError(
            f"is {width:,} x {height:,} pixels; more than {MOST_PIXELS / 1e6:.0f} million are not decoded. "
            "Make it smaller."
        )
    if min(width, height) < _SMALLEST_SIDE:
        raise InputError(f"is {width} x {height} pixels, too small for a face.")


def _pixels(photo: Pillow.Image) -> Image:
    upright = ImageOps.exif_transpose(photo)
    if upright.mode in _DEEP_GREY:
        levels = _eight_bits(np.asarray(upright))
        return np.repeat(levels[..., None], 3, axis=2)
    if upright.has_transparency_data:
        layered = upright.convert("RGBA")
        upright = Pillow.alpha_composite(Pillow.new("RGBA", layered.size, "white"), layered)
    return np.array(upright.convert("RGB"), np.uint8)


def _is_heif(encoded: bytes) -> bool:
    return encoded[4:8] == b"ftyp" and encoded[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc")


def _eight_bits(levels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """16 bit by its upper half; other depths, whose white is not known, by their own brightest value."""
    values = levels.astype(np.float64)
    white = 65535.0 if values.max() > 255 or levels.dtype == np.uint16 else 255.0
    return (np.clip(values / max(white, float(values.max())), 0, 1) * 255).astype(np.uint8)


def _sentence(fault: Exception) -> str:
    text = str(fault).strip().rstrip(".") or type(fault).__name__
    return f"{text}."

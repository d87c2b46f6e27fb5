"""Encoded images -> RGB pixels: the one decoder of training, evaluation and inference.

Pillow decodes everything. Of JPEG, PNG, BMP, WebP, TIFF, PNM and JPEG 2000 it gives the pixels that
`cv2.imdecode` gives (13,207 JPEGs of LFW are equal bit for bit, with OpenCV 5.0 and Pillow 13.0), takes
0.16 ms in place of 0.08 for a face of 112 x 112, and refuses a JPEG that is cut short, whose missing part
OpenCV 4 fills with grey.
"""

from __future__ import annotations

import io
import stat
import struct
import warnings
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError, features

from errors import InputError

Image = NDArray[np.uint8]

# Each release of the decoder may give other pixels for the same bytes.
DECODER = f"Pillow {PIL.__version__}, JPEG {features.version('libjpeg_turbo') or features.version('jpg')}"
# Three bytes a pixel: 450 MB. Cameras of phones reach 108 million; Pillow refuses from 179 million on.
MOST_PIXELS = 150_000_000
# Of a file; an uncompressed TIFF of 60 million pixels has 180 MB.
MOST_BYTES = 256_000_000

# A reason for each image that cannot be used, and no lines of a library between them.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Pillow has readers for more; the one of EPS runs Ghostscript on what the file says.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "JPEG2000", "BMP", "GIF", "TIFF", "PPM")
_SMALLEST_SIDE = 16
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
# What Pillow was seen to raise on damaged files, beside its own.
_DAMAGED = (OSError, SyntaxError, ValueError, struct.error, EOFError, KeyError, IndexError, OverflowError)
_SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"BM": ".bmp", b"RIFF": ".webp"}


def read_encoded(path: Path) -> bytes:
    """The content of an image file. FIFOs, sockets and devices are not opened, nor links to them.

    Raises:
        InputError: it cannot be read, is no regular file, or is larger than `MOST_BYTES`.
    """
    try:
        found = path.stat()
        if kind := kind_of_special(found.st_mode):
            raise InputError(f"is {kind}, which is not opened. Give a file.")
        if found.st_size <= MOST_BYTES:
            with path.open("rb") as stream:
                # What grows while it is read is not followed.
                encoded = stream.read(MOST_BYTES + 1)
            if len(encoded) <= MOST_BYTES:
                return encoded
    except OSError as fault:
        raise InputError(f"cannot be read ({fault.strerror}).") from None
    raise InputError(f"is larger than {MOST_BYTES / 1e6:.0f} MB; it is not read. Make it smaller.")


def kind_of_special(mode: int) -> str:
    """What a file of this `st_mode` is beside a regular file or a folder, as 'a FIFO'; '' for these two."""
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return ""
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def decode_image(encoded: bytes, *, upright: bool) -> Image:
    """Decodes an image: transparent parts on white, 16 bit scaled to 8, grey with three equal channels.

    Args:
        encoded: a file's content.
        upright: turn it as its EXIF tag says. Aligned faces, and photos with known landmarks, are as stored.

    Returns:
        (H, W, 3) uint8 RGB; of an animation the first frame.

    Raises:
        InputError: empty, no image, cut short, or too large; the size is read from the header, before any
            pixel is decoded.
    """
    if not encoded:
        raise InputError("the file is empty.")
    try:
        with _opened(io.BytesIO(encoded)) as image:
            _check_size(*image.size)
            return _pixels(ImageOps.exif_transpose(image) if upright else image)
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


def is_image(path: str) -> bool:
    """Whether a file begins as an image that `decode_image` reads."""
    try:
        with _opened(path):
            return True
    except Pillow.DecompressionBombError:
        return True
    except _DAMAGED:
        return False


def image_size(path: Path) -> tuple[int, int] | None:
    """Width and height of an image as stored, from its header; None where it cannot be read."""
    try:
        with _opened(str(path)) as image:
            width, height = image.size
            return width, height
    except (*_DAMAGED, Pillow.DecompressionBombError):
        return None


def suffix_of(encoded: bytes) -> str | None:
    """The suffix of the commonest formats by their first bytes; None for others."""
    return next((suffix for start, suffix in _SUFFIXES.items() if encoded.startswith(start)), None)


def _opened(file: str | io.BytesIO) -> Pillow.Image:
    return Pillow.open(file, formats=_FORMATS)


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise InputError(
            f"is {width:,} x {height:,} pixels; more than {MOST_PIXELS / 1e6:.0f} million are not decoded. "
            "Make it smaller."
        )
    if min(width, height) < _SMALLEST_SIDE:
        raise InputError(f"is {width} x {height} pixels, too small for a face.")


def _pixels(image: Pillow.Image) -> Image:
    if image.mode in _DEEP_GREY:
        levels = _eight_bits(np.asarray(image))
        return np.repeat(levels[..., None], 3, axis=2)
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        image = Pillow.alpha_composite(Pillow.new("RGBA", layered.size, "white"), layered)
    return np.array(image.convert("RGB"), np.uint8)


def _is_heif(encoded: bytes) -> bool:
    return encoded[4:8] == b"ftyp" and encoded[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc")


def _eight_bits(levels: NDArray[np.generic]) -> Image:
    """16 bit by its upper half; other depths, whose white is not known, by their own brightest value."""
    values = levels.astype(np.float64)
    white = 65535.0 if values.max() > 255 or levels.dtype == np.uint16 else 255.0
    return (np.clip(values / max(white, float(values.max())), 0, 1) * 255).astype(np.uint8)


def _sentence(fault: Exception) -> str:
    text = str(fault).strip().rstrip(".") or type(fault).__name__
    return f"{text}."

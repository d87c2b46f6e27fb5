"""Encoded images -> RGB pixels: the one decoder of training, evaluation and inference.

Pillow decodes everything. Of JPEG, PNG, BMP, WebP, TIFF, PNM and JPEG 2000 it gives the pixels that
`cv2.imdecode` gives (13,207 JPEGs of LFW are equal bit for bit, with OpenCV 5.0 and Pillow 13.0), takes
0.16 ms in place of 0.08 for a face of 112 x 112, and refuses a JPEG that is cut short, whose missing part
OpenCV 4 fills with grey.
"""

from __future__ import annotations

import io
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageFile, UnidentifiedImageError, features

from runtime.errors import InputError
from runtime.input_files import kind_of_special

Image = NDArray[np.uint8]

# Each release of the decoder may give other pixels for the same bytes.
DECODER = f"Pillow {PIL.__version__}, JPEG {features.version('libjpeg_turbo') or features.version('jpg')}"
# Cameras of phones reach 108 million; Pillow refuses from 179 million on.
MOST_PIXELS = 150_000_000
# Of a file; an uncompressed TIFF of 60 million pixels has 180 MB.
MOST_BYTES = 256_000_000
# While images are decoded and searched for faces, over all threads of a process.
MOST_MEMORY = 512_000_000

# A reason for each image that cannot be used, and no lines of a library between them.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Pillow has readers for more; the one of EPS runs Ghostscript on what the file says.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "JPEG2000", "BMP", "GIF", "TIFF", "PPM")
_SMALLEST_SIDE = 16
# JPEGs of more are decoded at half their size, which libjpeg does without the full one; not aligned faces.
_HALVED_PIXELS = 50_000_000
# Rows are converted in parts of so many pixels.
_PART_PIXELS = 1_000_000
# Bytes a pixel that Pillow holds in each mode (others: 4), and that formats need beside these: estimates,
# rounded up.
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
_FORMAT_BYTES = {"WEBP": 16, "AVIF": 14, "JPEG2000": 26, "TIFF": 4, "GIF": 4}
_RESULT_BYTES = 3
# Scans of a progressive JPEG are usually about ten; each costs the time of the whole image.
_MOST_SCANNED = 1_500_000_000
_ORIENTATION_TAG = 0x0112
# Brighter pixels than this are among those of 16 bits a channel that use them all.
_DARK = 64
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
# Brands of HEIF files that Pillow cannot read.
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"heif")
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
                # A limit, as what grows is not followed to its end; of its size, as so much is allocated.
                return stream.read(found.st_size + 1)
    except OSError as fault:
        raise InputError(f"cannot be read ({fault.strerror}).") from None
    raise InputError(f"is larger than {MOST_BYTES / 1e6:.0f} MB; it is not read. Make it smaller.")


class WrongSizeError(InputError):
    """An image is not of the size that is asked for; `width`, `height`: what its header says."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(f"is {width} x {height} pixels.")
        self.width, self.height = width, height


def decode_image(encoded: bytes, *, upright: bool, side: int | None = None) -> Image:
    """Decodes an image: transparent parts on white, more than 8 bits scaled to 8, grey with equal channels.

    Args:
        encoded: a file's content.
        upright: turn it as its orientation tag says, and halve the sides of very large JPEGs: photos, in
            inference, enrolment and calibration. Aligned faces, and photos with known landmarks, are as
            stored, in training and everywhere else.
        side: of aligned faces, in pixels.

    Returns:
        (H, W, 3) uint8 RGB; of an animation the first frame.

    Raises:
        WrongSizeError: its sides are not `side`.
        InputError: empty, no image, cut short, or too large. Size and memory follow from the header and are
            checked before any pixel is decoded.
    """
    if not encoded:
        raise InputError("the file is empty.")
    try:
        with _opened(io.BytesIO(encoded)) as image:
            if side is not None and image.size != (side, side):
                raise WrongSizeError(*image.size)
            _check_size(*image.size)
            if upright:
                _halve_if_large(image)
            if (needed := _memory_of(image, len(encoded))) > MOST_MEMORY:
                raise InputError(
                    f"is {image.width:,} x {image.height:,} pixels, of a kind that takes {needed / 1e6:,.0f} "
                    f"MB to decode; at most {MOST_MEMORY / 1e6:.0f} MB are used. Make it smaller, or save it "
                    "as a JPEG that is not progressive."
                )
            if image.info.get("progressive"):
                _check_scans(image, encoded)
            return _pixels(image, encoded, upright=upright)
    except InputError:
        raise
    except Pillow.DecompressionBombError:
        raise InputError(
            f"its header says more than {MOST_PIXELS / 1e6:.0f} million pixels; it is not decoded. Make it "
            "smaller."
        ) from None
    except UnidentifiedImageError:
        if _is_heif(encoded):
            raise InputError(
                "is a HEIC photo, which cannot be read here. Convert it to JPEG: 'sips -s format jpeg' on a "
                "Mac, 'heif-convert' on Linux, Photos on Windows"
            ) from None
        if _begins_as_image(encoded):
            raise InputError("begins as an image, but is damaged or cut short.") from None
        raise InputError("is not an image, or of a kind that is not read here.") from None
    except Exception as fault:  # noqa: BLE001 - whatever a decoder raises on a damaged file is about that file
        raise InputError(f"cannot be decoded: {_sentence(fault)} The file may be cut short.") from None


@contextmanager
def memory_to_decode(path: Path) -> Iterator[None]:
    """Waits until there is memory to decode an image file and to work with its pixels, of `MOST_MEMORY`."""
    needed = 0
    try:
        size = path.stat().st_size if path.is_file() else 0
        if 0 < size <= MOST_BYTES:
            with _opened(str(path)) as image:
                _halve_if_large(image)
                needed = _memory_of(image, size)
    except Exception:  # noqa: BLE001 - decode_image says what is wrong with it
        needed = 0
    with _MEMORY.held(min(needed, MOST_MEMORY)):
        yield


class _Memory:
    """Bytes that threads share; who wants more than is left waits."""

    def __init__(self, size: int) -> None:
        self._left, self._changed = size, threading.Condition()

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._left >= size)
            self._left -= size
        try:
            yield
        finally:
            with self._changed:
                self._left += size
                self._changed.notify_all()


_MEMORY = _Memory(MOST_MEMORY)


def is_image(path: str) -> bool:
    """Whether a file begins as an image that `decode_image` reads."""
    try:
        with _opened(path):
            return True
    except Pillow.DecompressionBombError:
        return True
    except Exception:  # noqa: BLE001 - readers raise anything on what is no image
        return False


def image_size(path: Path) -> tuple[int, int] | None:
    """Width and height of an image as stored, from its header; None where it cannot be read."""
    try:
        with _opened(str(path)) as image:
            width, height = image.size
            return width, height
    except Exception:  # noqa: BLE001 - readers raise anything on what is no image
        return None


def suffix_of(encoded: bytes) -> str | None:
    """The suffix of the commonest formats by their first bytes; None for others."""
    return next((suffix for start, suffix in _SUFFIXES.items() if encoded.startswith(start)), None)


def _opened(file: str | io.BytesIO) -> ImageFile.ImageFile:
    return Pillow.open(file, formats=_FORMATS)


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise InputError(
            f"is {width:,} x {height:,} pixels; more than {MOST_PIXELS / 1e6:.0f} million are not decoded. "
            "Make it smaller."
        )
    if min(width, height) < _SMALLEST_SIDE:
        raise InputError(f"is {width} x {height} pixels, too small for a face.")


def _halve_if_large(image: Pillow.Image) -> None:
    if image.format in ("JPEG", "MPO") and image.width * image.height > _HALVED_PIXELS:
        image.draft(None, (image.width // 2, image.height // 2))


def _memory_of(image: Pillow.Image, num_bytes: int) -> int:
    """Bytes that decoding takes at most, by what the header says, with the file's and the result's."""
    pixels = image.width * image.height
    each = _MODE_BYTES.get(image.mode, 4) + _RESULT_BYTES + _FORMAT_BYTES.get(image.format or "", 0)
    return num_bytes + pixels * each + (_coefficients(image) if image.info.get("progressive") else 0)


def _coefficients(image: Pillow.Image) -> int:
    """Bytes of a progressive JPEG's coefficients: 16 bits for each sample, at full size even where halved."""
    layers = getattr(image, "layer", [])
    if not layers:
        return 0
    across, down = max(layer[1] for layer in layers), max(layer[2] for layer in layers)
    share = sum(layer[1] * layer[2] for layer in layers) / max(across * down, 1)
    return int(2 * _stored_pixels(image) * share)


def _stored_pixels(image: Pillow.Image) -> int:
    """As the file says, where the image is read at half its size."""
    halved = (getattr(image, "decoderconfig", ()) or (1,))[0]
    return image.width * image.height * int(halved) ** 2


def _check_scans(image: Pillow.Image, encoded: bytes) -> None:
    # In coded data 0xff is followed by 0 or by a restart marker alone.
    scans, pixels = encoded.count(b"\xff\xda"), _stored_pixels(image)
    if scans * pixels > _MOST_SCANNED:
        raise InputError(f"has {scans:,} scans of {pixels:,} pixels; it is not decoded. Save it anew.")


def _orientation(image: Pillow.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 - damaged metadata are no reason to leave the pixels out
        return 1


def _pixels(image: ImageFile.ImageFile, encoded: bytes, *, upright: bool) -> Image:
    """(H, W, 3) uint8, converted part by part."""
    # Before the metadata are read, which decodes a PNG.
    is_deep_colour = any("RGB;16" in str(tile[-1]) for tile in image.tile)
    orientation = _orientation(image) if upright else 1
    image.load()
    width, height = image.size
    rows = max(1, _PART_PIXELS // width)
    parts = [(top, min(top + rows, height)) for top in range(0, height, rows)]

    def part(top: int, bottom: int) -> Pillow.Image:
        return image if len(parts) == 1 else image.crop((0, top, width, bottom))

    turned = orientation in (5, 6, 7, 8)
    result = np.empty((width, height, 3) if turned else (height, width, 3), np.uint8)
    stored = _as_stored(result, orientation)
    if image.mode in _DEEP_GREY:
        ranges = [(float(each.min()), float(each.max())) for each in (np.asarray(part(*p)) for p in parts)]
        # NumPy's extremes of what holds a NaN are NaN.
        smallest, largest = np.array(ranges).min(axis=0)[0], np.array(ranges).max(axis=0)[1]
        white = white_level(float(smallest), float(largest), is_float=image.mode == "F")
        for top, bottom in parts:
            stored[top:bottom] = _eight_bits(np.asarray(part(top, bottom)), white)[..., None]
        return result
    for top, bottom in parts:
        stored[top:bottom] = _eight_bit_rgb(part(top, bottom))
    if is_deep_colour and result.max() < _DARK:
        stored[:] = _deep_colour(encoded)
    return result


def _as_stored(result: Image, orientation: int) -> Image:
    """A view of an upright image in the order of the stored pixels."""
    if orientation in (5, 6, 7, 8):
        result = {5: result, 6: result[:, ::-1], 7: result[::-1, ::-1], 8: result[::-1]}[orientation]
        return np.asarray(result.transpose(1, 0, 2), np.uint8)
    return {2: result[:, ::-1], 3: result[::-1, ::-1], 4: result[::-1]}.get(orientation, result)


def _eight_bit_rgb(image: Pillow.Image) -> Image:
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        image = Pillow.alpha_composite(Pillow.new("RGBA", layered.size, "white"), layered)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"), np.uint8)


def _deep_colour(encoded: bytes) -> Image:
    """Of 16 bits a channel Pillow gives the upper 8, which of 10 to 14 bits are nearly black."""
    deep = cv2.imdecode(
        np.frombuffer(encoded, np.uint8),
        cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION,
    )
    if deep is None or deep.dtype != np.uint16:
        raise InputError("holds less than 16 bits in 16 a channel, of a kind that cannot be scaled to 8.")
    return _eight_bits(deep[..., ::-1], white_level(0, float(deep.max()), is_float=False))


def _is_heif(encoded: bytes) -> bool:
    return encoded[4:8] == b"ftyp" and encoded[8:12] in HEIF_BRANDS


def _begins_as_image(encoded: bytes) -> bool:
    """Whether it has the first bytes of a format that Pillow reads here."""
    is_avif = encoded[4:12] in (b"ftypavif", b"ftypavis") and features.check("avif")
    is_webp = encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP" and features.check("webp")
    return bool(is_avif or is_webp) or encoded.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8"))


def _eight_bits(levels: NDArray[np.generic], white: float) -> Image:
    scaled = np.clip(levels.astype(np.float64) / white, 0, 1) * 255
    return np.asarray(scaled, np.uint8)


def _sentence(fault: Exception) -> str:
    text = str(fault).strip().rstrip(".") or type(fault).__name__
    return f"{text}."


FACE_SIZE = 112


def decode_face(encoded: bytes, where: str, *, swap_color_channel: bool = False) -> Image:
    """Decodes one aligned face to (112, 112, 3) RGB; grey images get three equal channels.

    `swap_color_channel` swaps red and blue after decoding. `where` names the image in messages.

    Raises:
        InputError: the bytes are no image, or not 112 x 112.
    """
    # An orientation tag is ignored, as the published loaders do: aligned faces are upright as stored.
    try:
        image = decode_image(encoded, upright=False, side=FACE_SIZE)
    except WrongSizeError as fault:
        raise InputError(
            f"{where}: the image is {fault.width} x {fault.height} pixels, expected "
            f"{FACE_SIZE} x {FACE_SIZE}. Align the faces by five points and crop them to that size; resizing "
            "alone misplaces eyes and mouth."
        ) from None
    except InputError as fault:
        raise InputError(
            f"{where}: {len(encoded):,} bytes that cannot be decoded as an image ({str(fault).rstrip('.')}). "
            "Replace the file, or remove it from the data."
        ) from None
    return np.ascontiguousarray(image[..., ::-1]) if swap_color_channel else image


# Of 8, 10, 12, 14 and 16 bits: cameras write 10 to 14 bits into 16.
_LEVELS = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)


# Resampling overshoots by a few per cent.
_OVERSHOOT = 0.05


# Between this and 1 the whites of 0..1 and of 0..255 cannot be told apart.
_LEAST_OF_LEVELS = 16.0


def white_level(smallest: float, largest: float, *, is_float: bool) -> float:
    """The value that is white in an image with values from `smallest` to `largest`.

    Floating-point images are in 0..1, or hold the levels of integers. Integers are of the smallest depth of
    8, 10, 12, 14 or 16 bits that holds them.

    Raises:
        InputError: the range does not tell it: values that are not finite, negative, or beyond 16 bits.
    """
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        raise InputError("holds values that are not finite (NaN or infinity). Save it anew with 8 bits.")
    white = 1.0
    if not is_float or largest > 1 + _OVERSHOOT:
        white = next((level for level in _LEVELS if largest <= level), 0.0)
    is_negative = smallest < (-_OVERSHOOT * white if is_float else 0)
    is_between = is_float and white > 1 and largest < _LEAST_OF_LEVELS
    if not white or is_negative or is_between:
        raise InputError(
            f"holds values from {smallest:g} to {largest:g}, which do not tell what is white; expected 0 to "
            "1, or levels of 8 to 16 bits. Save it anew with 8 bits."
        )
    return white

"""Decode images to RGB, for training, evaluation and inference.

Pillow decodes everything. It gives the same pixels as `cv2.imdecode` (13,207 JPEGs of LFW are equal bit for
bit, with OpenCV 5.0 and Pillow 13.0), takes 0.16 instead of 0.08 ms for a face of 112 x 112, and rejects a
truncated JPEG, which OpenCV 4 fills with grey.
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

# Another release may decode the same bytes to other pixels.
DECODER = f"Pillow {PIL.__version__}, JPEG {features.version('libjpeg_turbo') or features.version('jpg')}"
# Phone cameras reach 108 million; Pillow rejects more than 179 million.
MAX_PIXELS = 150_000_000
# Size of a file; an uncompressed TIFF of 60 million pixels has 180 MB.
MAX_BYTES = 256_000_000
# For decoding and face detection, shared by all threads of a process.
MAX_MEMORY = 512_000_000

# Faults are reported as one sentence per image, without library warnings.
warnings.filterwarnings("ignore", module=r"PIL\.")

# A subset of Pillow's formats; its EPS reader, for example, executes Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "JPEG2000", "BMP", "GIF", "TIFF", "PPM")
_SMALLEST_SIDE = 16
# Larger photos in JPEG are decoded at half their size by libjpeg.
_HALVED_PIXELS = 50_000_000
# Rows are converted in parts of this many pixels.
_PART_PIXELS = 1_000_000
# Bytes per pixel of Pillow's modes (others: 4) and additional bytes of formats, estimated and rounded up.
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
_FORMAT_BYTES = {"WEBP": 16, "AVIF": 14, "JPEG2000": 26, "TIFF": 4, "GIF": 4}
_RESULT_BYTES = 3
# Pixels times scans of a progressive JPEG, which usually has about ten scans; each costs a full decoding.
_MAX_SCANNED = 1_500_000_000
_ORIENTATION_TAG = 0x0112
# Images of 16 bits per channel that use the whole range have brighter pixels than this.
_DARK = 64
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
# Brands of HEIF files, which Pillow cannot read.
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"heif")
_SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"BM": ".bmp", b"RIFF": ".webp"}
FACE_SIZE = 112
# White of 8, 10, 12, 14 and 16 bits: cameras store 10 to 14 bits in 16.
_LEVELS = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
# Relative overshoot of resampling.
_OVERSHOOT = 0.05
# A maximum between 1 and this is ambiguous between the ranges 0..1 and 0..255.
_MIN_OF_LEVELS = 16.0


def read_encoded(path: Path) -> bytes:
    """Read an image file. FIFOs, sockets and devices are not opened, nor links to them.

    Raises:
        InputError: the file cannot be read, is a special file, or is larger than `MAX_BYTES`.
    """
    try:
        found = path.stat()
        if kind := kind_of_special(found.st_mode):
            raise InputError(f"is {kind}, which is not opened. Give a file.")
        if found.st_size <= MAX_BYTES:
            with path.open("rb") as stream:
                # Limited, because the file may grow while it is read.
                return stream.read(found.st_size + 1)
    except OSError as fault:
        raise InputError(f"cannot be read ({fault.strerror}).") from None
    raise InputError(f"is larger than {MAX_BYTES / 1e6:.0f} MB and is not read. Reduce its size.")


class WrongSizeError(InputError):
    """An image does not have the required size; `width` and `height` are from its header."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(f"is {width} x {height} pixels.")
        self.width, self.height = width, height


def decode_image(encoded: bytes, *, upright: bool, side: int | None = None) -> Image:
    """Decode an image to 8-bit RGB: transparency on white, deeper channels scaled, grey repeated.

    Args:
        encoded: content of the file.
        upright: apply the orientation tag, and halve very large JPEGs. For photos; aligned faces and photos
            with known landmarks are used as stored.
        side: required width and height in pixels.

    Returns:
        (H, W, 3) uint8 RGB; the first frame of an animation.

    Raises:
        WrongSizeError: width or height is not `side`.
        InputError: empty, not an image, truncated or too large. Size and memory are checked by the header
            before decoding.
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
            if (needed := _memory_of(image, len(encoded))) > MAX_MEMORY:
                raise InputError(
                    f"is {image.width:,} x {image.height:,} pixels and needs {needed / 1e6:,.0f} MB to "
                    f"decode; the limit is {MAX_MEMORY / 1e6:.0f} MB. Reduce its size, or save it as a "
                    "baseline JPEG."
                )
            if image.info.get("progressive"):
                _check_scans(image, encoded)
            return _pixels(image, encoded, upright=upright)
    except InputError:
        raise
    except Pillow.DecompressionBombError:
        raise InputError(
            f"its header declares more than {MAX_PIXELS / 1e6:.0f} million pixels; it is not decoded. "
            "Reduce its size."
        ) from None
    except UnidentifiedImageError:
        if encoded[4:8] == b"ftyp" and encoded[8:12] in HEIF_BRANDS:
            raise InputError(
                "is a HEIC photo, which is not supported. Convert it to JPEG: 'sips -s format jpeg' on "
                "macOS, 'heif-convert' on Linux, Photos on Windows"
            ) from None
        if _begins_as_image(encoded):
            raise InputError("begins as an image, but is damaged or truncated.") from None
        raise InputError("is not an image, or of an unsupported format.") from None
    except Exception as fault:  # noqa: BLE001 - whatever a decoder raises on a damaged file is about that file
        text = str(fault).strip().rstrip(".") or type(fault).__name__
        raise InputError(f"cannot be decoded: {text}. The file may be truncated.") from None


@contextmanager
def memory_to_decode(path: Path) -> Iterator[None]:
    """Wait until enough of `MAX_MEMORY` is free to decode an image file, and hold it in the block."""
    needed = 0
    try:
        size = path.stat().st_size if path.is_file() else 0
        if 0 < size <= MAX_BYTES:
            with _opened(str(path)) as image:
                _halve_if_large(image)
                needed = _memory_of(image, size)
    except Exception:  # noqa: BLE001 - decode_image reports the fault
        needed = 0
    with _MEMORY.held(min(needed, MAX_MEMORY)):
        yield


class _Memory:
    """A memory budget shared by threads; requests wait until enough is free."""

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


_MEMORY = _Memory(MAX_MEMORY)


def is_image(path: str) -> bool:
    """Whether a file begins like an image that `decode_image` reads."""
    try:
        with _opened(path):
            return True
    except Pillow.DecompressionBombError:
        return True
    except Exception:  # noqa: BLE001 - readers raise anything on what is no image
        return False


def image_size(path: Path) -> tuple[int, int] | None:
    """Width and height of an image as stored, from its header; None if it cannot be read."""
    try:
        with _opened(str(path)) as image:
            width, height = image.size
            return width, height
    except Exception:  # noqa: BLE001 - readers raise anything on what is no image
        return None


def suffix_of(encoded: bytes) -> str | None:
    """The suffix of a common format by its first bytes; None for others."""
    return next((suffix for start, suffix in _SUFFIXES.items() if encoded.startswith(start)), None)


def encode_image(image: Image, suffix: str, quality: int = 95) -> bytes:
    """Encode (H, W, 3) RGB as '.png', or as '.jpg' of a quality from 1 to 100."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == ".jpg" else []
    return cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def _opened(file: str | io.BytesIO) -> ImageFile.ImageFile:
    return Pillow.open(file, formats=_FORMATS)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(
            f"is {width:,} x {height:,} pixels; the limit is {MAX_PIXELS / 1e6:.0f} million. Reduce its size."
        )
    if min(width, height) < _SMALLEST_SIDE:
        raise InputError(f"is {width} x {height} pixels, too small for a face.")


def _halve_if_large(image: Pillow.Image) -> None:
    if image.format in ("JPEG", "MPO") and image.width * image.height > _HALVED_PIXELS:
        image.draft(None, (image.width // 2, image.height // 2))


def _memory_of(image: Pillow.Image, num_bytes: int) -> int:
    """Upper bound of the bytes for decoding, including the file and the result, from the header."""
    pixels = image.width * image.height
    each = _MODE_BYTES.get(image.mode, 4) + _RESULT_BYTES + _FORMAT_BYTES.get(image.format or "", 0)
    return num_bytes + pixels * each + (_coefficients(image) if image.info.get("progressive") else 0)


def _coefficients(image: Pillow.Image) -> int:
    """Bytes of a progressive JPEG's coefficients: 16 bits per sample, at full size even if halved."""
    layers = getattr(image, "layer", [])
    if not layers:
        return 0
    across, down = max(layer[1] for layer in layers), max(layer[2] for layer in layers)
    share = sum(layer[1] * layer[2] for layer in layers) / max(across * down, 1)
    return int(2 * _stored_pixels(image) * share)


def _stored_pixels(image: Pillow.Image) -> int:
    """Pixels of the file, where the image is read at half its size."""
    halved = (getattr(image, "decoderconfig", ()) or (1,))[0]
    return image.width * image.height * int(halved) ** 2


def _check_scans(image: Pillow.Image, encoded: bytes) -> None:
    # In coded data 0xff is followed only by 0 or by a restart marker.
    scans, pixels = encoded.count(b"\xff\xda"), _stored_pixels(image)
    if scans * pixels > _MAX_SCANNED:
        raise InputError(f"has {scans:,} scans of {pixels:,} pixels; it is not decoded. Save it again.")


def _orientation(image: Pillow.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 - damaged metadata do not make the pixels unusable
        return 1


def _pixels(image: ImageFile.ImageFile, encoded: bytes, *, upright: bool) -> Image:
    """(H, W, 3) uint8, converted part by part."""
    # Before the metadata are read, because that decodes a PNG.
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
        # NumPy propagates NaN in min and max.
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
    """Scale a 16-bit image by its range: Pillow keeps the upper 8 bits, nearly black for 10 to 14 bits."""
    deep = cv2.imdecode(
        np.frombuffer(encoded, np.uint8),
        cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION,
    )
    if deep is None or deep.dtype != np.uint16:
        raise InputError("has 16-bit channels of an unsupported kind, which cannot be scaled to 8 bits.")
    return _eight_bits(deep[..., ::-1], white_level(0, float(deep.max()), is_float=False))


def _begins_as_image(encoded: bytes) -> bool:
    """Whether the first bytes are those of a supported format."""
    is_avif = encoded[4:12] in (b"ftypavif", b"ftypavis") and features.check("avif")
    is_webp = encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP" and features.check("webp")
    return bool(is_avif or is_webp) or encoded.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8"))


def _eight_bits(levels: NDArray[np.generic], white: float) -> Image:
    scaled = np.clip(levels.astype(np.float64) / white, 0, 1) * 255
    return np.asarray(scaled, np.uint8)


def decode_face(encoded: bytes, where: str, *, swap_color_channel: bool = False) -> Image:
    """Decode one aligned face to (112, 112, 3) RGB; grey images get three equal channels.

    `swap_color_channel` swaps red and blue after decoding. `where` names the image in messages.

    Raises:
        InputError: the bytes cannot be decoded, or the image is not 112 x 112.
    """
    # Orientation tags are ignored, as in the published loaders: aligned faces are stored upright.
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
            f"{where}: {len(encoded):,} bytes cannot be decoded as an image ({str(fault).rstrip('.')}). "
            "Replace or remove the file."
        ) from None
    return np.ascontiguousarray(image[..., ::-1]) if swap_color_channel else image


def white_level(smallest: float, largest: float, *, is_float: bool) -> float:
    """The white level of an image with values from `smallest` to `largest`.

    Floating-point images are in 0..1 or in integer levels. Integers have the smallest sufficient depth of
    8, 10, 12, 14 or 16 bits.

    Raises:
        InputError: values that are not finite, negative, beyond 16 bits, or ambiguous.
    """
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        raise InputError("contains NaN or infinity. Save it again with 8 bits.")
    white = 1.0
    if not is_float or largest > 1 + _OVERSHOOT:
        white = next((level for level in _LEVELS if largest <= level), 0.0)
    is_negative = smallest < (-_OVERSHOOT * white if is_float else 0)
    is_between = is_float and white > 1 and largest < _MIN_OF_LEVELS
    if not white or is_negative or is_between:
        raise InputError(
            f"has values from {smallest:g} to {largest:g}, from which the white level cannot be determined; "
            "expected 0 to 1, or levels of 8 to 16 bits. Save it again with 8 bits."
        )
    return white

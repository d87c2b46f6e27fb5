"""Augmentation of aligned faces: the AdaFace augmentations, RandAugment for clip frames, horizontal flip.

NumPy and OpenCV on RGB arrays, with the random numbers of the given generator. Inputs are not modified, but
the result may be the input. torchvision's transforms would take per-worker torch random numbers. AdaFace's
published code on PIL images reached 2,800 images/s per core, where this one reached 7,800 (its rate:
`benchmarks/speed/training.py --phases augmentation`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data.sources.decoding import Image
from runtime.errors import InputError

CROP_AREA = (0.2, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
LOW_RES_SIDE = (0.2, 1.0)
LOW_RES_INTERPOLATIONS = (
    cv2.INTER_NEAREST,
    cv2.INTER_LINEAR,
    cv2.INTER_AREA,
    cv2.INTER_CUBIC,
    cv2.INTER_LANCZOS4,
)
PHOTOMETRIC_FACTOR = (0.5, 1.5)

CLIP_OPERATIONS = 2
CLIP_BIN = 9
CLIP_LAST_BIN = 30


@dataclass(frozen=True)
class Augmentation:
    """The three AdaFace augmentations, each with its own probability in [0, 1].

    Source: AdaFace (arXiv 2204.00964) and its published code.
    """

    crop_prob: float = 0.2
    low_res_prob: float = 0.2
    photometric_prob: float = 0.2

    def __post_init__(self) -> None:
        faults = [
            f"{name} is {value}, expected a probability from 0 to 1."
            for name, value in vars(self).items()
            if not 0 <= value <= 1
        ]
        if faults:
            raise InputError.from_faults(faults)

    def apply(self, image: Image, rng: np.random.Generator) -> Image:
        """Augment in this order; (H, W, 3) uint8 RGB -> the same shape."""
        if rng.random() < self.crop_prob:
            image = random_crop(image, rng)
        if rng.random() < self.low_res_prob:
            image = low_resolution(image, rng)
        if rng.random() < self.photometric_prob:
            image = photometric(image, rng)
        return image


def clip_transform(image: Image, rng: np.random.Generator) -> Image:
    """A variation of a face as in a clip: RandAugment with two operations at magnitude 9 of 31 bins.

    `image` and the result: (H, W, 3) uint8 RGB. Source: RandAugment (arXiv 1909.13719) with the operations
    and ranges of torchvision; nearest interpolation, black border.
    """
    names = tuple(_CLIP_OPERATIONS)
    for _ in range(CLIP_OPERATIONS):
        sign = -1.0 if rng.random() < 0.5 else 1.0
        image = apply_clip_operation(names[rng.integers(len(names))], image, sign)
    return image


def random_horizontal_flip(image: Image, rng: np.random.Generator) -> Image:
    """Flip horizontally with probability 0.5."""
    return np.asarray(cv2.flip(image, 1), np.uint8) if rng.random() < 0.5 else image


def random_crop(image: Image, rng: np.random.Generator) -> Image:
    """Keep a random rectangle in place and set the rest to black."""
    top, left, height, width = crop_window(image.shape[0], image.shape[1], rng)
    result = np.zeros_like(image)
    window = np.s_[top : top + height, left : left + width]
    result[window] = image[window]
    return result


def crop_window(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) in pixels like torchvision's RandomResizedCrop.

    Area uniform in 0.2..1 of the image, aspect ratio log-uniform in 3/4..4/3; after ten draws that do not
    fit, the largest centred rectangle with an allowed ratio.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*CROP_AREA)
        ratio = math.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w = min(width, round(height * CROP_RATIO[1]))
    h = min(height, round(width / CROP_RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def low_resolution(image: Image, rng: np.random.Generator) -> Image:
    """Downscale to 0.2..1 of the side and upscale again, with random interpolations."""
    return shrink_and_enlarge(image, rng.uniform(*LOW_RES_SIDE), rng)


def shrink_and_enlarge(image: Image, side: float, rng: np.random.Generator) -> Image:
    """Downscale by `side` in (0, 1] and upscale again, with random interpolations."""
    height, width = image.shape[:2]
    small = (max(1, int(side * width)), max(1, int(side * height)))
    down, up = (LOW_RES_INTERPOLATIONS[i] for i in rng.integers(len(LOW_RES_INTERPOLATIONS), size=2))
    shrunk = cv2.resize(image, small, interpolation=down)
    return np.asarray(cv2.resize(shrunk, (width, height), interpolation=up), np.uint8)


def photometric(image: Image, rng: np.random.Generator) -> Image:
    """Brightness, contrast and saturation by factors in 0.5..1.5, in random order."""
    changes = (adjust_brightness, adjust_contrast, adjust_saturation)
    factors = rng.uniform(*PHOTOMETRIC_FACTOR, size=len(changes))
    for which in rng.permutation(len(changes)):
        image = changes[which](image, float(factors[which]))
    return image


def adjust_brightness(image: Image, factor: float) -> Image:
    """Blend with black: factor 0 is black, 1 the image."""
    return _look_up(image, _blend(np.float32(0), _LEVELS, factor))


def adjust_contrast(image: Image, factor: float) -> Image:
    """Blend with the mean grey level, rounded to an integer: factor 0 is grey, 1 the image."""
    mean = math.floor(float(_grey(image.astype(np.float32)).mean(dtype=np.float64)) + 0.5)
    return _look_up(image, _blend(np.float32(mean), _LEVELS, factor))


def adjust_saturation(image: Image, factor: float) -> Image:
    """Blend with the greyscale image: factor 0 is grey, 1 the image."""
    colours = image.astype(np.float32)
    return _blend(_grey(colours, channels=3), colours, factor)


def adjust_sharpness(image: Image, factor: float) -> Image:
    """Blend with a smoothed image (3 x 3 kernel, centre 5, others 1; border pixels unchanged)."""
    colours = image.astype(np.float32)
    smooth = np.asarray(cv2.boxFilter(colours, -1, (3, 3), normalize=False), np.float32)
    smooth += 4 * colours
    smooth /= 13
    smooth += 0.5
    np.floor(smooth, out=smooth)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        smooth[edge] = colours[edge]
    return _blend(smooth, colours, factor)


def autocontrast(image: Image) -> Image:
    """Stretch each channel to the range 0..255."""
    tables = np.empty((256, 3), np.uint8)
    for channel in range(3):
        low, high = int(image[..., channel].min()), int(image[..., channel].max())
        levels = np.arange(256.0)
        if high > low:
            scale = 255.0 / (high - low)
            levels = np.clip(levels * scale - low * scale, 0, 255)
        tables[:, channel] = levels.astype(np.uint8)
    return _look_up(image, tables)


def equalize(image: Image) -> Image:
    """Equalize the histogram of each channel with PIL's integer steps."""
    tables = np.empty((256, 3), np.uint8)
    for channel in range(3):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        filled = np.flatnonzero(counts)
        step = int(counts.sum() - counts[filled[-1]]) // 255
        if len(filled) > 1 and step:
            levels = (step // 2 + np.cumsum(counts) - counts) // step
            tables[:, channel] = np.minimum(levels, 255)
        else:
            tables[:, channel] = np.arange(256)
    return _look_up(image, tables)


def apply_clip_operation(name: str, image: Image, sign: float) -> Image:
    """Apply one operation at its fixed magnitude; `sign` is 1 or -1."""
    return _CLIP_OPERATIONS[name](image, sign)


def _at_bin(last: float) -> float:
    return last * CLIP_BIN / CLIP_LAST_BIN


def _blend(first: Any, second: NDArray[np.float32], factor: float) -> Image:
    # PIL blends in float32 and truncates; rounding would brighten images by half a level.
    mixed = np.subtract(second, first)
    mixed *= np.float32(factor)
    mixed += first
    blended: Image = np.clip(mixed, 0, 255, out=mixed).astype(np.uint8)
    return blended


def _grey(colours: NDArray[np.float32], channels: int = 1) -> NDArray[np.float32]:
    # ITU-R 601 with PIL's integer weights. The sums (below 2**24) are exact in float32, and truncation after
    # the division by 2**16 gives PIL's levels exactly, from which cv2.cvtColor sometimes differs by one.
    sums = np.asarray(cv2.transform(colours, np.repeat(_GREY_WEIGHTS, channels, axis=0)), np.float32)
    sums *= np.float32(2**-16)
    return np.floor(sums, out=sums)


def _look_up(image: Image, table: NDArray[np.uint8]) -> Image:
    return np.asarray(cv2.LUT(image, table.reshape(1, 256, -1)), np.uint8)


def _warp(image: Image, sign: float, *, kind: str) -> Image:
    height, width = image.shape[:2]
    source: Any = _source_pixels(height, width, kind, sign)
    no_second_map: Any = None
    # The default border is constant black.
    return np.asarray(cv2.remap(image, source, no_second_map, cv2.INTER_NEAREST), np.uint8)


@lru_cache(maxsize=64)
def _source_pixels(height: int, width: int, kind: str, sign: float) -> NDArray[np.int16]:
    """(H, W, 2) int16: source pixel (x, y) of each pixel, by PIL's affine maps.

    An integer map is faster than cv2.warpAffine, whose rounding to 1/1024 pixel differs between versions.
    """
    shear, shift = sign * _at_bin(0.3), int(_at_bin(150 / 331 * (width if kind == "TranslateX" else height)))
    angle = math.radians(-sign * _at_bin(30.0))
    cos, sin = math.cos(angle), math.sin(angle)
    linear, offset = {
        "ShearX": (((1, shear), (0, 1)), (0, 0)),
        "ShearY": (((1, 0), (shear, 1)), (0, 0)),
        "TranslateX": (((1, 0), (0, 1)), (-sign * shift, 0)),
        "TranslateY": (((1, 0), (0, 1)), (0, -sign * shift)),
        "Rotate": (((cos, sin), (-sin, cos)), None),
    }[kind]
    centre = np.array((width / 2, height / 2))
    matrix = np.array(linear, np.float64)
    moved = centre - matrix @ centre if offset is None else np.array(offset, np.float64)
    y, x = np.mgrid[:height, :width] + 0.5
    source: NDArray[np.int16] = np.floor(np.stack((x, y), axis=-1) @ matrix.T + moved).astype(np.int16)
    source.flags.writeable = False
    return source


def _posterize(image: Image, _sign: float) -> Image:
    dropped = round(CLIP_BIN / (CLIP_LAST_BIN / 4))
    kept: Image = np.bitwise_and(image, np.uint8(0xFF << dropped & 0xFF))
    return kept


def _solarize(image: Image, _sign: float) -> Image:
    turned = 255.0 - _at_bin(255.0) <= _LEVELS
    return _look_up(image, np.where(turned, 255 - _LEVELS, _LEVELS).astype(np.uint8))


def _adjust(image: Image, sign: float, *, change: Callable[[Image, float], Image]) -> Image:
    return change(image, 1.0 + sign * _at_bin(0.9))


_LEVELS = np.arange(256, dtype=np.float32)
_GREY_WEIGHTS = np.array([[19595, 38470, 7471, 32768]], np.float32)

_CLIP_OPERATIONS: dict[str, Callable[[Image, float], Image]] = {
    "Identity": lambda image, _sign: image,
    "ShearX": partial(_warp, kind="ShearX"),
    "ShearY": partial(_warp, kind="ShearY"),
    "TranslateX": partial(_warp, kind="TranslateX"),
    "TranslateY": partial(_warp, kind="TranslateY"),
    "Rotate": partial(_warp, kind="Rotate"),
    "Brightness": partial(_adjust, change=adjust_brightness),
    "Color": partial(_adjust, change=adjust_saturation),
    "Contrast": partial(_adjust, change=adjust_contrast),
    "Sharpness": partial(_adjust, change=adjust_sharpness),
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": lambda image, _sign: autocontrast(image),
    "Equalize": lambda image, _sign: equalize(image),
}

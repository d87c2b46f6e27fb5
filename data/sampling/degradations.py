"""Degradations of aligned faces: misalignment, occlusion, illumination, blur, low resolution, noise, JPEG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from data.sampling.augmentation import LOW_RES_INTERPOLATIONS
from data.sources.decoding import Image

_MIN_PIXELS = 14


@dataclass(frozen=True)
class Degradation:
    """Parameters of all degradations; the defaults are the identity.

    Lengths in pixels of a face of 112, angles in degrees. `crop`: fractions removed at the top, bottom, left
    and right. `occlusion`: centre x, y, width and height, with a colour (RGB) or None for noise.
    `resolution`: in pixels, with the `interpolations` down and up. `jpeg_at_low_resolution`: compress before
    upscaling. `realigned`: align again by noisy landmarks, which reverses most of rotation and shift.
    """

    flipped: bool = False
    rotation: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    border: int = cv2.BORDER_CONSTANT
    crop: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    occlusion: tuple[float, float, float, float] | None = None
    occlusion_colour: tuple[int, int, int] | None = None
    gamma: float = 1.0
    contrast: float = 1.0
    brightness: float = 0.0
    saturation: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    defocus: float = 0.0
    motion: float = 0.0
    motion_angle: float = 0.0
    resolution: float = 112.0
    interpolations: tuple[int, int] = (cv2.INTER_AREA, cv2.INTER_LINEAR)
    noise: float = 0.0
    shot_noise: float = 0.0
    jpeg_quality: int = 100
    jpeg_at_low_resolution: bool = False
    realigned: bool = False


def draw_degradation(rng: np.random.Generator, strength: float, rate: float | None = None) -> Degradation:
    """Draw degradations; `strength` in [0, 1] scales their amount, and their number without a `rate`."""
    s, rate = strength, 0.2 + 0.5 * strength if rate is None else rate

    def occurs(weight: float = 1.0) -> bool:
        return bool(rng.random() < rate * weight)

    values: dict[str, object] = {
        "flipped": bool(rng.random() < 0.5),
        "rotation": float(rng.normal(0, 2 + 7 * s)),
        "scale": math.exp(rng.normal(0, 0.02 + 0.06 * s)),
        "shift": (float(rng.normal(0, 0.7 + 3 * s)), float(rng.normal(0, 0.7 + 3 * s))),
        "border": int(rng.choice([cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT_101])),
    }
    if occurs(0.4):
        values["crop"] = tuple(rng.uniform(0, 0.05 + 0.25 * s, 4) * (rng.random(4) < 0.4))
    if occurs(0.5):
        width, height = rng.uniform(0.1, 0.2 + 0.35 * s, 2) * 112
        values["occlusion"] = (*rng.uniform(8, 104, 2), float(width), float(height))
        values["occlusion_colour"] = None if rng.random() < 0.3 else tuple(rng.integers(0, 256, 3).tolist())
    if occurs(1.3):
        values["gamma"] = math.exp(rng.normal(0, 0.15 + 0.45 * s))
        values["contrast"] = float(rng.uniform(1 - 0.15 - 0.5 * s, 1 + 0.15 + 0.3 * s))
        values["brightness"] = float(rng.normal(0, 5 + 25 * s))
    if occurs(0.5):
        values["saturation"] = float(rng.uniform(max(0.0, 0.9 - s), 1.3))
        values["tint"] = tuple(np.exp(rng.normal(0, 0.03 + 0.08 * s, 3)).tolist())
    if occurs(0.7):
        values["defocus"] = float(rng.uniform(0.4, 0.8 + 2.7 * s))
    if occurs(0.7):
        values["motion"] = float(rng.uniform(2, 4 + 13 * s))
        values["motion_angle"] = float(rng.uniform(0, 180))
    if occurs(1.4):
        values["resolution"] = max(_MIN_PIXELS, 112 * math.exp(-s * rng.uniform(0.8, 2.4)))
        values["interpolations"] = (
            _interpolation(rng, [cv2.INTER_AREA], 0.7),
            _interpolation(rng, [cv2.INTER_LINEAR, cv2.INTER_LINEAR, cv2.INTER_CUBIC], 0.8),
        )
    if occurs():
        values["noise"] = float(rng.uniform(1, 4 + 20 * s))
    if occurs(0.4):
        values["shot_noise"] = float(rng.uniform(0.2, 0.5 + 1.5 * s))
    if occurs(1.3):
        values["jpeg_quality"] = int(rng.uniform(95 - 85 * s, 95))
        values["jpeg_at_low_resolution"] = bool(rng.random() < 0.5)
    return Degradation(**values)  # type: ignore[arg-type]


def _interpolation(rng: np.random.Generator, usual: Sequence[int], share: float) -> int:
    """A usual interpolation with probability `share`, else any."""
    return int(rng.choice(usual if rng.random() < share else LOW_RES_INTERPOLATIONS))


def next_frame(draw: Degradation, rng: np.random.Generator) -> Degradation:
    """The next frame of a clip: the same degradations, slightly varied."""
    occlusion = draw.occlusion
    if occlusion is not None:
        x, y, *size = occlusion
        occlusion = (x + rng.normal(0, 2), y + rng.normal(0, 2), size[0], size[1])
    return replace(
        draw,
        rotation=draw.rotation + rng.normal(0, 1.2),
        scale=draw.scale * math.exp(rng.normal(0, 0.01)),
        shift=(draw.shift[0] + rng.normal(0, 0.8), draw.shift[1] + rng.normal(0, 0.8)),
        occlusion=occlusion,
        gamma=draw.gamma * math.exp(rng.normal(0, 0.04)),
        brightness=draw.brightness + rng.normal(0, 2),
        defocus=draw.defocus * rng.uniform(0.8, 1.2),
        motion=draw.motion * rng.uniform(0.6, 1.3),
        motion_angle=draw.motion_angle + rng.normal(0, 15),
        resolution=min(112.0, draw.resolution * math.exp(rng.normal(0, 0.04))),
        jpeg_quality=int(np.clip(draw.jpeg_quality + rng.normal(0, 3), 1, 100))
        if draw.jpeg_quality < 100
        else 100,
    )


def degrade(image: Image, draw: Degradation, rng: np.random.Generator) -> Image:
    """Apply a degradation in the order of image formation: scene, lens, sensor, file, alignment.

    `rng` provides noise and landmark errors.
    """
    height, width = image.shape[:2]
    image = _adjust_illumination(_occlude(_misalign(image, draw), draw, rng), draw)
    if draw.defocus:
        image = _u8(cv2.GaussianBlur(image, (0, 0), draw.defocus))
    if draw.motion > 1:
        image = _u8(cv2.filter2D(image, -1, _motion_kernel(draw.motion, draw.motion_angle)))
    small = draw.resolution < 112
    if small:
        size = (max(1, round(draw.resolution * width / 112)), max(1, round(draw.resolution * height / 112)))
        image = _u8(cv2.resize(image, size, interpolation=draw.interpolations[0]))
    image = _add_noise(image, draw, rng)
    if draw.jpeg_at_low_resolution:
        image = _compress(image, draw.jpeg_quality)
    if small:
        image = _u8(cv2.resize(image, (width, height), interpolation=draw.interpolations[1]))
    if not draw.jpeg_at_low_resolution:
        image = _compress(image, draw.jpeg_quality)
    return _realign(image, draw, rng) if draw.realigned else image


def _misalign(image: Image, draw: Degradation) -> Image:
    if draw.flipped:
        image = _u8(cv2.flip(image, 1))
    return _warp(image, draw.rotation, draw.scale, draw.shift, draw.border)


def _realign(image: Image, draw: Degradation, rng: np.random.Generator) -> Image:
    rotation = -draw.rotation * rng.uniform(0.7, 1.1) + rng.normal(0, 1.2)
    across, down = -0.7 * np.array(draw.shift) + rng.normal(0, 0.8, 2)
    return _warp(image, rotation, math.exp(rng.normal(0, 0.015)), (across, down), cv2.BORDER_CONSTANT)


def _warp(image: Image, rotation: float, scale: float, shift: tuple[float, float], border: int) -> Image:
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), rotation, scale)
    matrix[:, 2] += np.array(shift) * (width / 112, height / 112)
    return _u8(cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=border))


def _occlude(image: Image, draw: Degradation, rng: np.random.Generator) -> Image:
    if not any(draw.crop) and draw.occlusion is None:
        return image
    image = image.copy()
    height, width = image.shape[:2]
    top, bottom, left, right = draw.crop
    image[: round(top * height)] = 0
    image[round((1 - bottom) * height) :] = 0
    image[:, : round(left * width)] = 0
    image[:, round((1 - right) * width) :] = 0
    if draw.occlusion is not None:
        x, y, across, down = np.array(draw.occlusion) * np.tile((width / 112, height / 112), 2)
        first_row, first_column = max(0, round(y - down / 2)), max(0, round(x - across / 2))
        hidden = image[
            first_row : max(first_row, round(y + down / 2)),
            first_column : max(first_column, round(x + across / 2)),
        ]
        hidden[:] = (
            rng.integers(0, 256, hidden.shape) if draw.occlusion_colour is None else draw.occlusion_colour
        )
    return image


def _adjust_illumination(image: Image, draw: Degradation) -> Image:
    level = np.arange(256, dtype=np.float32) / 255
    level = (level**draw.gamma - 0.5) * draw.contrast + 0.5 + draw.brightness / 255
    table = np.clip(np.rint(level[:, None] * np.array(draw.tint, np.float32) * 255), 0, 255).astype(np.uint8)
    image = _u8(cv2.LUT(image, table.reshape(1, 256, 3)))
    if draw.saturation != 1:
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        image = _u8(cv2.addWeighted(image, draw.saturation, grey, 1 - draw.saturation, 0))
    return image


def _motion_kernel(length: float, angle: float) -> NDArray[np.float32]:
    half = max(1, math.ceil(length / 2))
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    reach = np.linspace(-length / 2, length / 2, 4 * half + 1)
    x = np.rint(half + reach * math.cos(math.radians(angle))).astype(int)
    y = np.rint(half + reach * math.sin(math.radians(angle))).astype(int)
    np.add.at(kernel, (y, x), 1)
    kernel /= kernel.sum()
    return kernel


def _add_noise(image: Image, draw: Degradation, rng: np.random.Generator) -> Image:
    if not (draw.noise or draw.shot_noise):
        return image
    values = image.astype(np.float32)
    spread = draw.noise + draw.shot_noise * np.sqrt(values) if draw.shot_noise else draw.noise
    values += spread * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _compress(image: Image, jpeg_quality: int) -> Image:
    if jpeg_quality >= 100:
        return image
    # JPEG subsamples chroma, so the channel order matters.
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, max(1, jpeg_quality)])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if done else bgr
    return _u8(cv2.cvtColor(_u8(decoded), cv2.COLOR_BGR2RGB))


def _u8(array: object) -> Image:
    return np.asarray(array, np.uint8)

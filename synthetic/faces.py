"""Render synthetic faces for the demo and the tests, without images of real people.

A subject has random shape and colour parameters; each image has a random pose, illumination, expression,
occlusion and image quality. A face depends on the seed and its subject only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from backbones.face_template import ARCFACE_POINTS
from synthetic.drawing import (
    COVERS,
    NOSE_LIFT,
    Points,
    Stroke,
    back_strokes,
    clothes_strokes,
    cover_strokes,
    glasses_strokes,
    hair_strokes,
    moving_strokes,
    shade_strokes,
    skin_strokes,
)
from synthetic.face_parameters import Colour, Expression, FaceParameters, spread

Image = NDArray[np.uint8]

FACE_SIZE = 112
# As in a photo collection: stills of every quality, and a few clips, mostly of poor quality.
STILLS = (10, 12)
CLIPS = (2, 4)
CLIP_FRAMES = 4
# Fractions of good, moderate and poor media, and the range of their severity (0 to 1).
STILL_SHARES, CLIP_SHARES = (0.4, 0.25, 0.35), (0.25, 0.2, 0.55)
SEVERITIES = ((0.0, 0.2), (0.3, 0.55), (0.75, 1.0))
FRAME_CHANGE = 0.03

# Rendering scale, fractional bits of coordinates, and camera distance in pixels of the face.
_OVERSAMPLING, _SHIFT, _CAMERA = 2, 4, 420.0

# Eyes, nose tip and mouth corners of an aligned face, in pixels.
TEMPLATE = np.array(ARCFACE_POINTS)


@dataclass(frozen=True)
class SyntheticFace:
    """A synthetic face; `medium`: index of its photo or clip; `image`: (112, 112, 3) uint8 RGB."""

    subject: int
    medium: int
    image: Image


def draw_faces(*, num_subjects: int, seed: int, first_subject: int = 0) -> Iterator[SyntheticFace]:
    """Render about 24 faces each of `num_subjects` subjects from `first_subject`, in order.

    A subject's faces depend on `seed` and its index only.
    """
    for subject in range(first_subject, first_subject + num_subjects):
        params = FaceParameters.draw(np.random.default_rng([seed, subject, 1]))
        rng = np.random.default_rng([seed, subject, 2])
        stills, clips = (int(rng.integers(low, high + 1)) for low, high in (STILLS, CLIPS))
        media = [(1, STILL_SHARES)] * stills + [(CLIP_FRAMES, CLIP_SHARES)] * clips
        for medium, (frames, shares) in enumerate(media):
            severity = float(rng.uniform(*SEVERITIES[rng.choice(3, p=shares)]))
            scene = _Scene.draw(params, severity, rng)
            draws = rng.uniform(-1, 1, len(fields(_Shot)))
            for _ in range(frames):
                moved = np.clip(draws + rng.normal(0, FRAME_CHANGE, len(draws)), -1, 1)
                shot = _Shot.of_severity(severity, draws if frames == 1 else moved)
                yield SyntheticFace(subject, medium, _take(_render(params, shot, scene), shot, rng))


def draw_frontal_face(subject: int, *, seed: int) -> Image:
    """(112, 112, 3) uint8 RGB of a subject: frontal, neutral, evenly illuminated, in full quality."""
    params = FaceParameters.draw(np.random.default_rng([seed, subject, 1]))
    shot = _Shot.of_severity(0.0, np.zeros(len(fields(_Shot))))
    scene = _Scene(np.full((6, 6, 3), (196, 206, 214), np.uint8), (92, 104, 128), params.wears_glasses)
    return _take(_render(params, shot, scene), shot, np.random.default_rng(0))


@dataclass(frozen=True)
class _Shot(Expression):
    """Image conditions, which vary slightly between frames; ranges as in `Expression`.

    Angles are in radians, shifts and blurs in pixels, `gain` and `gamma` logarithmic. `motion` and the fields
    after it, except its angle, have an effect if positive.
    """

    yaw: float = spread(0.75, 0.2)
    pitch: float = spread(0.4, 0.2)
    roll: float = spread(0.25, 0.15)
    shift_x: float = spread(4.0, 0.1)
    shift_y: float = spread(4.0, 0.1)
    zoom: float = spread(0.1, 0.1)
    light_x: float = spread(0.62, 0.2)
    light_y: float = spread(0.4, 0.2)
    gain: float = spread(0.75, 0.15)
    gamma: float = spread(0.6, 0.15)
    warmth: float = spread(0.16, 0.2)
    contrast: float = spread(0.5, 0.2)
    motion: float = spread(15.0, 0.0)
    motion_angle: float = spread(1.57, 1.0)
    defocus: float = spread(4.5, 0.0)
    low_res: float = spread(0.92, 0.0)
    noise: float = spread(50.0, 0.04)
    jpeg: float = spread(0.95, 0.1)

    @classmethod
    def of_severity(cls, severity: float, draws: NDArray[np.float64]) -> _Shot:
        """Scale `draws`, one value in [-1, 1] per field, by `severity` in [0, 1]."""
        ranges = np.array([entry.metadata["spread"] for entry in fields(cls)])
        strength = ranges[:, 0] * (ranges[:, 1] + (1 - ranges[:, 1]) * severity)
        return cls(*(draws * strength).tolist())


@dataclass(frozen=True)
class _Scene:
    """Conditions that all frames of a medium share.

    `backdrop`: (6, 6, 3) uint8 RGB; `cover`: an occlusion of COVERS, '' for none.
    """

    backdrop: Image
    clothes: Colour
    wears_glasses: bool
    cover: str = ""
    cover_colour: Colour = (0, 0, 0)
    cover_place: float = 0.0

    @classmethod
    def draw(cls, params: FaceParameters, severity: float, rng: np.random.Generator) -> _Scene:
        greys, tints = rng.uniform(60, 215, (3, 1)), rng.normal(0, ((26,), (40,), (40,)), (3, 3))
        backdrop, clothes, cover = np.clip(greys + tints, 10, 245)
        patches = rng.normal(0, 16, (6, 6, 1)) + rng.normal(0, 5, (6, 6, 3))
        return cls(
            np.clip(backdrop + patches, 0, 255).astype(np.uint8),
            tuple(clothes.tolist()),
            params.wears_glasses and rng.random() < 0.85,
            str(rng.choice(COVERS)) if rng.random() < 0.6 * severity else "",
            tuple(cover.tolist()),
            float(rng.uniform(-1, 1)),
        )


@lru_cache(maxsize=4)
def _lasting_strokes(params: FaceParameters) -> tuple[list[Stroke], ...]:
    """Strokes that are equal in all images of a subject: back, shades, skin, hair."""
    return back_strokes(params), shade_strokes(params), skin_strokes(params), hair_strokes(params)


@lru_cache(maxsize=1)
def _grain() -> NDArray[np.float32]:
    """Unit normal noise larger than a face, from which windows are taken: faster than new noise."""
    return np.random.default_rng(0).standard_normal((2 * FACE_SIZE, 2 * FACE_SIZE, 3), np.float32)


def _render(params: FaceParameters, shot: _Shot, scene: _Scene) -> Image:
    """Render (112, 112, 3) uint8 RGB without illumination and camera effects, at twice the size."""
    view = _View(params, shot)
    side = _OVERSAMPLING * FACE_SIZE
    back, shades, skin, hair = _lasting_strokes(params)
    smooth = cv2.resize(scene.backdrop, (side // 4, side // 4), interpolation=cv2.INTER_CUBIC)
    canvas: Any = cv2.resize(smooth, (side, side))
    view.paint(canvas, [*clothes_strokes(scene.clothes), *back])
    shade: Any = np.full((FACE_SIZE, FACE_SIZE, 3), 128, np.uint8)
    view.paint(shade, shades)
    shade = cv2.resize(cv2.GaussianBlur(shade, (15, 15), 2.6), (side, side))
    canvas = cv2.multiply(canvas, shade, scale=1 / 128)
    front = [*skin, *moving_strokes(params, shot), *hair]
    if scene.wears_glasses:
        front += glasses_strokes(params)
    if scene.cover:
        front += cover_strokes(params, scene.cover, scene.cover_colour, scene.cover_place)
    view.paint(canvas, front)
    return np.asarray(cv2.resize(canvas, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_AREA), np.uint8)


class _View:
    """Projection of head coordinates to the image: rotation, perspective, alignment by landmarks."""

    def __init__(self, params: FaceParameters, shot: _Shot) -> None:
        yaw, pitch = shot.yaw, shot.pitch
        turn_y = np.array(((math.cos(yaw), 0, math.sin(yaw)), (0, 1, 0), (-math.sin(yaw), 0, math.cos(yaw))))
        tilt = np.array(
            ((1, 0, 0), (0, math.cos(pitch), math.sin(pitch)), (0, -math.sin(pitch), math.cos(pitch)))
        )
        self._rotation = tilt @ turn_y
        self._fit, self._offset = 1.0 + 0j, 0j
        lift = np.array((0, 0, NOSE_LIFT, 0, 0))
        seen = self._project(params.landmarks, lift, np.ones(5))
        # The least-squares similarity of five-point alignment, in complex numbers.
        wanted = TEMPLATE @ (1, 1j)
        centred = seen - seen.mean()
        fit = np.vdot(centred, wanted - wanted.mean()) / np.vdot(centred, centred).real
        self._fit = fit * (1 + shot.zoom) * complex(math.cos(shot.roll), math.sin(shot.roll))
        self._offset = wanted.mean() + complex(shot.shift_x, shot.shift_y) - self._fit * seen.mean()

    def paint(self, canvas: Image, strokes: list[Stroke]) -> None:
        """Draw strokes in order on a square canvas of the aligned face."""
        ratio = len(canvas) / FACE_SIZE
        ends = np.cumsum([len(stroke.points) for stroke in strokes]).tolist()
        parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        lift, turn = np.empty(ends[-1]), np.empty(ends[-1])
        for stroke, part in zip(strokes, parts, strict=True):
            lift[part], turn[part] = stroke.lift, stroke.turn
        placed = self._project(np.concatenate([stroke.points for stroke in strokes]), lift, turn)
        placed = (placed * ratio + (ratio - 1) / 2 * (1 + 1j)) * 2**_SHIFT
        pixels = np.rint(np.stack((placed.real, placed.imag), axis=-1)).astype(np.int32)
        for stroke, part in zip(strokes, parts, strict=True):
            if stroke.width:
                thick = max(1, round(stroke.width * ratio))
                cv2.polylines(canvas, [pixels[part]], False, stroke.colour, thick, cv2.LINE_AA, _SHIFT)
            else:
                cv2.fillPoly(canvas, [pixels[part]], stroke.colour, cv2.LINE_AA, _SHIFT)

    def _project(self, points: Points, lift: Points, turn: Points) -> NDArray[np.complex128]:
        """(N,) pixels of the aligned face, as x + iy."""
        depth = 1 - (points * (1 / 47, 1 / 66)) ** 2 @ (1.0, 1.0)
        depth = 40 * np.sqrt(np.maximum(depth, 0.02)) + lift
        turned = points @ self._rotation[:, :2].T + depth[:, None] * self._rotation[:, 2]
        flat = points + turn[:, None] * (turned[:, :2] - points)
        nearer = _CAMERA / (_CAMERA - turned[:, 2] * turn)
        placed: NDArray[np.complex128] = (flat @ (1, 1j)) * nearer * self._fit + self._offset
        return placed


def _take(image: Image, shot: _Shot, rng: np.random.Generator) -> Image:
    """Apply illumination, camera and compression."""
    warm = np.array((1 + shot.warmth, 1.0, 1 - shot.warmth))
    shade = _ROUND + shot.light_x * _LIGHT_X + shot.light_y * _LIGHT_Y
    lit = image * (shade[..., None] * (math.exp(shot.gain) * warm)).astype(np.float32)
    picture: Any = np.clip(lit, 0, 255).astype(np.uint8)
    if shot.motion >= 2:
        length = int(shot.motion)
        kernel: Any = np.zeros((length, length), np.float32)
        middle = (length - 1) / 2
        x, y = middle * math.cos(shot.motion_angle), middle * math.sin(shot.motion_angle)
        ends = [(round(middle + way * x), round(middle + way * y)) for way in (-1, 1)]
        cv2.line(kernel, ends[0], ends[1], (1.0,))
        picture = cv2.filter2D(picture, -1, kernel / kernel.sum())
    if shot.defocus > 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), shot.defocus)
    if shot.low_res > 0:
        side = round(FACE_SIZE * (1 - shot.low_res))
        small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        picture = cv2.resize(small, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_LINEAR)
    levels = 255 * (np.arange(256) / 255) ** math.exp(shot.gamma)
    levels = 128 + (levels - 128) * math.exp(min(shot.contrast, 0))
    picture = cv2.LUT(picture, np.clip(levels, 0, 255).astype(np.uint8))
    if shot.noise > 0:
        x, y = rng.integers(FACE_SIZE, size=2).tolist()
        grain = _grain()[y : y + FACE_SIZE, x : x + FACE_SIZE]
        picture = np.clip(picture + np.float32(shot.noise) * grain, 0, 255).astype(np.uint8)
    if shot.jpeg > 0:
        quality = round(95 * (1 - shot.jpeg))
        encoded = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
        picture = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    return np.asarray(picture, np.uint8)


_Y, _X = np.mgrid[:FACE_SIZE, :FACE_SIZE].astype(np.float32)
_SIDE, _HEIGHT = (_X - 56) / 56, (_Y - 60) / 62
# Frontal illumination of a round head, and the contributions of light from the right and from below.
_ROUND = 1.04 - 0.12 * (_SIDE**2 + _HEIGHT**2)
_LIGHT_X, _LIGHT_Y = np.sin(1.4 * _SIDE), np.sin(1.4 * _HEIGHT)

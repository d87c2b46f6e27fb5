"""Synthetic faces for the demo and the tests: portraits drawn from numbers, no image of a real person.

A subject is a set of shape and colour parameters, an image of it a draw of pose, light, expression, occlusion
and picture quality. Nothing is read or written here; a face follows from the seed and its subject alone.
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
from synthetic.face_parameters import Colour, Expression, Person, spread

Image = NDArray[np.uint8]

FACE_SIZE = 112
# As in a photo collection: each subject has stills of every quality, and a few clips, many of them poor.
STILLS = (10, 12)
CLIPS = (2, 4)
CLIP_FRAMES = 4
# Shares of good, moderate and poor media, and how strong their nuisances are (0 none, 1 the worst).
STILL_SHARES, CLIP_SHARES = (0.4, 0.25, 0.35), (0.25, 0.2, 0.55)
SEVERITIES = ((0.0, 0.2), (0.3, 0.55), (0.75, 1.0))
FRAME_CHANGE = 0.03

# Drawn at twice the size, from points with 4 more bits; the camera's distance is in pixels of the face.
_OVERSAMPLING, _SHIFT, _CAMERA = 2, 4, 420.0

# Eyes, nose tip and corners of the mouth of an aligned face (METHOD 2), in pixels.
TEMPLATE = np.array(
    ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
)


@dataclass(frozen=True)
class SyntheticFace:
    """One drawn face.

    `medium`: the photo or clip it comes from, counted within the subject; frames of one clip share it.
    `image`: (112, 112, 3) uint8 RGB.
    """

    subject: int
    medium: int
    image: Image


def draw_faces(*, num_subjects: int, seed: int, first_subject: int = 0) -> Iterator[SyntheticFace]:
    """Faces of `num_subjects` subjects from `first_subject` on, in order; about 24 of each.

    A subject's faces depend on `seed` and its number alone, not on the range it is drawn in.
    """
    for subject in range(first_subject, first_subject + num_subjects):
        person = Person.draw(np.random.default_rng([seed, subject, 1]))
        rng = np.random.default_rng([seed, subject, 2])
        stills, clips = (int(rng.integers(low, high + 1)) for low, high in (STILLS, CLIPS))
        media = [(1, STILL_SHARES)] * stills + [(CLIP_FRAMES, CLIP_SHARES)] * clips
        for medium, (frames, shares) in enumerate(media):
            severity = float(rng.uniform(*SEVERITIES[rng.choice(3, p=shares)]))
            scene = _Scene.draw(person, severity, rng)
            draws = rng.uniform(-1, 1, len(fields(_Shot)))
            for _ in range(frames):
                moved = np.clip(draws + rng.normal(0, FRAME_CHANGE, len(draws)), -1, 1)
                shot = _Shot.of_severity(severity, draws if frames == 1 else moved)
                yield SyntheticFace(subject, medium, _take(_render(person, shot, scene), shot, rng))


def draw_portrait(subject: int, *, seed: int) -> Image:
    """(112, 112, 3) uint8 RGB: the subject from the front, at rest, in even light and full quality."""
    person = Person.draw(np.random.default_rng([seed, subject, 1]))
    shot = _Shot.of_severity(0.0, np.zeros(len(fields(_Shot))))
    scene = _Scene(np.full((6, 6, 3), (196, 206, 214), np.uint8), (92, 104, 128), person.wears_glasses)
    return _take(_render(person, shot, scene), shot, np.random.default_rng(0))


@dataclass(frozen=True)
class _Shot(Expression):
    """Nuisances that may differ a little between frames; 0 is neutral, the first number the reach.

    The second is the share of that reach that the best pictures have too. Angles are in radians, shifts and
    blurs in pixels, `gain` and `gamma` logarithms. `motion` and what follows it, but for its angle, make a
    picture worse where they are positive, and do nothing elsewhere.
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
        """`draws`: one value from -1 to 1 for each field; `severity` from 0 to 1."""
        ranges = np.array([entry.metadata["spread"] for entry in fields(cls)])
        strength = ranges[:, 0] * (ranges[:, 1] + (1 - ranges[:, 1]) * severity)
        return cls(*(draws * strength).tolist())


@dataclass(frozen=True)
class _Scene:
    """What all frames of a medium share.

    `backdrop`: (6, 6, 3) uint8 RGB; `cover`: one of COVERS, or "" for none.
    """

    backdrop: Image
    clothes: Colour
    wears_glasses: bool
    cover: str = ""
    cover_colour: Colour = (0, 0, 0)
    cover_place: float = 0.0

    @classmethod
    def draw(cls, person: Person, severity: float, rng: np.random.Generator) -> _Scene:
        greys, tints = rng.uniform(60, 215, (3, 1)), rng.normal(0, ((26,), (40,), (40,)), (3, 3))
        backdrop, clothes, cover = np.clip(greys + tints, 10, 245)
        patches = rng.normal(0, 16, (6, 6, 1)) + rng.normal(0, 5, (6, 6, 3))
        return cls(
            np.clip(backdrop + patches, 0, 255).astype(np.uint8),
            tuple(clothes.tolist()),
            person.wears_glasses and rng.random() < 0.85,
            str(rng.choice(COVERS)) if rng.random() < 0.6 * severity else "",
            tuple(cover.tolist()),
            float(rng.uniform(-1, 1)),
        )


@lru_cache(maxsize=4)
def _lasting_strokes(person: Person) -> tuple[list[Stroke], ...]:
    """What is the same in all images of a person: back, soft shades, what lies on the skin, hair."""
    return back_strokes(person), shade_strokes(person), skin_strokes(person), hair_strokes(person)


@lru_cache(maxsize=1)
def _grain() -> NDArray[np.float32]:
    """Noise of deviation 1, larger than a face: a window of it costs less than fresh noise."""
    return np.random.default_rng(0).standard_normal((2 * FACE_SIZE, 2 * FACE_SIZE, 3), np.float32)


def _render(person: Person, shot: _Shot, scene: _Scene) -> Image:
    """(112, 112, 3) uint8 RGB without the light and the camera's faults; drawn at twice the size."""
    view = _View(person, shot)
    side = _OVERSAMPLING * FACE_SIZE
    back, shades, skin, hair = _lasting_strokes(person)
    smooth = cv2.resize(scene.backdrop, (side // 4, side // 4), interpolation=cv2.INTER_CUBIC)
    canvas: Any = cv2.resize(smooth, (side, side))
    view.paint(canvas, [*clothes_strokes(scene.clothes), *back])
    shade: Any = np.full((FACE_SIZE, FACE_SIZE, 3), 128, np.uint8)
    view.paint(shade, shades)
    shade = cv2.resize(cv2.GaussianBlur(shade, (15, 15), 2.6), (side, side))
    canvas = cv2.multiply(canvas, shade, scale=1 / 128)
    front = [*skin, *moving_strokes(person, shot), *hair]
    if scene.wears_glasses:
        front += glasses_strokes(person)
    if scene.cover:
        front += cover_strokes(person, scene.cover, scene.cover_colour, scene.cover_place)
    view.paint(canvas, front)
    return np.asarray(cv2.resize(canvas, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_AREA), np.uint8)


class _View:
    """Where points of the head lie in the image: turned, in perspective, then aligned by the landmarks."""

    def __init__(self, person: Person, shot: _Shot) -> None:
        yaw, pitch = shot.yaw, shot.pitch
        turn_y = np.array(((math.cos(yaw), 0, math.sin(yaw)), (0, 1, 0), (-math.sin(yaw), 0, math.cos(yaw))))
        tilt = np.array(
            ((1, 0, 0), (0, math.cos(pitch), math.sin(pitch)), (0, -math.sin(pitch), math.cos(pitch)))
        )
        self._rotation = tilt @ turn_y
        self._fit, self._offset = 1.0 + 0j, 0j
        lift = np.array((0, 0, NOSE_LIFT, 0, 0))
        seen = self._project(person.landmarks, lift, np.ones(5))
        # The least-squares similarity, in complex numbers, as alignment by five points does it.
        wanted = TEMPLATE @ (1, 1j)
        centred = seen - seen.mean()
        fit = np.vdot(centred, wanted - wanted.mean()) / np.vdot(centred, centred).real
        self._fit = fit * (1 + shot.zoom) * complex(math.cos(shot.roll), math.sin(shot.roll))
        self._offset = wanted.mean() + complex(shot.shift_x, shot.shift_y) - self._fit * seen.mean()

    def paint(self, canvas: Image, strokes: list[Stroke]) -> None:
        """Draws the strokes in order; `canvas` is square and shows the whole aligned face."""
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
    """Light, then what a camera and a file do to a picture."""
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
# Light from the front on a round head; then what a light from the right or from below adds.
_ROUND = 1.04 - 0.12 * (_SIDE**2 + _HEIGHT**2)
_LIGHT_X, _LIGHT_Y = np.sin(1.4 * _SIDE), np.sin(1.4 * _HEIGHT)

"""Synthetic faces for the demo and the tests: portraits drawn from numbers, no image of a real person.

A subject is a set of shape and colour parameters, an image of it a draw of pose, light, expression, occlusion
and picture quality. Nothing is read or written here; a face follows from the seed and its subject alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Image = NDArray[np.uint8]
Points = NDArray[np.float64]
Colour = tuple[float, float, float]

FACE_SIZE = 112
# As in a photo collection: each subject has stills of every quality, and a few clips, many of them poor.
STILLS = (10, 12)
CLIPS = (2, 4)
CLIP_FRAMES = 4
# Shares of good, moderate and poor media, and how strong their nuisances are (0 none, 1 the worst).
STILL_SHARES, CLIP_SHARES = (0.4, 0.3, 0.3), (0.25, 0.25, 0.5)
SEVERITIES = ((0.05, 0.25), (0.3, 0.55), (0.65, 1.0))
FRAME_CHANGE = 0.03

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
        person = _person(seed, subject)
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
    person = _person(seed, subject)
    shot = _Shot.of_severity(0.0, np.zeros(len(fields(_Shot))))
    scene = _Scene(np.full((6, 6, 3), (196, 206, 214), np.uint8), (92, 104, 128), bool(person.glasses > 0.72))
    return _take(_render(person, shot, scene), shot, np.random.default_rng(0))


def _range(low: float, high: float) -> Any:
    return field(metadata={"range": (low, high)})


@dataclass(frozen=True)
class _Person:
    """Identity: every value is independent and uniform in its range.

    Lengths are in pixels of the aligned face or relative to the usual; values without a unit run from 0 to 1.
    """

    width: float = _range(35.5, 43.5)
    jaw: float = _range(0.5, 1.05)
    chin: float = _range(40.0, 48.0)
    chin_round: float = _range(0.8, 1.1)
    crown: float = _range(46.0, 54.0)
    tone: float = _range(0, 1)
    ruddy: float = _range(-1, 1)
    blush: float = _range(0, 1)
    age: float = _range(0, 1)
    freckles: float = _range(0, 1)
    ear: float = _range(0.7, 1.3)
    eye_gap: float = _range(0.88, 1.12)
    eye_y: float = _range(-1.6, 1.6)
    eye_width: float = _range(6.4, 9.2)
    eye_height: float = _range(2.8, 5.2)
    eye_tilt: float = _range(-0.16, 0.2)
    iris: float = _range(2.9, 4.1)
    iris_colour: float = _range(0, 1)
    lashes: float = _range(0.7, 1.8)
    brow_y: float = _range(8.6, 13.0)
    brow_width: float = _range(8.0, 11.5)
    brow_thick: float = _range(0.8, 2.7)
    brow_arch: float = _range(0.0, 3.6)
    brow_tilt: float = _range(-0.22, 0.22)
    brow_tone: float = _range(0.45, 1.0)
    nose_y: float = _range(-3.0, 3.0)
    nose_width: float = _range(5.0, 9.5)
    nose_bridge: float = _range(1.2, 3.4)
    nostril: float = _range(0.8, 1.6)
    mouth_width: float = _range(0.8, 1.2)
    mouth_y: float = _range(-1.8, 1.8)
    upper_lip: float = _range(1.2, 3.8)
    lower_lip: float = _range(2.0, 5.2)
    lip_bow: float = _range(0.0, 0.6)
    lip_red: float = _range(0.15, 0.65)
    mouth_curve: float = _range(-0.5, 1.2)
    hair_colour: float = _range(0, 1)
    hair_shade: float = _range(-0.2, 0.2)
    hairline: float = _range(-47.0, -37.0)
    hair_corner: float = _range(3.0, 9.0)
    hair_volume: float = _range(2.0, 13.0)
    hair_length: float = _range(0, 1)
    fringe: float = _range(-4.0, 13.0)
    parting: float = _range(-0.7, 0.7)
    curl: float = _range(0, 1)
    bald: float = _range(0, 1)
    beard: float = _range(0, 1)
    beard_high: float = _range(0, 1)
    moustache: float = _range(0, 1)
    glasses: float = _range(0, 1)
    glasses_size: float = _range(9.5, 13.5)
    glasses_square: float = _range(0.45, 1.0)
    glasses_tone: float = _range(0, 1)
    mole: float = _range(0, 1)
    mole_x: float = _range(-25, 25)
    mole_y: float = _range(-2, 38)

    @property
    def skin(self) -> Colour:
        """In neutral light; redder than blue for every tone."""
        red, green, blue = _along(_SKINS, self.tone)
        return red + 5 * self.ruddy, green - 4 * self.ruddy, blue - 5 * self.ruddy

    @property
    def hair(self) -> Colour:
        colour = _along(_HAIRS, self.hair_colour)
        return _mix(colour, (255, 250, 240) if self.hair_shade > 0 else (0, 0, 0), abs(self.hair_shade))

    @property
    def landmarks(self) -> Points:
        """(5, 2) in head coordinates, the order of TEMPLATE."""
        eye, mouth = 17.62 * self.eye_gap, 14.59 * self.mouth_width
        eye_y, mouth_y = -14.4 + self.eye_y, 26.3 + self.mouth_y
        points = ((-eye, eye_y), (eye, eye_y), (0, 5.7 + self.nose_y), (-mouth, mouth_y), (mouth, mouth_y))
        return np.array(points)


@dataclass(frozen=True)
class _Shot:
    """Nuisances that may differ a little between frames; 0 is neutral, the range is for the worst of 1.

    The second value of each is the share of the range that good images have too. Those that make the picture
    worse (from mouth_open on) act where they are positive.
    """

    yaw: float = _range(0.75, 0.2)
    pitch: float = _range(0.4, 0.2)
    roll: float = _range(0.25, 0.15)
    shift_x: float = _range(4.0, 0.1)
    shift_y: float = _range(4.0, 0.1)
    zoom: float = _range(0.1, 0.1)
    gaze_x: float = _range(2.2, 0.3)
    gaze_y: float = _range(1.0, 0.3)
    smile: float = _range(1.3, 0.7)
    brow_lift: float = _range(2.5, 0.4)
    light_x: float = _range(0.62, 0.2)
    light_y: float = _range(0.4, 0.2)
    gain: float = _range(0.75, 0.15)
    gamma: float = _range(0.6, 0.15)
    warmth: float = _range(0.12, 0.3)
    contrast: float = _range(0.5, 0.2)
    mouth_open: float = _range(9.0, 0.4)
    eyes_shut: float = _range(1.2, 0.1)
    motion: float = _range(15.0, 0.0)
    defocus: float = _range(3.6, 0.0)
    low_res: float = _range(0.88, 0.0)
    noise: float = _range(38.0, 0.05)
    jpeg: float = _range(0.95, 0.1)

    @classmethod
    def of_severity(cls, severity: float, draws: NDArray[np.float64]) -> _Shot:
        """`draws`: one value from -1 to 1 for each field; `severity` from 0 to 1."""
        ranges = np.array([entry.metadata["range"] for entry in fields(cls)])
        strength = ranges[:, 0] * (ranges[:, 1] * (severity > 0) + (1 - ranges[:, 1]) * severity)
        return cls(*(draws * strength).tolist())

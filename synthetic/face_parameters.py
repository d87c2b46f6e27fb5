"""Parameters of synthetic faces: identity and expression."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]

# Colour ramps, interpolated linearly.
_SKINS = ((255, 222, 196), (244, 200, 164), (226, 172, 128), (190, 132, 92), (146, 94, 64), (104, 66, 46))
_BROWNS, _REDS = ((34, 28, 30), (66, 44, 34), (110, 72, 46)), ((140, 66, 38), (200, 108, 50))
_HAIRS = (*_BROWNS, *_REDS, (228, 190, 126), (186, 182, 180))


def spread(low: float, high: float) -> Any:
    """A dataclass field with the range from which it is drawn."""
    return field(metadata={"spread": (low, high)})


@dataclass(frozen=True)
class FaceParameters:
    """Parameters of an identity, independent and uniform in their ranges.

    Lengths are in pixels of the aligned face or relative to the average.
    """

    width: float = spread(35.5, 43.5)
    jaw: float = spread(0.5, 1.05)
    chin: float = spread(40.0, 48.0)
    chin_round: float = spread(0.8, 1.1)
    crown: float = spread(46.0, 54.0)
    tone: float = spread(0, 1)
    ruddy: float = spread(-1, 1)
    blush: float = spread(0, 1)
    age: float = spread(0, 1)
    freckles: float = spread(0, 1)
    ear: float = spread(0.7, 1.3)
    eye_gap: float = spread(0.88, 1.12)
    eye_y: float = spread(-1.6, 1.6)
    eye_width: float = spread(7.2, 10.0)
    eye_height: float = spread(3.4, 6.2)
    eye_tilt: float = spread(-0.16, 0.2)
    iris: float = spread(3.4, 4.8)
    iris_colour: float = spread(0, 1)
    lashes: float = spread(0.7, 1.8)
    brow_y: float = spread(9.4, 14.0)
    brow_width: float = spread(8.0, 11.5)
    brow_thick: float = spread(0.8, 2.7)
    brow_arch: float = spread(0.0, 3.6)
    brow_tilt: float = spread(-0.24, 0.08)
    brow_tone: float = spread(0.45, 1.0)
    nose_y: float = spread(-3.0, 3.0)
    nose_width: float = spread(5.0, 9.5)
    nose_bridge: float = spread(1.2, 3.4)
    nostril: float = spread(0.8, 1.6)
    mouth_width: float = spread(0.8, 1.2)
    mouth_y: float = spread(-1.8, 1.8)
    upper_lip: float = spread(1.2, 3.8)
    lower_lip: float = spread(2.0, 5.2)
    lip_bow: float = spread(0.0, 0.6)
    lip_red: float = spread(0.15, 0.65)
    mouth_curve: float = spread(1.6, 4.4)
    hair_colour: float = spread(0, 1)
    hair_shade: float = spread(-0.2, 0.2)
    hairline: float = spread(-47.0, -37.0)
    hair_corner: float = spread(3.0, 9.0)
    hair_volume: float = spread(2.0, 13.0)
    hair_length: float = spread(0, 1)
    fringe: float = spread(-4.0, 13.0)
    parting: float = spread(-0.7, 0.7)
    curl: float = spread(0, 1)
    bald: float = spread(0, 1)
    beard: float = spread(0, 1)
    beard_high: float = spread(0, 1)
    moustache: float = spread(0, 1)
    glasses: float = spread(0, 1)
    glasses_size: float = spread(9.5, 13.5)
    glasses_square: float = spread(0.45, 1.0)
    glasses_tone: float = spread(0, 1)
    mole: float = spread(0, 1)
    mole_x: float = spread(-25, 25)
    mole_y: float = spread(-2, 38)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> FaceParameters:
        """Draw all parameters."""
        return cls(*(float(rng.uniform(*entry.metadata["spread"])) for entry in fields(cls)))

    @property
    def wears_glasses(self) -> bool:
        """Whether the subject has glasses, which some images do not show."""
        return self.glasses > 0.72

    @property
    def has_hair(self) -> bool:
        """Whether the subject is not bald."""
        return self.bald < 0.9

    @cached_property
    def skin(self) -> Colour:
        """In neutral light; for every tone red exceeds blue."""
        red, green, blue = colour_along(_SKINS, self.tone)
        return red + 5 * self.ruddy, green - 4 * self.ruddy, blue - 5 * self.ruddy

    @cached_property
    def hair(self) -> Colour:
        """In neutral light."""
        colour = colour_along(_HAIRS, self.hair_colour)
        return mix(colour, (255, 250, 240) if self.hair_shade > 0 else (0, 0, 0), abs(self.hair_shade))

    @cached_property
    def landmarks(self) -> NDArray[np.float64]:
        """(5, 2) in head coordinates, the order of TEMPLATE."""
        eye, mouth = 17.62 * self.eye_gap, 14.59 * self.mouth_width
        eye_y, mouth_y = -14.4 + self.eye_y, 26.3 + self.mouth_y
        points = ((-eye, eye_y), (eye, eye_y), (0, 5.7 + self.nose_y), (-mouth, mouth_y), (mouth, mouth_y))
        return np.array(points)


@dataclass(frozen=True)
class Expression:
    """Expression; 0 is neutral. The numbers of a field are its range and the fraction used at severity 0.

    `mouth_open` (pixels) and `eyes_shut` (1: closed) have an effect if positive.
    """

    smile: float = spread(1.3, 0.7)
    brow_lift: float = spread(2.5, 0.4)
    gaze_x: float = spread(2.2, 0.3)
    gaze_y: float = spread(1.0, 0.3)
    mouth_open: float = spread(9.0, 0.4)
    eyes_shut: float = spread(1.2, 0.1)


def mix(colour: Colour, other: Colour, share: float) -> Colour:
    """Blend two colours; a `share` of 1 gives `other`."""
    (a, b, c), (d, e, f) = colour, other
    return a + share * (d - a), b + share * (e - b), c + share * (f - c)


def colour_along(colours: tuple[Colour, ...], place: float) -> Colour:
    """The colour at `place` in [0, 1] of a colour ramp."""
    step = min(int(place * (len(colours) - 1)), len(colours) - 2)
    return mix(colours[step], colours[step + 1], place * (len(colours) - 1) - step)

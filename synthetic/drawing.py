"""How a person is drawn: the lines and areas of a portrait, from back to front.

Plain geometry in head coordinates: pixels of the aligned face, from the middle of the head. How a head turns
and gets onto pixels is decided in `synthetic.faces`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from synthetic.face_parameters import Colour, Expression, Person, colour_along, mix

Points = NDArray[np.float64]

# How far the nose stands out of the face, in pixels.
NOSE_LIFT = 12.0
COVERS = ("mask", "sunglasses", "hand", "hat", "scarf", "box")

# A person has what is above its value.
_BEARD, _MOUSTACHE, _FRECKLES, _MOLE = 0.7, 0.78, 0.7, 0.5

_DARK = (60.0, 20.0, 10.0)
_RIMS = ((24, 24, 28), (150, 60, 50), (206, 176, 110))
_IRISES = ((58, 34, 22), (104, 64, 34), (128, 112, 56), (78, 128, 84), (76, 128, 176), (120, 136, 148))
# Angles over the head from right to left, and all round.
_ARC = np.linspace(0, np.pi, 41)
_CIRCLE = np.linspace(0, 2 * np.pi, 48, endpoint=False)
_STEPS = np.linspace(0, 2 * np.pi, 20, endpoint=False)
_SMALL_CIRCLE = np.stack((np.cos(_STEPS), np.sin(_STEPS)), axis=-1)
# From the one end of an eye, a brow or a mouth to the other, and a dome over it.
_T = np.linspace(-1, 1, 17)
_DOME = 1 - _T**2


class Stroke(NamedTuple):
    """A filled polygon, or a line of `width` pixels where that is above 0.

    `points`: (N, 2). `lift`: above the skin, in pixels. `turn`, a number or (N,): 1 on the turning head,
    0 on its outline, which stays as the head turns.
    """

    points: Points
    colour: Colour
    width: float = 0.0
    lift: float = 0.0
    turn: ArrayLike = 1.0


def clothes_strokes(colour: Colour) -> list[Stroke]:
    """The shoulders, to go behind all else."""
    outline = curve((-60, -56, -24, 0, 24, 56, 60), (80, 50, 42, 56, 42, 50, 80))
    return [Stroke(outline, colour, turn=0)]


def back_strokes(person: Person) -> list[Stroke]:
    """What is behind the face, and its bare skin."""
    return [*_hair_behind(person), *_neck_and_ears(person), Stroke(_outline(person), person.skin, turn=0)]


def shade_strokes(person: Person) -> list[Stroke]:
    """Soft shades: painted into a blurred map by which the skin is multiplied; 128 leaves it as it is."""
    outline, tip, wide = _outline(person), 5.7 + person.nose_y, person.nose_width
    strokes = [Stroke(np.concatenate((outline, outline[:1])), (92, 84, 84), 4.5, turn=0)]
    red = 128 + 6 * person.blush, 128 - 16 * person.blush, 128 - 14 * person.blush
    for sign in (-1, 1):
        x, y = person.landmarks[max(sign, 0)]
        strokes.append(Stroke(ellipse(x, y - 1, 10, 6.5), (116, 112, 112)))
        strokes.append(Stroke(ellipse(sign * 22, 12, 9, 7), red))
    return [
        *strokes,
        Stroke(ellipse(0, -32, 16, 6), (138, 138, 138)),
        Stroke(ellipse(0, tip + 6.5, wide, 2.2), (96, 90, 90)),
        Stroke(curve((3, wide, 3), (-14, tip, tip)), (108, 104, 104)),
        Stroke(curve((-3, -wide, -3), (-14, tip, tip)), (120, 118, 118)),
        Stroke(curve((0, 0), (-14, tip - 2)), (146, 146, 146), person.nose_bridge),
        Stroke(ellipse(0, 35 + person.mouth_y, 9, 2.2), (108, 104, 104)),
    ]


def skin_strokes(person: Person) -> list[Stroke]:
    """Nose, beard and marks: what lies on the skin and does not move by itself."""
    return [*_marks(person), *_beard(person), *_nose(person)]


def moving_strokes(person: Person, face: Expression) -> list[Stroke]:
    """Mouth, eyes and brows."""
    strokes = _mouth(person, face)
    for sign in (-1, 1):
        strokes += [*_eye(person, face, sign), *_brow(person, face, sign)]
    return strokes


def hair_strokes(person: Person) -> list[Stroke]:
    """Hair in front: from the temples over the crown, and back along the hairline."""
    if not person.has_hair:
        return []
    half, high = person.width + 1 + person.hair_volume * 0.45, person.crown + person.hair_volume
    outer = _crown(half, high, 0.02 * person.curl * np.sin(19 * _ARC))
    t = np.linspace(-1, 1, 33)
    fringe = max(person.fringe, 0.0) * np.exp(-(((t - person.parting) / 0.75) ** 2)) * (1 - t**6)
    zigzag = (0.4 + 1.6 * person.curl) * np.sin(11 * np.pi * t) * (person.fringe > 2) * (1 - t**4)
    line = person.hairline + fringe + zigzag + min(person.fringe, 0.0) * np.cos(3 * t)
    inner = curve(t * (person.width - 1), line + (-4 - line) * np.abs(t) ** person.hair_corner)
    turn = np.concatenate((np.zeros(len(outer)), np.full(len(inner), 0.85)))
    strokes = [Stroke(np.concatenate((outer, inner)), person.hair, turn=turn)]
    for number, angle in enumerate(np.linspace(0.2, np.pi - 0.2, 10)):
        # Strands from the parting along the crown and down the sides.
        start, end = curve((person.parting * 20, half * 0.95 * np.cos(angle)), (0, 1))
        bend = np.linspace(0, 1, 7)
        low, top = -8 - 0.8 * high * np.sin(angle), -8 - 0.95 * high
        x = start[0] + (end[0] - start[0]) * np.sin(bend * np.pi / 2)
        strand = curve(x, low + (top - low) * np.cos(bend * np.pi / 2))
        tint = mix(person.hair, (255, 236, 210), 0.1) if number % 2 else mix(person.hair, (0, 0, 0), 0.12)
        strokes.append(Stroke(strand, tint, 1.0, turn=0))
    if person.hair_length > 0.5:
        y = np.linspace(-28, _reach(person), 9)
        sway = 0.04 * (1 + person.curl) * np.sin(np.linspace(0, 5, 9))
        lock = band(
            y, 0.94 - 0.07 * np.sin(np.linspace(0, np.pi, 9)) + sway, np.linspace(1.0, 1.22, 9) + sway
        )
        strokes += [Stroke(lock[:, ::-1] * (sign * half, 1), person.hair, turn=0) for sign in (-1, 1)]
    return strokes


def glasses_strokes(person: Person) -> list[Stroke]:
    """Two rims, a bridge and the arms."""
    colour, size = colour_along(_RIMS, person.glasses_tone), person.glasses_size
    cos, sin = np.cos(_CIRCLE), np.sin(_CIRCLE)
    strokes = []
    for sign in (-1, 1):
        x, y = person.landmarks[max(sign, 0)]
        rim_x = x + size * np.sign(cos) * np.abs(cos) ** person.glasses_square
        rim = curve(rim_x, y + 1 + 0.8 * size * np.sign(sin) * np.abs(sin) ** person.glasses_square)
        strokes.append(Stroke(np.concatenate((rim, rim[:2])), colour, 1.4, lift=5.0))
        arm = curve((x + sign * size, sign * (person.width + 1)), (y - 1, y - 3))
        strokes.append(Stroke(arm, colour, 1.3, turn=np.array((1.0, 0.0))))
    inner, level = (person.landmarks[1] - (size, 0)).tolist()
    bridge = curve((-inner, 0, inner), (level, level - 1.5, level))
    return [*strokes, Stroke(bridge, colour, 1.4, lift=6.0)]


def cover_strokes(person: Person, cover: str, colour: Colour, place: float) -> list[Stroke]:
    """What hides a part of the face, of the kind `cover` in COVERS; `place` from -1 to 1 moves it."""
    strokes: list[Stroke] = []
    if cover == "mask":
        half, cloth = person.width * 0.97, mix(colour, (226, 238, 244), 0.6)
        x = np.array((-1, -0.35, 0, 0.35, 1, 0.8, 0.4, -0.4, -0.8)) * half
        turn = np.array((0.2, 1, 1, 1, 0.2, 0.2, 0.5, 0.5, 0.2))
        strokes.append(Stroke(curve(x, (2, 0, -4, 0, 2, 32, 47, 47, 32)), cloth, lift=6, turn=turn))
        for y in (12, 21, 30):
            fold = curve(np.array((-0.7, 0, 0.7)) * half, (y, y + 1.5, y))
            strokes.append(Stroke(fold, mix(cloth, (60, 80, 100), 0.25), 1.0, lift=8, turn=0.7))
    elif cover == "sunglasses":
        for sign in (-1, 1):
            x, y = person.landmarks[max(sign, 0)].tolist()
            arm = curve((0, sign * (person.width + 1)), y - 3)
            strokes.append(Stroke(arm, (22, 22, 26), 2.0, lift=4, turn=np.array((1.0, 0.0))))
            strokes.append(Stroke(ellipse(x, y + 1.5, 14.5, 10.5), (22, 22, 26), lift=5))
            strokes.append(Stroke(curve((x - 7, x - 1), (y - 2, y - 5)), (96, 100, 110), 1.6, lift=5))
    elif cover == "hand":
        side, low = (1 if place > 0 else -1), 24 - 30 * (abs(place) - 0.5)
        fingers = [ellipse(side * (10 + 10 * n), low - 2 * (n % 3), 5.4, 18) for n in range(4)]
        for shape in (*fingers, ellipse(side * 28, low + 26, 23, 20)):
            strokes.append(Stroke(shape, mix(person.skin, (255, 240, 230), 0.12), turn=0))
            strokes.append(Stroke(shape, mix(person.skin, _DARK, 0.4), 0.7, turn=0))
    elif cover == "hat":
        half, brim = person.width + 9, -26 + 6 * place
        crown = curve((-half, -half, half, half, 0), (brim, -70, -70, brim, brim - 4))
        edge = curve((-half - 3, 0, half + 3), (brim, brim - 4, brim))
        strokes += [Stroke(crown, colour, turn=0), Stroke(edge, mix(colour, (0, 0, 0), 0.35), 5.0, turn=0)]
    elif cover == "scarf":
        across, top = np.linspace(-60, 60, 9), 16 + 12 * place
        strokes.append(
            Stroke(band(across, top + 4 - 4 * np.cos(across / 30), np.full(9, 70.0)), colour, turn=0)
        )
        for y in (9, 18, 28):
            fold = curve(across, top + y + 3 * np.sin(across / 25 + y))
            strokes.append(Stroke(fold, mix(colour, (0, 0, 0), 0.25), 1.6, turn=0))
    else:
        middle = 42 * place
        corners = np.array((-22, 22, 24, -20)) + middle
        strokes.append(Stroke(curve(corners, (-50, -54, 52, 56)), colour, turn=0))
    return strokes


def curve(x: ArrayLike, y: ArrayLike) -> Points:
    """(N, 2) points from their coordinates; a single number stands for all."""
    points = np.empty((max(np.size(x), np.size(y)), 2))
    points[:, 0], points[:, 1] = x, y
    return points


def band(x: Points, above: Points, below: Points) -> Points:
    """(2N, 2) outline of what lies between two curves over the same `x`."""
    return curve(np.concatenate((x, x[::-1])), np.concatenate((above, below[::-1])))


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> Points:
    """(20, 2) points round (x, y)."""
    return _SMALL_CIRCLE * (radius_x, radius_y) + (x, y)


def _outline(person: Person) -> Points:
    """(48, 2) of the bare head: a half ellipse above, a squarer or more pointed one below."""
    cos, sin = np.cos(_CIRCLE), np.sin(_CIRCLE)
    below = sin > 0
    x = person.width * np.sign(cos) * np.abs(cos) ** np.where(below, person.jaw, 1.0)
    height = np.where(below, person.chin + 8, person.crown)
    return curve(x, -8 + height * np.sign(sin) * np.abs(sin) ** np.where(below, person.chin_round, 1))


def _crown(half: float, high: float, wave: Points) -> Points:
    return curve(half * np.cos(_ARC) * (1 + wave), -8 - high * np.sin(_ARC) * (1 + wave))


def _reach(person: Person) -> float:
    return -8 + 70 * person.hair_length


def _hair_behind(person: Person) -> list[Stroke]:
    if not person.has_hair:
        return []
    half, reach = person.width + 1 + person.hair_volume * 0.7, _reach(person)
    top = _crown(half, person.crown + person.hair_volume, 0.03 * person.curl * np.sin(15 * _ARC))
    ends = curve(np.array((-1.05, -1, 1, 1.05)) * half, (reach / 2, reach, reach, reach / 2))
    return [Stroke(np.concatenate((top, ends)), mix(person.hair, (0, 0, 0), 0.35), turn=0)]


def _neck_and_ears(person: Person) -> list[Stroke]:
    shade = mix(person.skin, _DARK, 0.28)
    strokes = [Stroke(curve((-21, 21, 24, -24), (20, 20, 60, 60)), shade, turn=0)]
    for sign in (-1, 1):
        for size, colour in ((1.0, mix(person.skin, _DARK, 0.12)), (0.6, shade)):
            ear = ellipse(sign * (person.width + 1.5), -5, 5 * person.ear * size, 10 * person.ear * size)
            strokes.append(Stroke(ear, colour, turn=0.3))
    return strokes


def _eye(person: Person, face: Expression, sign: int) -> list[Stroke]:
    x, y = person.landmarks[max(sign, 0)].tolist()
    height, skin = person.eye_height, person.skin
    opening = height * (1 - min(max(face.eyes_shut, 0.0), 1.0))
    along, tilt = x + person.eye_width * _T, y - person.eye_tilt * person.eye_width * sign * _T
    lower = tilt + 0.62 * height * _DOME
    upper = np.minimum(tilt - opening * _DOME**0.75 + 0.5 * (height - opening) * _DOME, lower)
    look_x, look_y = x + face.gaze_x, y - 0.4 + face.gaze_y

    def clipped(radius: float) -> Points:
        points = ellipse(look_x, look_y, radius, radius)
        low, high = np.interp(points[:, 0], along, upper), np.interp(points[:, 0], along, lower)
        points[:, 1] = np.minimum(np.maximum(points[:, 1], low), high)
        return points

    strokes = [Stroke(curve(along, upper - 2.2 - 0.4 * height * _DOME)[1:-1], mix(skin, _DARK, 0.35), 0.6)]
    if opening > 0.8:
        iris = colour_along(_IRISES, person.iris_colour)
        strokes += [
            Stroke(band(along, upper, lower), (244, 240, 236)),
            Stroke(clipped(person.iris), mix(iris, (0, 0, 0), 0.45)),
            Stroke(clipped(person.iris * 0.84), iris),
            Stroke(clipped(person.iris * 0.48), (16, 14, 14)),
            Stroke(ellipse(look_x + 1.2, look_y - 1.2, 0.8, 0.8), (255, 255, 255)),
        ]
    strokes.append(Stroke(curve(along, lower), mix(skin, _DARK, 0.4), 0.5))
    return [*strokes, Stroke(curve(along, upper), mix(person.hair, (20, 12, 10), 0.7), person.lashes)]


def _brow(person: Person, face: Expression, sign: int) -> list[Stroke]:
    x, y = person.landmarks[max(sign, 0)].tolist()
    middle = y - person.brow_y - face.brow_lift - person.brow_arch * (1 - (_T - 0.25) ** 2)
    middle -= person.brow_tilt * person.brow_width * _T
    thick = person.brow_thick * (1 - 0.375 * (_T + 1)) ** 0.6
    colour = mix(person.skin, mix(person.hair, (30, 20, 16), 0.3), person.brow_tone)
    return [Stroke(band(x + sign * person.brow_width * _T, middle - thick, middle + thick), colour)]


def _nose(person: Person) -> list[Stroke]:
    tip, width = 5.7 + person.nose_y, person.nose_width
    gleam = ellipse(0.6, tip - 0.8, 2.0, 1.6)
    strokes = [Stroke(gleam, mix(person.skin, (255, 250, 244), 0.28), lift=NOSE_LIFT)]
    angles = np.linspace(-1.0, 1.6, 7)
    for sign in (-1, 1):
        hole = ellipse(sign * width * 0.45, tip + 4.4, 1.5 * person.nostril, 0.8 * person.nostril)
        wing = curve(sign * (width - 2.5 + 2.5 * np.cos(angles)), tip + 2 + 3.2 * np.sin(angles))
        strokes.append(Stroke(hole, mix(person.skin, (40, 6, 4), 0.75), lift=0.6 * NOSE_LIFT))
        strokes.append(Stroke(wing, mix(person.skin, _DARK, 0.4), 0.7, lift=0.4 * NOSE_LIFT))
    return strokes


def _mouth(person: Person, face: Expression) -> list[Stroke]:
    along = 14.59 * person.mouth_width * (1 + 0.06 * face.smile) * _T
    opening = max(face.mouth_open, 0.0)
    middle = 26.3 + person.mouth_y + person.mouth_curve * _DOME + 1.3 * face.smile * (_DOME - _T**2)
    upper, lower = middle - 0.25 * opening * _DOME, middle + 0.75 * opening * _DOME
    top = upper - person.upper_lip * _DOME**0.8 * (1 - person.lip_bow * np.exp(-((_T / 0.2) ** 2)))
    bottom = lower + person.lower_lip * _DOME**0.7
    lip = mix(person.skin, (178, 44, 58), person.lip_red)
    strokes = [
        Stroke(band(along, lower, bottom), lip),
        Stroke(band(along, top, upper), mix(lip, (50, 0, 10), 0.2)),
        Stroke(curve(along, (lower + bottom) / 2)[5:12], mix(lip, (255, 235, 230), 0.25), 0.9),
    ]
    if opening <= 1.2:
        return [*strokes, Stroke(curve(along, middle), mix(lip, (50, 0, 6), 0.6), 0.9)]
    teeth = np.minimum(upper + 0.45 * opening * _DOME**0.5, lower)
    inside = Stroke(band(along, upper, lower), (86, 22, 26))
    return [*strokes, inside, Stroke(band(along, upper, teeth)[2:-2], (246, 242, 234))]


def _marks(person: Person) -> list[Stroke]:
    """The folds of age, freckles and a mole."""
    strokes = []
    for sign in (-1, 1):
        fold = curve(sign * np.array((10.5, 14.5, 17)), (10, 15, 21))
        strokes.append(Stroke(fold, mix(person.skin, _DARK, 0.2 * person.age), 0.8))
        if person.freckles > _FRECKLES:
            dots = ((14, 4), (18, 7), (22, 3), (11, 8), (25, 8), (19, 12), (15, 10), (8, 3))
            colour = mix(person.skin, (130, 60, 30), 0.3 + 0.3 * person.freckles)
            strokes += [Stroke(ellipse(sign * x, y, 0.8, 0.8), colour) for x, y in dots]
    if person.mole > _MOLE:
        size = 0.6 + 1.2 * person.mole
        mole = ellipse(person.mole_x, person.mole_y, size, size)
        strokes.append(Stroke(mole, mix(person.skin, (50, 24, 16), 0.75)))
    return strokes


def _beard(person: Person) -> list[Stroke]:
    colour = mix(person.skin, mix(person.hair, (0, 0, 0), 0.1), 0.5 + 0.4 * person.beard)
    lip, strokes = 26.3 + person.mouth_y, []
    if person.beard > _BEARD:
        # Along the jaw, and back over the cheeks and under the lip.
        outline, x = _outline(person), np.linspace(-1, 1, 25)
        jaw = outline[outline[:, 1] > -4] * (1.0, 1.02)
        rise = np.clip((np.abs(x) - 0.38) / 0.34, 0, 1) ** 2
        cheek = lip - 3 - 12 * person.beard_high - 22 * np.maximum(np.abs(x) - 0.6, 0)
        edge = curve(x * person.width * 0.97, lip + 8 + (cheek - lip - 8) * rise)
        turn = np.concatenate((np.zeros(len(jaw)), np.full(len(edge), 0.7)))
        strokes.append(Stroke(np.concatenate((jaw, edge)), colour, turn=turn))
    if person.moustache > _MOUSTACHE:
        above, below = -4.0 - 1.2 * np.sin(np.pi * np.abs(_T)) + 3.2 * _T**2, 0.6 + 2.4 * _T**4
        shape = band(14 * _T, lip - person.upper_lip + above, lip - person.upper_lip + below)
        strokes.append(Stroke(shape, colour, lift=3.0))
    return strokes

"""Geometry of a synthetic face: polygons and lines from back to front.

In head coordinates: pixels of the aligned face, relative to the centre of the head.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from synthetic.face_parameters import Colour, Expression, FaceParameters, colour_along, mix

Points = NDArray[np.float64]

# Depth of the nose in pixels.
NOSE_LIFT = 12.0
COVERS = ("mask", "sunglasses", "hand", "hat", "scarf", "box")

# Features are drawn where the parameter exceeds its threshold.
_BEARD, _MOUSTACHE, _FRECKLES, _MOLE = 0.7, 0.78, 0.7, 0.5

_DARK = (60.0, 20.0, 10.0)
_RIMS = ((24, 24, 28), (150, 60, 50), (206, 176, 110))
_IRISES = ((58, 34, 22), (104, 64, 34), (128, 112, 56), (78, 128, 84), (76, 128, 176), (120, 136, 148))
# Angles over the head from right to left, and all round.
_ARC = np.linspace(0, np.pi, 41)
_CIRCLE = np.linspace(0, 2 * np.pi, 48, endpoint=False)
_STEPS = np.linspace(0, 2 * np.pi, 20, endpoint=False)
_SMALL_CIRCLE = np.stack((np.cos(_STEPS), np.sin(_STEPS)), axis=-1)
# From one end of an eye, a brow or a mouth to the other, and a parabola over it.
_T = np.linspace(-1, 1, 17)
_DOME = 1 - _T**2


class Stroke(NamedTuple):
    """A filled polygon, or a line if `width` (pixels) is above 0.

    `points`: (N, 2). `lift`: height above the skin in pixels. `turn`, a number or (N,): 1 for points that
    rotate with the head, 0 for its outline, which does not.
    """

    points: Points
    colour: Colour
    width: float = 0.0
    lift: float = 0.0
    turn: ArrayLike = 1.0


def clothes_strokes(colour: Colour) -> list[Stroke]:
    """The shoulders, behind everything else."""
    outline = curve((-60, -56, -24, 0, 24, 56, 60), (80, 50, 42, 56, 42, 50, 80))
    return [Stroke(outline, colour, turn=0)]


def back_strokes(params: FaceParameters) -> list[Stroke]:
    """Everything behind the face, and its bare skin."""
    return [*_hair_behind(params), *_neck_and_ears(params), Stroke(_outline(params), params.skin, turn=0)]


def shade_strokes(params: FaceParameters) -> list[Stroke]:
    """Soft shades, for a blurred map that multiplies the skin (128 is neutral)."""
    outline, tip, wide = _outline(params), 5.7 + params.nose_y, params.nose_width
    strokes = [Stroke(np.concatenate((outline, outline[:1])), (92, 84, 84), 4.5, turn=0)]
    red = 128 + 6 * params.blush, 128 - 16 * params.blush, 128 - 14 * params.blush
    for sign in (-1, 1):
        x, y = params.landmarks[max(sign, 0)]
        strokes.append(Stroke(ellipse(x, y - 1, 10, 6.5), (116, 112, 112)))
        strokes.append(Stroke(ellipse(sign * 22, 12, 9, 7), red))
    return [
        *strokes,
        Stroke(ellipse(0, -32, 16, 6), (138, 138, 138)),
        Stroke(ellipse(0, tip + 6.5, wide, 2.2), (96, 90, 90)),
        Stroke(curve((3, wide, 3), (-14, tip, tip)), (108, 104, 104)),
        Stroke(curve((-3, -wide, -3), (-14, tip, tip)), (120, 118, 118)),
        Stroke(curve((0, 0), (-14, tip - 2)), (146, 146, 146), params.nose_bridge),
        Stroke(ellipse(0, 35 + params.mouth_y, 9, 2.2), (108, 104, 104)),
    ]


def skin_strokes(params: FaceParameters) -> list[Stroke]:
    """Nose, beard and marks, which do not change with the expression."""
    return [*_marks(params), *_beard(params), *_nose(params)]


def moving_strokes(params: FaceParameters, face: Expression) -> list[Stroke]:
    """Mouth, eyes and brows."""
    strokes = _mouth(params, face)
    for sign in (-1, 1):
        strokes += [*_eye(params, face, sign), *_brow(params, face, sign)]
    return strokes


def hair_strokes(params: FaceParameters) -> list[Stroke]:
    """Hair in front of the face."""
    if not params.has_hair:
        return []
    half, high = params.width + 1 + params.hair_volume * 0.45, params.crown + params.hair_volume
    outer = _crown(half, high, 0.02 * params.curl * np.sin(19 * _ARC))
    t = np.linspace(-1, 1, 33)
    fringe = max(params.fringe, 0.0) * np.exp(-(((t - params.parting) / 0.75) ** 2)) * (1 - t**6)
    zigzag = (0.4 + 1.6 * params.curl) * np.sin(11 * np.pi * t) * (params.fringe > 2) * (1 - t**4)
    line = params.hairline + fringe + zigzag + min(params.fringe, 0.0) * np.cos(3 * t)
    inner = curve(t * (params.width - 1), line + (-4 - line) * np.abs(t) ** params.hair_corner)
    turn = np.concatenate((np.zeros(len(outer)), np.full(len(inner), 0.85)))
    strokes = [Stroke(np.concatenate((outer, inner)), params.hair, turn=turn)]
    for number, angle in enumerate(np.linspace(0.2, np.pi - 0.2, 10)):
        # Strands from the parting along the crown and down the sides.
        start, end = curve((params.parting * 20, half * 0.95 * np.cos(angle)), (0, 1))
        bend = np.linspace(0, 1, 7)
        low, top = -8 - 0.8 * high * np.sin(angle), -8 - 0.95 * high
        x = start[0] + (end[0] - start[0]) * np.sin(bend * np.pi / 2)
        strand = curve(x, low + (top - low) * np.cos(bend * np.pi / 2))
        tint = mix(params.hair, (255, 236, 210), 0.1) if number % 2 else mix(params.hair, (0, 0, 0), 0.12)
        strokes.append(Stroke(strand, tint, 1.0, turn=0))
    if params.hair_length > 0.5:
        y = np.linspace(-28, _reach(params), 9)
        sway = 0.04 * (1 + params.curl) * np.sin(np.linspace(0, 5, 9))
        lock = band(
            y, 0.94 - 0.07 * np.sin(np.linspace(0, np.pi, 9)) + sway, np.linspace(1.0, 1.22, 9) + sway
        )
        strokes += [Stroke(lock[:, ::-1] * (sign * half, 1), params.hair, turn=0) for sign in (-1, 1)]
    return strokes


def glasses_strokes(params: FaceParameters) -> list[Stroke]:
    """Rims, bridge and arms of glasses."""
    colour, size = colour_along(_RIMS, params.glasses_tone), params.glasses_size
    cos, sin = np.cos(_CIRCLE), np.sin(_CIRCLE)
    strokes = []
    for sign in (-1, 1):
        x, y = params.landmarks[max(sign, 0)]
        rim_x = x + size * np.sign(cos) * np.abs(cos) ** params.glasses_square
        rim = curve(rim_x, y + 1 + 0.8 * size * np.sign(sin) * np.abs(sin) ** params.glasses_square)
        strokes.append(Stroke(np.concatenate((rim, rim[:2])), colour, 1.4, lift=5.0))
        arm = curve((x + sign * size, sign * (params.width + 1)), (y - 1, y - 3))
        strokes.append(Stroke(arm, colour, 1.3, turn=np.array((1.0, 0.0))))
    inner, level = (params.landmarks[1] - (size, 0)).tolist()
    bridge = curve((-inner, 0, inner), (level, level - 1.5, level))
    return [*strokes, Stroke(bridge, colour, 1.4, lift=6.0)]


def cover_strokes(params: FaceParameters, cover: str, colour: Colour, place: float) -> list[Stroke]:
    """An occlusion of kind `cover` in COVERS; `place` in [-1, 1] moves it."""
    strokes: list[Stroke] = []
    if cover == "mask":
        half, cloth = params.width * 0.97, mix(colour, (226, 238, 244), 0.6)
        x = np.array((-1, -0.35, 0, 0.35, 1, 0.8, 0.4, -0.4, -0.8)) * half
        turn = np.array((0.2, 1, 1, 1, 0.2, 0.2, 0.5, 0.5, 0.2))
        strokes.append(Stroke(curve(x, (2, 0, -4, 0, 2, 32, 47, 47, 32)), cloth, lift=6, turn=turn))
        for y in (12, 21, 30):
            fold = curve(np.array((-0.7, 0, 0.7)) * half, (y, y + 1.5, y))
            strokes.append(Stroke(fold, mix(cloth, (60, 80, 100), 0.25), 1.0, lift=8, turn=0.7))
    elif cover == "sunglasses":
        for sign in (-1, 1):
            x, y = params.landmarks[max(sign, 0)].tolist()
            arm = curve((0, sign * (params.width + 1)), y - 3)
            strokes.append(Stroke(arm, (22, 22, 26), 2.0, lift=4, turn=np.array((1.0, 0.0))))
            strokes.append(Stroke(ellipse(x, y + 1.5, 14.5, 10.5), (22, 22, 26), lift=5))
            strokes.append(Stroke(curve((x - 7, x - 1), (y - 2, y - 5)), (96, 100, 110), 1.6, lift=5))
    elif cover == "hand":
        side, low = (1 if place > 0 else -1), 24 - 30 * (abs(place) - 0.5)
        fingers = [ellipse(side * (10 + 10 * n), low - 2 * (n % 3), 5.4, 18) for n in range(4)]
        for shape in (*fingers, ellipse(side * 28, low + 26, 23, 20)):
            strokes.append(Stroke(shape, mix(params.skin, (255, 240, 230), 0.12), turn=0))
            strokes.append(Stroke(shape, mix(params.skin, _DARK, 0.4), 0.7, turn=0))
    elif cover == "hat":
        half, brim = params.width + 9, -26 + 6 * place
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
    """(N, 2) points from coordinates, with broadcasting of scalars."""
    points = np.empty((max(np.size(x), np.size(y)), 2))
    points[:, 0], points[:, 1] = x, y
    return points


def band(x: Points, above: Points, below: Points) -> Points:
    """(2N, 2) outline of the area between two curves over the same `x`."""
    return curve(np.concatenate((x, x[::-1])), np.concatenate((above, below[::-1])))


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> Points:
    """(20, 2) points of an ellipse."""
    return _SMALL_CIRCLE * (radius_x, radius_y) + (x, y)


def _outline(params: FaceParameters) -> Points:
    """(48, 2) outline of the bare head: half an ellipse above, a superellipse below."""
    cos, sin = np.cos(_CIRCLE), np.sin(_CIRCLE)
    below = sin > 0
    x = params.width * np.sign(cos) * np.abs(cos) ** np.where(below, params.jaw, 1.0)
    height = np.where(below, params.chin + 8, params.crown)
    return curve(x, -8 + height * np.sign(sin) * np.abs(sin) ** np.where(below, params.chin_round, 1))


def _crown(half: float, high: float, wave: Points) -> Points:
    return curve(half * np.cos(_ARC) * (1 + wave), -8 - high * np.sin(_ARC) * (1 + wave))


def _reach(params: FaceParameters) -> float:
    return -8 + 70 * params.hair_length


def _hair_behind(params: FaceParameters) -> list[Stroke]:
    if not params.has_hair:
        return []
    half, reach = params.width + 1 + params.hair_volume * 0.7, _reach(params)
    top = _crown(half, params.crown + params.hair_volume, 0.03 * params.curl * np.sin(15 * _ARC))
    ends = curve(np.array((-1.05, -1, 1, 1.05)) * half, (reach / 2, reach, reach, reach / 2))
    return [Stroke(np.concatenate((top, ends)), mix(params.hair, (0, 0, 0), 0.35), turn=0)]


def _neck_and_ears(params: FaceParameters) -> list[Stroke]:
    shade = mix(params.skin, _DARK, 0.28)
    strokes = [Stroke(curve((-21, 21, 24, -24), (20, 20, 60, 60)), shade, turn=0)]
    for sign in (-1, 1):
        for size, colour in ((1.0, mix(params.skin, _DARK, 0.12)), (0.6, shade)):
            ear = ellipse(sign * (params.width + 1.5), -5, 5 * params.ear * size, 10 * params.ear * size)
            strokes.append(Stroke(ear, colour, turn=0.3))
    return strokes


def _eye(params: FaceParameters, face: Expression, sign: int) -> list[Stroke]:
    x, y = params.landmarks[max(sign, 0)].tolist()
    height, skin = params.eye_height, params.skin
    opening = height * (1 - min(max(face.eyes_shut, 0.0), 1.0))
    along, tilt = x + params.eye_width * _T, y - params.eye_tilt * params.eye_width * sign * _T
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
        iris = colour_along(_IRISES, params.iris_colour)
        strokes += [
            Stroke(band(along, upper, lower), (244, 240, 236)),
            Stroke(clipped(params.iris), mix(iris, (0, 0, 0), 0.45)),
            Stroke(clipped(params.iris * 0.84), iris),
            Stroke(clipped(params.iris * 0.48), (16, 14, 14)),
            Stroke(ellipse(look_x + 1.2, look_y - 1.2, 0.8, 0.8), (255, 255, 255)),
        ]
    strokes.append(Stroke(curve(along, lower), mix(skin, _DARK, 0.4), 0.5))
    return [*strokes, Stroke(curve(along, upper), mix(params.hair, (20, 12, 10), 0.7), params.lashes)]


def _brow(params: FaceParameters, face: Expression, sign: int) -> list[Stroke]:
    x, y = params.landmarks[max(sign, 0)].tolist()
    middle = y - params.brow_y - face.brow_lift - params.brow_arch * (1 - (_T - 0.25) ** 2)
    middle -= params.brow_tilt * params.brow_width * _T
    thick = params.brow_thick * (1 - 0.375 * (_T + 1)) ** 0.6
    colour = mix(params.skin, mix(params.hair, (30, 20, 16), 0.3), params.brow_tone)
    return [Stroke(band(x + sign * params.brow_width * _T, middle - thick, middle + thick), colour)]


def _nose(params: FaceParameters) -> list[Stroke]:
    tip, width = 5.7 + params.nose_y, params.nose_width
    gleam = ellipse(0.6, tip - 0.8, 2.0, 1.6)
    strokes = [Stroke(gleam, mix(params.skin, (255, 250, 244), 0.28), lift=NOSE_LIFT)]
    angles = np.linspace(-1.0, 1.6, 7)
    for sign in (-1, 1):
        hole = ellipse(sign * width * 0.45, tip + 4.4, 1.5 * params.nostril, 0.8 * params.nostril)
        wing = curve(sign * (width - 2.5 + 2.5 * np.cos(angles)), tip + 2 + 3.2 * np.sin(angles))
        strokes.append(Stroke(hole, mix(params.skin, (40, 6, 4), 0.75), lift=0.6 * NOSE_LIFT))
        strokes.append(Stroke(wing, mix(params.skin, _DARK, 0.4), 0.7, lift=0.4 * NOSE_LIFT))
    return strokes


def _mouth(params: FaceParameters, face: Expression) -> list[Stroke]:
    along = 14.59 * params.mouth_width * (1 + 0.06 * face.smile) * _T
    opening = max(face.mouth_open, 0.0)
    middle = 26.3 + params.mouth_y + params.mouth_curve * _DOME + 1.3 * face.smile * (_DOME - _T**2)
    upper, lower = middle - 0.25 * opening * _DOME, middle + 0.75 * opening * _DOME
    top = upper - params.upper_lip * _DOME**0.8 * (1 - params.lip_bow * np.exp(-((_T / 0.2) ** 2)))
    bottom = lower + params.lower_lip * _DOME**0.7
    lip = mix(params.skin, (178, 44, 58), params.lip_red)
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


def _marks(params: FaceParameters) -> list[Stroke]:
    """Wrinkles, freckles and a mole."""
    strokes = []
    for sign in (-1, 1):
        fold = curve(sign * np.array((10.5, 14.5, 17)), (10, 15, 21))
        strokes.append(Stroke(fold, mix(params.skin, _DARK, 0.2 * params.age), 0.8))
        if params.freckles > _FRECKLES:
            dots = ((14, 4), (18, 7), (22, 3), (11, 8), (25, 8), (19, 12), (15, 10), (8, 3))
            colour = mix(params.skin, (130, 60, 30), 0.3 + 0.3 * params.freckles)
            strokes += [Stroke(ellipse(sign * x, y, 0.8, 0.8), colour) for x, y in dots]
    if params.mole > _MOLE:
        size = 0.6 + 1.2 * params.mole
        mole = ellipse(params.mole_x, params.mole_y, size, size)
        strokes.append(Stroke(mole, mix(params.skin, (50, 24, 16), 0.75)))
    return strokes


def _beard(params: FaceParameters) -> list[Stroke]:
    colour = mix(params.skin, mix(params.hair, (0, 0, 0), 0.1), 0.5 + 0.4 * params.beard)
    lip, strokes = 26.3 + params.mouth_y, []
    if params.beard > _BEARD:
        # Along the jaw, and back over the cheeks and under the lip.
        outline, x = _outline(params), np.linspace(-1, 1, 25)
        jaw = outline[outline[:, 1] > -4] * (1.0, 1.02)
        rise = np.clip((np.abs(x) - 0.38) / 0.34, 0, 1) ** 2
        cheek = lip - 3 - 12 * params.beard_high - 22 * np.maximum(np.abs(x) - 0.6, 0)
        edge = curve(x * params.width * 0.97, lip + 8 + (cheek - lip - 8) * rise)
        turn = np.concatenate((np.zeros(len(jaw)), np.full(len(edge), 0.7)))
        strokes.append(Stroke(np.concatenate((jaw, edge)), colour, turn=turn))
    if params.moustache > _MOUSTACHE:
        above, below = -4.0 - 1.2 * np.sin(np.pi * np.abs(_T)) + 3.2 * _T**2, 0.6 + 2.4 * _T**4
        shape = band(14 * _T, lip - params.upper_lip + above, lip - params.upper_lip + below)
        strokes.append(Stroke(shape, colour, lift=3.0))
    return strokes

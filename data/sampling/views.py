"""Views of a face that are embedded once and trained from ever after: plain, mirrored, degraded, clips.

What real sets hold is covered by kinds of causes, not by one benchmark's recipe: landmarks that are off,
parts cut away or hidden, light, motion, defocus, few pixels, noise, compression. Arrays in, arrays out; which
views make a template is decided in `features.templates`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypedDict

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.json_files import check_type, parse_json

if TYPE_CHECKING:
    from data.sources.face_source import FaceSource

Image = NDArray[np.uint8]

DEFAULT_VIEWS = 16
# Rises with every change here that changes a pixel of a view.
_REVISION = "4"
_CLIP_VIEWS = 4
# How strong a still is degraded, between not at all and hardly a face any more.
_MODERATE, _POOR = (0.05, 0.35), (0.45, 0.85)
# Most causes at once, each of them milder: poor video is dark and small and compressed and blurred, all at
# once. A prototype of such views trained better than a few strong causes; this form was not told from the
# levelled light that came with it.
_OFTEN = 0.75
_FEWEST_PIXELS = 14


class Kind(IntEnum):
    """What a view is; `CLIP` views of one group are frames that vary a little around one draw."""

    PLAIN = 0
    FLIP = 1
    MODERATE = 2
    POOR = 3
    CLIP = 4


_CYCLE = (Kind.MODERATE, Kind.POOR, *[Kind.CLIP] * _CLIP_VIEWS, Kind.MODERATE)


@dataclass(frozen=True)
class ViewPlan:
    """The views of every image: `kinds` (V,), and `groups` (V,), equal for the frames of one clip."""

    kinds: tuple[Kind, ...]
    groups: tuple[int, ...]

    @classmethod
    def of(cls, views: int) -> ViewPlan:
        """The first `views` of: plain, mirrored, then again and again a moderate still, a poor still, a clip
        of four frames and a moderate still. 16 give four moderate and two poor stills and two clips.

        Raises:
            InputError: fewer than one.
        """
        if views < 1:
            raise InputError(f"--views {views}: expected 1 or more; {DEFAULT_VIEWS} cover all kinds twice.")
        cycles = -(-views // len(_CYCLE))
        kinds = (Kind.PLAIN, Kind.FLIP, *_CYCLE * cycles)[:views]
        groups: list[int] = []
        for place, kind in enumerate(kinds):
            goes_on = place > 0 and kind == Kind.CLIP == kinds[place - 1]
            groups.append(groups[-1] if goes_on else len(set(groups)))
        return cls(kinds, tuple(groups))

    def __len__(self) -> int:
        return len(self.kinds)

    def media(self, *kinds: Kind) -> NDArray[np.int64]:
        """(n, 2) first view and number of views of each group of these kinds."""
        groups = np.array(self.groups)
        first = [self.groups.index(group) for group in np.unique(groups)]
        found = [
            (place, int((groups == self.groups[place]).sum()))
            for place in first
            if self.kinds[place] in kinds
        ]
        return np.array(found, np.int64).reshape(-1, 2)


class ViewedFaces:
    """Every view of every image as one list of faces: face number `row * V + view`.

    A view follows from seed, image content (`stamps` (N,)) and group alone: in another selection of the
    images, or under another name, an image has the same views. Where the plan is longer, the views before
    stay the same.
    """

    def __init__(self, source: FaceSource, plan: ViewPlan, seed: int, stamps: NDArray[np.uint64]) -> None:
        self._source = source
        self._plan = plan
        self._seed = seed
        self._stamps = stamps
        self._read: tuple[int, Image] | None = None

    def __len__(self) -> int:
        return len(self._source) * len(self._plan)

    def image(self, number: int) -> Image:
        """(112, 112, 3) RGB. Raises InputError that names an image that cannot be used."""
        row, view = divmod(number, len(self._plan))
        # The views of an image come one after another; it is decoded once.
        if self._read is None or self._read[0] != row:
            self._read = (row, self._source.image(row))
        return make_view(self._read[1], self._plan, view, (self._seed, int(self._stamps[row])))


def views_identity(plan: ViewPlan, seed: int) -> str:
    """What the views follow from beside the images, for the fingerprint of a store."""
    # Neither chance nor the recipe has a part in a plain or mirrored image.
    drawn = {"revision": _REVISION, "seed": seed} if set(plan.kinds) - {Kind.PLAIN, Kind.FLIP} else {}
    return json.dumps({**drawn, "kinds": [kind.name for kind in plan.kinds]})


def includes_views(stored: str, plan: ViewPlan, seed: int) -> bool:
    """Whether the first views of a store with that `views_identity` are those of `plan`."""
    found, wanted = _parsed(stored), json.loads(views_identity(plan, seed))
    first = found["kinds"][: len(plan)]
    return all(found.get(key) == value for key, value in wanted.items() if key != "kinds") and (
        first == wanted["kinds"]
    )


def number_of_views(stored: str) -> int:
    """Views of each image in a store with that `views_identity`; 0 for a text that is none."""
    return len(_parsed(stored)["kinds"])


def _parsed(stored: str) -> dict[str, Any]:
    try:
        found = parse_json(stored, "views")
        check_type(found, _Views, "views")
    except InputError:
        return {"kinds": []}
    known: dict[str, Any] = found
    return known


class _Views(TypedDict):
    kinds: list[str]


def make_view(image: Image, plan: ViewPlan, view: int, key: Sequence[int]) -> Image:
    """View number `view` of an image, (H, W, 3) uint8 RGB -> the same shape; chance follows from `key`."""
    kind, group = plan.kinds[view], plan.groups[view]
    if kind == Kind.PLAIN:
        return image
    if kind == Kind.FLIP:
        return np.asarray(cv2.flip(image, 1), np.uint8)
    rng = np.random.default_rng([*key, group, 0])
    low, high = _MODERATE if kind == Kind.MODERATE else _POOR
    draw = replace(draw_degradation(rng, rng.uniform(low, high), _OFTEN), realigned=True)
    if kind == Kind.CLIP:
        rng = np.random.default_rng([*key, group, 1 + view - plan.groups.index(group)])
        draw = neighbour(draw, rng)
    return degrade(image, draw, rng)


@dataclass(frozen=True)
class Degradation:
    """One draw of all causes; the defaults change nothing.

    Lengths in pixels of a face of 112, angles in degrees. `cut`: shares of the side that are missing at the
    top, bottom, left and right. `box`: centre x, y, width and height that are hidden, `box_colour` RGB or
    None for noise. `side`: pixels that are left of the side; `through`: interpolations down and up.
    `small_jpeg`: compressed at that size, else after it was enlarged. `realigned`: afterwards aligned anew by
    landmarks that are a little off, as a poor face's are, so that most of turn and shift is taken back.
    """

    mirrored: bool = False
    turn: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    border: int = cv2.BORDER_CONSTANT
    cut: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    box: tuple[float, float, float, float] | None = None
    box_colour: tuple[int, int, int] | None = None
    gamma: float = 1.0
    contrast: float = 1.0
    brightness: float = 0.0
    saturation: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    defocus: float = 0.0
    motion: float = 0.0
    motion_angle: float = 0.0
    side: float = 112.0
    through: tuple[int, int] = (cv2.INTER_AREA, cv2.INTER_LINEAR)
    noise: float = 0.0
    shot: float = 0.0
    quality: int = 100
    small_jpeg: bool = False
    realigned: bool = False


def draw_degradation(rng: np.random.Generator, strength: float, often: float | None = None) -> Degradation:
    """Draws causes and their amounts; with `strength` (0..1) stronger ones come, and more of them.

    `often`: how many, 0..1, whatever the strength is.
    """
    s, often = strength, 0.2 + 0.5 * strength if often is None else often

    def comes(share: float = 1.0) -> bool:
        return bool(rng.random() < often * share)

    values: dict[str, object] = {
        "mirrored": bool(rng.random() < 0.5),
        "turn": float(rng.normal(0, 2 + 7 * s)),
        "scale": math.exp(rng.normal(0, 0.02 + 0.06 * s)),
        "shift": (float(rng.normal(0, 0.7 + 3 * s)), float(rng.normal(0, 0.7 + 3 * s))),
        "border": int(rng.choice([cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT_101])),
    }
    if comes(0.4):
        values["cut"] = tuple(rng.uniform(0, 0.05 + 0.25 * s, 4) * (rng.random(4) < 0.4))
    if comes(0.5):
        width, height = rng.uniform(0.1, 0.2 + 0.35 * s, 2) * 112
        values["box"] = (*rng.uniform(8, 104, 2), float(width), float(height))
        values["box_colour"] = None if rng.random() < 0.3 else tuple(rng.integers(0, 256, 3).tolist())
    if comes(1.3):
        values["gamma"] = math.exp(rng.normal(0, 0.15 + 0.45 * s))
        values["contrast"] = float(rng.uniform(1 - 0.15 - 0.5 * s, 1 + 0.15 + 0.3 * s))
        values["brightness"] = float(rng.normal(0, 5 + 25 * s))
    if comes(0.5):
        values["saturation"] = float(rng.uniform(max(0.0, 0.9 - s), 1.3))
        values["tint"] = tuple(np.exp(rng.normal(0, 0.03 + 0.08 * s, 3)).tolist())
    if comes(0.7):
        values["defocus"] = float(rng.uniform(0.4, 0.8 + 2.7 * s))
    if comes(0.7):
        values["motion"] = float(rng.uniform(2, 4 + 13 * s))
        values["motion_angle"] = float(rng.uniform(0, 180))
    if comes(1.4):
        values["side"] = max(_FEWEST_PIXELS, 112 * math.exp(-s * rng.uniform(0.8, 2.4)))
        values["through"] = (
            _one_of(rng, [cv2.INTER_AREA], 0.7),
            _one_of(rng, [cv2.INTER_LINEAR, cv2.INTER_LINEAR, cv2.INTER_CUBIC], 0.8),
        )
    if comes():
        values["noise"] = float(rng.uniform(1, 4 + 20 * s))
    if comes(0.4):
        values["shot"] = float(rng.uniform(0.2, 0.5 + 1.5 * s))
    if comes(1.3):
        values["quality"] = int(rng.uniform(95 - 85 * s, 95))
        values["small_jpeg"] = bool(rng.random() < 0.5)
    return Degradation(**values)  # type: ignore[arg-type]


def _one_of(rng: np.random.Generator, usual: Sequence[int], share: float) -> int:
    """An interpolation: a sensor sums up over its pixels, and players enlarge smoothly; few do otherwise."""
    return int(rng.choice(usual if rng.random() < share else _INTERPOLATIONS))


def neighbour(draw: Degradation, rng: np.random.Generator) -> Degradation:
    """The next frame of a clip: the same causes, each a little off; noise and blocks fall anew."""
    box = draw.box
    if box is not None:
        box = (box[0] + rng.normal(0, 2), box[1] + rng.normal(0, 2), box[2], box[3])
    return replace(
        draw,
        turn=draw.turn + rng.normal(0, 1.2),
        scale=draw.scale * math.exp(rng.normal(0, 0.01)),
        shift=(draw.shift[0] + rng.normal(0, 0.8), draw.shift[1] + rng.normal(0, 0.8)),
        box=box,
        gamma=draw.gamma * math.exp(rng.normal(0, 0.04)),
        brightness=draw.brightness + rng.normal(0, 2),
        defocus=draw.defocus * rng.uniform(0.8, 1.2),
        motion=draw.motion * rng.uniform(0.6, 1.3),
        motion_angle=draw.motion_angle + rng.normal(0, 15),
        side=min(112.0, draw.side * math.exp(rng.normal(0, 0.04))),
        quality=int(np.clip(draw.quality + rng.normal(0, 3), 1, 100)) if draw.quality < 100 else 100,
    )


def degrade(image: Image, draw: Degradation, rng: np.random.Generator) -> Image:
    """Applies a draw in the order of a camera: scene, lens, sensor, file, alignment.

    `rng` is for noise and for where the landmarks are found alone.
    """
    height, width = image.shape[:2]
    image = _lit(_hidden(_moved(image, draw), draw, rng), draw)
    if draw.defocus:
        image = _u8(cv2.GaussianBlur(image, (0, 0), draw.defocus))
    if draw.motion > 1:
        image = _u8(cv2.filter2D(image, -1, _motion_kernel(draw.motion, draw.motion_angle)))
    small = draw.side < 112
    if small:
        size = (max(1, round(draw.side * width / 112)), max(1, round(draw.side * height / 112)))
        image = _u8(cv2.resize(image, size, interpolation=draw.through[0]))
    image = _noisy(image, draw, rng)
    if draw.small_jpeg:
        image = _compressed(image, draw.quality)
    if small:
        image = _u8(cv2.resize(image, (width, height), interpolation=draw.through[1]))
    if not draw.small_jpeg:
        image = _compressed(image, draw.quality)
    return _realigned(image, draw, rng) if draw.realigned else image


_INTERPOLATIONS = (
    cv2.INTER_NEAREST,
    cv2.INTER_LINEAR,
    cv2.INTER_AREA,
    cv2.INTER_CUBIC,
    cv2.INTER_LANCZOS4,
)


def _moved(image: Image, draw: Degradation) -> Image:
    if draw.mirrored:
        image = _u8(cv2.flip(image, 1))
    return _turned(image, draw.turn, draw.scale, draw.shift, draw.border)


def _realigned(image: Image, draw: Degradation, rng: np.random.Generator) -> Image:
    turn = -draw.turn * rng.uniform(0.7, 1.1) + rng.normal(0, 1.2)
    across, down = -0.7 * np.array(draw.shift) + rng.normal(0, 0.8, 2)
    return _turned(image, turn, math.exp(rng.normal(0, 0.015)), (across, down), cv2.BORDER_CONSTANT)


def _turned(image: Image, turn: float, scale: float, shift: tuple[float, float], border: int) -> Image:
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), turn, scale)
    matrix[:, 2] += np.array(shift) * (width / 112, height / 112)
    return _u8(cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=border))


def _hidden(image: Image, draw: Degradation, rng: np.random.Generator) -> Image:
    if not any(draw.cut) and draw.box is None:
        return image
    image = image.copy()
    height, width = image.shape[:2]
    top, bottom, left, right = draw.cut
    image[: round(top * height)] = 0
    image[round((1 - bottom) * height) :] = 0
    image[:, : round(left * width)] = 0
    image[:, round((1 - right) * width) :] = 0
    if draw.box is not None:
        x, y, across, down = np.array(draw.box) * np.tile((width / 112, height / 112), 2)
        first_row, first_column = max(0, round(y - down / 2)), max(0, round(x - across / 2))
        hidden = image[
            first_row : max(first_row, round(y + down / 2)),
            first_column : max(first_column, round(x + across / 2)),
        ]
        hidden[:] = rng.integers(0, 256, hidden.shape) if draw.box_colour is None else draw.box_colour
    return image


def _lit(image: Image, draw: Degradation) -> Image:
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


def _noisy(image: Image, draw: Degradation, rng: np.random.Generator) -> Image:
    if not (draw.noise or draw.shot):
        return image
    values = image.astype(np.float32)
    spread = draw.noise + draw.shot * np.sqrt(values) if draw.shot else draw.noise
    values += spread * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _compressed(image: Image, quality: int) -> Image:
    if quality >= 100:
        return image
    # Blocks of colour are half as fine as of brightness; which channel is red matters to JPEG.
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, max(1, quality)])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if done else bgr
    return _u8(cv2.cvtColor(_u8(decoded), cv2.COLOR_BGR2RGB))


def _u8(array: object) -> Image:
    return np.asarray(array, np.uint8)

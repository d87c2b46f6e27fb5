"""Views of a face that are embedded once and trained from ever after: plain, mirrored, degraded, clips.

What real sets hold is covered by kinds of causes, not by one benchmark's recipe: landmarks that are off,
parts cut away or hidden, light, motion, defocus, few pixels, noise, compression. Arrays in, arrays out; which
views make a template is decided in `features.templates`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypedDict

import cv2
import numpy as np
from numpy.typing import NDArray

from data.sampling.degradations import degrade, draw_degradation, neighbour
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

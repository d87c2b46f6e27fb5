"""Views of a face for training from cached features: original, flipped, degraded stills and clips."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypedDict

import cv2
import numpy as np
from numpy.typing import NDArray

from data.sampling.degradations import degrade, draw_degradation, next_frame
from data.sources.decoding import Image
from runtime.errors import InputError
from runtime.json_files import check_type, parse_json

if TYPE_CHECKING:
    from data.sources.face_source import FaceSource

DEFAULT_VIEWS = 16
# To be increased with every change that alters a pixel of a view.
_REVISION = "4"
_CLIP_VIEWS = 4
# Ranges of degradation strength in [0, 1].
_MODERATE, _POOR = (0.05, 0.35), (0.45, 0.85)
# Probability scale of each cause: many mild causes at once, as in poor video, rather than few strong ones.
_RATE = 0.75


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
        """The first `views` of: original, flipped, then repeatedly a moderate still, a poor still, a clip of
        four frames and a moderate still.

        Raises:
            InputError: fewer than one view.
        """
        if views < 1:
            raise InputError(f"--views {views}: expected 1 or more ({DEFAULT_VIEWS} by default).")
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
        """(n, 2) first view and number of views of each group of the given kinds."""
        groups = np.array(self.groups)
        first = [self.groups.index(group) for group in np.unique(groups)]
        found = [
            (place, int((groups == self.groups[place]).sum()))
            for place in first
            if self.kinds[place] in kinds
        ]
        return np.array(found, np.int64).reshape(-1, 2)


class ViewedFaces:
    """All views of all images: face number `row * V + view`.

    A view depends on seed, image content (`stamps` (N,)) and group only, not on the selection of images or
    their names. Extending the plan keeps the existing views.
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
        """(112, 112, 3) RGB. Raises InputError that names an unusable image."""
        row, view = divmod(number, len(self._plan))
        # Views of an image are consecutive, so it is decoded once.
        if self._read is None or self._read[0] != row:
            self._read = (row, self._source.image(row))
        return make_view(self._read[1], self._plan, view, (self._seed, int(self._stamps[row])))


def views_identity(plan: ViewPlan, seed: int) -> str:
    """Parameters of the views as JSON, for the fingerprint of a store."""
    # Original and flipped views do not depend on seed and revision.
    drawn = {"revision": _REVISION, "seed": seed} if set(plan.kinds) - {Kind.PLAIN, Kind.FLIP} else {}
    return json.dumps({**drawn, "kinds": [kind.name for kind in plan.kinds]})


def includes_views(stored: str, plan: ViewPlan, seed: int) -> bool:
    """Whether the first views of a store with this `views_identity` are those of `plan`."""
    found, wanted = _parsed(stored), json.loads(views_identity(plan, seed))
    first = found["kinds"][: len(plan)]
    return all(found.get(key) == value for key, value in wanted.items() if key != "kinds") and (
        first == wanted["kinds"]
    )


def number_of_views(stored: str) -> int:
    """Views per image in a store with this `views_identity`; 0 for an invalid text."""
    return len(_parsed(stored)["kinds"])


class _Views(TypedDict):
    kinds: list[str]


def _parsed(stored: str) -> dict[str, Any]:
    with suppress(InputError):
        found: dict[str, Any] = parse_json(stored, "views")
        check_type(found, _Views, "views")
        return found
    return {"kinds": []}


def make_view(image: Image, plan: ViewPlan, view: int, key: Sequence[int]) -> Image:
    """View number `view` of an image, (H, W, 3) uint8 RGB, with random numbers seeded by `key`."""
    kind, group = plan.kinds[view], plan.groups[view]
    if kind == Kind.PLAIN:
        return image
    if kind == Kind.FLIP:
        return np.asarray(cv2.flip(image, 1), np.uint8)
    rng = np.random.default_rng([*key, group, 0])
    low, high = _MODERATE if kind == Kind.MODERATE else _POOR
    draw = replace(draw_degradation(rng, rng.uniform(low, high), _RATE), realigned=True)
    if kind == Kind.CLIP:
        rng = np.random.default_rng([*key, group, 1 + view - plan.groups.index(group)])
        draw = next_frame(draw, rng)
    return degrade(image, draw, rng)

"""Views: of every kind, the same for a seed, frames of a clip alike, one cause at a time does something."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from data.sampling.degradations import Degradation, degrade
from data.sampling.views import Kind, ViewedFaces, ViewPlan, includes_views, make_view, views_identity
from runtime.errors import InputError


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(40, 220, (9, 9, 3), dtype=np.uint8)
    return cv2.resize(coarse, (112, 112), interpolation=cv2.INTER_CUBIC)


class Source:
    def __init__(self, image: np.ndarray, count: int) -> None:
        self.image_itself, self.count, self.read = image, count, 0

    def __len__(self) -> int:
        return self.count

    def image(self, row: int) -> np.ndarray:
        self.read += 1
        return np.roll(self.image_itself, row, axis=0)


def test_sixteen_views_have_all_kinds() -> None:
    plan = ViewPlan.of(16)
    assert plan.kinds[:2] == (Kind.PLAIN, Kind.FLIP)
    counts = {kind: plan.kinds.count(kind) for kind in Kind}
    assert counts == {Kind.PLAIN: 1, Kind.FLIP: 1, Kind.MODERATE: 4, Kind.POOR: 2, Kind.CLIP: 8}
    assert plan.media(Kind.CLIP).tolist() == [[4, 4], [11, 4]]
    assert plan.media(Kind.POOR).tolist() == [[3, 1], [10, 1]]


@pytest.mark.parametrize("views", range(1, 25))
def test_longer_plan_begins_as_a_shorter_one(views: int) -> None:
    short, long = ViewPlan.of(views), ViewPlan.of(25)
    assert (short.kinds, short.groups) == (long.kinds[:views], long.groups[:views])


def test_no_views_are_refused() -> None:
    with pytest.raises(InputError, match="--views 0: expected 1 or more"):
        ViewPlan.of(0)


STAMPS = np.array([7, 2**63 + 5, 9], np.uint64)


def test_views_depend_on_seed_content_and_group(face: np.ndarray) -> None:
    faces = ViewedFaces(Source(face, 3), ViewPlan.of(16), 1, STAMPS)
    again = ViewedFaces(Source(face, 3), ViewPlan.of(20), 1, STAMPS)
    other = ViewedFaces(Source(face, 3), ViewPlan.of(16), 2, STAMPS)
    elsewhere = ViewedFaces(Source(np.roll(face, 1, axis=0), 2), ViewPlan.of(16), 1, STAMPS[1:])
    assert len(faces) == 48
    for view in range(16):
        assert np.array_equal(faces.image(16 + view), again.image(20 + view))
        assert np.array_equal(faces.image(16 + view), other.image(16 + view)) == (view < 2)
        # Another row of another list, and the same image.
        assert np.array_equal(faces.image(16 + view), elsewhere.image(view))
    assert np.array_equal(faces.image(0), face)
    assert np.array_equal(faces.image(1), face[:, ::-1])


def test_store_serves_the_views_of_its_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = views_identity(ViewPlan.of(16), 1)
    for views in (1, 2, 6, 16):
        assert includes_views(stored, ViewPlan.of(views), 1)
        # A plain and a mirrored image are the same whatever the seed is.
        assert includes_views(stored, ViewPlan.of(views), 2) == (views <= 2)
    assert not includes_views(stored, ViewPlan.of(17), 1)
    assert not includes_views(views_identity(ViewPlan.of(2), 1), ViewPlan.of(3), 1)
    monkeypatch.setattr("data.sampling.views._REVISION", "other")
    assert not includes_views(stored, ViewPlan.of(6), 1)
    assert includes_views(stored, ViewPlan.of(1), 1)


def test_image_is_decoded_once_for_its_views(face: np.ndarray) -> None:
    source = Source(face, 2)
    faces = ViewedFaces(source, ViewPlan.of(16), 0, STAMPS[:2])
    for number in range(32):
        assert faces.image(number).shape == (112, 112, 3)
    assert source.read == 2


def test_frames_of_a_clip_are_alike_and_not_equal(face: np.ndarray) -> None:
    plan = ViewPlan.of(16)
    within, between = [], []
    for row in range(20):
        views = [make_view(face, plan, view, (0, row)).astype(float) for view in range(16)]
        first, frame, elsewhere = views[4], views[5], views[11]
        assert not np.array_equal(first, frame)
        within.append(np.abs(first - frame).mean())
        between.append(np.abs(first - elsewhere).mean())
    assert np.mean(within) < 0.6 * np.mean(between)


def test_poor_views_are_farther_from_the_image_than_moderate_ones(face: np.ndarray) -> None:
    plan = ViewPlan.of(16)
    change = {kind: [] for kind in Kind}
    for row in range(40):
        for view, kind in enumerate(plan.kinds):
            changed = make_view(face, plan, view, (0, row)).astype(float)
            change[kind].append(min(np.abs(changed - face).mean(), np.abs(changed[:, ::-1] - face).mean()))
    assert np.mean(change[Kind.POOR]) > 1.4 * np.mean(change[Kind.MODERATE])


def test_default_degradation_is_the_identity(face: np.ndarray) -> None:
    assert np.array_equal(degrade(face, Degradation(), np.random.default_rng(0)), face)


@pytest.mark.parametrize(
    "cause",
    [
        {"flipped": True},
        {"rotation": 5.0},
        {"scale": 1.1},
        {"shift": (2.0, -1.0)},
        {"crop": (0.1, 0.0, 0.0, 0.2)},
        {"occlusion": (60.0, 50.0, 30.0, 10.0), "occlusion_colour": (0, 0, 0)},
        {"occlusion": (110.0, 0.0, 30.0, 10.0)},
        {"gamma": 1.5},
        {"contrast": 0.5},
        {"brightness": 20.0},
        {"saturation": 0.2},
        {"tint": (1.1, 1.0, 0.9)},
        {"defocus": 2.0},
        {"motion": 9.0, "motion_angle": 30.0},
        {"resolution": 30.0},
        {"noise": 8.0},
        {"shot_noise": 1.0},
        {"jpeg_quality": 10},
        {"resolution": 50.0, "jpeg_quality": 30, "jpeg_at_low_resolution": True},
    ],
    ids=lambda cause: "-".join(cause),
)
def test_each_degradation_changes_the_image(face: np.ndarray, cause: dict[str, Any]) -> None:
    before = face.copy()
    changed = degrade(face, Degradation(**cause), np.random.default_rng(0))
    assert changed.shape == face.shape
    assert changed.dtype == np.uint8
    assert np.abs(changed.astype(int) - face).mean() > 0.05
    assert np.array_equal(face, before)

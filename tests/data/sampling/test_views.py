"""Views: of every kind, the same for a seed and frames of a clip alike."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

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
        # The original and the flipped image are the same whatever the seed is.
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

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from data.checks.colour_order import check_skin_colour
from synthetic.faces import CLIP_FRAMES, CLIPS, STILLS, TEMPLATE, SyntheticFace, draw_faces, draw_frontal_face

SUBJECTS = 12


@dataclass
class DrawnSource:
    """The part of a FaceSource that looks at images."""

    faces: list[SyntheticFace]
    name: str = "drawn faces"
    location: Path = Path()
    swapped: bool = False

    @property
    def labels(self) -> np.ndarray:
        return np.array([face.subject for face in self.faces])

    def __len__(self) -> int:
        return len(self.faces)

    def image(self, row: int) -> np.ndarray:
        image = self.faces[row].image
        return np.ascontiguousarray(image[..., ::-1]) if self.swapped else image


@pytest.fixture(scope="module")
def faces() -> list[SyntheticFace]:
    return list(draw_faces(num_subjects=SUBJECTS, seed=3))


def media_of(faces: list[SyntheticFace]) -> list[list[SyntheticFace]]:
    return [list(group) for _, group in itertools.groupby(faces, lambda face: (face.subject, face.medium))]


def difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(float) - second.astype(float)).mean())


def test_every_face_is_an_aligned_rgb_image_of_its_subject_in_order(faces: list[SyntheticFace]) -> None:
    assert all(face.image.shape == (112, 112, 3) and face.image.dtype == np.uint8 for face in faces)
    subjects = [face.subject for face in faces]
    assert subjects == sorted(subjects)
    assert set(subjects) == set(range(SUBJECTS))
    for subject in range(SUBJECTS):
        media = [face.medium for face in faces if face.subject == subject]
        assert media == sorted(media)
        assert set(media) == set(range(max(media) + 1))


def test_subject_has_stills_and_clips(faces: list[SyntheticFace]) -> None:
    for subject in range(SUBJECTS):
        sizes = [len(medium) for medium in media_of(faces) if medium[0].subject == subject]
        assert set(sizes) == {1, CLIP_FRAMES}
        assert STILLS[0] <= sizes.count(1) <= STILLS[1]
        assert CLIPS[0] <= sizes.count(CLIP_FRAMES) <= CLIPS[1]


def test_same_seed_draws_the_same_faces_in_any_range(faces: list[SyntheticFace]) -> None:
    again = list(draw_faces(num_subjects=2, seed=3, first_subject=4))
    expected = [face for face in faces if face.subject in (4, 5)]
    assert [(face.subject, face.medium) for face in again] == [(f.subject, f.medium) for f in expected]
    for face, same in zip(again, expected, strict=True):
        np.testing.assert_array_equal(face.image, same.image)


def test_another_seed_draws_other_faces() -> None:
    assert difference(draw_frontal_face(0, seed=3), draw_frontal_face(0, seed=4)) > 5
    first, other = (next(draw_faces(num_subjects=1, seed=seed)) for seed in (3, 4))
    assert difference(first.image, other.image) > 5


def test_colours_are_true_and_a_swap_is_found(faces: list[SyntheticFace]) -> None:
    assert check_skin_colour(DrawnSource(faces)) == ""
    assert "swapped" in check_skin_colour(DrawnSource(faces, swapped=True))


def test_skin_is_redder_than_blue_in_every_tone() -> None:
    for subject in range(60):
        red, _, blue = draw_frontal_face(subject, seed=0)[62:68, 36:76].reshape(-1, 3).mean(axis=0)
        assert red > blue + 15


def test_frames_of_a_clip_are_near_duplicates(faces: list[SyntheticFace]) -> None:
    within, between = [], []
    for subject in range(SUBJECTS):
        media = [medium for medium in media_of(faces) if medium[0].subject == subject]
        for medium in media:
            within += [difference(a.image, b.image) for a, b in itertools.pairwise(medium)]
        between += [difference(a[0].image, b[0].image) for a, b in itertools.pairwise(media)]
    assert all(value > 0 for value in within)
    assert np.mean(within) < 0.4 * np.mean(between)


def test_stills_differ_in_quality(faces: list[SyntheticFace]) -> None:
    # Sharpness: what a small blur takes away.
    stills = np.stack([medium[0].image for medium in media_of(faces) if len(medium) == 1]).astype(float)
    contrast = np.abs(np.diff(stills.mean(axis=-1), axis=1)).mean(axis=(1, 2))
    assert np.quantile(contrast, 0.9) > 2.5 * np.quantile(contrast, 0.1)


def test_eyes_and_mouth_match_the_template() -> None:
    portraits = [draw_frontal_face(subject, seed=0) for subject in range(40)]
    darkness = 255 - np.stack(portraits).astype(float).mean(axis=(0, 3))
    rows, columns = np.mgrid[:112, :112]
    for x, y in TEMPLATE[:2]:
        near = (abs(rows - y) <= 5) & (abs(columns - x) <= 9)
        weight = np.where(near, darkness - np.median(darkness[near]), 0).clip(0)
        assert abs((weight * columns).sum() / weight.sum() - x) < 1.5
        # The lashes above the iris are dark as well.
        assert abs((weight * rows).sum() / weight.sum() - y) < 2.5
    mean = np.stack(portraits).astype(float).mean(axis=0)
    lips = mean[78:108, 50:62].mean(axis=1)
    redness = lips[:, 0] - lips[:, 1]
    assert abs(78 + int(redness.argmax()) - TEMPLATE[3:, 1].mean()) < 6


def test_good_images_of_one_subject_are_closer_than_those_of_two() -> None:
    portraits = np.stack([draw_frontal_face(subject, seed=3) for subject in range(SUBJECTS)])
    drawn = draw_faces(num_subjects=SUBJECTS, seed=3)
    nearest = np.zeros(SUBJECTS)
    for subject, group in itertools.groupby(drawn, lambda face: face.subject):
        inner = np.stack([face.image for face in group])[:, 20:104, 20:92].astype(float)
        distances = np.abs(inner[:, None] - portraits[None, :, 20:104, 20:92]).mean(axis=(2, 3, 4))
        best = distances[distances[:, subject].argmin()]
        nearest[subject] = best.argmin() == subject
    assert nearest.mean() > 0.9

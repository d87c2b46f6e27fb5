"""The same picture twice: copies are found, other pictures of the same face are not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from data.checks.near_duplicates import (
    Copies,
    copies_text,
    duplicates_between,
    duplicates_within,
    find_copies,
    sketch,
)
from runtime.errors import InputError
from synthetic.faces import draw_faces

Image = np.ndarray


@pytest.fixture(scope="module")
def photos() -> list[Image]:
    """One drawn image of each medium of one subject."""
    found = {face.medium: face.image for face in draw_faces(num_subjects=1, seed=0)}
    return list(found.values())


def copies(image: Image) -> dict[str, Image]:
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1]
    half = cv2.resize(image, (56, 56), interpolation=cv2.INTER_AREA)
    moved = np.float32([[1, 0, 0.6], [0, 1, -0.4]])
    return {
        "same": image,
        "saved again": cv2.imdecode(encoded, cv2.IMREAD_COLOR),
        "half the size": cv2.resize(half, (112, 112), interpolation=cv2.INTER_CUBIC),
        "darker": (image * 0.7).astype(np.uint8),
        "mirrored": image[:, ::-1].copy(),
        "grey": np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8),
        "shifted": cv2.warpAffine(image, moved, (112, 112), borderMode=cv2.BORDER_REPLICATE),
    }


@pytest.mark.parametrize("kind", copies(np.zeros((112, 112, 3), np.uint8)))
def test_copies_are_found(photos: list[Image], kind: str) -> None:
    copy = copies(photos[2])[kind]
    sketches = [sketch(image)[None] for image in [*photos[:4], copy]]
    assert duplicates_within(sketches)[4] == 2


def test_different_photos_of_a_subject_are_kept(photos: list[Image]) -> None:
    found = duplicates_within([sketch(image)[None] for image in photos])
    assert len(found) <= len(photos) // 10


def test_earliest_is_kept_with_others_in_between(photos: list[Image]) -> None:
    order = [photos[0], photos[1], photos[0], photos[1], photos[0]]
    assert duplicates_within([sketch(image)[None] for image in order]) == {2: 0, 3: 1, 4: 0}


def test_any_frame_of_a_clip_counts(photos: list[Image]) -> None:
    clip = np.stack([sketch(photos[1]), sketch(photos[2]), sketch(photos[3])])
    assert duplicates_within([sketch(photos[0])[None], clip, sketch(photos[3])[None]]) == {2: 1}


def test_uniform_image_matches_nothing() -> None:
    black = sketch(np.zeros((112, 112, 3), np.uint8))
    white = sketch(np.full((112, 112, 3), 255, np.uint8))
    assert not black.any()
    assert duplicates_within([black[None], black[None], white[None]]) == {}


def test_near_duplicates_across_subjects_are_found_across_blocks(
    photos: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.checks.near_duplicates._BLOCK", 3)
    images = [*photos[:6], photos[4][:, ::-1], photos[0], photos[1]]
    subjects = np.array([0, 0, 1, 1, 2, 2, 3, 4, 0])
    found = duplicates_between(np.stack([sketch(image) for image in images]), subjects)
    # Number 8 is of the subject of number 1, hence no other name.
    assert found == [(0, 7), (4, 6)]


def found_in(
    images: list[Image], subjects: list[int], names: tuple[str, ...] = ("ann", "bob", "eve")
) -> Copies:
    return find_copies([sketch(image)[None] for image in images], np.array(subjects), names)


def test_copies_of_all_subjects_are_found_by_index(photos: list[Image]) -> None:
    # Out of order: ann has photos 0, 1 and 0 again, bob 2 and 3, eve 4 and one of bob's.
    images = [photos[2], photos[0], photos[1], photos[4], photos[0][:, ::-1], photos[3], photos[3]]
    copies = found_in(images, [1, 0, 0, 2, 0, 1, 2])
    assert copies.within == {4: 1}
    assert copies.between == [(5, 6)]
    assert copies.left_out == {4, 5, 6}
    said = copies_text("photos", copies, [f"file{place}" for place in range(7)])
    assert [part in line for part, line in zip(("1 photos", "1 photos"), said, strict=True)] == [True, True]
    assert "file4 of file1" in said[0]
    assert "file5 and file6" in said[1]
    assert copies_text("photos", found_in(photos[:3], [0, 1, 2]), ["a", "b", "c"]) == []


def test_split_identity_is_refused(photos: list[Image]) -> None:
    with pytest.raises(InputError, match="ann and eve: all images"):
        found_in([photos[0], photos[1], photos[2], photos[0], photos[1]], [0, 0, 1, 2, 2])


def test_no_media_have_no_copies() -> None:
    assert found_in([], []).left_out == set()

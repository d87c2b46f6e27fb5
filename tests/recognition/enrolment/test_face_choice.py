from __future__ import annotations

import numpy as np

from recognition.enrolment.face_choice import choose_faces


def near(who: int, seed: int) -> np.ndarray:
    row = np.eye(16)[who] + 0.1 * np.random.default_rng(seed).standard_normal(16)
    return (row / np.linalg.norm(row)).astype(np.float32)


def choose(people: list[list[int]]) -> tuple[list[int], list[bool]]:
    """The subject chosen in each photo, given its subjects, the largest face first."""
    shown = [who for photo in people for who in photo]
    photos = np.repeat(np.arange(len(people)), [len(photo) for photo in people])
    rows = np.stack([near(who, seed) for seed, who in enumerate(shown)])
    found, agrees = choose_faces(rows, np.full(len(rows), 10, np.float32), photos)
    assert photos[found].tolist() == list(range(len(people)))
    return [shown[row] for row in found], agrees.tolist()


def test_face_that_agrees_with_other_photos_is_chosen() -> None:
    assert choose([[1, 0], [0], [0], [2, 3, 0]]) == ([0, 0, 0, 0], [True] * 4)


def test_photos_with_several_faces_each_agree_on_one_subject() -> None:
    assert choose([[1, 0], [0, 2], [3, 0]])[0] == [0, 0, 0]


def test_largest_face_is_kept_if_none_agrees() -> None:
    assert choose([[1, 2], [0], [0]]) == ([1, 0, 0], [False, True, True])
    assert choose([[1, 2]]) == ([1], [False])

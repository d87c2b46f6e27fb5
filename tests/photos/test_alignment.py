"""Five points -> transform -> 112 x 112: against Umeyama's own derivation, and against images that move."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from photos.alignment import TEMPLATE, LandmarkedFaces, align, similarity_transforms
from runtime.errors import InputError


def umeyama(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The published derivation, by singular values (Umeyama 1991); (2, 3)."""
    mean_s, mean_t = source.mean(axis=0), target.mean(axis=0)
    covariance = (target - mean_t).T @ (source - mean_s) / len(source)
    U, values, V = np.linalg.svd(covariance)
    signs = np.array([1.0, 1.0 if np.linalg.det(U) * np.linalg.det(V) > 0 else -1.0])
    turn = U @ np.diag(signs) @ V
    scale = (values * signs).sum() / ((source - mean_s) ** 2).sum() * len(source)
    return np.hstack([scale * turn, (mean_t - scale * turn @ mean_s)[:, None]])


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_transforms_are_umeyamas(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(60, 30, (4, 5, 2))
    found = similarity_transforms(points.astype(np.float32))
    wanted = [umeyama(one, TEMPLATE) for one in points.astype(np.float32).astype(np.float64)]
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


@given(st.floats(0, 6.28), st.floats(0.2, 5), st.floats(-100, 100))
def test_moved_template_is_mapped_back(angle: float, scale: float, shift: float) -> None:
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = TEMPLATE @ turn.T + shift
    transform = similarity_transforms(moved[None])[0]
    np.testing.assert_allclose(moved @ transform[:, :2].T + transform[:, 2], TEMPLATE, atol=1e-8)


def test_aligned_face_is_unchanged() -> None:
    image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    np.testing.assert_array_equal(align(image, similarity_transforms(TEMPLATE[None])[0]), image)


def test_area_outside_is_black_and_pixels_follow_the_landmarks() -> None:
    image = np.random.default_rng(0).integers(1, 256, (112, 112, 3), dtype=np.uint8)
    shifted = align(image, similarity_transforms(TEMPLATE[None] - [[[10, 0]]])[0])
    np.testing.assert_array_equal(shifted[:, 10:], image[:, :-10])
    assert shifted[:, :10].max() == 0


def test_file_becomes_rgb_and_survives_a_worker(tmp_path: Path) -> None:
    image = np.zeros((112, 112, 3), np.uint8)
    image[..., 2] = 200  # red in OpenCV's order
    cv2.imwrite(str(tmp_path / "a.png"), image)
    faces = LandmarkedFaces(tmp_path, ["a.png"], similarity_transforms(TEMPLATE[None]))
    found = pickle.loads(pickle.dumps(faces)).image(0)
    assert found.shape == (112, 112, 3)
    assert found[50, 50].tolist() == [200, 0, 0]


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), (b"", "0 bytes"), (b"x", "decoded")]
)
def test_broken_file_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.jpg").write_bytes(content)
    faces = LandmarkedFaces(tmp_path, ["a.jpg"], similarity_transforms(TEMPLATE[None]))
    with pytest.raises(InputError, match=message) as fault:
        faces.image(0)
    assert "a.jpg" in str(fault.value)

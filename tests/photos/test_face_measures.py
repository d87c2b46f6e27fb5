from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from photos.alignment import TEMPLATE
from photos.face_measures import _mean_face, head_pose, measure_face

FRONTAL = (0.0, 0.0)


def turned(yaw: float, pitch: float, roll: float, size: float = 1.0) -> np.ndarray:
    """(5, 2) the mean face turned in space, seen from far away."""
    y, p, r = np.radians([yaw, pitch, roll])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    about_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    points = _mean_face() @ (about_z @ about_y @ about_x).T
    return points[:, :2] * size + (200.0, 150.0)


@settings(max_examples=50, deadline=None)
@given(st.floats(-60, 60), st.floats(-40, 40), st.floats(0.2, 5))
def test_yaw_of_a_turned_face_is_found(yaw: float, roll: float, size: float) -> None:
    assert head_pose(turned(yaw, 0, roll, size)) == pytest.approx((yaw, 0), abs=1e-6)


@pytest.mark.parametrize("pitch", [-30, -10, 15, 40])
def test_pitch_of_a_nodding_face_is_found(pitch: float) -> None:
    assert head_pose(turned(0, pitch, 12)) == pytest.approx((0, pitch), abs=1e-6)


def test_signs_follow_image_axes() -> None:
    """A nose to the left of the middle looks to the left; one nearer to the eyes looks up."""
    points = _mean_face()[:, :2] + 100
    left, up = points.copy(), points.copy()
    left[2, 0] -= 6
    up[2, 1] -= 6
    assert head_pose(points) == pytest.approx(FRONTAL, abs=1e-6)
    assert head_pose(left)[0] < -10
    assert head_pose(up)[1] > 10


def test_coinciding_landmarks_have_no_pose() -> None:
    assert np.isnan(head_pose(np.full((5, 2), 3.0))).all()


def test_mirrored_face_looks_to_the_other_side() -> None:
    points = turned(25, 8, 5)
    mirrored = (points * (-1, 1))[[1, 0, 2, 4, 3]]
    yaw, pitch = head_pose(points)
    other_yaw, other_pitch = head_pose(mirrored)
    assert other_yaw == pytest.approx(-yaw, abs=1.0)
    assert other_pitch == pytest.approx(pitch, abs=1.0)


def picture(seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(60, 200, (112, 112, 1)).astype(np.uint8)
    return np.repeat(cv2.GaussianBlur(noise, (0, 0), 1.0)[..., None], 3, axis=2)


def test_sharpness_falls_with_blur_and_not_with_contrast() -> None:
    face = picture()
    blurred = cv2.GaussianBlur(face, (0, 0), 3.0)
    paler = (face * 0.5 + 60).astype(np.uint8)
    sharp = measure_face(face, None).sharpness
    assert measure_face(blurred, None).sharpness < 0.5 * sharp
    assert measure_face(paler, None).sharpness == pytest.approx(sharp, rel=0.05)


def test_brightness_and_side_light_are_measured() -> None:
    face = picture()
    darker = (face * 0.2).astype(np.uint8)
    assert measure_face(darker, None).brightness == pytest.approx(
        0.2 * measure_face(face, None).brightness, abs=1
    )
    shade = face.astype(np.float32)
    shade[:, :56] *= 0.3
    lit = measure_face(shade.astype(np.uint8), None)
    assert lit.side_light > 0.4
    assert measure_face(shade[:, ::-1].astype(np.uint8), None).side_light == pytest.approx(
        -lit.side_light, abs=0.01
    )
    assert abs(measure_face(face, None).side_light) < 0.05


def test_uniform_image_has_no_sharpness() -> None:
    flat = measure_face(np.full((112, 112, 3), 90, np.uint8), None)
    assert (flat.sharpness, flat.contrast, flat.side_light) == (0, 0, 0)
    assert flat.brightness == 90


def test_template_is_nearly_frontal() -> None:
    yaw, pitch = head_pose(TEMPLATE)
    assert abs(yaw) < 3
    assert abs(pitch) < 15

"""What can be told of one face without a network: where it looks, how sharp and how well lit it is.

Landmarks and aligned pixels in, numbers out; which numbers are worth a word is decided in
`recognition.enrolment.quality_feedback`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data.sources.decoding import Image
from photos.alignment import TEMPLATE

# How far the five points stand out of the plane of the eyes, in distances between the eyes: anatomy's round
# numbers. In the plane they are those of the alignment's template, which is a mean of frontal faces.
_DEPTH = (0.0, 0.0, 0.45, 0.05, 0.05)
# YuNet puts the tip of the nose so many pixels lower than the template does: with it the pitch of 60 press
# photos has the median 0, without it -11 degrees.
_NOSE_LOWER = 3.0
# Of the aligned face, without hair and background: rows and columns.
_FACE = (slice(34, 106), slice(24, 88))
_BLUR = 1.5
# Below this spread of levels there is nothing whose sharpness could be told.
_LEAST_SPREAD = 1.0


@dataclass(frozen=True)
class FaceMeasures:
    """Of one face.

    Attributes:
        yaw: degrees to the side; below 0 the face looks to the left of the picture. NaN without landmarks.
        pitch: degrees; below 0 it looks down. NaN without landmarks.
        sharpness: share of the aligned face's contrast that a blur of 1.5 pixels takes away, 0 to 1; unlike
            the Laplacian's variance it has one limit for pale and for contrasty photos.
        brightness: mean level, 0 to 255.
        contrast: standard deviation of the levels.
        side_light: difference of the mean levels of the two halves, as share of their sum; 0 is even.
    """

    yaw: float
    pitch: float
    sharpness: float
    brightness: float
    contrast: float
    side_light: float


def measure_face(face: Image, landmarks: NDArray[np.floating[Any]] | None) -> FaceMeasures:
    """Measures one face.

    Args:
        face: (112, 112, 3) uint8 RGB, aligned.
        landmarks: (5, 2) x, y in the photo; None where they are not known.
    """
    yaw, pitch = (float("nan"), float("nan")) if landmarks is None else head_pose(landmarks)
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32)
    blurred = cv2.GaussianBlur(grey, (0, 0), _BLUR)[_FACE]
    inner = grey[_FACE]
    spread = float(inner.std())
    middle = inner.shape[1] // 2
    left, right = float(inner[:, :middle].mean()), float(inner[:, middle:].mean())
    return FaceMeasures(
        yaw=yaw,
        pitch=pitch,
        sharpness=float((inner - blurred).std()) / spread if spread > _LEAST_SPREAD else 0.0,
        brightness=float(inner.mean()),
        contrast=spread,
        side_light=(right - left) / max(left + right, 1.0),
    )


def head_pose(landmarks: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Yaw and pitch in degrees from five points (5, 2), seen from far away (scaled orthographic).

    A linear map from the mean face's points to the picture, then the rotation nearest to it: the first step
    of POSIT (DeMenthon & Davis 1995). What leans to the left or right of the picture (roll) does not count.
    A landmark that is off by 2 pixels of a face 100 high moves the angles by about 5 degrees.
    """
    if not np.ptp(landmarks, axis=0).any():
        return float("nan"), float("nan")
    centred = landmarks.astype(np.float64) - landmarks.mean(axis=0)
    mapped = np.linalg.lstsq(_mean_face(), centred, rcond=None)[0].T
    left, _, right = np.linalg.svd(mapped, full_matrices=False)
    along, down = left @ right
    # Where the nose points in the picture, with the lean of the head taken out.
    depth = np.array([along[2], down[2]])
    upright = np.array([along[0] + down[1], down[0] - along[1]])
    cosine, sine = upright / max(float(np.linalg.norm(upright)), 1e-12)
    x, y = cosine * depth[0] + sine * depth[1], -sine * depth[0] + cosine * depth[1]
    return _degrees(x), _degrees(-y)


def _mean_face() -> NDArray[np.float64]:
    """(5, 3) centred points of a frontal face: x to the right, y down, z to the camera."""
    eyes = float(np.linalg.norm(TEMPLATE[1] - TEMPLATE[0]))
    points = np.column_stack([TEMPLATE, np.array(_DEPTH) * eyes])
    points[2, 1] += _NOSE_LOWER
    return np.asarray(points - points.mean(axis=0), np.float64)


def _degrees(sine: float) -> float:
    return float(np.degrees(np.arcsin(np.clip(sine, -1.0, 1.0))))

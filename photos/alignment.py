"""Align faces to 112 x 112 by a similarity transform of five landmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from backbones.face_template import ARCFACE_POINTS
from data.sources.decoding import FACE_SIZE, Image, decode_image, read_encoded
from runtime.errors import InputError

TEMPLATE = np.array(ARCFACE_POINTS)
# For faces that are already aligned.
AS_STORED = "as stored"
# Parameters of the alignment, for fingerprints and reports. The revision is to be increased with every
# change of this file that alters a pixel.
ALIGNMENT = {
    "alignment": "112 x 112, five points of ArcFace, similarity, least squares (Umeyama)",
    "interpolation": "bilinear, black border",
    "alignment_revision": "1",
}

# Below this scale, bilinear interpolation skips pixels of the photo.
_MIN_SCALE = 0.5

Floats = NDArray[np.floating[Any]]


def similarity_transforms(landmarks: Floats) -> NDArray[np.float64]:
    """Least-squares similarity transforms (rotation, scale, translation) from five landmarks to `TEMPLATE`.

    The closed form in two dimensions, equal to Umeyama's solution (1991, Eq. 34 to 43) without reflection.

    Args:
        landmarks: (N, 5, 2) x, y; the five points of a face must not coincide.

    Returns:
        (N, 2, 3) float64, from image to template, for `cv2.warpAffine`.
    """
    points = landmarks.astype(np.float64)
    centre = points.mean(axis=1, keepdims=True)
    x, y = np.moveaxis(points - centre, -1, 0)
    u, v = (TEMPLATE - TEMPLATE.mean(axis=0)).T
    variance = (x**2 + y**2).sum(axis=1)
    cosine = (x * u + y * v).sum(axis=1) / variance
    sine = (x * v - y * u).sum(axis=1) / variance
    rotation = np.stack([np.stack([cosine, -sine], axis=-1), np.stack([sine, cosine], axis=-1)], axis=1)
    translation = TEMPLATE.mean(axis=0)[:, None] - rotation @ centre.transpose(0, 2, 1)
    return np.concatenate([rotation, translation], axis=2)


def align(image: Image, transform: NDArray[np.float64]) -> Image:
    """Warp an image (H, W, 3) by a transform (2, 3) to (112, 112, 3), with a black border."""
    aligned = cv2.warpAffine(
        image,
        transform,
        (FACE_SIZE, FACE_SIZE),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return aligned.astype(np.uint8, copy=False)


def align_photo(photo: Image, landmarks: Floats) -> Image:
    """Align a face of a photo (H, W, 3) by landmarks (5, 2) to (112, 112, 3).

    A face much larger than 112 pixels is first reduced by area interpolation, because bilinear interpolation
    alone would alias.
    """
    transform = similarity_transforms(landmarks[None])[0]
    scale = float(np.hypot(transform[0, 0], transform[1, 0]))
    if scale > _MIN_SCALE:
        return align(photo, transform)
    # Only the required crop is resized, not a photo of 100 million pixels.
    corners = np.array([[0, 0], [FACE_SIZE, 0], [0, FACE_SIZE], [FACE_SIZE, FACE_SIZE]], np.float64)
    reached = (corners - transform[:, 2]) @ np.linalg.inv(transform[:, :2]).T
    height, width = photo.shape[:2]
    left, top = np.clip(np.floor(reached.min(axis=0)) - 2, 0, (width - 1, height - 1)).astype(int).tolist()
    right, bottom = np.clip(np.ceil(reached.max(axis=0)) + 2, 1, (width, height)).astype(int).tolist()
    crop = photo[top : max(bottom, top + 1), left : max(right, left + 1)]
    side = (max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale)))
    ratio = np.array(side) / (crop.shape[1], crop.shape[0])
    small = np.asarray(cv2.resize(crop, side, interpolation=cv2.INTER_AREA), np.uint8)
    # Pixel centres: (x + 0.5) * ratio - 0.5.
    moved = (landmarks - (left, top) + 0.5) * ratio - 0.5
    return align(small, similarity_transforms(moved[None])[0])


@dataclass(frozen=True, eq=False)
class LandmarkedFaces:
    """Faces in photos with known landmarks, aligned on access.

    `names`: N files below `folder`; `transforms`: (N, 2, 3), their `similarity_transforms`.
    """

    folder: Path
    names: Sequence[str]
    transforms: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.names)

    def image(self, number: int) -> Image:
        """(112, 112, 3) RGB. Raises InputError that names an unreadable file."""
        path = self.folder / self.names[number]
        try:
            encoded = read_encoded(path)
        except InputError as fault:
            raise InputError(f"{path}: {fault}") from None
        # Landmarks refer to the pixels as stored, before any orientation tag.
        try:
            photo = decode_image(encoded, upright=False)
        except InputError as fault:
            raise InputError(
                f"{path}: {len(encoded):,} bytes cannot be decoded as an image "
                f"({str(fault).rstrip('.')}). Unpack it again."
            ) from None
        return align(photo, self.transforms[number])

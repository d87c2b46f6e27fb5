"""The ArcFace alignment template: where the five landmarks of an aligned face lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

# x and y of left eye, right eye, nose tip, left and right mouth corner, in image order.
ARCFACE_POINTS = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
SIDE = 112


def warp_to_points(images: Tensor, points: tuple[float, ...]) -> Tensor:
    """Warp aligned faces by the similarity transform from `ARCFACE_POINTS` to other landmark positions.

    Bilinear; black outside the image.

    Args:
        images: (N, 3, S, S) float, aligned to `ARCFACE_POINTS` scaled to the side.
        points: x and y of the five target points, in pixels of the side.

    Returns:
        (N, 3, S, S).
    """
    from torch.nn import functional

    side = images.shape[-1]
    # Pixel centres: x + 0.5 scales with the side.
    source = (np.array(ARCFACE_POINTS) + 0.5) * (side / SIDE)
    target = np.array(points).reshape(5, 2) + 0.5
    # Target to source as complex numbers, z -> rotation z + shift, by least squares.
    z_target, z_source = (xy @ np.array([1, 1j]) for xy in (target, source))
    offsets, wanted = z_target - z_target.mean(), z_source - z_source.mean()
    rotation = (offsets.conj() * wanted).sum() / (abs(offsets) ** 2).sum()
    shift = z_source.mean() - rotation * z_target.mean()
    # In the coordinates of `affine_grid`: -1 to 1 over the side.
    moved = (2 * shift + (rotation * (1 + 1j) - (1 + 1j)) * side) / side
    matrix = [[rotation.real, -rotation.imag, moved.real], [rotation.imag, rotation.real, moved.imag]]
    theta = images.new_tensor(matrix).expand(len(images), 2, 3)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

"""Illumination normalisation: aligned faces at one brightness and contrast."""

from __future__ import annotations

import torch
from torch import Tensor

# Target mean and standard deviation, on values 0..255: about those of a well-lit face.
_TARGET_MEAN, _TARGET_STD = 118.0, 52.0
# Faces of lower contrast are amplified less: there is little but noise in them.
_MIN_STD = 5.0
# Region that the statistics are computed on, as fractions of the side: rows, columns. Outside it are
# background and, often, black borders.
_ROWS, _COLUMNS = (20 / 112, 100 / 112), (20 / 112, 92 / 112)


def normalise_illumination(images: Tensor) -> Tensor:
    """Map each face linearly to a fixed mean and standard deviation.

    The statistics are taken over pixels and channels of the inner face together, so that skin colour is kept.

    Args:
        images: (N, 3, H, W) float, values 0..255, of aligned faces.

    Returns:
        (N, 3, H, W), clipped to 0..255.
    """
    (top, bottom), (left, right) = (
        [round(share * side) for share in part]
        for part, side in zip((_ROWS, _COLUMNS), images.shape[2:], strict=True)
    )
    inner = images[:, :, top:bottom, left:right].flatten(1)
    std, mean = torch.std_mean(inner, dim=1, correction=0)
    gain = _TARGET_STD / std.clamp_min(_MIN_STD)
    normalised = (images - mean[:, None, None, None]) * gain[:, None, None, None] + _TARGET_MEAN
    return normalised.clamp(0, 255)


def describe() -> str:
    """The parameters in words, as feature stores and result files record them."""
    rows, columns = ([round(112 * share) for share in part] for part in (_ROWS, _COLUMNS))
    return (
        f"mean {_TARGET_MEAN:g}, deviation {_TARGET_STD:g}, at least {_MIN_STD:g}, of rows {rows[0]} to "
        f"{rows[1]} and columns {columns[0]} to {columns[1]} of 112"
    )

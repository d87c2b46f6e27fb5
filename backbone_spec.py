"""What a backbone expects of a face's pixels and what it gives; travels with its weights."""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from errors import InputError

# Brightness and contrast that levelled faces have: about those of a well-lit one, on values 0..255.
_LEVEL_MEAN, _LEVEL_DEVIATION = 118.0, 52.0
# A flatter face has no contrast to bring back, only noise.
_LEAST_DEVIATION = 5.0
# The part of an aligned face that is measured, in shares of the side: rows, columns. Beyond it are
# background and, often, black.
_FACE_ROWS, _FACE_COLUMNS = (20 / 112, 100 / 112), (20 / 112, 92 / 112)


@dataclass(frozen=True)
class BackboneSpec:
    """What a backbone expects and gives; it travels with the weights, so that preprocessing is never guessed.

    `channel_order` is "BGR" or "RGB"; `mean` and `std` are on pixel values 0..255; `norm_is_quality` says
    that the feature norm falls with image quality; `image_size` is the side in pixels; `levels_light` says
    that each face is first brought to one brightness and contrast (`level_light`). Any other value raises
    InputError.
    """

    name: str
    embedding_size: int
    channel_order: str
    mean: float
    std: float
    norm_is_quality: bool
    image_size: int = 112
    levels_light: bool = False

    def __post_init__(self) -> None:
        faults = [
            f"backbone spec: {field.name} must be of type {field.type}, found {getattr(self, field.name)!r}."
            for field in fields(self)
            if not _is_plain(getattr(self, field.name), str(field.type))
        ]
        if not faults:
            if self.channel_order not in ("BGR", "RGB"):
                faults.append(f"backbone spec: channel_order is BGR or RGB, not {self.channel_order!r}.")
            if min(self.embedding_size, self.image_size) < 1:
                faults.append("backbone spec: embedding_size and image_size must be positive.")
            if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
                faults.append("backbone spec: mean must be finite and std finite and positive.")
        if faults:
            raise InputError.from_faults(faults)

    def normalise(self, images: Tensor) -> Tensor:
        """(value - mean) / std of images in the spec's channel order, levelled before if it says so.

        Args:
            images: (N, 3, H, W) uint8; the memory format is kept.

        Returns:
            (N, 3, H, W) float32.

        Raises:
            InputError: the images are no uint8, so that they may have been normalised before.
        """
        if images.dtype != torch.uint8:
            raise InputError(
                f"{self.name}: images must be uint8 with values 0..255, found {images.dtype}. "
                "Hand over the pixels as they are; they are normalised here, once."
            )
        values = images.to(torch.float32)
        return ((level_light(values) if self.levels_light else values) - self.mean) / self.std

    def from_rgb(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """True colours to the layout of the network.

        Args:
            images: (..., H, W, 3) uint8 RGB.

        Returns:
            (..., 3, H, W) uint8 in the spec's channel order, contiguous and writable.

        Raises:
            InputError: another dtype, or no three channels at the end.
        """
        if images.dtype != np.uint8 or images.ndim < 3 or images.shape[-1] != 3:
            raise InputError(
                f"{self.name}: expected RGB images as uint8 of shape (..., height, width, 3), "
                f"found {images.dtype} of shape {tuple(images.shape)}."
            )
        ordered = images[..., ::-1] if self.channel_order == "BGR" else images
        return np.array(np.moveaxis(ordered, -1, -3), order="C")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types; what pixels are levelled for is said only where it is done.

        So the identity of what was made before there was levelling stays what it was.
        """
        values = asdict(self)
        if not self.levels_light:
            del values["levels_light"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BackboneSpec:
        """The inverse of `to_dict`; InputError on a missing, unknown or wrong field."""
        known = {field.name for field in fields(cls)}
        faults = [f"backbone spec: unknown field {name!r}." for name in sorted(set(values) - known)]
        missing = known - set(values) - {field.name for field in fields(cls) if field.default is not MISSING}
        faults += [f"backbone spec: {name} is missing." for name in sorted(missing)]
        if faults:
            raise InputError.from_faults(faults)
        return cls(**values)


def level_light(images: Tensor) -> Tensor:
    """Faces at one brightness and contrast, whatever the light was: a linear map of each face's values.

    Mean and deviation are those of the inner face, over its pixels and colours together, so that the colour
    of a skin stays; a face of hardly any contrast is raised less, so that noise is not all there is.

    Args:
        images: (N, 3, H, W) float, values 0..255 of aligned faces.

    Returns:
        (N, 3, H, W), values 0..255.
    """
    (top, bottom), (left, right) = (
        [round(share * side) for share in part]
        for part, side in zip((_FACE_ROWS, _FACE_COLUMNS), images.shape[2:], strict=True)
    )
    inner = images[:, :, top:bottom, left:right].flatten(1)
    deviation, mean = torch.std_mean(inner, dim=1, correction=0)
    gain = _LEVEL_DEVIATION / deviation.clamp_min(_LEAST_DEVIATION)
    levelled = (images - mean[:, None, None, None]) * gain[:, None, None, None] + _LEVEL_MEAN
    return levelled.clamp(0, 255)


def _is_plain(value: object, type_name: str) -> bool:
    """JSON has one kind of number: a whole one may stand for a float, but True for none."""
    if isinstance(value, bool) or type_name == "bool":
        return isinstance(value, bool) and type_name == "bool"
    kinds: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
    return isinstance(value, kinds[type_name])

"""BackboneSpec: what a backbone expects of pixels and returns; stored with its weights.

Importable without torch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from backbones.cosine_statistics import REFERENCE, CosineStatistics, measure_cosines, median_nonmated_cosine
from backbones.face_template import SIDE, warp_to_points
from runtime.errors import InputError
from runtime.json_files import is_plain

if TYPE_CHECKING:
    from torch import Tensor

# Median non-mated cosine up to which thresholds chosen for the reference backbone are used unchanged.
_MAX_NONMATED = 0.2
# Fields of this class, and options of aggregators, as files of earlier versions name them.
_FORMER_NAMES = {
    "context_size": "auxiliary_size",
    "levels_light": "normalises_illumination",
    "image_size": "input_size",
    "template": "alignment",
}


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Rename fields and options read from a file of an earlier version."""
    return {_FORMER_NAMES.get(name, name): value for name, value in values.items()}


@dataclass(frozen=True)
class BackboneSpec:
    """What a backbone expects and returns; it travels with the weights, so that nothing has to be guessed.

    Attributes:
        name: of the architecture, a key of `BACKBONES`, or "onnx".
        embedding_size: values of a feature, auxiliary features included.
        channel_order: "BGR" or "RGB".
        mean: subtracted from pixel values 0..255; one value, or three in channel order.
        std: divides them, likewise.
        norm_is_quality: whether the feature norm falls with image quality; None where it was not measured.
        input_size: side of the input in pixels.
        normalises_illumination: faces go through `normalise_illumination` first.
        auxiliary_size: values at the end of a feature that are auxiliary features (`Backbone`).
        centre: one value for each of the others: the vector that all features share. It is subtracted from
            unit embeddings, which are then normalised again (`subtract_centre`).
        cosine_statistics: of the returned features; None where they were not measured.
        alignment: x and y of the five landmarks in pixels, where they are not the ArcFace template scaled to
            the input size.

    Raises:
        InputError: a value of the wrong type or out of range; all faults in one message.
    """

    name: str
    embedding_size: int
    channel_order: str
    mean: float | tuple[float, float, float]
    std: float | tuple[float, float, float]
    norm_is_quality: bool | None
    input_size: int = 112
    normalises_illumination: bool = False
    auxiliary_size: int = 0
    centre: tuple[float, ...] | None = None
    cosine_statistics: CosineStatistics | None = None
    alignment: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        faults = [
            f"{name} must be of type {kind.__name__}, found {getattr(self, name)!r}"
            for name, kind in get_type_hints(type(self)).items()
            if isinstance(kind, type) and not is_plain(getattr(self, name), kind)
        ] or self._faults()
        if faults:
            raise InputError.from_faults([f"backbone spec: {fault}." for fault in faults])

    def _faults(self) -> list[str]:
        size, centre, pixels = self.identity_size, self.centre, (_tuple(self.mean), _tuple(self.std))
        checks = {
            f"channel_order is BGR or RGB, not {self.channel_order!r}": self.channel_order in ("BGR", "RGB"),
            "embedding_size and input_size must be positive": min(self.embedding_size, self.input_size) >= 1,
            "auxiliary_size must be at least 0 and below embedding_size": (
                0 <= self.auxiliary_size < self.embedding_size
            ),
            "mean must be finite and std finite and positive, each a number or three": (
                all(_are_numbers(values, 1, 3) for values in pixels) and min(pixels[1]) > 0
            ),
            f"norm_is_quality must be of type bool, found {self.norm_is_quality!r}; or null if unknown": (
                isinstance(self.norm_is_quality, bool | None)
            ),
            "alignment must be ten finite numbers, x and y of five landmarks": (
                self.alignment is None or _are_numbers(self.alignment, 10)
            ),
            f"centre must be {size} finite numbers, of length below 1": (
                centre is None or (_are_numbers(centre, size) and sum(x * x for x in centre) < 1)
            ),
            "cosine_statistics must be CosineStatistics or null": (
                isinstance(self.cosine_statistics, CosineStatistics | None)
            ),
        }
        return [fault for fault, holds in checks.items() if not holds]

    def normalise(self, images: Tensor) -> Tensor:
        """Turn aligned faces into the network's input: (value - mean) / std.

        Before it, illumination is normalised if the spec says so, faces of another side are resampled to
        `input_size`, and faces are warped from the ArcFace template to `alignment` where it is set.

        Args:
            images: (N, 3, H, W) uint8, square, in `channel_order`; the memory format is kept.

        Returns:
            (N, 3, input_size, input_size) float32.

        Raises:
            InputError: not uint8, so that the images may have been normalised already.
        """
        import torch
        from torch.nn import functional

        from backbones.illumination import normalise_illumination

        if images.dtype != torch.uint8:
            raise InputError(
                f"{self.name}: images must be uint8 with values 0..255, found {images.dtype}. "
                "Pass pixels as decoded; they are normalised here."
            )
        values = images.to(torch.float32)
        values = normalise_illumination(values) if self.normalises_illumination else values
        if self.input_size not in (SIDE, images.shape[-1]):
            size = (self.input_size, self.input_size)
            values = functional.interpolate(
                values, size, mode="bilinear", antialias=True, align_corners=False
            )
        if self.alignment is not None:
            values = warp_to_points(values, self.alignment)
        if isinstance(self.mean, tuple) or isinstance(self.std, tuple):
            mean, std = (values.new_tensor(_tuple(each)).view(-1, 1, 1) for each in (self.mean, self.std))
            return (values - mean) / std
        return (values - self.mean) / self.std

    def from_rgb(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert RGB images to the layout and channel order of the network.

        Args:
            images: (..., H, W, 3) uint8 RGB.

        Returns:
            (..., 3, H, W) uint8 in `channel_order`, contiguous and writable.

        Raises:
            InputError: another dtype, or the last dimension is not 3.
        """
        if images.dtype != np.uint8 or images.ndim < 3 or images.shape[-1] != 3:
            raise InputError(
                f"{self.name}: expected RGB images as uint8 of shape (..., height, width, 3), "
                f"found {images.dtype} of shape {tuple(images.shape)}."
            )
        ordered = images[..., ::-1] if self.channel_order == "BGR" else images
        return np.array(np.moveaxis(ordered, -1, -3), order="C")

    @property
    def identity_size(self) -> int:
        """D: values of a row without auxiliary features."""
        return self.embedding_size - self.auxiliary_size

    @property
    def is_measured(self) -> bool:
        """Whether cosine thresholds are adapted to this backbone; otherwise the reference's are used."""
        return self.cosine_statistics is not None

    def cosine_limit(self, reference: float) -> float:
        """Translate a cosine threshold from the reference backbone (`CosineStatistics.limit`).

        Unchanged where the backbone was not measured.
        """
        return reference if self.cosine_statistics is None else self.cosine_statistics.limit(reference)

    def cosine_difference(self, reference: float) -> float:
        """As `cosine_limit`, for a difference of two cosines."""
        return (self.cosine_statistics or REFERENCE).difference(reference)

    def in_reference(self, cosines: NDArray[np.float64]) -> NDArray[np.float64]:
        """Invert `cosine_limit` for an array."""
        return cosines if self.cosine_statistics is None else self.cosine_statistics.in_reference(cosines)

    def norm_share(self, reference: float) -> float:
        """As `cosine_limit`, for a threshold given as a fraction of a good face's norm."""
        return (self.cosine_statistics or REFERENCE).norm_share(reference)

    def unmeasured_warning(self, features: NDArray[np.float32], owners: NDArray[np.int64]) -> str:
        """One sentence if cosine thresholds do not suit these features, else an empty string.

        They do not where the backbone was not measured and different subjects are more similar than for the
        reference backbone.

        Args:
            features: (N, D) unit rows, of faces or of sets.
            owners: as `median_nonmated_cosine`.
        """
        median = None if self.is_measured else median_nonmated_cosine(features, owners)
        if median is None or median <= _MAX_NONMATED:
            return ""
        return (
            f"the weights ({self.name}) were never measured, and different subjects have a median cosine of "
            f"{median:.2f} with them, where about 0 is expected. Measure them once, on faces of a few hundred"
            " subjects: python convert.py --check-quality WEIGHTS IMAGES --store OUT.safetensors; then use "
            "OUT.safetensors"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types, without optional ones that are not set.

        Files and digests of backbones without such an option are the same as before it was introduced.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values = {key: value for key, value in values.items() if value or key not in _OPTIONAL}
        values |= {name: list(values[name]) for name in _LISTS if isinstance(values.get(name), tuple)}
        if self.cosine_statistics is not None:
            values["cosine_statistics"] = self.cosine_statistics.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BackboneSpec:
        """Invert `to_dict`; names of earlier versions are accepted.

        Raises:
            InputError: a missing, unknown or wrong field.
        """
        values = with_current_names(values)
        known = {field.name for field in fields(cls)}
        faults = [f"backbone spec: unknown field {name!r}." for name in sorted(set(values) - known)]
        missing = known - set(values) - {field.name for field in fields(cls) if field.default is not MISSING}
        faults += [f"backbone spec: {name} is missing." for name in sorted(missing)]
        if faults:
            raise InputError.from_faults(faults)
        values |= {name: tuple(values[name]) for name in _LISTS if isinstance(values.get(name), list)}
        if values.get("cosine_statistics") is not None:
            values["cosine_statistics"] = CosineStatistics.from_dict(values["cosine_statistics"])
        return cls(**values)

    def with_auxiliary(self, size: int) -> BackboneSpec:
        """The same spec with `size` auxiliary features.

        Raises:
            InputError: a negative size.
        """
        return replace(self, embedding_size=self.identity_size + size, auxiliary_size=size)

    def with_features_of(self, other: BackboneSpec) -> BackboneSpec:
        """The same spec with the centre of `other`, and the statistics that belong to such features."""
        statistics = other.cosine_statistics
        if statistics is None and other.centre == self.centre:
            statistics = self.cosine_statistics
        return replace(self, centre=other.centre, cosine_statistics=statistics)

    def measured(
        self,
        features: NDArray[np.float32],
        labels: NDArray[np.int64] | None,
        norms: NDArray[np.float32] | None = None,
        *,
        keep_centre: bool = False,
    ) -> BackboneSpec:
        """The same spec with statistics of these features, and with a centre where they share a vector.

        Args:
            features: (N, D) as returned by a backbone with this spec.
            labels, norms: as `measure_cosines`.
            keep_centre: do not add a centre, as aggregators were trained without; an existing one is kept.

        Raises:
            InputError: as `measure_cosines`.
        """
        import torch

        from backbones.auxiliary import split_auxiliary

        embedding, _ = split_auxiliary(torch.from_numpy(features), self.auxiliary_size)
        keep_centre |= self.centre is not None
        centre, statistics = measure_cosines(embedding.numpy(), labels, norms, keep_common=keep_centre)
        return replace(self, centre=self.centre if keep_centre else centre, cosine_statistics=statistics)


# Fields that are stored only where they are set, and those that are lists in JSON.
_OPTIONAL = ("normalises_illumination", "auxiliary_size", "centre", "cosine_statistics", "alignment")
_LISTS = ("mean", "std", "centre", "alignment")


def centre_digest(centre: tuple[float, ...]) -> str:
    """Identifier of a centre in files: 64 bits of the SHA-256 of its float32 values."""
    return hashlib.sha256(np.array(centre, np.float32).tobytes()).hexdigest()[:16]


def _tuple(values: float | tuple[float, ...]) -> tuple[float, ...]:
    return values if isinstance(values, tuple) else (values,)


def _are_numbers(values: object, *counts: int) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) in counts
        and all(is_plain(value, float) and math.isfinite(value) for value in values)
    )

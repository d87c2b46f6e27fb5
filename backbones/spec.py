"""What a backbone expects of a face's pixels and what it gives; travels with its weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from backbones.cosine_statistics import REFERENCE, CosineStatistics, measure, median_nonmated
from backbones.face_template import ARCFACE_POINTS, SIDE
from runtime.errors import InputError

# Brightness and contrast that levelled faces have: about those of a well-lit one, on values 0..255.
_LEVEL_MEAN, _LEVEL_DEVIATION = 118.0, 52.0
# A flatter face has no contrast to bring back, only noise.
_LEAST_DEVIATION = 5.0
# The part of an aligned face that is measured, in shares of the side: rows, columns. Beyond it are
# background and, often, black.
_FACE_ROWS, _FACE_COLUMNS = (20 / 112, 100 / 112), (20 / 112, 92 / 112)
# Of the auxiliary values behind an embedding: large enough for float16, and so small that cosines hardly
# change. With 256 values of MobileFaceNet's those of LFWS do by 0.001 at the median, by 0.007 at most.
_AUXILIARY_SCALE = 0.005
_SHORTEST_EMBEDDING = 1e-6
# Median cosine of different people up to which limits that were chosen with the reference are used.
_MOST_ALIKE = 0.2


# Names of fields, and of options of aggregators, in files of earlier versions.
_FORMER_NAMES = {"context_size": "auxiliary_size", "levels_light": "normalises_illumination"}


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a file by the names that fields and options have now; others stay."""
    return {_FORMER_NAMES.get(name, name): value for name, value in values.items()}


@dataclass(frozen=True)
class BackboneSpec:
    """What a backbone expects and gives; it travels with the weights, so that preprocessing is never guessed.

    `channel_order` is "BGR" or "RGB"; `mean` and `std` are on pixel values 0..255, one or three in channel
    order; `norm_is_quality` says that the feature norm falls with image quality, None that nobody knows;
    `image_size` is the side in pixels; `template`, where it is not that of `photos.alignment` scaled to the
    side, is x and y of its five points in pixels of that side; `normalises_illumination` says
    that each face is first brought to one brightness and contrast (`normalise_illumination`);
    `auxiliary_size` of the `embedding_size` values are no part of the embedding but auxiliary values behind
    it (`net.Backbone`). `centre` holds one value for each of the others, which is subtracted from a unit
    feature before it is made one again (`centred`): the vector that the features of all people share.
    `cosine_statistics` are of the features as they come out; None: nobody measured them. Any other value
    raises InputError.
    """

    name: str
    embedding_size: int
    channel_order: str
    mean: float | tuple[float, float, float]
    std: float | tuple[float, float, float]
    norm_is_quality: bool | None
    image_size: int = 112
    normalises_illumination: bool = False
    auxiliary_size: int = 0
    centre: tuple[float, ...] | None = None
    cosine_statistics: CosineStatistics | None = None
    template: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        faults = [
            f"backbone spec: {field.name} must be of type {field.type}, found {getattr(self, field.name)!r}."
            for field in fields(self)
            if field.name not in _STRUCTURED and not _is_plain(getattr(self, field.name), str(field.type))
        ]
        if not faults:
            if self.channel_order not in ("BGR", "RGB"):
                faults.append(f"backbone spec: channel_order is BGR or RGB, not {self.channel_order!r}.")
            if min(self.embedding_size, self.image_size) < 1:
                faults.append("backbone spec: embedding_size and image_size must be positive.")
            if not 0 <= self.auxiliary_size < self.embedding_size:
                faults.append("backbone spec: auxiliary_size must be at least 0 and below embedding_size.")
            pixels = [_tuple(values) for values in (self.mean, self.std)]
            if not all(_are_numbers(values, (1, 3)) for values in pixels) or min(pixels[1]) <= 0:
                faults.append(
                    "backbone spec: mean must be finite and std finite and positive, each a number or three."
                )
            if not isinstance(self.norm_is_quality, bool | None):
                faults.append(
                    f"backbone spec: norm_is_quality must be of type bool, found {self.norm_is_quality!r}; "
                    "or nothing (null), where it is not known."
                )
            if self.template is not None and not _are_numbers(self.template, (10,)):
                faults.append("backbone spec: template must be ten finite numbers, x and y of five points.")
            if self.centre is not None and not (
                _are_numbers(self.centre, (self._identity_size,)) and sum(x * x for x in self.centre) < 1
            ):
                faults.append(
                    f"backbone spec: centre must be {self._identity_size} finite numbers, of length below 1."
                )
            if not isinstance(self.cosine_statistics, CosineStatistics | None):
                faults.append("backbone spec: cosine_statistics must be CosineStatistics or nothing.")
        if faults:
            raise InputError.from_faults(faults)

    def normalise(self, images: Tensor) -> Tensor:
        """(value - mean) / std of images in the spec's channel order, levelled before if it says so.

        Faces of another side are resampled to the spec's, and faces of the template of `photos.alignment` are
        moved to the spec's template where it has one.

        Args:
            images: (N, 3, H, W) uint8, square; the memory format is kept.

        Returns:
            (N, 3, image_size, image_size) float32.

        Raises:
            InputError: the images are no uint8, so that they may have been normalised before.
        """
        if images.dtype != torch.uint8:
            raise InputError(
                f"{self.name}: images must be uint8 with values 0..255, found {images.dtype}. "
                "Hand over the pixels as they are; they are normalised here, once."
            )
        values = images.to(torch.float32)
        values = normalise_illumination(values) if self.normalises_illumination else values
        if self.image_size not in (SIDE, images.shape[-1]):
            side = (self.image_size, self.image_size)
            values = F.interpolate(values, side, mode="bilinear", antialias=True, align_corners=False)
        if self.template is not None:
            values = moved_to_template(values, self.template)
        if isinstance(self.mean, tuple) or isinstance(self.std, tuple):
            mean, std = (values.new_tensor(_tuple(each)).view(-1, 1, 1) for each in (self.mean, self.std))
            return (values - mean) / std
        return (values - self.mean) / self.std

    def from_rgb(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
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

    @property
    def _identity_size(self) -> int:
        return self.embedding_size - self.auxiliary_size

    @property
    def is_measured(self) -> bool:
        """Whether limits of cosine are this backbone's own; else it is assumed to be like the reference."""
        return self.cosine_statistics is not None

    def cosine_limit(self, reference: float) -> float:
        """The cosine that means for this backbone what `reference` means for `cosine_statistics.REFERENCE`.

        The same where nobody measured the backbone (`is_measured`).
        """
        return reference if self.cosine_statistics is None else self.cosine_statistics.limit(reference)

    def cosine_difference(self, reference: float) -> float:
        """As `cosine_limit`, for a difference of two cosines."""
        return (self.cosine_statistics or REFERENCE).difference(reference)

    def in_reference(self, cosines: NDArray[np.float64]) -> NDArray[np.float64]:
        """The inverse of `cosine_limit`, of an array."""
        return cosines if self.cosine_statistics is None else self.cosine_statistics.in_reference(cosines)

    def norm_share(self, reference: float) -> float:
        """As `cosine_limit`, for a share of a good face's norm."""
        return (self.cosine_statistics or REFERENCE).norm_share(reference)

    def distrust(self, features: NDArray[np.float32], owners: NDArray[np.int64]) -> str:
        """Why limits of cosine cannot be trusted for these features, in a sentence; empty where they can.

        They cannot where nobody measured the backbone and different people are more alike than for the
        reference.

        Args:
            features: (N, D) unit rows, of faces or of sets.
            owners: as `cosine_statistics.median_nonmated`.
        """
        median = None if self.is_measured else median_nonmated(features, owners)
        if median is None or median <= _MOST_ALIKE:
            return ""
        return (
            f"the weights ({self.name}) were never measured, and for them different people have a median "
            f"cosine of {median:.2f}, where about 0 is expected. Measure them once, on faces of a few "
            "hundred people: python convert.py --check-quality WEIGHTS IMAGES --store OUT.safetensors; then "
            "use OUT.safetensors"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types; what is rare is named only where there is any.

        So the identity of what was made before there was such a thing stays what it was.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values = {key: value for key, value in values.items() if value or key not in _RARE}
        values |= {name: list(values[name]) for name in _LISTS if isinstance(values.get(name), tuple)}
        if self.cosine_statistics is not None:
            values["cosine_statistics"] = self.cosine_statistics.to_dict()
        return values

    def with_auxiliary(self, size: int) -> BackboneSpec:
        """The same with `size` auxiliary values; 0: with none. InputError on a negative size."""
        return replace(self, embedding_size=self._identity_size + size, auxiliary_size=size)

    def with_features_of(self, other: BackboneSpec) -> BackboneSpec:
        """The same with the other's centre, and its statistics where they are of the features of now."""
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
        """The same with the statistics of such features, and a centre where they share a vector.

        Args:
            features: (N, D) as the backbone gives them by this spec; so with its centre subtracted.
            labels, norms: as `cosine_statistics.measure`.
            keep_centre: it stays as it is, for aggregators that were trained so, as it does where there is
                one.

        Raises:
            InputError: as `cosine_statistics.measure`.
        """
        embedding, _ = split_auxiliary(torch.from_numpy(features), self.auxiliary_size)
        keep_centre |= self.centre is not None
        centre, statistics = measure(embedding.numpy(), labels, norms, keep_common=keep_centre)
        return replace(self, centre=self.centre if keep_centre else centre, cosine_statistics=statistics)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BackboneSpec:
        """The inverse of `to_dict`; InputError on a missing, unknown or wrong field."""
        values = with_current_names(values)
        known = {field.name for field in fields(cls)}
        faults = [f"backbone spec: unknown field {name!r}." for name in sorted(set(values) - known)]
        missing = known - set(values) - {field.name for field in fields(cls) if field.default is not MISSING}
        faults += [f"backbone spec: {name} is missing." for name in sorted(missing)]
        if faults:
            raise InputError.from_faults(faults)
        for name in _LISTS:
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        if values.get("cosine_statistics") is not None:
            values["cosine_statistics"] = CosineStatistics.from_dict(values["cosine_statistics"])
        return cls(**values)


# Fields that few backbones have, and those that are no plain values.
_RARE = ("normalises_illumination", "auxiliary_size", "centre", "cosine_statistics", "template")
_LISTS = ("mean", "std", "centre", "template")
_STRUCTURED = ("mean", "std", "norm_is_quality", "centre", "cosine_statistics", "template")

# Names of what `preprocessing` always gives.
PREPROCESSING = (
    *("alignment", "image_size", "colour_order", "illumination_normalisation", "pixel_scale", "flip"),
    *("auxiliary_size", "precision"),
)


def preprocessing(spec: BackboneSpec, *, alignment: str, flip: str, precision: str) -> dict[str, str]:
    """All that is done to a face until its feature is there, in words, by name.

    The one description of it: stores of features, result files and galleries say the same.

    Args:
        spec: of the backbone.
        alignment: how faces were brought to the size of the network.
        flip: how features of the mirror image are joined.
        precision: of the network, as Lightning names it.
    """
    rows, columns = ([round(112 * share) for share in part] for part in (_FACE_ROWS, _FACE_COLUMNS))
    normalised = (
        f"mean {_LEVEL_MEAN:g}, deviation {_LEVEL_DEVIATION:g}, at least {_LEAST_DEVIATION:g}, of rows "
        f"{rows[0]} to {rows[1]} and columns {columns[0]} to {columns[1]} of 112"
    )
    return {
        "alignment": alignment,
        "image_size": str(spec.image_size),
        "colour_order": spec.channel_order,
        "illumination_normalisation": normalised if spec.normalises_illumination else "none",
        # repr: all digits, since a small difference is one too.
        "pixel_scale": f"(value - {_digits(spec.mean)}) / {_digits(spec.std)}",
        "flip": flip,
        "auxiliary_size": str(spec.auxiliary_size),
        "precision": precision,
        # Named only where there is one, as in `BackboneSpec.to_dict`.
        **({} if spec.centre is None else {"centre": centre_digest(spec.centre)}),
        **({} if spec.template is None else {"template": " ".join(map(_digits, spec.template))}),
    }


def centre_digest(centre: tuple[float, ...]) -> str:
    """What identities say of a centre: 64 bits of the SHA-256 of its values as float32."""
    return hashlib.sha256(np.array(centre, np.float32).tobytes()).hexdigest()[:16]


def _digits(value: float | tuple[float, ...]) -> str:
    """All digits; of three channels in brackets."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_digits, value))})"
    return repr(float(value)).removesuffix(".0")


def normalise_illumination(images: Tensor) -> Tensor:
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


def moved_to_template(images: Tensor, template: tuple[float, ...]) -> Tensor:
    """Aligned faces moved by the similarity that brings the five points of `ARCFACE_POINTS` to others.

    Bilinear; black where the crop does not reach.

    Args:
        images: (N, 3, S, S) float, aligned to `ARCFACE_POINTS` scaled to the side.
        template: x and y of the five points, in pixels of the side.

    Returns:
        (N, 3, S, S).
    """
    side = images.shape[-1]
    # Pixel centres: x + 0.5 scales with the side.
    source = (np.array(ARCFACE_POINTS) + 0.5) * (side / SIDE)
    target = np.array(template).reshape(5, 2) + 0.5
    # From the target to the source, as complex numbers: z -> a z + b, by least squares.
    here, there = (points @ np.array([1, 1j]) for points in (target, source))
    offsets, wanted = here - here.mean(), there - there.mean()
    turn = (offsets.conj() * wanted).sum() / (abs(offsets) ** 2).sum()
    shift = there.mean() - turn * here.mean()
    # In the units of `affine_grid`: -1 to 1 over the side.
    moved = (2 * shift + (turn * (1 + 1j) - (1 + 1j)) * side) / side
    matrix = [[turn.real, -turn.imag, moved.real], [turn.imag, turn.real, moved.imag]]
    theta = images.new_tensor(matrix).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def centred(features: Tensor, centre: tuple[float, ...] | None, auxiliary_size: int) -> Tensor:
    """Features with a backbone's centre subtracted from their embedding, unit rows again.

    Args:
        features: (..., D) unit rows, with so many auxiliary values at their end; a row of zeros stays one.
        centre: (D - auxiliary_size,) of `BackboneSpec`; None changes nothing.
        auxiliary_size: see `with_auxiliary`.

    Returns:
        (..., D), of the same dtype.
    """
    if centre is None:
        return features
    embedding, auxiliary = split_auxiliary(features, auxiliary_size)
    length = torch.linalg.vector_norm(embedding, dim=-1, keepdim=True)
    rest = embedding - length * torch.tensor(centre, dtype=features.dtype, device=features.device)
    unit: Tensor = rest / torch.linalg.vector_norm(rest, dim=-1, keepdim=True).clamp_min(_SHORTEST_EMBEDDING)
    return with_auxiliary(unit, auxiliary) if auxiliary_size else unit


def with_auxiliary(embedding: Tensor, auxiliary: Tensor) -> Tensor:
    """Auxiliary values behind an embedding, very small, and unit rows again.

    Args:
        embedding: (..., D) unit rows; a row of zeros stays one.
        auxiliary: (..., C), values of about 1.

    Returns:
        (..., D + C).
    """
    length = torch.linalg.vector_norm(embedding, dim=-1, keepdim=True)
    joined = torch.cat([embedding, _AUXILIARY_SCALE * length * auxiliary], dim=-1)
    unit: Tensor = joined / torch.linalg.vector_norm(joined, dim=-1, keepdim=True).clamp_min(
        _SHORTEST_EMBEDDING
    )
    return unit


def split_auxiliary(features: Tensor, auxiliary_size: int) -> tuple[Tensor, Tensor]:
    """The inverse of `with_auxiliary`: unit embeddings (..., D) and their auxiliary values (..., C)."""
    if not auxiliary_size:
        return features, features[..., :0]
    own, auxiliary = features[..., :-auxiliary_size], features[..., -auxiliary_size:]
    length = torch.linalg.vector_norm(own, dim=-1, keepdim=True).clamp_min(_SHORTEST_EMBEDDING)
    return own / length, auxiliary / (_AUXILIARY_SCALE * length)


def _tuple(values: float | tuple[float, ...]) -> tuple[float, ...]:
    """A number as a tuple of one."""
    return values if isinstance(values, tuple) else (values,)


def _are_numbers(values: object, counts: tuple[int, ...]) -> bool:
    """A tuple of so many finite numbers."""
    if not isinstance(values, tuple) or len(values) not in counts:
        return False
    return all(
        isinstance(each, (int, float)) and not isinstance(each, bool) and math.isfinite(each)
        for each in values
    )


def _is_plain(value: object, type_name: str) -> bool:
    """JSON has one kind of number: a whole one may stand for a float, but True for none."""
    if isinstance(value, bool) or type_name == "bool":
        return isinstance(value, bool) and type_name == "bool"
    kinds: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
    return isinstance(value, kinds[type_name])

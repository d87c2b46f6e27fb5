"""A face model as a library: weights in, then faces to features, and the features of a set to one descriptor.

Faces are aligned RGB images; where they come from is the work of `recognition.sets`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from backbones.preprocessing import describe_preprocessing
from backbones.spec import BackboneSpec
from coreset import AGGREGATORS, FaceSets, build_aggregator, requires_training
from features.extract import extract
from features.flips import FLIP_CHOICES, flip_rule, warn_of_doubled_norms
from features.options import FACES_AT_ONCE
from net import Backbone
from photos.alignment import ALIGNMENT
from runtime.command import chosen_device
from runtime.errors import InputError
from weights import Overrides, check_fit, load_aggregator, load_backbone, prepare_for, weights_digest

# What a bare backbone is given: no training, and the best of the means on every set that we measured.
# Of a bare backbone: where its norm is a measure of quality, and where it is none.
DEFAULT_POOLING, POOLING_WITHOUT_NORM = "norm_weighted", "mean"
# Rises with every change here that changes a descriptor.
_REVISION = 1

Floats = NDArray[np.float32]
Images = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class FaceModel:
    """A backbone and an aggregator, ready to use on `device`.

    Attributes:
        spec: what the backbone expects and gives.
        aggregator_name: of `coreset.AGGREGATORS`.
        about: one sentence on how sets are described, for the person who reads the result.
        flip: one of `features.flips.FLIP_CHOICES`.
        fingerprint: 64 hexadecimal digits; two models with the same one give the same descriptors. Covers
            the backbone's weights, its pixels, alignment, flip, and the aggregator's name, options and
            weights.
    """

    backbone: Backbone
    aggregator: nn.Module
    spec: BackboneSpec
    aggregator_name: str
    about: str
    flip: str
    device: torch.device
    batch_size: int
    fingerprint: str

    @property
    def embedding_size(self) -> int:
        """D of features, those of mirror images joined; descriptors are without the auxiliary values among
        them.
        """
        return self.spec.embedding_size * (2 if self.flip == "concat" else 1)

    def preprocessing(self, alignment: str) -> dict[str, str]:
        """`describe_preprocessing` of faces that were aligned so."""
        return _preprocessing(self.spec, self.flip, alignment)


@dataclass(frozen=True, eq=False)
class SetEmbedding:
    """One set as numbers.

    Attributes:
        embedding: (D,) float32, of length one; of trained aggregators without auxiliary values.
        norm: its length before, the quality of the set in the aggregator's own scale.
        picks: (k,) int64 chosen faces in the order of choice; empty where the aggregator chooses none.
        weights: (T,) float32 share of each face, summing to 1; None where the aggregator tells none.
    """

    embedding: Floats
    norm: float
    picks: NDArray[np.int64]
    weights: Floats | None


def load_model(
    weights: Path | str,
    aggregator_weights: Path | str | None = None,
    aggregator: str | None = None,
    *,
    arch: str | None = None,
    flip: str = "none",
    device: torch.device | str = "auto",
    batch_size: int | None = None,
    overrides: Overrides | None = None,
) -> FaceModel:
    """Opens weights: a checkpoint with its aggregator, or a bare backbone, which is given a pooling.

    Args:
        weights: whatever `weights.load_backbone` takes.
        aggregator_weights: a checkpoint with a trained aggregator; None looks for it in `weights`.
        aggregator: a name of `coreset.AGGREGATORS`; None is the trained one, else `DEFAULT_POOLING`, or
            `POOLING_WITHOUT_NORM` where the spec says that the norm is no quality.
        arch: of the backbone, where its file does not say it.
        flip: one of `features.flips.FLIP_CHOICES`.
        device: auto is a GPU if there is one.
        batch_size: faces at once; None decides by the device.
        overrides: coreset size and gamma in place of those that the file of the aggregator says.

    Raises:
        InputError: weights that cannot be read or do not fit each other, no such aggregator, flip or device.
    """
    place = chosen_device(device) if isinstance(device, str) else device
    faults = []
    if flip not in FLIP_CHOICES:
        faults.append(f"flip {flip!r}: expected {', '.join(FLIP_CHOICES)}.")
    if batch_size is not None and batch_size < 1:
        faults.append(f"batch_size {batch_size}: expected 1 or more.")
    if faults:
        raise InputError.from_faults(faults)
    backbone = load_backbone(weights, arch)
    if aggregator_weights is not None:
        prepare_for(backbone, [aggregator_weights])
    module, name, about = _chosen_aggregator(
        weights, aggregator_weights, aggregator, backbone.spec.norm_is_quality, overrides or Overrides()
    )
    size = backbone.spec.embedding_size * (2 if flip == "concat" else 1)
    check_fit(module, size, aggregator_weights or weights)
    warn_of_doubled_norms(flip, module, name)
    fingerprint = _fingerprint(backbone, flip, module, name)
    return FaceModel(
        # Up to twice as fast on a CPU.
        backbone=backbone.to(place, memory_format=torch.channels_last),  # type: ignore[call-overload]
        aggregator=module.to(place).eval(),
        spec=backbone.spec,
        aggregator_name=name,
        about=about,
        flip=flip,
        device=place,
        batch_size=batch_size or FACES_AT_ONCE[place.type],
        fingerprint=fingerprint,
    )


def embed_images(model: FaceModel, faces: Images) -> tuple[Floats, Floats]:
    """Embeds aligned faces, in batches.

    Args:
        model: from `load_model`.
        faces: (N, 112, 112, 3) uint8 RGB; N may be 0.

    Returns:
        features (N, D) float32 with unit rows, and their norms (N,) before.

    Raises:
        InputError: another shape or dtype, or features that are not finite.
    """
    return extract(
        np.asarray(faces),
        model.backbone,
        flip=flip_rule(model.flip),
        device=model.device,
        batch_size=model.batch_size,
    )


def embed_set(model: FaceModel, faces: Images) -> SetEmbedding:
    """Aligned faces of one person, (T, 112, 112, 3) uint8 RGB, to one descriptor.

    Raises:
        InputError: no face, or as `embed_images`.
    """
    return describe_features(model, *embed_images(model, faces))


def describe_features(
    model: FaceModel, features: Floats, norms: Floats, media: NDArray[np.int64] | None = None
) -> SetEmbedding:
    """Features of one set to one descriptor.

    Args:
        model: from `load_model`.
        features: (T, D) float32, unit rows, T at least 1.
        norms: (T,).
        media: (T,) number of the photo or video that each face is from; None: each from a photo of its own.

    Raises:
        InputError: no face, or shapes that do not fit.
    """
    if len(features) == 0:
        raise InputError("a set without any face has no descriptor. Leave it out, or give it photos.")
    numbers = np.arange(len(features)) if media is None else media
    sets = FaceSets(
        torch.from_numpy(np.ascontiguousarray(features, np.float32)),
        torch.from_numpy(np.ascontiguousarray(norms, np.float32)),
        torch.tensor([0, len(features)]),
        torch.from_numpy(np.ascontiguousarray(numbers, np.int64)),
    )
    return describe_batch(model, sets)[0]


@torch.inference_mode()
def describe_batch(model: FaceModel, sets: FaceSets) -> list[SetEmbedding]:
    """Descriptors of several sets at once, in their order. Raises InputError where one is not finite."""
    found = model.aggregator(sets.to(model.device)).checked()
    weights = None if found.weights is None else found.weights.cpu().float().numpy()
    bounds = sets.offsets.tolist()
    described = []
    columns = (found.embedding.cpu().float().numpy(), found.norm.cpu().numpy(), found.picks.cpu().numpy())
    for number, (embedding, norm, picks) in enumerate(zip(*columns, strict=True)):
        share = None if weights is None else weights[bounds[number] : bounds[number + 1]]
        described.append(SetEmbedding(embedding, float(norm), picks[picks >= 0], share))
    return described


def _chosen_aggregator(
    weights: Path | str,
    aggregator_weights: Path | str | None,
    name: str | None,
    norm_is_quality: bool | None,
    overrides: Overrides,
) -> tuple[nn.Module, str, str]:
    """The aggregator, its name, and a sentence on where it is from."""
    source = aggregator_weights or weights
    needed = aggregator_weights is not None or name not in AGGREGATORS or requires_training(name)
    trained = load_aggregator(source, overrides) if needed else None
    own = next((key for key, kind in AGGREGATORS.items() if type(trained) is kind), None)
    if aggregator_weights is not None and own is None:
        raise InputError(f"{aggregator_weights}: there is no aggregator in it. Give a coreset checkpoint.")
    wanted = name or own or (DEFAULT_POOLING if norm_is_quality else POOLING_WITHOUT_NORM)
    if wanted == own and trained is not None:
        overrides.check_effect([trained])
        return trained, wanted, f"Sets are described by the trained aggregator '{own}' of {_short(source)}."
    if aggregator_weights is not None:
        raise InputError(f"{aggregator_weights}: holds the aggregator '{own}', not '{wanted}'; ask for one.")
    if wanted in AGGREGATORS and requires_training(wanted):
        raise InputError(
            f"aggregator {wanted}: it has to be trained, and {source} holds {own or 'none'}. Give a "
            "checkpoint with a trained one (--aggregator_weights), or choose a pooling such as norm_weighted."
        )
    reason = (
        "as asked for"
        if name
        else "as the weights hold a backbone alone"
        if norm_is_quality
        else "as the weights hold a backbone alone, whose norm is no measure of quality"
        if norm_is_quality is False
        else "as the weights hold a backbone alone; whether their norm is a quality was never measured"
    )
    pooling = build_aggregator(wanted, overrides.options_of(wanted))
    overrides.check_effect([pooling])
    return pooling, wanted, f"Sets are described by the pooling '{wanted}', {reason}."


def _short(source: Path | str) -> str:
    """A path by its last two parts: reports are passed on, and folders of a machine are nobody's business."""
    return "/".join(Path(source).parts[-2:]) if Path(source).exists() else str(source)


def _preprocessing(spec: BackboneSpec, flip: str, alignment: str) -> dict[str, str]:
    return describe_preprocessing(spec, alignment=alignment, flip=flip_rule(flip), precision="32")


def _fingerprint(backbone: Backbone, flip: str, aggregator: nn.Module, name: str) -> str:
    # Options are read from the modules: a checkpoint of somebody else's does not tell them.
    options = {
        f"{place}.{key}": value
        for place, module in aggregator.named_modules()
        if type(module).__module__.split(".")[0] == "coreset"
        for key, value in vars(module).items()
        if isinstance(value, (bool, int, float, str)) and not key.startswith("_") and key != "training"
    }
    parts = {
        "revision": _REVISION,
        "backbone": weights_digest(backbone),
        **_preprocessing(backbone.spec, flip, ALIGNMENT["alignment"]),
        **ALIGNMENT,
        "aggregator": name,
        "options": options,
        "aggregator_weights": weights_digest(aggregator),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

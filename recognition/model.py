"""A face model: aligned faces to features, and the features of a set to one descriptor."""

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
from features.flips import FLIP_CHOICES, auxiliary_size_of, flip_rule, fused_size, warn_of_doubled_norms
from features.options import FACES_AT_ONCE
from net import Backbone
from photos.alignment import ALIGNMENT
from recognition.records import SetEmbedding
from runtime.command import resolve_device
from runtime.errors import InputError
from weights import (
    Overrides,
    WeightFile,
    check_feature_size,
    default_pooling,
    load_backbone,
    load_stored_aggregator,
    open_weights,
    prepare_for,
    weights_digest,
)

# Galleries and calibrations keep fingerprints, so options are digested under their first names.
_FORMER_OPTIONS = {"auxiliary_size": "context_size"}
# Incremented with every change of this file that changes a descriptor.
_REVISION = 1

Floats = NDArray[np.float32]
Images = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class FaceModel:
    """A backbone and an aggregator in evaluation mode on `device`.

    Attributes:
        spec: of the backbone.
        aggregator_name: of `coreset.AGGREGATORS`.
        about: one sentence on how sets are aggregated, for reports.
        flip: one of `features.flips.FLIP_CHOICES`.
        batch_size: faces per batch.
        fingerprint: 64 hexadecimal digits that identify the descriptors: a digest of the backbone's weights,
            preprocessing, alignment, flip rule, and the aggregator's name, options and weights.
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
        """Values of a row, doubled by flip rule 'concat'; descriptors have no auxiliary features."""
        return fused_size(self.spec.embedding_size, self.flip)

    @property
    def auxiliary_size(self) -> int:
        """Number of auxiliary features at the end of each row; 0 with flip rule 'concat'."""
        return auxiliary_size_of(self.spec.auxiliary_size, self.flip)

    def preprocessing(self, alignment: str) -> dict[str, str]:
        """`describe_preprocessing` of faces with this alignment."""
        return _preprocessing(self.spec, self.flip, alignment)


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
    """Load a backbone and its aggregator.

    Args:
        weights: source of the backbone, as for `weights.load_backbone`.
        aggregator_weights: checkpoint with a trained aggregator; None looks for one in `weights`.
        aggregator: name of `coreset.AGGREGATORS`; None: the trained one if there is one, otherwise
            `weights.compatibility.default_pooling`.
        arch: architecture, if the file of the backbone does not state it.
        flip: one of `features.flips.FLIP_CHOICES`.
        device: 'auto' is a GPU if there is one.
        batch_size: faces per batch; None: by device.
        overrides: coreset size and gamma in place of the aggregator's stored values.

    Raises:
        InputError: weights that cannot be read or do not match; unknown aggregator, flip rule or device.
    """
    place = resolve_device(device) if isinstance(device, str) else device
    faults = []
    if flip not in FLIP_CHOICES:
        faults.append(f"flip {flip!r}: expected {', '.join(FLIP_CHOICES)}.")
    if batch_size is not None and batch_size < 1:
        faults.append(f"batch_size {batch_size}: expected 1 or more.")
    if faults:
        raise InputError.from_faults(faults)
    opened = open_weights(weights)
    opened_aggregator = None if aggregator_weights is None else open_weights(aggregator_weights)
    backbone = load_backbone(opened, arch)
    if opened_aggregator is not None:
        prepare_for(backbone, [opened_aggregator])
    module, name, about = _chosen_aggregator(
        opened, opened_aggregator, aggregator, backbone.spec, overrides or Overrides()
    )
    size = fused_size(backbone.spec.embedding_size, flip)
    auxiliary_size = auxiliary_size_of(backbone.spec.auxiliary_size, flip)
    check_feature_size(module, size, auxiliary_size, aggregator_weights or weights)
    warn_of_doubled_norms(flip, module, name)
    fingerprint = _fingerprint(backbone, flip, module, name)
    return FaceModel(
        # channels_last is up to twice as fast on a CPU.
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
    """Embed aligned faces.

    Args:
        model: from `load_model`.
        faces: (N, 112, 112, 3) uint8 RGB; N may be 0.

    Returns:
        Unit features (N, D) float32 and norms (N,) float32.

    Raises:
        InputError: wrong shape or dtype, or features that are not finite.
    """
    return extract(
        np.asarray(faces),
        model.backbone,
        flip=flip_rule(model.flip),
        device=model.device,
        batch_size=model.batch_size,
    )


def embed_set(model: FaceModel, faces: Images) -> SetEmbedding:
    """Embed a set of aligned faces, (T, 112, 112, 3) uint8 RGB, as one descriptor.

    Raises:
        InputError: no face, or as `embed_images`.
    """
    return aggregate_features(model, *embed_images(model, faces))


def aggregate_features(
    model: FaceModel, features: Floats, norms: Floats, media: NDArray[np.int64] | None = None
) -> SetEmbedding:
    """Aggregate the features of one set.

    Args:
        model: from `load_model`.
        features: (T, D) float32 unit rows, T >= 1.
        norms: (T,) float32.
        media: (T,) photo or video of each face; None: one photo per face.

    Raises:
        InputError: no face, or shapes that do not match.
    """
    if len(features) == 0:
        raise InputError("a set without faces has no descriptor. Remove it, or add photos.")
    numbers = np.arange(len(features)) if media is None else media
    sets = FaceSets.from_rows(
        torch.from_numpy(np.ascontiguousarray(features, np.float32)),
        torch.from_numpy(np.ascontiguousarray(norms, np.float32)),
        torch.tensor([0, len(features)]),
        model.auxiliary_size,
        media=torch.from_numpy(np.ascontiguousarray(numbers, np.int64)),
    )
    return aggregate_batch(model, sets)[0]


@torch.inference_mode()
def aggregate_batch(model: FaceModel, sets: FaceSets) -> list[SetEmbedding]:
    """Aggregate several sets, in order. Raises InputError if a descriptor is not finite."""
    found = model.aggregator(sets.to(model.device)).checked()
    columns = (found.embedding.cpu().float().numpy(), found.norm.cpu().numpy(), found.picks.cpu().numpy())
    weights: list[Floats] | list[None] = [None] * len(columns[0])
    if found.weights is not None:
        weights = np.split(found.weights.cpu().float().numpy(), sets.offsets[1:-1].tolist())
    return [
        SetEmbedding(embedding, float(norm), picks[picks >= 0], share)
        for embedding, norm, picks, share in zip(*columns, weights, strict=True)
    ]


def _chosen_aggregator(
    weights: WeightFile,
    aggregator_weights: WeightFile | None,
    name: str | None,
    spec: BackboneSpec,
    overrides: Overrides,
) -> tuple[nn.Module, str, str]:
    """The aggregator, its name, and a sentence about its source."""
    source = aggregator_weights or weights
    needed = aggregator_weights is not None or name not in AGGREGATORS or requires_training(name)
    trained = load_stored_aggregator(source, overrides) if needed else None
    own = None if trained is None else trained.name
    if aggregator_weights is not None and own is None:
        raise InputError(f"{aggregator_weights}: contains no aggregator. Expected a coreset checkpoint.")
    wanted = name or own or default_pooling(spec)
    if wanted == own and trained is not None:
        overrides.check_effect([trained.module])
        about = f"Sets are aggregated by the trained aggregator '{own}' of {_short(source.source)}."
        return trained.module, wanted, about
    if aggregator_weights is not None:
        raise InputError(
            f"{aggregator_weights}: contains the aggregator '{own}', not '{wanted}'. Correct one of the two."
        )
    if wanted in AGGREGATORS and requires_training(wanted):
        raise InputError(
            f"aggregator {wanted}: needs trained weights, and {source} contains {own or 'none'}. Give a "
            "checkpoint with trained ones (--aggregator_weights), or a pooling such as norm_weighted."
        )
    reason = (
        "as requested"
        if name
        else "as the weights contain a backbone only"
        if spec.norm_is_quality
        else "as the weights contain a backbone only, whose norm does not measure quality"
        if spec.norm_is_quality is False
        else "as the weights contain a backbone only, and it was not measured whether its norm is a quality"
    )
    pooling = build_aggregator(wanted, overrides.options_of(wanted))
    overrides.check_effect([pooling])
    return pooling, wanted, f"Sets are aggregated by the pooling '{wanted}', {reason}."


def _short(source: Path | str) -> str:
    """The last two parts of a path: reports are shared, and should not reveal the machine's folders."""
    return "/".join(Path(source).parts[-2:]) if Path(source).exists() else str(source)


def _preprocessing(spec: BackboneSpec, flip: str, alignment: str) -> dict[str, str]:
    return describe_preprocessing(spec, alignment=alignment, flip=flip_rule(flip), precision="32")


def _fingerprint(backbone: Backbone, flip: str, aggregator: nn.Module, name: str) -> str:
    # Aggregators that read no auxiliary features pooled them, too, before revision 2.
    ignored = backbone.spec.auxiliary_size > 0 and not getattr(aggregator, "auxiliary_size", 0)
    parts = {
        "revision": _REVISION + ignored,
        "backbone": weights_digest(backbone),
        **_preprocessing(backbone.spec, flip, ALIGNMENT["alignment"]),
        **ALIGNMENT,
        "aggregator": name,
        "options": fingerprint_options(aggregator),
        "aggregator_weights": weights_digest(aggregator),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def fingerprint_options(aggregator: nn.Module) -> dict[str, bool | int | float | str]:
    """Options in the fingerprint, read from the modules as published checkpoints do not state them."""
    return {
        f"{place}.{_FORMER_OPTIONS.get(key, key)}": value
        for place, module in aggregator.named_modules()
        if type(module).__module__.split(".")[0] == "coreset"
        for key, value in vars(module).items()
        if isinstance(value, (bool, int, float, str)) and not key.startswith("_") and key != "training"
    }

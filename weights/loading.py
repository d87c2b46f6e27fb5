"""Open weights: a backbone, an aggregator, or both from one reading of the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from backbones.spec import BackboneSpec
from net import BACKBONES, Backbone, build_backbone
from runtime.errors import InputError, valid_names
from weights.aggregators import StoredAggregator, stored_aggregator
from weights.fitting import check_features, load_into
from weights.layouts import recognise
from weights.onnx_backbone import GRAPH, OnnxBackbone, read_onnx
from weights.overrides import AS_STORED, Overrides
from weights.reading import Stored, read_stored
from weights.sources import resolve
from weights.specs import ONNX, spec_in

# Fields of a spec that change every feature.
PIXEL_FIELDS = ("channel_order", "mean", "std", "input_size", "alignment")


@dataclass(frozen=True, eq=False)
class WeightFile:
    """A source of weights and its file, which is read and checked once, when it is first needed.

    Attributes:
        source: as the user gave it.
        path: its file, which need not exist.
        allow_pickle: see `weights.reading.read_checkpoint`.
    """

    source: Path | str
    path: Path
    allow_pickle: bool = False

    def __str__(self) -> str:
        return str(self.source)

    @cached_property
    def stored(self) -> Stored | None:
        """What the file holds; None for an ONNX graph. InputError as `weights.reading.read_stored`."""
        if self.path.suffix == ".onnx":
            return None
        return read_stored(self.path, allow_pickle=self.allow_pickle)


Source = Path | str | WeightFile


@dataclass(frozen=True, eq=False)
class Loaded:
    """A backbone, and the name of its file's layout for messages."""

    backbone: Backbone
    kind: str


def open_weights(source: Source, *, allow_pickle: bool = False) -> WeightFile:
    """Resolve a source; what takes a source takes the result too, without reading the file again.

    Raises:
        InputError: as `weights.resolve`.
    """
    return source if isinstance(source, WeightFile) else WeightFile(source, resolve(source), allow_pickle)


def load_backbone(source: Source, arch: str | None = None, *, channel_order: str | None = None) -> Backbone:
    """Load a backbone on the CPU, in float32 and evaluation mode.

    Reads plain state dicts, Lightning checkpoints of AdaFace, FaceCoresetNet and this project (their heads
    and aggregators are skipped), CVLFace's files, arcface_torch's IResNets and MobileFaceNet under MXNet's
    names, all below any prefix; `.safetensors` of this project; and ONNX graphs. The architecture is taken
    from the file where it states one, else from the shapes; the spec is the file's own, else that of its
    layout. `channel_order` overrides both.

    Raises:
        InputError: no such source, no weights, a pickle that needs more than tensors, another architecture
            than `arch`, or any missing, unexpected, mis-shaped or non-finite entry.
    """
    return load_weights(source, arch, channel_order=channel_order).backbone


def load_weights(
    source: Source,
    arch: str | None = None,
    *,
    channel_order: str | None = None,
    allow_pickle: bool = False,
    stated: Mapping[str, Any] | None = None,
) -> Loaded:
    """`load_backbone`, and the layout that was recognised.

    `stated`: fields of the spec that override the file's.

    Raises:
        InputError: as `load_backbone`.
    """
    if arch is not None and arch not in BACKBONES:
        raise InputError(f"{arch!r} is not a backbone. {valid_names(arch, BACKBONES)}")
    opened = open_weights(source, allow_pickle=allow_pickle)
    path, stored = opened.path, opened.stored
    if stored is None:
        graph = read_onnx(path, arch, channel_order, stated)
        check_features(path, graph)
        return Loaded(graph, "ONNX graph")
    found = recognise(path, stored.state)
    spec = spec_in(path, stored.backbone_spec)
    if spec is not None and spec.name == ONNX:
        if set(found.state) != {GRAPH}:
            raise InputError(f"{path}: expected an ONNX graph, found {', '.join(found.state)}.")
        backbone: Backbone = OnnxBackbone(spec, found.state[GRAPH].clone()).eval()
    else:
        backbone = load_into(path, found.state, arch, spec)
    changes = {} if spec else dict(found.spec)
    changes |= stated or {}
    if channel_order is not None:
        changes["channel_order"] = channel_order
    side = changes.get("input_size", backbone.spec.input_size)
    if side != backbone.spec.input_size and backbone.spec.name != ONNX:
        raise InputError(
            f"--input_size {side}: {path} holds {backbone.spec.name}, which takes {backbone.spec.input_size} "
            "pixels. Remove it."
        )
    if any(changes.get(name) not in (None, getattr(backbone.spec, name)) for name in PIXEL_FIELDS):
        # Measured with other pixels.
        changes = {"centre": None, "cosine_statistics": None} | changes
    backbone.spec = replace(backbone.spec, **changes)
    check_features(path, backbone)
    return Loaded(backbone, "ours" if spec else found.kind)


def load_aggregator(source: Source, overrides: Overrides = AS_STORED) -> nn.Module | None:
    """The module of `load_stored_aggregator`."""
    found = load_stored_aggregator(source, overrides)
    return None if found is None else found.module


def load_stored_aggregator(source: Source, overrides: Overrides = AS_STORED) -> StoredAggregator | None:
    """Load the aggregator of a file with its name and options, on the CPU; None where there is none.

    Reads weights of this project and published FaceCoresetNet checkpoints. Coreset size and gamma are those
    of the `overrides`, else those that the file states (a published checkpoint among its hyper-parameters).

    Raises:
        InputError: as `load_backbone`, an aggregator that does not match what the file says of it, or a
            published one without a coreset size or gamma.
    """
    opened = open_weights(source)
    if not opened.path.is_file() or opened.stored is None:
        return None
    return stored_aggregator(opened.stored, overrides)


def empty_backbone(spec: BackboneSpec) -> Backbone:
    """Build a backbone of a spec, for a checkpoint's weights to be loaded into.

    Raises:
        InputError: the spec names an unknown backbone.
    """
    backbone = OnnxBackbone(spec) if spec.name == ONNX else build_backbone(spec.name)
    backbone.spec = spec
    return backbone

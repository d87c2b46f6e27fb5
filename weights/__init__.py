"""Every published weight -> a backbone (and an aggregator) that is ready to use, mapped strictly; and back.

A source is a file, a name of the catalogue, or hf://owner/repo[@revision][/file]. Nothing is unpickled but
tensors and plain containers, and whatever does not fit exactly is an InputError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from backbones.spec import BackboneSpec
from net import BACKBONES, Backbone, build_backbone
from runtime.errors import InputError
from weights.aggregators import stored_aggregator
from weights.catalogue import CATALOGUE, Entry
from weights.digest import name_digest, name_digests, weights_digest
from weights.fitting import check_features, fitted
from weights.layouts import recognise
from weights.onnx_backbone import GRAPH, OnnxBackbone, read_onnx
from weights.overrides import Overrides
from weights.reading import BACKBONE_DIGEST, TRAINED_SUBJECTS, read_checkpoint, read_stored
from weights.sources import licence_of, resolve, source_name, weights_sha256
from weights.specs import ONNX, spec_in
from weights.storing import save_aggregator, save_backbone, save_model

__all__ = [
    "CATALOGUE",
    "TRAINED_SUBJECTS",
    "Entry",
    "Loaded",
    "OnnxBackbone",
    "Overrides",
    "backbone_digest_beside",
    "check_fit",
    "empty_backbone",
    "licence_of",
    "load_aggregator",
    "load_backbone",
    "load_weights",
    "name_digest",
    "name_digests",
    "prepare_for",
    "read_checkpoint",
    "resolve",
    "save_aggregator",
    "save_backbone",
    "save_model",
    "source_name",
    "trained_spec",
    "trained_subjects",
    "weights_digest",
    "weights_sha256",
]


# Fields of a spec that change every feature.
_OF_PIXELS = ("channel_order", "mean", "std", "input_size", "alignment")


@dataclass(frozen=True, eq=False)
class Loaded:
    """A backbone, and whose layout its file has, for a person."""

    backbone: Backbone
    kind: str


def load_backbone(
    source: Path | str, arch: str | None = None, *, channel_order: str | None = None
) -> Backbone:
    """A backbone with the weights of a source, on the CPU, in float32 and evaluation mode.

    Takes plain state dicts, Lightning checkpoints of AdaFace and FaceCoresetNet and our own (heads and
    aggregators in them are passed over), CVLFace's files, arcface_torch's IResNets, MobileFaceNet under
    MXNet's names, all below any prefix; our `.safetensors`; and ONNX graphs. The architecture is taken from
    the file where it says one, else from the shapes; `spec` is the file's own where it holds one, else that
    of its kind. `channel_order` overrules both.

    Raises:
        InputError: no such source, no weights, a pickle that needs more than tensors, another architecture
            than `arch`, or any missing, unexpected, mis-shaped or non-finite entry.
    """
    return load_weights(source, arch, channel_order=channel_order).backbone


def load_weights(
    source: Path | str,
    arch: str | None = None,
    *,
    channel_order: str | None = None,
    allow_pickle: bool = False,
    stated: Mapping[str, Any] | None = None,
) -> Loaded:
    """`load_backbone`, and what was recognised; `allow_pickle`: see `read_checkpoint`.

    `stated`: fields of the spec that overrule what the file and its kind say.

    Raises:
        InputError: as `load_backbone`.
    """
    if arch is not None and arch not in BACKBONES:
        raise InputError(f"{arch!r} is no backbone. There are: {', '.join(BACKBONES)}.")
    path = resolve(source)
    if path.suffix == ".onnx":
        graph = read_onnx(path, arch, channel_order, stated)
        check_features(path, graph)
        return Loaded(graph, "ONNX graph")
    stored = read_stored(path, allow_pickle=allow_pickle)
    found = recognise(path, stored.state)
    spec = spec_in(path, stored.backbone_spec)
    if spec is not None and spec.name == ONNX:
        if set(found.state) != {GRAPH}:
            raise InputError(f"{path}: expected an ONNX graph, found {', '.join(found.state)}.")
        backbone: Backbone = OnnxBackbone(spec, found.state[GRAPH].clone()).eval()
    else:
        backbone = fitted(path, found.state, arch, spec)
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
    if any(changes.get(name) not in (None, getattr(backbone.spec, name)) for name in _OF_PIXELS):
        # Measured with other pixels.
        changes = {"centre": None, "cosine_statistics": None} | changes
    backbone.spec = replace(backbone.spec, **changes)
    check_features(path, backbone)
    return Loaded(backbone, "ours" if spec else found.kind)


def load_aggregator(source: Path | str, overrides: Overrides | None = None) -> nn.Module | None:
    """The aggregator in weights of ours or in a published FaceCoresetNet checkpoint; None where none is.

    On the CPU, in evaluation mode. Coreset size and gamma are those of the `overrides`, else those that the
    file says (a published checkpoint among its hyper-parameters).

    Raises:
        InputError: as `load_backbone`, an aggregator that does not fit what the file says of it, or a
            published one whose coreset size or gamma nothing says.
    """
    path = resolve(source)
    if path.suffix == ".onnx" or not path.is_file():
        return None
    found = stored_aggregator(read_stored(path), overrides)
    return None if found is None else found.module


def backbone_digest_beside(source: Path | str) -> str | None:
    """Digest of the backbone whose features an aggregator's file is for; None where the file does not say."""
    stored = read_stored(resolve(source))
    if BACKBONE_DIGEST in stored.about:
        return stored.about[BACKBONE_DIGEST]
    try:
        return weights_digest(load_backbone(source))
    except InputError:
        return None


def trained_subjects(source: Path | str) -> frozenset[str] | None:
    """Digests (`name_digests`) of the people an aggregator was trained with; None where nothing says it."""
    path = resolve(source)
    text = None if path.suffix == ".onnx" else read_stored(path).about.get(TRAINED_SUBJECTS)
    return None if text is None else frozenset(text.split())


def trained_spec(source: Path | str) -> BackboneSpec | None:
    """The spec of the backbone whose features an aggregator was trained on; None where nothing says it."""
    return _spec_and_digest(source, None)[0]


def _spec_and_digest(source: Path | str, backbone: Backbone | None) -> tuple[BackboneSpec | None, str | None]:
    """What an aggregator's file says of its training: the backbone's spec and digest.

    One that was trained from features has no spec; it has that of `backbone`, but for what it does say.
    """
    path = resolve(source)
    if path.suffix == ".onnx" or not path.is_file():
        return None, None
    stored = read_stored(path)
    spec, digest = spec_in(path, stored.backbone_spec), stored.about.get(BACKBONE_DIGEST)
    if spec is None and backbone is not None and stored.aggregator is not None:
        options, spec = stored.aggregator[1], backbone.spec
        if isinstance(options, Mapping) and isinstance(size := options.get("auxiliary_size", 0), int):
            spec = spec.with_auxiliary(size)
        if isinstance(light := stored.features.get("illumination_normalisation"), str):
            spec = replace(spec, normalises_illumination=light != "none")
            if "centre" not in stored.features:
                # A store of views, whose features were taken as they are.
                spec = spec.with_features_of(replace(spec, centre=None, cosine_statistics=None))
    return spec, digest


def check_fit(aggregator: nn.Module, size: int, source: Path | str) -> None:
    """Raises InputError where the aggregator of that source takes features of another size."""
    wanted = getattr(aggregator, "embedding_size", size)
    if wanted != size:
        raise InputError(
            f"{source}: its aggregator takes features of {wanted} values, but the backbone gives {size}. Use "
            "the backbone that it was trained with, and no flip rule but its own."
        )


def prepare_for(backbone: Backbone, sources: Sequence[Path | str]) -> None:
    """Has a backbone give features as these aggregators' training had them, in place: light, auxiliary
    values, centre.

    Files that do not say what they were trained on are believed to fit.

    Raises:
        InputError: an aggregator is for other weights, two of them are for other preparations, or the
            backbone cannot be prepared so.
    """
    wanted: dict[tuple[bool, int, tuple[float, ...] | None], tuple[Path | str, BackboneSpec]] = {}
    for source in sources:
        spec, digest = _spec_and_digest(source, backbone)
        if spec is None:
            continue
        wanted.setdefault((spec.normalises_illumination, spec.auxiliary_size, spec.centre), (source, spec))
        if digest is not None and digest != (found := weights_digest(backbone)):
            raise InputError(
                f"{source}: its aggregator was trained on features of other {backbone.spec.name} weights "
                f"({digest[:16]}, not {found[:16]}). Give those, or train one for yours."
            )
    if len(wanted) > 1:
        told = [
            f"{source} is for faces {'levelled in light' if spec.normalises_illumination else 'as they are'} "
            f"with {spec.auxiliary_size} auxiliary values and {'a' if spec.centre else 'no'} centre"
            for source, spec in wanted.values()
        ]
        raise InputError(f"{', '.join(told)}: give one at a time.")
    for source, spec in wanted.values():
        backbone.spec = replace(backbone.spec, normalises_illumination=spec.normalises_illumination)
        try:
            backbone.set_auxiliary(spec.auxiliary_size)
            backbone.spec = backbone.spec.with_features_of(spec)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None


def empty_backbone(spec: BackboneSpec) -> Backbone:
    """A backbone of that spec for a checkpoint's weights, which are loaded into it afterwards.

    Raises:
        InputError: there is no such backbone.
    """
    backbone = OnnxBackbone(spec) if spec.name == ONNX else build_backbone(spec.name)
    backbone.spec = spec
    return backbone

"""Backbone specs in files: plain values in a checkpoint, texts in metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from backbones.spec import BackboneSpec, with_current_names
from net import BACKBONES
from runtime.errors import InputError
from runtime.json_files import parse_json
from weights.reading import described

# Name of a backbone that is an ONNX graph.
ONNX = "onnx"


def spec_in(path: Path, stored: object) -> BackboneSpec | None:
    """Read the spec of a checkpoint (a dictionary of values) or of metadata (of texts); None for None.

    Fields that metadata lack are those of `BACKBONES`.

    Raises:
        InputError: invalid values, or an unknown backbone.
    """
    if stored is None:
        return None
    if not isinstance(stored, Mapping):
        raise InputError(f"{path}: backbone_spec must be a dictionary, found {described(stored)}.")
    stored = with_current_names(stored)
    values = _of_texts(path, stored) if "architecture" in stored else stored
    name = values.get("name")
    if not isinstance(name, str) or name not in (*BACKBONES, ONNX):
        raise InputError(f"{path}: has the backbone {name!r}, which is not one of {', '.join(BACKBONES)}.")
    try:
        spec = BackboneSpec.from_dict(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    built = BACKBONES.get(spec.name, spec)
    own = spec.with_auxiliary(0).embedding_size
    # The size of an ONNX graph is its own.
    if (own, spec.input_size) != (built.with_auxiliary(0).embedding_size, built.input_size):
        raise InputError(
            f"{path}: its {spec.name} has {own} values for {spec.input_size} pixels; "
            f"expected {built.embedding_size} values for {built.input_size} pixels, as {spec.name} is built."
        )
    return spec


def check_architecture(path: Path, spec: BackboneSpec, arch: str | None) -> None:
    """Raise InputError if another architecture than that of the file is asked for; None asks for none."""
    if arch not in (None, spec.name):
        raise InputError(f"{path}: holds {spec.name}, but {arch} was asked for. Ask for {spec.name} or none.")


def metadata_of(spec: BackboneSpec) -> dict[str, str]:
    """The spec as texts, the inverse of `spec_in`."""
    values = spec.to_dict()
    texts = {"architecture": str(values.pop("name"))}
    return texts | {key: _text(value) for key, value in values.items()}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _of_texts(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    name = metadata["architecture"]
    # Whether the norm of an ONNX graph is a quality is unknown.
    unknown = {"name": name, "norm_is_quality": None}
    values: dict[str, Any] = BACKBONES[name].to_dict() if name in BACKBONES else unknown
    try:
        if "scale" in metadata:
            values["std"] = 1 / float(metadata["scale"])
        for key in {field.name for field in fields(BackboneSpec)} & set(metadata) - {"name"}:
            stored = metadata[key]
            values[key] = (
                stored
                if key == "channel_order"
                else parse_json(stored, f"{path}: its metadata, {key}: expected a value")
            )
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise InputError(f"{path}: its metadata are invalid ({error}): {dict(metadata)}.") from error
    return values

"""Backbones and whole models -> one .safetensors file in our form, with all that using it again needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from net import Backbone
from runtime.errors import InputError
from runtime.files import atomic_write, require_free_space
from weights.digest import CHECKSUM, FORM, VERSION, content_checksum, weights_digest
from weights.reading import BACKBONE_DIGEST
from weights.specs import metadata_of


def save_backbone(path: Path, backbone: Backbone) -> None:
    """Writes weights and spec as `.safetensors`, whole or not at all; `load_backbone` reads them back.

    Raises:
        InputError: another suffix, or too little room on the disk.
    """
    save_model(path, backbone)


def save_model(
    path: Path,
    backbone: Backbone,
    aggregator: tuple[str, Mapping[str, Any], nn.Module] | None = None,
    about: Mapping[str, str] | None = None,
) -> None:
    """Writes a backbone, and an aggregator (its name, options and module) where there is one, into one file.

    `about`: more metadata, such as source and licence.

    Raises:
        InputError: another suffix, or too little room on the disk.
    """
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: backbones are written as .safetensors; choose a name that ends in it.")
    metadata = dict(about or {}) | {"format": "pt", VERSION: FORM} | metadata_of(backbone.spec)
    state = _tensors(backbone, "model." if aggregator else "")
    if aggregator is not None:
        name, options, module = aggregator
        metadata |= {"aggregator_name": name, "aggregator_options": json.dumps(dict(options))}
        state |= _tensors(module, "aggregator.")
    _write(path, state, metadata)


def save_aggregator(
    path: Path,
    backbone: Backbone,
    aggregator: tuple[str, Mapping[str, Any], nn.Module],
    about: Mapping[str, str] | None = None,
) -> None:
    """Writes an aggregator alone, as float16, with what says which backbone's features it is for.

    That is the backbone's spec and the digest of its weights; `weights.prepare_for` reads them.

    Raises:
        InputError: another suffix, or too little room on the disk.
    """
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: aggregators are written as .safetensors; choose a name that ends in it.")
    name, options, module = aggregator
    metadata = dict(about or {}) | {"format": "pt", VERSION: FORM} | metadata_of(backbone.spec)
    metadata |= {"aggregator_name": name, "aggregator_options": json.dumps(dict(options))}
    metadata[BACKBONE_DIGEST] = weights_digest(backbone)
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in _tensors(module, "aggregator.").items()
    }
    _write(path, state, metadata)


def _write(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    # It may hold names of files that are not UTF-8.
    metadata = {key: value.encode(errors="backslashreplace").decode() for key, value in metadata.items()}
    require_free_space(path.parent, sum(value.nbytes for value in state.values()))
    atomic_write(path, save(state, metadata | {CHECKSUM: content_checksum(state, metadata)}))


def _tensors(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    state = module.state_dict()
    return {f"{prefix}{key}": value.detach().cpu().contiguous() for key, value in state.items()}

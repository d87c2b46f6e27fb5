"""Write a backbone, an aggregator or both as one .safetensors file, with all that using it again needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from net import Backbone
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.output_checks import require_free_space
from weights.aggregators import StoredAggregator
from weights.digest import CHECKSUM, FORM, VERSION, content_checksum, weights_digest
from weights.reading import BACKBONE_DIGEST
from weights.specs import metadata_of


def save_weights(
    path: Path,
    backbone: Backbone,
    aggregator: StoredAggregator | None = None,
    about: Mapping[str, str] | None = None,
    *,
    aggregator_alone: bool = False,
) -> None:
    """Write weights and spec atomically; `load_backbone` and `load_aggregator` read them.

    Args:
        path: ends in .safetensors.
        backbone: its spec is written in any case.
        aggregator: with its name and options.
        about: more metadata, such as source and licence.
        aggregator_alone: leave the backbone's weights out; the aggregator is written as float16, with the
            digest of the backbone, which `weights.compatibility` compares.

    Raises:
        InputError: another suffix, or a full disk.
    """
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: weights are written as .safetensors; choose a name that ends in it.")
    metadata = dict(about or {}) | {"format": "pt", VERSION: FORM} | metadata_of(backbone.spec)
    state = {} if aggregator_alone else _tensors(backbone, "model." if aggregator else "")
    if aggregator is not None:
        metadata |= aggregator.metadata()
        state |= _tensors(aggregator.module, "aggregator.", half=aggregator_alone)
    if aggregator_alone:
        metadata[BACKBONE_DIGEST] = weights_digest(backbone)
    # It may hold names of files that are not UTF-8.
    metadata = {key: value.encode(errors="backslashreplace").decode() for key, value in metadata.items()}
    require_free_space(path.parent, sum(value.nbytes for value in state.values()))
    atomic_write(path, save(state, metadata | {CHECKSUM: content_checksum(state, metadata)}))


def _tensors(module: nn.Module, prefix: str, *, half: bool = False) -> dict[str, Tensor]:
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    return {
        f"{prefix}{key}": value.half() if half and value.is_floating_point() else value
        for key, value in state.items()
    }

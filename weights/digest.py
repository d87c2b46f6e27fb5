"""What a backbone or an aggregator is, whatever file it came from; and whom it was trained with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from data.sources.subject_names import normal

# Metadata of a file: its form, and `content_checksum` of the rest, which form 1 has not.
VERSION, FORM = "version", "2"
CHECKSUM = "content_sha256"


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over names and values of the weights, the same in whatever file they stand."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        # Counts training steps, which no feature depends on.
        if not key.endswith("num_batches_tracked"):
            _update(digest, key, value)
    return digest.hexdigest()


def content_checksum(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over all tensors and metadata of a file, so that a flipped bit in either is noticed."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for key, value in sorted(state.items()):
        _update(digest, key, value)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, key: str, value: Tensor) -> None:
    digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def name_digests(names: Iterable[str]) -> dict[str, str]:
    """Digest -> name, of people: files say by 48 bits whom they are of, and need not carry the names.

    Who knows a name can ask for it. Names that are numbers, as packs have them, mean somebody else in every
    data set and are left out. Names count in the form in which they are compared
    (`data.sources.subject_names`).
    """
    return {name_digest(normal(name)): name for name in names if not name.isdecimal()}


def name_digest(name: str) -> str:
    """48 bits of a name as it is written."""
    return hashlib.blake2b(os.fsencode(name), digest_size=6).hexdigest()

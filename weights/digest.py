"""Digests of weights, of files and of subject names."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from data.sources.subject_names import normal

# Metadata of a file: its format, and `content_checksum` of the rest, which format 1 lacks.
VERSION, FORM = "version", "2"
CHECKSUM = "content_sha256"


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over names and values of the weights, independent of their file."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        # A count of training steps does not affect features.
        if not key.endswith("num_batches_tracked"):
            _update(digest, key, value)
    return digest.hexdigest()


def content_checksum(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over all tensors and metadata of a file."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for key, value in sorted(state.items()):
        _update(digest, key, value)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, key: str, value: Tensor) -> None:
    digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def name_digests(names: Iterable[str]) -> dict[str, str]:
    """Digest -> name. Files store 48 bits for each subject in place of names.

    Names that are numbers are skipped, since they denote other subjects in every dataset. Names are
    normalised as for comparison (`data.sources.subject_names`).
    """
    return {name_digest(normal(name)): name for name in names if not name.isdecimal()}


def name_digest(name: str) -> str:
    """48 bits of a name, not normalised, in hexadecimal digits."""
    return hashlib.blake2b(os.fsencode(name), digest_size=6).hexdigest()

"""What a backbone or an aggregator is, whatever file it came from; and whom it was trained with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

import torch
from torch import nn

from data.names import normal


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over names and values of the weights, the same in whatever file they stand."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        # Counts training steps, which no feature depends on.
        if not key.endswith("num_batches_tracked"):
            digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def name_digests(names: Iterable[str]) -> dict[str, str]:
    """Digest -> name, of people: files say by 48 bits whom they are of, and need not carry the names.

    Who knows a name can ask for it. Names that are numbers, as packs have them, mean somebody else in every
    data set and are left out. Names count in the form in which they are compared (`data.names`).
    """
    return {name_digest(normal(name)): name for name in names if not name.isdecimal()}


def name_digest(name: str) -> str:
    """48 bits of a name as it is written."""
    return hashlib.blake2b(os.fsencode(name), digest_size=6).hexdigest()

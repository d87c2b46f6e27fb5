"""What a backbone or an aggregator is, whatever file it came from."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over names and values of the weights, the same in whatever file they stand."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        # Counts training steps, which no feature depends on.
        if not key.endswith("num_batches_tracked"):
            digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

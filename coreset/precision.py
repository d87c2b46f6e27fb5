"""Precision of fragile computations: float32 or wider, whatever autocast and the inputs are."""

from __future__ import annotations

import torch
from torch import Tensor


def without_autocast(like: Tensor) -> torch.autocast:
    """Context that disables autocast on the device of `like`."""
    return torch.autocast(like.device.type, enabled=False)


def at_least_float32(values: Tensor) -> Tensor:
    """Half-precision types as float32; others unchanged."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values

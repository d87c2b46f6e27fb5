"""Batches of tensors that a DataLoader pins and that Lightning moves to a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

_Batch = TypeVar("_Batch", bound="TensorBatch")


@dataclass(frozen=True)
class TensorBatch:
    """Base of batches whose fields are tensors; other fields stay as they are."""

    def pin_memory(self: _Batch) -> _Batch:
        """Copy to pinned memory; called by DataLoader."""
        return self._each(Tensor.pin_memory)

    def to(self: _Batch, device: torch.device | str, non_blocking: bool = True) -> _Batch:
        """Copy to `device`; called by Lightning."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def _each(self: _Batch, change: Callable[[Tensor], Tensor]) -> _Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **changed)

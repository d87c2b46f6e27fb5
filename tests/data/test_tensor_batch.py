"""Batches are moved field by field."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.tensor_batch import TensorBatch


@dataclass(frozen=True)
class Batch(TensorBatch):
    values: Tensor
    names: list[str]


def test_tensors_move_and_other_fields_stay() -> None:
    batch = Batch(torch.arange(3.0), ["a"])
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    assert moved.values.device.type == "meta"
    assert moved.names is batch.names
    assert batch.values.device.type == "cpu"

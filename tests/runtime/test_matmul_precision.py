"""Selection and margin heads compute in full float32, whatever precision of products is set around them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from coreset.selection import select_faces
from head import build_head
from runtime.matmul_precision import GpuMode


class _Products(TorchDispatchMode):
    """Notes the precision that each matrix product of a block is made with."""

    def __init__(self) -> None:
        super().__init__()
        self.precisions: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(part in str(func) for part in ("mm", "matmul", "dot", "linear", "einsum")):
            self.precisions.append(torch.get_float32_matmul_precision())
        return func(*args, **(kwargs or {}))


@pytest.fixture
def fast() -> Iterator[None]:
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("name", ["adaface", "arcface", "cosface"])
def test_margin_heads_use_full_precision(name: str) -> None:
    head = build_head(name, 8, 5)
    embedding = F.normalize(torch.randn(4, 8), dim=1).requires_grad_()
    with _Products() as seen:
        head(embedding, torch.rand(4, 1) + 9, torch.arange(4)).sum().backward()
    assert seen.precisions == ["highest"] * 3
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.usefixtures("fast")
def test_selection_uses_no_tf32_product() -> None:
    features = F.normalize(torch.randn(3, 20, 16), dim=2)
    with _Products() as seen:
        select_faces(features, torch.rand(3, 20) + 1, coreset_size=4, gamma=torch.tensor(0.5))
    assert seen.precisions == []


def test_tf32_is_used_in_the_backbone_stage() -> None:
    assert GpuMode.of_training("backbone", gpu=True) == GpuMode("high", cudnn_benchmark=True)
    for stage, gpu in (("coreset", True), ("coreset", False), ("backbone", False)):
        assert GpuMode.of_training(stage, gpu=gpu) == GpuMode("highest", cudnn_benchmark=False)

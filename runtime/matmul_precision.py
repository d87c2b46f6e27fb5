"""Precision of float32 matrix products on a GPU: full, or TF32 (10-bit mantissa, faster).

TF32 suffices for a network, whose convolutions PyTorch computes in it by default. It does not for margins,
contrastive losses and distances, which amplify its error of 1e-3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

EXACT, FAST = "highest", "high"


@dataclass(frozen=True)
class GpuMode:
    """PyTorch's settings `float32_matmul_precision` and `cudnn_benchmark` for a run."""

    float32_matmul_precision: str = EXACT
    cudnn_benchmark: bool = False

    @classmethod
    def of_training(cls, stage: str, *, gpu: bool) -> GpuMode:
        """TF32 and cuDNN benchmarking for the backbone stage on a GPU only.

        There the network dominates, batches have one shape, and the margin head uses full precision itself.
        In the coreset stage aggregators and contrastive losses need full float32, and batches differ in their
        number of faces, which would restart cuDNN's benchmark.
        """
        fast = gpu and stage == "backbone"
        return cls(FAST if fast else EXACT, fast)


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Set the float32 matmul precision in the block (not for a backward pass that runs outside of it)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

"""How a GPU multiplies float32 matrices: in full, or in TF32, which has 10 bits of a factor and is faster.

TF32 is good enough for a network, whose convolutions PyTorch computes in it anyway. It is not for what is
compared or selected: margins, contrasts and distances scale its error of 1e-3 up.
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
        """TF32, and cuDNN's fastest algorithm, for the backbone stage on a GPU alone.

        There the network is nearly all of a step, batches have one shape, and the margin head multiplies in
        full by itself. In the coreset stage aggregators and contrast are trained, in full float32, and each
        batch has another number of faces, for which cuDNN would try its algorithms anew.
        """
        fast = gpu and stage == "backbone"
        return cls(FAST if fast else EXACT, fast)


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Within, float32 matrices are multiplied so, whatever is set outside; not in a backward pass outside."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

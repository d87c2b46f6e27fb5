"""Reduce and gather over the processes of distributed training; the identity with one process.

These are collectives: all processes call them, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

Value = TypeVar("Value")


def is_distributed() -> bool:
    """Whether a process group of several processes is initialized."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank_and_world_size() -> tuple[int, int]:
    """Rank of this process and world size."""
    return (distributed.get_rank(), distributed.get_world_size()) if is_distributed() else (0, 1)


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum over processes of values of one shape, in place, without gradient."""
    if is_distributed():
        distributed.all_reduce(values)
    return values


def gather_rows(rows: Tensor) -> Tensor:
    """Gather rows (n, ...) of all W processes to (W n, ...), in the order of ranks, with gradients.

    The gradient of a process's rows is summed over all processes' losses. If these are means over local
    batches, averaging gradients over processes (DistributedDataParallel) gives the gradient of the global
    mean.
    """
    if not is_distributed():
        return rows
    gathered: Tensor = _GatheredRows.apply(rows)
    return gathered


class _GatheredRows(torch.autograd.Function):
    # torch.distributed.nn.functional.all_gather is deprecated in favour of a private module.
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        rank, processes = rank_and_world_size()
        return all_reduce_sum(gradient.clone()).chunk(processes)[rank]


def gather_union(part: Mapping[int, Value]) -> dict[int, Value]:
    """Union of the processes' mappings of picklable values; higher ranks take precedence."""
    if not is_distributed():
        return dict(part)
    parts: list[Mapping[int, Value]] = [{} for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(parts, part)
    return {number: value for each in parts for number, value in each.items()}


def with_gradient_for(parameters: Iterable[Tensor], rows: Tensor) -> Tensor:
    """Return `rows` unchanged, and give every trainable parameter a gradient, zero at least.

    For parameters that a batch may not use: DistributedDataParallel waits for all gradients on all processes.
    The zero gradient follows the gradient of `rows`, so collectives keep the same order on all processes, and
    does not read the parameters (infinity times 0 would be NaN).
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    passed: Tensor = _WithGradientFor.apply(rows, *trained)
    return passed


class _WithGradientFor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, *parameters: Tensor) -> Tensor:
        ctx.forms = [(parameter.shape, parameter.dtype, parameter.device) for parameter in parameters]
        return rows.view_as(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        # Expanded scalars take no memory.
        zeros = (
            torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.forms
        )
        return gradient, *zeros


class NumberedRows:
    """Rows of a table that is computed by several processes."""

    def __init__(self) -> None:
        self._numbers: list[Tensor] = []
        self._rows: list[Tensor] = []

    def add(self, numbers: Tensor, rows: Tensor) -> None:
        """Add rows (n, D) with row numbers (n,)."""
        self._numbers.append(numbers.to(rows.device))
        self._rows.append(rows.detach())

    def table(self, count: int) -> Tensor | None:
        """Rows 0..count-1 of all processes (count, D), on the CPU; None if some are missing.

        Every process has the same number of rows, at least one. Gathered as two tensors: pickling 14,000 rows
        of 512 values one by one took seconds.
        """
        numbers = gather_rows(torch.cat(self._numbers))
        rows = gather_rows(torch.cat(self._rows))
        table = rows.new_empty((count, rows.shape[1]), device="cpu")
        table[numbers.cpu()] = rows.cpu()
        return table if len(set(numbers.tolist())) == count else None

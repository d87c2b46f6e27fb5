"""Sums and gathers over the processes of distributed training; with one process values stay as they are.

Sums and gathers are collectives: all processes call them, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

Value = TypeVar("Value")


def is_distributed() -> bool:
    """Whether there is a process group of several processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def place() -> tuple[int, int]:
    """Rank of this process, and number of processes."""
    return (distributed.get_rank(), distributed.get_world_size()) if is_distributed() else (0, 1)


def summed(values: Tensor) -> Tensor:
    """Sum of the processes' values, which have one shape; in place, without gradient."""
    if is_distributed():
        distributed.all_reduce(values)
    return values


def gathered_rows(rows: Tensor) -> Tensor:
    """Rows (n, ...) of all processes (W n, ...), in the order of ranks, with a gradient to each.

    The gradient of a process's rows is the sum of what all processes' losses give, so that where these are
    means over a process's part of a batch, averaging gradients over processes (as
    DistributedDataParallel does) makes the gradient of the mean over the whole batch.
    """
    if not is_distributed():
        return rows
    gathered: Tensor = _GatheredRows.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


class _GatheredRows(torch.autograd.Function):
    # torch.distributed.nn.functional.all_gather is deprecated, in favour of a private module.
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        rank, processes = place()
        return summed(gradient.clone()).chunk(processes)[rank]


def gathered_union(part: Mapping[int, Value]) -> dict[int, Value]:
    """The union of the processes' mappings, of any values that can be pickled; later ranks win."""
    if not is_distributed():
        return dict(part)
    parts: list[Mapping[int, Value]] = [{} for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(parts, part)
    return {number: value for each in parts for number, value in each.items()}


def with_gradient_for(parameters: Iterable[Tensor], rows: Tensor) -> Tensor:
    """The same rows; where they get a gradient, each parameter that is trained gets one too, zero at least.

    For parameters that a batch may leave out, such as those of a choice where there is nothing to choose:
    DistributedDataParallel waits for all of them on all processes. The zero takes the way of the rows'
    gradient, so that on every process all parameters come behind what stands between rows and loss
    (collectives keep one order), and does not read the parameters (infinity times 0 would be NaN).
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    passed: Tensor = _WithGradientFor.apply(rows, *trained)  # type: ignore[no-untyped-call]
    return passed


class _WithGradientFor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, *parameters: Tensor) -> Tensor:
        ctx.forms = [(parameter.shape, parameter.dtype, parameter.device) for parameter in parameters]
        return rows.view_as(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        # Of one stored value each: no memory, and nothing to add to where there is another gradient.
        zeros = (
            torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.forms
        )
        return gradient, *zeros


class NumberedRows:
    """Rows of a table that each process makes some of, by their numbers."""

    def __init__(self) -> None:
        self._numbers: list[Tensor] = []
        self._rows: list[Tensor] = []

    def add(self, numbers: Tensor, rows: Tensor) -> None:
        """Keeps rows (n, D) of these numbers (n,)."""
        self._numbers.append(numbers.to(rows.device))
        self._rows.append(rows.detach())

    def table(self, count: int) -> Tensor | None:
        """Rows 0..count-1 of all processes (count, D), on the CPU; None where some are missing.

        Gathered as two tensors: pickled one by one, 14,000 rows of 512 values took seconds. A process may
        have other numbers than the others, but as many; each has at least one.
        """
        numbers = gathered_rows(torch.cat(self._numbers))
        rows = gathered_rows(torch.cat(self._rows))
        table = rows.new_empty((count, rows.shape[1]), device="cpu")
        table[numbers.cpu()] = rows.cpu()
        return table if len(set(numbers.tolist())) == count else None

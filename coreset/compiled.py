"""The part of a trained aggregator that torch.compile may do: what is done to one padded rectangle."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class CompilableMaths(nn.Module):
    """A module whose `_maths` can be compiled; names in the state dict stay the same.

    What is compiled is bound to the weights of the module that compiled it, so copies and pickles leave it
    behind and compute with their own weights, eagerly until they compile for themselves.
    """

    _compiled: Callable[..., Any] | None = None

    @abstractmethod
    def _maths(self, *given: Any) -> Any:
        """What is done to one rectangle."""

    def compile_maths(self) -> None:
        """From now on torch.compile does `_maths` in this module."""
        self._compiled = torch.compile(self._maths, dynamic=True)

    def _run_maths(self, *given: Any) -> Any:
        return (self._compiled or self._maths)(*given)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or pickle holds."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        state.pop("_compiled", None)
        return state

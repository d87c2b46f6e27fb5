"""Coreset size and gamma that a user gives for a stored aggregator, in place of what its file says."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from coreset import AGGREGATORS
from errors import InputError


@dataclass(frozen=True)
class Overrides:
    """`gamma`: fixed at this value; -1, as published, asks for the learned one. None: as the file says."""

    coreset_size: int | None = None
    gamma: float | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Overrides:
        """Those among the flags given."""
        return cls(values.get("coreset_size"), values.get("gamma"))

    def given(self) -> dict[str, int | float]:
        """Those that are given, by name."""
        values = {"coreset_size": self.coreset_size, "gamma": self.gamma}
        return {name: value for name, value in values.items() if value is not None}

    def options_of(self, aggregator: str) -> dict[str, int | float]:
        """Those that are given and that the aggregator of this name has."""
        known = inspect.signature(AGGREGATORS[aggregator]).parameters if aggregator in AGGREGATORS else {}
        return {name: value for name, value in self.given().items() if name in known}

    def check_effect(self, aggregators: Iterable[nn.Module]) -> None:
        """Raises InputError where one is given that none of the aggregators has."""
        known = {name for module in aggregators for name in inspect.signature(type(module)).parameters}
        if unused := [f"--{name}" for name in self.given() if name not in known]:
            raise InputError(
                f"{' and '.join(unused)}: no aggregator that is used here has this option. Remove it."
            )


def add_override_flags(group: argparse._ActionsContainer) -> None:
    """Adds --coreset_size and --gamma, absent from the parsed flags unless given."""
    group.add_argument(
        "--coreset_size",
        type=int,
        default=argparse.SUPPRESS,
        metavar="K",
        help="of the aggregator, in place of what its file says",
    )
    group.add_argument(
        "--gamma",
        type=float,
        default=argparse.SUPPRESS,
        help="of the aggregator's selection, in place of what its file says; -1: the learned one",
    )

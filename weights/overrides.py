"""Flags that override what a weight file states: coreset size, gamma, fields of the backbone's spec."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from runtime.errors import InputError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Overrides:
    """Options of an aggregator; None: as stored. `gamma` -1 is the learned one, as in the published code."""

    coreset_size: int | None = None
    gamma: float | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Overrides:
        """The overrides among the flags given."""
        return cls(values.get("coreset_size"), values.get("gamma"))

    def given(self) -> dict[str, int | float]:
        """The overrides that are set, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def options_of(self, aggregator: str) -> dict[str, int | float]:
        """The overrides that are set and that the aggregator of this name has."""
        from coreset import AGGREGATORS  # Imports torch, which parsing flags does not need.

        known = inspect.signature(AGGREGATORS[aggregator]).parameters if aggregator in AGGREGATORS else {}
        return {name: value for name, value in self.given().items() if name in known}

    def check_effect(self, aggregators: Iterable[nn.Module]) -> None:
        """Raise InputError for an override that none of the aggregators has."""
        known = {name for module in aggregators for name in inspect.signature(type(module)).parameters}
        if unused := [f"--{name}" for name in self.given() if name not in known]:
            raise InputError(
                f"{' and '.join(unused)}: no aggregator that is used has this option. Remove it."
            )


AS_STORED = Overrides()


def add_override_flags(group: argparse._ActionsContainer) -> None:
    """Add --coreset_size and --gamma, which are absent from the parsed flags unless given."""
    group.add_argument(
        "--coreset_size",
        type=int,
        default=argparse.SUPPRESS,
        metavar="K",
        help="coreset size K of the aggregator; overrides the stored value",
    )
    group.add_argument(
        "--gamma",
        type=float,
        default=argparse.SUPPRESS,
        help="exponent gamma of the selection; overrides the stored value (-1: learned)",
    )


# Flag -> field of a backbone's spec.
_SPEC_FLAGS = {
    "mean": "mean",
    "std": "std",
    "input_size": "input_size",
    "template": "alignment",
    "norm_is_quality": "norm_is_quality",
}


def add_spec_flags(group: argparse._ActionsContainer) -> None:
    """Add the flags of `_SPEC_FLAGS`, which are absent from the parsed flags unless given."""
    subtracted, divisor = "subtracted from pixel values 0..255", "divisor of pixel values after subtraction"
    for name, what in (("mean", subtracted), ("std", divisor)):
        group.add_argument(
            f"--{name}",
            type=_one_or_three,
            default=argparse.SUPPRESS,
            metavar="V|V,V,V",
            help=f"{what}; three values: one per channel, in channel order",
        )
    group.add_argument(
        "--input_size",
        "--input-size",
        type=int,
        default=argparse.SUPPRESS,
        metavar="PIXELS",
        help="side of the input images of an ONNX graph; faces of 112 are resampled to it",
    )
    group.add_argument(
        "--template",
        type=partial(_numbers, counts=(10,)),
        default=argparse.SUPPRESS,
        metavar="X,Y,...",
        help="positions of eyes, nose and corners of the mouth, pixels of --input_size, if they differ from "
        "ArcFace's scaled template; faces are warped there, black outside the crop of 112",
    )
    group.add_argument(
        "--norm_is_quality",
        "--norm-is-quality",
        choices=_NORM_IS_QUALITY,
        default=argparse.SUPPRESS,
        help="whether the feature norm measures image quality; --check-quality determines it",
    )


def stated_spec(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a backbone's spec among the flags given (of `add_spec_flags`)."""
    given = {field: values[flag] for flag, field in _SPEC_FLAGS.items() if values.get(flag) is not None}
    if "norm_is_quality" in given:
        given["norm_is_quality"] = _NORM_IS_QUALITY[given["norm_is_quality"]]
    return given


_NORM_IS_QUALITY = {"yes": True, "no": False, "unknown": None}


def _one_or_three(text: str) -> float | tuple[float, ...]:
    values = _numbers(text, (1, 3))
    return values[0] if len(values) == 1 else values


def _numbers(text: str, counts: tuple[int, ...]) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in counts:
        expected = " or ".join(map(str, counts))
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected} numbers, separated by commas")
    return values

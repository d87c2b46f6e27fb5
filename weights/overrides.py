"""What a user states of weights in place of their file: coreset size, gamma, the backbone's spec."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.errors import InputError

if TYPE_CHECKING:
    from torch import nn


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
        from coreset import AGGREGATORS  # Brings torch, which a command line does without.

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


# Flags of a backbone's spec, and its fields.
SPEC_FLAGS = {
    "mean": "mean",
    "std": "std",
    "input_size": "input_size",
    "template": "alignment",
    "norm_is_quality": "norm_is_quality",
}


def add_spec_flags(group: argparse._ActionsContainer) -> None:
    """Adds the flags of `SPEC_FLAGS`, absent from the parsed flags unless given."""
    for name, what in (("mean", "that is subtracted from pixel values 0..255"), ("std", "that divides them")):
        group.add_argument(
            f"--{name}",
            type=_one_or_three,
            default=argparse.SUPPRESS,
            metavar="V|V,V,V",
            help=f"{what}; three: of each channel, in the channel order",
        )
    group.add_argument(
        "--input_size",
        "--input-size",
        type=int,
        default=argparse.SUPPRESS,
        metavar="PIXELS",
        help="side of the images that an ONNX graph takes; faces of 112 are resampled to it",
    )
    group.add_argument(
        "--template",
        type=_ten,
        default=argparse.SUPPRESS,
        metavar="X,Y,...",
        help="where both eyes, the nose and both corners of the mouth lie, in pixels of --input_size, where "
        "it is not ArcFace's template scaled to it; faces are moved there, black where the crop of 112 ends",
    )
    group.add_argument(
        "--norm_is_quality",
        "--norm-is-quality",
        choices=_NORM_IS_QUALITY,
        default=argparse.SUPPRESS,
        help="whether the feature norm falls with image quality; --check-quality measures it",
    )


def stated_spec(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a backbone's spec among the flags given (those of `add_spec_flags`)."""
    given = {
        field: values[flag] for flag, field in SPEC_FLAGS.items() if flag in values and values[flag] != ""
    }
    if "norm_is_quality" in given:
        given["norm_is_quality"] = _NORM_IS_QUALITY[given["norm_is_quality"]]
    return given


_NORM_IS_QUALITY = {"yes": True, "no": False, "unknown": None}


def _one_or_three(text: str) -> float | tuple[float, ...]:
    values = _numbers(text, 1, 3)
    return values[0] if len(values) == 1 else values


def _ten(text: str) -> tuple[float, ...]:
    return _numbers(text, 10)


def _numbers(text: str, *counts: int) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in counts:
        expected = " or ".join(map(str, counts))
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected} numbers, separated by commas")
    return values

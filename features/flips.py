"""Fusion of the features of images and of their horizontal flips, by the published rules."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from runtime.errors import InputError, InputWarning

if TYPE_CHECKING:
    from torch import Tensor, nn

FLIP_RULES = ("pre_norm_vector_add", "norm_weighted_avg", "average", "concat")
# The rule's name in stores and result files where the flipped image is not used.
NO_FLIP = "not used"
# The values of --flip.
FLIP_CHOICES = ("none", *FLIP_RULES)


def flip_rule(choice: str) -> str:
    """The rule of a value of --flip, as stores and result files write it."""
    return NO_FLIP if choice == "none" else choice


def flip_choice(rule: str) -> str:
    """The value of --flip that asks for a rule."""
    return "none" if rule == NO_FLIP else rule


def fused_size(size: int, rule: str) -> int:
    """Values of a fused feature, from those of one image."""
    return 2 * size if rule == "concat" else size


def auxiliary_size_of(size: int, rule: str) -> int:
    """Auxiliary features at the end of a fused feature, from those of one image."""
    # Those of 'concat' are in the middle, too.
    return 0 if rule == "concat" else size


def fuse_flips(
    first: Tensor, second: Tensor, first_norm: Tensor, second_norm: Tensor, rule: str
) -> tuple[Tensor, Tensor]:
    """Fuse the features of images and of their horizontal flips by one of the published rules.

    The rules are those of AdaFace's evaluation (arXiv 2204.00964) and of InsightFace's ijb_evals.py.

    Args:
        first: (N, D) unit rows of the images.
        second: (N, D) unit rows of the flipped images.
        first_norm: (N,).
        second_norm: (N,).
        rule: of `FLIP_RULES`.

    Returns:
        Unit features (N, D), or (N, 2 D) for 'concat', and norms (N,).

    Raises:
        InputError: `rule` is unknown.
    """
    import torch

    from coreset.sets import unit_and_norm

    if rule == "pre_norm_vector_add":
        return unit_and_norm(first * first_norm.unsqueeze(1) + second * second_norm.unsqueeze(1))
    mean = (first_norm + second_norm) / 2
    if rule == "norm_weighted_avg":
        share = (first_norm / (first_norm + second_norm).clamp_min(1e-12)).unsqueeze(1)
        return unit_and_norm(first * share + second * (1 - share))[0], mean
    if rule == "average":
        return unit_and_norm(first + second)[0], mean
    if rule == "concat":
        return unit_and_norm(torch.cat([first, second], dim=1))[0], mean
    raise InputError(f"{rule!r} is not a flip rule. Expected one of {', '.join(FLIP_RULES)}.")


def warn_of_doubled_norms(flip: str, aggregator: nn.Module, name: str) -> None:
    """Warn where an aggregator that was trained with norms of single images gets sums of two.

    Poolings do not depend on the scale of norms.
    """
    if flip == "pre_norm_vector_add" and hasattr(aggregator, "embedding_size"):
        warnings.warn(
            f"--flip {flip} adds the norms of two images, but {name} was trained with the norms of one. "
            "--flip norm_weighted_avg gives the same directions and averages both norms.",
            InputWarning,
            stacklevel=3,
        )

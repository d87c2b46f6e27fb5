"""Fusion of the features of images and of their horizontal flips, by the published rules."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from coreset.sets import unit_and_norm
from runtime.errors import InputError, InputWarning

FLIP_RULES = ("pre_norm_vector_add", "norm_weighted_avg", "average", "concat")
NO_FLIP = "not used"


def fuse_flips(
    first: Tensor, second: Tensor, first_norm: Tensor, second_norm: Tensor, rule: str
) -> tuple[Tensor, Tensor]:
    """Joins the features of images and of their mirror images, by one of the published rules (METHOD 2).

    Args:
        first: (N, D) unit rows of the images.
        second: (N, D) unit rows of their mirror images.
        first_norm: (N,).
        second_norm: (N,).
        rule: of `FLIP_RULES`.

    Returns:
        Unit features (N, D), or (N, 2 D) for 'concat', and norms (N,).

    Raises:
        InputError: another rule.
    """
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
    raise InputError(f"{rule!r} is no rule of flip fusion. There are: {', '.join(FLIP_RULES)}.")


def warn_of_doubled_norms(flip: str, aggregator: nn.Module, name: str) -> None:
    """Warns where a network that reads norms sees other ones than in training; poolings know no scale."""
    if flip == "pre_norm_vector_add" and hasattr(aggregator, "embedding_size"):
        warnings.warn(
            f"--flip {flip}: norms are sums of two images', and {name} was trained with those of one. "
            "--flip norm_weighted_avg has the same directions, and means of both norms.",
            InputWarning,
            stacklevel=3,
        )

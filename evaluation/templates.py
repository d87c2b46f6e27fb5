"""Features of single faces -> features that are compared: a face with its mirror image, templates."""

from __future__ import annotations

import torch
from torch import Tensor

from coreset.sets import unit_and_norm
from errors import InputError

FLIP_RULES = ("pre_norm_vector_add", "norm_weighted_avg", "average", "concat")


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

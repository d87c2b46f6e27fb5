"""Differentiable farthest-point sampling in a quality-weighted metric (arXiv 2308.14075, section 3).

Always computed in float32 or wider, whatever autocast says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from coreset.precision import at_least_float32, without_autocast

# Smaller norms count as this in r ** gamma: the gradient of 0 ** gamma is not finite; 1e-6 ** 0 is still 1.
SMALLEST_NORM = 1e-6
# A norm of 1e4 to this power and its gradient fit float32; selection by quality alone begins far below.
LARGEST_GAMMA = 8.0
# Where gamma may be negative: `SMALLEST_NORM` to this power and its gradient fit float32.
SMALLEST_GAMMA = -4.0


class Selection(NamedTuple):
    """Selected faces of B sets.

    Attributes:
        picks: (B, K) int64 in 0..T-1, in order of selection; -1 where the set has no more faces.
        core: (B, K, D) selected un-normalised features; zero where there is no pick.
        present: (B, K) bool, True where there is a pick.
    """

    picks: Tensor
    core: Tensor
    present: Tensor


@dataclass(frozen=True)
class Sampling:
    """How faces are selected in training.

    Attributes:
        temperature: picks are drawn from softmax(scores / temperature). 1 is the published value; towards 0
            the picks become those of evaluation.
        gumbel_noise: without it the picks are those of evaluation, and only the gradient is soft.
        mask_picked: each face is selected at most once; the published training allows repeats.
    """

    temperature: Tensor | float = 1.0
    gumbel_noise: bool = True
    mask_picked: bool = True

    def logits(self, scores: Tensor, available: Tensor) -> Tensor:
        """Logits (B, T) of scores (B, T), where faces are available (B, T)."""
        return scores / self.temperature


def select_faces(
    features: Tensor,
    norms: Tensor,
    mask: Tensor | None = None,
    *,
    coreset_size: int,
    gamma: Tensor | float,
    sampling: Sampling | None = None,
    padding_is_finite: bool = False,
    tie_tolerance: float = 0.0,
    min_gamma: float = 0.0,
) -> Selection:
    """Select the face of largest norm, then repeatedly the face farthest from all selected ones.

    The distance of face i is r_i ** gamma times the minimum of (1 - cos(x_i, x_j)) / 2 over the selected j.
    Evaluation takes the argmax. Training takes a hard Gumbel-softmax sample with a straight-through gradient,
    which also enters the distances and reaches features, norms, gamma and the temperature. Time is O(T K D);
    nothing of size T x T is computed.

    Evaluation is deterministic: ties go to the lowest index, a copy of a selected face is at distance zero
    exactly, and the picks of a set depend neither on padding nor on the rest of the batch. The distance is
    therefore |f_i - f_j|^2 / 4 of unit rows, summed row by row, and not a matrix product, whose last bits
    change with its shape (2.0 ms instead of 0.5 ms for 8,000 faces at D = 512 on one core). Row sums repeat
    exactly on a CPU; on a GPU, where the order of summation follows the shape, they are computed in float64.

    Args:
        features: (B, T, D) unit rows.
        norms: (B, T), at least 0.
        mask: (B, T) bool, True where there is a face, at least one per set; padding may hold NaN.
        coreset_size: K; a set of T_b faces gets min(K, T_b) picks.
        gamma: weight of quality against diversity, clamped to `min_gamma`..`LARGEST_GAMMA`.
        sampling: of training; None for evaluation.
        padding_is_finite: padding holds finite values, so that features need not be copied to mask it.
        tie_tolerance: in evaluation, scores within this fraction of the best count as ties. For norms that a
            network computed, whose last bits differ between copies of a face.
        min_gamma: 0, or down to `SMALLEST_GAMMA` where gamma may prefer poor faces (the published code).
    """
    with without_autocast(features):
        features, norms = at_least_float32(features), at_least_float32(norms)
        if mask is None:
            mask = torch.ones_like(norms, dtype=torch.bool)
        elif not padding_is_finite:
            # Zeros, since masking alone would leave 0 x NaN in the gradient.
            features, norms = features.masked_fill(~mask.unsqueeze(-1), 0), norms.masked_fill(~mask, 0)
        picks, core = _farthest_points(
            features.contiguous(), norms, mask, coreset_size, gamma, min_gamma, sampling, tie_tolerance
        )
        present = torch.arange(coreset_size, device=norms.device) < mask.sum(dim=1, keepdim=True)
        return Selection(
            picks.masked_fill(~present, -1), core.masked_fill(~present.unsqueeze(-1), 0), present
        )


def pick_agreement(training_picks: Tensor, evaluation_picks: Tensor) -> Tensor:
    """Fraction of training picks that evaluation selects too, averaged over sets: a scalar in 0..1.

    Both are (B, K) with -1 where there is no pick, and at least one pick per set.
    """
    valid = training_picks >= 0
    shared = (training_picks.unsqueeze(2) == evaluation_picks.unsqueeze(1)).any(dim=2) & valid
    return (shared.sum(dim=1) / valid.sum(dim=1)).mean()


def quality_weight(norms: Tensor, gamma: Tensor | float, min_gamma: float = 0.0) -> Tensor:
    """Compute r ** gamma with finite values and gradients for every r >= 0 and every gamma.

    Gamma is clamped to `min_gamma`..`LARGEST_GAMMA` but keeps its gradient, so that training can return it to
    the range.
    """
    exponent = torch.as_tensor(gamma, dtype=norms.dtype, device=norms.device)
    exponent = exponent + (exponent.clamp(min_gamma, LARGEST_GAMMA) - exponent).detach()
    base = norms.clamp_min(SMALLEST_NORM)
    if base.device.type != "cpu":
        return base**exponent
    # On a CPU the last elements of a tensor take another routine than the vectorised ones, so that the last
    # bit of a float32 power can depend on its position and equal faces would not tie.
    return (base.double() ** exponent.double()).to(norms.dtype)


def _farthest_points(
    features: Tensor,
    norms: Tensor,
    mask: Tensor,
    coreset_size: int,
    gamma: Tensor | float,
    min_gamma: float,
    sampling: Sampling | None,
    tie_tolerance: float,
) -> tuple[Tensor, Tensor]:
    """Picks (B, K) and core (B, K, D); arbitrary but finite beyond a set's last face."""
    scored_features, scores = (features.detach(), norms.detach()) if sampling is None else (features, norms)
    gamma = gamma.detach() if sampling is None and isinstance(gamma, Tensor) else gamma
    weight = quality_weight(scores, gamma, min_gamma)
    directions = _unit_rows(scored_features)
    positions = torch.arange(norms.shape[1], device=norms.device)
    available, nearest = mask, None
    picks, core = [], []
    for number in range(coreset_size):
        # A set without further faces selects among all positions, so that nothing becomes NaN; the caller
        # discards it.
        candidates = available | ~available.any(dim=1, keepdim=True)
        pick, soft = _choose(scores, candidates, sampling, tie_tolerance)
        picks.append(pick)
        core.append(_picked_feature(features, norms, pick, soft))
        if sampling is None or sampling.mask_picked:
            available = available & (positions != pick.unsqueeze(1))
        if number + 1 < coreset_size:
            direction = _picked_direction(features, norms, directions, pick, soft)
            distance = weight * _length(directions - direction.unsqueeze(1)).square() / 4
            nearest = distance if nearest is None else torch.minimum(nearest, distance)
            scores = nearest
    return torch.stack(picks, dim=1), torch.stack(core, dim=1)


def _choose(
    scores: Tensor, candidates: Tensor, sampling: Sampling | None, tie_tolerance: float
) -> tuple[Tensor, Tensor | None]:
    """Select one position (B,) from scores (B, T); in training also the soft one-hot (B, T)."""
    if sampling is None:
        # torch.argmax returns the first of equal values.
        scores = scores.masked_fill(~candidates, -torch.inf)
        if tie_tolerance:
            scores = (scores >= scores.amax(dim=1, keepdim=True) * (1 - tie_tolerance)).to(torch.uint8)
        return scores.argmax(dim=1), None
    logits = sampling.logits(scores, candidates)
    if sampling.gumbel_noise:
        # An exponential draw can round to zero, whose logarithm would make the softmax NaN.
        draws = torch.empty_like(logits).exponential_().clamp_min(torch.finfo(logits.dtype).tiny)
        logits = logits - draws.log()
    # Masked after the division: the gradient of -inf / temperature is NaN.
    logits = logits.masked_fill(~candidates, -torch.inf)
    return logits.argmax(dim=1), logits.softmax(dim=1)


def _picked_feature(features: Tensor, norms: Tensor, pick: Tensor, soft: Tensor | None) -> Tensor:
    """Feature x (B, D) at the pick: the row itself in value, also the soft mixture of rows in gradient."""
    picked = _row_at(features, pick) * norms.gather(1, pick.unsqueeze(1))
    return picked if soft is None else picked + _mixture((soft - soft.detach()) * norms, features)


def _picked_direction(
    features: Tensor, norms: Tensor, directions: Tensor, pick: Tensor, soft: Tensor | None
) -> Tensor:
    """Direction (B, D) of `_picked_feature`; in value bit for bit the row of `directions`."""
    direction = _row_at(directions, pick)
    if soft is None:
        return direction
    # The direction of x is that of x / r, which is defined for a norm of zero, too. Such a pick (all other
    # norms are zero) passes no gradient, since 1 / r is unbounded.
    length = norms.gather(1, pick.unsqueeze(1)).detach()
    length = length.masked_fill(length <= SMALLEST_NORM, torch.inf)
    through = _row_at(features, pick) + _mixture((soft - soft.detach()) * norms / length, features)
    through = _unit_rows(through)
    return direction.detach() + (through - through.detach())


def _mixture(shares: Tensor, rows: Tensor) -> Tensor:
    return torch.bmm(shares.unsqueeze(1), rows).squeeze(1)


def _row_at(rows: Tensor, pick: Tensor) -> Tensor:
    return rows.gather(1, pick[:, None, None].expand(-1, 1, rows.shape[2])).squeeze(1)


def _unit_rows(rows: Tensor) -> Tensor:
    # Rows of zeros (padding) stay zero, with a bounded gradient.
    return rows / _length(rows).clamp_min(1e-6).unsqueeze(-1)


def _length(rows: Tensor) -> Tensor:
    wide = rows.device.type == "cuda"
    length: Tensor = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64 if wide else None)
    return length.to(rows.dtype)

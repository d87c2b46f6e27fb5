"""A coreset whose picks stand for the faces nearest to them: K weighted points in place of T faces."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreset.learned import (
    Described,
    LearnedAggregator,
    LearnedExponent,
    TransformerBlock,
    check_counts,
    check_heads,
    hidden_layers,
    log_norms,
    masked_softmax,
    starting_at_zero,
    weighted_sum,
)
from coreset.selection import LARGEST_GAMMA, select_faces
from coreset.sets import unit_and_norm
from errors import InputError

# Share, mean and largest log norm, cosine to the whole set, coherence, mean support.
_STATISTICS = 6
_QUALITY_WIDTH = 128
# Of a face's quality within its part, against the best of the set: a part of zero norms still has a mean.
_SMALLEST_QUALITY = 1e-20
# How much more a face counts in the second centre that lies nearer to the first.
_SHARPNESS = 5.0
_CENTRES = 2
# Far faces of which one has to be like a face for it to be believed.
_WITNESSES = 16
# From here on a face is a copy, which is no witness of itself.
_COPY = 0.999
# Where belief is a half at first, and how steep. Over MobileFaceNet a stranger's support is below 0.23 half
# of the time and below 0.4 nine times in ten, that of a frame of a clip is above 0.6 nine times in ten.
_HALF_BELIEVED, _STEEPNESS = 0.35, 20.0


class WeightedCoreset(LearnedAggregator):
    """K picks by farthest-point sampling; a small transformer weighs and repairs what they stand for.

    The prototype of METHOD 10. Each face goes to the nearest pick. A pick's token says the quality-weighted
    mean of its faces, the pick itself, their share of the set, norms, coherence (length of that mean) and
    cosine to the whole set; two layers over the K tokens give each a weight and a residual on its mean. A
    pick whose faces all lie as near to an earlier one (a copy) has none left and no token. O(T K D) before,
    O(K) in the transformer: linear in the faces, and a few faces are named as the reason.

    METHOD 10 leaves open: the number of faces is told as a share of the set, so that a set of copies is that
    face; picks are those of evaluation in training too, without a gradient through the choice; gamma is
    fixed; the weight of a face within its part is its norm to a learned power, 2 to begin with, times what a
    small network makes of its feature, its norm and its agreement with the set: its cosines to the
    norm-weighted mean, and to the mean of those that lie near it.

    Farthest points seek outliers, and a stranger's face is one. So a face is believed by its support: its
    largest cosine to 16 far faces of its set, copies of itself left out. Belief, a logistic curve whose two
    numbers are learned, scales the quality in the metric and the weight within the part; nobody is alone in
    a clip, so wrong media are believed, and are weighed by the transformer, which is told the support too.
    """

    def __init__(
        self,
        *,
        embedding_size: int,
        coreset_size: int = 4,
        gamma: float = 1.0,
        width: int = 256,
        num_heads: int = 4,
        num_layers: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(embedding_size)
        check_counts("weighted_coreset", coreset_size=coreset_size, num_layers=num_layers)
        check_heads("weighted_coreset", width, num_heads)
        if not 0 <= gamma <= LARGEST_GAMMA:
            raise InputError(f"weighted_coreset: gamma {gamma} must be in 0..{LARGEST_GAMMA:g}.")
        if not 0 <= dropout < 1:
            raise InputError(f"weighted_coreset: dropout {dropout} must be at least 0 and below 1.")
        self.coreset_size = coreset_size
        self.gamma = gamma
        self.exponent = LearnedExponent(2.0)
        self.belief = _Belief()
        self.quality = starting_at_zero(hidden_layers(embedding_size + 2 + _CENTRES, _QUALITY_WIDTH, 1))
        self.token = nn.Linear(2 * embedding_size + _STATISTICS, width)
        self.layers = nn.ModuleList(
            TransformerBlock(width, num_heads, 2 * width, dropout) for _ in range(num_layers)
        )
        self.output_norm = nn.LayerNorm(width)
        # Its first output is the weight's logit, the others the residual; starts as the mean of the parts.
        self.output = nn.Linear(width, 1 + embedding_size)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def _describe(self, features: Tensor, norms: Tensor, mask: Tensor) -> Described:
        D = features.shape[-1]
        support = _support(features, norms, mask, self.gamma)
        believed = self.belief(support)
        selection = select_faces(
            features,
            norms * believed.detach().exp(),
            mask,
            coreset_size=self.coreset_size,
            gamma=self.gamma,
            hides_nothing=True,
        )
        members = _members(features, selection.picks, selection.present, mask)
        logs = log_norms(norms)
        agreement = [*_agreement(features, norms, mask), support]
        seen = torch.cat([features * D**0.5, torch.stack([logs, *agreement], dim=2)], dim=2)
        quality = self.exponent() * logs + self.quality(seen).squeeze(2) + believed
        best = quality.masked_fill(~mask, -torch.inf).amax(dim=1, keepdim=True)
        quality = (quality - best).masked_fill(~mask, 0).exp().clamp_min(_SMALLEST_QUALITY)
        within = members * quality.unsqueeze(1)
        within = within / within.sum(dim=2, keepdim=True).clamp_min(_SMALLEST_QUALITY)
        mean, coherence = unit_and_norm(torch.bmm(within, features))
        filled = members.any(dim=2)
        statistics = _statistics(features, logs, mask, members, within, mean)
        picked = _picked(features, selection.picks)
        supported = torch.bmm(within, support.unsqueeze(2))
        parts = [mean * D**0.5, picked * D**0.5, statistics, coherence.unsqueeze(2), supported]
        tokens = self.token(torch.cat(parts, dim=2))
        for layer in self.layers:
            tokens = layer(tokens, filled)
        logit, residual = self.output(self.output_norm(tokens)).split([1, D], dim=2)
        weights = masked_softmax(logit.squeeze(2), filled)
        shares = torch.bmm(weights.unsqueeze(1), within).squeeze(1)
        return Described(weighted_sum(weights, mean + residual), shares, selection.picks)


class _Belief(nn.Module):
    """log of a logistic curve of the support; both of its numbers are kept as Adam can move them."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Parameter(torch.tensor(_HALF_BELIEVED))
        self.steepness = nn.Parameter(torch.tensor(1.0))

    def forward(self, support: Tensor) -> Tensor:
        """(B, T), at most 0."""
        return F.logsigmoid(_STEEPNESS * self.steepness * (support - self.middle))


def _support(features: Tensor, norms: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """(B, T): largest cosine of each face to the set's far faces that are no copies of it, at least 0.

    Row by row, as `_agreement`. O(T) for one number of witnesses.
    """
    found = select_faces(features, norms, mask, coreset_size=_WITNESSES, gamma=gamma, hides_nothing=True)
    support = torch.zeros_like(norms)
    for number, witness in enumerate(_picked(features, found.picks).unbind(1)):
        cosine = (features * witness.unsqueeze(1)).sum(dim=2)
        counts = (cosine < _COPY) & found.present[:, number : number + 1]
        support = torch.where(counts, torch.maximum(support, cosine), support)
    return support


def _agreement(features: Tensor, norms: Tensor, mask: Tensor) -> list[Tensor]:
    """(B, T) each: cosines of each face to the mean by squared norms, and to that of those near this mean.

    Row by row and not by a product, whose last bits could part copies of one face.
    """
    weights = norms.masked_fill(~mask, 0).square()
    found = []
    for _ in range(_CENTRES):
        centre, _ = unit_and_norm(weighted_sum(weights, features))
        cosine = (features * centre.unsqueeze(1)).sum(dim=2)
        found.append(cosine)
        weights = weights * (_SHARPNESS * cosine).exp()
    return found


def _picked(features: Tensor, picks: Tensor) -> Tensor:
    """(B, K, D): the picks' features; for a pick that is none, some face's."""
    return features.gather(1, picks.clamp_min(0).unsqueeze(2).expand(-1, -1, features.shape[2]))


def _members(features: Tensor, picks: Tensor, present: Tensor, mask: Tensor) -> Tensor:
    """(B, K, T) bool: the faces that lie nearest to each pick; ties go to the earlier pick.

    By differences and not by a product, whose last bits could part copies of one face.
    """
    distances = []
    for number, pick in enumerate(_picked(features, picks).unbind(1)):
        distance = (features - pick.unsqueeze(1)).square().sum(dim=2)
        distances.append(distance.masked_fill(~present[:, number : number + 1], torch.inf))
    nearest = torch.stack(distances, dim=1).argmin(dim=1, keepdim=True)
    numbers = torch.arange(picks.shape[1], device=picks.device)
    return (nearest == numbers[:, None]) & mask.unsqueeze(1)


def _statistics(
    features: Tensor, logs: Tensor, mask: Tensor, members: Tensor, within: Tensor, mean: Tensor
) -> Tensor:
    """(B, K, 4): share of the faces, mean and largest log norm, cosine of the mean to that of the set."""
    count = members.sum(dim=2)
    share = count / mask.sum(dim=1, keepdim=True)
    mean_log = (within * logs.unsqueeze(1)).sum(dim=2)
    # A part without faces has no largest; what stands there has no token.
    lowest = logs.amin(dim=1)[:, None, None]
    best_log = torch.where(members, logs.unsqueeze(1), lowest).amax(dim=2)
    whole, _ = unit_and_norm(weighted_sum(mask.to(features.dtype), features))
    cosine = torch.bmm(mean, whole.unsqueeze(2)).squeeze(2)
    return torch.stack([share.to(logs.dtype), mean_log, best_log, cosine], dim=2)

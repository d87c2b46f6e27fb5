"""A coreset whose picks stand for the faces nearest to them: K weighted points in place of T faces."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.auxiliary import split_auxiliary
from coreset.layers import (
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
from runtime.errors import InputError

# Share, mean and largest log norm, cosine to the whole set, coherence, mean support, mean belief.
_STATISTICS = 7
_QUALITY_WIDTH, _BELIEF_WIDTH = 128, 32
# Of a face's quality within its part, against the best of the set: a part of zero norms still has a mean.
_SMALLEST_QUALITY = 1e-20
# How much more a face counts in the second centre that lies nearer to the first.
_SHARPNESS = 5.0
_CENTRES = 2
# Far faces of which one has to be like a face for it to be believed.
_WITNESSES = 16
# From this cosine on a face is a copy, which is no witness of itself.
COPY_SIMILARITY = 0.999
# Where the curve of belief is a half at first, and how steep. Over MobileFaceNet a stranger's support is
# below 0.23 half of the time and below 0.4 nine times in ten, that of a frame of a clip above 0.6 as often.
GATE_START, GATE_STEEPNESS = 0.35, 20.0
# Of the metric that belief is part of: a product's last bits, which change with a row's place and the number
# of threads, must not part copies of a face.
_SLACK = 1e-5
# Scales: cosines are small numbers, and so is at first what a network gives that starts at zero; log beliefs
# are large ones, and far down they say nothing more.
_COSINE_SCALE, _BEND_SCALE, _BELIEF_SCALE, _LEAST_BELIEF = 4.0, 4.0, 0.25, -20.0


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
    largest cosine to 16 far faces of its set, copies of itself left out. But one odd face among thirty is
    rather a good still beside a poor clip, and eight of them are rather strangers. So the logistic curve of
    the support is bent by a small network that reads the face's support, agreement and norm, their mean over
    the set, and its size. Belief scales the quality in the metric and the weight within the part, and the
    transformer is told it. Nobody is alone in a clip: wrong media are believed, and are weighed there.
    What is counted or averaged over the set to that end gives copies of a far face one voice together.

    A pick changes by rounding in none of LFWS's 695 templates (features moved by 1e-6, three times), and in
    0.3 % of the same with each face four times, where the descriptor moves by 1e-6 (1 - cosine) at most. Of
    features moved by 1e-5 one of 2,085 descriptors moved by 0.03 (benchmarks/studies/pick_stability.py).

    Where features have auxiliary values behind the embedding (`net.Backbone`), tokens and qualities read it;
    faces are compared, averaged and described by the embedding alone, and a descriptor's auxiliary values
    are zero.

    `gate_start`, `gate_steepness`: of the curve of belief before training; `copy_similarity`: cosine from
    which on a face is a copy. The defaults are for backbones that are like MobileFaceNet, others are measured
    (`BackboneSpec.cosine_limit`).
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
        auxiliary_size: int = 0,
        quality: str = "norm",
        gate_start: float = GATE_START,
        gate_steepness: float = GATE_STEEPNESS,
        copy_similarity: float = COPY_SIMILARITY,
    ) -> None:
        super().__init__(embedding_size, auxiliary_size, quality)
        check_counts("weighted_coreset", coreset_size=coreset_size, num_layers=num_layers)
        check_heads("weighted_coreset", width, num_heads)
        if not 0 <= gamma <= LARGEST_GAMMA:
            raise InputError(f"weighted_coreset: gamma {gamma} must be in 0..{LARGEST_GAMMA:g}.")
        if not 0 <= dropout < 1:
            raise InputError(f"weighted_coreset: dropout {dropout} must be at least 0 and below 1.")
        if not (-1 < gate_start < 1 and 0 < gate_steepness < math.inf and 0 < copy_similarity <= 1):
            raise InputError(
                f"weighted_coreset: gate_start {gate_start} must be in -1..1, gate_steepness "
                f"{gate_steepness} positive and finite, copy_similarity {copy_similarity} above 0 and at "
                "most 1."
            )
        self.coreset_size = coreset_size
        self.gamma = gamma
        self.copy_similarity = copy_similarity
        self.exponent = LearnedExponent(2.0)
        self.belief = _Belief(gate_start, gate_steepness)
        self.quality = starting_at_zero(hidden_layers(embedding_size + 2 + _CENTRES, _QUALITY_WIDTH, 1))
        self.token = nn.Linear(2 * embedding_size + _STATISTICS, width)
        self.layers = nn.ModuleList(
            TransformerBlock(width, num_heads, 2 * width, dropout) for _ in range(num_layers)
        )
        self.output_norm = nn.LayerNorm(width)
        # Its first output is the weight's logit, the others the residual; starts as the mean of the parts.
        self.output = nn.Linear(width, 1 + embedding_size - auxiliary_size)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def _describe(self, features: Tensor, norms: Tensor, mask: Tensor) -> Described:
        features, auxiliary = split_auxiliary(features, self.auxiliary_size)
        D = features.shape[-1]
        support, voices = _support(features, norms, mask, self.gamma, self.copy_similarity)
        logs = log_norms(norms)
        agreement = _agreement(features, norms, mask, voices)
        believed = self.belief(support, agreement, logs, voices)
        selection = select_faces(
            features,
            norms * believed.detach().exp(),
            mask,
            coreset_size=self.coreset_size,
            gamma=self.gamma,
            hides_nothing=True,
            slack=_SLACK,
        )
        members = _members(features, selection.picks, selection.present, mask)
        faces = torch.cat([features * D**0.5, auxiliary], dim=2)
        seen = torch.cat([faces, torch.stack([logs, *agreement, support], dim=2)], dim=2)
        quality = self.exponent() * logs + self.quality(seen).squeeze(2) + believed
        best = quality.masked_fill(~mask, -torch.inf).amax(dim=1, keepdim=True)
        quality = (quality - best).masked_fill(~mask, 0).exp().clamp_min(_SMALLEST_QUALITY)
        within = members * quality.unsqueeze(1)
        within = within / within.sum(dim=2, keepdim=True).clamp_min(_SMALLEST_QUALITY)
        mean, coherence = unit_and_norm(torch.bmm(within, features))
        filled = members.any(dim=2)
        statistics = _statistics(features, logs, mask, members, within, mean)
        picked = _picked(faces, selection.picks)
        supported = torch.bmm(within, support.unsqueeze(2))
        doubt = torch.bmm(within, _BELIEF_SCALE * believed.clamp_min(_LEAST_BELIEF).unsqueeze(2))
        means = [mean * D**0.5, torch.bmm(within, auxiliary)]
        parts = [*means, picked, statistics, coherence.unsqueeze(2), supported, doubt]
        tokens = self.token(torch.cat(parts, dim=2))
        for layer in self.layers:
            tokens = layer(tokens, filled)
        logit, residual = self.output(self.output_norm(tokens)).split([1, D], dim=2)
        weights = masked_softmax(logit.squeeze(2), filled)
        shares = torch.bmm(weights.unsqueeze(1), within).squeeze(1)
        return Described(weighted_sum(weights, mean + residual), shares, selection.picks)


class _Belief(nn.Module):
    """log of the probability that a face is of whom the set shows."""

    def __init__(self, start: float, steepness: float) -> None:
        super().__init__()
        self.initial_steepness = steepness
        # Both as Adam can move them.
        self.middle = nn.Parameter(torch.tensor(float(start)))
        self.steepness = nn.Parameter(torch.tensor(1.0))
        self.face = nn.Linear(3 + _CENTRES, _BELIEF_WIDTH)
        self.rest = starting_at_zero(hidden_layers(2 * _BELIEF_WIDTH + 1, _BELIEF_WIDTH, 1))

    def forward(self, support: Tensor, agreement: list[Tensor], logs: Tensor, voices: Tensor) -> Tensor:
        """(B, T), at most 0; `voices` are zero where there is no face."""
        curve = self.initial_steepness * self.steepness * (support - self.middle)
        cosines = [_COSINE_SCALE * each for each in (support, *agreement)]
        own = F.gelu(self.face(torch.stack([*cosines, logs, 2 * curve.sigmoid()], dim=2)))
        count = voices.sum(dim=1, keepdim=True)
        whole = weighted_sum(voices / count, own).unsqueeze(1).expand_as(own)
        size = count.log().unsqueeze(2).expand(-1, own.shape[1], -1)
        bent = self.rest(torch.cat([own, whole, size], dim=2)).squeeze(2)
        raised = curve + _BEND_SCALE * bent
        # F.logsigmoid, as every exporter knows it: ONNX has log(sigmoid), which is -inf below -88.
        log_probability: Tensor = raised.clamp_max(0) - torch.log1p((-raised.abs()).exp())
        return log_probability


def _support(
    features: Tensor, norms: Tensor, mask: Tensor, gamma: float, copy_similarity: float
) -> tuple[Tensor, Tensor]:
    """(B, T) each: largest cosine of each face to the set's far faces that are no copies of it, at least 0;
    and one over the number of its copies, faces of a cosine of `copy_similarity` or more.
    """
    found = select_faces(features, norms, mask, coreset_size=_WITNESSES, gamma=gamma, hides_nothing=True)
    support = torch.zeros_like(norms)
    voices = mask.to(norms.dtype)
    for number, witness in enumerate(_picked(features, found.picks).unbind(1)):
        cosine = (features * witness.unsqueeze(1)).sum(dim=2)
        present = found.present[:, number : number + 1]
        is_copy = (cosine >= copy_similarity) & present & mask
        counts = (cosine < copy_similarity) & present
        support = torch.where(counts, torch.maximum(support, cosine), support)
        voices = torch.where(is_copy, 1 / is_copy.sum(dim=1, keepdim=True).clamp_min(1), voices)
    return support, voices


def _agreement(features: Tensor, norms: Tensor, mask: Tensor, voices: Tensor) -> list[Tensor]:
    """(B, T) each: cosines of each face to the mean by squared norms, and to that of those near this mean.

    Row by row and not by a product, whose last bits could part copies of one face.
    """
    weights = norms.masked_fill(~mask, 0).square() * voices
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

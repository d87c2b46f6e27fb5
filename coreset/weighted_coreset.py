"""WeightedCoreset: K weighted clusters of faces with an inlier gate, refined by a small transformer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreset.base import AggregatorOutput, LearnedAggregator
from coreset.layers import (
    LearnedExponent,
    TransformerBlock,
    check_options,
    hidden_layers,
    log_norms,
    masked_softmax,
    weighted_sum,
    zero_last_layer,
)
from coreset.selection import select_faces
from coreset.sets import unit_and_norm
from runtime.errors import InputError

# Relative size, mean and largest log norm, cosine to the set's mean, coherence, mean anchor similarity, mean
# inlier log-probability.
_CLUSTER_STATISTICS = 7
_QUALITY_WIDTH, _GATE_WIDTH = 128, 32
# Of a face within its cluster, relative to the best of the set: a cluster of zero norms still has a mean.
_MIN_QUALITY = 1e-20
# The set's centres: the mean by squared norms, and a mean with more weight near the first.
_NUM_CENTRES, _CENTRE_SHARPNESS = 2, 5.0
_NUM_ANCHORS = 16
# From this cosine on a face is a near-duplicate, whose similarity does not count.
COPY_SIMILARITY = 0.999
# Initial gate: a probability of 1/2 at a similarity of 0.35. With MobileFaceNet impostor faces have a
# similarity below 0.23 in half of the cases and below 0.4 in nine of ten; for frames of a clip nine of ten
# are above 0.6.
GATE_START, GATE_STEEPNESS = 0.35, 20.0
# The last bits of a product, which change with a row's position and the number of threads, must not separate
# copies of a face in the selection.
_TIE_TOLERANCE = 1e-5
# Scales that bring inputs and outputs of small networks to order one; lower log-probabilities are clipped.
_COSINE_SCALE, _LOGIT_SCALE, _LOG_PROBABILITY_SCALE, _MIN_LOG_PROBABILITY = 4.0, 4.0, 0.25, -20.0


class WeightedCoreset(LearnedAggregator):
    """Weighted coreset aggregation with an inlier gate.

    1. An inlier gate scores each face by its maximum cosine similarity to 16 anchor faces of the same set
       (near-duplicates excluded). Farthest-point sampling favours outliers; the gate suppresses faces that no
       other face supports. A small network adapts the gate to the set's statistics, in which copies of an
       anchor count once together.
    2. K faces are selected by quality-weighted farthest-point sampling, and every face is assigned to the
       nearest one. Each cluster becomes a token: quality-weighted mean, selected face, relative size, norm
       statistics, coherence. A face's weight in its cluster is a learned power of its norm times the output
       of a small network times its inlier probability.
    3. A two-layer transformer over the K tokens predicts a weight and a residual per cluster. The descriptor
       is the weighted sum.

    The selection is that of evaluation in training, too, and is not differentiated through. Cost is O(T K D)
    plus O(K^2) attention, linear in the set size T. Auxiliary features are inputs of tokens and qualities;
    faces are compared and averaged by the embedding alone.

    Selection is stable: features moved by 1e-6 change no pick in LFWS's 695 templates
    (benchmarks/studies/pick_stability.py).

    Args:
        embedding_size: values of a row, D and the auxiliary features.
        coreset_size: K.
        gamma: exponent of the quality in the selection metric.
        width: of the tokens.
        num_heads: of the attention.
        num_layers: of the transformer.
        dropout: on its residual branches.
        auxiliary_size: number of auxiliary features.
        quality: what replaces the norms, see `coreset.quality`.
        gate_start: similarity at which the gate is 1/2 before training. This and the next two are for
            backbones like MobileFaceNet; others are measured (`BackboneSpec.cosine_limit`).
        gate_steepness: of the gate's logistic curve before training.
        copy_similarity: cosine from which on two faces are near-duplicates.

    Raises:
        InputError: an option out of range.
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
        check_options(
            "weighted_coreset",
            width=("width", width, num_heads),
            gamma=gamma,
            dropout=dropout,
            coreset_size=coreset_size,
            num_layers=num_layers,
        )
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
        # Attributes are keys of stored state dicts: `belief` is the inlier gate.
        self.belief = _InlierGate(gate_start, gate_steepness)
        self.quality = zero_last_layer(hidden_layers(embedding_size + 2 + _NUM_CENTRES, _QUALITY_WIDTH, 1))
        self.token = nn.Linear(2 * embedding_size + _CLUSTER_STATISTICS, width)
        self.layers = nn.ModuleList(
            TransformerBlock(width, num_heads, 2 * width, dropout) for _ in range(num_layers)
        )
        self.output_norm = nn.LayerNorm(width)
        # The logit of the weight, then the residual; starts as the mean of the clusters.
        self.output = nn.Linear(width, 1 + embedding_size - auxiliary_size)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def aggregate(self, features: Tensor, norms: Tensor, mask: Tensor, auxiliary: Tensor) -> AggregatorOutput:
        """See the base class."""
        D = features.shape[-1]
        similarity, inverse_multiplicity = _anchor_similarity(
            features, norms, mask, self.gamma, self.copy_similarity
        )
        logs = log_norms(norms)
        agreement = _cosines_to_centres(features, norms, mask, inverse_multiplicity)
        inlier = self.belief(similarity, agreement, logs, inverse_multiplicity)
        selection = select_faces(
            features,
            norms * inlier.detach().exp(),
            mask,
            coreset_size=self.coreset_size,
            gamma=self.gamma,
            padding_is_finite=True,
            tie_tolerance=_TIE_TOLERANCE,
        )
        members = _assign(features, selection.picks, selection.present, mask)
        faces = torch.cat([features * D**0.5, auxiliary], dim=2)
        inputs = torch.cat([faces, torch.stack([logs, *agreement, similarity], dim=2)], dim=2)
        quality = self.exponent() * logs + self.quality(inputs).squeeze(2) + inlier
        best = quality.masked_fill(~mask, -torch.inf).amax(dim=1, keepdim=True)
        quality = (quality - best).masked_fill(~mask, 0).exp().clamp_min(_MIN_QUALITY)
        within = members * quality.unsqueeze(1)
        within = within / within.sum(dim=2, keepdim=True).clamp_min(_MIN_QUALITY)
        mean, coherence = unit_and_norm(torch.bmm(within, features))
        # A cluster is empty if all its faces are as near to an earlier pick, as copies are.
        filled = members.any(dim=2)
        statistics = _cluster_statistics(features, logs, mask, members, within, mean)
        picked = _gather(faces, selection.picks)
        mean_similarity = torch.bmm(within, similarity.unsqueeze(2))
        log_probability = _LOG_PROBABILITY_SCALE * inlier.clamp_min(_MIN_LOG_PROBABILITY).unsqueeze(2)
        mean_inlier = torch.bmm(within, log_probability)
        means = [mean * D**0.5, torch.bmm(within, auxiliary)]
        parts = [*means, picked, statistics, coherence.unsqueeze(2), mean_similarity, mean_inlier]
        tokens = self.token(torch.cat(parts, dim=2))
        for layer in self.layers:
            tokens = layer(tokens, filled)
        logit, residual = self.output(self.output_norm(tokens)).split([1, D], dim=2)
        weights = masked_softmax(logit.squeeze(2), filled)
        shares = torch.bmm(weights.unsqueeze(1), within).squeeze(1)
        return AggregatorOutput(weighted_sum(weights, mean + residual), shares, selection.picks)


class _InlierGate(nn.Module):
    """Log-probability that a face shows the subject of its set."""

    def __init__(self, start: float, steepness: float) -> None:
        super().__init__()
        self.initial_steepness = steepness
        # Both of order one, as Adam moves parameters by its learning rate.
        self.middle = nn.Parameter(torch.tensor(float(start)))
        self.steepness = nn.Parameter(torch.tensor(1.0))
        self.face = nn.Linear(3 + _NUM_CENTRES, _GATE_WIDTH)
        self.rest = zero_last_layer(hidden_layers(2 * _GATE_WIDTH + 1, _GATE_WIDTH, 1))

    def forward(
        self, similarity: Tensor, agreement: list[Tensor], logs: Tensor, inverse_multiplicity: Tensor
    ) -> Tensor:
        """(B, T), at most 0; `inverse_multiplicity` is zero for padding."""
        curve = self.initial_steepness * self.steepness * (similarity - self.middle)
        cosines = [_COSINE_SCALE * each for each in (similarity, *agreement)]
        own = F.gelu(self.face(torch.stack([*cosines, logs, 2 * curve.sigmoid()], dim=2)))
        count = inverse_multiplicity.sum(dim=1, keepdim=True)
        of_set = weighted_sum(inverse_multiplicity / count, own).unsqueeze(1).expand_as(own)
        size = count.log().unsqueeze(2).expand(-1, own.shape[1], -1)
        logit = curve + _LOGIT_SCALE * self.rest(torch.cat([own, of_set, size], dim=2)).squeeze(2)
        # F.logsigmoid in operations that ONNX has: its log(sigmoid) is -inf below -88.
        log_probability: Tensor = logit.clamp_max(0) - torch.log1p((-logit.abs()).exp())
        return log_probability


def _anchor_similarity(
    features: Tensor, norms: Tensor, mask: Tensor, gamma: float, copy_similarity: float
) -> tuple[Tensor, Tensor]:
    """Maximum cosine similarity of each face to anchors that are no copies of it, and inverse multiplicity.

    Anchors are the first faces of farthest-point sampling. The inverse multiplicity of an anchor's copies is
    one over their number. Both (B, T); similarities are at least 0.
    """
    found = select_faces(
        features, norms, mask, coreset_size=_NUM_ANCHORS, gamma=gamma, padding_is_finite=True
    )
    similarity = torch.zeros_like(norms)
    inverse_multiplicity = mask.to(norms.dtype)
    for number, anchor in enumerate(_gather(features, found.picks).unbind(1)):
        cosine = (features * anchor.unsqueeze(1)).sum(dim=2)
        present = found.present[:, number : number + 1]
        is_copy = (cosine >= copy_similarity) & present & mask
        counts = (cosine < copy_similarity) & present
        similarity = torch.where(counts, torch.maximum(similarity, cosine), similarity)
        share = 1 / is_copy.sum(dim=1, keepdim=True).clamp_min(1)
        inverse_multiplicity = torch.where(is_copy, share, inverse_multiplicity)
    return similarity, inverse_multiplicity


def _cosines_to_centres(
    features: Tensor, norms: Tensor, mask: Tensor, inverse_multiplicity: Tensor
) -> list[Tensor]:
    """Cosines (B, T) of each face to the mean by squared norms, and to the mean of faces near that one.

    Summed row by row, since the last bits of a product could separate copies of a face.
    """
    weights = norms.masked_fill(~mask, 0).square() * inverse_multiplicity
    cosines = []
    for _ in range(_NUM_CENTRES):
        centre, _ = unit_and_norm(weighted_sum(weights, features))
        cosine = (features * centre.unsqueeze(1)).sum(dim=2)
        cosines.append(cosine)
        weights = weights * (_CENTRE_SHARPNESS * cosine).exp()
    return cosines


def _gather(features: Tensor, picks: Tensor) -> Tensor:
    """Features (B, K, D) of picks (B, K); an arbitrary face's where there is no pick."""
    return features.gather(1, picks.clamp_min(0).unsqueeze(2).expand(-1, -1, features.shape[2]))


def _assign(features: Tensor, picks: Tensor, present: Tensor, mask: Tensor) -> Tensor:
    """(B, K, T) bool: the faces nearest to each pick; ties go to the earlier pick.

    By differences, since the last bits of a product could separate copies of a face.
    """
    distances = []
    for number, pick in enumerate(_gather(features, picks).unbind(1)):
        distance = (features - pick.unsqueeze(1)).square().sum(dim=2)
        distances.append(distance.masked_fill(~present[:, number : number + 1], torch.inf))
    nearest = torch.stack(distances, dim=1).argmin(dim=1, keepdim=True)
    numbers = torch.arange(picks.shape[1], device=picks.device)
    return (nearest == numbers[:, None]) & mask.unsqueeze(1)


def _cluster_statistics(
    features: Tensor, logs: Tensor, mask: Tensor, members: Tensor, within: Tensor, mean: Tensor
) -> Tensor:
    """(B, K, 4): relative size, mean and largest log norm, cosine of the mean to the set's mean."""
    share = members.sum(dim=2) / mask.sum(dim=1, keepdim=True)
    mean_log = (within * logs.unsqueeze(1)).sum(dim=2)
    # An empty cluster has no largest norm; its token is masked.
    lowest = logs.amin(dim=1)[:, None, None]
    best_log = torch.where(members, logs.unsqueeze(1), lowest).amax(dim=2)
    whole, _ = unit_and_norm(weighted_sum(mask.to(features.dtype), features))
    cosine = torch.bmm(mean, whole.unsqueeze(2)).squeeze(2)
    return torch.stack([share.to(logs.dtype), mean_log, best_log, cosine], dim=2)

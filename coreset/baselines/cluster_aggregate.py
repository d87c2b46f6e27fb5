"""CAFace: soft assignment of faces to learned centres, then weights per value."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coreset.base import AggregatorOutput, LearnedAggregator
from coreset.layers import (
    TransformerBlock,
    check_options,
    hidden_layers,
    log_norms,
    masked_softmax,
    norm_code,
    weighted_sum,
)

_STYLE, _NORM_CODE = 64, 64
_WIDTH = _STYLE + _NORM_CODE
_HEADS = 8
# Cosine to the set's mean and to its norm-weighted mean, log norm relative to the set's mean.
_STATISTICS = 3


class ClusterAggregate(LearnedAggregator):
    """Cluster and Aggregate (CAFace, NeurIPS 2022, arXiv 2210.10864).

    Cluster network: two transformer blocks over style tokens of the faces and M centres, then soft assignment
    of each face to the input centres; a centre's feature and style are the assigned means. Aggregation
    network: MLP-Mixer blocks over [centre, style] predict a weight for each value of the M features. Self-
    attention over all faces is O(T^2), and copies of a face change the descriptor.

    Differences: style is computed from the unit feature with statistics of norm and similarity, not from
    feature maps, beside the code of the log norm; the set is processed at once, not batch by batch; assigned
    means are divided by their total weight, not by at least one; the losses on clusters are not used. Sizes
    are those of the paper's best model.
    """

    def __init__(self, *, embedding_size: int, num_centres: int = 4, quality: str = "norm") -> None:
        super().__init__(embedding_size, quality=quality)
        check_options("caface", num_centres=num_centres)
        M = num_centres
        self.style = hidden_layers(embedding_size + _STATISTICS, _WIDTH, _STYLE)
        self.centres = nn.Parameter(torch.empty(M, _WIDTH))
        nn.init.orthogonal_(self.centres)
        self.blocks = nn.ModuleList(TransformerBlock(_WIDTH, _HEADS, 4 * _WIDTH) for _ in range(2))
        self.face_norm, self.centre_norm = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.queries = nn.Linear(_WIDTH, _WIDTH)
        self.keys = nn.Linear(_WIDTH, _WIDTH)
        self.mixers = nn.ModuleList(_MixerBlock(M, 2 * _WIDTH) for _ in range(2))
        self.confidence = hidden_layers(2 * _WIDTH, 2 * _WIDTH, embedding_size)

    def aggregate(self, features: Tensor, norms: Tensor, mask: Tensor, auxiliary: Tensor) -> AggregatorOutput:
        """See the base class."""
        T = features.shape[1]
        B, M = features.shape[0], self.centres.shape[0]
        centres = self.centres.expand(B, -1, -1)
        tokens = torch.cat([self._tokens(features, norms, mask), centres], dim=1)
        seen = torch.cat([mask, mask.new_ones(B, M)], dim=1)
        for block in self.blocks:
            tokens = block(tokens, seen)
        # The input centres, whose meaning does not change with the set.
        faces = self.face_norm(tokens[:, :T])
        queries = self.queries(self.centre_norm(centres)) * _WIDTH**-0.5
        assigned = (queries @ self.keys(faces).transpose(1, 2)).softmax(dim=1) * mask.unsqueeze(1)
        # Rounding can make all assignments to a centre zero.
        total = assigned.sum(dim=2, keepdim=True).clamp_min(torch.finfo(assigned.dtype).tiny)
        assigned = assigned / total
        confidence = torch.cat([centres, assigned @ faces], dim=2)
        for mixer in self.mixers:
            confidence = mixer(confidence)
        weights = self.confidence(confidence).softmax(dim=1)
        vectors = (weights * (assigned @ features)).sum(dim=1)
        shares = torch.bmm(weights.mean(dim=2).unsqueeze(1), assigned).squeeze(1)
        return AggregatorOutput(vectors, shares)

    def _tokens(self, features: Tensor, norms: Tensor, mask: Tensor) -> Tensor:
        """Tokens (B, T, W): style and the code of the norm."""
        D = features.shape[-1]
        logs = log_norms(norms)
        equal = mask.to(features.dtype) / mask.sum(dim=1, keepdim=True)
        by_norm = masked_softmax(logs, mask)
        statistics = [
            (features @ weighted_sum(shares, features).unsqueeze(2)).squeeze(2) for shares in (equal, by_norm)
        ]
        statistics.append(logs - (equal * logs).sum(dim=1, keepdim=True))
        style = self.style(torch.cat([features * D**0.5, torch.stack(statistics, dim=2)], dim=2))
        return torch.cat([style, norm_code(logs, _NORM_CODE)], dim=2)


class _MixerBlock(nn.Module):
    """MLP-Mixer block (arXiv 2105.01601)."""

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.before_tokens, self.before_channels = nn.LayerNorm(width), nn.LayerNorm(width)
        self.over_tokens = hidden_layers(num_tokens, 2 * num_tokens, num_tokens)
        self.over_channels = hidden_layers(width, width // 2, width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.over_tokens(self.before_tokens(tokens).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = tokens + self.over_channels(self.before_channels(tokens))
        return mixed

"""Attention with a context vector from the set's mean and variance; linear in the set size."""

from __future__ import annotations

import torch
from torch import Tensor

from coreset.base import AggregatorOutput, LearnedAggregator
from coreset.layers import check_options, hidden_layers, masked_softmax, mean_and_variance, weighted_sum


class ContextAttention(LearnedAggregator):
    """Context-vector attention: weights are softmax(c · f_i) with a context vector c of the set.

    A network with one hidden layer maps the set's mean and variance, scaled to order one, to c.

    The idea is from the abstract of CoNAN (arXiv 2307.10237). This is not a re-creation: details of the paper
    were not available, and figures of this aggregator do not apply to it.
    """

    def __init__(self, *, embedding_size: int, hidden_size: int = 256, quality: str = "norm") -> None:
        super().__init__(embedding_size, quality=quality)
        check_options("context_attention", hidden_size=hidden_size)
        self.context = hidden_layers(2 * embedding_size, hidden_size, embedding_size)

    def aggregate(self, features: Tensor, norms: Tensor, mask: Tensor, auxiliary: Tensor) -> AggregatorOutput:
        """See the base class."""
        D = features.shape[-1]
        mean, variance = mean_and_variance(features, mask)
        context = self.context(torch.cat([mean * D**0.5, variance * D], dim=1))
        shares = masked_softmax((features @ context.unsqueeze(2)).squeeze(2), mask)
        return AggregatorOutput(weighted_sum(shares, features), shares)

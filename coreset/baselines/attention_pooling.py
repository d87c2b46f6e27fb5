"""Attention weights conditioned on the set: NAN and context-vector attention. Both are linear in the faces.

Features stay as they are: whatever such an aggregator learns, its descriptor lies among the faces.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coreset.base import AggregatorOutput, LearnedAggregator
from coreset.layers import check_options, hidden_layers, masked_softmax, weighted_sum


class NeuralAggregation(LearnedAggregator):
    """NAN, two attention blocks: Yang et al., Neural Aggregation Network for Video Face Recognition (2017).

    Weights are the softmax of q . f_i, first for one q that is learned; what they sum to makes the q of the
    second block, tanh(W r + b). Features enter as unit vectors, as in the paper, so that norms are not seen.

    Chosen: all starts at zero, hence as the mean. The paper trains with a contrastive loss, or a softmax over
    subjects, as the task is; here the recipe's loss, which has both.
    """

    def __init__(self, *, embedding_size: int, quality: str = "norm") -> None:
        super().__init__(embedding_size, quality=quality)
        self.query = nn.Parameter(torch.zeros(embedding_size))
        self.transfer = nn.Linear(embedding_size, embedding_size)
        nn.init.zeros_(self.transfer.weight)
        nn.init.zeros_(self.transfer.bias)

    def aggregate(self, features: Tensor, norms: Tensor, mask: Tensor) -> AggregatorOutput:
        """See the base class."""
        first = weighted_sum(masked_softmax(features @ self.query, mask), features)
        query = torch.tanh(self.transfer(first))
        shares = masked_softmax((features @ query.unsqueeze(2)).squeeze(2), mask)
        return AggregatorOutput(weighted_sum(shares, features), shares)


class ContextAttention(LearnedAggregator):
    """Context-vector attention: weights are the softmax of c . f_i, c a function of the set's distribution.

    A network with one hidden layer maps the mean and the variance of each value over the set, scaled to order
    one at any D, to the context vector c.

    The idea is that of CoNAN (Jawade et al., 2023, arXiv 2307.10237), of which only the abstract was
    available: "a context vector conditioned over the distribution information of the incoming feature set,
    which is utilized to weigh the features". This is not a re-creation of CoNAN; how its paper describes the
    distribution, builds the network and trains it is not known here, and no figure of this aggregator speaks
    for it.
    """

    def __init__(self, *, embedding_size: int, hidden_size: int = 256, quality: str = "norm") -> None:
        super().__init__(embedding_size, quality=quality)
        check_options("context_attention", hidden_size=hidden_size)
        self.context = hidden_layers(2 * embedding_size, hidden_size, embedding_size)

    def aggregate(self, features: Tensor, norms: Tensor, mask: Tensor) -> AggregatorOutput:
        """See the base class."""
        D = features.shape[-1]
        mean, variance = mean_and_variance(features, mask)
        context = self.context(torch.cat([mean * D**0.5, variance * D], dim=1))
        shares = masked_softmax((features @ context.unsqueeze(2)).squeeze(2), mask)
        return AggregatorOutput(weighted_sum(shares, features), shares)


def mean_and_variance(rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B, D) each, of the rows (B, T, D) that the mask (B, T) names; the variance is the biased one."""
    share = mask.to(rows.dtype) / mask.sum(dim=1, keepdim=True)
    mean = weighted_sum(share, rows)
    return mean, weighted_sum(share, (rows - mean.unsqueeze(1)).square())

"""NAN: two cascaded attention blocks; linear in the set size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coreset.base import AggregatorOutput, LearnedAggregator
from coreset.layers import masked_softmax, weighted_sum


class NeuralAggregation(LearnedAggregator):
    """NAN: Neural Aggregation Network for Video Face Recognition (CVPR 2017, arXiv 1603.05474).

    Two cascaded attention blocks. Weights are softmax(q · f_i) with a learned query q; their weighted sum r
    gives the query tanh(W r + b) of the second block. Features are unit vectors, so norms are not used.

    Differences: parameters start at zero, which is the mean; trained by the loss of the recipe.
    """

    def __init__(self, *, embedding_size: int, quality: str = "norm") -> None:
        super().__init__(embedding_size, quality=quality)
        self.query = nn.Parameter(torch.zeros(embedding_size))
        self.transfer = nn.Linear(embedding_size, embedding_size)
        nn.init.zeros_(self.transfer.weight)
        nn.init.zeros_(self.transfer.bias)

    def aggregate(self, features: Tensor, norms: Tensor, mask: Tensor, auxiliary: Tensor) -> AggregatorOutput:
        """See the base class."""
        first = weighted_sum(masked_softmax(features @ self.query, mask), features)
        query = torch.tanh(self.transfer(first))
        shares = masked_softmax((features @ query.unsqueeze(2)).squeeze(2), mask)
        return AggregatorOutput(weighted_sum(shares, features), shares)

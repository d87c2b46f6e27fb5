"""Fusion by predicted inverse variances, as in PFE; linear in the set size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coreset.base import AggregatorOutput, LearnedAggregator
from coreset.layers import check_options, log_norms


class InverseVariance(LearnedAggregator):
    """After Probabilistic Face Embeddings (ICCV 2019, arXiv 1904.09658).

    A network predicts the variance of each value of a feature; values are weighted by the inverse variance,
    the mean of the product of Gaussians.

    Differences: the network has two layers over feature and log norm instead of reading feature maps, with
    LayerNorm instead of batch statistics; it is trained by the loss of the recipe instead of the mutual
    likelihood score; descriptors are compared by cosine, so that the fused variance is unused.
    """

    def __init__(self, *, embedding_size: int, hidden_size: int = 256, quality: str = "norm") -> None:
        super().__init__(embedding_size, quality=quality)
        check_options("inverse_variance", hidden_size=hidden_size)
        self.log_variance = nn.Sequential(
            nn.Linear(embedding_size + 1, hidden_size),
            nn.LayerNorm(hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, embedding_size),
        )

    def aggregate(self, features: Tensor, norms: Tensor, mask: Tensor, auxiliary: Tensor) -> AggregatorOutput:
        """See the base class."""
        D = features.shape[-1]
        inputs = torch.cat([features * D**0.5, log_norms(norms).unsqueeze(2)], dim=2)
        logits = -self.log_variance(inputs)
        weights = logits.masked_fill(~mask.unsqueeze(2), -torch.inf).softmax(dim=1)
        return AggregatorOutput((weights * features).sum(dim=1), weights.mean(dim=2))

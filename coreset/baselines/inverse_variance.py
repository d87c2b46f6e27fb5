"""PFE-style fusion: each value of a feature counts as much as it is sure. Linear in the faces."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coreset.base import AggregatorOutput, LearnedAggregator
from coreset.layers import check_options, log_norms


class InverseVariance(LearnedAggregator):
    """After Shi and Jain, Probabilistic Face Embeddings (ICCV 2019).

    A network says the variance of every value of a face; a set's mean is that of its Gaussians' product:
    weights are one over the variance, value by value.

    The paper's network reads the last feature map and is trained by a mutual likelihood score on single
    faces; from features alone neither is to be had. Chosen: two layers over feature and log norm, with
    LayerNorm in place of batch statistics, which padding would enter; trained by the recipe's loss on
    descriptors. Descriptors are compared by cosine, as all others, so that the fused variance goes unused.
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

    def aggregate(self, features: Tensor, norms: Tensor, mask: Tensor) -> AggregatorOutput:
        """See the base class."""
        D = features.shape[-1]
        inputs = torch.cat([features * D**0.5, log_norms(norms).unsqueeze(2)], dim=2)
        logits = -self.log_variance(inputs)
        weights = logits.masked_fill(~mask.unsqueeze(2), -torch.inf).softmax(dim=1)
        return AggregatorOutput((weights * features).sum(dim=1), weights.mean(dim=2))

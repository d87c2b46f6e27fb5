"""Baseline without selection of faces: norm-weighted mean and one hidden layer."""

from __future__ import annotations

from torch import Tensor

from coreset.base import AggregatorOutput, LearnedAggregator
from coreset.layers import (
    LearnedExponent,
    check_options,
    hidden_layers,
    log_norms,
    masked_softmax,
    weighted_sum,
    zero_last_layer,
)
from coreset.sets import unit_and_norm


class LearnedMap(LearnedAggregator):
    """Mean of unit features weighted by norm ** a, plus a residual of one hidden layer.

    It shows how much of an aggregator's gain comes from a small layer alone. The residual starts at zero.

    Args:
        embedding_size: D.
        hidden_size: of the residual.
        exponent: initial a.
        quality: what replaces the norms, see `coreset.quality`.
    """

    def __init__(
        self,
        *,
        embedding_size: int,
        hidden_size: int = 384,
        exponent: float = 1.0,
        quality: str = "norm",
    ) -> None:
        super().__init__(embedding_size, quality=quality)
        check_options("learned_map", hidden_size=hidden_size)
        self.exponent = LearnedExponent(exponent)
        self.map = zero_last_layer(hidden_layers(embedding_size, hidden_size, embedding_size))

    def aggregate(self, features: Tensor, norms: Tensor, mask: Tensor, auxiliary: Tensor) -> AggregatorOutput:
        """See the base class."""
        shares = masked_softmax(self.exponent() * log_norms(norms), mask)
        direction, length = unit_and_norm(weighted_sum(shares, features))
        mapped = direction + self.map(direction * direction.shape[-1] ** 0.5)
        return AggregatorOutput(mapped * length.unsqueeze(1), shares)

"""Set Transformer over the faces, pooled by attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coreset.base import AggregatorOutput, LearnedAggregator
from coreset.layers import (
    Attention,
    check_options,
    hidden_layers,
    log_norms,
    masked_softmax,
    weighted_sum,
    zero_last_layer,
)
from runtime.errors import InputError


class SetTransformer(LearnedAggregator):
    """Set Transformer (ICML 2019, arXiv 1810.00825): PMA over two blocks.

    With m inducing points the blocks are ISAB (Eq. 9-10), O(T m); with 0 they are SAB (Eq. 8), O(T^2). PMA
    has one seed (Eq. 11). Blocks are MAB (Eq. 6-7) with LayerNorm, as in the paper's code.

    Adapted to faces: unit feature, log norm and auxiliary features make a token. The seed's attention gives
    both the weights of the faces, averaged over heads, and the pooled token, whose output is a residual on
    the weighted sum that starts at zero.

    Args:
        embedding_size: values of a row, D and the auxiliary features.
        inducing_points: m.
        width: of the tokens.
        num_heads: of the attention.
        auxiliary_size: number of auxiliary features.
        quality: what replaces the norms, see `coreset.quality`.
    """

    def __init__(
        self,
        *,
        embedding_size: int,
        inducing_points: int = 16,
        width: int = 128,
        num_heads: int = 4,
        auxiliary_size: int = 0,
        quality: str = "norm",
    ) -> None:
        super().__init__(embedding_size, auxiliary_size, quality)
        check_options("set_transformer", width=("width", width, num_heads))
        if inducing_points < 0:
            raise InputError(
                f"set_transformer: inducing_points {inducing_points} must be at least 0; 0 is attention "
                "between all faces, quadratic in their number."
            )
        self.token = nn.Linear(embedding_size + 1, width)
        self.blocks = nn.ModuleList(
            _InducedBlock(width, num_heads, inducing_points)
            if inducing_points
            else _SelfBlock(width, num_heads)
            for _ in range(2)
        )
        self.seed = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.seed, std=width**-0.5)
        self.num_heads = num_heads
        self.keys = nn.Linear(width, width)
        self.values = nn.Linear(width, width)
        self.after_seed = nn.LayerNorm(width)
        self.output = zero_last_layer(hidden_layers(width, width, embedding_size - auxiliary_size))

    def aggregate(self, features: Tensor, norms: Tensor, mask: Tensor, auxiliary: Tensor) -> AggregatorOutput:
        """See the base class."""
        D = features.shape[-1]
        tokens = self.token(torch.cat([features * D**0.5, log_norms(norms).unsqueeze(2), auxiliary], dim=2))
        for block in self.blocks:
            tokens = block(tokens, mask)
        # PMA written out, since its attention weights are needed.
        B, T, W = tokens.shape
        heads = (self.num_heads, W // self.num_heads)
        keys, values = (project(tokens).view(B, T, *heads) for project in (self.keys, self.values))
        logits = (keys * self.seed.view(heads)).sum(dim=3) * heads[1] ** -0.5
        attention = masked_softmax(logits.transpose(1, 2), mask.unsqueeze(1))
        pooled = (attention.unsqueeze(2) @ values.transpose(1, 2)).squeeze(2).flatten(1)
        shares = attention.mean(dim=1)
        residual = self.output(self.after_seed(self.seed + pooled))
        return AggregatorOutput(weighted_sum(shares, features) + residual, shares)


class _AttentionBlock(nn.Module):
    """MAB(X, Y): H = LN(X + Attention(X, Y)), then LN(H + MLP(H))."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, num_heads)
        self.hidden = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.after_attention, self.after_hidden = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, queries: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        attended = self.after_attention(queries + self.attention(queries, tokens, mask))
        refined: Tensor = self.after_hidden(attended + self.hidden(attended))
        return refined


class _SelfBlock(nn.Module):
    """SAB(X) = MAB(X, X)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.block = _AttentionBlock(width, num_heads)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        refined: Tensor = self.block(tokens, tokens, mask)
        return refined


class _InducedBlock(nn.Module):
    """ISAB(X) = MAB(X, MAB(I, X)) with learned points I."""

    def __init__(self, width: int, num_heads: int, inducing_points: int) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.empty(inducing_points, width))
        nn.init.xavier_uniform_(self.points)
        self.gather = _AttentionBlock(width, num_heads)
        self.spread = _AttentionBlock(width, num_heads)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        points = self.points.expand(tokens.shape[0], -1, -1)
        spread: Tensor = self.spread(tokens, self.gather(points, tokens, mask), None)
        return spread

"""Multi-head attention of a few queries over a large set."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreset.precision import at_least_float32


class SetAttention(nn.Module):
    """Attention of a few queries over a set, with names and initialisation of torch.nn.MultiheadAttention.

    Keys and values are affine in the set, so their projections can be folded into the queries and into the
    weighted sum: products of T x D x D become K x D x D. Both ways are equal; `folding_pays` decides.
    """

    def __init__(self, embedding_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embedding_size, embedding_size))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embedding_size))
        self.out_proj = nn.Linear(embedding_size, embedding_size)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        *,
        folded: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Output (B, K, D), and attention weights (B, H, K, T) before dropout.

        Args:
            queries: (B, K, D).
            keys: (B, T, D).
            values: (B, T, D).
            mask: (B, T) bool, True where to attend to.
            folded: whether to fold the projections; None lets `folding_pays` decide.
        """
        H, D = self.num_heads, queries.shape[-1]
        if folded is None:
            folded = folding_pays(keys.shape[1], queries.shape[1], H, D)
        weight_q, weight_k, weight_v = self.in_proj_weight.view(3, H, D // H, D).unbind()
        bias_q, bias_k, bias_v = self.in_proj_bias.view(3, D).unbind()
        heads = _split_heads(F.linear(queries, weight_q.flatten(0, 1), bias_q) / math.sqrt(D // H), H)
        if folded:
            # The bias of the keys adds a constant to all logits of a query, which the softmax removes.
            # einsum, since a broadcast matmul would copy the weight for every set.
            logits = _per_set(torch.einsum("bhkd,hde->bhke", heads, weight_k), keys.transpose(1, 2))
        else:
            logits = heads @ _split_heads(F.linear(keys, weight_k.flatten(0, 1), bias_k), H).transpose(2, 3)
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None, :], -torch.inf)
        weights = at_least_float32(logits).softmax(dim=-1)
        kept = self.dropout(weights)
        if folded:
            # After dropout the weights do not sum to one, hence the bias in proportion.
            mixed = torch.einsum("bhke,hde->bhkd", _per_set(kept, values), weight_v)
            mixed = mixed + kept.sum(dim=-1, keepdim=True) * bias_v.view(H, 1, D // H)
        else:
            mixed = kept @ _split_heads(F.linear(values, weight_v.flatten(0, 1), bias_v), H)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), weights


def folding_pays(num_faces: int, num_queries: int, num_heads: int, embedding_size: int) -> bool:
    """Whether folding the key and value projections into the queries is faster for sets of `num_faces`.

    Per set, projecting costs 2 T D^2 multiplications and folding 2 K D^2 + 2 (H - 1) T K D. Measured, the
    small products of folding run at about half the speed, hence the factor of 2 (one core, D 512, H 8: equal
    at T = 5 for K = 3 and near T = 20 for K = 8; at T = 64, K = 3 folding is 4.6 times as fast).
    `benchmarks/speed/aggregation.py` prints the table.
    """
    return num_faces * (embedding_size - num_heads * num_queries) > 2 * num_queries * embedding_size


def _split_heads(rows: Tensor, num_heads: int) -> Tensor:
    B, T, D = rows.shape
    return rows.reshape(B, T, num_heads, D // num_heads).transpose(1, 2)


def _per_set(left: Tensor, right: Tensor) -> Tensor:
    """(B, H, K, X) times (B, X, Y) -> (B, H, K, Y), as one product for each set."""
    return torch.bmm(left.flatten(1, 2), right).view(*left.shape[:3], right.shape[2])

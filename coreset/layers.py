"""Network layers and checks of options that aggregators share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreset.selection import LARGEST_GAMMA, SMALLEST_NORM
from runtime.errors import InputError


class LearnedExponent(nn.Module):
    """The exponent a of norm ** a, stored as a tenth of it.

    Adam moves a parameter by at most its learning rate per step: at 1e-3 and 1,000 steps an exponent stored
    as it is gets from 1 to 2 at most. Sets with many poor faces need more: on LFWS, pooling by norm ** 1
    reaches 53.6 % TAR at a FAR of 1e-02, by norm ** 12 72.7 %.
    """

    def __init__(self, start: float) -> None:
        super().__init__()
        self.tenth = nn.Parameter(torch.tensor(start / 10))

    def forward(self) -> Tensor:
        """The exponent, a scalar."""
        return 10 * self.tenth


class Attention(nn.Module):
    """Multi-head attention by `scaled_dot_product_attention`."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.queries = nn.Linear(width, width)
        self.keys = nn.Linear(width, width)
        self.values = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, queries: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from queries (B, Q, W) to tokens (B, T, W) where the mask (B, T) is True; (B, Q, W)."""
        mixed = F.scaled_dot_product_attention(
            self._heads(self.queries(queries)),
            self._heads(self.keys(tokens)),
            self._heads(self.values(tokens)),
            None if mask is None else mask[:, None, None, :],
        )
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output

    def _heads(self, rows: Tensor) -> Tensor:
        B, T, W = rows.shape
        return rows.view(B, T, self.num_heads, W // self.num_heads).transpose(1, 2)


class TransformerBlock(nn.Module):
    """Pre-norm transformer encoder block with GELU and dropout on the residual branches."""

    def __init__(self, width: int, num_heads: int, hidden_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.hidden = nn.Sequential(nn.LayerNorm(width), hidden_layers(width, hidden_size, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, T, W) with a mask (B, T); masked tokens are not attended to, their output is unused."""
        normalised = self.before_attention(tokens)
        tokens = tokens + self.dropout(self.attention(normalised, normalised, mask))
        refined: Tensor = tokens + self.dropout(self.hidden(tokens))
        return refined


def hidden_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """One hidden layer with GELU."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def zero_last_layer(layers: nn.Sequential) -> nn.Sequential:
    """Initialise the last layer to zero, so that a residual branch starts as the identity."""
    for parameter in layers[-1].parameters():
        nn.init.zeros_(parameter)
    return layers


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension, zero where the mask is False; every row needs a True."""
    return logits.masked_fill(~mask, -torch.inf).softmax(dim=-1)


def log_norms(norms: Tensor) -> Tensor:
    """Logarithms of norms, finite for zeros."""
    return norms.clamp_min(SMALLEST_NORM).log()


def norm_code(norms: Tensor, embedding_size: int) -> Tensor:
    """Code of norms r (...) as in the published code, (..., D).

    Sine (even j) and cosine (odd j) of 2 pi r / 10000^(2 floor(j/2)/D) for j < D.
    """
    pairs = torch.arange(0, embedding_size, 2, device=norms.device, dtype=norms.dtype)
    angles = norms.unsqueeze(-1) * (2 * math.pi) / 10000 ** (pairs / embedding_size)
    # Assigned in two halves: torch.stack would take as long as sine and cosine together.
    code = angles.new_empty(*angles.shape, 2)
    code[..., 0], code[..., 1] = angles.sin(), angles.cos()
    return code.flatten(-2)[..., :embedding_size]


def weighted_sum(weights: Tensor, rows: Tensor) -> Tensor:
    """(B, D) from weights (B, T) and rows (B, T, D)."""
    return torch.bmm(weights.unsqueeze(1), rows).squeeze(1)


def mean_and_variance(rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (B, D) of rows (B, T, D) where the mask (B, T) is True."""
    share = mask.to(rows.dtype) / mask.sum(dim=1, keepdim=True)
    mean = weighted_sum(share, rows)
    return mean, weighted_sum(share, (rows - mean.unsqueeze(1)).square())


def check_options(
    owner: str,
    *,
    width: tuple[str, int, int] | None = None,
    gamma: float = 0.0,
    min_gamma: float = 0.0,
    dropout: float = 0.0,
    **counts: int,
) -> None:
    """Check the options of an aggregator.

    Args:
        owner: its name in messages.
        width: name and value of a size, and the number of heads that must divide it.
        gamma: exponent of the quality in the selection.
        min_gamma: smallest allowed gamma.
        dropout: a probability.
        counts: options that must be at least 1, by name.

    Raises:
        InputError: options out of range, all in one message.
    """
    faults = [f"{name} {count} must be at least 1" for name, count in counts.items() if count < 1]
    if width is not None:
        name, size, num_heads = width
        if num_heads < 1 or size < 1 or size % num_heads:
            faults.append(f"{name} {size} must be a positive multiple of num_heads {num_heads}")
    if not min_gamma <= gamma <= LARGEST_GAMMA:
        faults.append(f"gamma {gamma} must be in {min_gamma:g}..{LARGEST_GAMMA:g}; 0 is pure diversity")
    if not 0 <= dropout < 1:
        faults.append(f"dropout {dropout} must be at least 0 and below 1")
    if faults:
        raise InputError.from_faults([f"{owner}: {fault}." for fault in faults])

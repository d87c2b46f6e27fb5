"""What the trained aggregators beside `CoresetAggregator` share: chunks, masks, precision, parts of networks.

An aggregator says its maths for one padded rectangle (`_describe`); ragged batches, padding, autocast, export
and what a SetDescriptor needs are the same for all and stand here.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreset.compiled import CompilableMaths
from coreset.quality import FaceQuality
from coreset.selection import SMALLEST_NORM, at_least_float32, without_autocast
from coreset.sets import FaceSets, SetDescriptor
from runtime.errors import InputError


class Described(NamedTuple):
    """What `_describe` makes of B sets of up to T faces.

    Attributes:
        vectors: (B, D - auxiliary_size) not normalised; 1 is the length of a face.
        shares: (B, T) of each face in the descriptor, at least 0, summing to 1; 0 where there is no face.
        picks: (B, K) int64, -1 where none; None for an aggregator that picks no faces.
    """

    vectors: Tensor
    shares: Tensor
    picks: Tensor | None = None


class LearnedAggregator(CompilableMaths):
    """An aggregator by its maths for a padded rectangle, in float32 or wider whatever autocast says.

    The descriptor's norm is the length of `Described.vectors` times the faces' mean norm by shares: in the
    scale of the backbone's norms, which AdaFace's head expects, and lower where the faces disagree.

    `auxiliary_size`: of the `embedding_size` values of a feature, those at the end that are auxiliary. They
    enter the maths, and a descriptor has none: in evaluation it has D - auxiliary_size values. In training
    zeros stand in their place, so that it is as long as a feature, which the margin head's columns are.
    `quality`: of `coreset.quality`, in place of the norms that the maths is given.

    Raises:
        InputError: an embedding size below 1, an auxiliary size that leaves nothing of it, or no such
        quality.
    """

    def __init__(self, embedding_size: int, auxiliary_size: int = 0, quality: str = "norm") -> None:
        super().__init__()
        name = type(self).__name__
        if embedding_size < 1:
            raise InputError(f"{name}: embedding_size {embedding_size} must be at least 1.")
        if not 0 <= auxiliary_size < embedding_size:
            raise InputError(f"{name}: auxiliary_size {auxiliary_size} must be in 0..{embedding_size - 1}.")
        self.embedding_size = embedding_size
        self.auxiliary_size = auxiliary_size
        self.face_quality = FaceQuality(quality, name, "spread", embedding_size)

    @abstractmethod
    def _describe(self, features: Tensor, norms: Tensor, mask: Tensor) -> Described:
        """The maths: unit features (B, T, D), norms (B, T), mask (B, T) bool, True where there is a face.

        Each set has a face; all other places hold finite values that must not matter.
        """

    def forward(self, sets: FaceSets) -> SetDescriptor:
        """Descriptors of all sets, in their order; `weights` in evaluation alone.

        Raises:
            InputError: features of another size.
        """
        if sets.embedding_size != self.embedding_size:
            raise InputError(
                f"{type(self).__name__}: made for features of {self.embedding_size} values, found "
                f"{sets.embedding_size}. Use the backbone that this aggregator was trained with."
            )
        sets = self.face_quality.applied(sets)
        weights = None if self.training else sets.norms.new_zeros(sets.num_faces, dtype=torch.float32)
        order, vectors, picks = [], [], []
        for chunk in sets.chunks():
            features, norms = chunk.take(sets.features), chunk.take(sets.norms)
            vector, pick, shares = self._run_maths(features, norms, chunk.mask)
            order.append(chunk.sets)
            vectors.append(vector)
            picks.append(pick)
            if weights is not None:
                here = ... if chunk.mask is None else chunk.mask
                weights[chunk.rows[here]] = shares.detach()[here].float()
        place = torch.cat(order).argsort()
        return SetDescriptor.from_vectors(torch.cat(vectors)[place], torch.cat(picks)[place], weights)

    def aggregate_padded(
        self, features: Tensor, norms: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `CoresetAggregator.aggregate_padded`: what an exporter traces."""
        norms = self.face_quality(features, norms)
        if mask is not None:
            features, norms = features.masked_fill(~mask.unsqueeze(-1), 0), norms.masked_fill(~mask, 0)
        padded: tuple[Tensor, Tensor, Tensor] = self._run_maths(features, norms, mask)
        return padded

    def _maths(self, features: Tensor, norms: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors in the scale of the norms (B, D or without auxiliary values), picks (B, K), shares (B,
        T).
        """
        with without_autocast(features):
            features, norms = at_least_float32(features), at_least_float32(norms)
            if mask is None:
                mask = torch.ones_like(norms, dtype=torch.bool)
            vectors, shares, picks = self._describe(features, norms, mask)
            if self.auxiliary_size and self.training:
                vectors = F.pad(vectors, (0, self.auxiliary_size))
            if picks is None:
                picks = torch.zeros_like(norms[:, :0], dtype=torch.int64)
            return vectors * (shares * norms).sum(dim=1, keepdim=True), picks, shares


class LearnedExponent(nn.Module):
    """The a of norm ** a, kept as a tenth.

    Adam moves a parameter by its rate a step, so that in a thousand steps at up to 1e-3 a itself would get
    from 1 to 1.5 at most. Where sets are full of poor faces that is too little: on LFWS a pooling by norm **
    1 reaches 53.6 % at a FAR of 1e-02, one by norm ** 12 reaches 72.7 %.
    """

    def __init__(self, start: float) -> None:
        super().__init__()
        self.tenth = nn.Parameter(torch.tensor(start / 10))

    def forward(self) -> Tensor:
        """The exponent, a scalar."""
        return 10 * self.tenth


class Attention(nn.Module):
    """Multi-head attention of queries over tokens; torch.nn.functional picks the kernel.

    Without a gradient none of its kernels keeps queries x tokens in memory on a CPU or with float16.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.queries = nn.Linear(width, width)
        self.keys = nn.Linear(width, width)
        self.values = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, queries: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, Q, W) of queries (B, Q, W) over tokens (B, T, W); mask (B, T), True where to attend to."""
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
    """Self-attention and a hidden layer, each with a residual, dropout on it, and a LayerNorm before."""

    def __init__(self, width: int, num_heads: int, hidden_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.hidden = nn.Sequential(nn.LayerNorm(width), hidden_layers(width, hidden_size, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, T, W), mask (B, T); what comes out where the mask is False is of no use."""
        seen = self.before_attention(tokens)
        tokens = tokens + self.dropout(self.attention(seen, seen, mask))
        refined: Tensor = tokens + self.dropout(self.hidden(tokens))
        return refined


def hidden_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """One hidden layer with GELU."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def starting_at_zero(layers: nn.Sequential) -> nn.Sequential:
    """The same layers, of which the last one gives zeros until it is trained."""
    last = layers[-1]
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return layers


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension, zero where the mask is False; True somewhere in every row."""
    return logits.masked_fill(~mask, -torch.inf).softmax(dim=-1)


def log_norms(norms: Tensor) -> Tensor:
    """Logarithms, finite for norms of zero: a backbone's scale becomes a mere offset."""
    return norms.clamp_min(SMALLEST_NORM).log()


def weighted_sum(weights: Tensor, rows: Tensor) -> Tensor:
    """(B, D) of weights (B, T) and rows (B, T, D)."""
    return torch.bmm(weights.unsqueeze(1), rows).squeeze(1)


def check_heads(owner: str, width: int, num_heads: int) -> None:
    """Raises InputError unless the heads divide the width."""
    if num_heads < 1 or width < 1 or width % num_heads:
        raise InputError(f"{owner}: width {width} must be a positive multiple of num_heads {num_heads}.")


def check_counts(owner: str, **counts: int) -> None:
    """Raises InputError for those below 1."""
    faults = [f"{owner}: {name} {count} must be at least 1." for name, count in counts.items() if count < 1]
    if faults:
        raise InputError.from_faults(faults)

"""CoresetAggregator: a few chosen faces, refined by attention over the whole set, become its descriptor.

Re-created from the maths of FaceCoresetNet (AAAI 2024; METHOD 5). It knows tensors only: no files, no
training loop. Ragged batches are padded here, in chunks of like size, and nowhere outside `coreset`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreset.compiled import CompilableMaths
from coreset.quality import FaceQuality
from coreset.selection import (
    LARGEST_GAMMA,
    SMALLEST_GAMMA,
    Sampling,
    Selection,
    at_least_float32,
    select_faces,
)
from coreset.sets import FaceSets, SetDescriptor
from runtime.errors import InputError

# Parameters of the selection.
_OF_SELECTION = ("gamma", "log_temperature")


class CoresetAggregator(CompilableMaths):
    """Chooses `coreset_size` faces, lets them attend to each other and to the whole set, and averages them.

    In evaluation the descriptor depends neither on the order of the faces nor on the other sets of the batch,
    and `SetDescriptor.weights` is each face's share of the cross-attention, mean over heads and picks; in
    training weights are not computed.

    `clamp_gamma`: a gamma below 0 counts as 0. The published form does not clamp it, so that a negative one
    favours faces of small norm.

    Raises:
        InputError: a value outside its range, or an embedding size that the heads do not divide.
    """

    gamma: Tensor
    log_temperature: Tensor

    def __init__(
        self,
        *,
        embedding_size: int,
        coreset_size: int = 3,
        gamma: float = 0.01,
        learn_gamma: bool = True,
        clamp_gamma: bool = True,
        selection_temperature: float = 1.0,
        learn_temperature: bool = False,
        gumbel_noise: bool = True,
        mask_picked: bool = True,
        num_heads: int = 8,
        dropout: float = 0.1,
        quality: str = "norm",
    ) -> None:
        super().__init__()
        self.clamp_gamma = clamp_gamma
        _check_options(embedding_size, coreset_size, gamma, self.lowest_gamma, num_heads, dropout)
        self.embedding_size = embedding_size
        self.coreset_size = coreset_size
        self.quality = FaceQuality(quality, "coreset", "spread", embedding_size)
        self.gumbel_noise = gumbel_noise
        self.mask_picked = mask_picked
        self._scalar("gamma", gamma, learn_gamma)
        # A logarithm, so that a learned temperature stays above zero; a buffer, so that a schedule resumes.
        start = math.log(_checked_temperature(selection_temperature))
        self._scalar("log_temperature", start, learn_temperature)
        self.norm_code_scale = nn.LayerNorm(embedding_size)
        self.self_attention = SetAttention(embedding_size, num_heads, dropout)
        self.cross_attention = SetAttention(embedding_size, num_heads, dropout)
        self.self_norm = nn.LayerNorm(embedding_size)
        self.cross_norm = nn.LayerNorm(embedding_size)
        self.dropout = nn.Dropout(dropout)

    def _scalar(self, name: str, value: float, learned: bool) -> None:
        tensor = torch.tensor(float(value))
        if learned:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone; as published, all others decay."""
        return {name for name, _ in self.named_parameters() if name in _OF_SELECTION}

    def selection_parameters(self) -> list[nn.Parameter]:
        """Gamma and the temperature, where they are learned; published training gives gamma a rate of its
        own.
        """
        return [value for name, value in self.named_parameters() if name in _OF_SELECTION]

    @property
    def lowest_gamma(self) -> float:
        """A gamma below this counts as this."""
        return 0.0 if self.clamp_gamma else SMALLEST_GAMMA

    @property
    def temperature(self) -> Tensor:
        """Scalar by which training divides the selection's scores; see `Sampling`."""
        return self.log_temperature.exp()

    @torch.no_grad()
    def set_temperature(self, value: float) -> None:
        """Sets the temperature from now on (a schedule's step, or where learning starts)."""
        self.log_temperature.fill_(math.log(_checked_temperature(value)))

    def forward(self, sets: FaceSets) -> SetDescriptor:
        """Descriptors of all sets, in their order; float32 or wider, whatever autocast says.

        Memory is that of one padded chunk (`FaceSets.chunks`) when no gradient is kept.
        """
        self._check_size(sets)
        sets = self.quality.applied(sets)
        weights = None if self.training else sets.norms.new_zeros(sets.num_faces, dtype=torch.float32)
        order, vectors, picks = [], [], []
        for chunk in sets.chunks():
            vector, pick, shares = self._run_maths(
                at_least_float32(chunk.take(sets.features)),
                at_least_float32(chunk.take(sets.norms)),
                chunk.mask,
                # Queries that have no face cost as much as those that have.
                min(self.coreset_size, chunk.rows.shape[1]),
            )
            pick = F.pad(pick, (0, self.coreset_size - pick.shape[1]), value=-1)
            order.append(chunk.sets)
            vectors.append(vector)
            picks.append(pick)
            if weights is not None and shares is not None:
                here = ... if chunk.mask is None else chunk.mask
                weights[chunk.rows[here]] = shares[here].float()
        place = torch.cat(order).argsort()
        return SetDescriptor.from_vectors(torch.cat(vectors)[place], torch.cat(picks)[place], weights)

    def aggregate_padded(
        self, features: Tensor, norms: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The maths for one rectangle: what an exporter traces.

        Args:
            features: (B, T, D) unit rows.
            norms: (B, T); with the quality 'detector' the detector's scores.
            mask: (B, T) bool, True where there is a face, at least one a set; other places may hold NaN.

        Returns:
            Un-normalised descriptors (B, D), picks (B, K) with -1 where none, and in evaluation the faces'
            shares (B, T), zero where there is no face.
        """
        # The norm code needs it as well: its first angle is 2 pi r, and a half-precision 20 has no fraction.
        features, norms = at_least_float32(features), at_least_float32(norms)
        if mask is not None:
            features, norms = features.masked_fill(~mask.unsqueeze(-1), 0), norms.masked_fill(~mask, 0)
        padded: tuple[Tensor, Tensor, Tensor | None] = self._run_maths(
            features, self.quality(features, norms), mask, self.coreset_size
        )
        return padded

    def _maths(
        self, features: Tensor, norms: Tensor, mask: Tensor | None, coreset_size: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `aggregate_padded`; all places hold finite values."""
        picks, core, present = self._select(
            features, norms, mask, coreset_size=coreset_size, training=self.training
        )
        faces = features * norms.unsqueeze(-1)
        start = core + self._norm_code(torch.linalg.vector_norm(core, dim=-1))
        attended, _ = self.self_attention(start, start, start, present)
        queries = self.self_norm(start + self.dropout(attended))
        attended, attention = self.cross_attention(queries, faces + self._norm_code(norms), faces, mask)
        # The published residual starts from the picks themselves, not from the queries.
        refined = core + self.cross_norm(core + self.dropout(attended))
        count = present.sum(dim=1, keepdim=True)
        vectors = refined.masked_fill(~present.unsqueeze(-1), 0).sum(dim=1) / count
        if self.training:
            return vectors, picks, None
        shares = attention.detach().mean(dim=1).masked_fill(~present.unsqueeze(-1), 0).sum(dim=1) / count
        return vectors, picks, shares

    @torch.no_grad()
    def evaluation_picks(self, sets: FaceSets) -> Tensor:
        """(B, K) picks that evaluation makes, in either mode of the module; see `pick_agreement`."""
        self._check_size(sets)
        sets = self.quality.applied(sets)
        chunks = sets.chunks()
        picks = [
            self._select(
                chunk.take(sets.features),
                chunk.take(sets.norms),
                chunk.mask,
                coreset_size=self.coreset_size,
                training=False,
            ).picks
            for chunk in chunks
        ]
        return torch.cat(picks)[torch.cat([chunk.sets for chunk in chunks]).argsort()]

    def _check_size(self, sets: FaceSets) -> None:
        if sets.embedding_size != self.embedding_size:
            raise InputError(
                f"CoresetAggregator: made for features of {self.embedding_size} values, found "
                f"{sets.embedding_size}. Use the backbone that this aggregator was trained with."
            )

    def _select(
        self, features: Tensor, norms: Tensor, mask: Tensor | None, *, coreset_size: int, training: bool
    ) -> Selection:
        sampling = Sampling(self.temperature, self.gumbel_noise, self.mask_picked) if training else None
        return select_faces(
            features,
            norms,
            mask,
            coreset_size=coreset_size,
            gamma=self.gamma,
            sampling=sampling,
            hides_nothing=True,
            lowest_gamma=self.lowest_gamma,
        )

    def _norm_code(self, norms: Tensor) -> Tensor:
        code: Tensor = self.norm_code_scale(norm_code(norms, self.embedding_size))
        return code


class SetAttention(nn.Module):
    """Attention of a few queries over a set; names and initialisation are torch.nn.MultiheadAttention's.

    Keys and values are affine in the set, so their projections can be folded into the queries and into the
    weighted sum: products of T x D x D become K x D x D. `folding_pays` decides; both ways are equal.
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
        """Output (B, K, D), and weights (B, H, K, T) before dropout.

        Args:
            queries: (B, K, D).
            keys: (B, T, D).
            values: (B, T, D).
            mask: (B, T) bool, True where there is something to attend to.
            folded: forces one way; None lets `folding_pays` decide.
        """
        H, D = self.num_heads, queries.shape[-1]
        if folded is None:
            folded = folding_pays(keys.shape[1], queries.shape[1], H, D)
        weight_q, weight_k, weight_v = self.in_proj_weight.view(3, H, D // H, D).unbind()
        bias_q, bias_k, bias_v = self.in_proj_bias.view(3, D).unbind()
        heads = _split_heads(F.linear(queries, weight_q.flatten(0, 1), bias_q) / math.sqrt(D // H), H)
        if folded:
            # The keys' bias adds the same to all logits of a query and drops out of the softmax.
            # einsum, as a broadcast matmul would copy the weight for every set.
            logits = _per_set(torch.einsum("bhkd,hde->bhke", heads, weight_k), keys.transpose(1, 2))
        else:
            logits = heads @ _split_heads(F.linear(keys, weight_k.flatten(0, 1), bias_k), H).transpose(2, 3)
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None, :], -torch.inf)
        weights = at_least_float32(logits).softmax(dim=-1)
        kept = self.dropout(weights)
        if folded:
            # Dropout leaves weights that no longer sum to one, hence the bias in proportion.
            mixed = torch.einsum("bhke,hde->bhkd", _per_set(kept, values), weight_v)
            mixed = mixed + kept.sum(dim=-1, keepdim=True) * bias_v.view(H, 1, D // H)
        else:
            mixed = kept @ _split_heads(F.linear(values, weight_v.flatten(0, 1), bias_v), H)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), weights


def folding_pays(num_faces: int, num_queries: int, num_heads: int, embedding_size: int) -> bool:
    """Whether folding the key and value projections into the queries is faster for sets of `num_faces`.

    In multiplications per set, projecting costs 2 T D^2 and folding 2 K D^2 + 2 (H - 1) T K D, so folding
    should win when T (D - (H - 1) K) > K D. Measured, its small products run at about half the speed of the
    large ones, hence the factor (one core, D 512, H 8: equal at T = 5 for K = 3 and near T = 20 for K = 8; at
    T = 64, K = 3 folding is 4.6 times as fast). `python benchmarks/speed/aggregation.py` prints the table.
    """
    return num_faces * (embedding_size - num_heads * num_queries) > 2 * num_queries * embedding_size


def norm_code(norms: Tensor, embedding_size: int) -> Tensor:
    """Sine (even j) and cosine (odd j) of r 2 pi / 10000^(2 floor(j/2)/D), j < D: norms (...) -> (..., D)."""
    pairs = torch.arange(0, embedding_size, 2, device=norms.device, dtype=norms.dtype)
    angles = norms.unsqueeze(-1) * (2 * math.pi) / 10000 ** (pairs / embedding_size)
    # Filled by halves: torch.stack takes as long again as sine and cosine do.
    code = angles.new_empty(*angles.shape, 2)
    code[..., 0], code[..., 1] = angles.sin(), angles.cos()
    return code.flatten(-2)[..., :embedding_size]


def _split_heads(rows: Tensor, num_heads: int) -> Tensor:
    B, T, D = rows.shape
    return rows.reshape(B, T, num_heads, D // num_heads).transpose(1, 2)


def _per_set(left: Tensor, right: Tensor) -> Tensor:
    """(B, H, K, X) times (B, X, Y) -> (B, H, K, Y), as one product a set."""
    return torch.bmm(left.flatten(1, 2), right).view(*left.shape[:3], right.shape[2])


def _check_options(
    embedding_size: int,
    coreset_size: int,
    gamma: float,
    lowest_gamma: float,
    num_heads: int,
    dropout: float,
) -> None:
    faults = []
    if num_heads < 1 or embedding_size < 1 or embedding_size % num_heads:
        faults.append(f"embedding_size {embedding_size} must be a positive multiple of num_heads {num_heads}")
    if coreset_size < 1:
        faults.append(f"coreset_size {coreset_size} must be at least 1")
    if not lowest_gamma <= gamma <= LARGEST_GAMMA:
        faults.append(f"gamma {gamma} must be in {lowest_gamma:g}..{LARGEST_GAMMA:g}; 0 is pure diversity")
    if not 0 <= dropout < 1:
        faults.append(f"dropout {dropout} must be at least 0 and below 1")
    if faults:
        raise InputError.from_faults([f"CoresetAggregator: {fault}." for fault in faults])


def _checked_temperature(value: float) -> float:
    if not 0 < value < math.inf:
        raise InputError(
            f"CoresetAggregator: selection_temperature {value} must be above 0; 1 is the published value."
        )
    return value

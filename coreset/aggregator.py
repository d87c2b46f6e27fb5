"""CoresetAggregator: selected faces, refined by attention over the whole set (arXiv 2308.14075).

Re-created from the paper's equations. In evaluation a descriptor depends neither on the order of the faces
nor on the other sets of the batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreset.base import PaddedAggregator
from coreset.layers import check_options, norm_code
from coreset.precision import at_least_float32
from coreset.quality import FaceQuality
from coreset.selection import SMALLEST_GAMMA, Sampling, Selection, select_faces
from coreset.set_attention import SetAttention
from coreset.sets import FaceSets
from runtime.errors import InputError

_SELECTION_PARAMETERS = ("gamma", "log_temperature")


class CoresetAggregator(PaddedAggregator):
    """The aggregator of FaceCoresetNet (Shapira and Keller, AAAI 2024).

    1. K faces are selected by differentiable, quality-weighted farthest-point sampling (`select_faces`).
    2. The selected features, with a sinusoidal code of their norms, attend to each other.
    3. They attend to all faces of the set; the descriptor is the mean of the selected features and the
       attended residuals.

    In evaluation `SetDescriptor.weights` is each face's share of the cross-attention, averaged over heads and
    selected faces; training does not compute it.

    Args:
        embedding_size: D.
        coreset_size: K.
        gamma: exponent of the quality in the selection metric, its initial value if it is learned.
        learn_gamma: gamma is a parameter.
        clamp_gamma: a negative gamma counts as 0. The published code does not clamp it, so that a negative
            one prefers faces of small norm.
        selection_temperature: see `Sampling`; 1 as published.
        learn_temperature: the temperature is a parameter.
        gumbel_noise: see `Sampling`.
        mask_picked: see `Sampling`.
        num_heads: of both attentions.
        dropout: on attention weights and residuals.
        quality: what replaces the norms, see `coreset.quality`.

    Raises:
        InputError: an option out of range, or an embedding size that is no multiple of the number of heads.
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
        check_options(
            "CoresetAggregator",
            width=("embedding_size", embedding_size, num_heads),
            gamma=gamma,
            min_gamma=self.min_gamma,
            dropout=dropout,
            coreset_size=coreset_size,
        )
        self.embedding_size = embedding_size
        self.coreset_size = coreset_size
        self.quality = FaceQuality(quality, "coreset", embedding_size)
        self.gumbel_noise = gumbel_noise
        self.mask_picked = mask_picked
        self._register_scalar("gamma", gamma, learn_gamma)
        # A logarithm keeps a learned temperature positive; a buffer lets a schedule resume.
        log_temperature = math.log(_checked_temperature(selection_temperature))
        self._register_scalar("log_temperature", log_temperature, learn_temperature)
        self.norm_code_scale = nn.LayerNorm(embedding_size)
        self.self_attention = SetAttention(embedding_size, num_heads, dropout)
        self.cross_attention = SetAttention(embedding_size, num_heads, dropout)
        self.self_norm = nn.LayerNorm(embedding_size)
        self.cross_norm = nn.LayerNorm(embedding_size)
        self.dropout = nn.Dropout(dropout)

    def _register_scalar(self, name: str, value: float, learned: bool) -> None:
        tensor = torch.tensor(float(value))
        if learned:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay; as published, all others decay."""
        return {name for name, _ in self.named_parameters() if name in _SELECTION_PARAMETERS}

    def selection_parameters(self) -> list[nn.Parameter]:
        """Gamma and the temperature, where they are learned; published training gives them their own rate."""
        return [value for name, value in self.named_parameters() if name in _SELECTION_PARAMETERS]

    @property
    def min_gamma(self) -> float:
        """Smallest gamma in effect."""
        return 0.0 if self.clamp_gamma else SMALLEST_GAMMA

    @property
    def temperature(self) -> Tensor:
        """Scalar that training divides the scores of the selection by, see `Sampling`."""
        return self.log_temperature.exp()

    @torch.no_grad()
    def set_temperature(self, value: float) -> None:
        """Set the temperature, as a schedule does at each step."""
        self.log_temperature.fill_(math.log(_checked_temperature(value)))

    def _chunk(
        self, features: Tensor, norms: Tensor, mask: Tensor | None, *auxiliary: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        # No more queries than faces: empty ones cost as much as others.
        K = min(self.coreset_size, norms.shape[1])
        features, norms = at_least_float32(features), at_least_float32(norms)
        vectors, picks, shares = self._run(features, norms, mask, K)
        picks = F.pad(picks, (0, self.coreset_size - K), value=-1)
        return (vectors, picks), None if shares is None else shares.float()

    def _padded(
        self, features: Tensor, norms: Tensor, mask: Tensor | None, coreset_size: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        K = self.coreset_size if coreset_size is None else coreset_size
        picks, core, present = self._select(features, norms, mask, coreset_size=K, training=self.training)
        faces = features * norms.unsqueeze(-1)
        start = core + self._norm_code(torch.linalg.vector_norm(core, dim=-1))
        attended, _ = self.self_attention(start, start, start, present)
        queries = self.self_norm(start + self.dropout(attended))
        attended, attention = self.cross_attention(queries, faces + self._norm_code(norms), faces, mask)
        # The published residual starts at the selected features, not at the queries.
        refined = core + self.cross_norm(core + self.dropout(attended))
        count = present.sum(dim=1, keepdim=True)
        vectors = refined.masked_fill(~present.unsqueeze(-1), 0).sum(dim=1) / count
        if self.training:
            return vectors, picks, None
        shares = attention.detach().mean(dim=1).masked_fill(~present.unsqueeze(-1), 0).sum(dim=1) / count
        return vectors, picks, shares

    @torch.no_grad()
    def evaluation_picks(self, sets: FaceSets) -> Tensor:
        """(B, K) picks of evaluation, whatever the mode of the module; see `pick_agreement`."""

        def select(features: Tensor, norms: Tensor, mask: Tensor | None) -> tuple[tuple[Tensor], None]:
            found = self._select(features, norms, mask, coreset_size=self.coreset_size, training=False)
            return (found.picks,), None

        (picks,), _ = self._prepared(sets).map_padded(select)
        return picks

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
            padding_is_finite=True,
            min_gamma=self.min_gamma,
        )

    def _norm_code(self, norms: Tensor) -> Tensor:
        code: Tensor = self.norm_code_scale(norm_code(norms, self.embedding_size))
        return code


def _checked_temperature(value: float) -> float:
    if not 0 < value < math.inf:
        raise InputError(
            f"CoresetAggregator: selection_temperature {value} must be above 0; 1 is the published value."
        )
    return value

"""Base classes of trained aggregators: padding, precision, quality, compilation and export.

An aggregator implements the computation for one padded batch; everything else is the same for all.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from backbones.auxiliary import split_auxiliary
from coreset.precision import at_least_float32, without_autocast
from coreset.quality import FaceQuality, quality_module
from coreset.sets import FaceSets, SetDescriptor
from runtime.errors import InputError


class AggregatorOutput(NamedTuple):
    """Output of `LearnedAggregator.aggregate` for B sets of up to T faces.

    Attributes:
        vectors: (B, D), not normalised; a single face has length 1.
        shares: (B, T) of each face in the descriptor, non-negative, summing to 1; 0 for padding.
        picks: (B, K) int64, -1 where none; None for an aggregator that does not select faces.
    """

    vectors: Tensor
    shares: Tensor
    picks: Tensor | None = None


class PaddedAggregator(nn.Module):
    """An aggregator whose computation is `_padded`, a function of one padded batch.

    `_padded` maps features (B, T, D), norms (B, T), a mask (B, T), None without padding, and auxiliary
    features (B, T, A), where the aggregator reads them, to un-normalised descriptors (B, D), picks (B, K) and
    shares (B, T), which training may leave out.
    """

    # Values of a row, D + A, as in `BackboneSpec`.
    embedding_size: int
    # A.
    auxiliary_size: int = 0
    # The compiled `_padded`. It is bound to the weights of the module that compiled it, so that copies and
    # pickles do not contain it.
    _compiled: Callable[..., Any] | None = None

    @abstractmethod
    def _padded(self, *inputs: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """See the class."""

    def forward(self, sets: FaceSets) -> SetDescriptor:
        """Descriptors of all sets, in float32 or wider whatever autocast says; weights in evaluation only.

        Without gradients memory is that of one padded chunk (`FaceSets.chunks`).

        Raises:
            InputError: features or auxiliary features of another size.
        """
        sets = self._prepared(sets)
        auxiliary = () if not self.auxiliary_size or sets.auxiliary is None else (sets.auxiliary,)
        (vectors, picks), weights = sets.map_padded(self._chunk, *auxiliary)
        return SetDescriptor.from_vectors(vectors, picks, weights)

    def _prepared(self, sets: FaceSets) -> FaceSets:
        """The sets with qualities in place of norms."""
        D = self.embedding_size - self.auxiliary_size
        found = 0 if sets.auxiliary is None else sets.auxiliary.shape[1]
        if sets.embedding_size != D or (self.auxiliary_size and found != self.auxiliary_size):
            wanted = f" and {self.auxiliary_size} auxiliary ones" if self.auxiliary_size else ""
            raise InputError(
                f"{type(self).__name__}: expected features of {D} values{wanted}, found "
                f"{sets.embedding_size} and {found}. Use the backbone that this aggregator was trained with."
            )
        return self._quality.replace_norms(sets)

    @property
    def _quality(self) -> FaceQuality:
        quality = quality_module(self)
        if quality is None:
            raise TypeError(f"{type(self).__name__} has no quality")
        return quality

    def _chunk(
        self, features: Tensor, norms: Tensor, mask: Tensor | None, *auxiliary: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        vectors, picks, shares = self._run(features, norms, mask, *auxiliary)
        return (vectors, picks), None if self.training or shares is None else shares.detach().float()

    def aggregate_padded(
        self, features: Tensor, norms: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The computation for one padded batch, as exporters trace it.

        Args:
            features: (B, T, D + A) rows as backbones return them.
            norms: (B, T); detector scores for the quality 'detector'.
            mask: (B, T) bool, True where there is a face, at least one per set; padding may hold NaN.

        Returns:
            Un-normalised descriptors (B, D), picks (B, K) with -1 where none, and in evaluation the shares
            (B, T) of the faces, zero for padding.
        """
        # Before the quality, too: half precision has too few digits for a norm of 20.
        features, norms = at_least_float32(features), at_least_float32(norms)
        if mask is not None:
            features, norms = features.masked_fill(~mask.unsqueeze(-1), 0), norms.masked_fill(~mask, 0)
        auxiliary: tuple[Tensor, ...] = ()
        if self.auxiliary_size:
            features, *rest = split_auxiliary(features, self.auxiliary_size)
            auxiliary = tuple(rest)
        return self._run(features, self._quality(features, norms), mask, *auxiliary)

    def compile_padded(self) -> None:
        """Use torch.compile for `_padded` from now on; names in the state dict stay the same."""
        self._compiled = torch.compile(self._padded, dynamic=True)

    def _run(self, *inputs: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        output: tuple[Tensor, Tensor, Tensor | None] = (self._compiled or self._padded)(*inputs)
        return output

    def __getstate__(self) -> dict[str, Any]:
        """State of a copy or pickle."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        state.pop("_compiled", None)
        return state


class LearnedAggregator(PaddedAggregator):
    """Base of all trained aggregators but `CoresetAggregator`: computes in float32, in the scale of the
    norms.

    The descriptor's norm is the length of `AggregatorOutput.vectors` times the mean norm of the faces,
    weighted by their shares: in the backbone's scale, as AdaFace's head expects, and lower where the faces
    disagree.

    Args:
        embedding_size: values of a backbone's row, D and the auxiliary features.
        auxiliary_size: number A of auxiliary features that are read; a descriptor has D values.
        quality: what replaces the norms, see `coreset.quality`.

    Raises:
        InputError: a size out of range, or an unknown quality.
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
        self.face_quality = FaceQuality(quality, name, embedding_size - auxiliary_size)

    @abstractmethod
    def aggregate(self, features: Tensor, norms: Tensor, mask: Tensor, auxiliary: Tensor) -> AggregatorOutput:
        """Aggregate unit features (B, T, D) with norms (B, T) and auxiliary features (B, T, A), A may be 0.

        The mask (B, T) is True where there is a face. Each set has a face; padding holds finite values, which
        must not matter.
        """

    def _padded(
        self, features: Tensor, norms: Tensor, mask: Tensor | None, auxiliary: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        with without_autocast(features):
            features, norms = at_least_float32(features), at_least_float32(norms)
            if mask is None:
                mask = torch.ones_like(norms, dtype=torch.bool)
            auxiliary = features[..., :0] if auxiliary is None else at_least_float32(auxiliary)
            vectors, shares, picks = self.aggregate(features, norms, mask, auxiliary)
            if picks is None:
                picks = torch.zeros_like(norms[:, :0], dtype=torch.int64)
            return vectors * (shares * norms).sum(dim=1, keepdim=True), picks, shares

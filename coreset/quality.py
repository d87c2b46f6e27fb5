"""What faces are weighted by: the feature norm, detector score, a learned quality, or nothing.

The norm of AdaFace's backbones is a measure of quality; that of other backbones need not be (`convert.py
--check-quality`). The chosen quality replaces the norm everywhere: in the selection, in un-normalised
features and in the norm code.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from coreset.catalogue import QUALITIES
from coreset.precision import at_least_float32, without_autocast
from coreset.sets import FaceSets
from runtime.errors import InputError

# Mean norm of AdaFace's backbones. Other qualities are brought to this scale, for which the norm code, the
# residuals of the attention and AdaFace's head are made.
_SCALE = 20.0


class FaceQuality(nn.Module):
    """One of `QUALITIES`: 'norm' changes nothing and has no parameters.

    'learned' is a linear layer on the unit feature, squashed to 0..40; it starts at 20 for every face. 'none'
    is 20 for every face: ties in a selection go to the first face.

    Args:
        kind: of `QUALITIES`.
        owner: the aggregator's name in messages.
        embedding_size: D; None for poolings, which cannot learn a quality.

    Raises:
        InputError: an unknown kind, or 'learned' without an embedding size.
    """

    def __init__(self, kind: str, owner: str, embedding_size: int | None = None) -> None:
        super().__init__()
        if kind not in QUALITIES:
            raise InputError(f"{owner}: quality {kind!r} must be one of {', '.join(QUALITIES)}.")
        if kind == "learned" and embedding_size is None:
            raise InputError(
                f"{owner}: quality 'learned' has to be trained, and {owner} has no parameters. Choose norm "
                "or detector, or the aggregator coreset."
            )
        self.kind, self._owner = kind, owner
        if kind == "learned" and embedding_size is not None:
            self.head = nn.Linear(embedding_size, 1)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def replace_norms(self, sets: FaceSets) -> FaceSets:
        """The sets with the quality of each face in place of its norm.

        Raises:
            InputError: 'detector', and the sets have no detector scores.
        """
        if self.kind == "norm":
            return sets
        measure = sets.norms
        if self.kind == "detector":
            if sets.detector_scores is None:
                raise InputError(
                    f"{self._owner}: quality 'detector' needs a detector score for each face, and these sets "
                    "have none. Set FaceSets.detector_scores, or choose norm, learned or none."
                )
            measure = sets.detector_scores
        return replace(sets, norms=self(sets.features, measure))

    def forward(self, features: Tensor, measure: Tensor) -> Tensor:
        """Quality (...) of faces.

        Args:
            features: (..., D) unit rows.
            measure: (...) norms, or detector scores in 0..1 for 'detector'.
        """
        if self.kind == "norm":
            return measure
        with without_autocast(features):
            measure = at_least_float32(measure)
            if self.kind == "detector":
                return measure * _SCALE
            if self.kind == "none":
                return torch.full_like(measure, _SCALE)
            # Summed row by row: a matrix product can give equal faces different last bits, and so an order.
            features = at_least_float32(features)
            logits = (features * self.head.weight.squeeze(0)).sum(dim=-1) + self.head.bias
            return 2 * _SCALE * torch.sigmoid(logits)


def quality_of(aggregator: nn.Module) -> str:
    """The aggregator's quality; 'norm' for those without the option."""
    quality = quality_module(aggregator)
    return "norm" if quality is None else quality.kind


def quality_module(aggregator: nn.Module | None) -> FaceQuality | None:
    """The aggregator's quality module; None for those without the option."""
    own = (getattr(aggregator, name, None) for name in ("quality", "face_quality"))
    return next((module for module in own if isinstance(module, FaceQuality)), None)

"""What an aggregator weighs faces by: the feature norm, a detector's score, a learned measure, or nothing.

AdaFace's norm is a measure of quality; that of another backbone need not be (`convert.py --check-quality`).
Whatever is chosen takes the norm's place everywhere: in the selection, in the un-normalised features and in
the norm code.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from coreset.catalogue import QUALITIES
from coreset.selection import at_least_float32, without_autocast
from coreset.sets import FaceSets
from runtime.errors import InputError

# The mean norm of AdaFace's backbones: other measures come in its scale, which the norm code, the attention's
# residuals and AdaFace's head are made for.
_SCALE = 20.0
# So much, relatively, faces of equal quality differ where one has to be chosen first: by a fixed direction of
# their features, so that the choice does not hang on their order.
_TIE = 1e-4


class FaceQuality(nn.Module):
    """One of `QUALITIES`; 'norm' changes nothing and has no parameters, so that it adds none to a checkpoint.

    'learned' is a linear head on the unit feature, squashed to 0..40; it starts at 20 for every face. `use`
    says what the owner does with it: "weigh" faces, "choose" the best of them, or "spread" its choice.

    Raises:
        InputError: another kind; 'learned' without an embedding size, which only trained aggregators have; or
            'none' for an owner that chooses by quality alone.
    """

    def __init__(self, kind: str, owner: str, use: str, embedding_size: int | None = None) -> None:
        super().__init__()
        if kind not in QUALITIES:
            raise InputError(f"{owner}: quality {kind!r} must be one of {', '.join(QUALITIES)}.")
        if kind == "learned" and embedding_size is None:
            raise InputError(
                f"{owner}: quality 'learned' has to be trained, and {owner} has nothing that is. Choose "
                "norm or detector, or the aggregator coreset."
            )
        if kind == "none" and use == "choose":
            raise InputError(f"{owner}: chooses faces by quality, so 'none' leaves it nothing. Use mean.")
        self.kind, self._owner, self._spreads = kind, owner, use == "spread"
        if kind == "learned" and embedding_size is not None:
            self.head = nn.Linear(embedding_size, 1)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def applied(self, sets: FaceSets) -> FaceSets:
        """The sets with the quality of each face in place of its norm.

        Raises:
            InputError: 'detector', and the sets carry no scores.
        """
        if self.kind == "norm":
            return sets
        measure = sets.norms
        if self.kind == "detector":
            if sets.detector_scores is None:
                raise InputError(
                    f"{self._owner}: quality 'detector' needs a detector's score for each face, and these "
                    "sets carry none. Give FaceSets.detector_scores, or choose norm, learned or none."
                )
            measure = sets.detector_scores
        return replace(sets, norms=self(sets.features, measure))

    def forward(self, features: Tensor, measure: Tensor) -> Tensor:
        """Quality (...) of faces.

        Args:
            features: (..., D) unit rows.
            measure: (...) their norms, or for 'detector' their scores in 0..1.
        """
        if self.kind == "norm":
            return measure
        with without_autocast(features):
            measure = at_least_float32(measure)
            features = at_least_float32(features)
            if self.kind == "detector":
                return measure * _SCALE
            if self.kind == "learned":
                # Row by row: a matrix product may give equal faces different last bits, and so an order.
                logits = (features * self.head.weight.squeeze(0)).sum(dim=-1) + self.head.bias
                return 2 * _SCALE * torch.sigmoid(logits)
            quality = torch.full_like(measure, _SCALE)
            if not self._spreads:
                return quality
            places = torch.arange(features.shape[-1], device=features.device, dtype=features.dtype)
            return quality + _SCALE * _TIE * (features.detach() * places.cos()).sum(dim=-1)


def quality_of(aggregator: nn.Module) -> str:
    """What an aggregator weighs faces by; 'norm' for those without the option."""
    quality = quality_module(aggregator)
    return "norm" if quality is None else quality.kind


def quality_module(aggregator: nn.Module | None) -> FaceQuality | None:
    """What an aggregator weighs faces by, as a module; None for those without the option."""
    own = (getattr(aggregator, name, None) for name in ("quality", "face_quality"))
    return next((module for module in own if isinstance(module, FaceQuality)), None)

"""Placeholder for the backbone of features that were computed elsewhere."""

from __future__ import annotations

from torch import Tensor

from backbones.spec import BackboneSpec
from net import Backbone
from runtime.errors import InputError


class UnknownBackbone(Backbone):
    """Placeholder where features were computed elsewhere and only their sizes are known."""

    def __init__(self, embedding_size: int, auxiliary_size: int = 0) -> None:
        spec = BackboneSpec(
            "unknown", embedding_size, "RGB", 127.5, 127.5, True, auxiliary_size=auxiliary_size
        )
        super().__init__(spec)

    def features(self, images: Tensor) -> Tensor:
        """Raise InputError: there is nothing to embed with."""
        raise InputError(
            "This run has features and no backbone to embed images with. Give the backbone that computed "
            "them with --start_from_model_statedict."
        )

"""Base class of backbones: aligned faces to unit embeddings and feature norms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.auxiliary import append_auxiliary, subtract_centre
from backbones.spec import BackboneSpec
from runtime.errors import InputError

# Shorter features are divided by this, so that a zero feature has a zero embedding and a bounded gradient.
_MIN_LENGTH = 1e-6
# Channels of the last BatchNorm with a smaller scale count as switched off.
_MIN_SCALE = 1e-4


class Backbone(nn.Module):
    """Map aligned faces to unit embeddings and feature norms.

    With `spec.auxiliary_size` > 0 auxiliary features are appended to the embedding: the input of the last
    linear layer along random directions that this layer discards. The layer keeps what separates identities
    in good images; what it discards describes the image's defects, which an aggregator can use (CAFace,
    NeurIPS 2022, uses features of inner layers likewise). The directions follow from the weights and need no
    data.

    Subclasses implement `features_and_hidden` and `last_layers`, or `features` alone; then they have no
    auxiliary features.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec
        self._auxiliary: tuple[Tensor, Tensor] | None = None

    def features(self, images: Tensor) -> Tensor:
        """Un-normalised features (N, D) in the network's precision, without auxiliary features."""
        return self.features_and_hidden(images)[0]

    def features_and_hidden(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`features`, and the input (N, n) of the last linear layer.

        Raises:
            InputError: a network that does not provide it, such as an ONNX graph.
        """
        raise self._no_auxiliary()

    def last_layers(self) -> tuple[nn.BatchNorm2d, nn.Linear]:
        """The last BatchNorm before the last linear layer, and that layer.

        Raises:
            InputError: as `features_and_hidden`.
        """
        raise self._no_auxiliary()

    def _no_auxiliary(self) -> InputError:
        return InputError(f"{self.spec.name}: its last layer is not known, so it has no auxiliary features.")

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay: those of BatchNorms, as published."""
        return {
            f"{name}.{own}"
            for name, module in self.named_modules()
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
            for own, _ in module.named_parameters(recurse=False)
        }

    def set_auxiliary(self, size: int) -> None:
        """Append `size` auxiliary features to embeddings from now on.

        Raises:
            InputError: a negative size.
        """
        self.spec = self.spec.with_auxiliary(size)

    def auxiliary_layer(self) -> tuple[Tensor, Tensor]:
        """Weight (A, n) and bias (A,) that map the input of the last linear layer to auxiliary features.

        The input is standardised by the BatchNorm before and projected onto orthonormal random directions,
        which are orthogonal to the rows of the linear layer. Cached until weights are loaded.

        Raises:
            InputError: the layer discards fewer directions, or is not known.
        """
        size = self.spec.auxiliary_size
        if self._auxiliary is not None and len(self._auxiliary[1]) == size:
            return self._auxiliary
        norm, last = self.last_layers()
        weight, scale, shift = (v.detach().cpu().double() for v in (last.weight, norm.weight, norm.bias))
        D, n = weight.shape
        if size > n - D:
            raise InputError(f"{self.spec.name}: has at most {n - D} auxiliary features, asked for {size}.")
        scale, shift = (values.repeat_interleave(n // len(values)) for values in (scale, shift))
        drawn = torch.from_numpy(np.random.default_rng(0).standard_normal((n, size)))
        basis, triangle = torch.linalg.qr(torch.cat([(weight * scale).T, drawn], dim=1))
        # Signs are the same on every machine.
        directions = (basis * triangle.diagonal().sign())[:, D:].T
        unscaled = directions / scale.masked_fill(scale.abs() < _MIN_SCALE, torch.inf)
        self._auxiliary = unscaled.float(), -(unscaled @ shift).float()
        return self._auxiliary

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute embeddings and norms.

        Args:
            images: (N, 3, H, W) float, by `BackboneSpec.normalise`; cast to the dtype of the weights.

        Returns:
            Embedding (N, D): unit rows (zero for a zero feature), after `subtract_centre` and
            `append_auxiliary`. Norm (N, 1) of the feature before both. Float32 whatever autocast says;
            float64 for float64 weights.
        """
        images = images.to(next(self.parameters()).dtype)
        size = self.spec.auxiliary_size
        features, hidden = self.features_and_hidden(images) if size else (self.features(images), None)
        # In float16 squares overflow from a norm of 256 on.
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        embedding = features / norm.clamp_min(_MIN_LENGTH)
        if hidden is not None:
            weight, bias = self.auxiliary_layer()
            if weight.device != hidden.device:
                self._auxiliary = weight, bias = weight.to(hidden.device), bias.to(hidden.device)
            auxiliary = F.linear(hidden.to(weight.dtype), weight, bias)
            embedding = append_auxiliary(embedding, auxiliary.to(embedding.dtype))
        return subtract_centre(embedding, self.spec.centre, self.spec.auxiliary_size), norm

    def _load_from_state_dict(self, *given: Any) -> None:
        # Computed from the former weights.
        self._auxiliary = None
        super()._load_from_state_dict(*given)


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
            "These features have no backbone to embed images with. Give the backbone that computed them."
        )


def initialise_weights(backbone: nn.Module) -> None:
    """Kaiming normal with fan-out for convolutions and linear layers, zero biases, as published."""
    for module in backbone.modules():
        # On the meta device normal_ has no effect, but imports torch's compiler, which takes a second.
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)

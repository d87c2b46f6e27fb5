"""The base class of all backbones: aligned face in, unit embedding and feature norm out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.auxiliary import append_auxiliary, subtract_centre
from backbones.spec import BackboneSpec
from runtime.errors import InputError

# A shorter feature is taken to be this long: a zero one gives a zero embedding and a bounded gradient.
_SHORTEST_FEATURE = 1e-6
_SMALLEST_SCALE = 1e-4


class Backbone(nn.Module, ABC):
    """Aligned faces in, unit embeddings and feature norms out.

    Where `spec.auxiliary_size` asks for it, auxiliary values stand behind the embedding: what the last
    linear layer drops of what it reads, along so many directions drawn by chance. That layer keeps what
    tells people apart in good pictures, and drops what says how a picture is poor; an aggregator can use
    both. The directions follow from the weights and need no data. Ours; CAFace (NeurIPS 2022) too gives its
    aggregator what inner layers know.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec
        self._auxiliary: tuple[Tensor, Tensor] | None = None

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Un-normalised features (N, D), in the precision that the network computes in; without auxiliary
        values.
        """

    def features_and_hidden(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`features`, and what the last linear layer reads (N, n). InputError: the network does not say."""
        raise self._unknown()

    def last_layers(self) -> tuple[nn.BatchNorm2d, nn.Linear]:
        """The last linear layer and the BatchNorm before it. InputError: the network does not say."""
        raise self._unknown()

    def _unknown(self) -> InputError:
        return InputError(
            f"{self.spec.name}: its last layer is not known, so that it gives no auxiliary values."
        )

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone: those of BatchNorms, as published."""
        return {
            f"{name}.{own}"
            for name, module in self.named_modules()
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
            for own, _ in module.named_parameters(recurse=False)
        }

    def set_auxiliary(self, size: int) -> None:
        """From now on `size` auxiliary values stand behind the embedding. InputError: a negative size."""
        self.spec = self.spec.with_auxiliary(size)

    def auxiliary_layer(self) -> tuple[Tensor, Tensor]:
        """Weight (C, n) and bias (C,) that make the auxiliary values of what the last linear layer reads.

        It is standardised by the statistics of the BatchNorm before, and goes along orthonormal directions,
        orthogonal to those that the linear layer reads. Made once, until other weights are loaded.

        Raises:
            InputError: the layer does not drop so much, or is not known.
        """
        size = self.spec.auxiliary_size
        if self._auxiliary is not None and len(self._auxiliary[1]) == size:
            return self._auxiliary
        norm, last = self.last_layers()
        weight, scale, shift = (v.detach().cpu().double() for v in (last.weight, norm.weight, norm.bias))
        D, n = weight.shape
        if size > n - D:
            raise InputError(f"{self.spec.name}: gives {n - D} auxiliary values at most, asked for {size}.")
        scale, shift = (values.repeat_interleave(n // len(values)) for values in (scale, shift))
        drawn = torch.from_numpy(np.random.default_rng(0).standard_normal((n, size)))
        basis, triangle = torch.linalg.qr(torch.cat([(weight * scale).T, drawn], dim=1))
        # Signs, too, are the same on every machine.
        directions = (basis * triangle.diagonal().sign())[:, D:].T
        # A channel that is switched off says nothing.
        unscaled = directions / scale.masked_fill(scale.abs() < _SMALLEST_SCALE, torch.inf)
        self._auxiliary = unscaled.float(), -(unscaled @ shift).float()
        return self._auxiliary

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embeds faces.

        Args:
            images: (N, 3, H, W) float, normalised and ordered as `spec` says; cast to the weights' dtype.

        Returns:
            embedding (N, D), unit rows (a zero feature stays zero), without the spec's centre where it has
            one (`backbone_spec.centred`) and with the auxiliary values at its end
            (`backbone_spec.with_auxiliary`); and norm (N, 1) of the feature before it was normalised or
            centred, without auxiliary values. Float32 whatever autocast and the weights are, float64 where
            the weights are that.
        """
        images = images.to(next(self.parameters()).dtype)
        size = self.spec.auxiliary_size
        features, hidden = self.features_and_hidden(images) if size else (self.features(images), None)
        # In float16 the squares overflow from a norm of 256 on, and AdaFace reads quality from the norm.
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        embedding = features / norm.clamp_min(_SHORTEST_FEATURE)
        if hidden is not None:
            weight, bias = self.auxiliary_layer()
            if weight.device != hidden.device:
                self._auxiliary = weight, bias = weight.to(hidden.device), bias.to(hidden.device)
            auxiliary = F.linear(hidden.to(weight.dtype), weight, bias)
            embedding = append_auxiliary(embedding, auxiliary.to(embedding.dtype))
        return subtract_centre(embedding, self.spec.centre, self.spec.auxiliary_size), norm

    def _load_from_state_dict(self, *given: Any) -> None:
        # It is of the weights before.
        self._auxiliary = None
        super()._load_from_state_dict(*given)


def initialise_weights(backbone: nn.Module) -> None:
    """Kaiming normal by fan-out for convolutions and linear layers, biases 0 (METHOD 2)."""
    for module in backbone.modules():
        # On the meta device normal_ has nothing to fill, and imports torch's compiler, which takes a second.
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)

"""The backbones: aligned face in, unit embedding and feature norm out; with the spec of its pixels.

Names, shapes and order of the state dict are the published ones, so that published weights load as they are.
Reading weight files is the work of `weights`; nothing here opens a file or draws a training sample.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone_spec import BackboneSpec, centred, with_context
from errors import InputError

# A shorter feature is taken to be this long: a zero one gives a zero embedding and a bounded gradient.
_SHORTEST_FEATURE = 1e-6
_SMALLEST_SCALE = 1e-4


class Backbone(nn.Module, ABC):
    """Aligned faces in, unit embeddings and feature norms out.

    Where `spec.context_size` asks for it, context stands behind the embedding: what the last linear layer
    drops of what it reads, along so many directions drawn by chance. That layer keeps what tells people apart
    in good pictures, and drops what says how a picture is poor; an aggregator can use both. The directions
    follow from the weights and need no data. Ours; CAFace (NeurIPS 2022) too gives its aggregator what inner
    layers know.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec
        self._context: tuple[Tensor, Tensor] | None = None

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Un-normalised features (N, D), in the precision that the network computes in; without context."""

    def features_and_hidden(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`features`, and what the last linear layer reads (N, n). InputError: the network does not say."""
        raise self._unknown()

    def last_layers(self) -> tuple[nn.BatchNorm2d, nn.Linear]:
        """The last linear layer and the BatchNorm before it. InputError: the network does not say."""
        raise self._unknown()

    def _unknown(self) -> InputError:
        return InputError(f"{self.spec.name}: its last layer is not known, so that it gives no context.")

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone: those of BatchNorms, as published."""
        return {
            f"{name}.{own}"
            for name, module in self.named_modules()
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
            for own, _ in module.named_parameters(recurse=False)
        }

    def set_context(self, size: int) -> None:
        """From now on `size` values of context stand behind the embedding. InputError: a negative size."""
        self.spec = self.spec.with_context(size)

    def context_layer(self) -> tuple[Tensor, Tensor]:
        """Weight (C, n) and bias (C,) that make the context of what the last linear layer reads.

        It is standardised by the statistics of the BatchNorm before, and goes along orthonormal directions,
        orthogonal to those that the linear layer reads. Made once, until other weights are loaded.

        Raises:
            InputError: the layer does not drop so much, or is not known.
        """
        size = self.spec.context_size
        if self._context is not None and len(self._context[1]) == size:
            return self._context
        norm, last = self.last_layers()
        weight, scale, shift = (v.detach().cpu().double() for v in (last.weight, norm.weight, norm.bias))
        D, n = weight.shape
        if size > n - D:
            raise InputError(f"{self.spec.name}: gives {n - D} values of context at most, asked for {size}.")
        scale, shift = (values.repeat_interleave(n // len(values)) for values in (scale, shift))
        drawn = torch.from_numpy(np.random.default_rng(0).standard_normal((n, size)))
        basis, triangle = torch.linalg.qr(torch.cat([(weight * scale).T, drawn], dim=1))
        # Signs, too, are the same on every machine.
        directions = (basis * triangle.diagonal().sign())[:, D:].T
        # A channel that is switched off says nothing.
        unscaled = directions / scale.masked_fill(scale.abs() < _SMALLEST_SCALE, torch.inf)
        self._context = unscaled.float(), -(unscaled @ shift).float()
        return self._context

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embeds faces.

        Args:
            images: (N, 3, H, W) float, normalised and ordered as `spec` says; cast to the weights' dtype.

        Returns:
            embedding (N, D), unit rows (a zero feature stays zero), without the spec's centre where it has
            one (`backbone_spec.centred`) and with the context at its end (`backbone_spec.with_context`); and
            norm (N, 1) of the feature before it was normalised or centred, without context. Float32 whatever
            autocast and the weights are, float64 where the weights are that.
        """
        images = images.to(next(self.parameters()).dtype)
        size = self.spec.context_size
        features, hidden = self.features_and_hidden(images) if size else (self.features(images), None)
        # In float16 the squares overflow from a norm of 256 on, and AdaFace reads quality from the norm.
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        embedding = features / norm.clamp_min(_SHORTEST_FEATURE)
        if hidden is not None:
            weight, bias = self.context_layer()
            if weight.device != hidden.device:
                self._context = weight, bias = weight.to(hidden.device), bias.to(hidden.device)
            context = F.linear(hidden.to(weight.dtype), weight, bias)
            embedding = with_context(embedding, context.to(embedding.dtype))
        return centred(embedding, self.spec.centre, self.spec.context_size), norm

    def _load_from_state_dict(self, *given: Any) -> None:
        # It is of the weights before.
        self._context = None
        super()._load_from_state_dict(*given)


@dataclass(frozen=True)
class _Layout:
    """Shape of an IResNet: residual units, width and stride of each stage."""

    units: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (2, 2, 2, 2)
    stem_width: int = 64
    stem_stride: int = 1
    bottleneck: bool = False
    squeeze_excitation: bool = False
    insightface: bool = False


class IResNet(Backbone):
    """The residual network of ArcFace and AdaFace ('IR', METHOD 2); `ir_se` adds squeeze-excitation.

    `iresnet*` are those of InsightFace's arcface_torch: each stage begins with a convolution in its shortcut,
    where 'IR' has a stride alone if the width stays, and the last BatchNorm has a scale (fixed to 1) and a
    bias. Source: its backbones/iresnet.py.
    """

    def __init__(self, spec: BackboneSpec, layout: _Layout) -> None:
        super().__init__(spec)
        stem, last = layout.stem_width, layout.widths[-1]
        side = math.ceil(spec.image_size / (layout.stem_stride * math.prod(layout.strides)))
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, stem, 3, layout.stem_stride, 1, bias=False), nn.BatchNorm2d(stem), nn.PReLU(stem)
        )
        # Registered before the body, although it runs after it: the published state dict has this order.
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(last),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(last * side * side, spec.embedding_size),
            nn.BatchNorm1d(spec.embedding_size, affine=layout.insightface),
        )
        if layout.insightface:
            self.output_layer[4].weight.requires_grad_(False)
        self.body = nn.Sequential()
        inputs = stem
        for units, width, stride in zip(layout.units, layout.widths, layout.strides, strict=True):
            for unit in range(units):
                self.body.append(_ResidualUnit(inputs, width, stride if unit == 0 else 1, layout))
                inputs = width
        _initialise(self)

    def features(self, images: Tensor) -> Tensor:
        """See the base class."""
        return self.features_and_hidden(images)[0]

    def features_and_hidden(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        maps = self.body(self.input_layer(images))
        hidden = self.output_layer[:3](maps)
        return self.output_layer[3:](hidden), hidden

    def last_layers(self) -> tuple[nn.BatchNorm2d, nn.Linear]:
        """See the base class."""
        layers: Any = self.output_layer
        return layers[0], layers[3]


class _ResidualUnit(nn.Module):
    """BN-conv-BN-PReLU-conv-BN (or the bottleneck of the deep ones) beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, layout: _Layout) -> None:
        super().__init__()
        self.stride = stride
        self.shortcut_layer: nn.Module = nn.Identity()
        if inputs != outputs or (layout.insightface and stride > 1):
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )
        if layout.bottleneck:
            inner = outputs // 4
            layers = [
                *_preactivated(inputs, inner, 1),
                nn.PReLU(inner),
                nn.Conv2d(inner, inner, 3, 1, 1, bias=False),
                nn.BatchNorm2d(inner),
                nn.PReLU(inner),
                nn.Conv2d(inner, outputs, 1, stride, bias=False),
            ]
        else:
            layers = [
                *_preactivated(inputs, outputs, 3),
                nn.PReLU(outputs),
                nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            ]
        self.res_layer = nn.Sequential(*layers, nn.BatchNorm2d(outputs))
        if layout.squeeze_excitation:
            self.res_layer.add_module("se_block", _SqueezeExcitation(outputs, reduction=16))

    def forward(self, x: Tensor) -> Tensor:
        # Taking every stride-th pixel is the published 1x1 max-pool, and serves as the stride of the 1x1
        # convolution too: in channels_last with fewer than 16 input channels, the backward pass of a strided
        # one ends in a segmentation fault of oneDNN (torch 2.13, AVX-512).
        shortcut = x[:, :, :: self.stride, :: self.stride] if self.stride > 1 else x
        result: Tensor = self.res_layer(x) + self.shortcut_layer(shortcut)
        return result


def _preactivated(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    return [
        nn.BatchNorm2d(inputs),
        nn.Conv2d(inputs, outputs, size, 1, size // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class _SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from all channels' means."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = torch.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))
        return x * torch.sigmoid(self.fc2(squeezed))


class MobileFaceNet(Backbone):
    """InsightFace's 128-d MobileFaceNet (1.0 M parameters); module names follow MXNet's parameter names.

    The last BatchNorm has a scale fixed to 1: MXNet's `fix_gamma`.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)
        self.conv_1 = _ConvUnit(3, 64, 3, 2)
        self.conv_2_dw = _ConvUnit(64, 64, 3, groups=64)
        self.dconv_23 = _DepthwiseBlock(64, 128, 64, stride=2)
        for index in range(4):
            self.add_module(f"res_3_block{index}", _DepthwiseBlock(64, 128, 64))
        self.dconv_34 = _DepthwiseBlock(64, 256, 128, stride=2)
        for index in range(6):
            self.add_module(f"res_4_block{index}", _DepthwiseBlock(128, 256, 128))
        self.dconv_45 = _DepthwiseBlock(128, 512, 128, stride=2)
        for index in range(2):
            self.add_module(f"res_5_block{index}", _DepthwiseBlock(128, 256, 128))
        self.conv_6sep = _ConvUnit(128, 512, 1)
        self.conv_6dw7_7 = _ConvUnit(512, 512, 7, groups=512, padding=0, activation=False)
        self.pre_fc1 = nn.Linear(512, spec.embedding_size)
        self.fc1 = nn.BatchNorm1d(spec.embedding_size, eps=2e-5)
        self.fc1.weight.requires_grad_(False)
        _initialise(self)

    def features(self, images: Tensor) -> Tensor:
        """See the base class."""
        return self.features_and_hidden(images)[0]

    def features_and_hidden(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        *body, last, norm = self.children()
        x = images
        for module in body:
            x = module(x)
        hidden = x.flatten(1)
        return norm(last(hidden)), hidden

    def last_layers(self) -> tuple[nn.BatchNorm2d, nn.Linear]:
        """See the base class."""
        return self.conv_6dw7_7.batchnorm, self.pre_fc1


class _ConvUnit(nn.Module):
    """Convolution without bias, BatchNorm and, unless switched off, PReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int = 1,
        *,
        groups: int = 1,
        padding: int | None = None,
        activation: bool = True,
    ) -> None:
        super().__init__()
        padding = size // 2 if padding is None else padding
        self.conv2d = nn.Conv2d(inputs, outputs, size, stride, padding, groups=groups, bias=False)
        self.batchnorm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.relu = nn.PReLU(outputs) if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.relu(self.batchnorm(self.conv2d(x)))
        return result


class _DepthwiseBlock(nn.Module):
    """1x1 to `inner` channels, 3x3 depthwise, 1x1 to `outputs`; with a shortcut where the shape stays."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.has_shortcut = stride == 1 and inputs == outputs
        self.conv_sep = _ConvUnit(inputs, inner, 1)
        self.conv_dw = _ConvUnit(inner, inner, 3, stride, groups=inner)
        self.conv_proj = _ConvUnit(inner, outputs, 1, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv_proj(self.conv_dw(self.conv_sep(x)))
        return x + result if self.has_shortcut else result


class ArcfaceMobileFaceNet(Backbone):
    """arcface_torch's MobileFaceNet ('mbf', 512-d), under its names; another network than `MobileFaceNet`.

    Source: its backbones/mobilefacenet.py.

    Args:
        spec: of the network.
        blocks: residual blocks of each stage; a single first one is a grouped convolution.
        scale: factor of all widths but the last.
    """

    def __init__(self, spec: BackboneSpec, blocks: tuple[int, int, int, int], scale: int) -> None:
        super().__init__(spec)
        narrow, wide = 64 * scale, 128 * scale
        first = (
            _mbf_unit(narrow, narrow, 3, groups=64)
            if blocks[0] == 1
            else _mbf_residuals(narrow, 128, blocks[0])
        )
        self.layers = nn.Sequential(
            _mbf_unit(3, narrow, 3, stride=2),
            first,
            _mbf_block(narrow, 128, narrow, stride=2),
            _mbf_residuals(narrow, 128, blocks[1]),
            _mbf_block(narrow, 256, wide, stride=2),
            _mbf_residuals(wide, 256, blocks[2]),
            _mbf_block(wide, 512, wide, stride=2),
            _mbf_residuals(wide, 256, blocks[3]),
        )
        self.conv_sep = _mbf_unit(wide, 512, 1)
        # Theirs is called 'features', as our method is.
        self.output = nn.Sequential(
            _Layers(nn.Conv2d(512, 512, 7, groups=512, bias=False), nn.BatchNorm2d(512)),
            nn.Flatten(),
            nn.Linear(512, spec.embedding_size, bias=False),
            nn.BatchNorm1d(spec.embedding_size),
        )
        _initialise(self)

    def features(self, images: Tensor) -> Tensor:
        """See the base class."""
        return self.features_and_hidden(images)[0]

    def features_and_hidden(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        hidden = self.output[:2](self.conv_sep(self.layers(images)))
        return self.output[2:](hidden), hidden

    def last_layers(self) -> tuple[nn.BatchNorm2d, nn.Linear]:
        """See the base class."""
        layers: Any = self.output
        return layers[0].layers[1], layers[2]


class _Layers(nn.Module):
    """Layers one after another, named `layers` as arcface_torch's are."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


class _Residuals(_Layers):
    """As `_Layers`, with a shortcut around each."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def _mbf_unit(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> _Layers:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return _Layers(convolution, nn.BatchNorm2d(outputs), nn.PReLU(outputs))


def _mbf_block(inputs: int, inner: int, outputs: int, stride: int = 1) -> _Layers:
    """1x1 to `inner` channels, 3x3 depthwise, 1x1 to `outputs`."""
    last = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
    return _Layers(
        _mbf_unit(inputs, inner, 1), _mbf_unit(inner, inner, 3, stride, groups=inner), _Layers(*last)
    )


def _mbf_residuals(width: int, inner: int, count: int) -> _Residuals:
    return _Residuals(*(_mbf_block(width, inner, width) for _ in range(count)))


def build_backbone(name: str) -> Backbone:
    """A backbone with fresh weights, by its name in `BACKBONES`.

    Raises:
        InputError: there is no such name; the message lists the names.
    """
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(f"{name!r} is no backbone.{hint} There are: {', '.join(BACKBONES)}.")
    return _BUILDERS[name](BACKBONES[name])


def _initialise(backbone: nn.Module) -> None:
    """Kaiming normal by fan-out for convolutions and linear layers, biases 0 (METHOD 2)."""
    for module in backbone.modules():
        # On the meta device normal_ has nothing to fill, and imports torch's compiler, which takes a second.
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


_LAYOUTS = {
    "ir_18": _Layout((2, 2, 2, 2)),
    "ir_34": _Layout((3, 4, 6, 3)),
    "ir_50": _Layout((3, 4, 14, 3)),
    "ir_101": _Layout((3, 13, 30, 3)),
    "ir_152": _Layout((3, 8, 36, 3), (256, 512, 1024, 2048), bottleneck=True),
    "ir_200": _Layout((3, 24, 36, 3), (256, 512, 1024, 2048), bottleneck=True),
    "ir_se_50": _Layout((3, 4, 14, 3), squeeze_excitation=True),
    # For tests and the demo. The full-size stem costs more than all else on a CPU, hence its stride.
    "ir_tiny": _Layout((1, 1, 1, 1), (8, 16, 32, 64), strides=(2, 2, 2, 1), stem_width=8, stem_stride=2),
}
# arcface_torch's, under its own names.
_INSIGHTFACE = {
    "iresnet18": _LAYOUTS["ir_18"],
    "iresnet34": _LAYOUTS["ir_34"],
    "iresnet50": _LAYOUTS["ir_50"],
    "iresnet100": _LAYOUTS["ir_101"],
    "iresnet200": _Layout((6, 26, 60, 6)),
    "iresnet_tiny": _LAYOUTS["ir_tiny"],
}
_LAYOUTS |= {name: replace(layout, insightface=True) for name, layout in _INSIGHTFACE.items()}

# Blocks and scale of arcface_torch's MobileFaceNets.
_MBF = {"mbf": ((1, 4, 6, 2), 2), "mbf_large": ((2, 8, 12, 4), 4)}


def _spec(name: str) -> BackboneSpec:
    """AdaFace ties the norm to quality and reads BGR; InsightFace's losses do not, and read RGB."""
    adaface = name not in (*_INSIGHTFACE, *_MBF)
    size = 64 if name.endswith("_tiny") else 512
    return BackboneSpec(name, size, "BGR" if adaface else "RGB", 127.5, 127.5, norm_is_quality=adaface)


BACKBONES: dict[str, BackboneSpec] = {name: _spec(name) for name in (*_LAYOUTS, *_MBF)} | {
    "mobilefacenet": BackboneSpec("mobilefacenet", 128, "RGB", 127.5, 128.0, norm_is_quality=True)
}

_BUILDERS: dict[str, Callable[[BackboneSpec], Backbone]] = {
    **{name: partial(IResNet, layout=layout) for name, layout in _LAYOUTS.items()},
    **{
        name: partial(ArcfaceMobileFaceNet, blocks=blocks, scale=scale)
        for name, (blocks, scale) in _MBF.items()
    },
    "mobilefacenet": MobileFaceNet,
}

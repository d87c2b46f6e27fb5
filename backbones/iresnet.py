"""IResNet: residual networks of ArcFace and AdaFace (IR, IR-SE) and of InsightFace (iresnet)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backbones.base import Backbone, initialise_weights
from backbones.spec import BackboneSpec


@dataclass(frozen=True)
class IResNetLayout:
    """Residual units, width and stride of each stage, and variants of the units."""

    units: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (2, 2, 2, 2)
    stem_width: int = 64
    stem_stride: int = 1
    bottleneck: bool = False
    squeeze_excitation: bool = False
    insightface: bool = False


class IResNet(Backbone):
    """Improved residual network of ArcFace (arXiv 1801.07698, 'IR'); `ir_se` adds squeeze-excitation.

    `iresnet*` are those of InsightFace's arcface_torch (backbones/iresnet.py): each stage begins with a
    convolution in its shortcut, where 'IR' has only a stride if the width is unchanged, and the last
    BatchNorm has a scale (fixed to 1) and a bias.
    """

    def __init__(self, spec: BackboneSpec, layout: IResNetLayout) -> None:
        super().__init__(spec)
        stem, last = layout.stem_width, layout.widths[-1]
        side = math.ceil(spec.input_size / (layout.stem_stride * math.prod(layout.strides)))
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, stem, 3, layout.stem_stride, 1, bias=False), nn.BatchNorm2d(stem), nn.PReLU(stem)
        )
        # Registered before the body as in the published state dict, although it runs after it.
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
        initialise_weights(self)

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
    """BN-conv-BN-PReLU-conv-BN, or the bottleneck of the deep networks, with a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, layout: IResNetLayout) -> None:
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
        # Slicing is the published 1x1 max-pool, and replaces the stride of the 1x1 convolution, too: in
        # channels_last with fewer than 16 input channels, the backward pass of a strided one ends in a
        # segmentation fault of oneDNN (torch 2.13, AVX-512).
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
    """Squeeze-and-excitation (arXiv 1709.01507)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = torch.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))
        return x * torch.sigmoid(self.fc2(squeezed))

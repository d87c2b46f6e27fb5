"""The 512-d MobileFaceNet of arcface_torch (mbf), with its parameter names."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from backbones.base import Backbone, initialise_weights
from backbones.spec import BackboneSpec


class ArcfaceMobileFaceNet(Backbone):
    """arcface_torch's backbones/mobilefacenet.py; a different network than `MobileFaceNet`.

    Args:
        spec: of the network.
        blocks: residual blocks of each stage; a single block in the first is a grouped convolution.
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
        # Called 'features' there, the name of a method here.
        self.output = nn.Sequential(
            _Layers(nn.Conv2d(512, 512, 7, groups=512, bias=False), nn.BatchNorm2d(512)),
            nn.Flatten(),
            nn.Linear(512, spec.embedding_size, bias=False),
            nn.BatchNorm1d(spec.embedding_size),
        )
        initialise_weights(self)

    def features_and_hidden(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        hidden = self.output[:2](self.conv_sep(self.layers(images)))
        return self.output[2:](hidden), hidden

    def last_layers(self) -> tuple[nn.BatchNorm2d, nn.Linear]:
        """See the base class."""
        layers: Any = self.output
        return layers[0].layers[1], layers[2]


class _Layers(nn.Module):
    """Sequential layers, named `layers` as in arcface_torch."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


class _Residuals(_Layers):
    """As `_Layers`, with a shortcut around each layer."""

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

"""InsightFace's 128-d MobileFaceNet (arXiv 1804.07573), with the parameter names of its MXNet model."""

from __future__ import annotations

from torch import Tensor, nn

from backbones.base import Backbone, initialise_weights
from backbones.spec import BackboneSpec


class MobileFaceNet(Backbone):
    """InsightFace's 128-d MobileFaceNet with 1.0 M parameters.

    The scale of the last BatchNorm is fixed to 1 (MXNet's `fix_gamma`).
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
        initialise_weights(self)

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
    """Convolution without bias, BatchNorm and, optionally, PReLU."""

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
    """1x1 to `inner` channels, 3x3 depthwise, 1x1 to `outputs`; a shortcut if the shape is unchanged."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.has_shortcut = stride == 1 and inputs == outputs
        self.conv_sep = _ConvUnit(inputs, inner, 1)
        self.conv_dw = _ConvUnit(inner, inner, 3, stride, groups=inner)
        self.conv_proj = _ConvUnit(inner, outputs, 1, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv_proj(self.conv_dw(self.conv_sep(x)))
        return x + result if self.has_shortcut else result

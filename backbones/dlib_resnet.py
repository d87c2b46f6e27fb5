"""dlib's face recognition ResNet (dlib_face_recognition_resnet_model_v1, CC0) with 128 values."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.base import Backbone, initialise_weights
from backbones.spec import BackboneSpec

# Width of each residual block and whether it halves the resolution, from the input to the output.
_BLOCKS = (
    *((32, False),) * 3,
    *((64, True), *((64, False),) * 3),
    *((128, True), *((128, False),) * 2),
    *((256, True), *((256, False),) * 2, (256, True)),
)


class DlibResNet(Backbone):
    """29 convolutions with folded affine layers, 5.6 M parameters, 128 values; input (N, 3, 150, 150)."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)
        self.input_layer = nn.Conv2d(3, 32, 7, stride=2)
        widths = [32, *(width for width, _ in _BLOCKS)]
        self.body = nn.Sequential(
            *(
                _ResidualBlock(inputs, width, downsamples=downsamples)
                for inputs, (width, downsamples) in zip(widths, _BLOCKS, strict=False)
            )
        )
        self.output_layer = nn.Linear(widths[-1], spec.embedding_size, bias=False)
        initialise_weights(self)

    def features(self, images: Tensor) -> Tensor:
        """See the base class."""
        x = F.max_pool2d(F.relu(self.input_layer(images)), 3, 2)
        features: Tensor = self.output_layer(self.body(x).mean(dim=(2, 3)))
        return features


class _ResidualBlock(nn.Module):
    def __init__(self, inputs: int, width: int, *, downsamples: bool) -> None:
        super().__init__()
        self.downsamples = downsamples
        self.conv1 = nn.Conv2d(inputs, width, 3, 2 if downsamples else 1, 0 if downsamples else 1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.conv2(F.relu(self.conv1(x)))
        if self.downsamples:
            # dlib adds tensors of different sizes by padding the smaller one with zeros.
            x = F.avg_pool2d(x, 2, 2)
            x = F.pad(x, (0, 0, 0, 0, 0, residual.shape[1] - x.shape[1]))
            height, width = (max(a, b) for a, b in zip(x.shape[2:], residual.shape[2:], strict=True))
            x, residual = (F.pad(v, (0, width - v.shape[3], 0, height - v.shape[2])) for v in (x, residual))
        return F.relu(x + residual)

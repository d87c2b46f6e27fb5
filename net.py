"""Registry of backbones.

Names, shapes and order of state dicts are the published ones, so that published weights load unchanged.
Weight files are read by `weights`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from backbones.arcface_mobilefacenet import ArcfaceMobileFaceNet
from backbones.base import Backbone
from backbones.catalogue import BACKBONES
from backbones.dlib_resnet import DlibResNet
from backbones.iresnet import IResNet, IResNetLayout
from backbones.mobilefacenet import MobileFaceNet
from backbones.spec import BackboneSpec
from runtime.errors import InputError, valid_names

__all__ = [
    "BACKBONES",
    "ArcfaceMobileFaceNet",
    "Backbone",
    "DlibResNet",
    "IResNet",
    "MobileFaceNet",
    "build_backbone",
]


def build_backbone(name: str) -> Backbone:
    """Build a backbone with random weights.

    Args:
        name: a key of `BACKBONES`.

    Raises:
        InputError: an unknown name.
    """
    if name not in BACKBONES:
        raise InputError(f"There is no backbone {name!r}. {valid_names(name, BACKBONES)}")
    return _BUILDERS[name](BACKBONES[name])


_LAYOUTS = {
    "ir_18": IResNetLayout((2, 2, 2, 2)),
    "ir_34": IResNetLayout((3, 4, 6, 3)),
    "ir_50": IResNetLayout((3, 4, 14, 3)),
    "ir_101": IResNetLayout((3, 13, 30, 3)),
    "ir_152": IResNetLayout((3, 8, 36, 3), (256, 512, 1024, 2048), bottleneck=True),
    "ir_200": IResNetLayout((3, 24, 36, 3), (256, 512, 1024, 2048), bottleneck=True),
    "ir_se_50": IResNetLayout((3, 4, 14, 3), squeeze_excitation=True),
    # For tests and the demo. Its stem has a stride, since a full-size stem dominates the time on a CPU.
    "ir_tiny": IResNetLayout(
        (1, 1, 1, 1), (8, 16, 32, 64), strides=(2, 2, 2, 1), stem_width=8, stem_stride=2
    ),
}
# Of arcface_torch, with its names.
_INSIGHTFACE = {
    "iresnet18": _LAYOUTS["ir_18"],
    "iresnet34": _LAYOUTS["ir_34"],
    "iresnet50": _LAYOUTS["ir_50"],
    "iresnet100": _LAYOUTS["ir_101"],
    "iresnet200": IResNetLayout((6, 26, 60, 6)),
    "iresnet_tiny": _LAYOUTS["ir_tiny"],
}
_LAYOUTS |= {name: replace(layout, insightface=True) for name, layout in _INSIGHTFACE.items()}

# Blocks and scale of arcface_torch's MobileFaceNets.
_MBF = {"mbf": ((1, 4, 6, 2), 2), "mbf_large": ((2, 8, 12, 4), 4)}


_BUILDERS: dict[str, Callable[[BackboneSpec], Backbone]] = {
    **{name: partial(IResNet, layout=layout) for name, layout in _LAYOUTS.items()},
    **{
        name: partial(ArcfaceMobileFaceNet, blocks=blocks, scale=scale)
        for name, (blocks, scale) in _MBF.items()
    },
    "mobilefacenet": MobileFaceNet,
    "dlib_resnet": DlibResNet,
}

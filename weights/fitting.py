"""Load a state dict into the backbone that it fits exactly, or list the mismatches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backbones.spec import BackboneSpec
from net import BACKBONES, Backbone, build_backbone
from runtime.errors import InputError
from runtime.text import first_lines
from weights.specs import check_architecture

_SHOWN = 5
# Number of batches that a BatchNorm has seen. It does not affect features, and files of PyTorch before 0.4.1
# lack it.
_COUNT = "num_batches_tracked"
# Relative difference of features below which it is rounding.
_CONSTANT = 1e-7


def load_into(path: Path, state: dict[str, Tensor], arch: str | None, spec: BackboneSpec | None) -> Backbone:
    """Build the backbone of a state dict, on the CPU, in float32 and evaluation mode.

    The architecture is `arch` or the spec's, else deduced from the shapes. Without a `spec` it gets that of
    `BACKBONES`.

    Raises:
        InputError: another architecture than `arch`, or any missing, unexpected or mis-shaped entry.
    """
    name = _architecture(path, state, arch, spec)
    # On the meta device: initialising a deep network takes a second and consumes random numbers.
    with torch.device("meta"):
        backbone = build_backbone(name)
    counts = {key: torch.tensor(0) for key in backbone.state_dict() if key.endswith(_COUNT)}
    backbone.to_empty(device="cpu").load_state_dict(counts | state)
    backbone.spec = spec or BACKBONES[name]
    return backbone.eval()


@torch.no_grad()
def check_features(path: Path, backbone: Backbone) -> None:
    """Embed two images of noise, to detect weights that are all zeros or overflow.

    Raises:
        InputError: features that are not finite, or equal for both images.
    """
    side = backbone.spec.input_size
    noise = np.random.default_rng(0).integers(0, 256, (2, 3, side, side), dtype=np.uint8)
    # One fine, one of large blocks.
    noise[1] = noise[1, :, ::8, ::8].repeat(8, axis=1).repeat(8, axis=2)[:, :side, :side]
    try:
        first, second = backbone.features(backbone.spec.normalise(torch.from_numpy(noise))).float()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if not bool(first.isfinite().all() & second.isfinite().all()):
        fault = "not finite"
    elif torch.dist(first, second) <= _CONSTANT * (first.norm() + second.norm()):
        fault = "the same for all images"
    else:
        return
    raise InputError(
        f"{path}: the features of its {backbone.spec.name} are {fault}. The weights are untrained, or the "
        "file is damaged."
    )


def _architecture(path: Path, state: dict[str, Tensor], arch: str | None, spec: BackboneSpec | None) -> str:
    """The name of the backbone that names and shapes of the entries fit; InputError for none."""
    if spec is not None:
        check_architecture(path, spec, arch)
    asked = arch or (spec.name if spec else None)
    if asked is not None and not state_dict_mismatches(state, _entries_of(asked)):
        return asked
    of_each = {name: state_dict_mismatches(state, _entries_of(name)) for name in BACKBONES}
    fitting = next((name for name, faults in of_each.items() if not faults), None)
    if asked is None and fitting is not None:
        return fitting
    name = asked or min(BACKBONES, key=lambda name: len(of_each[name]))
    first = f"{path}: the weights are not those of {name}{'' if asked else ', the closest backbone'}:"
    raise InputError.from_faults(
        [first, *shortened(of_each[name]), _guess(state, fitting, _entries_of(name))]
    )


@cache
def _entries_of(name: str) -> dict[str, Tensor]:
    """The expected entries of a backbone, without values."""
    with torch.device("meta"):
        return build_backbone(name).state_dict()


def state_dict_mismatches(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Differences from the expected names, shapes and dtypes, one text each."""
    misshaped = [
        f"{key}: {_form(state[key])} where {tuple(value.shape)} is expected"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    # load_state_dict would cast a quantised file silently.
    misshaped += [
        f"{key}: {_form(state[key])} where floating point is expected"
        for key in expected
        if key in state and not (key.endswith(_COUNT) or state[key].is_floating_point())
    ]
    missing = [f"{key}: missing" for key in expected if key not in state and not key.endswith(_COUNT)]
    return misshaped + missing + [f"{key}: unexpected" for key in state if key not in expected]


def shortened(faults: Sequence[str]) -> list[str]:
    """The first few as lines, and the number of the others."""
    return first_lines([f"  {fault}" for fault in faults], _SHOWN, "  ... and {} more")


def _form(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _guess(state: Mapping[str, Tensor], fitting: str | None, expected: Mapping[str, Tensor]) -> str:
    """The likeliest cause of the mismatches, as a sentence."""
    if fitting is not None:
        return f"They are exactly those of {fitting}: ask for {fitting} or none."
    if "layer1.0.conv1.weight" in state:
        return (
            "The names resemble a residual network of torchvision or InsightFace, but it has no blocks of an "
            "IResNet (layer1.0.prelu)."
        )
    common = expected.keys() & state.keys()
    if not common:
        return "None of the names is known: it may be another kind of network."
    if len(common) == len(expected) == len(state):
        return "Only shapes differ: it may be for another image size, embedding size or precision."
    if len(common) == len(state):
        return "Part of the network is missing: it may be a deeper one, or the file is incomplete."
    return "It may be a network of the same family of another depth or with other blocks."

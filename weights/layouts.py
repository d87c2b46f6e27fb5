"""Translate state dicts of other projects to the names of our backbones, whatever their prefix.

Layouts are recognised by names alone: AdaFace and other IR networks, CVLFace, InsightFace's arcface_torch,
MagFace, MXNet's MobileFaceNet, dlib, this project; `weights.fitting` checks shapes. Sources:
arcface_torch/backbones/iresnet.py, mobilefacenet.py; CVLFace's models/iresnet, models/iresnet_insightface,
wrapper.py; MagFace's models/iresnet.py, inference/gen_feat.py; AdaFace's net.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from net import build_backbone
from runtime.errors import InputError
from runtime.json_files import read_json

# Other parts of whole checkpoints. `template_model` is the same backbone again.
_OTHER_PARTS = ("head.", "aggregate_model.", "aggregator.", "template_model.")
# Prefixes of torch.nn.DataParallel and torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")
# The wrapper of a CVLFace repository has `model`, a network with `net`; model.pt begins at the latter.
_CVLFACE = ("net.", "model.net.")
# MagFace trains a module `features`, wrapped as a whole or by itself, beside its head.
_MAGFACE = "features."
_MAGFACE_HEADS = ("fc.weight", "parallel_fc.weight")
# It reads BGR as value / 255, and its norm measures quality. The eps of its BatchNorms is 2e-5.
_MAGFACE_SPEC = {"channel_order": "BGR", "mean": 0.0, "std": 255.0, "norm_is_quality": True}
_MAGFACE_EPS = 2e-5
_INSIGHTFACE_UNIT = {
    "bn1": "res_layer.0",
    "conv1": "res_layer.1",
    "bn2": "res_layer.2",
    "prelu": "res_layer.3",
    "conv2": "res_layer.4",
    "bn3": "res_layer.5",
    "downsample.0": "shortcut_layer.0",
    "downsample.1": "shortcut_layer.1",
}
_INSIGHTFACE_ENDS = {
    "conv1": "input_layer.0",
    "bn1": "input_layer.1",
    "prelu": "input_layer.2",
    "bn2": "output_layer.0",
    "fc": "output_layer.3",
    "features": "output_layer.4",
}


@dataclass(frozen=True, eq=False)
class Recognised:
    """A backbone's entries under our names.

    `kind`: the layout, for messages; `spec`: fields in which the layout differs from the architecture's spec.
    """

    kind: str
    state: dict[str, Tensor]
    spec: Mapping[str, Any] = field(default_factory=dict)


def recognise(path: Path, state: dict[str, Tensor]) -> Recognised:
    """Find the backbone among the entries of a file; entries of unknown parts are kept, to be reported.

    Raises:
        InputError: the file has only other parts.
    """
    rest = {key: value for key, value in state.items() if not _bare(key).startswith(_OTHER_PARTS)}
    if not rest:
        parts = ", ".join(sorted({_bare(key).split(".")[0] for key in state})) or "an empty state dict"
        raise InputError(
            f"{path}: expected a backbone, found only {parts}. If it was trained from cached features, join "
            "it with the backbone that made them: python convert.py --weights BACKBONE OUT.safetensors "
            f"--aggregator_weights {path}"
        )
    for mark, translate in _MARKS.items():
        prefixes = [key.removesuffix(mark) for key in rest if key == mark or key.endswith(f".{mark}")]
        if prefixes:
            prefix = min(prefixes, key=len)
            if _bare(prefix).startswith(_MAGFACE):
                rest = {key: value for key, value in rest.items() if _bare(key) not in _MAGFACE_HEADS}
            return translate(path, prefix, _renamed(rest, [key.removeprefix(prefix) for key in rest]))
    return Recognised("unknown", _renamed(rest, [key.removeprefix("model.") for key in rest]))


def cvlface_config(path: Path) -> dict[str, object] | None:
    """The configuration of the CVLFace repository of a file; None where it is not in one."""
    for folder in (path.parent, path.parent.parent):
        config = folder / "config.json"
        try:
            values, _ = read_json(config, dict[str, Any], "a configuration")
        except InputError:
            continue
        if isinstance(values, dict) and "CVLFaceRecognitionModel" in (values.get("architectures") or []):
            found = values.get("conf")
            return found if isinstance(found, dict) else {}
    try:
        text = (path.parent / "model.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    order = re.search(r"^color_space:\s*['\"]?(\w+)", text, re.MULTILINE)
    return {"color_space": order[1]} if order else None


def _bare(key: str) -> str:
    while key.startswith(_WRAPPERS):
        key = key.split(".", 1)[1]
    return key


def _renamed(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    ours: dict[str, Tensor] = {}
    for (key, value), name in zip(state.items(), names, strict=True):
        # Do not let one of two keys of the same name disappear.
        ours[key if name in ours else name] = value
    return ours


def _from_ir(path: Path, prefix: str, state: dict[str, Tensor]) -> Recognised:
    order = _cvlface_order(path, prefix)
    if order is not None:
        return Recognised("CVLFace IR", state, {"channel_order": order})
    kind = {"": "plain state dict, AdaFace's names", "model.": "AdaFace checkpoint"}.get(_bare(prefix))
    return Recognised(kind or f"AdaFace's names below '{prefix}'", state)


def _from_insightface(path: Path, prefix: str, state: dict[str, Tensor]) -> Recognised:
    units = [re.fullmatch(r"layer([1-4])\.(\d+)\.conv1\.weight", key) for key in state]
    stages = [int(unit[1]) for unit in units if unit]
    # `IResNet.body` numbers units across stages.
    before = {stage: sum(other < stage for other in stages) for stage in range(1, 5)}
    ours = _renamed(state, [_insightface_name(key, before) for key in state])
    order = _cvlface_order(path, prefix)
    if order is not None:
        return Recognised("CVLFace, InsightFace's IResNet", ours, {"channel_order": order})
    if _bare(prefix).startswith(_MAGFACE):
        return Recognised("MagFace", _from_magface(ours), _MAGFACE_SPEC)
    return Recognised("InsightFace arcface_torch", ours)


def _from_magface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the difference of eps of its BatchNorms to their variances."""
    more = _MAGFACE_EPS - nn.BatchNorm2d(1).eps
    return {
        key: value + more if key.endswith("running_var") and value.is_floating_point() else value
        for key, value in state.items()
    }


def _insightface_name(key: str, before: dict[int, int]) -> str:
    """Our name of an entry; `before`: number of units in the stages before each."""
    module, _, kind = key.rpartition(".")
    if module in _INSIGHTFACE_ENDS:
        return f"{_INSIGHTFACE_ENDS[module]}.{kind}"
    unit = re.fullmatch(r"layer([1-4])\.(\d+)\.(.+)", module)
    if unit is None or unit[3] not in _INSIGHTFACE_UNIT:
        return key
    return f"body.{before[int(unit[1])] + int(unit[2])}.{_INSIGHTFACE_UNIT[unit[3]]}.{kind}"


def _cvlface_order(path: Path, prefix: str) -> str | None:
    """The channel order of a CVLFace network, RGB unless its repository states it; None for others."""
    config = cvlface_config(path)
    if config is None:
        return "RGB" if _bare(prefix) in _CVLFACE else None
    order = config.get("color_space", "RGB")
    if order not in ("RGB", "BGR"):
        raise InputError(f"{path}: the config beside it has color_space {order!r}; expected RGB or BGR.")
    return str(order)


def _from_mbf(path: Path, prefix: str, state: dict[str, Tensor]) -> Recognised:
    """Rename the last layers, since `Backbone.features` is a method."""
    ours = {re.sub(r"^features\.layers\.", "output.", key): value for key, value in state.items()}
    return Recognised("InsightFace arcface_torch, MobileFaceNet", ours)


def _from_mobilefacenet(path: Path, prefix: str, state: dict[str, Tensor]) -> Recognised:
    return Recognised("MobileFaceNet", state)


def _from_dlib(path: Path, prefix: str, state: dict[str, Tensor]) -> Recognised:
    return Recognised("dlib's ResNet", state)


def _from_mxnet(path: Path, prefix: str, state: dict[str, Tensor]) -> Recognised:
    """MobileFaceNet's entries under our names; unknown entries keep theirs."""
    renamed = dict(state)
    with torch.device("meta"):
        names = list(build_backbone("mobilefacenet").state_dict())
    for name in names:
        if name.endswith("num_batches_tracked"):
            renamed[name] = torch.tensor(0)
        elif (stored := _mxnet_name(name)) in renamed:
            renamed[name] = renamed.pop(stored)
    if "fc1.weight" in renamed:
        # MXNet's fix_gamma: the stored scale is ignored, and 1 was used in training.
        renamed["fc1.weight"] = torch.ones_like(renamed["fc1.weight"])
    return Recognised("MXNet MobileFaceNet", renamed)


def _mxnet_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module == "pre_fc1":
        return "fc1_weight" if kind == "weight" else "pre_fc1_bias"
    if not module.endswith("conv2d"):
        own = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
        kind = own[kind]
    return f"{module.replace('.', '_')}_{kind}"


# A name that only this layout has, and the function that translates it.
_MARKS: dict[str, Callable[[Path, str, dict[str, Tensor]], Recognised]] = {
    "input_layer.0.weight": _from_ir,
    "layer1.0.prelu.weight": _from_insightface,
    "conv_sep.layers.0.weight": _from_mbf,
    "conv_1.conv2d.weight": _from_mobilefacenet,
    "conv_1_conv2d_weight": _from_mxnet,
    # Both as `weights.dlib_file` reads it and as it is stored afterwards.
    "input_layer.weight": _from_dlib,
}

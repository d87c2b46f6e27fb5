"""State dicts of other projects -> the names of our backbones, whatever prefix the keys carry.

Recognised by names alone: AdaFace and plain IR networks, CVLFace, InsightFace's arcface_torch, MagFace,
MXNet's MobileFaceNet, ours. Whether everything fits is looked at in `weights.fitting`. Sources: METHOD 2-5;
arcface_torch/backbones/iresnet.py, mobilefacenet.py; CVLFace's models/iresnet, models/iresnet_insightface,
wrapper.py; MagFace's models/iresnet.py, inference/gen_feat.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from net import build_backbone
from runtime.errors import InputError
from runtime.json_files import read_json

# Beside a backbone in whole checkpoints. `template_model` is the backbone once more, the same tensors.
_OTHER_PARTS = ("head.", "aggregate_model.", "aggregator.", "template_model.")
# What torch.nn.DataParallel and torch.compile put before the names.
_WRAPPERS = ("module.", "_orig_mod.")
# The wrapper of a CVLFace repository has `model`, a network with `net`; model.pt begins at the latter.
_CVLFACE = ("net.", "model.net.")
# MagFace trains a module `features`, wrapped as a whole or by itself, beside its head.
_MAGFACE = "features."
_MAGFACE_HEADS = ("fc.weight", "parallel_fc.weight")
# It reads BGR as value / 255, and its norm rises with quality. Its BatchNorms add 2e-5 to the variance.
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

    `kind`: whose layout it was, for the user; `spec`: fields of the spec in which that kind differs from the
    backbone's name.
    """

    kind: str
    state: dict[str, Tensor]
    spec: Mapping[str, Any] = field(default_factory=dict)


def recognise(path: Path, state: dict[str, Tensor]) -> Recognised:
    """The backbone among the entries of a file; entries of no known part stay in it, to be reported.

    Raises:
        InputError: there are only other parts in it.
    """
    rest = {key: value for key, value in state.items() if not _bare(key).startswith(_OTHER_PARTS)}
    if not rest:
        parts = ", ".join(sorted({_bare(key).split(".")[0] for key in state})) or "an empty state dict"
        raise InputError(
            f"{path}: expected a backbone, found only {parts}. If it was trained from features alone, "
            "join it with the weights that made them, and use what that writes: python convert.py --weights "
            f"BACKBONE OUT.safetensors --aggregator_weights {path}"
        )
    for mark, translate in _MARKS.items():
        prefixes = [key.removesuffix(mark) for key in rest if key == mark or key.endswith(f".{mark}")]
        if prefixes:
            prefix = min(prefixes, key=len)
            if _bare(prefix).startswith(_MAGFACE):
                rest = {key: value for key, value in rest.items() if _bare(key) not in _MAGFACE_HEADS}
            return translate(path, *_without(prefix, rest))
    return Recognised("unknown", _without("model.", rest)[1])


def cvlface_config(path: Path) -> dict[str, object] | None:
    """What a CVLFace repository says of the network whose file this is; None where it is none."""
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


def _without(prefix: str, state: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    ours: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix(prefix)
        # Two keys with one name would hide one of them.
        ours[key if name in ours else name] = value
    return prefix, ours


def _from_ir(path: Path, prefix: str, state: dict[str, Tensor]) -> Recognised:
    order = _cvlface_order(path, prefix)
    if order is not None:
        return Recognised("CVLFace IR", state, {"channel_order": order})
    kind = {"": "plain state dict, AdaFace's names", "model.": "AdaFace checkpoint"}.get(_bare(prefix))
    return Recognised(kind or f"AdaFace's names below '{prefix}'", state)


def _from_insightface(path: Path, prefix: str, state: dict[str, Tensor]) -> Recognised:
    units = [re.fullmatch(r"layer([1-4])\.(\d+)\.conv1\.weight", key) for key in state]
    stages = [int(unit[1]) for unit in units if unit]
    # `IResNet.body` counts units through all stages.
    before = {stage: sum(other < stage for other in stages) for stage in range(1, 5)}
    ours: dict[str, Tensor] = {}
    for key, value in state.items():
        name = _insightface_name(key, before)
        # Two keys with one name would hide one of them.
        ours[key if name in ours else name] = value
    order = _cvlface_order(path, prefix)
    if order is not None:
        return Recognised("CVLFace, InsightFace's IResNet", ours, {"channel_order": order})
    if _bare(prefix).startswith(_MAGFACE):
        return Recognised("MagFace", _from_magface(ours), _MAGFACE_SPEC)
    return Recognised("InsightFace arcface_torch", ours)


def _from_magface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The larger eps of its BatchNorms becomes part of their variances."""
    more = _MAGFACE_EPS - nn.BatchNorm2d(1).eps
    return {
        key: value + more if key.endswith("running_var") and value.is_floating_point() else value
        for key, value in state.items()
    }


def _insightface_name(key: str, before: dict[int, int]) -> str:
    """Our name; `before`: units in the stages before each."""
    module, _, kind = key.rpartition(".")
    if module in _INSIGHTFACE_ENDS:
        return f"{_INSIGHTFACE_ENDS[module]}.{kind}"
    unit = re.fullmatch(r"layer([1-4])\.(\d+)\.(.+)", module)
    if unit is None or unit[3] not in _INSIGHTFACE_UNIT:
        return key
    return f"body.{before[int(unit[1])] + int(unit[2])}.{_INSIGHTFACE_UNIT[unit[3]]}.{kind}"


def _cvlface_order(path: Path, prefix: str) -> str | None:
    """The colour order of a CVLFace network: what its repository says, else RGB; None where it is none."""
    config = cvlface_config(path)
    if config is None:
        return "RGB" if _bare(prefix) in _CVLFACE else None
    order = config.get("color_space", "RGB")
    if order not in ("RGB", "BGR"):
        raise InputError(f"{path}: the config beside it says color_space {order!r}; expected RGB or BGR.")
    return str(order)


def _from_mbf(path: Path, prefix: str, state: dict[str, Tensor]) -> Recognised:
    """`Backbone.features` is a method, so that the last layers have another name."""
    ours = {re.sub(r"^features\.layers\.", "output.", key): value for key, value in state.items()}
    return Recognised("InsightFace arcface_torch, MobileFaceNet", ours)


def _from_mobilefacenet(path: Path, prefix: str, state: dict[str, Tensor]) -> Recognised:
    return Recognised("MobileFaceNet", state)


def _from_mxnet(path: Path, prefix: str, state: dict[str, Tensor]) -> Recognised:
    """MobileFaceNet's entries under our names; unknown ones keep theirs."""
    renamed = dict(state)
    with torch.device("meta"):
        names = list(build_backbone("mobilefacenet").state_dict())
    for name in names:
        if name.endswith("num_batches_tracked"):
            renamed[name] = torch.tensor(0)
        elif (stored := _mxnet_name(name)) in renamed:
            renamed[name] = renamed.pop(stored)
    if "fc1.weight" in renamed:
        # MXNet's fix_gamma: the file holds some scale, but the network was trained with 1.
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


# A name that only this layout has, and who puts the layout into our names.
_MARKS: dict[str, Callable[[Path, str, dict[str, Tensor]], Recognised]] = {
    "input_layer.0.weight": _from_ir,
    "layer1.0.prelu.weight": _from_insightface,
    "conv_sep.layers.0.weight": _from_mbf,
    "conv_1.conv2d.weight": _from_mobilefacenet,
    "conv_1_conv2d_weight": _from_mxnet,
}

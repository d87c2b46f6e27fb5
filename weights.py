"""Weight files -> backbones that are ready to use, mapped strictly; and back, with the spec beside them.

Nothing is unpickled but tensors and plain containers. Whatever does not fit exactly is an InputError.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from coreset import build_aggregator
from coreset.aggregator import CoresetAggregator
from errors import InputError
from files import atomic_path, require_free_space
from net import BACKBONES, Backbone, BackboneSpec, build_backbone

_TORCH_SUFFIXES = (".ckpt", ".pt", ".pth")
_BACKBONE_PREFIX = "model."
# `template_model` is the backbone once more in published FaceCoresetNet checkpoints, the same tensors.
_OTHER_PARTS = ("head.", "aggregate_model.", "aggregator.", "template_model.")
_FAULTS_SHOWN = 5
# What torch.load was seen to raise on some thousand damaged files, and its kin.
_UNREADABLE = (
    *(pickle.UnpicklingError, struct.error, zipfile.BadZipFile, RuntimeError, OSError, EOFError, MemoryError),
    *(AssertionError, AttributeError, ArithmeticError, LookupError, TypeError, ValueError),
)


def load_backbone(path: Path | str, arch: str | None = None) -> Backbone:
    """A backbone with the weights of a file, on the CPU, in float32 and evaluation mode.

    Takes plain state dicts, Lightning checkpoints of AdaFace and FaceCoresetNet and our own (keys `model.*`;
    heads and aggregators in them are passed over), our `.safetensors`, and MobileFaceNet under MXNet's names.
    The architecture is taken from the file where it says one, else from the shapes; `spec` is the file's own
    where it holds one, else that of the architecture in `BACKBONES`.

    Raises:
        InputError: no such file, no weights, a pickle that needs more than tensors, another architecture than
            `arch`, or any missing, unexpected, mis-shaped or non-finite entry.
    """
    path = Path(path)
    if arch is not None and arch not in BACKBONES:
        raise InputError(f"{arch!r} is no backbone. There are: {', '.join(BACKBONES)}.")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; expected the weights of a backbone.")
    if path.suffix == ".safetensors":
        state, spec = _read_safetensors(path)
    elif path.suffix in _TORCH_SUFFIXES:
        state, spec = _read_checkpoint(path)
    else:
        known = ", ".join((".safetensors", *_TORCH_SUFFIXES))
        raise InputError(f"{path}: weights are read from files that end in {known}.")
    state = _without_other_parts(state, path)
    if any(key.endswith("_conv2d_weight") for key in state):
        state = _from_mxnet_names(state)
    name = _architecture(path, state, arch, spec)
    # Built without memory: fresh weights would cost a second for a deep network, and draw random numbers.
    with torch.device("meta"):
        backbone = build_backbone(name)
    backbone.to_empty(device="cpu").load_state_dict(state)
    backbone.spec = spec or BACKBONES[name]
    return backbone.eval()


def load_aggregator(path: Path | str) -> nn.Module | None:
    """The aggregator in a checkpoint of ours, or in a published FaceCoresetNet one; None where there is none.

    On the CPU, in evaluation mode. A published checkpoint does not say its coreset size: 3, as published.

    Raises:
        InputError: as `load_backbone`, or an aggregator that does not fit what the file says of it.
    """
    path = Path(path)
    if path.suffix not in _TORCH_SUFFIXES or not path.is_file():
        return None
    checkpoint = read_checkpoint(path)
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else {}
    if any(str(key).startswith("aggregate_model.") for key in state):
        return CoresetAggregator.from_published(state)
    prefix = "aggregator."
    own = {key.removeprefix(prefix): value for key, value in state.items() if str(key).startswith(prefix)}
    if not own:
        return None
    try:
        name, options = checkpoint["aggregator_name"], checkpoint["aggregator_options"]
        aggregator = build_aggregator(name, options)
        aggregator.load_state_dict(own)
    except (KeyError, RuntimeError, InputError) as error:
        raise InputError(f"{path}: its aggregator cannot be built: {error}") from error
    return aggregator.eval()


def save_backbone(path: Path, backbone: Backbone) -> None:
    """Writes weights and spec as `.safetensors`, whole or not at all; `load_backbone` reads them back.

    Raises:
        InputError: another suffix, or too little room on the disk.
    """
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: backbones are written as .safetensors; choose a name that ends in it.")
    values = backbone.spec.to_dict()
    metadata = {"format": "pt", "architecture": values.pop("name")}
    metadata |= {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    state = {key: value.detach().cpu().contiguous() for key, value in backbone.state_dict().items()}
    require_free_space(path.parent, sum(value.nbytes for value in state.values()))
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata)


def read_checkpoint(path: Path) -> Any:
    """What a file of `torch.save` holds; InputError unless it is tensors and plain containers alone."""
    try:
        # A mapped file costs memory for the entries that are used, not for heads and optimisers.
        mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except _UNREADABLE as error:
        blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if blocked:
            raise InputError(
                f"{path}: it needs {blocked[1]} to be unpickled, but a pickle can run any code, so only "
                "tensors and plain containers are read. Save its state dict alone, "
                "torch.save(model.state_dict(), ...), or ask its author for a .safetensors file."
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: {_what_it_may_be(path)} The reader says: {reason}") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], BackboneSpec | None]:
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            state = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        raise InputError(f"{path}: {_what_it_may_be(path)} The reader says: {error}") from error
    return state, _spec_of_metadata(path, metadata)


def _spec_of_metadata(path: Path, metadata: Mapping[str, str]) -> BackboneSpec | None:
    """The spec in the metadata, if they name an architecture; what they leave out is as in `BACKBONES`."""
    if "architecture" not in metadata:
        return None
    name = metadata["architecture"]
    values: dict[str, Any] = BACKBONES[name].to_dict() if name in BACKBONES else {"name": name}
    try:
        if "scale" in metadata:
            values["std"] = 1 / float(metadata["scale"])
        for key in set(values) & set(metadata) - {"name"}:
            stored = metadata[key]
            values[key] = stored if key == "channel_order" else json.loads(stored)
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"{path}: its metadata cannot be read ({error}): {dict(metadata)}.") from error
    return _checked_spec(path, values)


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], BackboneSpec | None]:
    """The state dict of a file of `torch.save`, and the spec if it is one of our checkpoints."""
    checkpoint = read_checkpoint(path)
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping):
        raise InputError(f"{path}: expected a state dict or a checkpoint, found {_described(checkpoint)}.")
    strange = [
        key for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if strange:
        raise InputError(
            f"{path}: expected a state dict (names and tensors), found {_described(state)}; {strange[0]!r} "
            f"is {_described(state[strange[0]])}. Save the state dict under the key 'state_dict'."
        )
    values = checkpoint.get("backbone_spec") if state is not checkpoint else None
    return dict(state), None if values is None else _checked_spec(path, values)


def _described(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a dictionary with the keys {', '.join(map(str, list(value)[:_FAULTS_SHOWN])) or '(none)'}"
    return f"a {type(value).__name__}"


def _what_it_may_be(path: Path) -> str:
    """What is said of a file that is no weight file, from its first bytes."""
    with path.open("rb") as stream:
        start = stream.read(64).lstrip()
    if not start:
        return "the file is empty."
    if start.startswith(b"<"):
        return "this is a web page, not weights. The download went wrong; fetch it again in a browser."
    if start.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the weights. Run 'git lfs pull' in its folder."
    size = path.stat().st_size
    return f"no weights can be read from its {size} bytes. It may be cut short; compare the original's size."


def _checked_spec(path: Path, values: object) -> BackboneSpec:
    """The spec that a file holds, if it is that of a backbone that we can build."""
    if not isinstance(values, dict):
        raise InputError(f"{path}: backbone_spec must be a dictionary, found {_described(values)}.")
    name = values.get("name")
    if not isinstance(name, str) or name not in BACKBONES:
        raise InputError(f"{path}: holds a backbone {name!r}, which is none of {', '.join(BACKBONES)}.")
    try:
        spec = BackboneSpec.from_dict(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    built = BACKBONES[spec.name]
    if (spec.embedding_size, spec.image_size) != (built.embedding_size, built.image_size):
        raise InputError(
            f"{path}: its {spec.name} has {spec.embedding_size} values for {spec.image_size} pixels; "
            f"expected {built.embedding_size} values for {built.image_size} pixels, as {spec.name} is built."
        )
    return spec


def _without_other_parts(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The backbone's entries, without their prefix; an entry of no known part stays, to be reported."""
    rest = {key: value for key, value in state.items() if not key.startswith(_OTHER_PARTS)}
    if not rest:
        parts = ", ".join(sorted({key.split(".")[0] for key in state})) or "an empty state dict"
        raise InputError(f"{path}: expected a backbone, found only {parts}.")
    if not any(key.startswith(_BACKBONE_PREFIX) for key in rest):
        return rest
    return {key.removeprefix(_BACKBONE_PREFIX): value for key, value in rest.items()}


def _from_mxnet_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """MobileFaceNet's entries under our names; unknown ones keep theirs."""
    renamed = dict(state)
    for name in _shapes_of("mobilefacenet"):
        if name.endswith("num_batches_tracked"):
            renamed[name] = torch.tensor(0)
        elif (stored := _mxnet_name(name)) in renamed:
            renamed[name] = renamed.pop(stored)
    if "fc1.weight" in renamed:
        # MXNet's fix_gamma: the file holds some scale, but the network was trained with 1.
        renamed["fc1.weight"] = torch.ones_like(renamed["fc1.weight"])
    return renamed


def _mxnet_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module == "pre_fc1":
        return "fc1_weight" if kind == "weight" else "pre_fc1_bias"
    if not module.endswith("conv2d"):
        own = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
        kind = own[kind]
    return f"{module.replace('.', '_')}_{kind}"


@cache
def _shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in build_backbone(name).state_dict().items()}


def _architecture(path: Path, state: dict[str, Tensor], arch: str | None, spec: BackboneSpec | None) -> str:
    """The backbone's name; InputError unless names, shapes and values of the entries are right for it."""
    if arch is not None and spec is not None and arch != spec.name:
        raise InputError(f"{path}: holds {spec.name}, but {arch} was asked for. Ask for {spec.name} or none.")
    name = arch or (spec.name if spec else None)
    if name is None or _disagreements(state, _shapes_of(name)):
        name = _deduced(path, state, name)
    broken = [key for key, value in state.items() if not bool(value.isfinite().all())]
    if broken:
        raise InputError(
            f"{path}: NaN or infinite values in {len(broken)} of its entries, the first is {broken[0]}. "
            "The training that wrote it had failed; take an earlier checkpoint."
        )
    return name


def _deduced(path: Path, state: dict[str, Tensor], asked: str | None) -> str:
    """The backbone that fits, if none was asked for; else InputError says how the asked one differs."""
    disagreements = {name: _disagreements(state, _shapes_of(name)) for name in BACKBONES}
    fitting = next((name for name, faults in disagreements.items() if not faults), None)
    if asked is None and fitting is not None:
        return fitting
    name = asked or min(BACKBONES, key=lambda name: len(disagreements[name]))
    faults = disagreements[name]
    lines = [f"{path}: the weights are not those of {name}{'' if asked else ', the closest backbone'}:"]
    lines += [f"  {fault}" for fault in faults[:_FAULTS_SHOWN]]
    lines += [f"  ... and {len(faults) - _FAULTS_SHOWN} more"] if len(faults) > _FAULTS_SHOWN else []
    raise InputError.from_faults([*lines, _guess(state, fitting, _shapes_of(name))])


def _disagreements(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    misshaped = [
        f"{key}: {_form(state[key])} where {shape} is expected"
        for key, shape in shapes.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    # A quantised file would be cast in silence.
    misshaped += [
        f"{key}: {_form(state[key])} where floating point is expected"
        for key in shapes
        if key in state and not (key.endswith("num_batches_tracked") or state[key].is_floating_point())
    ]
    missing = [f"{key}: missing" for key in shapes if key not in state]
    return misshaped + missing + [f"{key}: unexpected" for key in state if key not in shapes]


def _form(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _guess(state: Mapping[str, Tensor], fitting: str | None, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The likeliest cause of a disagreement, as a sentence."""
    if fitting is not None:
        return f"They are exactly those of {fitting}: ask for {fitting} or none."
    first = next(iter(shapes))
    prefixes = [key.removesuffix(first) for key in state if key.endswith(f".{first}")]
    if prefixes:
        return f"All keys seem to carry the prefix '{prefixes[0]}': save the state dict without it."
    if "layer1.0.conv1.weight" in state:
        return "The names are those of InsightFace's arcface_torch, another layout of the same family."
    common = shapes.keys() & state.keys()
    if not common:
        return "No name is known. It seems to be another kind of network."
    if len(common) == len(shapes) == len(state):
        return "Only shapes differ: it seems to be made for another image size, embedding size or precision."
    if len(common) == len(state):
        return "Part of the network is missing: a deeper one was meant, or the file was written by halves."
    return "It seems to be a network of the same family, but of another depth or with other blocks."

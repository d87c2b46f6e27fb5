"""Read the tensors and metadata of weight files, without interpreting them.

Only tensors and plain containers are unpickled, unless the user asks for more.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.serialization import safe_globals

from backbones.spec import with_current_names
from runtime.errors import InputError
from runtime.input_files import utf8_path
from runtime.json_files import parse_json
from runtime.text import first_line
from weights import dlib_file
from weights.digest import CHECKSUM, FORM, VERSION, content_checksum
from weights.sources import check_weights_exist

TORCH_SUFFIXES = (".ckpt", ".pt", ".pth")
# Keys of the state dict in a checkpoint: Lightning and most others, arcface_torch.
_STATE_KEYS = ("state_dict", "state_dict_backbone")
# Key of the digests of trained subjects (`digest.name_digests`), separated by spaces, in both kinds of file.
TRAINED_SUBJECTS = "trained_subjects"
# Key of the digest of an aggregator's backbone: in the metadata, or below `_FEATURES`.
BACKBONE_DIGEST = "backbone_sha256"
_FEATURES = "data_fingerprint"
# Lightning's key of a module's arguments.
_HYPER_PARAMETERS = "hyper_parameters"
_SHOWN = 5
_BYTES_AT_ONCE = 1 << 24
# What torch.load raised on some thousand damaged files, and related errors.
_UNREADABLE = (
    *(pickle.UnpicklingError, struct.error, zipfile.BadZipFile, RuntimeError, OSError, EOFError, MemoryError),
    *(AssertionError, AttributeError, ArithmeticError, LookupError, TypeError, ValueError),
)


@dataclass(frozen=True, eq=False)
class Stored:
    """Content of a weight file.

    Attributes:
        path: of the file.
        state: tensors by name.
        backbone_spec: as stored and unchecked; None where there is none.
        aggregator: name and options, if stored.
        about: other metadata (source, licence, `TRAINED_SUBJECTS`, ...).
        hyper_parameters: arguments of the Lightning module, as stored.
        features: identity of the features that an aggregator was trained on, if stored.
    """

    path: Path
    state: dict[str, Tensor]
    backbone_spec: object = None
    aggregator: tuple[object, object] | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    hyper_parameters: Mapping[str, object] = field(default_factory=dict)
    features: Mapping[str, object] = field(default_factory=dict)


def read_stored(path: Path, *, allow_pickle: bool = False) -> Stored:
    """Read a .safetensors file, one of torch.save or one of dlib.

    Raises:
        InputError: no such file, another suffix, no weights, a pickle that needs more than tensors, or NaN or
            infinite values in any part (backbone, aggregator or head).
    """
    check_weights_exist(path)
    if path.suffix == ".safetensors":
        stored = _read_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
        stored = _read_torch(path, allow_pickle)
    elif path.suffix == dlib_file.SUFFIX:
        stored = Stored(path, dlib_file.read_dlib_file(path))
    else:
        known = ", ".join((".safetensors", *TORCH_SUFFIXES, dlib_file.SUFFIX, ".onnx"))
        raise InputError(f"{path}: weights are read from files that end in {known}.")
    check_values(path, stored.state)
    return stored


def check_values(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise InputError unless all entries are plain arrays, and finite ones in float32."""
    unsupported = [key for key, value in state.items() if not _is_plain(value)]
    if unsupported:
        raise InputError(
            f"{path}: {unsupported[0]} is a sparse, quantised or empty (meta) tensor. Save the state dict of "
            "the model as plain arrays."
        )
    broken = [key for key, value in state.items() if not _is_finite(value)]
    if broken:
        raise InputError(
            f"{path}: NaN or infinite values in {len(broken)} of its {len(state)} entries, the first is "
            f"{broken[0]}. Its training diverged, or the file is damaged; use an earlier checkpoint."
        )


def _is_plain(value: Tensor) -> bool:
    return value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"


def _is_finite(value: Tensor) -> bool:
    """By the extremes, which propagate NaN and need no temporary array."""
    if not value.is_floating_point() or not value.numel():
        return True
    if value.nbytes > (stored := value.untyped_storage()).nbytes():
        # Strides of a hostile file may repeat a few bytes any number of times.
        value = value.new_empty(0).set_(stored)
    least, most = (value if value.dtype == torch.float64 else value.float()).aminmax()
    return bool((least.float().isfinite() & most.float().isfinite()).item())


def read_checkpoint(path: Path, *, allow_pickle: bool = False) -> Any:
    """Load a file of `torch.save`; InputError unless it holds tensors and plain containers only.

    `allow_pickle`: also import and build the classes of the file, which can run any code; classes that are
    not installed become empty objects.
    """
    try:
        _check_members(path)
        if allow_pickle:
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_Forgiving)
        # A mapped file costs memory only for the entries that are used, not for heads and optimisers.
        mapped = zipfile.is_zipfile(path)
        with safe_globals(_STAND_INS), utf8_path(path) as readable:
            return torch.load(readable, map_location="cpu", weights_only=True, mmap=mapped)
    except _UNREADABLE as error:
        blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if blocked:
            raise InputError(
                f"{path}: unpickling it needs {blocked[1]}, but a pickle can run any code, so only tensors "
                "and plain containers are read. Save its state dict alone, torch.save(model.state_dict(), "
                "...), or ask its author for a .safetensors file. If you trust the author: python "
                "convert.py --weights IN OUT.safetensors --allow-pickle"
            ) from error
        raise InputError(f"{path}: {what_it_may_be(path)} The reader says: {first_line(error)}") from error


def _check_members(path: Path) -> None:
    """Verify the checksums of a zip file's members, which `torch.load` does not.

    A checksum of 0 means none (`torch.serialization.set_crc32_options`).

    Raises:
        InputError: compressed members, whose packed bytes would be mapped as values, or members that share
            bytes; `torch.save` writes neither.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED:
                raise InputError(
                    f"{path}: its member {member.filename[:40]!r} is compressed, which torch.save "
                    "does not do. Unpack the archive and pack it again without compression (zip -0)."
                )
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise InputError(f"{path}: its members together are larger than the file, which is damaged.")
        for member in members:
            if member.CRC:
                with archive.open(member) as stream:
                    while stream.read(_BYTES_AT_ONCE):
                        pass


def what_it_may_be(path: Path) -> str:
    """A sentence on a file that is not a weight file, by its first bytes."""
    with path.open("rb") as stream:
        start = stream.read(64).lstrip()
    if not start:
        return "the file is empty."
    if start.startswith(b"<"):
        return "this is a web page, not weights. The download failed; repeat it in a browser."
    if start.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the weights. Run 'git lfs pull' in its folder."
    size = path.stat().st_size
    return f"no weights can be read from its {size} bytes. It may be cut short; compare the original's size."


def described(value: object) -> str:
    """Describe a value of a checkpoint for a message."""
    if isinstance(value, Mapping):
        return f"a dictionary with the keys {', '.join(map(str, list(value)[:_SHOWN])) or '(none)'}"
    return f"a {type(value).__name__}"


def _read_safetensors(path: Path) -> Stored:
    try:
        with utf8_path(path) as readable, safe_open(readable, framework="pt") as stored:
            about = dict(stored.metadata() or {})
            state = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        raise InputError(f"{path}: {what_it_may_be(path)} The reader says: {error}") from error
    checksum = about.pop(CHECKSUM, None)
    is_ours = about.get(VERSION) == FORM
    if (is_ours or checksum is not None) and checksum != content_checksum(state, about):
        raise InputError(
            f"{path}: does not match its own checksum, so it was changed after it was written. Copy or make "
            "it again."
        )
    aggregator: tuple[object, object] | None = None
    if "aggregator_name" in about:
        where = f"{path}: its metadata, aggregator_options: expected an object"
        options = parse_json(about.get("aggregator_options", "{}"), where)
        aggregator = about["aggregator_name"], _current(options)
    return Stored(path, state, about if "architecture" in about else None, aggregator, about)


def _current(options: object) -> object:
    return with_current_names(options) if isinstance(options, Mapping) else options


def _read_torch(path: Path, allow_pickle: bool) -> Stored:
    checkpoint = read_checkpoint(path, allow_pickle=allow_pickle)
    if allow_pickle and isinstance(checkpoint, nn.Module):
        checkpoint = checkpoint.state_dict()
    state = checkpoint
    if isinstance(checkpoint, Mapping):
        state = next((checkpoint[key] for key in _STATE_KEYS if key in checkpoint), checkpoint)
    if not isinstance(state, Mapping):
        raise InputError(f"{path}: expected a state dict or a checkpoint, found {described(checkpoint)}.")
    strange = [
        key for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if strange:
        raise InputError(
            f"{path}: expected a state dict (names and tensors), found {described(state)}; {strange[0]!r} "
            f"is {described(state[strange[0]])}. Save the state dict under the key 'state_dict'."
        )
    if state is checkpoint:
        return Stored(path, dict(state))
    aggregator = None
    if "aggregator_name" in checkpoint:
        aggregator = checkpoint["aggregator_name"], _current(checkpoint.get("aggregator_options"))
    about = {TRAINED_SUBJECTS: checkpoint[TRAINED_SUBJECTS]} if TRAINED_SUBJECTS in checkpoint else {}
    built_with = checkpoint.get(_HYPER_PARAMETERS)
    values = dict(built_with) if isinstance(built_with, Mapping) else {}
    values |= getattr(built_with, "__dict__", {})
    spec, made_from = checkpoint.get("backbone_spec"), checkpoint.get(_FEATURES)
    features = made_from if isinstance(made_from, Mapping) else {}
    if isinstance(digest := features.get(BACKBONE_DIGEST), str):
        about[BACKBONE_DIGEST] = digest
    return Stored(path, dict(state), spec, aggregator, about, values, features)


class _PlainValues:
    """Replaces a class that only holds values by name; none of that class's code runs."""

    def __new__(cls, *_: object) -> Any:
        # The only type that torch.load fills both as a dictionary and by attributes.
        return OrderedDict()


def _stand_in(path: str) -> type[_PlainValues]:
    """A class that torch.load accepts for the one of this qualified name."""
    module, name = path.rsplit(".", 1)
    return type(name, (_PlainValues,), {"__module__": module, "__qualname__": name})


# Classes in published checkpoints: of hyper-parameters and, up to Lightning 1.4, keys of callback states.
_STAND_INS: list[Any] = [
    _stand_in(path)
    for path in (
        "argparse.Namespace",
        "utils.dotdict",
        "lightning_fabric.utilities.data.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    )
]


class _Absent:
    """Replaces an object whose class is not installed; accepts any state."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _Forgiving:
    """A pickle module for torch.load that tolerates classes which no longer exist."""

    class Unpickler(pickle.Unpickler):
        """Imports classes, or creates an empty one."""

        def find_class(self, module: str, name: str) -> Any:
            """The class, or an empty one."""
            try:
                return super().find_class(module, name)
            except (ImportError, AttributeError):
                return type(name, (_Absent,), {"__module__": module})

    load = staticmethod(pickle.load)
    loads = staticmethod(pickle.loads)

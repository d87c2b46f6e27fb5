"""Checks of the tensors in an ONNX file: external data files and NaN values.

ONNX runtimes open external files by paths that the graph names, so these are checked first. The file is
parsed as Protocol Buffers directly: nothing is executed and no package is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from numpy.typing import DTypeLike, NDArray

from runtime.errors import InputError

# Nested messages of onnx.proto: field number -> kind.
_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_NAME, _KIND, _FLOATS, _DOUBLES, _RAW, _EXTERNAL, _PLACE = 8, 2, 4, 10, 9, 13, 14
_GRAPH, _OUTPUT = 7, 12
_FLOAT, _HALF, _DOUBLE, _BFLOAT16 = 1, 10, 11, 16
_RAW_KINDS: dict[int, DTypeLike] = {_FLOAT: "<f4", _HALF: "<f2", _DOUBLE: "<f8"}
# Limits of a Protocol Buffers message and of the digits of a length.
_MAX_BYTES, _MAX_DIGITS = (1 << 31) - 1, 19
# Nested graphs, as in loops; real models have a few levels.
_MAX_DEPTH = 64


@dataclass(eq=False)
class OnnxTensor:
    """A tensor of a graph.

    `files`: paths of external data as written, empty if the values are in the graph; `length`: their size in
    bytes, None to the end of the file; `values`: floating-point values in the graph.
    """

    name: str = ""
    files: list[str] = field(default_factory=list)
    length: int | None = None
    values: list[NDArray[np.floating]] = field(default_factory=list)


def onnx_tensors(content: bytes) -> Iterator[OnnxTensor]:
    """All tensors of a model: initialisers, constants, those of functions and nested graphs.

    Raises:
        ValueError: the bytes are not a Protocol Buffers message.
    """
    yield from _tensors(memoryview(content), "model", 0)


def graph_outputs(content: bytes) -> list[str]:
    """Names of a graph's outputs; empty for invalid bytes."""
    try:
        parts = [part for number, part in _fields(memoryview(content)) if number == _GRAPH]
        outputs = [each for part in parts for number, each in _messages(part) if number == _OUTPUT]
        return [_text(name) for each in outputs for number, name in _messages(each) if number == 1]
    except ValueError:
        return []


def external_files(path: Path, content: bytes) -> list[Path]:
    """The external data files of a model.

    Raises:
        InputError: a path is not a plain file name, leaves the folder by a link, or does not exist; or the
            data exceed the 2 GiB of a single ONNX file.
    """
    try:
        tensors = [tensor for tensor in onnx_tensors(content) if tensor.files]
    except ValueError as error:
        raise InputError(
            f"{path}: its {len(content)} bytes are not a readable ONNX graph: {error}."
        ) from error
    names = list(dict.fromkeys(name for tensor in tensors for name in tensor.files))
    for name in names:
        plain = PurePosixPath(name).name == name and PureWindowsPath(name).name == name and "\0" not in name
        target = path.parent / name if plain and name != ".." else None
        if target is None or target.resolve().parent != path.parent.resolve():
            raise InputError(
                f"{path}: refers to weights in {name!r}, which is not in the folder of the graph. Weights "
                "are read only from files beside the graph; export it as one file."
            )
        if not target.is_file():
            raise InputError(
                f"{path}: refers to weights in {name!r}, which does not exist beside it. Copy it there, or "
                "export the graph as one file."
            )
    sizes = {name: (path.parent / name).stat().st_size for name in names}
    # Tensors may share bytes, so the file sizes are no bound.
    taken = sum(min(tensor.length or sizes[name], sizes[name]) for tensor in tensors for name in tensor.files)
    if taken > _MAX_BYTES:
        raise InputError(
            f"{path}: refers to {taken / 1e9:,.1f} GB of weights in other files; expected less than 2 GiB, "
            "the limit of a single ONNX file. The file may be damaged."
        )
    return [path.parent / name for name in names]


def check_onnx_values(path: Path, content: bytes) -> None:
    """Raise InputError for NaN in a tensor, and for infinity except in a scalar (such as a clipping
    bound).
    """
    for tensor in onnx_tensors(content):
        is_scalar = sum(each.size for each in tensor.values) == 1
        if any(np.isnan(each).any() or (np.isinf(each).any() and not is_scalar) for each in tensor.values):
            raise InputError(
                f"{path}: NaN or infinite values in {tensor.name!r}. The file is damaged, or the training "
                "diverged; use another one."
            )


def _tensors(message: memoryview, kind: str, depth: int) -> Iterator[OnnxTensor]:
    if depth > _MAX_DEPTH:
        raise ValueError("graphs are nested too deep")
    if kind == "tensor":
        yield _tensor(message)
        return
    for number, value in _messages(message):
        part = _PARTS[kind].get(number)
        if part is not None:
            yield from _tensors(value, part, depth + 1)


def _tensor(message: memoryview) -> OnnxTensor:
    tensor, kind, raw, is_external = OnnxTensor(), 0, memoryview(b""), False
    for number, value in _fields(message):
        if not isinstance(value, memoryview):
            kind = value if number == _KIND else kind
            is_external |= number == _PLACE and value == 1
        elif number == _NAME:
            tensor.name = _text(value)
        elif number == _EXTERNAL:
            entry = dict(_messages(value))
            key, text = (_text(entry.get(number, memoryview(b""))) for number in (1, 2))
            if key == "location":
                tensor.files.append(text)
            elif key == "length" and text.isdecimal():
                tensor.length = int(text[:_MAX_DIGITS])
        elif number == _RAW:
            raw = value
        elif number in (_FLOATS, _DOUBLES):
            tensor.values.append(_packed(value, "<f4" if number == _FLOATS else "<f8"))
    if is_external and not tensor.files:
        raise ValueError(f"{tensor.name!r} does not say which file holds its values")
    if kind in _RAW_KINDS:
        tensor.values.append(_packed(raw, _RAW_KINDS[kind]))
    elif kind == _BFLOAT16:
        tensor.values.append((_packed(raw, "<u2").astype(np.uint32) << 16).view(np.float32))
    return tensor


def _packed(value: memoryview, kind: DTypeLike) -> NDArray[np.floating]:
    width = np.dtype(kind).itemsize
    return np.frombuffer(value[: len(value) // width * width], kind)


def _text(value: memoryview) -> str:
    return bytes(value).decode(errors="surrogateescape")


def _messages(message: int | memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a message: strings, arrays and messages."""
    if isinstance(message, int):
        raise ValueError("a number where a message is expected")
    for number, value in _fields(message):
        if not isinstance(value, int):
            yield number, value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values of a message; fixed-width values as bytes."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if wire == 2:
            length, place = _varint(message, place)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field of an unknown wire type ({wire})")
        if length > len(message) - place:
            raise ValueError("it is truncated")
        yield number, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise ValueError("it is truncated")
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number is too long")

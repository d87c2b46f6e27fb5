"""MATLAB 5 files (as `save` writes them up to -v7): arrays of numbers, strings and cells of strings.

Written out here since `scipy.io.loadmat` (1.17) ends in a segmentation fault on some files with one damaged
byte. Source: "MAT-File Format", MathWorks, chapter 1. Structs, objects and sparse arrays are passed over.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.files import check_regular

# Numbers in column-major order, flattened; or strings: the rows of a character array, the cells of a cell
# array in column-major order.
Value = NDArray[np.float64] | list[str]

_HEADER_SIZE = 128
_MATRIX, _COMPRESSED = 14, 15
_CELL, _CHARACTERS, _NUMBERS = 1, 4, range(6, 16)
_NUMBER_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXT_TYPES = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
# A list of 160,000 names takes 30 MiB; a damaged size may ask for anything.
_LARGEST = 64 << 20
# Elements of an array or file; each string of a list is one.
_MOST_ELEMENTS = 400_000
_MOST_NUMBERS = 4_000_000


def read_matlab(path: Path) -> dict[str, Value]:
    """The variables of a file by name.

    Raises:
        InputError: there is no such file, it is of another kind, or it is damaged.
    """
    try:
        check_regular(path, "a MATLAB file")
        with path.open("rb") as stream:
            content = stream.read(_LARGEST + 1)
    except OSError as fault:
        raise InputError(f"{path}: cannot be read ({fault.strerror}). Expected a MATLAB file.") from None
    try:
        return _variables(content)
    except _FormatError as fault:
        raise InputError(
            f"{path}: cannot be read as a MATLAB file ({fault}). Compare its size with the original."
        ) from None


class _FormatError(Exception):
    """What does not fit the format."""


def _variables(content: bytes) -> dict[str, Value]:
    if content.startswith(b"MATLAB 7.3"):
        raise _FormatError("it is of version 7.3; save it again with -v7")
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if len(content) > _LARGEST:
        raise _FormatError(f"it is larger than {_LARGEST >> 20} MiB")
    if order is None or len(content) < _HEADER_SIZE:
        raise _FormatError("its first 128 bytes are not the header of MATLAB 5")
    found: dict[str, Value] = {}
    elements = _Elements(order)
    left = _LARGEST
    for kind, data in elements.listed(content[_HEADER_SIZE:]):
        if kind == _COMPRESSED:
            inflated = _inflated(data, left)
            left -= len(inflated)
            inner = elements.listed(inflated)
            kind, data = inner[0] if len(inner) == 1 else (0, b"")
        if kind != _MATRIX:
            raise _FormatError(f"an element of type {kind} stands where an array is expected")
        name, value = _array(elements, data)
        if value is not None:
            found[name] = value
    return found


@dataclass(frozen=True)
class _Elements:
    """How elements follow each other: a tag of type and size, the data, and padding to 8 bytes.

    `order`: '<' or '>', of the bytes of a number.
    """

    order: str

    def of(self, content: bytes) -> Iterator[tuple[int, bytes]]:
        """Type and data of one element after another."""
        place = 0
        while place < len(content):
            if len(content) - place < 8:
                raise _FormatError("it ends in the middle of a tag")
            kind, size = struct.unpack_from(f"{self.order}II", content, place)
            start = place + 8
            if kind >> 16:
                # Up to four bytes stand in the tag itself.
                kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
                if size > 4:
                    raise _FormatError(f"a small element of {size} bytes")
            if start + size > len(content):
                raise _FormatError(f"an element of {size:,} bytes where {len(content) - start:,} are left")
            yield kind, content[start : start + size]
            padding = 0 if kind == _COMPRESSED else -size % 8
            place = place + 8 if start == place + 4 else start + size + padding

    def listed(self, content: bytes) -> list[tuple[int, bytes]]:
        """`of`, all of them."""
        found = list(islice(self.of(content), _MOST_ELEMENTS + 1))
        if len(found) > _MOST_ELEMENTS:
            raise _FormatError(f"more than {_MOST_ELEMENTS:,} elements in one")
        return found


def _inflated(data: bytes, most: int) -> bytes:
    """Unpacked, at most so many bytes."""
    stream = zlib.decompressobj()
    try:
        # A limit of 0 would be none.
        inflated = stream.decompress(data, most + 1)
    except zlib.error:
        raise _FormatError("a compressed array cannot be unpacked") from None
    if not stream.eof or len(inflated) > most:
        raise _FormatError("a compressed array is cut short or too large")
    return inflated


def _array(elements: _Elements, data: bytes, *, in_cell: bool = False) -> tuple[str, Value | None]:
    """Name and value of an array; None where it is of a kind that is passed over."""
    parts = elements.listed(data)
    if len(parts) < 3 or len(parts[0][1]) != 8 or len(parts[1][1]) % 4:
        raise _FormatError("an array without flags, dimensions or name")
    kind = int(np.frombuffer(parts[0][1], f"{elements.order}u4")[0]) & 0xFF
    dimensions = np.frombuffer(parts[1][1], f"{elements.order}i4").tolist()
    if len(dimensions) < 2 or min(dimensions) < 0:
        raise _FormatError(f"an array of dimensions {dimensions}")
    count = math.prod(dimensions)
    name = parts[2][1].decode("latin-1")
    if kind == _CELL and not in_cell:
        return name, _cells(elements, parts[3:], count)
    if kind not in (_CHARACTERS, *_NUMBERS):
        return name, None
    if len(parts) < 4:
        if count:
            raise _FormatError(f"the array '{name}' has no data")
        return name, [] if kind == _CHARACTERS else np.empty(0)
    if kind == _CHARACTERS:
        return name, _rows_of_text(elements, *parts[3], rows=dimensions[0], count=count)
    return name, _numbers(elements, *parts[3], count=count)


def _cells(elements: _Elements, parts: list[tuple[int, bytes]], count: int) -> list[str] | None:
    """The strings of a cell array; None where a cell holds anything else than one string."""
    if len(parts) != count:
        raise _FormatError(f"{len(parts):,} cells, expected {count:,}")
    texts = []
    for kind, data in parts:
        if kind != _MATRIX:
            raise _FormatError(f"an element of type {kind} stands where a cell is expected")
        value = _array(elements, data, in_cell=True)[1] if data else None
        if not isinstance(value, list) or len(value) != 1:
            return None
        texts.append(value[0])
    return texts


def _rows_of_text(elements: _Elements, kind: int, data: bytes, *, rows: int, count: int) -> list[str]:
    encoding = _TEXT_TYPES.get(kind)
    if encoding is None:
        raise _FormatError(f"text of type {kind}")
    if encoding == "utf-16":
        encoding += "-le" if elements.order == "<" else "-be"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise _FormatError("text that cannot be decoded") from None
    if len(text) != count:
        raise _FormatError(f"{len(text):,} characters, expected {count:,}")
    if rows > _MOST_ELEMENTS:
        raise _FormatError(f"{rows:,} rows of text")
    # Characters stand column after column.
    return [text[row::rows].rstrip() for row in range(rows)] if count else []


def _numbers(elements: _Elements, kind: int, data: bytes, *, count: int) -> NDArray[np.float64]:
    """MATLAB stores numbers in the smallest type that holds them, whatever the array's own is."""
    if count > _MOST_NUMBERS:
        raise _FormatError(f"{count:,} numbers in one array")
    code = _NUMBER_TYPES.get(kind)
    if code is None or len(data) % int(code[1]) or len(data) // int(code[1]) != count:
        raise _FormatError(f"{len(data):,} bytes of type {kind}, expected {count:,} numbers")
    return np.frombuffer(data, elements.order + code).astype(np.float64)

"""Read untrusted .npz and .npy files within limits; write .npz files with a checksum.

Declared members, types, shapes and sizes are checked before anything is decompressed. The checksum is the
member 'sha256': SHA-256 over names, sizes and CRC-32 of the other members.
"""

from __future__ import annotations

import hashlib
import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.input_files import check_regular

CHECKSUM = "sha256"
# Limits of the decompressed size: absolute, or relative to the file. Features and names compress less.
_ALWAYS_ALLOWED, _MAX_RATIO = 64 << 20, 20
_MAX_MEMBERS = 64
_MAX_EMPTY_SIDE = 1 << 20
_HEADER_BYTES = 10_000
_END = 22
# Booleans, numbers and strings; no objects, structures or times.
_KINDS = "biufUS"
_REFUSED = (
    *(zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, RuntimeError, NotImplementedError),
    *(MemoryError, LookupError, TypeError, SyntaxError, ArithmeticError, tokenize.TokenError),
)

Arrays = dict[str, NDArray[Any]]


def read_npz(
    path: Path,
    what: str,
    *,
    needed: Collection[str] = (),
    optional: Collection[str] | None = None,
    if_there: Collection[str] = (),
) -> tuple[Arrays, bool]:
    """Read the arrays of a file, and whether it has a checksum (which is verified).

    Args:
        path: the file.
        what: description of the expected file, for messages.
        needed: required member names.
        optional: further allowed names; None allows any.
        if_there: with `optional=None`, the further members to read.

    Raises:
        InputError: the file is missing, damaged, beyond limits, or has other members.
    """
    try:
        check_regular(path, what)
        _check_directory(path)
        with zipfile.ZipFile(path) as stored:
            members = _members(stored)
            own = {name: member for name, member in members.items() if name != CHECKSUM}
            _check_names(own, needed, optional)
            read_of_any = [*needed, *(name for name in if_there if name in own)]
            wanted = own if optional is not None else {name: own[name] for name in read_of_any}
            has_checksum = CHECKSUM in members
            read = [*wanted.values(), *([members[CHECKSUM]] if has_checksum else [])]
            for member in read:
                _check_declared(stored, member)
            unpacked, size = sum(member.file_size for member in read), path.stat().st_size
            if unpacked > max(_ALWAYS_ALLOWED, _MAX_RATIO * size):
                raise ValueError(f"its {size:,} bytes would unpack to {unpacked / 1e6:,.0f} MB")
            if has_checksum and str(_array(stored, members[CHECKSUM])) != _checksum(own):
                raise ValueError("its members differ from its checksum")
            return {name: _array(stored, member) for name, member in wanted.items()}, has_checksum
    except FileNotFoundError:
        raise InputError(f"{path}: no such file. Expected {what}.") from None
    except _REFUSED as fault:
        reason = str(fault).rstrip(".") or type(fault).__name__
        raise InputError(
            f"{path}: cannot be read as {what} ({reason}). Restore it from a backup or create it again."
        ) from None


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays uncompressed, with a checksum; `numpy.load` reads the file too."""
    with zipfile.ZipFile(path, "w", allowZip64=True) as stored:
        for name, array in arrays.items():
            _write_member(stored, name, array)
        checksum = _checksum(_members(stored))
        _write_member(stored, CHECKSUM, np.array(checksum))


def map_npy(path: Path, what: str) -> NDArray[Any]:
    """Memory-map an .npy file copy-on-write (torch warns about read-only arrays).

    Raises:
        InputError: the file cannot be read, is damaged, or contains objects.
    """
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in _KINDS:
            raise ValueError("it does not contain an array of numbers")
    except _REFUSED as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise InputError(f"{path}: cannot be read ({reason}). Expected {what}.") from None
    return np.asarray(array)


def _check_directory(path: Path) -> None:
    """Limit the central directory, which zipfile reads as a whole."""
    with path.open("rb") as stream:
        stream.seek(0, io.SEEK_END)
        stream.seek(max(0, stream.tell() - _END))
        end = stream.read(_END)
    if end[:4] != b"PK\5\6":
        raise zipfile.BadZipFile("it does not end like a zip file and may be truncated")
    if int.from_bytes(end[12:16], "little") > 1 << 20:
        raise ValueError(f"it lists more than {_MAX_MEMBERS} members")


def _members(stored: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos = stored.infolist()
    if len(infos) > _MAX_MEMBERS:
        raise ValueError(f"it has {len(infos):,} members")
    found = {}
    for info in infos:
        name = info.filename.removesuffix(".npy")
        if name == info.filename or name in found:
            raise ValueError(
                f"its member {info.filename!r} is {'duplicated' if name in found else 'not an array'}"
            )
        if info.flag_bits & 1:
            raise ValueError(f"its member '{name}' is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"its member '{name}' is compressed by a method other than deflate")
        found[name] = info
    return found


def _check_names(there: Collection[str], needed: Collection[str], optional: Collection[str] | None) -> None:
    if missing := sorted(set(needed) - set(there)):
        raise ValueError(f"it has no '{missing[0]}'; expected {', '.join(needed)}")
    if optional is not None and (unknown := sorted(set(there) - {*needed, *optional})):
        raise ValueError(f"its member {unknown[0]!r} is unknown")


def _check_declared(stored: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Compare the header of an array with the size of the member."""
    with stored.open(member) as stream:
        head = io.BytesIO(stream.read(_HEADER_BYTES))
    version = np.lib.format.read_magic(head)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"'{member.filename}' has an unknown version {version}")
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = reader(head, max_header_size=_HEADER_BYTES)
    if kind.hasobject or kind.kind not in _KINDS or kind.itemsize == 0:
        raise ValueError(f"'{member.filename}' contains {kind}, expected numbers or strings")
    size = math.prod(shape) * kind.itemsize
    if min(shape, default=0) < 0 or size + head.tell() != member.file_size:
        raise ValueError(f"'{member.filename}' declares {shape} {kind}, but has {member.file_size:,} bytes")
    if not size and max(shape) > _MAX_EMPTY_SIDE:
        raise ValueError(f"'{member.filename}' declares {shape} but is empty")


def _array(stored: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    with stored.open(member) as stream:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
        # Reading to the end makes zipfile compare the CRC-32.
        if stream.read(1):
            raise ValueError(f"'{member.filename}' has data after its array")
    return array


def _checksum(members: Mapping[str, zipfile.ZipInfo]) -> str:
    lines = [f"{name} {member.file_size} {member.CRC:08x}\n" for name, member in sorted(members.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _write_member(stored: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    with stored.open(f"{name}.npy", "w", force_zip64=True) as stream:
        np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)

"""Checks of untrusted files and paths: special files, paths that leave their folder, digests."""

from __future__ import annotations

import hashlib
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from runtime.errors import InputError


@contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """Yield the path, or a symbolic link to it if its name is not UTF-8.

    On such names OpenCV 5 crashes, and safetensors and PyTorch's memory mapping raise.
    """
    try:
        str(path).encode()
        readable = True
    except UnicodeEncodeError:
        readable = False
    if readable:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"file{path.suffix.encode('ascii', 'ignore').decode()}"
        link.symlink_to(path.absolute())
        yield link


def check_inside(names: Iterable[str], where: str) -> None:
    """Raise InputError, beginning with `where`, if a relative path is absolute or contains '..'.

    Symbolic links in the folder are followed: its owner made them, unlike the list of names.
    """
    outside = [name for name in names if _leads_out(name)]
    if outside:
        raise InputError(
            f"{where}: {len(outside):,} paths leave the folder that they are relative to, the first is "
            f"{outside[0]!r}. Expected paths such as NAME/1.jpg, neither absolute nor with '..'."
        )


def check_regular(path: Path, what: str) -> None:
    """Raise InputError for a FIFO, socket or device, or a NUL in the path; `what`: the expected file.

    Folders and missing files are left to the caller.
    """
    if "\0" in str(path):
        raise InputError(f"{path}: a path contains no NUL character. Expected {what}.")
    if path.exists() and (kind := kind_of_special(path.stat().st_mode)):
        raise InputError(f"{path}: is {kind}, which is not opened. Expected {what}.")


def kind_of_special(mode: int) -> str:
    """Describe a special file by its `st_mode`, such as 'a FIFO'; '' for regular files and folders."""
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return ""
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def _leads_out(name: str) -> bool:
    path = PurePath(name)
    return bool(path.anchor) or ".." in path.parts or "\0" in name


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

"""Checks of files and names that others made: special files, names outside of their folder, digests."""

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
    """The path, or for a name that is not UTF-8 a link to it, for readers that do not take such names.

    OpenCV 5 ends the process by a segmentation fault; safetensors and PyTorch's mapping raise. What is open
    when the block ends stays open.
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
    """Raises InputError, which begins with `where`, unless names that a file holds stay in their folder.

    Names are relative to the folder and have no '..'. Links in the folder are followed: they were made by
    whoever put the folder together, as a list that came with data was not.
    """
    outside = [name for name in names if _leads_out(name)]
    if outside:
        raise InputError(
            f"{where}: {len(outside):,} names lead out of the folder that they are relative to, the first "
            f"is {outside[0]!r}. Expected names below that folder, such as NAME/1.jpg, neither absolute nor "
            "with '..'."
        )


def check_regular(path: Path, what: str) -> None:
    """Raises InputError for a FIFO or a device, which may have no end; `what`: what the file should be.

    Folders and what is not there are left to who opens them.
    """
    if path.exists() and (kind := kind_of_special(path.stat().st_mode)):
        raise InputError(f"{path}: is no regular file but {kind}, which is not opened. Expected {what}.")


def kind_of_special(mode: int) -> str:
    """What a file of this `st_mode` is beside a regular file or a folder, as 'a FIFO'; '' for these two."""
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return ""
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def _leads_out(name: str) -> bool:
    path = PurePath(name)
    return bool(path.anchor) or ".." in path.parts or "\0" in name


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

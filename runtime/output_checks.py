"""Checks before the work begins that its output can be written."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

from runtime.disk_faults import FAULTS, MAKE_ROOM
from runtime.errors import InputError

_PROBE = b"\0" * 4096


def require_free_space(folder: Path, needed_bytes: int) -> None:
    """Raises InputError when the file system of `folder` (which may not exist yet) lacks `needed_bytes`."""
    free = shutil.disk_usage(_existing(folder)).free
    if free < needed_bytes:
        raise InputError(
            f"{folder}: needs about {_size(needed_bytes)}, but only {_size(free)} are free. {MAKE_ROOM}"
        )


def require_output_file(path: Path, flag: str, *, inputs: Sequence[Path] = ()) -> None:
    """Checks before the work that a file can be written; it is left as it is.

    Args:
        path: of the file; its folder may be missing.
        flag: that names it, for messages.
        inputs: files that are read, which it must not replace.

    Raises:
        InputError: `path` is no regular file, is an input, or its folder cannot be made or written in.
    """
    where = f"{flag} {path}"
    try:
        found = path.stat()
    except OSError:
        found = None
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise InputError(f"{where}: is a folder, and a file is expected. Choose another name.")
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise InputError(f"{where}: is no regular file. Choose the name of a file.")
    if found is not None and any(each.exists() and each.samefile(path) for each in inputs):
        raise InputError(f"{where}: is the file that is read, and would be replaced. Choose another name.")
    _probe(path.parent, where, (path.name,))


def require_output_folder(folder: Path, flag: str, *, files: Sequence[str] = ()) -> None:
    """Checks before the work that `files` can be written into a folder, which may be missing.

    Raises:
        InputError: a file is in the way, or the folder cannot be made or written in.
    """
    where = f"{flag} {folder}"
    for name in files:
        if (folder / name).is_dir():
            raise InputError(
                f"{where}: {name} in it is a folder, and a file is expected. Choose another folder."
            )
    _probe(folder, where, files)


def _probe(folder: Path, where: str, names: Sequence[str]) -> None:
    """Raises InputError unless a file can be written into the folder, or into the one that it is made in."""
    try:
        there = _existing(folder)
        if not there.is_dir():
            raise InputError(
                f"{where}: {there} is a file, and a folder is expected there. Choose another path."
            )
        parts = folder.absolute().relative_to(there.absolute()).parts
        longest = os.pathconf(there, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
        if any(len(os.fsencode(part)) > longest for part in (*parts, *names)):
            raise OSError(errno.ENAMETOOLONG, "", str(folder))
        with tempfile.TemporaryFile(dir=there) as stream:
            stream.write(_PROBE)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as fault:
        if fault.errno not in FAULTS:
            raise
        what, advice = FAULTS[fault.errno]
        raise InputError(f"{where}: cannot be written: {what}. {advice}") from None


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists (which may be a file)."""
    existing = folder.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    return existing


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"

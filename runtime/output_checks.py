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
    """Raise InputError if the file system of `folder` (which may not exist yet) has less than
    `needed_bytes`.
    """
    free = shutil.disk_usage(_existing(folder)).free
    if free < needed_bytes:
        raise InputError(
            f"{folder}: needs about {_size(needed_bytes)}, but only {_size(free)} are free. {MAKE_ROOM}"
        )


def require_output_file(path: Path, flag: str, *, inputs: Sequence[Path] = ()) -> None:
    """Check that a file can be written, without changing it.

    Args:
        path: the file; its folder may be missing.
        flag: command-line flag that names it, for messages.
        inputs: input files, which it must not replace.

    Raises:
        InputError: `path` is not a regular file or is an input, or its folder is not writable.
    """
    where = f"{flag} {path}"
    try:
        found = path.stat()
    except OSError:
        found = None
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise InputError(f"{where}: is a folder, expected a file. Choose another name.")
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise InputError(f"{where}: is not a regular file. Choose the name of a file.")
    if found is not None and any(each.exists() and each.samefile(path) for each in inputs):
        raise InputError(f"{where}: is also an input and would be replaced. Choose another name.")
    _probe(path.parent, where, (path.name,))


def require_output_folder(folder: Path, flag: str, *, files: Sequence[str] = ()) -> None:
    """Check that `files` can be written into a folder, which may be missing.

    Raises:
        InputError: a path is occupied by a file or folder, or the folder is not writable.
    """
    where = f"{flag} {folder}"
    for name in files:
        if (folder / name).is_dir():
            raise InputError(f"{where}: {name} in it is a folder, expected a file. Choose another folder.")
    _probe(folder, where, files)


def _probe(folder: Path, where: str, names: Sequence[str]) -> None:
    """Raise InputError unless the folder, or its nearest existing parent, is writable."""
    try:
        there = _existing(folder)
        if not there.is_dir():
            raise InputError(f"{where}: {there} is a file, expected a folder. Choose another path.")
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
    """The folder or its nearest existing parent (which may be a file)."""
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

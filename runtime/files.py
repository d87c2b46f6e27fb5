"""Atomic, private files and folders. Standard library only.

Outputs are biometric data, so files are created with mode 0600 and folders with 0700 (less the umask).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.disk_faults import FAULTS

if sys.platform != "win32":
    import fcntl

_PRIVATE_FOLDER = 0o700
# The random part of names by mkstemp and mkdtemp.
_RANDOM = "[a-z0-9_]{8}"
# Bytes of the target's name kept in the temporary one; file systems limit names to 255 bytes.
_TEMPORARY_NAME = 40


@contextmanager
def private_files() -> Iterator[None]:
    """Make all files and folders that this process creates in the block private."""
    before = os.umask(0o077)
    os.umask(before | 0o077)
    try:
        yield
    finally:
        os.umask(before)


def private_folder(path: Path) -> Path:
    """Create a folder and its missing parents with mode 0700; returns the folder."""
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            folder.mkdir(mode=_PRIVATE_FOLDER, exist_ok=True)
    return path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces `path` when the block succeeds.

    The temporary file has the suffix of `path` (writers choose a format by it) and is removed when the block
    raises, so a reader sees either the old or the new file. The file is private; a narrower mode of the
    replaced file is kept.

    Raises:
        OSError: the file cannot be written; its `filename` is `path`.
    """
    with _temporary(path, path.suffix, is_folder=False) as temporary:
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        with suppress(FileNotFoundError):
            mode &= stat.S_IMODE(path.stat().st_mode)
        # Opened for writing: Windows requires it for fsync.
        with temporary.open("r+b") as written:
            os.fsync(written.fileno())
        temporary.chmod(mode)
        temporary.replace(path)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a new private folder beside `path`, whose complete content the caller moves to `path`.

    Raises:
        OSError: the folder cannot be created, or a file in it cannot be written.
    """
    with _temporary(path, "", is_folder=True) as temporary:
        yield temporary


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` atomically; text as UTF-8.

    Surrogates in text (bytes of file names that are not UTF-8) become escapes, which a JSON reader reverses.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(
            content.encode(errors="backslashreplace") if isinstance(content, str) else content
        )


def cache_folder() -> Path:
    """Folder for files that can be recomputed or downloaded again: below XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "facecoresetnet"


def _of_target(fault: Exception, temporary: Path | None, path: Path) -> OSError | None:
    """The error of writing a temporary file, attributed to its target; None if it is another error.

    PyTorch raises a RuntimeError whose context is the OSError, and NumPy an OSError without a number.
    """
    cause = fault if isinstance(fault, OSError) else fault.__context__
    if not isinstance(cause, OSError):
        return None
    number = errno.ENOSPC if cause.errno is None and "written" in str(cause) else cause.errno
    if number not in FAULTS:
        return None
    if cause.filename is not None:
        named = Path(os.fsdecode(cause.filename))
        if temporary is None or not named.is_relative_to(temporary):
            return None
        path = path / named.relative_to(temporary)
    return OSError(number, os.strerror(number), str(path))


# ------------------------------------------------------------------------- temporary files and their locks


@contextmanager
def _temporary(path: Path, suffix: str, *, is_folder: bool) -> Iterator[Path]:
    """Yield a new file or folder beside `path`, removed afterwards unless moved; errors name `path`.

    It is locked while in use. A lock ends with its process, so leftovers of killed processes are recognised
    by being unlocked, and removed.
    """
    prefix = f".{path.name.removesuffix(suffix)[:_TEMPORARY_NAME]}."
    temporary, lock = None, None
    try:
        private_folder(path.parent)
        _remove_leftovers(path.parent, re.compile(re.escape(prefix) + _RANDOM + re.escape(suffix)))
        # Before it was locked, another process may have removed it as a leftover.
        while temporary is None or not temporary.exists():
            if lock is not None:
                os.close(lock)
            temporary = _made(path.parent, prefix, suffix, is_folder=is_folder)
            lock = locked(temporary, wait=True)
        yield temporary
        _sync_folder(path.parent)
    except Exception as fault:
        if (of_target := _of_target(fault, temporary, path)) is not None:
            raise of_target from fault
        raise
    finally:
        if temporary is not None:
            _remove(temporary)
        if lock is not None:
            os.close(lock)


def _made(folder: Path, prefix: str, suffix: str, *, is_folder: bool) -> Path:
    if is_folder:
        return Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=folder))
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=folder)
    os.close(handle)
    return Path(name)


def _remove_leftovers(folder: Path, made_here: re.Pattern[str]) -> None:
    for name in os.listdir(folder):
        if made_here.fullmatch(name) and (lock := locked(folder / name, wait=False)) is not None:
            _remove(folder / name)
            os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def locked(path: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock of a file or folder; None if it is taken or locks are unsupported."""
    if sys.platform == "win32":
        return None
    handle = None
    try:
        # NFS needs a writable descriptor for an exclusive lock.
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if handle is not None:
            os.close(handle)
        return None
    return handle


def _sync_folder(folder: Path) -> None:
    """Flush a rename to disk, where the system supports it."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

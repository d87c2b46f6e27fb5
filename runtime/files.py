"""Files on disk: probed before the work, written whole or not at all, private. Standard library only.

What this program writes shows faces or follows from them, so that it is for its owner alone: files are made
with mode 0600 and folders with 0700, less what the user's umask takes away.
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
# What mkstemp and mkdtemp put in place of a free name.
_RANDOM = "[a-z0-9_]{8}"
# Of the name that a temporary file or folder takes over: file systems have limits of 255 bytes.
_TEMPORARY_NAME = 40


@contextmanager
def private_files() -> Iterator[None]:
    """In this block all files and folders that this process makes are private, whoever writes them."""
    before = os.umask(0o077)
    os.umask(before | 0o077)
    try:
        yield
    finally:
        os.umask(before)


def private_folder(path: Path) -> Path:
    """Makes a folder and its parents, where they are not there, for their owner alone; gives the folder."""
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            folder.mkdir(mode=_PRIVATE_FOLDER, exist_ok=True)
    return path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what was written there replaces `path` when the block ends well.

    The temporary file has the suffix of `path` (writers choose a format by it) and is removed when the block
    raises, so that a reader sees the old file or the new one, never a part. The file is private; it keeps
    the mode of the one that it replaces where that is narrower.

    Raises:
        OSError: the file cannot be written; its `filename` is `path`.
    """
    with _temporary(path, path.suffix, is_folder=False) as temporary:
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        with suppress(FileNotFoundError):
            mode &= stat.S_IMODE(path.stat().st_mode)
        # For writing, which Windows asks for.
        with temporary.open("r+b") as written:
            os.fsync(written.fileno())
        temporary.chmod(mode)
        temporary.replace(path)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yields a new private folder beside `path`, for what is moved to `path` when it is whole.

    Raises:
        OSError: it cannot be made, or a file in it cannot be written.
    """
    with _temporary(path, "", is_folder=True) as temporary:
        yield temporary


def atomic_write(path: Path, content: bytes | str) -> None:
    """Writes `content` to `path`, whole or not at all; text as UTF-8.

    Bytes of file names that are not UTF-8 (surrogates in text) become escapes, which a reader of JSON
    takes back into what they were.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(
            content.encode(errors="backslashreplace") if isinstance(content, str) else content
        )


def cache_folder() -> Path:
    """Where this program keeps what it can make or fetch again: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "facecoresetnet"


def _of_target(fault: Exception, temporary: Path | None, path: Path) -> OSError | None:
    """The fault of writing a temporary file or folder, told of its target; None where it is another fault.

    PyTorch raises a RuntimeError whose context is the fault of the disk, and NumPy an OSError without number.
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
    """A new file or folder beside `path` that is removed unless it is moved away; faults are told of `path`.

    It is locked while it is used, and a lock ends with its process: what killed processes left of the same
    path is found by that and removed.
    """
    prefix = f".{path.name.removesuffix(suffix)[:_TEMPORARY_NAME]}."
    temporary, lock = None, None
    try:
        private_folder(path.parent)
        _remove_leftovers(path.parent, re.compile(re.escape(prefix) + _RANDOM + re.escape(suffix)))
        # Before it was locked, another process may have taken it for a leftover.
        while temporary is None or not temporary.exists():
            if lock is not None:
                os.close(lock)
            temporary = _made(path.parent, prefix, suffix, is_folder=is_folder)
            lock = _locked(temporary, wait=True)
        yield temporary
        _sync_folder(path.parent)
    except Exception as fault:
        if (told := _of_target(fault, temporary, path)) is not None:
            raise told from fault
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
        if made_here.fullmatch(name) and (lock := _locked(folder / name, wait=False)) is not None:
            _remove(folder / name)
            os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _locked(path: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock of a file or folder; None where it is taken or there are no locks."""
    if sys.platform == "win32":
        return None
    handle = None
    try:
        # Over NFS a lock needs a descriptor that can be written to.
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if handle is not None:
            os.close(handle)
        return None
    return handle


def _sync_folder(folder: Path) -> None:
    """Has the disk keep a rename; not all systems can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

"""Files on disk: probed before the work, written whole or not at all, private. Standard library only.

What this program writes shows faces or follows from them, so that it is for its owner alone: files are made
with mode 0600 and folders with 0700, less what the user's umask takes away.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath

from runtime.errors import InputError

if sys.platform != "win32":
    import fcntl

_PRIVATE_FOLDER = 0o700
# What mkstemp and mkdtemp put in place of a free name.
_RANDOM = "[a-z0-9_]{8}"
# Of the name that a temporary file or folder takes over: file systems have limits of 255 bytes.
_TEMPORARY_NAME = 40
_PROBE = b"\0" * 4096
_ELSEWHERE = "Choose another place, or have the permission changed."
_MAKE_ROOM = "Free some space or choose a folder on another disk."
# Faults of the machine or of a path, which the user can mend; what was there and what to do.
_FAULTS = {
    errno.ENOSPC: ("no room is left on the disk", _MAKE_ROOM),
    errno.EDQUOT: ("the disk quota is used up", _MAKE_ROOM),
    errno.EFBIG: ("the file would be larger than the file system or a limit of the user allows", _MAKE_ROOM),
    errno.EROFS: ("the file system is read-only", "Choose another place."),
    errno.EACCES: ("permission denied", _ELSEWHERE),
    errno.EPERM: ("the operation is not permitted", _ELSEWHERE),
    errno.EISDIR: ("is a folder, and a file is expected", "Choose another name, or remove it."),
    errno.ENOTDIR: ("a part of the path is a file, and a folder is expected", "Choose another path."),
    errno.EEXIST: ("is there already, and is of another kind than expected", "Choose another name."),
    errno.ENOTEMPTY: ("is a folder that is not empty", "Choose another name, or remove it."),
    errno.ENOENT: ("there is no such file", "It may have been moved or removed meanwhile."),
    errno.ENAMETOOLONG: ("the name is too long for the file system", "Choose a shorter one."),
    errno.ELOOP: ("links lead in a circle", "Choose another path."),
    errno.EIO: ("the disk reports an error", "Check the disk, or choose another one."),
    errno.EBUSY: ("is used by the system", "Choose another name."),
    errno.ETXTBSY: ("is used by the system", "Choose another name."),
    errno.EMFILE: ("too many files are open", "Raise the limit (ulimit -n), or use fewer workers."),
    errno.ENFILE: ("too many files are open on this machine", "End other programs."),
    errno.ESTALE: ("the network file system has lost the file", "Run the command again."),
}
# Which need no name of a file to be understood.
_OF_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}


def fault_text(fault: OSError) -> str | None:
    """A sentence on a fault of the machine or of a path; None for a fault of the program."""
    if fault.errno not in _FAULTS or (fault.filename is None and fault.errno not in _OF_MACHINE):
        return None
    what, advice = _FAULTS[fault.errno]
    where = "" if fault.filename is None else f"{os.fsdecode(fault.filename)}: "
    return f"{where}{what}. {advice}"


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


def cache_folder() -> Path:
    """Where this program keeps what it can make or fetch again: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "facecoresetnet"


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


def require_free_space(folder: Path, needed_bytes: int) -> None:
    """Raises InputError when the file system of `folder` (which may not exist yet) lacks `needed_bytes`."""
    free = shutil.disk_usage(_existing(folder)).free
    if free < needed_bytes:
        raise InputError(
            f"{folder}: needs about {_size(needed_bytes)}, but only {_size(free)} are free. {_MAKE_ROOM}"
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
        if fault.errno not in _FAULTS:
            raise
        what, advice = _FAULTS[fault.errno]
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


def _of_target(fault: Exception, temporary: Path | None, path: Path) -> OSError | None:
    """The fault of writing a temporary file or folder, told of its target; None where it is another fault.

    PyTorch raises a RuntimeError whose context is the fault of the disk, and NumPy an OSError without number.
    """
    cause = fault if isinstance(fault, OSError) else fault.__context__
    if not isinstance(cause, OSError):
        return None
    number = errno.ENOSPC if cause.errno is None and "written" in str(cause) else cause.errno
    if number not in _FAULTS:
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

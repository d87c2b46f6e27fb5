"""Sentences for errors of the operating system that a user can fix: a full disk, missing permission, ..."""

from __future__ import annotations

import errno
import os

_ELSEWHERE = "Choose another path, or change the permissions."


MAKE_ROOM = "Free some space or choose a folder on another disk."


# Errors that a user can fix: description and advice.
FAULTS = {
    errno.ENOSPC: ("no space is left on the disk", MAKE_ROOM),
    errno.EDQUOT: ("the disk quota is used up", MAKE_ROOM),
    errno.EFBIG: ("the file would be larger than the file system or a limit of the user allows", MAKE_ROOM),
    errno.EROFS: ("the file system is read-only", "Choose another path."),
    errno.EACCES: ("permission denied", _ELSEWHERE),
    errno.EPERM: ("the operation is not permitted", _ELSEWHERE),
    errno.EISDIR: ("is a folder, expected a file", "Choose another name, or remove it."),
    errno.ENOTDIR: ("a part of the path is a file, expected a folder", "Choose another path."),
    errno.EEXIST: ("already exists and is of another type than expected", "Choose another name."),
    errno.ENOTEMPTY: ("is a folder that is not empty", "Choose another name, or remove it."),
    errno.ENOENT: ("no such file", "It may have been moved or removed in the meantime."),
    errno.ENAMETOOLONG: ("the name is too long for the file system", "Choose a shorter one."),
    errno.ELOOP: ("symbolic links form a loop", "Choose another path."),
    errno.EIO: ("the disk reports an error", "Check the disk, or choose another one."),
    errno.EBUSY: ("is used by the system", "Choose another name."),
    errno.ETXTBSY: ("is used by the system", "Choose another name."),
    errno.EMFILE: ("too many files are open", "Raise the limit (ulimit -n), or use fewer workers."),
    errno.ENFILE: ("too many files are open on this machine", "End other programs."),
    errno.ESTALE: ("stale file handle on a network file system", "Run the command again."),
}


# Understandable without a file name.
_OF_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}


def fault_text(fault: OSError) -> str | None:
    """A sentence about an error that the user can fix; None for any other error."""
    if fault.errno not in FAULTS or (fault.filename is None and fault.errno not in _OF_MACHINE):
        return None
    what, advice = FAULTS[fault.errno]
    where = "" if fault.filename is None else f"{os.fsdecode(fault.filename)}: "
    return f"{where}{what}. {advice}"

"""Sentences for errors of the operating system that a user can fix: a full disk, missing permission, ..."""

from __future__ import annotations

import errno
import os

_ELSEWHERE = "Choose another place, or have the permission changed."


MAKE_ROOM = "Free some space or choose a folder on another disk."


# Faults of the machine or of a path, which the user can mend; what was there and what to do.
FAULTS = {
    errno.ENOSPC: ("no room is left on the disk", MAKE_ROOM),
    errno.EDQUOT: ("the disk quota is used up", MAKE_ROOM),
    errno.EFBIG: ("the file would be larger than the file system or a limit of the user allows", MAKE_ROOM),
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
    if fault.errno not in FAULTS or (fault.filename is None and fault.errno not in _OF_MACHINE):
        return None
    what, advice = FAULTS[fault.errno]
    where = "" if fault.filename is None else f"{os.fsdecode(fault.filename)}: "
    return f"{where}{what}. {advice}"

"""Stamps of images: 64-bit digests of their content, cached so that unchanged files are read once.

A stamp depends on the content only: a copied data set has the same stamps, a replaced image has another one.
The cache key is inode, size, modification time and inode change time, which programs cannot set.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.sources.folder_index import TIME_STEP_NS, index_folders, writable_index_folder
from runtime.array_files import read_npz, write_npz
from runtime.errors import InputError
from runtime.files import atomic_path
from runtime.progress import progress_bar

Stamps = NDArray[np.uint64]

UNREADABLE = 0
_FILE = "stamps.npz"
# 2: with checksum.
_FORMAT = 2
# Smaller data sets are not cached: reading them again takes a fraction of a second.
_MIN_REMEMBERED = 4096
_PART = 1024
# Threads hide the latency of network disks.
_THREADS = 8


@dataclass(frozen=True)
class FileState:
    """States of files without reading them: `signatures` (n,), 0 if unknown, and `changed_ns` (n,)."""

    signatures: Stamps
    changed_ns: NDArray[np.int64]


def content_stamp(content: bytes) -> int:
    """The stamp of an encoded image."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def state_of_files(paths: Sequence[bytes]) -> FileState:
    """The state of each file; unknown for missing files."""
    signatures, changed = np.zeros(len(paths), np.uint64), np.zeros(len(paths), np.int64)
    for number, path in enumerate(paths):
        try:
            found = os.stat(path)
        except OSError:
            continue
        state = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        signatures[number] = content_stamp(b"%d %d %d %d" % state)
        changed[number] = max(found.st_mtime_ns, found.st_ctime_ns)
    return FileState(signatures, changed)


def stamps_of(
    rows: NDArray[np.int64],
    state: Callable[[NDArray[np.int64]], FileState],
    read: Callable[[int], bytes],
    root: Path,
) -> Stamps:
    """(n,) stamps of the images `rows` (n,) of a data set; `UNREADABLE` for unreadable ones.

    Args:
        rows: row numbers.
        state: returns the state of some rows.
        read: returns the bytes of a row, or raises InputError or OSError.
        root: folder of the data set, beside which stamps are cached.
    """
    known = _Known.of(root)

    def part(start: int) -> tuple[Stamps, Stamps, NDArray[np.int64]]:
        these = rows[start : start + _PART]
        found = state(these)
        stamps = known.stamps(found.signatures)
        for place in np.flatnonzero(stamps == UNREADABLE).tolist():
            with suppress(InputError, OSError):
                stamps[place] = content_stamp(read(int(these[place])))
        return stamps, found.signatures, found.changed_ns

    starts = range(0, len(rows), _PART)
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        progress_bar(
            total=len(rows), desc=f"comparing {root.name}", unit=" images", delay=2, leave=False
        ) as bar,
    ):
        parts = []
        for each in pool.map(part, starts):
            parts.append(each)
            bar.update(len(each[0]))
    if not parts:
        return np.zeros(0, np.uint64)
    stamps, signatures, changed = (np.concatenate(column) for column in zip(*parts, strict=True))
    known.keep(root, signatures, stamps, changed)
    return stamps


@dataclass(frozen=True)
class _Known:
    """Stamps by signature, both (n,), sorted by signature."""

    signatures: Stamps
    values: Stamps

    @classmethod
    def of(cls, root: Path) -> _Known:
        for folder in index_folders(root):
            needed = ("format", "signatures", "stamps")
            try:
                kept, has_checksum = read_npz(folder / _FILE, "stamps of images", needed=needed, optional=())
            except InputError:
                continue
            if has_checksum and np.array_equal(kept["format"], _FORMAT):
                found = cls(kept["signatures"], kept["stamps"])
                if found.is_valid():
                    return found
        return cls(np.zeros(0, np.uint64), np.zeros(0, np.uint64))

    def is_valid(self) -> bool:
        """Whether both columns have the form written by `keep`."""
        signatures, values = self.signatures, self.values
        if signatures.ndim != 1 or signatures.shape != values.shape:
            return False
        kinds = {signatures.dtype, values.dtype}
        return kinds == {np.dtype(np.uint64)} and bool((signatures[1:] >= signatures[:-1]).all())

    def stamps(self, signatures: Stamps) -> Stamps:
        """(n,) stamps of files by signature; `UNREADABLE` if unknown."""
        if not len(self.signatures):
            return np.zeros(len(signatures), np.uint64)
        places = np.minimum(np.searchsorted(self.signatures, signatures), len(self.signatures) - 1)
        found: Stamps = np.where(self.signatures[places] == signatures, self.values[places], UNREADABLE)
        return found.astype(np.uint64)

    def keep(self, root: Path, signatures: Stamps, stamps: Stamps, changed_ns: NDArray[np.int64]) -> None:
        """Cache new stamps; a read-only folder is not an error."""
        new = (signatures != 0) & (stamps != UNREADABLE) & (self.stamps(signatures) == UNREADABLE)
        if int(new.sum()) < _MIN_REMEMBERED:
            return
        folder, now = writable_index_folder(root)
        # A file changed just now may change again within one time step of the file system.
        new &= changed_ns < now - TIME_STEP_NS
        if folder is None or not new.any():
            return
        # Stale entries are dropped only when they dominate, so that a run on a subset keeps the others.
        grown = len(self.signatures) > 2 * len(signatures)
        old = np.isin(self.signatures, signatures) if grown else np.ones(len(self.signatures), bool)
        joined, first = np.unique(np.concatenate([self.signatures[old], signatures[new]]), return_index=True)
        values = np.concatenate([self.values[old], stamps[new]])[first]
        with suppress(OSError), atomic_path(folder / _FILE) as temporary:
            write_npz(temporary, {"format": np.array(_FORMAT), "signatures": joined, "stamps": values})

"""The listing of `<root>/<subject>/<image>`, cached beside the images.

Listing millions of files takes minutes on a network disk; the cached listing is valid as long as no subject
folder has changed.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.sources.image_files import (
    IMAGE_SUFFIXES,
    IMAGES,
    PAIRS,
    is_image_file,
    is_leftover,
    is_pair_set,
    subfolders,
)
from data.sources.subject_names import check_distinct
from runtime.array_files import read_npz, write_npz
from runtime.errors import InputError
from runtime.files import atomic_path, cache_folder, private_folder
from runtime.progress import progress_bar

INDEX_FOLDER = ".face_index"

_INDEX_FILE = "listing.npz"
_SHOWN = 3
_EXAMPLES = 3
# To be raised when other files count as images (`data.sources.image_files`), too.
_FORMAT = 4
# File systems have time steps of up to two seconds, so a folder changed this recently may change again
# without a new time stamp. Such a listing is not cached.
TIME_STEP_NS = 2_000_000_000


@dataclass
class Skipped:
    """Files and folders that are not read: counts and first names by kind, such as '.txt files'."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Count one."""
        self.counts[kind] += 1
        names = self.examples.setdefault(kind, [])
        if len(names) < _EXAMPLES:
            names.append(name)

    def sentences(self) -> list[str]:
        """One sentence per kind, most frequent first."""
        return [
            f"{count:,} {kind} are not read: {', '.join(self.examples[kind])}"
            + (", ..." if count > len(self.examples[kind]) else "")
            for kind, count in self.counts.most_common()
        ]


@dataclass(frozen=True)
class FolderListing:
    """Sorted names of subjects and images in compact form.

    `subjects`: S names. `subject_offsets`: (S+1,) int64, the images of subject s are rows
    `subject_offsets[s]:subject_offsets[s+1]`. `names`: (bytes,) uint8, zero-terminated file names.
    `name_offsets`: (N+1,) int64, where each name starts in `names`. `notes`: sentences on files that are not
    read.
    """

    subjects: list[str]
    subject_offsets: NDArray[np.int64]
    names: NDArray[np.uint8]
    name_offsets: NDArray[np.int64]
    notes: list[str]

    def __len__(self) -> int:
        return len(self.name_offsets) - 1

    def name(self, row: int) -> str:
        """File name of image `row`."""
        return os.fsdecode(self.names[self.name_offsets[row] : self.name_offsets[row + 1] - 1].tobytes())


@dataclass(frozen=True)
class _Folders:
    """Subject folders: sorted names, modification times in nanoseconds, and other files beside them."""

    names: list[str]
    stamps: NDArray[np.int64]
    skipped: Skipped


def list_faces(root: Path) -> FolderListing:
    """List `root`, from the cache if no subject folder was added, removed or changed since.

    The cache is `<root>/.face_index/`, or the user's cache folder if `root` is read-only. Folders and files
    are sorted by name, the order in which published index files count.

    Raises:
        InputError: `root` is not a folder, cannot be read, or has no subject folders with images.
    """
    folders = _subject_folders(root)
    for folder in index_folders(root):
        kept = _load(folder / _INDEX_FILE, folders)
        if kept is not None:
            return kept
    return _scan(root, folders)


def _subject_folders(root: Path) -> _Folders:
    found: list[tuple[str, int]] = []
    skipped = Skipped()
    try:
        with os.scandir(root) as entries:
            for e in entries:
                if is_leftover(e.name):
                    continue
                # Links are followed: large data sets are often assembled from links to other disks.
                if e.is_dir():
                    found.append((e.name, e.stat().st_mtime_ns))
                elif e.is_symlink() and not e.is_file():
                    skipped.add("broken links beside the subject folders", e.name)
                elif e.name.lower().endswith(IMAGE_SUFFIXES):
                    skipped.add("images beside the subject folders", e.name)
    except FileNotFoundError:
        raise InputError(f"{root}: no such folder. Expected <folder>/<subject>/<image>.") from None
    except NotADirectoryError:
        raise InputError(f"{root}: is a file. Expected a folder of <subject>/<image>.") from None
    except OSError as fault:
        raise InputError(f"{root}: cannot be read ({fault.strerror}). Check its permissions.") from None
    if not found:
        raise InputError(_no_subjects(root))
    found.sort()
    check_distinct((name for name, _ in found), str(root))
    return _Folders([name for name, _ in found], np.array([stamp for _, stamp in found], np.int64), skipped)


def _no_subjects(root: Path) -> str:
    sentence = f"{root}: no subject folders found. Expected {root}/<subject>/<image>."
    if (root / "train.rec").is_file():
        return sentence + _pack_advice(root)
    if any(path.suffix.lower() in IMAGE_SUFFIXES for path in root.iterdir()):
        return sentence + " It contains images itself: did you mean its parent folder?"
    return sentence


def _pack_advice(root: Path) -> str:
    return (
        " It contains train.rec: use it with main.py --use_mxrecord, or unpack it "
        f"(convert.py --rec_path {root})."
    )


def _no_images(root: Path, folders: _Folders, skipped: Skipped) -> str:
    sentence = f"{root}: none of its {len(folders.names):,} folders contains an image."
    sentence += "".join(f" {each}." for each in skipped.sentences()[:_SHOWN])
    for name in (IMAGES, *folders.names[:100]):
        inner = root / name
        if inner.is_dir() and subfolders(inner):
            return f"{sentence} Expected <subject>/<image>; did you mean {inner}?"
    return sentence + (
        _pack_advice(root) if (root / "train.rec").is_file() else " Expected <subject>/<image>."
    )


def _scan(root: Path, folders: _Folders) -> FolderListing:
    index_folder, now = writable_index_folder(root)
    blobs: list[bytes] = []
    counts = np.zeros(len(folders.names), np.int64)
    skipped = Skipped()
    progress = progress_bar(folders.names, desc=f"listing {root.name}", unit="subject", delay=2, leave=False)
    for number, subject in enumerate(progress):
        images = _image_names(root / subject, skipped)
        counts[number] = len(images)
        blobs.append(_joined(images))
    if not counts.any():
        raise InputError(_no_images(root, folders, skipped))
    names = np.frombuffer(b"".join(blobs), np.uint8)
    if index_folder is not None and (folders.stamps < now - TIME_STEP_NS).all():
        _keep(index_folder / _INDEX_FILE, folders, counts, names, skipped.sentences())
    return _listing(folders, counts, names, skipped.sentences())


def _image_names(folder: Path, skipped: Skipped) -> list[str]:
    """Names of the images of a subject; other files are added to `skipped`."""
    if is_pair_set(folder):
        skipped.add(f"folders of unpacked pair sets ({PAIRS})", folder.name)
        return []
    names = []
    try:
        with os.scandir(folder) as entries:
            for e in entries:
                if is_leftover(e.name):
                    continue
                if e.is_dir():
                    skipped.add("folders within subjects", f"{folder.name}/{e.name}")
                elif not e.is_file():
                    skipped.add("broken links", f"{folder.name}/{e.name}")
                elif is_image_file(e.path):
                    names.append(e.name)
                else:
                    suffix = os.path.splitext(e.name)[1].lower()
                    kind = f"{suffix} files" if suffix else "files without suffix"
                    skipped.add(kind, f"{folder.name}/{e.name}")
    except OSError as fault:
        raise InputError(f"{folder}: cannot be read ({fault.strerror}). Check its permissions.") from None
    if not names:
        skipped.add("folders without an image", folder.name)
    return sorted(names)


def _listing(
    folders: _Folders, counts: NDArray[np.int64], names: NDArray[np.uint8], notes: list[str]
) -> FolderListing:
    filled = counts > 0
    return FolderListing(
        subjects=[name for name, keep in zip(folders.names, filled, strict=True) if keep],
        subject_offsets=np.concatenate(([0], np.cumsum(counts[filled]))),
        names=names,
        name_offsets=np.concatenate(([0], np.flatnonzero(names == 0) + 1)),
        notes=[*folders.skipped.sentences(), *notes],
    )


def index_folders(root: Path) -> list[Path]:
    """Cache folders for `root`: beside the images, and in the user's cache."""
    key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]
    return [root / INDEX_FOLDER, cache_folder() / key]


def writable_index_folder(root: Path) -> tuple[Path | None, int]:
    """The first writable one of `index_folders`, and its file system's time in nanoseconds."""
    for folder in index_folders(root):
        try:
            private_folder(folder)
            with tempfile.NamedTemporaryFile(dir=folder) as probe:
                return folder, os.fstat(probe.fileno()).st_mtime_ns
        except OSError:  # noqa: PERF203 - two folders, and the second is tried because the first failed
            continue
    return None, 0


def _keep(
    path: Path,
    folders: _Folders,
    counts: NDArray[np.int64],
    names: NDArray[np.uint8],
    notes: list[str],
) -> None:
    arrays = {
        "format": np.array(_FORMAT),
        "folders": np.frombuffer(_joined(folders.names), np.uint8),
        "stamps": folders.stamps,
        "counts": counts,
        "names": names,
        "notes": np.array(notes, np.str_),
    }
    try:
        with atomic_path(path) as temporary:
            write_npz(temporary, arrays)
    except OSError:
        # The cache only saves time, so a full disk is not an error.
        path.unlink(missing_ok=True)


def _load(path: Path, folders: _Folders) -> FolderListing | None:
    """The cached listing; None if it is missing, outdated or invalid.

    It may have come with the data, so it is not trusted.
    """
    needed = ("format", "folders", "stamps", "counts", "names", "notes")
    try:
        kept, has_checksum = read_npz(path, "a list of images", needed=needed, optional=())
        same = (
            has_checksum
            and np.array_equal(kept["format"], _FORMAT)
            and np.array_equal(kept["stamps"], folders.stamps)
            and kept["folders"].tobytes() == _joined(folders.names)
        )
        if not same or kept["notes"].ndim != 1 or not _is_listing(folders, kept["counts"], kept["names"]):
            return None
        return _listing(folders, kept["counts"], kept["names"], list(map(str, kept["notes"])))
    except InputError:
        return None


def _is_listing(folders: _Folders, counts: NDArray[Any], names: NDArray[Any]) -> bool:
    """Whether counts and names agree, and no name leaves its folder."""
    if counts.dtype != np.int64 or counts.shape != folders.stamps.shape or (counts < 0).any():
        return False
    if names.dtype != np.uint8 or names.ndim != 1 or int((names == 0).sum()) != sum(counts.tolist()):
        return False
    text = names.tobytes()
    separators = [os.fsencode(mark) for mark in (os.sep, os.altsep) if mark]
    special = re.search(rb"(?:^|\0)(?:\.{0,2})\0", text)
    return special is None and not any(mark in text for mark in separators) and text[-1:] in (b"", b"\0")


def _joined(names: list[str]) -> bytes:
    return b"".join(os.fsencode(name) + b"\0" for name in names)

"""Sources of aligned faces: image folder, MXNet RecordIO pack, or a selection of rows of either.

Every source provides RGB images in true colours, named subjects, and one row per image.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data.sources.decoding import Image, decode_face, read_encoded
from data.sources.folder_index import list_faces
from data.sources.image_files import IMAGE_SUFFIXES, subjects_root, unpacked_note
from data.sources.image_stamps import FileState, content_stamp, stamps_of, state_of_files
from data.sources.recordio import IDX_NAME, REC_NAME, read_face_pack
from runtime.errors import InputError

_COLOURS = ("as stored", "red and blue swapped")


class FaceSource(Protocol):
    """Aligned faces of named subjects; cheap to pickle, because every worker gets a copy.

    Rows are ordered by subject name as text ('10' before '2'), then by image name. Published index files
    count in this order, and a folder has the same rows as the pack that it was unpacked from.
    """

    @property
    def name(self) -> str:
        """Name for messages."""

    @property
    def location(self) -> Path:
        """Folder of the data."""

    @property
    def subjects(self) -> list[str]:
        """Names of the S subjects, sorted; each has at least one image."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) subject of each row, as an index into `subjects`."""

    def __len__(self) -> int: ...

    def read_bytes(self, row: int) -> bytes:
        """The encoded image."""

    def describe(self, row: int) -> str:
        """File, or pack and key, of an image, for messages."""

    def image(self, row: int) -> Image:
        """(112, 112, 3) RGB. Raises InputError that names an undecodable image or one of another size."""

    @property
    def colours(self) -> str:
        """How the stored colours are read."""

    def stamps(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.uint64]:
        """(N,), or (n,) of `rows`: stamps of the encoded images (`data.sources.image_stamps`)."""


class ImageFolder:
    """`<root>/<subject>/<image>`; `swap_color_channel` is for folders of the old published convert.py.

    For a data set unpacked by convert.py, subjects are in `<root>/imgs`. `notes`: sentences on this and on
    files that are not read.
    """

    location: Path
    labels: NDArray[np.int64]

    def __init__(self, root: Path, swap_color_channel: bool = False) -> None:
        self.location = subjects_root(root)
        self.name = str(self.location)
        self.notes: list[str] = []
        self._swap = swap_color_channel
        self.colours = _COLOURS[swap_color_channel]
        self._listing = list_faces(self.location)
        if self.location != root:
            self.notes.append(unpacked_note(root))
        self.notes += self._listing.notes
        self._set_labels()

    @property
    def subjects(self) -> list[str]:
        """Sorted names of the subject folders with images."""
        return self._listing.subjects

    def __len__(self) -> int:
        return len(self._listing)

    def path(self, row: int) -> Path:
        """File of image `row`."""
        return self.location / self.subjects[int(self.labels[row])] / self._listing.name(row)

    def read_bytes(self, row: int) -> bytes:
        """The file's content."""
        path = self.path(row)
        try:
            return read_encoded(path)
        except InputError as fault:
            raise InputError(f"{path}: {fault} It existed when the folder was listed.") from None

    def describe(self, row: int) -> str:
        """The file's path."""
        return str(self.path(row))

    def image(self, row: int) -> Image:
        """(112, 112, 3) RGB."""
        return decode_face(self.read_bytes(row), self.describe(row), swap_color_channel=self._swap)

    def stamps(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.uint64]:
        """(N,) or (n,) of `rows`."""
        root = os.fsencode(self.location)
        folders = [os.path.join(root, os.fsencode(subject)) for subject in self.subjects]

        def path(row: int) -> bytes:
            return os.path.join(folders[self.labels[row]], os.fsencode(self._listing.name(row)))

        def state(some: NDArray[np.int64]) -> FileState:
            return state_of_files([path(row) for row in some.tolist()])

        wanted = np.arange(len(self)) if rows is None else rows
        return stamps_of(wanted, state, self.read_bytes, self.location)

    def _set_labels(self) -> None:
        counts = np.diff(self._listing.subject_offsets)
        self.labels = _frozen(np.repeat(np.arange(len(counts), dtype=np.int64), counts))

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "labels"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._set_labels()


class RecordIOSource:
    """`train.rec` and `train.idx` of a folder; a subject's name is its label in the pack."""

    def __init__(self, folder: Path, swap_color_channel: bool = False) -> None:
        self.location = folder
        self.name = str(folder / "train.rec")
        self._swap = swap_color_channel
        self.colours = _COLOURS[swap_color_channel]
        pack = read_face_pack(folder)
        self.notes = list(pack.notes)
        if not len(pack.keys):
            raise InputError(f"{self.name}: contains no images. Compare its size with the original.")
        self._reader = pack.reader
        numbers, subject_of_row = np.unique(pack.labels, return_inverse=True)
        texts = [str(number) for number in numbers]
        order = sorted(range(len(texts)), key=texts.__getitem__)
        self.subjects = [texts[number] for number in order]
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        labels = rank[subject_of_row.reshape(-1)]
        rows = np.lexsort((*_text_order(pack.keys), labels))
        self._keys = pack.keys[rows]
        self.labels = _frozen(labels[rows])

    def __len__(self) -> int:
        return len(self._keys)

    def read_bytes(self, row: int) -> bytes:
        """The record's payload."""
        _header, payload = self._reader.read(int(self._keys[row]))
        return bytes(payload)

    def describe(self, row: int) -> str:
        """The pack's path and the record's key."""
        return f"{self.name}, key {self._keys[row]}"

    def image(self, row: int) -> Image:
        """(112, 112, 3) RGB."""
        return decode_face(self.read_bytes(row), self.describe(row), swap_color_channel=self._swap)

    def stamps(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.uint64]:
        """(N,), or (n,) of `rows`; equal to those of the unpacked files."""
        files = state_of_files([os.fsencode(self.location / name) for name in (REC_NAME, IDX_NAME)])
        of_pack = b"%d %d" % tuple(files.signatures.tolist()) if files.signatures[0] else None

        def state(some: NDArray[np.int64]) -> FileState:
            signatures = [
                0 if of_pack is None else content_stamp(b"%s %d" % (of_pack, key))
                for key in self._keys[some].tolist()
            ]
            changed = np.full(len(some), files.changed_ns.max())
            return FileState(np.array(signatures, np.uint64), changed)

        wanted = np.arange(len(self)) if rows is None else rows
        return stamps_of(wanted, state, self.read_bytes, self.location)


class SelectedRows:
    """Some rows of a source; remaining subjects are renumbered in the same order."""

    def __init__(self, source: FaceSource, rows: NDArray[np.int64]) -> None:
        self.name = source.name
        self.location = source.location
        self._source = source
        self._rows = rows
        kept, labels = np.unique(source.labels[rows], return_inverse=True)
        self.subjects = [source.subjects[subject] for subject in kept]
        self.labels = _frozen(labels.reshape(-1).astype(np.int64))

    def __len__(self) -> int:
        return len(self._rows)

    def read_bytes(self, row: int) -> bytes:
        """The encoded image."""
        return self._source.read_bytes(int(self._rows[row]))

    def describe(self, row: int) -> str:
        """File or key in the original source."""
        return self._source.describe(int(self._rows[row]))

    def image(self, row: int) -> Image:
        """(112, 112, 3) RGB."""
        return self._source.image(int(self._rows[row]))

    @property
    def colours(self) -> str:
        """As in the source."""
        return self._source.colours

    def stamps(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.uint64]:
        """(N,), or (n,) of `rows`; only selected images are read."""
        return self._source.stamps(self._rows if rows is None else self._rows[rows])

    def of_source(self, rows: NDArray[np.int64]) -> SelectedRows:
        """Select rows of the selection without nesting."""
        return SelectedRows(self._source, self._rows[rows])


class LooseImages:
    """`<root>/<image>`: aligned faces without known identity; each is its own subject.

    Raises:
        InputError: no image in the folder.
    """

    def __init__(self, root: Path) -> None:
        self.location, self.name = root, str(root)
        self.notes: list[str] = []
        self.subjects = sorted(path.name for path in root.iterdir() if is_loose_image(path))
        if not self.subjects:
            raise InputError(f"{root}: no images found. Expected aligned faces, or {root}/<subject>/<image>.")
        self.labels = np.arange(len(self.subjects))

    def __len__(self) -> int:
        return len(self.subjects)

    def describe(self, row: int) -> str:
        """The file."""
        return str(self.location / self.subjects[row])

    def image(self, row: int) -> Image:
        """(112, 112, 3) RGB."""
        path = self.location / self.subjects[row]
        try:
            encoded = read_encoded(path)
        except InputError as fault:
            raise InputError(f"{path}: {fault}") from None
        return decode_face(encoded, str(path))


def is_loose_image(path: Path) -> bool:
    """Whether a path is an image file, by its suffix."""
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def open_source(
    path: Path, use_mxrecord: bool = False, swap_color_channel: bool = False
) -> ImageFolder | RecordIOSource:
    """Open an image folder, or the folder of a RecordIO pack."""
    source = RecordIOSource if use_mxrecord else ImageFolder
    return source(path, swap_color_channel)


def select(source: FaceSource, rows: Sequence[int] | NDArray[np.integer]) -> FaceSource:
    """Select `rows` ((n,) integers) in the given order; subjects without rows are dropped.

    Raises:
        InputError: no rows, or rows out of range.
    """
    wanted = np.asarray(rows).astype(np.int64).reshape(-1)
    if not len(wanted):
        raise InputError(f"{source.name}: the selection is empty. Widen it.")
    outside = (wanted < 0) | (wanted >= len(source))
    if outside.any():
        raise InputError(
            f"{source.name}: {int(outside.sum()):,} of {len(wanted):,} selected positions are out of range "
            f"for its {len(source):,} images (the first is {wanted[outside][0]:,}). Is it the right data "
            "set?"
        )
    return source.of_source(wanted) if isinstance(source, SelectedRows) else SelectedRows(source, wanted)


def _text_order(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sort keys for np.lexsort that order integers >= 0 as decimal strings."""
    digits = np.ones(len(keys), np.int64)
    for power in range(1, 19):
        digits += keys >= 10**power
    return digits, keys * 10 ** (digits.max(initial=1) - digits)


def _frozen(array: NDArray[np.int64]) -> NDArray[np.int64]:
    array.flags.writeable = False
    return array

"""Where aligned faces come from: an image folder, an MXNet RecordIO pack, or a selection of either.

Every source gives RGB pixels in true colours, subjects by name and one row number an image. What is drawn
from a source, and how it is changed, is decided elsewhere (`data.subsets`, `data.templates`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data.decoding import Image as Image
from data.decoding import decode_image
from data.folder_index import list_faces
from data.image_files import people_root, unpacked_note
from data.recordio import read_face_pack
from errors import InputError

FACE_SIZE = 112


class FaceSource(Protocol):
    """Aligned faces of named subjects; picklable, and cheap enough to be sent to every worker.

    The rows of a folder and of the pack that it was unpacked from are the same: subjects in the order of
    their names as text ('10' before '2'), and images in the order of their names. Published index files count
    so.
    """

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def location(self) -> Path:
        """Folder that the data lies in."""

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
        """File, or pack and key, of one image: for messages."""

    def image(self, row: int) -> Image:
        """(112, 112, 3) RGB. Raises InputError that names an image of another size, or that is none."""

    def names_digest(self) -> bytes:
        """SHA-256 over the names of all images in order, without suffix."""


class ImageFolder:
    """`<root>/<subject>/<image>`; `swap_color_channel` is for what the old published convert.py wrote.

    Where `root` is a data set that convert.py unpacked, its people are in `<root>/imgs`. `notes`: sentences
    on that, and on all that is not read.
    """

    location: Path
    labels: NDArray[np.int64]

    def __init__(self, root: Path, swap_color_channel: bool = False) -> None:
        self.location = people_root(root)
        self.name = str(self.location)
        self.notes: list[str] = []
        self._swap = swap_color_channel
        self._listing = list_faces(self.location)
        if self.location != root:
            self.notes.append(unpacked_note(root))
        self.notes += self._listing.skipped.sentences()
        self._set_labels()

    @property
    def subjects(self) -> list[str]:
        """Names of the subject folders that hold an image, sorted."""
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
            return path.read_bytes()
        except OSError as fault:
            raise InputError(
                f"{path}: cannot be read ({fault.strerror}). It was there when the folder was listed."
            ) from None

    def describe(self, row: int) -> str:
        """The file's path."""
        return str(self.path(row))

    def image(self, row: int) -> Image:
        """(112, 112, 3) RGB."""
        return decode_face(self.read_bytes(row), self.describe(row), swap_color_channel=self._swap)

    def names_digest(self) -> bytes:
        """SHA-256 over the names without suffix, so that a re-encoded folder counts as the same data."""
        return hashlib.sha256(self._listing.stems().tobytes()).digest()

    def _set_labels(self) -> None:
        counts = np.diff(self._listing.subject_offsets)
        self.labels = _frozen(np.repeat(np.arange(len(counts), dtype=np.int64), counts))

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "labels"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._set_labels()


class RecordIOSource:
    """`train.rec` and `train.idx` of a folder, read in place; a subject's name is its number in the pack."""

    def __init__(self, folder: Path, swap_color_channel: bool = False) -> None:
        self.location = folder
        self.name = str(folder / "train.rec")
        self._swap = swap_color_channel
        pack = read_face_pack(folder)
        self.notes = list(pack.notes)
        if not len(pack.keys):
            raise InputError(f"{self.name}: holds no images. Compare its size with the original.")
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

    def names_digest(self) -> bytes:
        """SHA-256 over the keys as convert.py names files by them: the unpacked folder has the same."""
        return hashlib.sha256(b"".join(b"%d\0" % key for key in self._keys.tolist())).digest()


class Selection:
    """Some rows of a source, with its subjects that are left numbered anew in the same order."""

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
        """File or key in the source that was selected from."""
        return self._source.describe(int(self._rows[row]))

    def image(self, row: int) -> Image:
        """(112, 112, 3) RGB."""
        return self._source.image(int(self._rows[row]))

    def names_digest(self) -> bytes:
        """SHA-256 over the whole source's names and the rows taken."""
        return hashlib.sha256(self._source.names_digest() + self._rows.tobytes()).digest()

    def of_source(self, rows: NDArray[np.int64]) -> Selection:
        """Selects from the selection without stacking a second one on it."""
        return Selection(self._source, self._rows[rows])


def open_source(
    path: Path, use_mxrecord: bool = False, swap_color_channel: bool = False
) -> ImageFolder | RecordIOSource:
    """Opens an image folder, or the folder of a RecordIO pack."""
    source = RecordIOSource if use_mxrecord else ImageFolder
    return source(path, swap_color_channel)


def select(source: FaceSource, rows: Sequence[int] | NDArray[np.integer]) -> FaceSource:
    """Keeps `rows` ((n,) integers) in the order given; subjects without a row are dropped.

    Raises:
        InputError: no row, or a row outside of the source.
    """
    wanted = np.asarray(rows).astype(np.int64).reshape(-1)
    if not len(wanted):
        raise InputError(f"{source.name}: the selection is empty. Widen it.")
    outside = (wanted < 0) | (wanted >= len(source))
    if outside.any():
        raise InputError(
            f"{source.name}: {int(outside.sum()):,} of {len(wanted):,} selected positions are outside of its "
            f"{len(source):,} images (the first is {wanted[outside][0]:,}). Is it the right data set?"
        )
    return source.of_source(wanted) if isinstance(source, Selection) else Selection(source, wanted)


def fingerprint(source: FaceSource) -> str:
    """Hexadecimal SHA-256 over subjects, labels and image names; equal for a pack and the folder unpacked
    from it.

    Pixels are not read: it tells another data set, another subset or an added image, not a re-encoded one.
    """
    digest = hashlib.sha256(b"".join(os.fsencode(subject) + b"\0" for subject in source.subjects))
    digest.update(np.ascontiguousarray(source.labels, dtype="<i8").tobytes())
    digest.update(source.names_digest())
    return digest.hexdigest()


def decode_face(encoded: bytes, where: str, *, swap_color_channel: bool = False) -> Image:
    """Decodes one aligned face to (112, 112, 3) RGB; grey images get three equal channels.

    `swap_color_channel` swaps red and blue after decoding. `where` names the image in messages.

    Raises:
        InputError: the bytes are no image, or not 112 x 112.
    """
    # An orientation tag is ignored, as the published loaders do: aligned faces are upright as stored.
    try:
        image = decode_image(encoded, upright=False)
    except InputError as fault:
        raise InputError(
            f"{where}: {len(encoded):,} bytes that cannot be decoded as an image ({str(fault).rstrip('.')}). "
            "Replace the file, or remove it from the data."
        ) from None
    if image.shape[:2] != (FACE_SIZE, FACE_SIZE):
        raise InputError(
            f"{where}: the image is {image.shape[1]} x {image.shape[0]} pixels, expected "
            f"{FACE_SIZE} x {FACE_SIZE}. Align the faces by five points and crop them to that size; resizing "
            "alone misplaces eyes and mouth."
        )
    return np.ascontiguousarray(image[..., ::-1]) if swap_color_channel else image


class SubjectIndex:
    """The images of each subject without a search: below 1 us a look-up at 5.8 million images."""

    def __init__(self, labels: NDArray[np.int64]) -> None:
        counts = np.bincount(labels)
        self.offsets = np.concatenate(([0], np.cumsum(counts)))
        in_order = len(labels) < 2 or bool((labels[1:] >= labels[:-1]).all())
        rows = np.arange(len(labels)) if in_order else np.argsort(labels, kind="stable")
        self.rows = rows.astype(np.int32 if len(labels) < 2**31 else np.int64)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def images_of(self, subject: int) -> NDArray[np.integer]:
        """(n,) rows of the subject's images, in order: a view, nothing is copied."""
        return self.rows[self.offsets[subject] : self.offsets[subject + 1]]

    def counts(self) -> NDArray[np.int64]:
        """(S,) images of each subject."""
        return np.diff(self.offsets)


def _text_order(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sort keys for np.lexsort (last counts first) that order whole numbers >= 0 as their decimal texts."""
    digits = np.ones(len(keys), np.int64)
    for power in range(1, 19):
        digits += keys >= 10**power
    return digits, keys * 10 ** (digits.max(initial=1) - digits)


def _frozen(array: NDArray[np.int64]) -> NDArray[np.int64]:
    array.flags.writeable = False
    return array

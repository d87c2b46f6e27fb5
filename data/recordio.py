"""The MXNet RecordIO format that face data sets come in (`train.rec`, `train.idx`), read and written.

Bytes only: what a payload is, is decided in `data.sources`. Format: dmlc-core's recordio.h and MXNet's
recordio.py; packs written by MXNet itself are the test.
"""

from __future__ import annotations

import mmap
import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from errors import InputError
from files import atomic_path, atomic_write

REC_NAME = "train.rec"
IDX_NAME = "train.idx"

_MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", _MAGIC)
# The word after the magic: three bits say which part of a record follows, the others how long it is.
_LENGTH_BITS = 29
_LONGEST = (1 << _LENGTH_BITS) - 1
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_PART = struct.Struct("<II")
# flag (number of labels behind the header, 0: the one in it), label, id, id2
_HEADER = struct.Struct("<IfQQ")
_PART_AND_HEADER = struct.Struct("<IIIfQQ")
# Whole numbers up to here are exact as the 32-bit floats that labels are.
_LAST_EXACT = 1 << 24
# Records whose heads are gathered in one go; more take memory and no less time.
_RECORDS_AT_ONCE = 1 << 16
# So many records are looked at before an index is trusted; each costs a page of a cold disk.
_RECORDS_CHECKED = 512


class RecordHeader(NamedTuple):
    """What stands before a payload; `labels`: one value, or as many as the record has."""

    labels: tuple[float, ...]
    id: int
    id2: int


class RecordReader:
    """Random access to the records of a file by key; cheap to pickle, safe in forked and spawned workers.

    `keys`: (N,) int64 in the order of the index. An index that is missing, cut short or of another file is
    made anew by scanning the records, with the records' own numbers as keys.

    Raises:
        InputError: no such file, or a file whose records cannot be followed to its end.
    """

    def __init__(self, rec: Path, idx: Path | None = None) -> None:
        self._path = rec
        self._map: mmap.mmap | None = None
        try:
            self._size = rec.stat().st_size
        except OSError as fault:
            raise InputError(f"{rec}: cannot be read ({fault.strerror}). Expected a RecordIO file.") from None
        if not self._size:
            raise InputError(f"{rec}: the file is empty. Compare its size with the original.")
        index = _read_index(idx) if idx is not None else None
        if index is None or not self._fits(*index):
            index = self._scan(index)
        self.keys, self._offsets = index
        self._arrange()

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, object]:
        # The index goes along: reading it anew costs a worker more, and scanning for it minutes.
        return {name: self.__dict__[name] for name in ("_path", "_size", "keys", "_offsets")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _map=None)
        self._arrange()

    def read(self, key: int) -> tuple[RecordHeader, bytes]:
        """Header and payload of a record.

        Raises:
            InputError: there is no such key, or the record is damaged; names file, key and byte offset.
        """
        offset, following = self._place(key)
        data = self._map or self._open()
        try:
            magic, word, flag, label, id_, id2 = _PART_AND_HEADER.unpack_from(data, offset)
        except struct.error:
            raise self._damaged(offset, "the file ends in it", key) from None
        if magic != _MAGIC or word >> _LENGTH_BITS:
            return self._split(offset, key, following)
        start, end = offset + _PART.size, offset + _PART.size + word
        if not self._ends_well(end + -word % 4, following):
            raise self._damaged(offset, f"its length is {word:,} bytes, which is not where it ends", key)
        body = start + _HEADER.size
        if not flag and body <= end:
            return RecordHeader((label,), id_, id2), data[body:end]
        if body + 4 * flag > end:
            raise self._damaged(offset, "it is too short for its header", key)
        labels = struct.unpack_from(f"<{flag}f", data, body)
        return RecordHeader(labels, id_, id2), data[body + 4 * flag : end]

    def header(self, key: int) -> RecordHeader:
        """The header of a record alone."""
        return self.read(key)[0]

    def first_labels(self, keys: NDArray[np.int64]) -> NDArray[np.float32]:
        """(N,) first label of each record of `keys` (N,).

        Touches a page a record, and finds every record that `read` would call damaged.
        """
        labels = np.empty(len(keys), np.float32)
        places = np.searchsorted(self._sorted_keys, keys)
        for start in range(0, len(keys), _RECORDS_AT_ONCE):
            part = slice(start, start + _RECORDS_AT_ONCE)
            offsets, following = self._places[np.minimum(places[part], len(self) - 1)].T
            words = self._heads(offsets)
            length, flag = words[:, 1].astype(np.int64), words[:, 2].astype(np.int64)
            plain = (
                (self._sorted_keys[np.minimum(places[part], len(self) - 1)] == keys[part])
                & (words[:, 0] == _MAGIC)
                & (length >= _HEADER.size + 4 * flag)
                & (offsets + _PART.size + length + -length % 4 == following)
            )
            labels[part] = np.where(flag > 0, words[:, 8], words[:, 3]).view(np.float32)
            # Records in several parts, and damaged ones, are looked at one by one.
            for row in np.flatnonzero(~plain).tolist():
                labels[start + row] = self.header(int(keys[start + row])).labels[0]
        return labels

    def _arrange(self) -> None:
        """Makes what looking up a key needs."""
        order = np.argsort(self.keys, kind="stable")
        self._sorted_keys = self.keys[order]
        rising = np.append(np.sort(self._offsets), self._size)
        following = rising[np.searchsorted(rising, self._offsets) + 1]
        # (N, 2): where the record of each key begins, and where the next one in the file does.
        self._places = np.stack([self._offsets, following], axis=1)[order]
        first = int(self._sorted_keys[0])
        # Keys without gaps, as packs have them, need no search.
        self._first = first if int(self._sorted_keys[-1]) - first == len(order) - 1 else None

    def _place(self, key: int) -> list[int]:
        first = self._first
        place = int(np.searchsorted(self._sorted_keys, key)) if first is None else key - first
        if not 0 <= place < len(self._sorted_keys) or self._sorted_keys[place] != key:
            raise InputError(
                f"{self._path}: has no record {key}; its keys are {self.keys.min()} to {self.keys.max()}."
            )
        place_in_file: list[int] = self._places[place].tolist()
        return place_in_file

    def _open(self) -> mmap.mmap:
        with self._path.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def _heads(self, offsets: NDArray[np.int64]) -> NDArray[np.uint32]:
        """(N, 9) the first words of records: magic, length, flag, label, id (2), id2 (2), first of labels."""
        words = np.frombuffer(self._map or self._open(), "<u4", self._size // 4)
        return words[np.minimum(offsets[:, None] // 4 + np.arange(9), len(words) - 1)]

    def _ends_well(self, end: int, following: int) -> bool:
        """Whether a record ends where the next one begins; an index of some records only has gaps."""
        data = self._map or self._open()
        return end == following or (end < following and data[end : end + 4] == _MAGIC_BYTES)

    def _joined(self, parts: list[tuple[int, int]]) -> bytes:
        data = self._map or self._open()
        # The magic was cut out between two parts, where the data itself held it.
        return _MAGIC_BYTES.join(data[start:end] for start, end in parts)

    def _parts(self, offset: int, key: int | None = None) -> tuple[list[tuple[int, int]], int]:
        """Where the parts of a record lie, and where the next record begins."""
        data = self._map or self._open()
        parts: list[tuple[int, int]] = []
        while True:
            if offset + _PART.size > self._size:
                raise self._damaged(offset, "the file ends in it", key)
            magic, word = _PART.unpack_from(data, offset)
            kind, length = word >> _LENGTH_BITS, word & _LONGEST
            if magic != _MAGIC:
                raise self._damaged(offset, f"expected the magic number, found {magic:#010x}", key)
            if kind > _LAST or (kind in (_WHOLE, _FIRST)) != (not parts):
                raise self._damaged(offset, "its parts are out of order", key)
            start = offset + _PART.size
            if start + length > self._size:
                raise self._damaged(offset, f"it has {length:,} bytes, but the file ends before", key)
            parts.append((start, start + length))
            offset = start + length + -length % 4
            if kind in (_WHOLE, _LAST):
                return parts, offset

    def _damaged(self, offset: int, what: str, key: int | None = None) -> InputError:
        record = "a record" if key is None else f"record {key}"
        return InputError(
            f"{self._path}, {record} at byte {offset:,}: {what}. The file is damaged or cut short ("
            f"{self._size:,} bytes): compare its size and checksum with the original and copy it again."
        )

    def _fits(self, keys: NDArray[np.int64], offsets: NDArray[np.int64]) -> bool:
        """Whether an index is that of this file: its offsets are records, and the last one ends the file."""
        if (
            not len(keys)
            or offsets.min() < 0
            or offsets.max() >= self._size
            or (offsets % 4).any()
            or len(np.unique(keys)) < len(keys)
            or len(np.unique(offsets)) < len(keys)
        ):
            return False
        some = np.unique(np.linspace(0, len(offsets) - 1, _RECORDS_CHECKED).astype(np.int64))
        words = self._heads(offsets[some])
        if (words[:, 0] != _MAGIC).any():
            return False
        # An index with the keys of other records. Not so where a writer gave all records one number.
        whole = words[:, 1] >> _LENGTH_BITS == _WHOLE
        ids = words[whole, 4:6].copy().view("<u8").reshape(-1).astype(np.int64)
        others = ids[ids != keys[some][whole]]
        if len(others) > 1 and len(np.unique(ids)) == len(ids) and np.isin(others, keys).all():
            return False
        try:
            return self._parts(int(offsets.max()))[1] >= self._size
        except InputError:
            # The file is damaged at its end, not the index: the records before can be read, and say so.
            return True

    def _scan(
        self, index: tuple[NDArray[np.int64], NDArray[np.int64]] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Keys and offsets of all records, in the order of the file."""
        known = {} if index is None else dict(zip(index[1].tolist(), index[0].tolist(), strict=True))
        keys, offsets, offset = [], [], 0
        data = self._map or self._open()
        while offset < self._size:
            parts, following = self._parts(offset, known.get(offset))
            start, end = parts[0]
            if end - start >= _HEADER.size:
                keys.append(_HEADER.unpack_from(data, start)[2])
            else:
                record = self._joined(parts)
                if len(record) < _HEADER.size:
                    raise self._damaged(offset, "it is too short for its header", known.get(offset))
                keys.append(_HEADER.unpack_from(record)[2])
            offsets.append(offset)
            offset = following
        if known.keys() > set(offsets) and min(known.keys() - set(offsets)) >= self._size:
            first = min(known.keys() - set(offsets))
            raise self._damaged(first, "the index has it, but the file ends before", known[first])
        if len(set(keys)) < len(keys):
            keys = (
                [known[place] for place in offsets] if known.keys() == set(offsets) else range(len(offsets))
            )
        return np.array(keys).astype(np.int64), np.array(offsets, np.int64)

    def _split(self, offset: int, key: int, following: int) -> tuple[RecordHeader, bytes]:
        """Header and payload of a record in several parts."""
        parts, end = self._parts(offset, key)
        record = self._joined(parts)
        if not self._ends_well(end, following):
            raise self._damaged(offset, "it does not end where the next one begins", key)
        if len(record) < _HEADER.size or len(record) < _HEADER.size + 4 * _HEADER.unpack_from(record)[0]:
            raise self._damaged(offset, "it is too short for its header", key)
        flag, label, id_, id2 = _HEADER.unpack_from(record)
        labels = struct.unpack_from(f"<{flag}f", record, _HEADER.size) if flag else (label,)
        return RecordHeader(labels, id_, id2), record[_HEADER.size + 4 * flag :]


class RecordWriter:
    """Writes records in a row; made by `record_writer`, which puts the files in place when all is well."""

    def __init__(self, rec: Path) -> None:
        self._stream = rec.open("wb")
        self._index: list[str] = []
        self._offset = 0

    def write(self, key: int, payload: bytes, labels: tuple[float, ...] = (0.0,)) -> None:
        """Appends a record; one label stands in the header itself, several behind it."""
        flag = 0 if len(labels) == 1 else len(labels)
        head = _HEADER.pack(flag, labels[0] if flag == 0 else 0.0, key, 0)
        record = head + (struct.pack(f"<{flag}f", *labels) if flag else b"") + payload
        if len(record) > _LONGEST:
            raise InputError(
                f"record {key}: {len(record):,} bytes, more than the {_LONGEST:,} of the format."
            )
        self._index.append(f"{key}\t{self._offset}\n")
        for part in _encoded(record):
            self._stream.write(part)
            self._offset += len(part)

    def set_first_labels(self, labels: tuple[float, ...]) -> None:
        """Replaces the labels of the first record, which has as many: what it says is known last."""
        self._stream.seek(_PART_AND_HEADER.size)
        self._stream.write(struct.pack(f"<{len(labels)}f", *labels))
        self._stream.seek(self._offset)

    def close(self) -> str:
        """Ends the file; gives the text of its index."""
        self._stream.close()
        return "".join(self._index)


@dataclass(frozen=True)
class FacePack:
    """The images of a pack: `keys` (N,) int64 in its order, `labels` (N,) int64 subjects, and a reader."""

    keys: NDArray[np.int64]
    labels: NDArray[np.int64]
    reader: RecordReader


@contextmanager
def record_writer(rec: Path, idx: Path) -> Iterator[RecordWriter]:
    """Yields a writer; both files appear, whole, when the block ends well, and neither when it raises."""
    with atomic_path(rec) as temporary:
        writer = RecordWriter(temporary)
        try:
            yield writer
        finally:
            index = writer.close()
        # A reader that meets the new index beside the old file would scan; the other way round as well.
        atomic_write(idx, index)


def write_face_pack(folder: Path, images: Iterable[tuple[int, bytes]], size: int = 112) -> int:
    """Writes train.rec, train.idx and `property` as InsightFace's data sets have them; gives the image count.

    `images`: (subject, encoded image), all of a subject in a row and subjects rising. Record 0 says where the
    identity ranges begin and end, keys from 1 on are images, and each range is [first key, last key + 1).

    Raises:
        InputError: no image, or subjects out of order.
    """
    ranges: dict[int, list[int]] = {}
    with record_writer(folder / REC_NAME, folder / IDX_NAME) as writer:
        writer.write(0, b"", (0.0, 0.0))
        key = 1
        for subject, content in images:
            if ranges and subject < (last := next(reversed(ranges))):
                raise InputError(
                    f"{folder}: subject {subject} comes after {last}; a pack has its subjects in order."
                )
            ranges.setdefault(subject, [key, key])[1] = key + 1
            writer.write(key, content, (float(subject), 1.0))
            key += 1
            if key + len(ranges) > _LAST_EXACT:
                raise InputError(
                    f"{folder}: more than {_LAST_EXACT:,} records. Their keys stand in the pack as 32-bit floats, "
                    "which cannot tell more apart; write several packs."
                )
        if not ranges:
            raise InputError(f"{folder}: there is no image to pack.")
        for number, (first, end) in enumerate(ranges.values()):
            writer.write(key + number, b"", (float(first), float(end)))
        writer.set_first_labels((float(key), float(key + len(ranges))))
    atomic_write(folder / "property", f"{len(ranges)},{size},{size}")
    return key - 1


def read_face_pack(folder: Path) -> FacePack:
    """Opens `train.rec` of a folder; the labels come from the identity ranges, else from every header.

    Raises:
        InputError: as `RecordReader`, or labels that are no subjects.
    """
    rec = folder / REC_NAME
    if not rec.is_file():
        raise InputError(f"{rec}: there is no such file. Expected the folder of an MXNet RecordIO pack.")
    reader = RecordReader(rec, folder / IDX_NAME)
    there = np.sort(reader.keys)
    first = reader.header(int(there[0]))
    if there[0] == 0 and len(first.labels) == 2 and first.labels[0] > 0:
        ranges_start, ranges_end = map(int, first.labels)
        if there[-1] + 1 < ranges_end <= _LAST_EXACT:
            raise InputError(
                f"{rec}, record 0: says that keys go up to {ranges_end - 1}, but the last one is {there[-1]}. The "
                "file is cut short or put together from parts: compare its size with the original."
            )
        keys = there[(there > 0) & (there < ranges_start)]
        labels = _labels_from_ranges(reader, keys, there[there >= ranges_start])
    else:
        keys, labels = there, None
    if labels is None:
        labels = reader.first_labels(keys).astype(np.int64)
    if len(labels) and labels.min() < 0:
        raise InputError(f"{rec}: has a negative subject number, {labels.min()}.")
    return FacePack(keys, labels, reader)


def _labels_from_ranges(
    reader: RecordReader, keys: NDArray[np.int64], range_keys: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """Subjects of all images from one header a subject; None where the ranges do not cover the images.

    A header an image would be a page of the disk each: 23 GB for MS1MV2.
    """
    ranges = [reader.header(key).labels for key in range_keys.tolist()]
    if not ranges or any(len(labels) != 2 for labels in ranges):
        return None
    starts, ends = np.array(ranges, np.float64).astype(np.int64).T
    filled = ends > starts
    starts, ends = starts[filled], ends[filled]
    covered = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)] or [keys[:0]])
    if not np.array_equal(np.sort(covered), keys):
        return None
    subjects = reader.first_labels(starts).astype(np.int64)
    order = np.argsort(covered, kind="stable")
    return np.repeat(subjects, ends - starts)[order]


def _encoded(record: bytes) -> Iterator[bytes]:
    """A record as it is stored: cut wherever the magic number stands at a multiple of four."""
    start = 0
    place = record.find(_MAGIC_BYTES)
    while place != -1:
        if place % 4 == 0:
            kind = _FIRST if start == 0 else _MIDDLE
            yield _PART.pack(_MAGIC, kind << _LENGTH_BITS | place - start) + record[start:place]
            start = place + 4
            place = record.find(_MAGIC_BYTES, start)
        else:
            place = record.find(_MAGIC_BYTES, place + 1)
    kind = _LAST if start else _WHOLE
    last = record[start:]
    yield _PART.pack(_MAGIC, kind << _LENGTH_BITS | len(last)) + last + bytes(-len(last) % 4)


def _read_index(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Keys and offsets; None where there is no index, or none that can be read."""
    try:
        with warnings.catch_warnings():
            # NumPy warns where the text is no number, and gives what came before.
            warnings.simplefilter("error")
            numbers = np.fromstring(path.read_text("ascii"), np.int64, sep=" ")
    except (OSError, ValueError, DeprecationWarning):
        return None
    if not len(numbers) or len(numbers) % 2:
        return None
    return numbers[0::2].copy(), numbers[1::2].copy()

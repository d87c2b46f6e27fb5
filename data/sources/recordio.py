"""Read and write MXNet RecordIO files (`train.rec`, `train.idx`) of face data sets.

Payloads are not decoded here. Format: dmlc-core's recordio.h and MXNet's recordio.py; tested with packs
written by MXNet.
"""

from __future__ import annotations

import mmap
import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.files import atomic_path, atomic_write

REC_NAME = "train.rec"
IDX_NAME = "train.idx"

_MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", _MAGIC)
# The word after the magic number: three bits for the kind of part, the others for its length.
_LENGTH_BITS = 29
_MAX_LENGTH = (1 << _LENGTH_BITS) - 1
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_PART = struct.Struct("<II")
# flag (number of labels after the header; 0: one label in the header), label, id, id2
_HEADER = struct.Struct("<IfQQ")
_PART_AND_HEADER = struct.Struct("<IIIfQQ")
# Labels are 32-bit floats, which represent integers below this exactly.
_FIRST_INEXACT = 1 << 24
_RECORDS_AT_ONCE = 1 << 16
# Records that are checked before an index is trusted; each costs a page read from a cold disk.
_RECORDS_CHECKED = 512
_MAX_RECORDS = 1 << 40
# Record ids are consecutive. A pack with few deviations is damaged; with many it is numbered otherwise.
_MAX_FRACTION_WRONG = 0.1
_Index = tuple[NDArray[np.int64], NDArray[np.int64]]  # keys and offsets of records


class RecordHeader(NamedTuple):
    """The header of a record with one or several labels."""

    labels: tuple[float, ...]
    id: int
    id2: int


class RecordReader:
    """Random access to the records of a file by key; cheap to pickle, safe in forked and spawned workers.

    `keys`: (N,) int64, ascending. An index that is missing, truncated or of another file is rebuilt by
    scanning the records, with their ids as keys. `leaves_out`: the file has records that are not in the
    index.

    Raises:
        InputError: the file does not exist, or its records cannot be followed to its end.
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
        keys, offsets = index
        self.leaves_out = self._leaves_out(keys, offsets)
        rising = np.append(np.sort(offsets), self._size)
        following = rising[np.searchsorted(rising, offsets) + 1]
        order = np.argsort(keys, kind="stable")
        self.keys = keys[order]
        # (N, 2): start of the record of each key, and start of the next record in the file.
        self._places = np.stack([offsets, following], axis=1)[order]
        # Consecutive keys, the usual case, need no search.
        self._first = int(self.keys[0]) if self.keys[-1] - self.keys[0] == len(keys) - 1 else None

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, object]:
        # The index is pickled: a worker would take longer to read it, and minutes to scan for it.
        return self.__dict__ | {"_map": None}

    def read(self, key: int) -> tuple[RecordHeader, bytes]:
        """Read header and payload of a record.

        Raises:
            InputError: unknown key or damaged record; names file, key and byte offset.
        """
        offset, following = self._place(key)
        data = self._map or self._open()
        try:
            magic, word, flag, label, id_, id2 = _PART_AND_HEADER.unpack_from(data, offset)
        except struct.error:
            raise self._damaged(offset, "the file ends in it", key) from None
        start, end = offset + _PART.size, offset + _PART.size + word
        after = end + -word % 4
        record: mmap.mmap | bytes = data
        if magic != _MAGIC or word >> _LENGTH_BITS:
            record, after = self._joined(offset, key)
            start, end = 0, len(record)
            flag, label, id_, id2 = _HEADER.unpack_from(record)
        # Another record may follow that is not in the index.
        if after != following and (after > following or data[after : after + 4] != _MAGIC_BYTES):
            raise self._damaged(
                offset, f"its length is {end - start:,} bytes, which is not where it ends", key
            )
        body = start + _HEADER.size + 4 * flag
        if body > end:
            raise self._damaged(offset, "it is too short for its header", key)
        labels = struct.unpack_from(f"<{flag}f", record, body - 4 * flag) if flag else (label,)
        return RecordHeader(labels, id_, id2), record[body:end]

    def header(self, key: int) -> RecordHeader:
        """The header of a record."""
        return self.read(key)[0]

    def first_labels(self, keys: NDArray[np.int64]) -> NDArray[np.float32]:
        """(N,) first label of each record of `keys` (N,).

        Reads one page per record, and finds every record that `read` would report as damaged.
        """
        labels = np.empty(len(keys), np.float32)
        for first in range(0, len(keys), _RECORDS_AT_ONCE):
            part = keys[first : first + _RECORDS_AT_ONCE]
            places = np.minimum(np.searchsorted(self.keys, part), len(self) - 1)
            offsets, following = self._places[places].T
            words = self._heads(offsets)
            length, flag = words[:, 1].astype(np.int64), words[:, 2].astype(np.int64)
            plain = (self.keys[places] == part) & (words[:, 0] == _MAGIC)
            plain &= length >= _HEADER.size + 4 * flag
            plain &= offsets + _PART.size + length + -length % 4 == following
            labels[first : first + len(part)] = np.where(flag, words[:, 8], words[:, 3]).view(np.float32)
            # Records in several parts and damaged ones are read individually.
            for row in np.flatnonzero(~plain).tolist():
                labels[first + row] = self.header(int(part[row])).labels[0]
        return labels

    def _place(self, key: int) -> list[int]:
        first = self._first
        place = int(np.searchsorted(self.keys, key)) if first is None else key - first
        if not 0 <= place < len(self.keys) or self.keys[place] != key:
            known = f"{self.keys[0]} to {self.keys[-1]}"
            raise InputError(f"{self._path}: has no record {key}; its keys are {known}.")
        place_in_file: list[int] = self._places[place].tolist()
        return place_in_file

    def _open(self) -> mmap.mmap:
        with self._path.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def _heads(self, offsets: NDArray[np.int64]) -> NDArray[np.uint32]:
        """(N, 9) first words of records: magic, length, flag, label, id (2), id2 (2), first label after
        it.
        """
        words = np.frombuffer(self._map or self._open(), np.uint32, self._size // 4)
        heads: NDArray[np.uint32] = words[np.minimum(offsets[:, None] // 4 + np.arange(9), len(words) - 1)]
        return heads

    def _joined(self, offset: int, key: int | None) -> tuple[bytes, int]:
        """A record with its parts joined, and the start of the next record."""
        parts, after = self._parts(offset, key)
        data = self._map or self._open()
        # The writer splits a record at the magic number and removes it there.
        record = _MAGIC_BYTES.join(data[start:end] for start, end in parts)
        if len(record) < _HEADER.size:
            raise self._damaged(offset, "it is too short for its header", key)
        return record, after

    def _parts(self, offset: int, key: int | None) -> tuple[list[tuple[int, int]], int]:
        """Start and end of the parts of a record, and the start of the next record."""
        data = self._map or self._open()
        parts: list[tuple[int, int]] = []
        while True:
            if offset + _PART.size > self._size:
                raise self._damaged(offset, "the file ends in it", key)
            magic, word = _PART.unpack_from(data, offset)
            kind, length = word >> _LENGTH_BITS, word & _MAX_LENGTH
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

    def _damaged(self, offset: int, what: str, key: int | None) -> InputError:
        record = "a record" if key is None else f"record {key}"
        return InputError(
            f"{self._path}, {record} at byte {offset:,}: {what}. The file is damaged or truncated "
            f"({self._size:,} bytes): compare its size and checksum with the original and copy it again."
        )

    def _fits(self, keys: NDArray[np.int64], offsets: NDArray[np.int64]) -> bool:
        """Whether an index belongs to this file: offsets are records, and the last one ends the file."""
        if offsets.min() < 0 or offsets.max() >= self._size or (offsets % 4).any():
            return False
        # np.unique takes 14 s for the six million keys of MS1MV2.
        if any((np.diff(np.sort(column, kind="stable")) == 0).any() for column in (keys, offsets)):
            return False
        some = np.unique(np.linspace(0, len(offsets) - 1, _RECORDS_CHECKED).astype(np.int64))
        words = self._heads(offsets[some])
        if (words[:, 0] != _MAGIC).any():
            return False
        # The index has the keys of other records. (Some writers give all records the same id.)
        ids = words[:, 4:6].copy().view(np.uint64)[:, 0].astype(np.int64)
        others = ids[ids != keys[some]]
        if len(others) > 1 and len(np.unique(ids)) == len(ids) and np.isin(others, keys).all():
            return False
        try:
            return self._parts(int(offsets.max()), None)[1] >= self._size
        except InputError:
            # The end of the file is damaged, not the index; the other records can be read.
            return True

    def _leaves_out(self, keys: NDArray[np.int64], offsets: NDArray[np.int64]) -> bool:
        """Whether there are records between those of an index; checked where its keys have gaps."""
        order = np.argsort(offsets, kind="stable")
        offsets = offsets[order]
        if offsets[0] > 0:
            return True
        gaps = np.flatnonzero(np.diff(keys[order]) != 1)
        # Sampled, because unordered keys have gaps everywhere.
        some = gaps[np.unique(np.linspace(0, len(gaps) - 1, min(len(gaps), _RECORDS_CHECKED)).astype(int))]
        for row in some.tolist():
            try:
                after = self._parts(int(offsets[row]), None)[1]
            except InputError:
                continue  # A damaged record is reported when it is read.
            if after < offsets[row + 1] and (self._map or self._open())[after : after + 4] == _MAGIC_BYTES:
                return True
        return False

    def _scan(self, index: _Index | None) -> _Index:
        """Keys and offsets of all records, in file order."""
        known = {} if index is None else dict(zip(index[1].tolist(), index[0].tolist(), strict=True))
        ids: dict[int, int] = {}
        offset = 0
        while offset < self._size:
            record, after = self._joined(offset, known.get(offset))
            ids[offset] = _HEADER.unpack_from(record)[2]
            offset = after
        lost = known.keys() - ids.keys()
        if len(lost) == len(known) - len(ids) > 0 and min(lost) >= self._size:
            raise self._damaged(min(lost), "the index has it, but the file ends before", known[min(lost)])
        keys = list(ids.values())
        self._check_numbers(keys, list(ids))
        # Some writers give all records the same id; then they are numbered in file order.
        if len(set(keys)) < len(keys):
            keys = list(range(len(keys)))
        return np.array(keys, np.uint64).astype(np.int64), np.array(list(ids), np.int64)

    def _check_numbers(self, ids: list[int], offsets: list[int]) -> None:
        """Raise InputError if a few records have unexpected ids.

        Identity ranges refer to these ids, so images would be assigned to other subjects.
        """
        numbers = np.array(ids, np.float64)
        places = np.arange(len(numbers))
        shift = np.median(numbers - places)
        wrong = np.flatnonzero(numbers - places != shift)
        if 0 < len(wrong) <= len(numbers) * _MAX_FRACTION_WRONG:
            row = int(wrong[0])
            what = f"its id is {ids[row]}, expected {row + int(shift)} ({len(wrong):,} such records)"
            raise self._damaged(offsets[row], what, None)


class RecordWriter:
    """Writes records sequentially; created by `record_writer`. `index`: lines of the index file."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.index: list[str] = []
        self._offset = 0

    def write(self, key: int, payload: bytes, labels: tuple[float, ...] = (0.0,)) -> None:
        """Append a record; a single label is stored in the header, several after it."""
        flag = 0 if len(labels) == 1 else len(labels)
        head = _HEADER.pack(flag, labels[0] if flag == 0 else 0.0, key, 0)
        record = head + (struct.pack(f"<{flag}f", *labels) if flag else b"") + payload
        if len(record) > _MAX_LENGTH:
            raise InputError(f"record {key}: {len(record):,} bytes; the limit is {_MAX_LENGTH:,}.")
        self.index.append(f"{key}\t{self._offset}\n")
        for part in _encoded(record):
            self._stream.write(part)
            self._offset += len(part)

    def set_first_labels(self, labels: tuple[float, ...]) -> None:
        """Replace the labels of the first record, which are known only at the end."""
        self._stream.seek(_PART_AND_HEADER.size)
        self._stream.write(struct.pack(f"<{len(labels)}f", *labels))
        self._stream.seek(self._offset)


@dataclass(frozen=True)
class FacePack:
    """The images of a pack: `keys` (N,) int64, `labels` (N,) int64, and a reader.

    `notes`: sentences on unused records.
    """

    keys: NDArray[np.int64]
    labels: NDArray[np.int64]
    reader: RecordReader
    notes: tuple[str, ...] = ()


@contextmanager
def record_writer(rec: Path, idx: Path) -> Iterator[RecordWriter]:
    """Yield a writer; both files are created atomically when the block succeeds."""
    with atomic_path(rec) as temporary:
        with temporary.open("wb") as stream:
            writer = RecordWriter(stream)
            yield writer
        # Between the two renames a reader would find an index that does not fit, and scan the records.
        atomic_write(idx, "".join(writer.index))


def write_face_pack(folder: Path, images: Iterable[tuple[int, bytes]]) -> int:
    """Write train.rec, train.idx and `property` in InsightFace's layout; returns the number of images.

    `images`: (subject, encoded image), grouped by ascending subject. Record 0 holds the range of the identity
    records, images have keys from 1, and each identity record holds [first key, last key + 1).

    Raises:
        InputError: no image, subjects out of order, or more subjects or records than labels can represent.
    """
    ranges: dict[int, list[int]] = {}
    with record_writer(folder / REC_NAME, folder / IDX_NAME) as writer:
        writer.write(0, b"", (0.0, 0.0))
        key = 1
        for subject, content in images:
            if ranges and subject < (last := next(reversed(ranges))):
                raise InputError(f"{folder}: subject {subject} follows {last}, expected ascending subjects.")
            if subject >= _FIRST_INEXACT:
                raise InputError(
                    f"{folder}: subject {subject}: labels are exact below {_FIRST_INEXACT:,}. Number the "
                    "subjects from 0."
                )
            ranges.setdefault(subject, [key, key])[1] = key + 1
            writer.write(key, content, (float(subject), 1.0))
            key += 1
            if key + len(ranges) > _FIRST_INEXACT:
                raise InputError(f"{folder}: more than {_FIRST_INEXACT:,} records; write several packs.")
        if not ranges:
            raise InputError(f"{folder}: no images to pack.")
        for number, (first, end) in enumerate(ranges.values()):
            writer.write(key + number, b"", (float(first), float(end)))
        writer.set_first_labels((float(key), float(key + len(ranges))))
    atomic_write(folder / "property", f"{len(ranges)},112,112")
    return key - 1


def read_face_pack(folder: Path) -> FacePack:
    """Open `train.rec` of a folder, with labels from the identity ranges or else from every header.

    Raises:
        InputError: as `RecordReader`, or labels that are invalid or too large to be exact.
    """
    rec = folder / REC_NAME
    if not rec.is_file():
        raise InputError(f"{rec}: no such file. Expected the folder of an MXNet RecordIO pack.")
    reader = RecordReader(rec, folder / IDX_NAME)
    there = reader.keys
    first = reader.header(int(there[0]))
    if there[0] == 0 and len(first.labels) == 2 and not max(map(abs, first.labels)) < _MAX_RECORDS:
        raise InputError(f"{rec}, record 0: announces the range {first.labels}. The file is damaged.")
    notes: tuple[str, ...] = ()
    announces = len(first.labels) == 2 and np.isfinite(first.labels).all() and first.labels[0] > 0
    if there[0] == 0 and announces:
        ranges_start, ranges_end = map(int, first.labels)
        if int(there[-1]) + 1 < ranges_end < _FIRST_INEXACT:
            what = f"announces keys up to {ranges_end - 1}, but the last one is {there[-1]}"
            raise InputError(f"{rec}, record 0: {what}. Compare the file's size with the original.")
        ranges_start = _first_range(reader, ranges_start)
        keys = there[(there > 0) & (there < ranges_start)]
        ranges = _ranges(reader, keys, there[there >= ranges_start])
    else:
        keys, ranges = there, None
    if reader.leaves_out:
        notes = (
            f"{folder / IDX_NAME} lists {len(there):,} records, but {rec} contains more, which are not used. "
            "If this is not intended, remove the index; it is then rebuilt",
        )
    if ranges is None:
        return FacePack(keys, _checked_labels(rec, keys, reader.first_labels(keys)), reader, notes)
    starts, counts, order = ranges
    subjects = _checked_labels(rec, starts, reader.first_labels(starts))
    if len(twice := np.flatnonzero(np.diff(np.sort(subjects)) == 0)):
        raise InputError(
            f"{rec}: two identity ranges have the label {np.sort(subjects)[twice[0]]}. The file is damaged; "
            "compare its checksum with the original."
        )
    return FacePack(keys, np.repeat(subjects, counts)[order], reader, notes)


def _checked_labels(rec: Path, keys: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Labels (N,) as integers; raises InputError that names the first invalid or inexact one."""
    with np.errstate(invalid="ignore"):
        wrong = np.flatnonzero(~((values >= 0) & (values < np.inf) & (values == np.floor(values))))
    if len(wrong):
        raise InputError(
            f"{rec}, record {keys[wrong[0]]}: its label is {values[wrong[0]]:g}, expected an integer >= 0 "
            f"({len(wrong):,} of {len(keys):,} records have invalid labels)."
        )
    large = np.flatnonzero(values >= _FIRST_INEXACT)
    if len(large):
        raise InputError(
            f"{rec}, record {keys[large[0]]}: its label is {values[large[0]]:.0f}. Labels are 32-bit floats, "
            f"which are inexact from {_FIRST_INEXACT:,}: the subjects of {len(large):,} records cannot be "
            "distinguished. Number the subjects from 0 and pack again."
        )
    return values.astype(np.int64)


def _first_range(reader: RecordReader, announced: int) -> int:
    """Key of the first identity record, as given by record 0; from 2^24 the number may be rounded.

    Identity records have no payload.
    """
    if announced < _FIRST_INEXACT:
        return announced
    error = int(np.spacing(np.float32(announced)))
    near = reader.keys[np.abs(reader.keys - announced) <= error].tolist()
    return next((key for key in near if not reader.read(key)[1]), announced)


def _ranges(
    reader: RecordReader, keys: NDArray[np.int64], range_keys: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None:
    """(S,) first key and number of images of each subject, and (N,) their order in `keys`.

    None if the ranges do not cover the images or are too large to be exact. Reading the header of every image
    instead would read one page each: 23 GB for MS1MV2.
    """
    ranges = [reader.header(key).labels for key in range_keys.tolist()]
    if not ranges or any(len(labels) != 2 for labels in ranges):
        return None
    values = np.array(ranges)
    if not ((values >= 0) & (values < _FIRST_INEXACT)).all():
        return None
    bounds = values.astype(np.int64)
    starts, ends = bounds[bounds[:, 1] > bounds[:, 0]].T
    if (ends - starts).sum() != len(keys):
        return None
    covered = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)] or [keys[:0]])
    if not np.array_equal(np.sort(covered), keys):
        return None
    return starts, ends - starts, np.argsort(covered, kind="stable")


def _encoded(record: bytes) -> Iterator[bytes]:
    """A record as stored: split wherever the magic number occurs at a multiple of four bytes."""
    start, place = 0, record.find(_MAGIC_BYTES)
    while place != -1:
        if place % 4 == 0:
            kind = _FIRST if start == 0 else _MIDDLE
            yield _PART.pack(_MAGIC, kind << _LENGTH_BITS | place - start) + record[start:place]
            start = place + 4
        place = record.find(_MAGIC_BYTES, place + 1)
    kind = _LAST if start else _WHOLE
    last = record[start:]
    yield _PART.pack(_MAGIC, kind << _LENGTH_BITS | len(last)) + last + bytes(-len(last) % 4)


def _read_index(path: Path) -> _Index | None:
    """Keys and offsets; None if the index is missing or unreadable."""
    try:
        with warnings.catch_warnings():
            # NumPy warns at text that is not a number and returns the values before it.
            warnings.simplefilter("error")
            pairs = np.fromstring(path.read_text("ascii"), np.int64, sep=" ").reshape(-1, 2)
    except (OSError, ValueError, DeprecationWarning):
        return None
    return (pairs[:, 0].copy(), pairs[:, 1].copy()) if len(pairs) else None

"""The SQLite file of a gallery: its tables, and transactions on them.

A file is untrusted: its tables, types, sizes and checksums are compared with what is written here
before anything is returned.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import lt
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zlib import crc32

import numpy as np

from data.sources.subject_names import normal
from recognition.gallery.contents import Floats, Gallery, GalleryInfo, is_file_lists, normal_names
from runtime.errors import InputError
from runtime.escaping import escaped
from runtime.files import atomic_path, locked, private_folder
from runtime.input_files import check_regular
from runtime.json_files import check_type, parse_json

SUFFIX = ".db"
# SQLite's application_id of our galleries, and the form of the tables below.
_APPLICATION, _FORM = 0x46434E47, 4
_TABLES = {
    # One row. `total` is the sum of the checksums of all rows, so that a row that is missing is noticed.
    "gallery": "id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL, reading TEXT NOT NULL, "
    "dimension INTEGER NOT NULL, count INTEGER NOT NULL, total INTEGER NOT NULL, checksum INTEGER NOT NULL",
    # `name_key` is the form in which names are compared; `sources` a JSON list of file names.
    "subjects": "id INTEGER PRIMARY KEY, name TEXT NOT NULL, name_key TEXT NOT NULL UNIQUE, "
    "norm REAL NOT NULL, sources TEXT NOT NULL, checksum INTEGER NOT NULL",
    # By the id of the subject; `vector` is little-endian float32. A table of its own, which `list` never
    # reads.
    "descriptors": "id INTEGER PRIMARY KEY, vector BLOB NOT NULL, checksum INTEGER NOT NULL",
}
_SCHEMA = {f"CREATE TABLE {name} ({columns})" for name, columns in _TABLES.items()} | {None}
# Two descriptors of 512 values do not fit a page of 4 KiB: half of the file would be unused.
_PAGE_BYTES = 32_768
_LARGEST_CELL = 16 << 20
_ROWS_AT_ONCE, _VECTORS_AT_ONCE = 10_000, 500
# A writer holds the lock for milliseconds, an import of a million subjects for a minute.
_BUSY_SECONDS = 120.0
_MOST_TOTAL = 1 << 62


class _DamagedError(Exception):
    """Says what in the file differs from what was written."""


# Ids, names, norms and sources of all subjects. Objects for each row would take as long as all else.
Columns = tuple[list[int], list[str], list[float], list[tuple[str, ...]]]


class Tables:
    """The tables of a gallery within one transaction.

    `_total` follows what is inserted and deleted, or counts what was read.
    """

    def __init__(self, connection: sqlite3.Connection, size: int) -> None:
        self._execute: Callable[..., sqlite3.Cursor] = connection.execute
        self._size = size
        found = set(self._execute("SELECT sql FROM sqlite_master LIMIT 9"))
        (application,), (form,) = (
            self._execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
        )
        if application != _APPLICATION or found != {(sql,) for sql in _SCHEMA}:
            raise _DamagedError("its tables are not those of a gallery")
        if form != _FORM:
            raise _DamagedError(f"it has form {form}, and this version reads form {_FORM}")
        self._stored_total, self._total = 0, 0
        # Without a fingerprint before any enrolment.
        self.info = GalleryInfo("", {}, 0, 0)
        if row := self._execute("SELECT * FROM gallery").fetchone():
            self.info = self._info_of(row)

    def _info_of(self, row: tuple[Any, ...]) -> GalleryInfo:
        _, fingerprint, reading, dimension, count, total, checksum = row
        if set(map(type, (fingerprint, reading))) != {str} or checksum != _settings_checksum(*row[1:-1]):
            raise _DamagedError("its settings differ from their checksum")
        try:
            record = parse_json(reading, "reading: expected an object")
            check_type(record, dict[str, str], "reading")
        except InputError as fault:
            raise _DamagedError(str(fault)) from None
        if not (isinstance(count, int) and isinstance(dimension, int) and isinstance(total, int)):
            raise _DamagedError("its settings are not numbers")
        if count < 0 or dimension < 0 or max(4 * dimension, 8) * count > self._size:
            raise _DamagedError(f"it cannot hold {count:,} descriptors of {dimension:,} values")
        self._stored_total = total
        return GalleryInfo(escaped(fingerprint), record, dimension, count)

    def set_info(self, info: GalleryInfo) -> None:
        """Write the settings and the sum of checksums after a change."""
        self.info = info
        total = (self._stored_total + self._total) % _MOST_TOTAL
        reading = json.dumps(dict(info.reading))
        values = info.fingerprint, reading, info.dimension, info.count, total
        self._execute(
            "REPLACE INTO gallery VALUES (1, ?, ?, ?, ?, ?, ?)", (*values, _settings_checksum(*values))
        )

    def check_total(self) -> None:
        """Compare all rows that were read with the sum of checksums."""
        if self._total % _MOST_TOTAL != self._stored_total:
            raise _DamagedError("rows are missing, or differ from their checksums")

    def subjects(self) -> Columns:
        """All subjects in the order of enrolment."""
        cursor = self._execute("SELECT * FROM subjects ORDER BY id")
        found: Columns = ([], [], [], [])
        length, last = 0, -1
        while rows := cursor.fetchmany(_ROWS_AT_ONCE):
            # By columns, which takes half the time of a loop over rows.
            ids, names, keys, norms, sources, checksums = zip(*rows, strict=True)
            if (
                [set(map(type, column)) for column in (names, norms, sources)] != [{str}, {float}, {str}]
                or tuple(map(_subject_checksum, ids, names, norms, sources)) != checksums
                or normal_names(names) != keys
                # A damaged tree may lead to the same page again and again.
                or not all(map(lt, (last, *ids), ids))
            ):
                raise _DamagedError(f"rows {ids[0]} to {ids[-1]} of the subjects differ from their checksums")
            last, all_names = ids[-1], "".join(names)
            length += len(all_names) + sum(map(len, sources))
            if length > self._size:
                raise _DamagedError("its names are longer than the file")
            found[0].extend(ids)
            found[1].extend(names if escaped(all_names) == all_names else map(escaped, names))
            found[2].extend(norms)
            found[3].extend(_parsed_sources(sources))
            self._total += sum(checksums)
        if len(found[0]) != self.info.count:
            raise _DamagedError(f"it holds {len(found[0]):,} subjects of {self.info.count:,}")
        return found

    def descriptors(self, numbers: Sequence[int]) -> Floats:
        """(N, D) in the order of the ids of `subjects`."""
        size, place = 4 * self.info.dimension, 0
        found = np.empty((len(numbers), self.info.dimension), "<f4")
        cursor = self._execute("SELECT * FROM descriptors ORDER BY id")
        while rows := cursor.fetchmany(_VECTORS_AT_ONCE):
            ids, vectors, checksums = zip(*rows, strict=True)
            end = place + len(rows)
            if (
                list(ids) != numbers[place:end]
                or set(map(type, vectors)) != {bytes}
                or set(map(len, vectors)) != {size}
                or tuple(map(crc32, vectors, ids)) != checksums
            ):
                raise _DamagedError(
                    f"rows {ids[0]} to {ids[-1]} of the descriptors differ from their checksums"
                )
            found[place:end] = np.frombuffer(b"".join(vectors), "<f4").reshape(len(rows), -1)
            self._total += sum(checksums)
            place = end
        if place != len(numbers):
            raise _DamagedError(f"it holds {place:,} descriptors of {len(numbers):,}")
        return found.astype(np.float32, copy=False)

    def number_of(self, name: str) -> int | None:
        """The id of an enrolled subject."""
        row = self._execute("SELECT id FROM subjects WHERE name_key = ?", (normal(escaped(name)),)).fetchone()
        return None if row is None else row[0]

    def _row(self, statement: str, number: int | None, *kinds: type) -> tuple[Any, ...]:
        """The row of a subject, with values of these types."""
        row = self._execute(statement, (number,)).fetchone()
        if row is None or tuple(map(type, row)) != kinds:
            raise _DamagedError(f"row {number} is missing, or has values of other types")
        return tuple(row)

    def insert(self, subjects: Gallery) -> None:
        """Add subjects behind all others."""
        first = (self._execute("SELECT max(id) FROM subjects").fetchone()[0] or 0) + 1
        if first >= _MOST_TOTAL:
            raise _DamagedError("its last id leaves no number for another subject")
        for number, name, norm, files, vector in zip(
            range(first, first + len(subjects)),
            map(escaped, subjects.names),
            subjects.norms.tolist(),
            subjects.files,
            subjects.descriptors.astype("<f4", copy=False),
            strict=True,
        ):
            sources, content = json.dumps(files), vector.tobytes()
            checksums = _subject_checksum(number, name, norm, sources), crc32(content, number)
            row = number, name, normal(name), norm, sources, checksums[0]
            self._execute("INSERT INTO subjects VALUES (?, ?, ?, ?, ?, ?)", row)
            self._execute("INSERT INTO descriptors VALUES (?, ?, ?)", (number, content, checksums[1]))
            self._total += sum(checksums)

    def delete(self, name: str) -> None:
        """Remove an enrolled subject."""
        number = self.number_of(name)
        for table in ("subjects", "descriptors"):
            self._total -= self._row(f"SELECT checksum FROM {table} WHERE id = ?", number, int)[0]
            self._execute(f"DELETE FROM {table} WHERE id = ?", (number,))

    def rename(self, number: int, name: str) -> None:
        """Change the name of a subject."""
        statement = "SELECT norm, sources, checksum FROM subjects WHERE id = ?"
        norm, sources, before = self._row(statement, number, float, str, int)
        checksum = _subject_checksum(number, name, norm, sources)
        self._execute(
            "UPDATE subjects SET name = ?, name_key = ?, checksum = ? WHERE id = ?",
            (name, normal(name), checksum, number),
        )
        self._total += checksum - before


def _subject_checksum(number: int, name: str, norm: float, sources: str) -> int:
    return crc32(f"{number}\0{name}\0{norm}\0{sources}".encode())


def _settings_checksum(*values: object) -> int:
    return crc32("\0".join(map(str, values)).encode())


def _parsed_sources(texts: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Parse the JSON lists of file names of several rows together, which is faster."""
    try:
        files = parse_json(f"[{','.join(texts)}]", "sources: expected lists", num_lists=len(texts) + 1)
    except InputError as fault:
        raise _DamagedError(str(fault)) from None
    if len(files) != len(texts) or not is_file_lists(files):
        raise _DamagedError("its sources are not lists of file names")
    return map(tuple, files)


# ------------------------------------------------------------------------------------------- the file


@contextmanager
def transaction(path: Path, *, write: bool = False) -> Iterator[Tables]:
    """Open a gallery for one transaction, which is committed when the block ends without an exception."""
    _check_file(path)
    connection = None
    try:
        connection = _connected(path, write=write)
        yield Tables(connection, path.stat().st_size + _size_of_log(path))
        connection.execute("COMMIT")
    except (sqlite3.Error, _DamagedError, UnicodeDecodeError) as fault:
        raise _fault_of(path, fault) from None
    finally:
        if connection is not None:
            # Without a commit everything is rolled back.
            connection.close()


def _check_file(path: Path) -> None:
    if not path.exists():
        raise InputError(f"{path}: no such gallery. Create it with 'inference.py enroll'.")
    check_regular(path, "a gallery")
    with path.open("rb") as stream:
        start = stream.read(16)
    if start.startswith(b"PK"):
        raise InputError(
            f"{path}: is an exported gallery, or one of an older version. Import it: python inference.py "
            f"import --gallery {shlex.quote(str(path.with_suffix(SUFFIX)))} {shlex.quote(str(path))}"
        )
    if start != b"SQLite format 3\0":
        raise InputError(f"{path}: is not a gallery. Expected a file that 'inference.py enroll' wrote.")


def _connected(path: Path, *, write: bool) -> sqlite3.Connection:
    """A connection that has begun its transaction."""
    try:
        return _begun(path, "mode=rw", write=write)
    except sqlite3.OperationalError as fault:
        # Of a folder that cannot be written to, where SQLite cannot make its file of shared memory.
        if write or not any(text in str(fault) for text in ("readonly", "unable to open")):
            raise
        if _size_of_log(path):
            raise InputError(
                f"{path}: its last changes are in {path.name}-wal, which cannot be read in a folder that is "
                "read-only. Copy both files to a folder that can be written to."
            ) from None
        return _begun(path, "mode=ro&immutable=1", write=write)


def _begun(path: Path, mode: str, *, write: bool) -> sqlite3.Connection:
    # Percent-encoded bytes, as names of files need not be UTF-8.
    uri = f"file:{quote(os.fsencode(path.absolute()))}?{mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        if sys.version_info >= (3, 11):
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST_CELL)
        for setting in ("trusted_schema=OFF", "cell_size_check=ON", "synchronous=FULL", "secure_delete=ON"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        # A transaction for reading begins with the first statement that reads.
        connection.execute("SELECT count(*) FROM (SELECT 1 FROM sqlite_master LIMIT 1)").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def check_suffix(path: Path) -> None:
    """Raise InputError unless that is a file, or the name of a new gallery."""
    if path.suffix != SUFFIX and not path.exists():
        raise InputError(
            f"{path}: the name of a gallery ends in {SUFFIX}. Use for example {path.with_suffix(SUFFIX)}."
        )


def create(path: Path) -> None:
    """Make an empty gallery unless there is a file; of several processes that do so, one makes it."""
    if path.exists():
        return
    check_suffix(path)
    private_folder(path.parent)
    lock = locked(path.parent, wait=True)
    try:
        if path.exists():
            return
        # Left by a killed process whose gallery was removed: SQLite would replay it into the new one.
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        with atomic_path(path) as temporary:
            _write_empty(temporary)
    finally:
        if lock is not None:
            os.close(lock)


def _write_empty(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    statements = (
        # Without a journal there is no file beside it that a killed process would leave.
        "PRAGMA journal_mode=OFF",
        f"PRAGMA page_size={_PAGE_BYTES}",
        f"PRAGMA application_id={_APPLICATION}",
        f"PRAGMA user_version={_FORM}",
        *sorted(filter(None, _SCHEMA)),
    )
    for statement in statements:
        connection.execute(statement)
    connection.close()
    # The header's versions 2 and 2 mean a write-ahead log; SQLite's pragma would make one now.
    with path.open("r+b") as stream:
        stream.seek(18)
        stream.write(b"\2\2")


def _size_of_log(path: Path) -> int:
    """Bytes of SQLite's write-ahead log, whose content belongs to the gallery."""
    with suppress(FileNotFoundError):
        return path.with_name(f"{path.name}-wal").stat().st_size
    return 0


def _fault_of(path: Path, fault: Exception) -> Exception:
    """The exception for the user, by SQLite's text: Python 3.10 does not give its error codes."""
    # SQLite's message may quote bytes of a damaged schema, which Python does not decode.
    text = str(fault) if isinstance(fault, sqlite3.Error) else ""
    if "locked" in text:
        return InputError(
            f"{path}: another process has been writing it for {_BUSY_SECONDS:.0f} seconds. Try again later."
        )
    if "too big" in text:
        return InputError(
            f"{path}: a subject takes more than {_LARGEST_CELL >> 20} MiB, which a gallery does not hold. "
            "Enroll fewer photos of a subject, or restore the gallery from a copy."
        )
    if "full" in text:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    if "readonly" in text or "unable to open" in text:
        return OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    if "I/O" in text:
        return InputError(
            f"{path}: cannot be read or written ({text}): the disk has an error, or the file would be larger "
            "than a limit of the user allows (ulimit -f). Check the disk, or raise the limit."
        )
    return InputError(
        f"{path}: is damaged or not a gallery ({fault}). Restore it from a copy, or enroll into another file."
    )

"""Galleries as .npz and .csv files: export and import.

Galleries were .npz files once; an exported one has that form, so that older versions read it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.sources.subject_names import normal
from recognition.gallery.contents import Gallery, is_file_lists
from recognition.gallery.database import create, transaction
from recognition.gallery.store import add, open_gallery
from runtime.array_files import read_npz, write_npz
from runtime.errors import InputError
from runtime.escaping import csv_text, escaped, from_csv_cell
from runtime.files import atomic_path
from runtime.input_files import check_regular
from runtime.json_files import check_type, parse_json
from runtime.text import listed

NPZ, CSV = ".npz", ".csv"
_SCHEMA = 3
_MEMBERS = ("schema", "names", "descriptors", "norms", "files", "fingerprint", "reading")
_COLUMNS = ("name", "norm", "files", "fingerprint", "reading")
_MOST_COLUMNS = 100_000
# Characters; more than the database holds.
_LARGEST_CELL = 32 << 20


def import_galleries(sources: Sequence[Path], path: Path, *, replace: bool = False) -> int:
    """Add all subjects of exported files, or of galleries of older versions, in one transaction.

    Returns:
        How many subjects the gallery holds then.

    Raises:
        InputError: as `read_gallery` and `recognition.gallery.store.enroll`; nothing was added then.
    """
    added = [read_gallery(source) for source in sources]
    _check_together(sources, added, replace=replace)
    create(path)
    with transaction(path, write=True) as tables:
        for source, subjects in zip(sources, added, strict=True):
            try:
                add(tables, subjects, path, replace=replace)
            except InputError as fault:  # noqa: PERF203 - a few files
                raise InputError(f"{source}: cannot be imported into {fault}") from None
        return tables.info.count


def _check_together(sources: Sequence[Path], added: Sequence[Gallery], *, replace: bool) -> None:
    """Raise InputError unless the files are of one model and, without `replace`, of different subjects."""
    source_of: dict[str, Path] = {}
    for source, subjects in zip(sources, added, strict=True):
        subjects.info.check_model(source, added[0].fingerprint)
        subjects.info.check_reading(source, added[0].reading)
        keys = {normal(name): name for name in subjects.names}
        if twice := [name for key, name in keys.items() if key in source_of and not replace]:
            raise InputError(
                f"{source}: {listed(twice)} also in {source_of[normal(twice[0])]}. Nothing was imported. "
                "Rename or remove them in one of the galleries and export it again, or add --replace: "
                "the last file counts."
            )
        source_of |= dict.fromkeys(keys, source)


def export_gallery(path: Path, out: Path) -> int:
    """Write a gallery into an .npz or .csv file, and return how many subjects it holds.

    Raises:
        InputError: another suffix, an empty gallery, or as `recognition.gallery.store.open_gallery`.
    """
    _check_suffix(out)
    gallery = open_gallery(path)
    if not len(gallery):
        raise InputError(f"{path}: no subject is enrolled, so there is nothing to export.")
    with atomic_path(out) as temporary:
        if out.suffix == NPZ:
            write_npz(temporary, members_of(gallery))
        else:
            with temporary.open("w", encoding="utf-8", newline="") as stream:
                for row in _rows_of(gallery):
                    stream.write(csv_text([row]))
    return len(gallery)


def read_gallery(path: Path) -> Gallery:
    """Read an exported .npz or .csv file, or a gallery of an older version.

    Raises:
        InputError: no such file, another suffix, or one that is damaged.
    """
    _check_suffix(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file. Expected a gallery of 'inference.py export'.")
    try:
        return _read_npz(path) if path.suffix == NPZ else _read_csv(path)
    except InputError as fault:
        text = str(fault)
        raise InputError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def _check_suffix(path: Path) -> None:
    if path.suffix not in (NPZ, CSV):
        raise InputError(f"{path}: expected a name that ends in {NPZ} or {CSV}.")


def members_of(gallery: Gallery) -> dict[str, NDArray[Any]]:
    """The arrays of an exported .npz."""
    return {
        "schema": np.array(_SCHEMA),
        "names": np.array(gallery.names, dtype=np.str_),
        "descriptors": gallery.descriptors,
        "norms": gallery.norms,
        "files": np.frombuffer(json.dumps(gallery.files).encode(), np.uint8),
        "fingerprint": np.array(gallery.fingerprint),
        "reading": np.array(json.dumps(dict(gallery.reading))),
    }


def _read_npz(path: Path) -> Gallery:
    stored, _ = read_npz(path, "a gallery", needed=["schema"])
    if not np.array_equal(stored["schema"], _SCHEMA):
        raise InputError(
            f"is a gallery of form {str(stored['schema'])[:20]}, and form {_SCHEMA} is read. If an earlier "
            "version wrote it, enroll its subjects again."
        )
    values, has_checksum = read_npz(path, "a gallery", needed=_MEMBERS, optional=())
    if not has_checksum:
        raise InputError("is damaged: its checksum is missing. Restore it from a copy, or enroll anew.")
    text, reading = values["files"], values["reading"].tolist()
    if values["names"].dtype.kind != "U" or text.dtype != np.uint8 or not isinstance(reading, str):
        raise InputError("expected names and reading as texts, and files as bytes of a text.")
    descriptors = values["descriptors"]
    return _gallery_of(
        values["names"].tolist(),
        descriptors,
        values["norms"],
        parse_json(text.tobytes(), "files: expected a list", num_lists=len(np.atleast_1d(descriptors))),
        str(values["fingerprint"]),
        parse_json(reading, "reading: expected an object"),
    )


def _rows_of(gallery: Gallery) -> Iterator[Sequence[str]]:
    yield [*_COLUMNS, *(f"d{place}" for place in range(gallery.descriptors.shape[1]))]
    reading = json.dumps(dict(gallery.reading))
    for name, norm, files, vector in zip(
        gallery.names, gallery.norms.tolist(), gallery.files, gallery.descriptors.tolist(), strict=True
    ):
        # Nine digits tell all float32 numbers apart.
        numbers = [f"{value:.9g}" for value in (norm, *vector)]
        yield [name, numbers[0], json.dumps(files), gallery.fingerprint, reading, *numbers[1:]]


def _read_csv(path: Path) -> Gallery:
    check_regular(path, "an exported gallery")
    names, norms, files, vectors = [], [], [], []
    made: set[tuple[str, str]] = set()
    # Holds for the whole process; the file names of a large set are one cell.
    limit_before = csv.field_size_limit(_LARGEST_CELL)
    try:
        # Spreadsheets write a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream)
            head = next(rows, [])
            _check_columns(head)
            for row in filter(None, rows):
                if len(row) != len(head):
                    raise InputError(f"line {rows.line_num}: has {len(row)} cells, expected {len(head)}.")
                name, norm, sources, *made_by = map(from_csv_cell, row[: len(_COLUMNS)])
                names.append(name)
                norms.append(float(norm))
                files.append(parse_json(sources, f"line {rows.line_num}: files: expected a list"))
                vectors.append(np.array(row[len(_COLUMNS) :], np.float32))
                made.add((made_by[0], made_by[1]))
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text. Save it as CSV UTF-8, or export the gallery again.") from None
    except (csv.Error, ValueError) as fault:
        raise InputError(f"line {rows.line_num}: {fault}. Export the gallery again.") from None
    finally:
        csv.field_size_limit(limit_before)
    if not made:
        raise InputError("holds no subject.")
    if len(made) > 1:
        raise InputError(
            "expected one model and one preprocessing of all subjects, but the columns fingerprint and "
            f"reading have {len(made)} different values."
        )
    ((fingerprint, reading),) = made
    record = parse_json(reading, "reading: expected an object")
    return _gallery_of(names, np.stack(vectors), np.array(norms, np.float32), files, fingerprint, record)


def _check_columns(head: Sequence[str]) -> None:
    if tuple(head[: len(_COLUMNS)]) == _COLUMNS and 0 < len(head) - len(_COLUMNS) < _MOST_COLUMNS:
        return
    for mark, name in ((";", "';'"), ("\t", "tabs")):
        if head and head[0].startswith(mark.join(_COLUMNS)):
            raise InputError(
                f"its columns are separated by {name}. Save it with commas between columns and with decimal "
                "points, or export the gallery again."
            )
    raise InputError(
        f"line 1: expected the columns {', '.join(_COLUMNS)}, d0, d1, ... of 'inference.py export'."
    )


def _gallery_of(
    names: object,
    descriptors: NDArray[np.float32],
    norms: NDArray[np.float32],
    files: Any,
    fingerprint: str,
    reading: Mapping[str, str],
) -> Gallery:
    if not is_file_lists(files):
        raise InputError("files: expected a list of file names for each name.")
    if not isinstance(names, list):
        raise InputError("names: expected a list.")
    check_type(reading, dict[str, str], "reading")
    return Gallery(
        tuple(map(escaped, names)),
        descriptors,
        norms,
        tuple(map(tuple, files)),
        escaped(fingerprint),
        reading,
    )

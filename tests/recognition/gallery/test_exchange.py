"""Exported galleries, and galleries of older versions."""

from __future__ import annotations

import csv
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recognition.gallery.contents import Gallery
from recognition.gallery.exchange import (
    export_gallery,
    import_galleries,
    members_of,
    read_gallery,
)
from recognition.gallery.store import enroll, open_gallery, remove
from runtime.array_files import write_npz
from runtime.errors import InputError
from tests.recognition.gallery.test_store import D, assert_same, subjects

HOSTILE_NAMES = ("=cmd()", "'=a", "-3", "a,b", 'a"b', "Çağla", " x ")


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_an_exported_gallery_is_imported_as_it_was(tmp_path: Path, suffix: str) -> None:
    path, out, again = tmp_path / "g.db", tmp_path / f"out{suffix}", tmp_path / "again.db"
    gallery = subjects(*HOSTILE_NAMES, size=64)
    enroll(path, gallery)
    export_gallery(path, out)
    assert out.stat().st_mode & 0o777 == 0o600
    assert import_galleries([out], again) == len(gallery)
    assert_same(open_gallery(again), gallery)
    with pytest.raises(InputError, match="already enrolled"):
        import_galleries([out], again)
    assert import_galleries([out], again, replace=True) == len(gallery)


def test_a_csv_has_one_line_per_subject(tmp_path: Path) -> None:
    path, out = tmp_path / "g.db", tmp_path / "g.csv"
    enroll(path, subjects("Ann"))
    export_gallery(path, out)
    head, ann = out.read_text().splitlines()
    assert head.split(",")[:2] + head.split(",")[-1:] == ["name", "norm", f"d{D - 1}"]
    assert ann.startswith("Ann,")


def test_a_subject_with_very_many_files_is_imported(tmp_path: Path) -> None:
    path, again = tmp_path / "g.db", tmp_path / "again.db"
    ann = subjects("Ann")
    files = tuple(f"Ann/{number:020}.jpg" for number in range(9000))
    enroll(path, Gallery(ann.names, ann.descriptors, ann.norms, (files,), ann.fingerprint, ann.reading))
    before = csv.field_size_limit()
    for suffix in (".npz", ".csv"):
        export_gallery(path, tmp_path / f"out{suffix}")
        import_galleries([tmp_path / f"out{suffix}"], again, replace=True)
        assert_same(open_gallery(again), open_gallery(path))
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("change", ["bom", "crlf", "cr", "last line"])
def test_a_csv_that_a_spreadsheet_saved_is_imported(tmp_path: Path, change: str) -> None:
    path, out = tmp_path / "g.db", tmp_path / "g.csv"
    enroll(path, subjects("Ann", "Çağla"))
    export_gallery(path, out)
    text = out.read_bytes()
    changed = {
        "bom": b"\xef\xbb\xbf" + text,
        "crlf": text.replace(b"\n", b"\r\n"),
        "cr": text.replace(b"\n", b"\r"),
        "last line": text + b"\r\n",
    }
    out.write_bytes(changed[change])
    assert_same(read_gallery(out), subjects("Ann", "Çağla"))


@pytest.mark.parametrize(
    ("mark", "encoding", "named"), [(";", "utf-8", "';'"), ("\t", "utf-8", "tab"), (",", "utf-16", "UTF-8")]
)
def test_other_forms_of_csv_are_named(tmp_path: Path, mark: str, encoding: str, named: str) -> None:
    path, out = tmp_path / "g.db", tmp_path / "g.csv"
    enroll(path, subjects("Ann"))
    export_gallery(path, out)
    rows = csv.reader(out.read_text().splitlines())
    with out.open("w", encoding=encoding, newline="") as stream:
        csv.writer(stream, delimiter=mark).writerows(rows)
    with pytest.raises(InputError, match=rf"g\.csv.*{named}"):
        read_gallery(out)


@pytest.mark.parametrize("place", [1, 5])
def test_the_line_of_a_number_that_is_none_is_named(tmp_path: Path, place: int) -> None:
    path, out = tmp_path / "g.db", tmp_path / "g.csv"
    enroll(path, subjects("Ann", "Bob"))
    export_gallery(path, out)
    rows = [*csv.reader(out.read_text().splitlines())]
    rows[2][place] = "much"
    with out.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    with pytest.raises(InputError, match=r"g\.csv: line 3.*much"):
        read_gallery(out)


def test_several_files_are_imported_in_one_transaction(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    files = []
    for names, fingerprint in (("Ann", "Bob"), "f" * 64), (("Carl",), "f" * 64), (("Dan",), "e" * 64):
        enroll(tmp_path / f"{names[0]}.db", subjects(*names, fingerprint=fingerprint))
        files.append(tmp_path / f"{names[0]}{'.npz' if names[0] == 'Ann' else '.csv'}")
        export_gallery(tmp_path / f"{names[0]}.db", files[-1])
    enroll(path, subjects("Zoe"))
    for wrong, named in ((files[2], "Dan.csv"), (files[0], "Ann.npz"), (tmp_path / "no.csv", "no.csv")):
        with pytest.raises(InputError, match=named):
            import_galleries([*files[:2], wrong], path)
        assert_same(open_gallery(path), subjects("Zoe"))
    new = tmp_path / "new.db"
    for wrong, named in ((files[2], r"Dan\.csv"), (files[0], r"Ann\.npz: Ann, Bob .*Ann\.npz")):
        with pytest.raises(InputError, match=named):
            import_galleries([*files[:2], wrong], new)
        assert not new.exists()
    assert import_galleries(files[:2], path) == 4
    assert_same(open_gallery(path), subjects("Zoe", "Ann", "Bob", "Carl"))


def test_an_empty_gallery_is_not_exported(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    enroll(path, subjects("Ann"))
    remove(path, ["Ann"])
    for suffix in (".npz", ".csv"):
        with pytest.raises(InputError, match=r"g\.db"):
            export_gallery(path, tmp_path / f"out{suffix}")


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_a_file_without_a_fingerprint_is_refused(tmp_path: Path, suffix: str) -> None:
    path, out = tmp_path / "g.db", tmp_path / f"out{suffix}"
    enroll(path, subjects("Ann"))
    export_gallery(path, out)
    if suffix == ".csv":
        out.write_text(out.read_text().replace("f" * 64, ""))
    else:
        write_npz(out, {**members_of(subjects("Ann")), "fingerprint": np.array("")})
    with pytest.raises(InputError, match=rf"out\{suffix}.*fingerprint"):
        import_galleries([out], tmp_path / "other.db")


def test_an_older_gallery_has_to_be_imported(tmp_path: Path) -> None:
    old = tmp_path / "g.npz"
    write_npz(old, members_of(subjects("Ann", "Bob")))
    with pytest.raises(InputError, match=r"import --gallery .*g\.db .*g\.npz"):
        open_gallery(old)
    import_galleries([old], tmp_path / "g.db")
    assert_same(open_gallery(tmp_path / "g.db"), subjects("Ann", "Bob"))


def test_a_log_whose_gallery_was_removed_is_not_replayed(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    enroll(path, subjects("Ann"))
    log = path.with_name("g.db-wal")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("UPDATE subjects SET name = 'Eve'")
    connection.commit()
    left = log.read_bytes()
    connection.close()
    assert left
    path.unlink()
    log.write_bytes(left)
    enroll(path, subjects("Bob"))
    assert open_gallery(path).names == ("Bob",)


def test_an_npz_without_its_checksum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    np.savez(path, **members_of(subjects("Ann")))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"g\.npz.*checksum"):
        read_gallery(path)


@pytest.mark.parametrize(
    "members",
    [
        {"schema": np.array([1, 2])},
        {"schema": np.array(2)},
        {"schema": np.array("x")},
        {"schema": np.array(np.nan)},
        {"names": np.array([1])},
        {"names": np.array("Ann")},
        {"names": np.array([b"Ann"])},
        {"descriptors": np.zeros(3, np.float32)},
        {"descriptors": np.array(1.0, np.float32)},
        {"descriptors": None},
        {"files": np.frombuffer(b"[" * 50_000, np.uint8)},
        {"files": np.frombuffer(b'[{"a": 1}]', np.uint8)},
        {"files": np.frombuffer(b'[["a", 1]]', np.uint8)},
        {"files": np.array(["a"])},
        {"reading": np.array("[]")},
        {"reading": np.array('{"a": 1e999}')},
        {"reading": np.array(3)},
        {"more": np.array(3)},
        {"schema": np.array(1), "files": None, "reading": None},
    ],
    ids=str,
)
def test_invalid_members_are_refused(tmp_path: Path, members: dict[str, NDArray[Any] | None]) -> None:
    path, arrays = tmp_path / "g.npz", {**members_of(subjects("Ann")), **members}
    write_npz(path, {name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(InputError, match=r"g\.npz"):
        read_gallery(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name,norm", "norm,name"),
        (",d7", ""),
        (",d7", ",d7,d8"),
        ("Ann,", "Ann,x"),
        ("Ann,", "Bob,"),
        (f"{'f' * 64}", "eeee"),
        ('[""Ann/1.jpg""', "[3"),
        ('[""Ann/1.jpg""', "["),
        ('"{""alignment""', '"{"'),
        ("Bob,", "\udcff,"),
        ("f" * 64, ""),
    ],
    ids=lambda text: str(text)[:12],
)
def test_invalid_csv_lines_are_refused(tmp_path: Path, old: str, new: str) -> None:
    path, out = tmp_path / "g.db", tmp_path / "g.csv"
    enroll(path, subjects("Ann", "Bob"))
    export_gallery(path, out)
    text = out.read_text()
    assert old in text
    out.write_bytes(text.replace(old, new, 1).encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"g\.csv"):
        read_gallery(out)


@pytest.mark.parametrize("content", [b"", b"name\n", b"text", b"\xff\xfe"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    for suffix in (".npz", ".csv", ".txt"):
        path = tmp_path / f"g{suffix}"
        with pytest.raises(InputError, match=rf"g\{suffix}"):
            read_gallery(path)
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"g\{suffix}"):
            read_gallery(path)


def test_a_csv_without_subjects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.csv"
    path.write_text("name,norm,files,fingerprint,reading,d0\n")
    with pytest.raises(InputError, match=r"g\.csv"):
        read_gallery(path)

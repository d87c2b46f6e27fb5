"""Galleries on disk: contents, concurrent processes, kills, full disks, damaged and hostile files."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from recognition.gallery import database
from recognition.gallery.contents import Gallery, Subject
from recognition.gallery.store import (
    enroll,
    enrolled_names,
    gallery_info,
    list_subjects,
    open_gallery,
    remove,
    rename,
)
from runtime.errors import InputError

D = 8
FORK = multiprocessing.get_context("fork")


def subjects(*names: str, fingerprint: str = "f" * 64, size: int = D) -> Gallery:
    """One descriptor a name, which is drawn from the name."""
    rows = [np.random.default_rng(list(name.encode())).standard_normal(size) for name in names]
    vectors = np.stack(rows).astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1)
    files = tuple((f"{name}/1.jpg", f"{name}/ü 2\udcff.jpg") for name in names)
    return Gallery(names, vectors / lengths[:, None], lengths, files, fingerprint, {"alignment": "as stored"})


def assert_same(found: Gallery, wanted: Gallery) -> None:
    assert found.names == wanted.names
    np.testing.assert_array_equal(found.descriptors, wanted.descriptors)
    np.testing.assert_array_equal(found.norms, wanted.norms)
    assert found.files == wanted.files
    assert found.fingerprint == wanted.fingerprint
    assert found.reading == wanted.reading


# ------------------------------------------------------------------------------------------- contents


def test_enrolled_subjects_are_found_and_removed_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / "new" / "g.db"
    assert enroll(path, subjects("Ann", "Bob")) == 2
    assert enroll(path, subjects("Çağla")) == 3
    assert_same(open_gallery(path), subjects("Ann", "Bob", "Çağla"))
    assert enrolled_names(path, ["Zoe", "Çağla", "Ann"]) == ["Ann", "Çağla"]
    assert remove(path, ["Bob"]) == 2
    assert_same(open_gallery(path), subjects("Ann", "Çağla"))
    assert remove(path, ["Ann", "Çağla"]) == 0
    assert len(open_gallery(path)) == 0
    enroll(path, subjects("Dan", size=5))
    assert_same(open_gallery(path), subjects("Dan", size=5))


def test_an_emptied_gallery_takes_another_model(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    enroll(path, subjects("Ann"))
    remove(path, ["Ann"])
    gallery_info(path).check_model(path, "e" * 64)
    enroll(path, subjects("Bob", fingerprint="e" * 64))
    assert_same(open_gallery(path), subjects("Bob", fingerprint="e" * 64))
    with pytest.raises(InputError, match=r"g\.db.* eeeeeeeeeeee.* ffffffffffff"):
        enroll(path, subjects("Carl"))


def test_list_reads_no_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    gallery = subjects("Ann", "Bob")
    enroll(path, gallery)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE descriptors SET vector = x'00'")
    info, found = list_subjects(path)
    assert found == [Subject(*row) for row in zip(gallery.names, gallery.norms, gallery.files, strict=True)]
    assert info == gallery_info(path) == gallery.info
    assert (info.count, info.dimension) == (2, D)
    with pytest.raises(InputError, match="damaged"):
        open_gallery(path)


def test_enrolled_names_are_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    enroll(path, subjects("Ann", "Bob"))
    newer = subjects("Ann")
    newer = Gallery(newer.names, -newer.descriptors, newer.norms, newer.files, newer.fingerprint)
    with pytest.raises(InputError, match="'Ann'"):
        enroll(path, newer)
    assert_same(open_gallery(path), subjects("Ann", "Bob"))
    assert enroll(path, newer, replace=True) == 2
    after = open_gallery(path)
    assert after.names == ("Bob", "Ann")
    np.testing.assert_array_equal(after.descriptors[1], newer.descriptors[0])
    # How faces were read is not known of all subjects any more.
    assert after.reading == {}


def test_rename_keeps_everything_but_the_name(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    enroll(path, subjects("Ann", "Bob"))
    rename(path, "Ann", "Zoë")
    found, wanted = open_gallery(path), subjects("Ann", "Bob")
    assert found.names == ("Zoë", "Bob")
    np.testing.assert_array_equal(found.descriptors, wanted.descriptors)
    assert found.files == wanted.files
    for old, new, named in (("Ann", "Carl", "Ann"), ("Zoë", "Bob", "Bob"), ("Bob", "", "empty")):
        with pytest.raises(InputError, match=named):
            rename(path, old, new)
    # The same name in another normal form.
    rename(path, "Zoë", unicodedata.normalize("NFD", "Zoë"))
    assert open_gallery(path).names == (unicodedata.normalize("NFD", "Zoë"), "Bob")


def test_incompatible_subjects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    enroll(path, subjects("Ann"))
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"ffffffffffff.* eeeeeeeeeeee"):
        enroll(path, subjects("Bob", fingerprint="e" * 64))
    with pytest.raises(InputError, match=r"8 values.* 4"):
        enroll(path, subjects("Bob", size=4))
    with pytest.raises(InputError, match="'Carl', 'Dan'"):
        remove(path, ["Carl", "Ann", "Dan"])
    with pytest.raises(InputError, match="abc"):
        gallery_info(path).check_model(path, "abc")
    with pytest.raises(InputError, match=r"\.db"):
        enroll(tmp_path / "g.bin", subjects("Ann"))
    for work in (open_gallery, lambda path: remove(path, ["Ann"])):
        with pytest.raises(InputError, match=r"none\.db"):
            work(tmp_path / "no_folder" / "none.db")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["g.db"]


def test_descriptors_that_cannot_be_searched_are_refused() -> None:
    good = subjects("Ann", "Bob")
    with pytest.raises(InputError, match="'Bob'"):
        Gallery(good.names, good.descriptors * np.float32([[1], [np.nan]]), good.norms, good.files, "f")
    with pytest.raises(InputError, match="float32"):
        Gallery(good.names, good.descriptors.astype(np.float64), good.norms, good.files, "f")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="norm"):
        Gallery(good.names, good.descriptors, good.norms * np.float32(np.inf), good.files, "f")
    with pytest.raises(InputError, match="'Ann'"):
        Gallery(("Ann", "Ann"), good.descriptors, good.norms, good.files, "f")
    with pytest.raises(InputError, match="fingerprint"):
        Gallery(good.names, good.descriptors, good.norms, good.files, "")
    with pytest.raises(InputError, match="empty"):
        Gallery(("Ann", ""), good.descriptors, good.norms, good.files, "f")


def test_unicode_forms_of_a_name_are_one_subject(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "José") for form in ("NFC", "NFD"))
    path = tmp_path / "g.db"
    enroll(path, subjects(decomposed, "Bob"))
    with pytest.raises(InputError, match="already enrolled"):
        enroll(path, subjects(composed))
    enroll(path, subjects(composed), replace=True)
    assert open_gallery(path).names == ("Bob", composed)
    with pytest.raises(InputError, match="more than once"):
        subjects(composed, decomposed)
    with pytest.raises(InputError, match="'bob'"):
        remove(path, ["bob"])
    remove(path, [decomposed])
    assert open_gallery(path).names == ("Bob",)


@pytest.mark.parametrize("name", ["a b?mode=ro#x%20.db", "ü\udcff.db"])
def test_any_file_name_is_opened(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    enroll(path, subjects("Ann"))
    assert os.listdir(tmp_path) == [name]
    assert_same(open_gallery(path), subjects("Ann"))


# --------------------------------------------------------------------------------------------- writing


def test_a_change_writes_few_pages_whatever_the_size(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    enroll(path, subjects(*(f"old{number}" for number in range(9000)), size=64))
    pages = path.read_bytes()
    assert len(pages) > 60 * database._PAGE_BYTES
    enroll(path, subjects("new", size=64))
    rename(path, "new", "newer")
    remove(path, ["newer"])
    after = path.read_bytes()
    places = range(0, max(len(pages), len(after)), database._PAGE_BYTES)
    written = [
        at for at in places if pages[at : at + database._PAGE_BYTES] != after[at : at + database._PAGE_BYTES]
    ]
    assert len(written) < 10


def test_descriptors_of_removed_subjects_are_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    gallery = subjects(*(f"s{number}" for number in range(20)), size=64)
    enroll(path, gallery)
    assert gallery.descriptors[7].tobytes() in path.read_bytes()
    remove(path, ["s7"])
    assert gallery.descriptors[7].tobytes() not in path.read_bytes()


def test_files_are_private(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    before = os.umask(0)
    try:
        enroll(path, subjects("Ann"))
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE gallery SET count = count")
            connection.commit()
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
        connection.close()
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("g.db", "g.db-wal", "g.db-shm"), 0o600)


def _enroll_many(path: Path, writer: int, count: int) -> None:
    for number in range(count):
        enroll(path, subjects(f"{writer}-{number}"))


def test_concurrent_writers_lose_no_subject_and_readers_see_whole_galleries(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    writers = [FORK.Process(target=_enroll_many, args=(path, number, 12)) for number in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            found = open_gallery(path)
            if found.names:
                assert_same(found, subjects(*found.names))
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    found = open_gallery(path)
    assert sorted(found.names) == sorted(f"{writer}-{number}" for writer in range(4) for number in range(12))
    assert_same(found, subjects(*found.names))


def test_a_lock_that_is_never_released_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "g.db"
    enroll(path, subjects("Ann"))
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(InputError, match=r"g\.db: another process"):
        enroll(path, subjects("Bob"))
    assert open_gallery(path).names == ("Ann",)
    other.close()
    enroll(path, subjects("Bob"))


def _write_until_killed(path: Path, run: int, done: Path) -> None:
    for number in range(100_000):
        enroll(path, subjects(f"{run}-{number}"))
        if number % 3 == 2:
            remove(path, [f"{run}-{number - 1}"])
        with done.open("a") as stream:
            stream.write(f"{number}\n")


def test_a_kill_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    """What a writer has reported as done is there afterwards, and nothing is half done."""
    path, done = tmp_path / "g" / "g.db", tmp_path / "done"
    old = [f"old{number}" for number in range(500)]
    enroll(path, subjects(*old))
    for run in range(8):
        done.unlink(missing_ok=True)
        writer = FORK.Process(target=_write_until_killed, args=(path, run, done))
        writer.start()
        while not done.exists() or "\n" not in done.read_text():
            time.sleep(0.001)
        time.sleep(0.007 * run)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        last = done.read_text().count("\n") - 1
        found = open_gallery(path)
        assert_same(found, subjects(*found.names))
        assert found.names[:500] == tuple(old)
        mine = {int(name.split("-")[1]) for name in found.names if name.startswith(f"{run}-")}
        removed = {number - 1 for number in range(2, last + 1, 3)}
        # What was begun after the last report may be done too.
        begun = {number - 1 for number in range(2, last + 3, 3)}
        assert mine >= set(range(last + 1)) - begun
        assert mine <= set(range(last + 3)) - removed
    enroll(path, subjects("last"))
    assert os.listdir(path.parent) == ["g.db"]


def test_a_kill_during_creation_leaves_no_gallery_or_a_whole_one(tmp_path: Path) -> None:
    for run in range(12):
        path = tmp_path / f"g{run}.db"
        writer = FORK.Process(target=enroll, args=(path, subjects("Ann")))
        writer.start()
        time.sleep(0.003 * run)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        if path.exists():
            assert open_gallery(path).names in ((), ("Ann",))
        enroll(path, subjects("Ann"), replace=True)
        assert open_gallery(path).names == ("Ann",)
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        path.unlink()


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "g.db"
    enroll(path, subjects("Ann", "Bob"))
    begun = database._begun

    def on_full_disk(*args: object, **options: object) -> sqlite3.Connection:
        connection = begun(*args, **options)  # type: ignore[arg-type]
        connection.execute("PRAGMA max_page_count = 6")
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(database, "_begun", on_full_disk)
        with pytest.raises(OSError, match="No space") as fault:
            enroll(path, subjects(*(f"p{number}" for number in range(9000))))
    assert fault.value.filename == str(path)
    assert_same(open_gallery(path), subjects("Ann", "Bob"))


def _enroll_within(path: Path, limit: int, said: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        enroll(path, subjects(*(f"p{number}" for number in range(9000))))
    except (InputError, OSError) as fault:
        said.write_text(str(fault))


def test_a_limit_on_file_sizes_changes_nothing(tmp_path: Path) -> None:
    path, said = tmp_path / "g.db", tmp_path / "said"
    enroll(path, subjects("Ann", "Bob"))
    child = FORK.Process(target=_enroll_within, args=(path, path.stat().st_size + 100_000, said))
    child.start()
    child.join()
    assert "g.db" in said.read_text()
    assert_same(open_gallery(path), subjects("Ann", "Bob"))
    enroll(path, subjects("Carl"))


# --------------------------------------------------------------------------------------------- reading


def _as_other_user(work: Callable[[], object], said: Path) -> str:
    """What `work` raises in a process that may not write to folders of ours; '' where it raises nothing."""

    def run() -> None:
        text = ""
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            work()
        except (InputError, OSError) as fault:
            text = str(fault)
        print(text, file=stream, flush=True)

    with said.open("w") as stream:
        child = FORK.Process(target=run)
        child.start()
        child.join()
    assert child.exitcode == 0
    return said.read_text().strip()


def test_a_gallery_in_a_read_only_folder_is_read(tmp_path: Path) -> None:
    said = tmp_path / "said"
    # Not below `tmp_path`, which other users cannot enter.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "g.db"
        enroll(path, subjects("Ann", "Bob"))
        path.chmod(0o444)
        folder.chmod(0o555)
        assert _as_other_user(lambda: assert_same(open_gallery(path), subjects("Ann", "Bob")), said) == ""
        assert "g.db" in _as_other_user(lambda: enroll(path, subjects("Carl")), said)
        assert os.listdir(folder) == ["g.db"]
        # A log that cannot be read holds changes that must not be missed.
        folder.chmod(0o755)
        (folder / "g.db-wal").write_bytes(bytes(100))
        folder.chmod(0o555)
        assert "g.db-wal" in _as_other_user(lambda: open_gallery(path), said)
        folder.chmod(0o755)


# --------------------------------------------------------------------------------------------- damage


def test_flipped_bits_are_reported_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    gallery = subjects(*(f"p{number}" for number in range(300)), size=64)
    enroll(path, gallery)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    # Of the header and the settings each, of all else some; most bytes of small tables are unused.
    used = np.flatnonzero(np.frombuffer(whole, np.uint8))
    noticed = 0
    for place in [*range(100), *rng.choice(used, 400, replace=False).tolist()]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            assert_same(open_gallery(path), gallery)
        except InputError as fault:
            noticed += str(path) in str(fault)
        for beside in tmp_path.glob("g.db-*"):
            beside.unlink()
    assert noticed > 350


@pytest.mark.parametrize("size", [0, 1, 15, 16, 99, 100, 4096, 0.3, 0.9, -1])
def test_truncated_files_are_reported(tmp_path: Path, size: float) -> None:
    path = tmp_path / "g.db"
    enroll(path, subjects(*(f"p{number}" for number in range(300)), size=64))
    whole = path.read_bytes()
    part = whole[: int(size * len(whole)) if 0 < size < 1 else int(size)]
    for work in (open_gallery, lambda path: enroll(path, subjects("Ann", size=64))):
        path.write_bytes(part)
        with suppress(InputError):
            work(path)
        # A change that does not meet the missing pages does not hide them.
        with pytest.raises(InputError, match=r"g\.db"):
            open_gallery(path)


@pytest.mark.parametrize("content", [b"text", b"SQLite format 3\0" + bytes(5000), os.urandom(40_000)])
def test_other_files_are_no_galleries(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "g.db"
    path.write_bytes(content)
    for work in (open_gallery, gallery_info, lambda path: enroll(path, subjects("Ann"))):
        with pytest.raises(InputError, match=r"g\.db"):
            work(path)
    assert path.read_bytes() == content
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="FIFO"):
        open_gallery(path)


def _settings(**changed: object) -> str:
    values = {"fingerprint": "f" * 64, "reading": "{}", "dimension": D, "count": 1, "total": 0} | changed
    checksum = crc32("\0".join(map(str, values.values())).encode())
    literals = [repr(value) for value in (*values.values(), checksum)]
    return f"REPLACE INTO gallery VALUES (1, {', '.join(literals)})"


HOSTILE = {
    "a view": "CREATE VIEW v AS SELECT 1",
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON gallery BEGIN DELETE FROM subjects; END",
    "a view in place of a table": "DROP TABLE descriptors; CREATE VIEW descriptors AS SELECT * FROM subjects",
    "another form": "PRAGMA user_version = 9",
    "another application": "PRAGMA application_id = 9",
    "settings without checksum": "UPDATE gallery SET count = 2",
    "a removed row": "DELETE FROM descriptors",
    "a removed subject": "DELETE FROM subjects; DELETE FROM descriptors",
    "no settings": "DELETE FROM gallery",
    "a count beyond the file": _settings(count=10**9, dimension=10**9),
    "a negative count": _settings(count=-1),
    "a count without values": _settings(count=10**15, dimension=0),
    "a count that is a text": _settings(count="x"),
    "a count of infinity": _settings(count=float("1e300")),
    "a reading that is no object": _settings(reading="[]"),
    "a reading that is nested": _settings(reading="[" * 50_000),
    "a fingerprint that is a number": _settings(fingerprint=3),
    "a name that is a number": "UPDATE subjects SET name = x'00'",
    "a name that is not UTF-8": "UPDATE subjects SET name = CAST(x'ff' AS TEXT)",
    "a norm that is a text": "UPDATE subjects SET norm = 'x'",
    "a key of another name": "UPDATE subjects SET name_key = 'Bob'",
    "sources that are no list": "UPDATE subjects SET sources = '{}'",
    "a vector that is a text": "UPDATE descriptors SET vector = 'x'",
    "a short vector": "UPDATE descriptors SET vector = x'00'",
    "a vector of 17 MiB": "UPDATE descriptors SET vector = zeroblob(17825792)",
    "a name of 17 MiB": "UPDATE subjects SET name = CAST(zeroblob(17825792) AS TEXT)",
}


@pytest.mark.parametrize("statements", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_are_refused(tmp_path: Path, statements: str) -> None:
    path = tmp_path / "g.db"
    enroll(path, subjects("Ann"))
    connection = sqlite3.connect(path)
    connection.executescript(statements)
    connection.close()
    with pytest.raises(InputError, match=r"g\.db"):
        open_gallery(path)


@pytest.mark.parametrize("table", ["subjects", "descriptors"])
def test_a_tree_that_leads_to_the_same_page_again_is_reported(tmp_path: Path, table: str) -> None:
    path = tmp_path / "g.db"
    enroll(path, subjects(*(f"p{number}" for number in range(3000)), size=64))
    connection = sqlite3.connect(path)
    (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    connection.close()
    content = bytearray(path.read_bytes())
    page = memoryview(content)[(root - 1) * database._PAGE_BYTES : root * database._PAGE_BYTES]
    # An interior page of a table: cells begin with the number of a child.
    assert page[0] == 5
    cells = [int.from_bytes(page[12 + 2 * cell :][:2], "big") for cell in range(page[4])]
    for place in (*cells, 8):
        page[place : place + 4] = page[cells[0] : cells[0] + 4]
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"g\.db"):
        open_gallery(path)


@pytest.mark.parametrize("sources", ["[1]", "[[]]", "[],[]", "3", "["])
def test_sources_with_the_right_checksum_are_checked_too(tmp_path: Path, sources: str) -> None:
    path = tmp_path / "g.db"
    enroll(path, subjects("Ann"))
    connection = sqlite3.connect(path)
    connection.create_function("checksum", 4, database._subject_checksum)
    connection.execute("UPDATE subjects SET sources = ?", (sources,))
    connection.execute("UPDATE subjects SET checksum = checksum(id, name, norm, sources)")
    connection.commit()
    connection.close()
    with pytest.raises(InputError, match=r"g\.db"):
        list_subjects(path)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE subjects SET checksum = 'x'",
        "UPDATE descriptors SET checksum = 'x'",
        "DELETE FROM descriptors",
        "UPDATE subjects SET norm = 'x', sources = 3",
        "UPDATE subjects SET id = 9223372036854775807",
    ],
)
def test_changes_of_hostile_files_are_refused(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "g.db"
    enroll(path, subjects("Ann"))
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(statement)
    connection.close()
    hostile = path.read_bytes()
    for change in (
        lambda: enroll(path, subjects("Bob")),
        lambda: enroll(path, subjects("Ann"), replace=True),
        lambda: rename(path, "Ann", "Bob"),
        lambda: remove(path, ["Ann"]),
    ):
        path.write_bytes(hostile)
        # No other exception; a change that replaces what is wrong may succeed.
        with suppress(InputError):
            change()
    path.write_bytes(hostile)
    with pytest.raises(InputError, match=r"g\.db"):
        open_gallery(path)


def test_a_schema_that_is_not_utf8_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    enroll(path, subjects("Ann"))
    content = path.read_bytes()
    assert content.count(b"tablesubjectssubjects") == 1
    path.write_bytes(content.replace(b"tablesubjectssubjects", b"tablesub\xcfectssubjects"))
    with pytest.raises(InputError, match=r"g\.db"):
        open_gallery(path)


def test_control_characters_in_names_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    enroll(path, subjects("Ann\x1b[2J", "Bob"))
    assert open_gallery(path).names == ("Ann\\x1b[2J", "Bob")
    connection = sqlite3.connect(path)
    connection.create_function("checksum", 4, database._subject_checksum)
    connection.execute("UPDATE subjects SET name = 'B\x1b', name_key = 'B\x1b' WHERE id = 2")
    connection.execute("UPDATE subjects SET checksum = checksum(id, name, norm, sources)")
    connection.commit()
    connection.close()
    assert [subject.name for subject in list_subjects(path)[1]] == ["Ann\\x1b[2J", "B\\x1b"]


def test_the_gallery_is_read_without_torch_or_opencv() -> None:
    code = (
        "import recognition.gallery.commands, sys; "
        "print(*{'torch', 'cv2', 'pytorch_lightning', 'sklearn', 'pandas', 'scipy'} & set(sys.modules))"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == ""

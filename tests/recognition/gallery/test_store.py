"""A gallery on the disk: who is in it, writers at once, and kills at any moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from recognition.gallery import store as gallery_module
from recognition.gallery.store import Gallery, enroll, open_gallery, remove
from runtime.errors import InputError, InputWarning

ROOT = Path(__file__).resolve().parents[3]
D = 8


def people(*names: str, fingerprint: str = "f" * 64, size: int = D) -> Gallery:
    """One descriptor a name, which is drawn from the name."""
    rows = [np.random.default_rng(list(name.encode())).standard_normal(size) for name in names]
    vectors = np.stack(rows).astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1)
    files = tuple((f"{name}/1.jpg", f"{name}/ü 2.jpg") for name in names)
    return Gallery(names, vectors / lengths[:, None], lengths, files, fingerprint)


def assert_same(found: Gallery, wanted: Gallery) -> None:
    assert found.names == wanted.names
    np.testing.assert_array_equal(found.descriptors, wanted.descriptors)
    np.testing.assert_array_equal(found.norms, wanted.norms)
    assert found.files == wanted.files
    assert found.fingerprint == wanted.fingerprint


def test_who_is_enrolled_is_there_and_who_is_removed_is_not(tmp_path: Path) -> None:
    path = tmp_path / "new" / "g.npz"
    enroll(path, people("Ann", "Bob"))
    enroll(path, people("Çağla"))
    assert_same(open_gallery(path), people("Ann", "Bob", "Çağla"))
    assert_same(remove(path, ["Bob"]), people("Ann", "Çağla"))
    assert_same(open_gallery(path), people("Ann", "Çağla"))
    remove(path, ["Ann", "Çağla"])
    assert len(open_gallery(path)) == 0
    enroll(path, people("Dan", size=5))
    assert_same(open_gallery(path), people("Dan", size=5))


def test_a_name_that_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    enroll(path, people("Ann", "Bob"))
    newer = people("Ann")
    newer = Gallery(newer.names, -newer.descriptors, newer.norms, newer.files, newer.fingerprint)
    with pytest.raises(InputError, match="'Ann' is already enrolled"):
        enroll(path, newer)
    assert_same(open_gallery(path), people("Ann", "Bob"))
    after = enroll(path, newer, replace=True)
    assert after.names == ("Bob", "Ann")
    np.testing.assert_array_equal(after.descriptors[1], newer.descriptors[0])


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    enroll(path, people("Ann"))
    before = path.read_bytes()
    with pytest.raises(InputError, match="made with the model ffffffffffff, but the new descriptors is eee"):
        enroll(path, people("Bob", fingerprint="e" * 64))
    with pytest.raises(InputError, match="descriptors of 8 values, the new ones have 4"):
        enroll(path, people("Bob", size=4))
    with pytest.raises(InputError, match="'Carl', 'Dan' are not enrolled"):
        remove(path, ["Carl", "Ann", "Dan"])
    with pytest.raises(InputError, match="this model is abc"):
        open_gallery(path).check_model("abc")
    with pytest.raises(InputError, match=r"ends in \.npz"):
        enroll(tmp_path / "g.bin", people("Ann"))
    with pytest.raises(InputError, match="there is no such gallery"):
        remove(tmp_path / "other.npz", ["Ann"])
    assert path.read_bytes() == before


def test_descriptors_that_cannot_be_searched_are_refused() -> None:
    good = people("Ann", "Bob")
    with pytest.raises(InputError, match="'Bob' is not of length one"):
        Gallery(good.names, good.descriptors * np.float32([[1], [np.nan]]), good.norms, good.files, "f")
    with pytest.raises(InputError, match="float32, one for each name"):
        Gallery(good.names, good.descriptors.astype(np.float64), good.norms, good.files, "f")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'Ann' is named more than once"):
        Gallery(("Ann", "Ann"), good.descriptors, good.norms, good.files, "f")
    with pytest.raises(InputError, match="a name is empty"):
        Gallery(("Ann", ""), good.descriptors, good.norms, good.files, "f")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    enroll(path, people(*(f"p{number}" for number in range(300))))
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:3000] + b"????" + whole[3004:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"g\.npz: cannot be read as a gallery"):
            open_gallery(path)
        with pytest.raises(InputError, match=r"g\.npz: cannot be read"):
            enroll(path, people("Ann"))
        assert path.read_bytes() == content
    np.savez(path, names=np.array(["Ann"]))
    with pytest.raises(InputError, match="is no gallery: descriptors"):
        open_gallery(path)


def _enroll_many(path: Path, writer: int, count: int) -> None:
    for number in range(count):
        enroll(path, people(f"{writer}-{number}"))


def test_writers_at_once_lose_nobody(tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_enroll_many, args=(path, number, 12)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    found = open_gallery(path)
    assert sorted(found.names) == sorted(f"{writer}-{number}" for writer in range(4) for number in range(12))
    assert_same(found, people(*found.names))


def test_a_lock_that_is_never_freed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "g.npz"
    enroll(path, people("Ann"))
    monkeypatch.setattr(gallery_module, "_LOCK_SECONDS", 0.1)
    with (
        gallery_module.FileLock(tmp_path / "g.npz.lock"),
        pytest.raises(InputError, match="another process has been writing it"),
    ):
        _in_another_process(path)


def _in_another_process(path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.apply(enroll, (path, people("Bob")))


_WRITER = """
import sys; sys.path[:0] = [{root!r}, {here!r}]
from pathlib import Path
from test_gallery import people
from recognition.gallery.store import enroll, remove
path = Path({path!r})
for number in range(10_000):
    enroll(path, people(f"{{sys.argv[1]}}-{{number}}"))
    if number % 3 == 2:
        remove(path, [f"{{sys.argv[1]}}-{{number - 1}}"])
    print(number, flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_gallery(tmp_path: Path) -> None:
    """What the writer has said is done is there afterwards, and nothing is half done."""
    path = tmp_path / "g.npz"
    enroll(path, people(*(f"old{number}" for number in range(2000))))
    script = tmp_path / "writer.py"
    script.write_text(_WRITER.format(root=str(ROOT), here=str(Path(__file__).parent), path=str(path)))
    for run in range(6):
        with subprocess.Popen(
            [sys.executable, str(script), str(run)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            said = writer.stdout.readline()
            assert said == "0\n"
            # Somewhere in the middle of reading, writing or replacing.
            time.sleep(0.011 * run)
            os.kill(writer.pid, signal.SIGKILL)
            said += writer.stdout.read()
        found = open_gallery(path)
        assert_same(found, people(*found.names))
        assert set(found.names) >= {f"old{number}" for number in range(2000)}
        done = int(said.split()[-1])
        mine = {int(name.split("-")[1]) for name in found.names if name.startswith(f"{run}-")}
        removed = {number - 1 for number in range(2, done + 1, 3)}
        # What was begun after the last word may be done too.
        begun = {number - 1 for number in range(2, done + 2, 3)}
        assert mine >= set(range(done + 1)) - begun
        assert mine <= set(range(done + 2)) - removed
    enroll(path, people("last"))
    assert sorted(file.name for file in tmp_path.glob("*g*")) == ["g.npz", "g.npz.lock"]
    assert list(tmp_path.glob(".g.*")) == []


def test_leftovers_of_other_galleries_are_left_alone(tmp_path: Path) -> None:
    mine, others = tmp_path / ".g.abcd_123.npz", tmp_path / ".g.b.abcd_123.npz"
    mine.touch()
    others.touch()
    enroll(tmp_path / "g.npz", people("Ann"))
    assert not mine.exists()
    assert others.exists()


def test_unicode_forms_of_a_name_are_one_person(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "José") for form in ("NFC", "NFD"))
    path = tmp_path / "g.npz"
    enroll(path, people(decomposed, "Bob"))
    with pytest.raises(InputError, match="already enrolled"):
        enroll(path, people(composed))
    assert enroll(path, people(composed), replace=True).names == ("Bob", composed)
    with pytest.raises(InputError, match="named more than once"):
        enroll(tmp_path / "other.npz", people(composed, decomposed))
    with pytest.raises(InputError, match="not enrolled"):
        remove(path, ["bob"])
    assert remove(path, [decomposed]).names == ("Bob",)


def changed(path: Path, **members: object) -> Path:
    """A gallery of one person in which some members are others; None leaves one out."""
    enroll(path, people("Ann"))
    arrays = dict(np.load(path)) | members
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})  # type: ignore[arg-type]
    return path


def test_a_gallery_of_before_is_read_with_a_warning_and_then_has_a_checksum(tmp_path: Path) -> None:
    path = changed(tmp_path / "g.npz", schema=np.array(2), sha256=None)
    with pytest.warns(InputWarning, match=r"g\.npz.*checksum"):
        assert_same(open_gallery(path), people("Ann"))
    with pytest.warns(InputWarning):
        enroll(path, people("Bob"))
    assert_same(open_gallery(path), people("Ann", "Bob"))
    with pytest.raises(InputError, match=r"other\.npz.*checksum"):
        open_gallery(changed(tmp_path / "other.npz", sha256=None))


def test_zeros_in_place_of_auxiliary_values_are_left_out_of_older_galleries(tmp_path: Path) -> None:
    ann, bob = people("Ann"), people("Bob")
    padded = np.pad(ann.descriptors, ((0, 0), (0, 16)))
    for size, wide in (("16", padded), ("0", padded), ("24", padded), ("x", padded), ("16", padded[:, ::-1])):
        path = tmp_path / f"{size}{wide[0, 0]}.npz"
        rows = np.ascontiguousarray(wide)
        enroll(
            path, Gallery(ann.names, rows, ann.norms, ann.files, ann.fingerprint, {"auxiliary_size": size})
        )
        is_padded = (size, wide[0, -1]) == ("16", 0)
        wanted = ann.descriptors if is_padded else rows
        np.testing.assert_array_equal(open_gallery(path).descriptors, wanted)
        if is_padded:
            assert enroll(path, bob).descriptors.shape == (2, D)
        else:
            with pytest.raises(InputError, match="24 values, the new ones have 8"):
                enroll(path, bob)


@pytest.mark.parametrize(
    "members",
    [
        {"schema": np.array([1, 2])},
        {"schema": np.array("x")},
        {"schema": np.array(np.nan)},
        {"names": np.array([1])},
        {"names": np.array("Ann")},
        {"names": np.array([b"Ann"])},
        {"descriptors": np.zeros(3, np.float32)},
        {"descriptors": np.array(1.0, np.float32)},
        {"files": np.frombuffer(b"[" * 50_000, np.uint8)},
        {"files": np.frombuffer(b'[{"a": 1}]', np.uint8)},
        {"files": np.frombuffer(b'[["a", 1]]', np.uint8)},
        {"files": np.array(["a"])},
        {"reading": np.array("[]")},
        {"reading": np.array('{"a": 1e999}')},
        {"reading": np.array(3)},
        {"more": np.array(3)},
    ],
    ids=str,
)
def test_members_that_no_gallery_has_are_one_sentence(tmp_path: Path, members: dict[str, object]) -> None:
    path = changed(tmp_path / "g.npz", schema=np.array(2), sha256=None)
    np.savez(path, **{**np.load(path), **members})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"g\.npz"):
        open_gallery(path)


def test_nobody_is_removed_from_a_gallery_that_is_not_there(tmp_path: Path) -> None:
    """No lock is made for it, which would be waited for where a folder takes no files."""
    with pytest.raises(InputError, match=r"none\.npz"):
        remove(tmp_path / "no_folder" / "none.npz", ["Ann"])
    assert not list(tmp_path.iterdir())

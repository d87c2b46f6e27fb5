"""Unpacking keeps the bytes, goes on after a kill, and tells what it left out."""

from __future__ import annotations

import csv
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from data.sources import unpacking
from data.sources.face_source import ImageFolder, RecordIOSource
from data.sources.fingerprint import fingerprint
from data.sources.pair_files import PairSet
from data.sources.recordio import read_face_pack, write_face_pack
from data.sources.unpacking import pack_folder, unpack_pack, unpack_pairs
from runtime import files
from runtime.errors import InputError
from synthetic.datasets import write_synthetic_pack

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def pack(tmp_path: Path, drawn_face: Callable[[int, int], bytes]) -> Path:
    write_face_pack(tmp_path / "pack", [(s, drawn_face(s, n)) for s in range(5) for n in range(7)])
    return tmp_path / "pack"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("*/*") if p.is_file()}


@pytest.mark.parametrize("workers", [0, 2])
def test_images_keep_their_bytes(pack: Path, workers: int) -> None:
    done = unpack_pack(pack, pack, num_workers=workers)
    assert (done.subjects, done.written, done.there, done.skipped) == (5, 35, 0, [])
    records = read_face_pack(pack)
    expected = {
        f"{label}/{key}.png": records.reader.read(key)[1]
        for key, label in zip(records.keys.tolist(), records.labels.tolist(), strict=True)
    }
    assert tree(pack / "imgs") == expected


def test_pack_and_folder_are_the_same_data(pack: Path) -> None:
    unpack_pack(pack, pack)
    assert fingerprint(ImageFolder(pack / "imgs")) == fingerprint(RecordIOSource(pack))


def test_mxnets_own_pack_unpacks(golden: Path, tmp_path: Path) -> None:
    done = unpack_pack(golden / "recordio" / "small", tmp_path)
    assert (done.subjects, done.written, done.of_other_size) == (6, 33, 33)


@pytest.mark.parametrize("image_format", ["jpg", "png"])
def test_images_can_be_recoded(pack: Path, tmp_path: Path, image_format: str) -> None:
    unpack_pack(pack, tmp_path / "out", image_format=image_format)
    path = tmp_path / "out" / "imgs" / "3" / f"22.{image_format}"
    image = cv2.imread(str(path))
    original = cv2.imdecode(np.frombuffer(read_face_pack(pack).reader.read(22)[1], np.uint8), 1)
    assert np.abs(image.astype(int) - original).mean() < (8 if image_format == "jpg" else 1e-9)


def test_broken_image_is_skipped_and_reported(
    tmp_path: Path, drawn_face: Callable[[int, int], bytes]
) -> None:
    images = [(0, drawn_face(0, 0)), (0, b"\xff\xd8 broken"), (1, b""), (1, drawn_face(1, 0))]
    write_face_pack(tmp_path, images)
    done = unpack_pack(tmp_path, tmp_path)
    assert done.written == 2
    assert [key for key, _ in done.skipped] == [2, 3]
    assert "cannot be decoded" in done.skipped[0][1]


def test_second_call_writes_nothing_and_rewrites_truncated(pack: Path) -> None:
    unpack_pack(pack, pack)
    before = tree(pack / "imgs")
    assert unpack_pack(pack, pack).there == 35
    victim = pack / "imgs" / "0" / "1.png"
    victim.write_bytes(victim.read_bytes()[:50])
    (pack / "imgs" / "0" / "2.png").unlink()
    (pack / "imgs" / "0" / ".3.png.77.part").write_bytes(b"half")
    done = unpack_pack(pack, pack)
    assert (done.written, done.there) == (2, 33)
    assert tree(pack / "imgs") == before


CALL = """
import sys
from pathlib import Path
from data.sources.unpacking import unpack_pack
from runtime.errors import InputError
if __name__ == "__main__":
    try:
        unpack_pack(Path(sys.argv[1]), Path(sys.argv[1]), num_workers=int(sys.argv[2]))
    except InputError as fault:
        sys.exit(str(fault))
"""


def started(folder: Path, workers: int, **options: Any) -> subprocess.Popen[str]:
    (folder / "call.py").write_text(CALL)
    return subprocess.Popen(
        [sys.executable, str(folder / "call.py"), str(folder), str(workers)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture
def large_pack(tmp_path: Path, drawn_face: Callable[[int, int], bytes]) -> Path:
    faces = [drawn_face(0, n) for n in range(20)]
    write_face_pack(tmp_path / "large", [(s, faces[n % 20]) for s in range(60) for n in range(100)])
    return tmp_path / "large"


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_unpacking_continues(large_pack: Path, workers: int) -> None:
    process = started(large_pack, workers)
    images = large_pack / "imgs"
    while process.poll() is None and not any(images.glob("3/*.png")):
        time.sleep(0.005)
    children = [] if workers == 0 else children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(children) >= workers
    # Workers end by themselves; the next call need not wait for that.
    records = read_face_pack(large_pack)
    whole = {
        f"{label}/{key}.png": records.reader.read(key)[1]
        for key, label in zip(records.keys.tolist(), records.labels.tolist(), strict=True)
    }
    killed = {name: content for name, content in tree(images).items() if not name.endswith(".part")}
    assert 0 < len(killed) < 6000
    assert killed.items() <= whole.items()
    done = unpack_pack(large_pack, large_pack)
    assert done.written + done.there == 6000
    assert done.there >= len(killed)
    ended = time.monotonic() + 20
    while any(map(is_running, children)) and time.monotonic() < ended:
        time.sleep(0.05)
    assert not any(map(is_running, children))
    assert unpack_pack(large_pack, large_pack).there == 6000
    assert tree(images) == whole


def children_of(pid: int) -> list[int]:
    """Workers, without the process that keeps multiprocessing's books."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_disk_that_fills_up_under_a_worker_says_how_to_continue(large_pack: Path) -> None:
    smallest = min(len(content) for content in tree_of_records(large_pack))

    def no_room() -> None:
        # Files may not grow beyond this: the nearest to a full disk that needs no disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (smallest, smallest))

    process = started(large_pack, 2, preexec_fn=no_room)
    said = process.communicate()[1]
    assert process.returncode == 1
    assert "cannot be written (File too large)" in said
    assert all(len(content) <= smallest for content in tree(large_pack / "imgs").values())
    done = unpack_pack(large_pack, large_pack)
    assert done.written + done.there == 6000
    assert sorted(tree(large_pack / "imgs").values()) == sorted(tree_of_records(large_pack))


def tree_of_records(folder: Path) -> list[bytes]:
    records = read_face_pack(folder)
    return [records.reader.read(key)[1] for key in records.keys.tolist()]


def test_worker_that_is_killed_is_reported(large_pack: Path) -> None:
    process = started(large_pack, 2)
    while process.poll() is None and not any((large_pack / "imgs").glob("3/*.png")):
        time.sleep(0.005)
    os.kill(children_of(process.pid)[0], signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "A worker process was killed" in said
    assert "Traceback" not in said


def test_damaged_record_is_reported_before_anything_is_written(pack: Path) -> None:
    offset = int((pack / "train.idx").read_text().splitlines()[20].split()[1])
    content = bytearray((pack / "train.rec").read_bytes())
    content[offset + 4 : offset + 8] = (1 << 20).to_bytes(4, "little")
    (pack / "train.rec").write_bytes(content)
    with pytest.raises(InputError, match=f"record 20 at byte {offset:,}: "):
        unpack_pack(pack, pack / "out")
    assert not (pack / "out").exists()


def test_truncated_image_is_skipped(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (112, 112, 3), np.uint8)
    jpeg, png = (cv2.imencode(suffix, image)[1].tobytes() for suffix in (".jpg", ".png"))
    write_face_pack(tmp_path, [(0, jpeg), (0, jpeg[:5000]), (0, png), (0, png[:-12]), (0, jpeg + bytes(3))])
    done = unpack_pack(tmp_path, tmp_path)
    assert [key for key, _ in done.skipped] == [2, 4]
    assert sorted(tree(tmp_path / "imgs")) == ["0/1.jpg", "0/3.png", "0/5.jpg"]


def test_truncated_image_is_skipped_where_the_decoder_fills_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.zeros((112, 112, 3), np.uint8)
    jpeg = cv2.imencode(".jpg", image)[1].tobytes()
    write_face_pack(tmp_path, [(0, jpeg), (0, jpeg[:-2])])
    monkeypatch.setattr(unpacking, "decode_image", lambda _content, upright: image)
    done = unpack_pack(tmp_path, tmp_path)
    assert done.written == 1
    assert [(key, why.split()[-1]) for key, why in done.skipped] == [(2, "image")]
    assert "truncated image" in done.skipped[0][1]


@pytest.mark.parametrize("image_format", ["jpg", "png"])
def test_recoding_continues_and_rewrites_truncated(pack: Path, image_format: str) -> None:
    unpack_pack(pack, pack, image_format=image_format)
    before = tree(pack / "imgs")
    for key, size in ((1, 0), (2, 900)):
        victim = pack / "imgs" / "0" / f"{key}.{image_format}"
        victim.write_bytes(victim.read_bytes()[:size])
    done = unpack_pack(pack, pack, image_format=image_format)
    assert (done.written, done.there) == (2, 33)
    assert tree(pack / "imgs") == before


def test_file_system_without_free_inodes_is_refused(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = SimpleNamespace(
        f_files=1000, f_favail=34, f_bavail=9**9, f_bfree=9**9, f_blocks=9**9, f_frsize=4096
    )
    monkeypatch.setattr(os, "statvfs", lambda _path: full)
    with pytest.raises(InputError, match=r"needs 35 files, .* 34 "):
        unpack_pack(pack, pack)
    full.f_favail = 35
    assert unpack_pack(pack, pack).written == 35
    # What is there already needs no room again.
    full.f_favail = 0
    assert unpack_pack(pack, pack).there == 35


def test_another_packs_folder_is_refused(pack: Path, tmp_path: Path) -> None:
    unpack_pack(pack, tmp_path / "out")
    write_face_pack(tmp_path / "other", [(0, b"x"), (1, b"y")])
    with pytest.raises(InputError, match="images of another pack"):
        unpack_pack(tmp_path / "other", tmp_path / "out")
    with pytest.raises(InputError, match="in another format"):
        unpack_pack(pack, tmp_path / "out", image_format="png")
    unpack_pack(pack, tmp_path / "jpg", image_format="jpg", quality=90)
    with pytest.raises(InputError, match="in another format"):
        unpack_pack(pack, tmp_path / "jpg", image_format="jpg", quality=80)
    (tmp_path / "strange" / "imgs" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="was not written by convert"):
        unpack_pack(pack, tmp_path / "strange")


def test_full_disk_is_found_before_work(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _path: type("U", (), {"free": 1000})())
    with pytest.raises(InputError, match="are free"):
        unpack_pack(pack, pack)
    assert tree(pack / "imgs") == {}


def test_disk_that_fills_up_says_how_to_continue(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.write_bytes

    def write_bytes(path: Path, content: bytes) -> int:
        if path.name.startswith(".20.png."):
            raise OSError(28, "No space left on device")
        return original(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(InputError, match=r"20\.png: cannot be written \(No space left.*run the same command"):
        unpack_pack(pack, pack)
    monkeypatch.undo()
    assert unpack_pack(pack, pack).there == 19


def test_pair_sets_become_images_and_a_table(tmp_path: Path, drawn_face: Callable[[int, int], bytes]) -> None:
    images = [drawn_face(s, 0) for s in range(6)]
    pairs = PairSet("p", images, np.array([True, False, True]))
    assert unpack_pairs(pairs, tmp_path / "p") == 3
    rows = list(csv.DictReader((tmp_path / "p" / "pairs.csv").open()))
    assert [row["mated"] for row in rows] == ["1", "0", "1"]
    names = [name for row in rows for name in (row["first"], row["second"])]
    assert [(tmp_path / "p" / name).read_bytes() for name in names] == images


def test_pairs_with_a_broken_image_are_excluded(
    tmp_path: Path, drawn_face: Callable[[int, int], bytes]
) -> None:
    images = [drawn_face(s, 0) for s in range(6)]
    images[3] = images[3][:-20]
    assert unpack_pairs(PairSet("p", images, np.array([True, False, True])), tmp_path / "p") == 2
    rows = list(csv.reader((tmp_path / "p" / "pairs.csv").open()))
    assert rows[1:] == [["00000_a.png", "00000_b.png", "1"], ["00002_a.png", "00002_b.png", "1"]]
    assert len(list((tmp_path / "p").glob("*.png"))) == 4


def test_pairs_that_are_there_are_not_written_again(
    tmp_path: Path, drawn_face: Callable[[int, int], bytes]
) -> None:
    pairs = PairSet("p", [drawn_face(s, 0) for s in range(4)], np.array([True, False]))
    unpack_pairs(pairs, tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    victim = tmp_path / "00001_a.png"
    victim.write_bytes(b"half")
    unpack_pairs(pairs, tmp_path)
    assert victim.read_bytes() == pairs.images[2]
    assert {path for path in stamps if path.stat().st_mtime_ns != stamps[path]} == {victim}


def test_existing_pack_is_not_overwritten(face_folder: Callable[..., Path], pack: Path) -> None:
    before = (pack / "train.rec").read_bytes()
    with pytest.raises(InputError, match=r"train\.rec: already exists"):
        pack_folder(face_folder(2, 2), pack)
    with pytest.raises(InputError, match="is not synthetic"):
        write_synthetic_pack(pack, num_subjects=2, seed=0)
    assert (pack / "train.rec").read_bytes() == before
    for name in ("train.idx", "property", "subjects.txt"):
        out = pack.parent / name.replace(".", "_")
        out.mkdir()
        (out / name).write_text("the only copy")
        with pytest.raises(InputError, match=f"{name}: already exists"):
            pack_folder(face_folder(2, 2, f"of_{name}"), out)
        assert (out / name).read_text() == "the only copy"
        assert len(list(out.iterdir())) == 1


def test_folder_becomes_a_pack_and_back(face_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = face_folder(4, 3)
    assert pack_folder(folder, tmp_path / "pack") == (4, 12, [])
    assert (tmp_path / "pack" / "subjects.txt").read_text().split() == ["s000", "s001", "s002", "s003"]
    unpack_pack(tmp_path / "pack", tmp_path / "back")
    contents = [content for _, content in sorted(tree(folder).items()) if content.startswith(b"\x89PNG")]
    back = sorted(tree(tmp_path / "back" / "imgs").items(), key=lambda item: int(Path(item[0]).stem))
    assert [content for _, content in back] == contents


def test_image_that_is_no_face_is_not_packed(face_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = face_folder(2, 2)
    (folder / "s001" / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"s001/1.png: 8 bytes cannot be decoded"):
        pack_folder(folder, tmp_path / "pack")
    assert not (tmp_path / "pack" / "train.rec").exists()


@pytest.mark.parametrize("name", ["a\nb", "a\u2028b", "a\x85", "a\r"])
def test_name_with_a_line_break_is_not_packed(
    face_folder: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    folder = face_folder(2, 1)
    (folder / "s001").rename(folder / name)
    with pytest.raises(InputError, match="line break"):
        pack_folder(folder, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_ctrl_c_ends_the_workers(large_pack: Path) -> None:
    process = started(large_pack, 2, start_new_session=True)
    while process.poll() is None and not any((large_pack / "imgs").glob("3/*.png")):
        time.sleep(0.005)
    children = children_of(process.pid)
    assert len(children) == 2
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert said.strip().endswith("KeyboardInterrupt")
    assert not any(map(is_running, children))
    assert 0 < unpack_pack(large_pack, large_pack).written < 6000

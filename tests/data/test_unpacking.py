"""Unpacking keeps the bytes, goes on after a kill, and tells what it left out."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import files
from data import unpacking
from data.pairs import PairSet
from data.recordio import read_face_pack, write_face_pack
from data.sources import ImageFolder, RecordIOSource, fingerprint
from data.unpacking import pack_folder, unpack_pack, unpack_pairs
from errors import InputError

ROOT = Path(__file__).resolve().parents[2]


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


def test_a_broken_image_is_left_out_and_told(tmp_path: Path, drawn_face: Callable[[int, int], bytes]) -> None:
    images = [(0, drawn_face(0, 0)), (0, b"\xff\xd8 broken"), (1, b""), (1, drawn_face(1, 0))]
    write_face_pack(tmp_path, images)
    done = unpack_pack(tmp_path, tmp_path)
    assert done.written == 2
    assert [record for record, _ in done.skipped] == ["record 2", "record 3"]
    assert "cannot be decoded" in done.skipped[0][1]


def test_a_second_call_writes_nothing_and_mends_what_is_cut_short(pack: Path) -> None:
    unpack_pack(pack, pack)
    before = tree(pack / "imgs")
    assert unpack_pack(pack, pack).there == 35
    victim = pack / "imgs" / "0" / "1.png"
    victim.write_bytes(victim.read_bytes()[:50])
    (pack / "imgs" / "0" / "2.png").unlink()
    (pack / "imgs" / "0" / ".3.png.part").write_bytes(b"half")
    done = unpack_pack(pack, pack)
    assert (done.written, done.there) == (2, 33)
    assert {name: content for name, content in tree(pack / "imgs").items() if ".part" not in name} == before


def test_a_killed_unpacking_goes_on(tmp_path: Path, drawn_face: Callable[[int, int], bytes]) -> None:
    faces = [drawn_face(0, n) for n in range(20)]
    write_face_pack(tmp_path, [(s, faces[n % 20]) for s in range(60) for n in range(100)])
    call = "import sys; from pathlib import Path; from data.unpacking import unpack_pack; "
    call += "unpack_pack(Path(sys.argv[1]), Path(sys.argv[1]))"
    process = subprocess.Popen(
        [sys.executable, "-c", call, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    images = tmp_path / "imgs"
    while process.poll() is None and not any(images.glob("3/*.png")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = tree(images)
    assert killed
    records = read_face_pack(tmp_path).reader
    assert all(
        content == records.read(int(Path(name).stem))[1]
        for name, content in killed.items()
        if not name.endswith(".part")
    )
    done = unpack_pack(tmp_path, tmp_path)
    assert done.written + done.there == 6000
    assert done.there == sum(not name.endswith(".part") for name in killed)


def test_another_packs_folder_is_refused(pack: Path, tmp_path: Path) -> None:
    unpack_pack(pack, tmp_path / "out")
    write_face_pack(tmp_path / "other", [(0, b"x"), (1, b"y")])
    with pytest.raises(InputError, match="holds the images of another pack"):
        unpack_pack(tmp_path / "other", tmp_path / "out")
    with pytest.raises(InputError, match="in another format"):
        unpack_pack(pack, tmp_path / "out", image_format="png")
    (tmp_path / "strange" / "imgs" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="was not made by convert"):
        unpack_pack(pack, tmp_path / "strange")


def test_a_full_disk_is_found_before_work(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _path: type("U", (), {"free": 1000})())
    with pytest.raises(InputError, match="GiB are free"):
        unpack_pack(pack, pack)
    assert tree(pack / "imgs") == {}


def test_a_disk_that_fills_up_says_how_to_go_on(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.write_bytes

    def write_bytes(path: Path, content: bytes) -> int:
        if path.name == ".20.png.part":
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


def test_a_folder_becomes_a_pack_and_back(face_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = face_folder(4, 3)
    assert pack_folder(folder, tmp_path / "pack") == (4, 12)
    assert (tmp_path / "pack" / "subjects.txt").read_text().split() == ["s000", "s001", "s002", "s003"]
    unpack_pack(tmp_path / "pack", tmp_path / "back")
    contents = [content for _, content in sorted(tree(folder).items()) if content.startswith(b"\x89PNG")]
    back = sorted(tree(tmp_path / "back" / "imgs").items(), key=lambda item: int(Path(item[0]).stem))
    assert [content for _, content in back] == contents


def test_an_image_that_is_no_face_is_not_packed(face_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = face_folder(2, 2)
    (folder / "s001" / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"s001/1.png: 8 bytes that cannot be decoded"):
        pack_folder(folder, tmp_path / "pack")
    assert not (tmp_path / "pack" / "train.rec").exists()
    assert unpacking.IMAGES == "imgs"

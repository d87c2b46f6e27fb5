"""The command that brings data into form: its modes end to end, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import convert
from data.sources.face_source import ImageFolder
from data.sources.pair_files import read_pair_set, write_pair_set
from data.sources.recordio import write_face_pack
from data.sources.unpacking import FORMATS
from runtime.errors import InputError
from synthetic import datasets as drawn_packs
from synthetic.faces import SyntheticFace

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "convert.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_data_set_is_unpacked_with_its_pair_sets(
    tmp_path: Path, drawn_face: Callable[[int, int], bytes]
) -> None:
    faces = [drawn_face(s, n) for s in range(3) for n in range(4)]
    write_face_pack(tmp_path, [(number // 4, face) for number, face in enumerate(faces)] + [(3, b"broken")])
    write_pair_set(tmp_path / "lfw.bin", faces, np.arange(6) % 2 == 0)
    done = run("--rec_path", tmp_path, "--num_workers", 2)
    assert done.returncode == 0, done.stderr
    assert "4 subjects, 12 images written, 0 were there, 1 records skipped" in done.stdout
    assert "record 13: 6 bytes" in done.stdout
    assert "6 pairs of lfw.bin" in done.stdout
    assert len(ImageFolder(tmp_path / "imgs")) == 12
    assert len(list((tmp_path / "lfw").glob("*.png"))) == 12


def test_unreadable_pair_set_is_reported_before_the_work(
    tmp_path: Path, drawn_face: Callable[[int, int], bytes]
) -> None:
    write_face_pack(tmp_path, [(0, drawn_face(0, 0))])
    (tmp_path / "lfw.bin").write_bytes(b"half")
    write_pair_set(tmp_path / "imgs.bin", [drawn_face(0, 0)] * 2, [True])
    with pytest.raises(InputError) as fault:
        convert.convert({"rec_path": str(tmp_path)})
    assert "lfw.bin: cannot be read as a pair set" in str(fault.value)
    assert "imgs.bin: would be unpacked among the images" in str(fault.value)
    assert not (tmp_path / "imgs").exists()


def test_pairs_are_of_different_images_and_media(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def faces(*, num_subjects: int, seed: int, first_subject: int = 0) -> Iterator[SyntheticFace]:
        for subject in range(first_subject, first_subject + num_subjects):
            for number in range(12):
                value = np.full((112, 112, 3), 10 * number + 5, np.uint8)
                value[:56] = 10 * (subject - first_subject) + 5
                yield SyntheticFace(subject, number // 2, value)

    monkeypatch.setattr(drawn_packs, "draw_faces", faces)
    drawn_packs.write_synthetic_pack(tmp_path, num_subjects=3, seed=1)
    pairs = read_pair_set(tmp_path / "synthetic.bin")
    ids = [
        (int(image[:50].mean()) // 10, int(image[60:].mean()) // 10)
        for image in map(pairs.image, range(2 * len(pairs)))
    ]
    couples = list(zip(ids[0::2], ids[1::2], strict=True))
    for mated, ((subject, image), (other_subject, other_image)) in zip(pairs.is_mated, couples, strict=True):
        assert (subject == other_subject) == mated
        assert not mated or image // 2 != other_image // 2
    assert len(set(map(frozenset, couples))) == 600
    assert {subject for subject, _ in ids} == set(range(20))
    assert [pairs.is_mated[pairs.folds() == fold].sum() for fold in range(10)] == [30] * 10


def test_synthetic_pack_and_pairs_have_different_subjects(tmp_path: Path) -> None:
    for name in ("a", "b"):
        convert.convert({"synthetic_faces": str(tmp_path / name), "subjects": 3, "seed": 5})
    assert (tmp_path / "a" / "train.rec").read_bytes() == (tmp_path / "b" / "train.rec").read_bytes()
    convert.convert({"rec_path": str(tmp_path / "a")})
    source = ImageFolder(tmp_path / "a" / "imgs")
    assert source.subjects == ["0", "1", "2"]
    pairs = read_pair_set(tmp_path / "a" / "synthetic.bin")
    assert len(pairs) == 600
    assert pairs.is_mated.sum() == 300
    packed = {source.image(row).tobytes() for row in range(len(source))}
    assert not any(pairs.image(number).tobytes() in packed for number in range(0, 1200, 60))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rec_path": "nowhere"}, "nowhere: no such folder"),
        ({"rec_path": ".", "subjects": 3}, "--subjects has no effect with --rec_path"),
        ({"rec_path": ".", "num_workers": -1}, "--num_workers -1"),
        ({"rec_path": ".", "quality": 90}, "--quality .*--image_format jpg"),
        ({"rec_path": ".", "quality": 900, "image_format": "jpg"}, "at most 100"),
        ({"pack": "x"}, "--pack needs --out"),
        ({"pack": "nowhere", "out": "y"}, "nowhere: no such folder"),
        ({"synthetic_faces": "x", "subjects": 1}, "--subjects 1: expected 2 or more"),
    ],
)
def test_bad_flags_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert.convert(given)


def test_a_folder_without_data_says_what_was_expected(tmp_path: Path) -> None:
    done = run("--rec_path", tmp_path)
    assert done.returncode == 2
    assert "holds neither train.rec nor pair sets" in done.stderr
    assert "Traceback" not in done.stderr


def test_image_formats_are_those_of_unpacking() -> None:
    assert convert.IMAGE_FORMATS == FORMATS


def test_one_mode_at_a_time(tmp_path: Path) -> None:
    assert run("--rec_path", tmp_path, "--pack", tmp_path).returncode == 2
    assert "--rec_path" in run("--help").stdout


def test_a_pack_without_a_readable_image_is_a_fault(tmp_path: Path) -> None:
    write_face_pack(tmp_path, [(number // 2, b"broken") for number in range(6)])
    with pytest.raises(InputError, match=r"train\.rec: none of its 6 records .*record 1: 6 bytes"):
        convert.convert({"rec_path": str(tmp_path)})


def test_a_pair_set_without_a_readable_pair_is_a_fault(tmp_path: Path) -> None:
    write_pair_set(tmp_path / "lfw.bin", [b"broken"] * 4, [True, False])
    with pytest.raises(InputError, match="lfw: none of its 2 pairs"):
        convert.convert({"rec_path": str(tmp_path)})
    assert not (tmp_path / "lfw" / "pairs.csv").exists()

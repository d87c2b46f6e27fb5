"""Names with control characters, formulas or invalid UTF-8 are escaped in every output."""

from __future__ import annotations

import csv
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import inference
from recognition.gallery.exchange import export_gallery, members_of, read_gallery
from recognition.gallery.store import open_gallery
from runtime.array_files import write_npz

CONTROLS = ["\x1b", "\r", "\x9b", "\u202e", "\udcff"]


@pytest.fixture
def hostile_sets(face_folder: Callable[..., Path]) -> list[Path]:
    """Two sets, the second with a photo that cannot be read."""
    root = face_folder(2, 3)
    names = ["=1+1", "x\n\x1b[31m\r\u202e\udcff"]
    sets = [(root / f"s{number:03}").rename(root / name) for number, name in enumerate(names)]
    (sets[1] / "0.png").rename(sets[1] / "a\x9b\udcff.png")
    (sets[1] / "b\n\x1b.jpg").write_text("no image")
    return sets


def assert_harmless(text: str) -> None:
    assert not any(control in text for control in CONTROLS)
    # No line begins with the text after the line break of a name.
    assert not any(line.startswith(("\\x1b", "\x1b")) for line in text.splitlines())


def test_hostile_names_are_escaped_in_outputs_of_inference(
    hostile_sets: list[Path], bare_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    line = ["--weights", str(bare_weights), "--aligned", "--out", str(out), *map(str, hostile_sets)]
    assert inference.main(line) == 0
    said = capsys.readouterr()
    assert_harmless(said.out)
    assert_harmless(said.err.replace("\r", ""))
    assert "b\\n\\x1b.jpg" in said.out
    for name in ("report.html", "similarity.csv", "descriptors.json"):
        assert_harmless((out / name).read_text(encoding="utf-8"))
    rows = list(csv.reader((out / "similarity.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0] == ["", "'=1+1", "x\\n\\x1b[31m\\r\\u202e\\udcff"]
    assert float(rows[1][2]) == float(rows[2][1])
    sets = json.loads((out / "descriptors.json").read_text(encoding="utf-8"))["sets"]
    with np.load(out / "descriptors.npz") as stored:
        assert stored["name"].tolist() == [each["name"] for each in sets]
    assert {stat.S_IMODE((out / name).stat().st_mode) for name in os.listdir(out)} == {0o600}
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (out, out.parent)} == {0o700}


def test_hostile_names_are_escaped_in_galleries(
    hostile_sets: list[Path], bare_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery, hostile = tmp_path / "g.db", hostile_sets[1]
    line = ["enroll", "--weights", str(bare_weights), "--aligned", "--gallery", str(gallery), str(hostile)]
    assert inference.main(line) == 0
    assert inference.main(["list", "--gallery", str(gallery)]) == 0
    # By the folder name and by the escaped name.
    copy = shutil.copy(gallery, tmp_path / "copy.db")
    assert inference.main(["remove", "--gallery", str(gallery), hostile.name]) == 0
    assert inference.main(["remove", "--gallery", str(copy), open_gallery(copy).names[0]]) == 0
    said = capsys.readouterr()
    assert_harmless(said.out)


def test_names_of_a_foreign_gallery_are_escaped(
    hostile_sets: list[Path], bare_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, sent = tmp_path / "g.db", tmp_path / "sent.npz"
    line = ["enroll", "--weights", str(bare_weights), "--aligned", "--gallery", str(path)]
    assert inference.main([*line, str(hostile_sets[0])]) == 0
    export_gallery(path, sent)
    values = members_of(read_gallery(sent))
    write_npz(sent, values | {"names": np.array(["a\n\x1b[2J\rb"]), "fingerprint": np.array("f\n\x1b")})
    imported = str(tmp_path / "imported.db")
    assert inference.main(["import", "--gallery", imported, str(sent)]) == 0
    assert inference.main(["list", "--gallery", imported]) == 0
    said = capsys.readouterr().out
    assert_harmless(said)
    assert "a\\n\\x1b[2J\\rb" in said


def test_gallery_keeps_its_permissions(
    face_folder: Callable[..., Path], bare_weights: Path, tmp_path: Path
) -> None:
    root, path = face_folder(2, 2), tmp_path / "g.db"
    before = os.umask(0o022)
    try:
        for name in ("s000", "s001"):
            line = ["enroll", "--weights", str(bare_weights), "--aligned", "--gallery", str(path)]
            assert inference.main([*line, str(root / name)]) == 0
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert inference.main(["remove", "--gallery", str(path), "s000"]) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import inference
from coreset import build_aggregator
from net import build_backbone
from recognition.model import embed_set, load_model

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    backbone = build_backbone("ir_tiny").eval()
    options = {"embedding_size": 64, "coreset_size": 3}
    aggregator = build_aggregator("coreset", options)
    state = {f"model.{key}": value for key, value in backbone.state_dict().items()}
    state |= {f"aggregator.{key}": value for key, value in aggregator.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "best.ckpt"
    content = {"state_dict": state, "backbone_spec": backbone.spec.to_dict()}
    torch.save(content | {"aggregator_name": "coreset", "aggregator_options": options}, path)
    return path


Folder = Callable[..., Path]


def run(*arguments: object) -> int:
    return inference.main([str(each) for each in arguments])


def test_folders_give_matrix_and_files(
    checkpoint: Path, face_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = face_folder(3, 4), tmp_path / "out"
    (root / "s001" / "notes.txt").write_text("x")
    assert (
        run("--weights", checkpoint, "--images_root", root, "--aligned", "--out", out, "--device", "cpu") == 0
    )
    said = capsys.readouterr().out
    rows = list(csv.reader((out / "similarity.csv").open()))
    assert rows[0] == ["", "s000", "s001", "s002"]
    matrix = np.array([row[1:] for row in rows[1:]], float)
    with np.load(out / "descriptors.npz", allow_pickle=False) as stored:
        assert np.abs(stored["descriptor"] @ stored["descriptor"].T - matrix).max() < 1e-5
        assert stored["face_name"].tolist() == [f"{number}.png" for number in range(4)] * 3
    for value in matrix.flatten():
        assert f"{value:.4f}" in said
    assert "trained aggregator 'coreset'" in said
    for fact in ("1 of 5", "s001", "notes.txt", "not an image"):
        assert fact in said
    text = (out / "report.html").read_text()
    assert "notes.txt" in text
    assert text.count("data-face=") == 12
    assert {path.name for path in out.iterdir()} == {
        "similarity.csv",
        "descriptors.npz",
        "descriptors.json",
        "report.html",
    }
    told = json.loads((out / "descriptors.json").read_text())["sets"]
    assert [each["name"] for each in told] == ["s000", "s001", "s002"]
    for advice in (advice["text"] for each in told for advice in each["feedback"]):
        assert advice in said


def test_command_runs_from_another_folder(checkpoint: Path, face_folder: Folder, tmp_path: Path) -> None:
    root = face_folder(2, 2)
    command = [
        sys.executable,
        str(ROOT / "inference.py"),
        "--weights",
        str(checkpoint),
        "--aligned",
        "--out",
        "o",
    ]
    sets = [str(root / "s000"), str(root / "s001" / "1.png")]
    done = subprocess.run(
        [*command, *sets], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "1.png" in done.stdout
    assert "finding faces" in done.stderr
    assert (tmp_path / "o" / "report.html").is_file()


def test_all_faults_are_reported_together_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ("--fps", "0", "--poor", "3", "--fmr", "1e-3", "--detector", tmp_path / "gone.onnx", "--out", out)
    assert run(tmp_path / "gone", "--weights", tmp_path / "gone.ckpt", *flags) == 2
    said = capsys.readouterr().err
    for part in ("gone: no such folder", "gone.ckpt", "--fps 0", "--poor 3", "--fmr"):
        assert part in said
    assert not out.exists()


def test_nearest_command_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    for typed, meant in (("enrol", "enroll"), ("serach", "search"), ("calibarte", "calibrate")):
        assert run(typed, "--gallery", "g.db") == 2
        assert f"'{meant}'" in capsys.readouterr().err


def test_flags_without_effect_are_refused(
    checkpoint: Path, face_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = face_folder(1, 2) / "s000"
    flags = ("--weights", checkpoint, "--aligned", "--out", tmp_path / "out")
    assert run(folder, *flags, "--faces", "all") == 2
    assert "--faces all" in capsys.readouterr().err
    assert run(folder, *flags, "--detector", "x.onnx") == 2
    assert "--detector" in capsys.readouterr().err


def test_missing_weights_are_reported(
    face_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(face_folder(1, 2) / "s000", "--aligned", "--out", tmp_path / "out") == 2
    assert "--weights is missing" in capsys.readouterr().err


def test_sets_without_faces_are_an_error(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nobody").mkdir()
    (tmp_path / "nobody" / "a.jpg").write_bytes(b"")
    assert run(tmp_path / "nobody", "--weights", checkpoint, "--aligned", "--out", tmp_path / "out") == 2
    said = capsys.readouterr()
    assert "a.jpg (the file is empty)" in said.err
    assert "a.jpg (the file is empty)" in said.out


def test_calibration_is_shown_and_refused_for_another_model(
    checkpoint: Path, face_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = face_folder(2, 2)
    fingerprint = load_model(checkpoint, device="cpu").fingerprint
    content = {"schema": 1, "fingerprint": fingerprint, "thresholds": {"1e-03": {"threshold": -0.9}}}
    (tmp_path / "c.json").write_text(json.dumps(content))
    flags = ("--weights", checkpoint, "--images_root", root, "--aligned", "--out", tmp_path / "out")
    flags = (*flags, "--device", "cpu", "--calibration", tmp_path / "c.json")
    assert run(*flags, "--fmr", "0.001") == 0
    assert "threshold for a false match rate of 1e-03: -0.9000" in capsys.readouterr().out
    assert 'class="match"' in (tmp_path / "out" / "report.html").read_text().replace(
        'class="hot match"', 'class="match"'
    )
    assert run(*flags, "--aggregator", "mean") == 2
    assert "another model" in capsys.readouterr().err


def test_example_sets_without_arguments(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--weights", checkpoint, "--out", tmp_path / "out", "--device", "cpu") == 0
    said = capsys.readouterr().out
    assert "synthetic faces" in said
    assert "python inference.py --weights WEIGHTS SET_A SET_B" in said
    for name in ("alex_album", "alex_camera", "robin_album"):
        assert name in said
        assert len(list((tmp_path / "out" / "example_sets" / name).iterdir())) >= 9
    # Again, with the example sets already there.
    assert run("--weights", checkpoint, "--out", tmp_path / "out", "--device", "cpu") == 0


@pytest.mark.parametrize("mine", ["alex_album/mine.jpg", "notes.txt", "robin_album/00.png"])
def test_example_refuses_a_folder_with_other_files(
    mine: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out" / "example_sets" / mine
    path.parent.mkdir(parents=True)
    path.write_bytes(b"the only copy")
    assert run("--weights", checkpoint, "--out", tmp_path / "out", "--device", "cpu") == 2
    assert str(path) in capsys.readouterr().err
    assert path.read_bytes() == b"the only copy"
    assert [each for each in (tmp_path / "out").rglob("*") if each.is_file()] == [path]


def test_example_without_demo_weights_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inference, "DEMO_WEIGHTS", tmp_path / "gone.ckpt")
    assert run("--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "bash demo.sh" in said
    assert "SET_A SET_B" in said


def test_library_functions(checkpoint: Path) -> None:
    model = inference.load_model(checkpoint, device="cpu")
    faces = np.random.default_rng(0).integers(0, 255, (4, 112, 112, 3), np.uint8)
    features, norms = inference.embed_images(model, faces)
    assert features.shape == (4, 64)
    assert norms.shape == (4,)
    found = inference.embed_set(model, faces)
    assert (found.embedding == embed_set(model, faces).embedding).all()


def test_gallery_commands_are_dispatched(capsys: pytest.CaptureFixture[str]) -> None:
    for name in inference.GALLERY_COMMANDS:
        with pytest.raises(SystemExit) as stop:
            run(name, "--help")
        assert stop.value.code == 0
        assert "--gallery" in capsys.readouterr().out

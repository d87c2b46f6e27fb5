"""The gallery commands end to end, on small synthetic faces and an untrained network."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import inference
import recognition.aggregation
from net import build_backbone
from recognition.enrolment import checks as enrolment
from recognition.enrolment import quality_feedback
from recognition.enrolment.checks import EnrolmentCheck, check_set
from recognition.gallery.store import open_gallery
from recognition.model import FaceModel
from recognition.records import AggregatedSet
from weights import save_weights

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, build_backbone("ir_tiny").eval())
    return path


class Commands:
    """Runs commands on one gallery; keeps what was said."""

    def __init__(self, gallery: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.gallery, self.weights, self._capsys = gallery, weights, capsys

    def __call__(self, name: str, *arguments: object, code: int = 0) -> str:
        model = ["--weights", self.weights, "--aligned"] if name in ("enroll", "search") else []
        given = [name, *map(str, arguments), "--gallery", str(self.gallery), *map(str, model)]
        assert inference.main(given) == code
        said = self._capsys.readouterr()
        return said.out if code == 0 else said.err


@pytest.fixture
def run(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(tmp_path / "g.db", weights, capsys)


def test_enrolled_subjects_are_found_and_removed_ones_are_not(
    run: Commands, face_folder: Callable[..., Path]
) -> None:
    root = face_folder(4, 3)
    said = run("enroll", root / "s000", root / "s001", root / "s002")
    assert "report.html" not in said
    assert "enrolled s001: 3 faces" in said
    assert said.endswith("g.db: 3 subjects\n")
    assert "g.db: 4 subjects" in run("enroll", root / "s003")
    found = run("search", root / "s002", root / "s003" / "0.png", "--top", 2).splitlines()
    assert [line.split()[-1] for line in found[:2]] == ["s002", "s002"]
    assert found[1].split()[1] == "1.0000"
    assert [line.split()[-1] for line in found[3:5]] == ["0.png", "s003"]
    assert len(found) == 6
    assert "removed s002" in run("remove", "s002", "s002")
    assert "s002  " not in run("search", root / "s002").split("\n", 1)[1]
    listed = run("list").splitlines()
    assert [line.split()[0] for line in listed[:-1]] == ["s000", "s001", "s003"]
    assert "3 subjects, 64 values each" in listed[-1]
    assert open_gallery(run.gallery).files[0] == ("0.png", "1.png", "2.png")


def test_an_enrolled_name_is_refused_before_the_photos_are_read(
    run: Commands, face_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = face_folder(2, 2)
    run("enroll", "--images_root", root)
    before = run.gallery.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(recognition.aggregation, "aggregate_sets", None)
        assert "s001" in run("enroll", root / "s001", code=2)
    assert run.gallery.read_bytes() == before
    assert "2 subjects" in run("enroll", root / "s001", "--replace")


def test_other_weights_are_refused(
    run: Commands, face_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = face_folder(2, 2)
    run("enroll", root / "s000")
    torch.manual_seed(1)
    other = tmp_path / "other.safetensors"
    save_weights(other, build_backbone("ir_tiny").eval())
    other_run = Commands(run.gallery, other, capsys)
    for name in ("search", "enroll"):
        assert "other weights, another aggregator" in other_run(name, root / "s001", code=2)
        assert "cannot be compared" in run(name, root / "s001", "--aggregator", "mean", code=2)


def test_sets_of_several_persons_are_refused_unless_forced(
    run: Commands, face_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One contaminated set: nothing of the command is written, and all such sets are named."""
    root = face_folder(4, 3)
    identities = {"s001": [0, 1, 2], "s003": [0, 0, -1]}

    def checking(model: FaceModel, described: AggregatedSet, *others: Any, **options: Any) -> EnrolmentCheck:
        check = check_set(model, described, *others, **options)
        identity = np.array(identities.get(described.name, [0, 0, 0]))
        return replace(check, identity=identity, outlier=identity < 0)

    monkeypatch.setattr(enrolment, "check_set", checking)
    refused = run("enroll", "--images_root", root, code=2)
    assert "2 of 4 sets" in refused
    assert "3 identities: (1) 0.png; (2) 1.png; (3) 2.png." in refused
    assert "s003: 1 of 3 faces may show a different person: 2.png." in refused
    assert "--force" in refused
    assert "s000" not in refused
    assert not run.gallery.exists()
    said = run("enroll", "--images_root", root, "--force")
    assert "4 subjects" in said
    assert "2.png" in said


def test_limits_out_of_range_are_reported_with_other_faults(run: Commands, tmp_path: Path) -> None:
    said = run("enroll", tmp_path / "nowhere", "--outlier", 2, code=2)
    assert "--outlier 2" in said
    assert "nowhere" in said


def test_open_set_answers(run: Commands, face_folder: Callable[..., Path]) -> None:
    known, nonmated, probes = face_folder(12, 2), face_folder(30, 1, "others"), face_folder(13, 3, "probes")
    run("enroll", "--images_root", known)
    refused = run("search", probes / "s000", "--fpir", 0.01, code=2)
    assert "needs 500 subjects in the gallery" in refused
    said = run("search", probes / "s005", "--fpir", 0.5, "--top", 1)
    assert said.startswith("s005: s005\n")
    assert "of 12 searches" in said
    assert "are they one person?" in said
    # Subjects 12 to 29 are not enrolled; those before are, and their searches are as high as can be.
    for subject in range(12):
        for file in (nonmated / f"s{subject:03}").iterdir():
            file.unlink()
        (nonmated / f"s{subject:03}").rmdir()
    said = run("search", probes / "s005", "--fpir", 0.3, "--non_mated", nonmated)
    assert said.startswith("s005: s005\n")
    assert "5 of 18 searches" in said
    assert "rule of 30" in said
    (nonmated / "nobody").mkdir()
    (nonmated / "nobody" / "broken.png").write_bytes(b"")
    said = run("search", probes / "s005", "--fpir", 0.3, "--non_mated", nonmated)
    assert "5 of 18 searches" in said
    assert "1 of 19 sets have no usable face (FTE 5.26 %" in said
    assert "needs 50 subjects who are not enrolled" in run(
        "search", probes / "s000", "--fpir", 0.1, "--non_mated", nonmated, code=2
    )


def test_a_subject_who_is_not_enrolled_gets_no_name(run: Commands, face_folder: Callable[..., Path]) -> None:
    run("enroll", "--images_root", face_folder(20, 2))
    noise = run.gallery.parent / "noise"
    noise.mkdir()
    image = np.random.default_rng(0).integers(0, 255, (112, 112, 3)).astype(np.uint8)
    cv2.imwrite(str(noise / "a.png"), image)
    assert "noise: not enrolled" in run("search", noise, "--fpir", 0.25)


def test_all_faults_are_reported_at_once(run: Commands, tmp_path: Path) -> None:
    said = run("search", tmp_path / "nowhere", "--top", 0, "--non_mated", tmp_path, code=2)
    assert "--non_mated" in said
    assert "--top 0" in said
    assert "nowhere" in said
    assert "no such gallery" in said
    said = run("search", tmp_path / "nowhere", "--fpir", 2, code=2)
    assert "FPIR 2" in said
    assert "nowhere" in said


def test_help_shows_the_flags_of_a_command() -> None:
    command = [sys.executable, str(ROOT / "inference.py"), "search", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Find the enrolled subjects" in done.stdout
    assert "--non_mated" in done.stdout


def test_search_names_sets_that_may_show_several_persons(
    run: Commands, face_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = face_folder(3, 2)
    run("enroll", root / "s000")

    def contamination(model: FaceModel, described: AggregatedSet) -> str:
        return "it may show 2 persons." if described.name == "s001" else ""

    monkeypatch.setattr(quality_feedback, "contamination_text", contamination)
    lines = run("search", root / "s001", root / "s002").splitlines()
    assert [line for line in lines if "2 persons" in line] == ["s001: it may show 2 persons."]


def test_a_subject_is_renamed(run: Commands, face_folder: Callable[..., Path]) -> None:
    root = face_folder(2, 2)
    run("enroll", "--images_root", root)
    assert "renamed s001 to Zoe" in run("rename", "s001", "Zoe")
    assert run("search", root / "s001", "--top", 1).split()[-1] == "Zoe"
    assert "s001" in run("rename", "s001", "Ann", code=2)


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_export_and_import(run: Commands, face_folder: Callable[..., Path], suffix: str) -> None:
    root, out = face_folder(2, 2), run.gallery.parent / f"out{suffix}"
    run("enroll", "--images_root", root)
    before = open_gallery(run.gallery)
    assert "2 subjects" in run("export", "--out", out)
    run.gallery.unlink()
    assert "2 subjects" in run("import", out)
    np.testing.assert_array_equal(open_gallery(run.gallery).descriptors, before.descriptors)
    assert "already enrolled" in run("import", out, code=2)
    assert "2 subjects" in run("import", out, "--replace")
    assert ".txt" in run("export", "--out", out.with_suffix(".txt"), code=2)


def test_an_emptied_gallery_takes_a_model_with_other_descriptors(
    run: Commands, face_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = face_folder(2, 2)
    run("enroll", root / "s000")
    torch.manual_seed(0)
    backbone = build_backbone("ir_tiny").eval()
    backbone.set_auxiliary(6)
    run.weights = tmp_path / "wide.safetensors"
    save_weights(run.weights, backbone)
    # Of other weights, whose descriptors have another length.
    torch.manual_seed(1)
    other = tmp_path / "other.safetensors"
    save_weights(other, build_backbone("mobilefacenet").eval())
    for wide in (run.weights, other):
        run.weights = wide
        assert "another gallery" in run("enroll", root / "s001", code=2)
    run("remove", "s000")
    run("enroll", root / "s001")
    assert open_gallery(run.gallery).descriptors.shape == (1, 128)

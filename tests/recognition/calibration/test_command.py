from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import inference
from evaluation.metrics.set_pairs import all_pairs
from recognition.calibration.labelled_sets import aggregate_labelled, find_labelled
from recognition.calibration.measurement import RATES, cohort_normalisation, measure
from recognition.calibration.tables import measurement_text
from recognition.calibration.thresholds import read_calibration
from recognition.face_reading import PhotoOptions
from recognition.model import FaceModel, load_model

Folder = Callable[..., Path]


def run(*arguments: object) -> int:
    return inference.main([str(each) for each in arguments])


@pytest.fixture
def root(face_folder: Folder) -> Path:
    """46 subjects, as many as a rate of 1e-02 needs."""
    return face_folder(46, 3, "people", spread=40)


@pytest.fixture
def made(root: Path, checkpoint: Path, tmp_path: Path) -> Path:
    """A calibration of the checkpoint."""
    assert run(*calibrate(root, checkpoint, tmp_path / "c.json")) == 0
    return tmp_path / "c.json"


def calibrate(root: Path, weights: Path, out: Path, *more: object) -> tuple[object, ...]:
    flags = ("--weights", weights, "--images_root", root, "--aligned", "--out", out, "--device", "cpu")
    return ("calibrate", *flags, "--replicates", 40, *more)


def test_from_photos_to_a_decision(
    root: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "c.json"
    (root / "nobody").mkdir()
    (root / "nobody" / "broken.png").write_bytes(b"")
    assert run(*calibrate(root, checkpoint, made)) == 0
    said = capsys.readouterr().out
    content = json.loads(made.read_text())
    failures, figures = content["failures_to_enrol"], content["thresholds"]["1e-01"]
    assert (failures["attempts"], failures["failed"]) == (47, 1)
    assert "1 of 47 sets have no usable face (FTE 2.13 %" in said
    enrolled = 46 / 47
    assert failures["generalised"]["1e-01"] == {
        "gfar": pytest.approx(enrolled**2 * figures["fmr"]),
        "gfrr": pytest.approx(1 - enrolled**2 * (1 - figures["fnmr"])),
    }
    # 1,035 pairs of subjects and 1e-02: about ten false matches.
    assert "FMR 1e-02 rests on about 10 false matches" in said
    assert "the rule of 30" in said
    assert list(content["thresholds"]) == ["1e-01", "1e-02"]
    assert content["made_from"]["people"] == 46
    assert content["made_from"]["faces"] == 138
    assert "not supported: FMR 1e-03" in said
    assert "142 subjects have; there are 1,035" in said
    assert "The most similar subjects" in said
    # No non-mated pair reaches the highest threshold of the curve, which is just above the nearest one.
    assert content["curve"]["fmr"][0] == 0
    assert np.nextafter(content["closest"][0]["score"], 2) == max(content["curve"]["score"])
    flags = ("--weights", checkpoint, "--aligned", "--device", "cpu", "--calibration", made)
    out = tmp_path / "out"
    assert run(root / "s000", root / "s001" / "1.png", *flags, "--fmr", "0.1", "--out", out) == 0
    said = capsys.readouterr().out
    rows = list(csv.DictReader((out / "decisions.csv").open()))
    assert len(rows) == 1
    assert float(rows[0]["score"]) == pytest.approx(float(rows[0]["cosine"]))
    calibration = read_calibration(made, content["fingerprint"], "0.1")
    group = calibration.by_size.get(rows[0]["of_sizes"], calibration.everything)
    assert float(rows[0]["threshold"]) == pytest.approx(group.thresholds["1e-01"].value, abs=1e-5)
    assert "FMR at this score" in said
    assert f"threshold for a false match rate of 1e-01: {float(rows[0]['threshold']):.4f}" in said
    page = (out / "report.html").read_text()
    low, high = group.thresholds["1e-01"].interval95 or (0, 0)
    assert f"<td>{float(rows[0]['threshold']):.4f} ({low:.4f} to {high:.4f})</td>" in page


def test_search_decides_on_matches(
    root: Path, made: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery = tmp_path / "g.db"
    flags = ("--weights", checkpoint, "--aligned", "--device", "cpu", "--gallery", gallery)
    assert run("enroll", root / "s000", root / "s001", root / "s002", *flags) == 0
    capsys.readouterr()
    assert run("search", root / "s000" / "0.png", *flags, "--calibration", made, "--fmr", "1e-1") == 0
    said = capsys.readouterr().out
    assert said.count("FMR at this score") == 3
    assert "A search makes 3" in said
    assert run("search", root / "s000", *flags, "--fmr", "1e-1") == 2
    assert "--fmr has no effect without --calibration" in capsys.readouterr().err
    assert run("search", root / "s000", *flags, "--calibration", made, "--fmr", "1e-5") == 2
    assert "no threshold for the rate 1e-5; there are 1e-01, 1e-02" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("--aggregator", "mean"), "was made for another model"),
        (("--flip", "average"), "was made for another model"),
        ((), "alignment: as stored there"),
    ],
)
def test_a_calibration_of_another_model_or_preprocessing_is_refused(
    change: tuple[str, ...],
    expected: str,
    root: Path,
    made: Path,
    checkpoint: Path,
    shared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    detector = shared / "faces" / "face_detection_yunet_2023mar.onnx"
    how = ("--aligned",) if change else ("--detector", detector)
    flags = ("--weights", checkpoint, "--calibration", made, "--out", tmp_path / "out", "--device", "cpu")
    assert run(root / "s000", *flags, *how, *change) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_weights_are_refused(
    root: Path, made: Path, bare_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--aligned", "--calibration", made, "--out", tmp_path / "out", "--device", "cpu")
    assert run(root / "s000", "--weights", bare_weights, *flags) == 2
    assert "was made for another model" in capsys.readouterr().err


def test_a_cohort_normalises_scores_and_its_gain_is_reported(
    root: Path,
    checkpoint: Path,
    face_folder: Folder,
    tmp_path: Path,
    drawn_face: Callable[[int, int], bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    cohort = tmp_path / "cohort"
    for number in range(24):
        (cohort / f"c{number}").mkdir(parents=True)
        (cohort / f"c{number}" / "a.png").write_bytes(drawn_face(900 + number, 0))
    path = tmp_path / "n.json"
    assert run(*calibrate(root, checkpoint, path, "--cohort", cohort)) == 0
    said = capsys.readouterr().out
    assert "a cohort of 24 subjects (local_scaling, the nearest 12)" in said
    assert "% with cosines" in said
    content = json.loads(path.read_text())
    assert set(content["normalisation"]["gain"]["1e-01"]) == {"before", "after", "difference95"}
    calibration = read_calibration(path, content["fingerprint"])
    normalisation = calibration.normalisation
    assert normalisation is not None
    assert (normalisation.method, normalisation.cohort.shape) == ("local_scaling", (24, 64))
    out = tmp_path / "out"
    flags = ("--weights", checkpoint, "--aligned", "--device", "cpu", "--calibration", path, "--out", out)
    assert run(root / "s000", root / "s001", *flags) == 0
    assert "of scores normalised with a cohort (local_scaling)" in capsys.readouterr().out
    row = next(csv.DictReader((out / "decisions.csv").open()))
    assert row["score"] != row["cosine"]
    gallery = tmp_path / "g.db"
    flags = ("--weights", checkpoint, "--aligned", "--device", "cpu", "--gallery", gallery)
    assert run("enroll", root / "s001", *flags) == 0
    assert run("search", root / "s000", *flags, "--calibration", path) == 0
    # The same two sets, the same score.
    assert f"normalised {float(row['score']):.4f}" in capsys.readouterr().out


def test_all_faults_are_reported_and_nothing_is_written(
    root: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.txt"
    more = ("--faces", "central", "--replicates", 3, "--seed", -1, "--cohort", root)
    assert run(*calibrate(root, tmp_path / "gone.ckpt", out, *more)) == 2
    said = capsys.readouterr().err
    for part in (
        *("c.txt: expected a name that ends in .json", "--replicates 3", "--seed -1", "gone.ckpt"),
        *("--faces central", "s000, s001, s002, s003, s004 and 41 more are in --images_root too"),
    ):
        assert part in said
    assert run(*calibrate(root, checkpoint, tmp_path / "c.json", "--faces", "all")) == 2
    assert "--faces all" in capsys.readouterr().err
    assert not out.exists()
    assert not (tmp_path / "c.json").exists()


def test_the_same_seed_writes_the_same_bytes(root: Path, checkpoint: Path, tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        assert run(*calibrate(root, checkpoint, tmp_path / name)) == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.slow
def test_the_rate_on_other_subjects_is_in_its_interval(shared: Path, tmp_path: Path) -> None:
    """Calibrated on 185 subjects of LFW, checked on as many others; of 3 rates one may lie outside."""
    with tarfile.open(shared / "faces" / "lfw_dev112.tar") as archive:
        archive.extractall(tmp_path / "lfw", filter="data")
    away = set((shared / "faces" / "lfws_subjects.txt").read_text().split())
    subjects = sorted(path for path in next(iter((tmp_path / "lfw").rglob("*.jpg"))).parents[1].iterdir())
    subjects = [path for path in subjects if path.name not in away]
    np.random.default_rng(5).shuffle(subjects)
    model: FaceModel = load_model(shared / "faces" / "mobilefacenet.safetensors", device="cpu")
    halves = []
    for half in range(2):
        root = tmp_path / f"half{half}"
        root.mkdir()
        for path in subjects[185 * half : 185 * (half + 1)]:
            path.rename(root / path.name)
        halves.append(
            aggregate_labelled(model, find_labelled(root, "--images_root"), PhotoOptions(aligned=True))
        )
    measured = measure(halves[0])
    content, text = measured.content(model.fingerprint, {}), measurement_text(measured)
    assert list(content["thresholds"]) == ["1e-01", "1e-02", "1e-03"]
    assert "The threshold for 1e-03 rises from" in text
    other = halves[1]
    pairs = all_pairs(other.descriptors @ other.descriptors.T, other.subjects, other.sizes)
    nonmated = pairs.scores[~pairs.is_mated]
    inside = []
    for rate, figures in zip(RATES, content["thresholds"].values(), strict=False):
        observed = float((nonmated >= figures["threshold"]).mean())
        assert 0.4 * rate < observed < 2 * rate
        inside.append(figures["fmr_interval95"][0] <= observed <= figures["fmr_interval95"][1])
    assert sum(inside) >= 2
    assert cohort_normalisation(other).top == 92

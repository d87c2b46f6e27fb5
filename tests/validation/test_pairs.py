"""The command for pair sets: flags to files, every figure by hand, faults in one message, real faces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.sources.decoding import decode_face
from data.sources.pair_files import write_pair_set
from evaluation.reporting.report import read_result
from net import Backbone, build_backbone
from validation import pairs as validate_pairs
from weights import save_weights

ROOT = Path(__file__).resolve().parents[2]
Draw = Callable[[int, int], bytes]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def pairs_of(drawn_face: Draw, seed: int) -> tuple[list[bytes], list[bool]]:
    """40 pairs of 10 subjects, images repeated."""
    rng = np.random.default_rng(seed)
    images, mated = [], []
    for number in range(40):
        subject = int(rng.integers(10))
        other = subject if number % 2 == 0 else (subject + int(rng.integers(1, 10))) % 10
        images += [drawn_face(100 * seed + subject, 0), drawn_face(100 * seed + other, 1)]
        mated.append(subject == other)
    return images, mated


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    save_weights(tmp_path / "tiny.safetensors", build_backbone("ir_tiny"))
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def sets(tmp_path: Path, drawn_face: Draw) -> Path:
    """lfw.bin, agedb_30.bin and mine.bin in a folder."""
    folder = tmp_path / "faces_emore"
    folder.mkdir()
    for seed, name in enumerate(("lfw", "agedb_30", "mine")):
        write_pair_set(folder / f"{name}.bin", *pairs_of(drawn_face, seed))
    return folder


def run(capsys: pytest.CaptureFixture[str], *given: object) -> tuple[int, str, str]:
    argv, sys.argv = sys.argv, ["validate_pairs.py", *map(str, given), "--num_workers", "0", "--gpus", "0"]
    try:
        code = validate_pairs.PROTOCOL.main()
    finally:
        sys.argv = argv
    said = capsys.readouterr()
    return code, said.out, said.err


def features_by_hand(backbone: Backbone, images: Sequence[bytes], flip: bool) -> np.ndarray:
    """One image after another, joined with its mirror image as AdaFace does."""
    rows = []
    for image in images:
        levels = decode_face(image, "x").transpose(2, 0, 1)
        levels = levels[::-1].copy() if backbone.spec.channel_order == "BGR" else levels
        pixels = (torch.from_numpy(levels.copy()).float() - backbone.spec.mean) / backbone.spec.std
        with torch.no_grad():
            feature, norm = backbone.eval()(pixels[None])
            total = (feature * norm)[0]
            if flip:
                feature, norm = backbone(pixels.flip(2)[None])
                total = total + (feature * norm)[0]
        rows.append((total / total.norm()).double().numpy())
    return np.array(rows)


def accuracy_by_hand(rows: np.ndarray, mated: Sequence[bool]) -> tuple[float, float, float]:
    """Folds of four pairs in the order of the file."""
    distances = ((rows[0::2] - rows[1::2]) ** 2).sum(axis=1)
    accuracies, thresholds = [], []
    for fold in range(10):
        held = range(4 * fold, 4 * fold + 4)
        others = [n for n in range(40) if n not in held]
        rights = [sum((distances[n] < t / 100) == mated[n] for n in others) for t in range(400)]
        best = rights.index(max(rights)) / 100
        thresholds.append(best)
        accuracies.append(sum((distances[n] < best) == mated[n] for n in held) / 4)
    return np.mean(accuracies), np.std(accuracies, ddof=1) / np.sqrt(10), np.mean(thresholds)


@pytest.mark.parametrize("flip", ["pre_norm_vector_add", "none"])
def test_a_folder_of_pair_sets(
    tiny: Path, sets: Path, tmp_path: Path, drawn_face: Draw, capsys: pytest.CaptureFixture[str], flip: str
) -> None:
    out = tmp_path / "out"
    code, said, _ = run(capsys, "--weights", tiny, "--data_root", sets, "--out", out, "--flip", flip)
    assert code == 0
    result = read_result(out)
    torch.manual_seed(1)
    backbone = build_backbone("ir_tiny")
    expected = {}
    for seed, name in enumerate(("lfw", "agedb_30", "mine")):
        images, mated = pairs_of(drawn_face, seed)
        rows = features_by_hand(backbone, images, flip != "none")
        expected[name] = accuracy_by_hand(rows, mated)
        found = result["pair_sets"][name]
        accuracy = found["accuracy"]
        assert (accuracy["accuracy"], accuracy["standard_error"], accuracy["threshold"]) == pytest.approx(
            expected[name]
        )
        distances = ((rows[0::2] - rows[1::2]) ** 2).sum(axis=1)
        best_stranger = min(d for d, m in zip(distances, mated, strict=True) if not m)
        strict = np.mean([d < best_stranger for d, m in zip(distances, mated, strict=True) if m])
        assert found["verification"]["tar_at_far"]["1e-03"]["strict"] == pytest.approx(strict)
        assert (found["pairs"], found["mated"], found["images"]) == (40, sum(mated), len(set(images)))
        assert result["figures"][f"{name} accuracy"] == pytest.approx(expected[name][0])
    mean = np.mean([accuracy for accuracy, *_ in expected.values()])
    assert result["figures"]["mean accuracy of lfw, agedb_30, mine"] == pytest.approx(mean)
    assert "mean accuracy" not in result["figures"]
    cells = [f"{100 * expected[name][0]:.2f}" for name in ("lfw", "agedb_30", "mine")]
    row = next(line for line in said.splitlines() if line.startswith("| tiny.safetensors"))
    assert [c.strip() for c in row.strip("|").split("|")] == ["tiny.safetensors", *cells, f"{100 * mean:.2f}"]
    assert "| LFW " in said
    assert "lfw: 40 pairs, the published set has 6,000" in said
    assert "cfp_fp.bin, cplfw.bin, calfw.bin are missing" in said
    assert (out / "report.md").read_text().strip() in said
    assert result["protocol"]["rules"]["flip"] == ("not used" if flip == "none" else flip)
    assert result["protocol"]["rules"]["colour_order"] == "BGR"


def test_a_second_run_embeds_nothing_and_says_the_same(
    tiny: Path, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--weights", tiny, "--data_root", sets, "--sets", "mine", "lfw", "--cache", tmp_path / "cache")
    _, first, progress = run(capsys, *given, "--out", tmp_path / "a")
    assert "embedding" in progress
    _, second, progress = run(capsys, *given, "--out", tmp_path / "b")
    assert "embedding" not in progress
    assert first.replace(str(tmp_path / "a"), "") == second.replace(str(tmp_path / "b"), "")
    assert list(read_result(tmp_path / "b")["pair_sets"]) == ["mine", "lfw"]


def test_all_five_have_a_mean_that_can_be_compared(
    tiny: Path, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sets / "mine.bin").unlink()
    for name in ("cfp_fp", "cplfw", "calfw"):
        (sets / f"{name}.bin").write_bytes((sets / "lfw.bin").read_bytes())
    given = ("--weights", tiny, "--data_root", sets)
    code, said, _ = run(capsys, *given, "--out", tmp_path / "a", "--compare", "adaface_ir_18_casia")
    assert code == 0
    figures = read_result(tmp_path / "a")["figures"]
    single = [figures[f"{name} accuracy"] for name in ("lfw", "cfp_fp", "cplfw", "calfw", "agedb_30")]
    assert figures["mean accuracy"] == pytest.approx(np.mean(single))
    published = next(line for line in said.splitlines() if line.startswith("| adaface_ir_18_casia"))
    assert [c.strip() for c in published.strip("|").split("|")][1:] == ["-"] * 5 + ["92.82"]
    assert f"{100 * (figures['mean accuracy'] - 0.9282):+.2f}" in said
    code, said, _ = run(
        capsys, *given, "--out", tmp_path / "b", "--flip", "none", "--compare", tmp_path / "a"
    )
    assert code == 0
    assert "flip: not used here, pre_norm_vector_add there" in said


def test_a_folder_and_a_list(
    tiny: Path, tmp_path: Path, drawn_face: Draw, capsys: pytest.CaptureFixture[str]
) -> None:
    images, mated = pairs_of(drawn_face, 5)
    folder = tmp_path / "faces"
    folder.mkdir()
    lines = []
    for number, image in enumerate(images):
        (folder / f"{number}.png").write_bytes(image)
    lines = [f"{2 * n} {2 * n + 1}.png {int(m)}" for n, m in enumerate(mated)]
    (tmp_path / "mine.txt").write_text("\n".join(lines))
    given = ("--weights", tiny, "--pairs", folder, tmp_path / "mine.txt", "--out", tmp_path / "out")
    code, said, _ = run(capsys, *given)
    assert code == 0
    assert "| mine " in said
    torch.manual_seed(1)
    rows = features_by_hand(build_backbone("ir_tiny"), images, True)
    # Mated and non-mated pairs take turns, so that folds by kind are blocks of four.
    found = read_result(tmp_path / "out")["pair_sets"]["mine"]["accuracy"]
    assert found["accuracy"] == pytest.approx(accuracy_by_hand(rows, mated)[0])
    # An image that changes is another image.
    (folder / "0.png").write_bytes(drawn_face(999, 0))
    _, _, progress = run(capsys, *given)
    assert "embedding" in progress


def test_all_faults_are_told_in_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, told = run(
        capsys, "--weights", tmp_path / "gone.ckpt", "--data_root", tmp_path / "nowhere", "--batch_size", "0"
    )
    assert (code, said) == (2, "")
    assert "gone.ckpt: no such file" in told
    assert "nowhere: no such folder" in told
    assert "InsightFace's data zoo" in told
    assert "--batch_size 0: expected 1 or more" in told
    assert "Traceback" not in told


def fault(capsys: pytest.CaptureFixture[str], *given: object) -> str:
    code, _, told = run(capsys, *given)
    assert code == 2
    return told


def test_what_is_missing_is_looked_for_by_name(
    tiny: Path, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = fault(capsys, "--weights", tiny)
    assert "expected either --data_root, a folder of pair sets (lfw.bin, cfp_fp.bin, cplfw.bin" in told
    (tmp_path / "empty").mkdir()
    told = fault(capsys, "--weights", tiny, "--data_root", tmp_path / "empty")
    assert "looked for lfw.bin, cfp_fp.bin, cplfw.bin, calfw.bin, agedb_30.bin; found no .bin file" in told
    told = fault(capsys, "--weights", tiny, "--data_root", sets, "--sets", "lfw", "calfw")
    assert "looked for calfw.bin; found agedb_30.bin, lfw.bin, mine.bin" in told
    told = fault(capsys, "--weights", tiny, "--pairs", sets, sets / "x", "--sets", "lfw")
    assert "--sets" in told
    told = fault(capsys, "--weights", tiny, "--data_root", sets, "--compare", "adaface_ir_10")
    assert "neither a file nor a published row" in told
    (sets / "lfw.bin").write_bytes(b"torn")
    (sets / "mine.bin").write_bytes(b"torn")
    told = fault(capsys, "--weights", tiny, "--data_root", sets)
    assert "lfw.bin: cannot be read as a pair set" in told
    assert "mine.bin: cannot be read as a pair set" in told


def test_a_broken_image_is_named(
    tiny: Path, sets: Path, tmp_path: Path, drawn_face: Draw, capsys: pytest.CaptureFixture[str]
) -> None:
    images, mated = pairs_of(drawn_face, 0)
    images[6] = b"torn"
    write_pair_set(sets / "lfw.bin", images, mated)
    told = fault(capsys, "--weights", tiny, "--data_root", sets, "--out", tmp_path / "out")
    assert "lfw, image 6 (pair 3)" in told


@pytest.mark.slow
def test_the_script_runs_from_any_folder(tiny: Path, sets: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable}
    script = ROOT / "validation_hq" / "eval_5valsets.sh"
    given = ["--weights", tiny.name, "--data_root", sets.name, "--sets", "lfw", "--out", "out", "--gpus", "0"]
    # Relative paths are relative to where the command is called, in two processes as in one.
    command = ["bash", str(script), *given, "--num_workers", "1", "--cpu_processes", "2"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| tiny.safetensors") == 1
    result: dict[str, Any] = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["command"].startswith("validate_pairs.py --weights tiny.safetensors")
    bare = subprocess.run(
        ["bash", str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert bare.returncode == 2
    assert bare.stderr.startswith("error: --weights is missing")
    assert "lfw.bin, cfp_fp.bin" in bare.stderr


@pytest.mark.slow
def test_real_faces_and_a_real_backbone(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--weights", shared / "faces" / "mobilefacenet.safetensors", "--data_root", shared / "faces")
    code, _, _ = run(capsys, *given, "--flip", "none", "--out", tmp_path)
    assert code == 0
    result = read_result(tmp_path)
    found = result["pair_sets"]["dev_pairs"]
    assert found["pairs"] == 1600
    # shared/faces/README: 0.9956 at the best threshold of all pairs.
    assert found["accuracy"]["accuracy"] == pytest.approx(0.9956, abs=0.002)
    assert found["verification"]["tar_at_far"]["1e-03"]["strict"] > 0.97

"""The IJB-S command: flags to files, every figure by hand, aggregators, faults in one message."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from coreset import build_aggregator
from evaluation.reporting.report import read_result
from net import build_backbone
from tests.lq_layout import IjbSByHand, write_ijb_s
from validation import ijb_s as validate_IJB_S
from weights import save_weights

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("single", "booking", "surveillance")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    save_weights(tmp_path / "tiny.safetensors", build_backbone("ir_tiny"))
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def root(tmp_path: Path, drawn_face: Callable[[int, int], bytes]) -> Path:
    return write_ijb_s(tmp_path / "IJB_S", drawn_face)


def run(capsys: pytest.CaptureFixture[str], *given: object) -> tuple[int, str, str]:
    argv, sys.argv = sys.argv, ["validate_IJB_S.py", *map(str, given), "--num_workers", "0", "--gpus", "0"]
    try:
        code = validate_IJB_S.PROTOCOL.main()
    finally:
        sys.argv = argv
    said = capsys.readouterr()
    return code, said.out, said.err


def vectors(paths: Sequence[Path]) -> np.ndarray:
    """Features that are not normalised, one image after another, without mirror images."""
    torch.manual_seed(3)
    backbone = build_backbone("ir_tiny").eval()
    found = []
    for path in paths:
        image = torch.from_numpy(cv2.imread(str(path)).transpose(2, 0, 1)).float()
        with torch.no_grad():
            feature, norm = backbone((image[None] - 127.5) / 127.5)
        found.append((feature[0] * norm[0]).double().numpy())
    return np.array(found)


def expected_figures(root: Path) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """'figures' and CMCs of result.json, by hand."""
    oracle = IjbSByHand(root, vectors)
    figures, closed = {}, {}
    for kind in KINDS:
        name = f"surveillance_to_{kind}"
        first, second = oracle.galleries(kind)
        for part, gallery in (("gallery1", first), ("gallery2", second), ("joint", {**first, **second})):
            closed[f"{name} {part}"] = {str(rank): oracle.cmc(gallery, rank) for rank in (1, 5, 10)}
        figures |= {f"{name} rank {rank}": rate for rank, rate in closed[f"{name} joint"].items()}
        for fpir in (0.01, 0.1):
            rates = [oracle.tpir(first, fpir), oracle.tpir(second, fpir)]
            figures[f"{name} TPIR@FPIR {fpir:g}"] = sum(rates) / 2
    return figures, closed


def test_flags_to_figures(tiny: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(root / "4")
    out = tmp_path / "out"
    code, said, _ = run(
        capsys, "--weights", tiny, "--data_root", root, "--out", out, "--compare", "adaface_ir_101_ms1mv2"
    )
    assert code == 0
    result = read_result(out)
    figures, closed = expected_figures(root)
    assert result["figures"] == pytest.approx(figures)
    found = {name: part["cmc"] for name, part in result["identification"]["closed"].items()}
    assert found.keys() == closed.keys()
    for name, rates in closed.items():
        assert found[name] == pytest.approx(rates), name
    assert result["model"]["aggregator"] == "norm_weighted"
    assert result["protocol"]["rules"]["flip"] == "not used"
    assert result["protocols"]["surveillance_to_single"]["gallery1"] == 6
    row = next(line for line in said.splitlines() if line.startswith("| norm_weighted"))
    wanted = [
        figures[f"surveillance_to_{kind} {figure}"]
        for kind in KINDS
        for figure in ("rank 1", "rank 5", "TPIR@FPIR 0.01")
    ]
    assert [c.strip() for c in row.strip("|").split("|")][1:] == [f"{100 * value:.2f}" for value in wanted]
    row = next(line for line in said.splitlines() if line.startswith("| adaface_ir_101_ms1mv2"))
    published = ["65.26", "70.53", "51.66", *["-"] * 6]
    assert [c.strip() for c in row.strip("|").split("|")][1:] == published
    assert f"{100 * (wanted[0] - 0.6526):+.2f}" in said
    assert "Sur-to-Book: 1 of 6 gallery 1 have no face" in said
    assert (out / "report.md").read_text().strip() in said


def test_aggregators_share_the_features(
    tiny: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--weights", tiny, "--data_root", root, "--cache", tmp_path / "cache")
    names = ["mean", "norm_weighted", "best_norm"]
    code, said, _ = run(capsys, *given, "--out", tmp_path / "a", "--aggregator", *names)
    assert code == 0
    several = read_result(tmp_path / "a")
    assert list(several["aggregators"]) == names
    assert several["model"]["aggregator"] == "mean"
    assert several["aggregators"]["norm_weighted"]["figures"] == pytest.approx(expected_figures(root)[0])
    for name in names:
        code, said, progress = run(capsys, *given, "--out", tmp_path / name, "--aggregator", name)
        assert (code, "embedding" in progress) == (0, False)
        assert read_result(tmp_path / name)["figures"] == several["aggregators"][name]["figures"]
        assert f"| {name}" in said
    # Beside an earlier run of one's own.
    code, said, _ = run(
        capsys, *given, "--out", tmp_path / "b", "--aggregator", "mean", "--compare", tmp_path / "best_norm"
    )
    assert code == 0
    assert "aggregator: mean here, best_norm there" in said


def checkpoint(path: Path, seed: int) -> Path:
    """What the coreset stage leaves: backbone and aggregator."""
    torch.manual_seed(seed)
    backbone = build_backbone("ir_tiny")
    options = {"embedding_size": 64, "coreset_size": 2}
    aggregator = build_aggregator("coreset", options)
    state = {f"model.{key}": value for key, value in backbone.state_dict().items()}
    state |= {f"aggregator.{key}": value for key, value in aggregator.state_dict().items()}
    content: dict[str, Any] = {
        "state_dict": state,
        "backbone_spec": backbone.spec.to_dict(),
        "aggregator_name": "coreset",
        "aggregator_options": options,
    }
    torch.save(content, path)
    return path


def test_a_trained_aggregator_comes_from_the_checkpoint(
    tiny: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = checkpoint(tmp_path / "best.ckpt", 3)
    given = ("--data_root", root, "--cache", tmp_path / "cache")
    code, said, _ = run(capsys, "--weights", own, *given, "--out", tmp_path / "a")
    assert code == 0
    assert "| coreset" in said
    trained = ("--weights", tiny, "--aggregator_weights", own, "--aggregator", "coreset")
    code, _, _ = run(capsys, *trained, *given, "--out", tmp_path / "b")
    assert code == 0
    first, second = (read_result(tmp_path / name) for name in ("a", "b"))
    assert first["figures"] == second["figures"]
    assert first["model"]["aggregator"] == "coreset"


def test_an_aggregator_that_does_not_fit_is_refused(
    tiny: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(*given: object) -> str:
        code, _, told = run(capsys, "--data_root", root, "--out", tmp_path / "out", *given)
        assert code == 2
        return told

    told = fault("--weights", tiny, "--aggregator", "coreset")
    assert "--aggregator coreset: has to be trained" in told
    assert "choose among mean, norm_weighted" in told
    told = fault("--weights", tiny, "--aggregator_weights", tiny)
    assert "contains no aggregator" in told
    other = checkpoint(tmp_path / "other.ckpt", 4)
    told = fault("--weights", tiny, "--aggregator_weights", other, "--aggregator", "coreset")
    assert "another backbone" in told
    told = fault("--weights", tiny, "--aggregator_weights", other, "--aggregator", "mean")
    assert "Add 'coreset' to --aggregator" in told
    told = fault("--weights", other, "--flip", "concat")
    assert "64 values" in told
    assert "128" in told


def test_all_faults_are_told_in_one_message(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "protocols" / "cs6_metadata.csv").unlink()
    code, said, told = run(capsys, "--data_root", root, "--compare", "adaface_ir_18_casia")
    assert (code, said) == (2, "")
    assert "--weights is missing" in told
    assert f"protocol files that are missing: {root / 'protocols' / 'cs6_metadata.csv'}" in told
    assert "has no published figure of surveillance_to_single" in told
    assert "Traceback" not in told


def test_one_protocol_needs_its_own_files_alone(
    tiny: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (root / "protocols" / "galleries").glob("*_to_single_*"):
        path.unlink()
    shutil.move(root / "protocols", tmp_path / "lists")
    given = ("--weights", tiny, "--data_root", root, "--protocol_root", tmp_path / "lists")
    code, said, _ = run(capsys, *given, "--protocol", "surveillance_to_booking", "--out", tmp_path / "out")
    assert code == 0
    assert "Sur-to-Book rank 1" in said
    assert "Sur-to-Single" not in said
    assert set(read_result(tmp_path / "out")["protocols"]) == {"surveillance_to_booking"}


def test_the_seeds_command_says_what_is_missing() -> None:
    done = subprocess.run(
        [sys.executable, "validate_IJB_S.py"],
        cwd=ROOT / "validation_lq",
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 2
    assert "--weights is missing" in done.stderr
    assert "DATA_ROOT/<SUBJECT>/videos_<VIDEO>_<FRAME>.jpg" in done.stderr
    assert "Traceback" not in done.stderr

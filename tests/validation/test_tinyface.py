"""The TinyFace command: flags to files, every figure by hand, faults in one message."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from evaluation.reporting.report import read_result
from net import build_backbone
from tests.lq_layout import TESTING, tinyface_by_hand, write_tinyface
from validation import tinyface as validate_tinyface
from weights import save_weights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    torch.manual_seed(2)
    save_weights(tmp_path / "tiny.safetensors", build_backbone("ir_tiny"))
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def root(tmp_path: Path, drawn_face: Callable[[int, int], bytes]) -> Path:
    return write_tinyface(tmp_path / "tinyface_root", drawn_face)


def run(capsys: pytest.CaptureFixture[str], *given: object) -> tuple[int, str, str]:
    argv, sys.argv = sys.argv, ["validate_tinyface.py", *map(str, given), "--num_workers", "0", "--gpus", "0"]
    try:
        code = validate_tinyface.PROTOCOL.main()
    finally:
        sys.argv = argv
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("flip", ["pre_norm_vector_add", "average", "none"])
def test_flags_to_figures(
    tiny: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flip: str
) -> None:
    out = tmp_path / "out"
    given = () if flip == "pre_norm_vector_add" else ("--flip", flip)
    code, said, _ = run(capsys, "--weights", tiny, "--data_root", root, "--out", out, *given)
    assert code == 0
    torch.manual_seed(2)
    backbone = build_backbone("ir_tiny").eval()

    def rows(paths: Sequence[Path]) -> np.ndarray:
        found = []
        for path in paths:
            # OpenCV reads BGR, the order of this backbone.
            image = torch.from_numpy(cv2.imread(str(path)).transpose(2, 0, 1)).float()
            total: torch.Tensor | float = 0.0
            for pixels in (image,) if flip == "none" else (image, image.flip(2)):
                with torch.no_grad():
                    feature, norm = backbone((pixels[None] - 127.5) / 127.5)
                total = total + feature[0] * (1 if flip == "average" else norm[0])
            found.append((total / torch.linalg.vector_norm(total)).double().numpy())
        return np.array(found)

    result = read_result(out)
    expected = {str(rank): tinyface_by_hand(root, rows, rank) for rank in (1, 5, 20)}
    closed = result["identification"]["closed"]["gallery with distractors"]["cmc"]
    assert closed == pytest.approx(expected)
    assert result["figures"] == pytest.approx({f"rank {rank}": rate for rank, rate in expected.items()})
    assert result["data"] == {"images": 48, "probes": 12, "gallery": 16, "distractors": 20}
    assert result["protocol"]["name"] == "TinyFace"
    row = next(line for line in said.splitlines() if line.startswith("| tiny.safetensors"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["tiny.safetensors", *(f"{100 * rate:.2f}" for rate in expected.values())]
    assert "12 probes searched among 16 gallery images and 20 distractors" in said
    assert "Probe: 12 images, the published protocol has 3,728" in said
    assert (out / "report.md").read_text().strip() in said


def test_beside_published_figures(
    tiny: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--weights", tiny, "--data_root", root, "--out", tmp_path / "out")
    code, said, _ = run(capsys, *given, "--compare", "adaface_ir_101_webface4m")
    assert code == 0
    row = next(line for line in said.splitlines() if line.startswith("| adaface_ir_101_webface4m"))
    assert [cell.strip() for cell in row.strip("|").split("|")][1:] == ["72.02", "74.52", "-"]
    rank1 = read_result(tmp_path / "out")["figures"]["rank 1"]
    assert f"{100 * (rank1 - 0.7202):+.2f}" in said
    assert "backbone: ir_tiny here, ir_101 there" in said


def test_all_faults_are_told_in_one_message(
    tiny: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, told = run(capsys, "--data_root", tmp_path, "--compare", "nobody")
    assert (code, said) == (2, "")
    assert "--weights is missing" in told
    assert f"gallery_match_img_ID_pairs.mat was looked for in {tmp_path / TESTING}" in told
    assert "https://qmul-tinyface.github.io" in told
    assert "'nobody' is neither a file nor a published row" in told
    code, _, told = run(capsys, "--weights", tiny)
    assert (code, told.startswith("error: --data_root is missing")) == (2, True)
    code, _, told = run(capsys, "--weights", tiny, "--data_root", root, "--images", tmp_path / "aligned")
    assert (code, f"{tmp_path / 'aligned/Gallery_Match'}: no such folder" in told) == (2, True)


def test_faces_that_are_not_aligned_are_named(
    tiny: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / TESTING / "Probe" / "0_3.jpg"
    cv2.imwrite(str(path), np.zeros((20, 16, 3), np.uint8))
    code, _, told = run(capsys, "--weights", tiny, "--data_root", root, "--out", tmp_path / "out")
    assert code == 2
    assert f"{path}: the image is 16 x 20 pixels, expected 112 x 112" in told
    assert "Traceback" not in told

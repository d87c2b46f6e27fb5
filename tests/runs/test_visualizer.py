"""Learning curves: read from metrics.csv, drawn."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from runs.visualizer import draw_curves, read_metrics

pytestmark = pytest.mark.plots


def write(path: Path, steps: list[int], loss: float) -> None:
    rows = "".join(f"{step},{loss},0.5\n" for step in steps)
    path.write_text("step,train/loss,val/rank1\n" + rows)


def test_run_without_metrics_has_no_curves(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("")
    assert len(read_metrics(tmp_path)) == 0
    draw_curves(tmp_path, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_curves_are_written_as_an_image(tmp_path: Path) -> None:
    write(tmp_path / "metrics.csv", list(range(0, 200, 5)), 1.0)
    draw_curves(tmp_path, tmp_path / "curves.png")
    image = cv2.imread(str(tmp_path / "curves.png"))
    assert image.shape[1] > image.shape[0] > 100
    assert image.std() > 5

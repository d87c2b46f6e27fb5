"""Norm and degradation, on backbones whose norm is known to be quality or not; MobileFaceNet for real."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from net import BACKBONES, Backbone
from quality.check import check_quality
from runtime.errors import InputError
from weights import load_backbone


class Detail(Backbone):
    """The norm is the contrast between neighbouring pixels, or its inverse, or nothing."""

    def __init__(self, sense: int) -> None:
        super().__init__(BACKBONES["ir_tiny"])
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.sense = sense

    def features(self, images: Tensor) -> Tensor:
        detail = (images[..., 1:] - images[..., :-1]).abs().mean(dim=(1, 2, 3)) + 0.01
        norm = detail**self.sense if self.sense else torch.rand(len(images)) + 1
        direction = torch.nn.functional.normalize(images.flatten(1)[:, :64], dim=1)
        return direction * norm[:, None] * self.scale


@pytest.fixture
def fine_faces(tmp_path: Path) -> Path:
    """Images whose detail is as fine as pixels are, so that it is lost first."""
    for subject in range(20):
        folder = tmp_path / "imgs" / f"s{subject:02}"
        folder.mkdir(parents=True)
        for number in range(3):
            levels = np.random.default_rng([subject, number]).normal(120, 40, (112, 112, 3)).clip(0, 255)
            cv2.imwrite(str(folder / f"{number}.png"), levels.astype(np.uint8))
    return tmp_path / "imgs"


@pytest.mark.parametrize(("sense", "quality", "sign"), [(1, "norm", -1), (-1, "none", 1), (0, "none", 0)])
def test_quality_follows_the_correlation(sense: int, quality: str, sign: int, fine_faces: Path) -> None:
    report = check_quality(Detail(sense), fine_faces, num_images=60)
    assert report.quality == quality
    assert "--quality" not in report.text  # The recommendation is given once, after all measurements.
    assert abs(report.correlation - 0.8 * sign) < 0.3
    assert report.num_images == 60


def test_it_is_deterministic(fine_faces: Path) -> None:
    first = check_quality(Detail(1), fine_faces, num_images=30)
    assert check_quality(Detail(1), fine_faces, num_images=30) == first
    assert check_quality(Detail(1), fine_faces, num_images=30, seed=1).text != first.text


def test_too_few_faces_are_an_error(face_folder: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="holds 6 images; expected 20 or more"):
        check_quality(Detail(1), face_folder(3, 2))


@pytest.mark.slow
def test_mobilefacenets_norm_falls_with_degradation(shared: Path, tmp_path: Path) -> None:
    with tarfile.open(shared / "faces" / "lfw_dev112.tar") as archive:
        archive.extractall(tmp_path, members=archive.getmembers()[:1500], filter="data")
    root = next(path.parent.parent for path in tmp_path.rglob("*.jpg"))
    report = check_quality(load_backbone(shared / "faces" / "mobilefacenet.safetensors"), root)
    assert report.correlation == pytest.approx(-0.76, abs=0.1)
    assert report.quality == "norm"
    assert "The colour order is right" in report.text

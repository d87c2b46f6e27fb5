"""Fixtures that all tests share: golden data, the optional shared material, small folders of faces."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
# Small tensors gain nothing from threads, which wait for each other on a busy machine; for subprocesses too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import pytest
import torch
from hypothesis import settings

# The same examples in every run, so that a change is judged by what it changed. More are sought by
# `pytest --hypothesis-profile default`.
settings.register_profile("same_examples", derandomize=True)
settings.load_profile("same_examples")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared (real faces and conformance data), which is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    return ROOT / "tests" / "golden"


@pytest.fixture(autouse=True)
def _same_random_numbers_in_every_test() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def drawn_face() -> Callable[[int, int], bytes]:
    return _drawn_face


def _drawn_face(subject: int, number: int) -> bytes:
    """A PNG of 112 x 112: a coarse pattern of the subject in skin colours, with some noise of its own."""
    pattern = np.random.default_rng(subject).integers(60, 200, (7, 7, 1))
    noise = np.random.default_rng([subject, number]).integers(-25, 25, (7, 7, 1))
    levels = np.clip(pattern + noise, 0, 255) * np.array([[[0.5, 0.75, 1.0]]])
    image = levels.astype(np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    return cv2.imencode(".png", image)[1].tobytes()


@pytest.fixture
def face_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes `<tmp>/<name>/<subject>/<image>.png` of so many subjects with so many images each."""

    def make(subjects: int, images: int, name: str = "imgs") -> Path:
        for subject in range(subjects):
            folder = tmp_path / name / f"s{subject:03}"
            folder.mkdir(parents=True)
            for number in range(images):
                (folder / f"{number}.png").write_bytes(_drawn_face(subject, number))
        return tmp_path / name

    return make

"""Fixtures that all tests share: golden data, the optional shared material, small folders of faces."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")
# Small tensors gain nothing from threads, which wait for each other on a busy machine; for subprocesses too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import pytest
import torch
from hypothesis import settings
from matplotlib.figure import Figure

from data.sources.pair_files import write_pair_set
from net import build_backbone
from weights import save_weights

# The same examples in every run, so that a change is judged by what it changed. More are sought by
# `pytest --hypothesis-profile default`.
# No deadline: a busy machine is no fault of the code.
settings.register_profile("same_examples", derandomize=True, deadline=None)
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


@pytest.fixture(autouse=True)
def _plots_are_laid_out_only_where_they_are_tested(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text and pixels of the plots are two thirds of the time of a short training or evaluation."""
    if request.node.get_closest_marker("plots") is None:
        monkeypatch.setattr(Figure, "savefig", lambda _, file, **__: Path(file).write_bytes(b"a plot"))


@pytest.fixture(scope="session")
def drawn_face() -> Callable[[int, int], bytes]:
    return _drawn_face


def _drawn_face(subject: int, number: int, spread: int = 25) -> bytes:
    """A PNG of 112 x 112: a coarse pattern of the subject in skin colours, with some noise of its own.

    With a `spread` of 40 no two are near-duplicates of each other.
    """
    pattern = np.random.default_rng(subject).integers(60, 200, (7, 7, 1))
    noise = np.random.default_rng([subject, number]).integers(-spread, spread, (7, 7, 1))
    levels = np.clip(pattern + noise, 0, 255) * np.array([[[0.5, 0.75, 1.0]]])
    image = levels.astype(np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    return cv2.imencode(".png", image)[1].tobytes()


@pytest.fixture
def face_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes `<tmp>/<name>/<subject>/<image>.png` of so many subjects with so many images each."""

    def make(subjects: int, images: int, name: str = "imgs", spread: int = 25) -> Path:
        for subject in range(subjects):
            folder = tmp_path / name / f"s{subject:03}"
            folder.mkdir(parents=True)
            for number in range(images):
                (folder / f"{number}.png").write_bytes(_drawn_face(subject, number, spread))
        return tmp_path / name

    return make


@pytest.fixture
def world(
    tmp_path: Path, face_folder: Callable[..., Path], drawn_face: Callable[[int, int], bytes]
) -> dict[str, Any]:
    """A folder of faces, a pair set, weights of a tiny backbone; flags that both stages share."""
    folder = face_folder(8, 6)
    images = [drawn_face(100 + s // 2, s) for s in range(40)]
    (tmp_path / "val").mkdir()
    write_pair_set(tmp_path / "val" / "drawn.bin", images, [True] * 20)
    mixed = [image for s in range(20) for image in (drawn_face(100 + s, 0), drawn_face(100 + s // 2 * 2, 1))]
    write_pair_set(tmp_path / "val" / "mixed.bin", mixed, [s % 2 == 0 for s in range(20)])
    (tmp_path / "val" / "drawn.bin").unlink()
    torch.manual_seed(1)
    save_weights(tmp_path / "tiny.safetensors", build_backbone("ir_tiny"))
    return {
        "train_data_path": str(folder),
        "out": str(tmp_path / "experiments"),
        "num_workers": 0,
        "batch_size": 8,
        "gpus": 0,
        "epochs": 2,
    }


@pytest.fixture
def backbone_stage(world: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    return world | {"arch": "ir_tiny", "val_data_path": str(tmp_path / "val"), "lr_milestones": (1,)}


@pytest.fixture
def coreset_stage(world: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    return world | {
        "start_from_model_statedict": str(tmp_path / "tiny.safetensors"),
        "held_out": 3.0,
        "max_template_size": 5,
        "epoch_items": 32,
        "lr": 1e-3,
    }

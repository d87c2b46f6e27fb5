"""A small network with random weights, and aggregated sets without photos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from coreset import build_aggregator
from net import Backbone, build_backbone
from photos.photo_files import thumbnail
from recognition.model import FaceModel, aggregate_features, load_model
from recognition.records import AggregatedSet, FaceRecord, Rejection
from weights import save_weights

NAME, D = "ir_tiny", 64


def _backbone() -> Backbone:
    torch.manual_seed(3)
    return build_backbone(NAME).eval()


@pytest.fixture(scope="session")
def bare_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone without an aggregator."""
    path = tmp_path_factory.mktemp("bare") / "backbone.safetensors"
    save_weights(path, _backbone())
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a backbone and a coreset aggregator."""
    backbone = _backbone()
    options = {"embedding_size": D, "coreset_size": 3}
    aggregator = build_aggregator("coreset", options)
    state = {f"model.{key}": value for key, value in backbone.state_dict().items()}
    state |= {f"aggregator.{key}": value for key, value in aggregator.state_dict().items()}
    path = tmp_path_factory.mktemp("whole") / "best.ckpt"
    content = {"state_dict": state, "backbone_spec": backbone.spec.to_dict()}
    torch.save(content | {"aggregator_name": "coreset", "aggregator_options": options}, path)
    return path


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> FaceModel:
    return load_model(checkpoint, device="cpu")


@pytest.fixture(scope="session")
def bare_model(bare_weights: Path) -> FaceModel:
    return load_model(bare_weights, device="cpu")


@pytest.fixture(scope="session")
def make_set() -> Callable[..., AggregatedSet]:
    return aggregated_set


def aggregated_set(
    model: FaceModel,
    features: np.ndarray,
    norms: Sequence[float] | None = None,
    name: str = "anna",
    rejected: Sequence[Rejection] = (),
) -> AggregatedSet:
    """A set of faces with these features, normalised to unit rows."""
    rows = np.asarray(features, np.float32)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    lengths = np.full(len(rows), 10, np.float32) if norms is None else np.array(norms, np.float32)
    faces = [FaceRecord(f"{number:04}.jpg", number, thumbnail_of(row)) for number, row in enumerate(rows)]
    found = aggregate_features(model, rows, lengths)
    return AggregatedSet(
        name=name,
        path=Path(name),
        faces=faces,
        features=rows,
        norms=lengths,
        rejected=list(rejected),
        **vars(found),
    )


def thumbnail_of(feature: np.ndarray) -> bytes:
    """A thumbnail that is equal for equal features only."""
    rng = np.random.default_rng(np.abs(feature * 1e4).astype(np.int64))
    coarse = rng.integers(60, 200, (14, 14, 3), np.uint8)
    return thumbnail(coarse.repeat(8, axis=0).repeat(8, axis=1))

"""--quality of the IJB command: the meta files' detector scores reach poolings and fused models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coreset import build_aggregator
from evaluation.protocols.face_points import read_points
from evaluation.protocols.ijb_layout import read_protocol
from evaluation.protocols.templates import aggregate_templates, group_faces
from evaluation.reporting.report import read_result
from net import build_backbone
from runtime.errors import InputError
from tests.ijb_layout import Dataset, write_dataset
from validation import ijb as validate_ijb
from weights import StoredAggregator, save_weights


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path / "sets")


def test_scores_weigh_the_faces_of_a_template() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(9, 8)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    norms, scores = rng.uniform(5, 30, (2, 9)).astype(np.float32)
    groups = group_faces(np.repeat([0, 1, 2], 3), np.arange(9), 3)
    for name in ("norm_weighted", "media_mean", "fps_mean"):
        by_score = build_aggregator(name, {"quality": "detector"})
        found = aggregate_templates(by_score, features, norms, groups, detector_scores=scores).embedding
        wanted = aggregate_templates(build_aggregator(name, {}), features, scores, groups).embedding
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    with pytest.raises(InputError, match="detector"):
        aggregate_templates(
            build_aggregator("norm_weighted", {"quality": "detector"}), features, norms, groups
        )


@pytest.mark.parametrize("media", ["none", "mean"])
def test_the_command_takes_the_scores_of_the_meta_files(media: str, data: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(1)
    backbone = build_backbone("ir_tiny")
    aggregator = build_aggregator("coreset", options := {"embedding_size": 64, "quality": "detector"})
    save_weights(tmp_path / "fused.safetensors", backbone, StoredAggregator("coreset", options, aggregator))
    given = {
        **{"data_root": str(data.root), "dataset_name": data.name, "out": str(tmp_path / "out"), "gpus": 0},
        **{"weights": str(tmp_path / "fused.safetensors"), "num_workers": 0, "replicates": 0},
        **{"aggregator": ["coreset", "norm_weighted"], "quality": "detector", "media": media},
    }
    validate_ijb.PROTOCOL.validate(given)
    result = read_result(tmp_path / "out")
    assert result["model"]["weights_sha256"]
    scores = read_points(read_protocol(data.root, data.name)).scores
    assert len(np.unique(scores)) > 1


def test_a_flag_without_effect_is_refused(tmp_path: Path) -> None:
    given: dict[str, Any] = {"data_root": str(tmp_path), "features": str(tmp_path), "quality": "none"}
    protocol = validate_ijb.PROTOCOL
    assert protocol.check(given, protocol.arguments(given)) == []
    given["aggregator"] = ["mean"]
    assert "--quality" in protocol.check(given, protocol.arguments(given))[0]

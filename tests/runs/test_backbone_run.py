"""`main.py --evaluate` of a backbone: accuracy on pair sets against a slow oracle, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import main
from data.sources.pair_files import read_pair_set
from runtime.errors import InputError
from weights import load_backbone

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def evaluation(world: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Flags of an evaluation without training data."""
    return {
        "start_from_model_statedict": str(tmp_path / "tiny.safetensors"),
        "arch": "ir_tiny",
        "data_root": str(tmp_path),
        "val_data_path": "val",
        "evaluate": True,
        "out": world["out"],
        "num_workers": 0,
        "gpus": 0,
    }


def slow_accuracy(weights: Path, pair_set: Path) -> float:
    """One image after another; each of ten folds by the threshold that is best on the others."""
    backbone, pairs = load_backbone(weights), read_pair_set(pair_set)
    assert backbone.spec.channel_order == "BGR"
    features = []
    for encoded in pairs.images:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR).astype(np.float32)
        both = torch.from_numpy(np.stack([image, image[:, ::-1]]).transpose(0, 3, 1, 2).copy())
        with torch.no_grad():
            embedding, norm = backbone((both - 127.5) / 127.5)
        fused = (embedding * norm).sum(dim=0)
        features.append((fused / fused.norm()).double())
    distances = [float(((a - b) ** 2).sum()) for a, b in zip(features[::2], features[1::2], strict=True)]
    accuracies = []
    for fold in np.array_split(np.arange(len(distances)), 10):
        others = [i for i in range(len(distances)) if i not in fold]

        def share(rows: Any, threshold: float) -> float:
            return float(np.mean([(distances[i] < threshold) == pairs.is_mated[i] for i in rows]))

        best = max(np.arange(0, 4, 0.01), key=lambda t: share(others, t))
        accuracies.append(share(fold, best))
    return float(np.mean(accuracies))


def test_weights_are_evaluated_on_pair_sets_without_training_data(
    evaluation: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main.train(evaluation)
    run = tmp_path / "experiments" / "run_0"
    found = json.loads((run / "validation.json").read_text())
    assert list(found) == ["mixed"]
    wanted = slow_accuracy(tmp_path / "tiny.safetensors", tmp_path / "val" / "mixed.bin")
    assert found["mixed"]["accuracy"] == pytest.approx(wanted)
    assert "mixed" in capsys.readouterr().out
    assert not list(run.glob("*.ckpt"))
    # A command of the backbone stage with --evaluate behind it is the same.
    main.train(evaluation | {"train_data_path": "imgs", "head": "adaface", "m": 0.4, "lr_milestones": (12,)})
    assert json.loads((run.with_name("run_1") / "validation.json").read_text()) == found


def test_evaluation_without_weights_or_pair_sets_is_refused(
    evaluation: dict[str, Any], tmp_path: Path
) -> None:
    for change, without, words in (
        ({"stage": "coreset"}, (), ["--stage coreset", "--resume_from_checkpoint"]),
        ({"preset": "published"}, (), ["--preset", "--resume_from_checkpoint"]),
        ({"coreset_size": 3}, (), ["--coreset_size"]),
        ({}, ("start_from_model_statedict",), ["--start_from_model_statedict", "--resume_from_checkpoint"]),
        ({}, ("val_data_path",), ["--val_data_path"]),
        ({"val_data_path": "nowhere"}, (), ["nowhere"]),
        ({"fast_dev_run": True, "dry_run": True}, (), ["--fast_dev_run", "--dry_run"]),
        ({"arch": "ir_18"}, (), ["ir_18", "ir_tiny"]),
    ):
        given = {name: value for name, value in (evaluation | change).items() if name not in without}
        with pytest.raises(InputError) as error:
            main.train(given)
        assert all(word in str(error.value) for word in words)
    assert not (tmp_path / "experiments").exists()

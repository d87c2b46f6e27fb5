"""Which modules train in training mode at the first step: fresh, from weights, and resumed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.utilities.warnings import PossibleUserWarning
from torch import nn

import main
import train_val

_WITH_MODES = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Filled at every training step: the mode of each BatchNorm and Dropout by name, and of the parts."""
    found: dict[str, bool] = {}
    original = train_val.TrainingModule.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        if not found:
            found.update({part: getattr(self, part).training for part in ("model", "head")})
            found.update({n: m.training for n, m in self.named_modules() if isinstance(m, _WITH_MODES)})
        return original(self, batch, batch_idx)

    monkeypatch.setattr(train_val.TrainingModule, "training_step", step)
    return found


def about_modes(caught: list[warnings.WarningMessage]) -> list[str]:
    said = [str(w.message) for w in caught if issubclass(w.category, PossibleUserWarning)]
    return [text for text in said if "in eval mode" in text]


@pytest.mark.parametrize("start", ["fresh", "weights", "resumed"])
def test_a_backbone_trains_in_training_mode(
    start: str, backbone_stage: dict[str, Any], tmp_path: Path, modes: dict[str, bool]
) -> None:
    flags = backbone_stage | {"stage": "backbone", "epochs": 1}
    if start == "weights":
        flags["start_from_model_statedict"] = str(tmp_path / "tiny.safetensors")
    if start == "resumed":
        main.train(flags)
        modes.clear()
        last = tmp_path / "experiments" / "run_0" / "last.ckpt"
        flags = {"resume_from_checkpoint": str(last), "epochs": 2}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main.train(flags)
    assert len(modes) > 10
    assert all(modes.values()), [name for name, training in modes.items() if not training]
    assert about_modes(caught) == []


@pytest.mark.parametrize("start", ["weights", "resumed"])
@pytest.mark.parametrize("tuned", [False, True])
def test_the_coreset_stage_trains_all_but_the_backbone(
    start: str, tuned: bool, coreset_stage: dict[str, Any], tmp_path: Path, modes: dict[str, bool]
) -> None:
    flags = coreset_stage | {"epochs": 1, "epoch_items": 8, "finetune_backbone": tuned}
    if start == "resumed":
        main.train(flags)
        modes.clear()
        last = tmp_path / "experiments" / "run_0" / "last.ckpt"
        flags = {"resume_from_checkpoint": str(last), "epochs": 2}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main.train(flags)
    of_backbone = {name: mode for name, mode in modes.items() if name.split(".")[0] == "model"}
    others = {name: mode for name, mode in modes.items() if name not in of_backbone}
    assert len(of_backbone) > 5
    assert len(others) > 1
    assert not any(of_backbone.values())
    assert all(others.values()), others
    assert about_modes(caught) == []


def test_module_left_in_evaluation_mode_is_reported(
    coreset_stage: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = train_val.FaceCoresetNet.train

    def train(self: Any, mode: bool = True) -> Any:
        original(self, mode)
        self.head.eval()
        return self

    monkeypatch.setattr(train_val.FaceCoresetNet, "train", train)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main.train(coreset_stage | {"fast_dev_run": True})
    assert len(about_modes(caught)) == 1

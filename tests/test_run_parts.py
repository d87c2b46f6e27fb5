"""What flags become: the options of the aggregator, and what a checkpoint says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from backbone_spec import BackboneSpec
from coreset import build_aggregator
from run_parts import aggregator_options, saved_run
from settings import resolve

WEIGHTS = {"train_data_path": "imgs", "start_from_model_statedict": "w.ckpt"}
SPEC = BackboneSpec("tiny", 16, "RGB", 127.5, 127.5, True)


def built(given: dict[str, Any]) -> nn.Module:
    return build_aggregator("coreset", aggregator_options(resolve(WEIGHTS | given, None), SPEC))


@pytest.mark.parametrize(
    ("given", "gamma", "is_learned"),
    [
        ({}, 0.01, True),
        ({"gamma": -1.0}, 0.01, True),
        ({"aggregator_options": {"gamma": 1.0}}, 1.0, True),
        ({"gamma": 0.01}, 0.01, False),
        ({"gamma": 0.0}, 0.0, False),
        ({"gamma": 0.7, "learn_temperature": True}, 0.7, False),
        ({"coreset_size": 1}, 0.01, False),
    ],
)
def test_minus_one_learns_gamma_and_any_other_value_fixes_it(
    given: dict[str, Any], gamma: float, is_learned: bool
) -> None:
    module = built(given)
    assert module.gamma.item() == pytest.approx(gamma)
    assert isinstance(module.gamma, nn.Parameter) == is_learned


@pytest.mark.parametrize(("gamma_lr", "is_learned"), [(1e-4, True), (0.0, False)])
def test_checkpoints_of_before_keep_their_gamma(tmp_path: Path, gamma_lr: float, is_learned: bool) -> None:
    """There `gamma` was where it started and `gamma_lr` 0 fixed it."""
    hparams = resolve(WEIGHTS, None).to_dict() | {"gamma": 0.5, "gamma_lr": gamma_lr}
    options = {"embedding_size": 16, "gamma": 0.5, "learn_gamma": is_learned}
    content = {"hparams": hparams, "data_fingerprint": "d", "global_step": 7, "aggregator_options": options}
    content["loops"] = {"fit_loop": {"epoch_progress": {"current": {"processed": 1}}}}
    torch.save(content, tmp_path / "last.ckpt")
    saved = saved_run(tmp_path / "last.ckpt")
    assert saved.step == 7
    module = build_aggregator("coreset", aggregator_options(resolve({}, saved.hparams), SPEC))
    assert module.gamma.item() == 0.5
    assert isinstance(module.gamma, nn.Parameter) == is_learned

"""An ONNX graph as the frozen backbone of the coreset stage; what has to be trained is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import main
from net import build_backbone
from runtime.errors import InputError
from weights import OnnxBackbone, load_aggregator, load_backbone

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore")


class Features(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.backbone = build_backbone("ir_tiny").eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone.features(images)


@pytest.fixture
def flags(tmp_path: Path, face_folder: Callable[..., Path]) -> dict[str, Any]:
    batch = {"images": {0: torch.export.Dim("n")}}
    images = (torch.zeros(2, 3, 112, 112),)
    torch.onnx.export(Features().eval(), images, tmp_path / "tiny.onnx", dynamic_shapes=batch, verbose=False)
    return {
        **{"train_data_path": str(face_folder(8, 6)), "out": str(tmp_path / "experiments"), "gpus": 0},
        **{"num_workers": 0, "batch_size": 8, "epochs": 1, "held_out": 3.0, "max_template_size": 4},
        **{"epoch_items": 16, "arch": "ir_tiny", "start_from_model_statedict": str(tmp_path / "tiny.onnx")},
    }


def test_onnx_graph_is_a_frozen_backbone_of_a_resumable_run(flags: dict[str, Any], tmp_path: Path) -> None:
    main.train(flags | {"quality": "learned"})
    last = tmp_path / "experiments" / "run_0" / "last.ckpt"
    backbone, start = load_backbone(last), load_backbone(tmp_path / "tiny.onnx", "ir_tiny")
    assert isinstance(backbone, OnnxBackbone)
    assert torch.equal(backbone.graph, start.state_dict()["graph"])
    aggregator = load_aggregator(last)
    assert aggregator is not None
    assert aggregator.get_parameter("quality.head.weight").abs().sum() > 0
    resumed = {key: value for key, value in flags.items() if key in ("out", "gpus", "num_workers")}
    main.train(resumed | {"resume_from_checkpoint": str(last), "epochs": 2})


@pytest.mark.parametrize("change", [{"stage": "backbone"}, {"finetune_backbone": True}])
def test_onnx_graph_cannot_be_trained(change: dict[str, Any], flags: dict[str, Any]) -> None:
    for name in ("held_out", "max_template_size") if "stage" in change else ():
        del flags[name]
    with pytest.raises(InputError, match=r"--start_from_model_statedict .*ONNX"):
        main.train(flags | change)


def test_detector_quality_is_refused_for_training(flags: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--quality detector"):
        main.train(flags | {"quality": "detector"})

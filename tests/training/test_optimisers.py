"""Which parameters weight decay and which rate each has, as the modules declare it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from coreset import build_aggregator
from head import build_head
from net import BACKBONES, build_backbone
from training.config import OptimiserConfig
from training.optimisers import coreset_groups, split_by_decay

CONFIG = OptimiserConfig(lr=1e-3, gamma_lr=2e-4, backbone_lr=1e-6)


def named(module: nn.Module, parameters: list[nn.Parameter]) -> list[str]:
    names = {value: name for name, value in module.named_parameters()}
    return [names[value] for value in parameters]


@pytest.mark.parametrize("arch", ["ir_tiny", "iresnet_tiny", "mobilefacenet"])
def test_backbone_decays_all_but_batch_norms(arch: str) -> None:
    assert arch in BACKBONES
    module = nn.ModuleDict({"model": build_backbone(arch), "head": build_head("adaface", 8, 5)})
    decayed, exempt = (named(module, values) for values in split_by_decay(module))
    trained = {name for name, value in module.named_parameters() if value.requires_grad}
    of_norms = {
        f"{name}.{own}"
        for name, part in module.named_modules()
        if "BatchNorm" in type(part).__name__
        for own, _ in part.named_parameters()
    }
    assert set(exempt) == of_norms & trained
    assert set(decayed) == trained - of_norms
    assert any("relu" in name or ".2.weight" in name for name in decayed)
    assert "head.kernel" in decayed


def test_published_aggregator_decays_all_but_the_selection() -> None:
    aggregator = build_aggregator("coreset", {"embedding_size": 16, "learn_temperature": True})
    decayed, exempt = (named(aggregator, values) for values in split_by_decay(aggregator))
    assert exempt == ["gamma", "log_temperature"]
    assert len(decayed) == len(list(aggregator.parameters())) - 2
    groups = coreset_groups(CONFIG, aggregator, build_head("cosface", 16, 5), None)
    assert [group["name"] for group in groups] == ["aggregator", "head", "gamma"]
    assert (groups[2]["lr"], groups[2]["weight_decay"]) == (2e-4, 0.0)
    fixed = build_aggregator("coreset", {"embedding_size": 16, "learn_gamma": False})
    assert named(fixed, split_by_decay(fixed)[1]) == []
    assert len(coreset_groups(CONFIG, fixed, build_head("cosface", 16, 5), None)) == 2


@pytest.mark.parametrize("name", ["weighted_coreset", "learned_map", "set_transformer", "nan", "caface"])
def test_other_aggregators_decay_matrices_only(name: str) -> None:
    aggregator = build_aggregator(name, {"embedding_size": 16})
    decayed, exempt = split_by_decay(aggregator)
    assert all(value.ndim >= 2 for value in decayed)
    assert all(value.ndim < 2 for value in exempt)
    tuned = build_backbone("ir_tiny")
    groups = coreset_groups(CONFIG, aggregator, build_head("cosface", 16, 5), tuned)
    in_groups = [value for group in groups for value in group["params"]]
    expected = {*aggregator.parameters(), *tuned.parameters()}
    assert len(in_groups) == len(set(in_groups))
    assert expected < set(in_groups)
    by_name: dict[str, Any] = {group["name"]: group for group in groups}
    assert by_name["backbone"]["lr"] == by_name["backbone_batch_norms"]["lr"] == 1e-6
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=1.0)
    decays = {value: group["weight_decay"] for group in optimizer.param_groups for value in group["params"]}
    assert all((decays[value] == 0) == (value.ndim < 2) for value in aggregator.parameters())

"""Parameter groups, learning rates and the selection temperature of both training stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from training.config import OptimiserConfig


def backbone_groups(config: OptimiserConfig, module: nn.Module) -> list[dict[str, Any]]:
    """The optimiser's parameter groups for backbone and head."""
    decayed, exempt = split_by_decay(module)
    return [
        {"params": decayed, "weight_decay": config.weight_decay, "name": "weights"},
        {"params": exempt, "weight_decay": 0.0, "name": "batch_norms"},
    ]


def coreset_groups(
    config: OptimiserConfig, aggregator: nn.Module, head: nn.Module, backbone: nn.Module | None
) -> list[dict[str, Any]]:
    """The optimiser's parameter groups for aggregator and head, and for a backbone that is fine-tuned.

    Parameters that the aggregator declares as `selection_parameters` have the rate `gamma_lr`.
    """
    decayed, exempt = split_by_decay(aggregator)
    declared: Callable[[], list[nn.Parameter]] = getattr(aggregator, "selection_parameters", list)
    of_selection = declared()
    slow = set(of_selection)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "name": "aggregator"},
        {"params": list(head.parameters()), "name": "head"},
        {
            "params": [value for value in exempt if value not in slow],
            "weight_decay": 0.0,
            "name": "aggregator_undecayed",
        },
        {"params": of_selection, "lr": config.gamma_lr, "weight_decay": 0.0, "name": "gamma"},
    ]
    if backbone is not None:
        decayed, exempt = split_by_decay(backbone)
        rate = config.backbone_lr
        groups += [
            {"params": decayed, "lr": rate, "name": "backbone"},
            {"params": exempt, "lr": rate, "weight_decay": 0.0, "name": "backbone_batch_norms"},
        ]
    return [group for group in groups if group["params"]]


def make_scheduler(
    config: OptimiserConfig, optimizer: Optimizer, steps_per_epoch: int
) -> tuple[LRScheduler, str]:
    """The learning-rate schedule, and whether it advances by "step" or "epoch"."""
    if config.lr_schedule == "one_cycle":
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        total = steps_per_epoch * config.trained_epochs
        return OneCycleLR(optimizer, rates, total_steps=total, cycle_momentum=False), "step"
    return MultiStepLR(optimizer, list(config.trained_milestones), gamma=config.lr_gamma), "epoch"


def split_by_decay(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained parameters with weight decay, and those without.

    A submodule with `no_weight_decay()` names its parameters without decay: BatchNorms of the backbones, as
    published, and gamma and temperature of the published aggregator. In other modules, parameters of fewer
    than two dimensions (biases, scales, exponents, thresholds) have none.
    """
    exempt: set[nn.Parameter] = {value for value in module.parameters() if value.ndim < 2}
    for part in module.modules():
        declared: Callable[[], set[str]] | None = getattr(part, "no_weight_decay", None)
        if declared is not None:
            exempt -= set(part.parameters())
            exempt |= {part.get_parameter(name) for name in declared()}
    trained = [value for value in module.parameters() if value.requires_grad]
    return [value for value in trained if value not in exempt], [v for v in trained if v in exempt]


def selection_temperature(start: float, end: float, epoch: int, epochs: int) -> float:
    """Temperature of an epoch of a geometric schedule; that of the last of `epochs` is `end`."""
    share = min(1.0, epoch / max(1, epochs - 1))
    return float(start ** (1 - share) * end**share)

"""What a run trains with: the margin head, optimisation and schedules, as values and how to build them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from head import build_head

LR_SCHEDULES = ("milestones", "one_cycle")


@dataclass(frozen=True)
class HeadOptions:
    """A margin head; `m` None is its own margin. `h` and `t_alpha` are AdaFace's."""

    name: str = "adaface"
    m: float | None = None
    h: float = 0.333
    s: float = 64.0
    t_alpha: float = 0.01

    def build(self, embedding_size: int, num_classes: int) -> nn.Module:
        """The head with random columns."""
        return build_head(
            self.name, embedding_size, num_classes, m=self.m, h=self.h, s=self.s, t_alpha=self.t_alpha
        )


@dataclass(frozen=True)
class Recipe:
    """Optimisation; METHOD 6 has the published values of both stages.

    `lr_schedule` "milestones": the rates are multiplied by `lr_gamma` after the epochs `lr_milestones`;
    "one_cycle": they rise and fall once over `total_steps`. `gamma_lr` (of the selection's gamma and
    temperature), `backbone_lr` (of a backbone that is fine-tuned), `contrast_weight`, `head_weight` (0: the
    head is not trained by) and `identity_mixup_prob` are the coreset stage's, `momentum` is the backbone
    stage's.
    """

    lr: float
    weight_decay: float
    lr_milestones: tuple[int, ...]
    lr_gamma: float = 0.1
    momentum: float = 0.9
    gamma_lr: float = 1e-4
    backbone_lr: float = 1e-5
    contrast_weight: float = 0.0
    head_weight: float = 1.0
    identity_mixup_prob: float = 0.0
    lr_schedule: str = "milestones"
    total_steps: int = 1

    def backbone_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """The optimiser's groups for backbone and head."""
        decayed, others = split_by_decay(module)
        return [
            {"params": decayed, "weight_decay": self.weight_decay, "name": "weights"},
            {"params": others, "weight_decay": 0.0, "name": "batch_norms"},
        ]

    def coreset_groups(
        self, aggregator: nn.Module, head: nn.Module, backbone: nn.Module | None
    ) -> list[dict[str, Any]]:
        """The optimiser's groups for aggregator and head, and for a backbone that is fine-tuned.

        Parameters of a selection have `gamma_lr`, where the aggregator has such.
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
            {"params": of_selection, "lr": self.gamma_lr, "weight_decay": 0.0, "name": "gamma"},
        ]
        if backbone is not None:
            decayed, exempt = split_by_decay(backbone)
            rate = self.backbone_lr
            groups += [
                {"params": decayed, "lr": rate, "name": "backbone"},
                {"params": exempt, "lr": rate, "weight_decay": 0.0, "name": "backbone_batch_norms"},
            ]
        return [group for group in groups if group["params"]]

    def scheduler(self, optimizer: Optimizer) -> tuple[LRScheduler, str]:
        """The schedule of the rates that the optimizer's groups have, and after what it steps."""
        if self.lr_schedule == "one_cycle":
            rates = [float(group["lr"]) for group in optimizer.param_groups]
            return OneCycleLR(optimizer, rates, total_steps=self.total_steps, cycle_momentum=False), "step"
        return MultiStepLR(optimizer, list(self.lr_milestones), gamma=self.lr_gamma), "epoch"


def split_by_decay(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained parameters that weight decay draws to zero, and those that it leaves alone.

    A part of the module that has `no_weight_decay()` says the names of the latter among its parameters, and
    all its others decay: so the backbones (as published, BatchNorms alone are left alone) and the published
    aggregator (gamma and temperature alone). Of all other parts matrices decay, and parameters of fewer than
    two dimensions do not: biases, scales of normalisations, exponents and thresholds, for which zero is no
    simpler value than any other.
    """
    exempt: set[nn.Parameter] = {value for value in module.parameters() if value.ndim < 2}
    for part in module.modules():
        declared: Callable[[], set[str]] | None = getattr(part, "no_weight_decay", None)
        if declared is not None:
            exempt -= set(part.parameters())
            exempt |= {part.get_parameter(name) for name in declared()}
    trained = [value for value in module.parameters() if value.requires_grad]
    return [value for value in trained if value not in exempt], [v for v in trained if v in exempt]


@dataclass(frozen=True)
class TemperatureSchedule:
    """The selection's temperature falls geometrically from `start` to `end` over `epochs`."""

    start: float
    end: float
    epochs: int

    def at(self, epoch: int) -> float:
        """Temperature of an epoch; that of the last one is `end`."""
        share = min(1.0, epoch / max(1, self.epochs - 1))
        return float(self.start ** (1 - share) * self.end**share)

"""Configuration of what is trained: model, aggregator, optimiser. Importable without torch.

The fields are the flags of main.py under their own names; `Option` says how each is given and checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from backbones.catalogue import BACKBONES, HEAD_NAMES
from coreset.catalogue import AGGREGATOR_NAMES, LEARNED_GAMMA, MAIN_AGGREGATORS, QUALITIES

Stage = Literal["backbone", "coreset"]
# Epochs of --test_run, whatever --epochs says.
TEST_RUN_EPOCHS = 2


@dataclass(frozen=True)
class Option:
    """How a field of the configuration is given and checked.

    Attributes:
        help: text of the flag.
        choices: the accepted values, for texts.
        minimum, above, maximum: inclusive minimum, exclusive minimum and inclusive maximum of a number.
        stage: the only stage that reads the field.
        stage_defaults: the default of each stage, where they differ.
        metavar: what --help shows for the value.
        without_value: the value of a flag that is given without one; None if it needs one.
        resumable: a resumed run may have another value.
    """

    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    stage: Stage | None = None
    stage_defaults: tuple[Any, Any] | None = None
    metavar: str | None = None
    without_value: str | None = None
    resumable: bool = False


def option(default: Any, help: str, **details: Any) -> Any:
    """A dataclass field with an `Option`."""
    return field(default=default, metadata={"option": Option(help, **details)})


def stage_option(backbone: Any, coreset: Any, help: str, **details: Any) -> Any:
    """A dataclass field whose default depends on the stage."""
    return option(backbone, help, stage_defaults=(backbone, coreset), **details)


@dataclass(frozen=True)
class ModelConfig:
    """Backbone and margin head."""

    arch: str | None = option(
        None, "backbone (default: that of the weights, else ir_18)", choices=tuple(BACKBONES)
    )
    start_from_model_statedict: str | None = option(
        None,
        "weights of the backbone: a file, a name of the catalogue, or hf://OWNER/REPO",
        metavar="SOURCE",
    )
    finetune_backbone: bool = option(False, "train the backbone too", stage="coreset")
    head: str = option("adaface", "margin head", choices=HEAD_NAMES)
    m: float | None = stage_option(0.4, 0.8, "margin of the head (arcface: 0.5, cosface: 0.4)")
    h: float = stage_option(0.333, 0.333, "concentration of adaface")
    s: float = stage_option(64.0, 48.0, "scale of the logits")
    t_alpha: float = option(0.01, "adaface: weight of a batch in the running statistics of the norms")
    head_init: Literal["random", "centroids"] = option(
        "random",
        "initial class weights of the head: random, or the mean clean feature of each subject",
        stage="coreset",
    )


@dataclass(frozen=True)
class AggregatorConfig:
    """The aggregator of the coreset stage. `quality` None is the choice that the backbone's weights name."""

    aggregator: str = option(
        "coreset",
        f"aggregator to train, such as {' or '.join(n for n in MAIN_AGGREGATORS if 'coreset' in n)}; "
        "--list_aggregators lists all",
        choices=AGGREGATOR_NAMES,
        metavar="NAME",
        stage="coreset",
    )
    aggregator_options: Mapping[str, Any] | None = option(
        None, "options of its constructor that have no flag", metavar="NAME=VALUE", stage="coreset"
    )
    quality: str | None = option(
        None,
        "weight of a face (default: its norm, or learned where the weights say that the norm is no measure "
        "of quality; see convert.py --check-quality)",
        choices=QUALITIES,
        stage="coreset",
    )
    coreset_size: int = option(3, "K, faces selected per set", minimum=1, maximum=100_000, stage="coreset")
    gamma: float = option(
        LEARNED_GAMMA,
        "exponent of the norm in the selection: -1 learns it, any other value fixes it",
        stage="coreset",
    )
    selection_temperature: float = option(
        1.0, "divides the selection scores in training", above=0, stage="coreset"
    )
    selection_temperature_end: float | None = option(
        None, "temperature of the last epoch, reached geometrically", above=0, stage="coreset"
    )
    learn_temperature: bool = option(False, "learn the temperature, at --gamma_lr", stage="coreset")
    compile: bool = option(
        False,
        "torch.compile the aggregator: starts half a minute later and then trains faster on a GPU; on a CPU "
        "it takes two minutes and gains little",
        stage="coreset",
        resumable=True,
    )

    @property
    def learns_gamma(self) -> bool:
        """Whether gamma is learned; a coreset of one face does not depend on it."""
        return self.gamma == LEARNED_GAMMA and self.coreset_size > 1


@dataclass(frozen=True)
class OptimiserConfig:
    """Losses, optimiser and schedules.

    The defaults are AdaFace's recipe (arXiv 2204.00964) and that of FaceCoresetNet (supplement of
    arXiv 2308.14075). `epoch_items` None is all images (backbone stage) or a tenth of them.
    """

    epochs: int = stage_option(26, 150, "number of epochs", minimum=1, maximum=1_000_000, resumable=True)
    epoch_items: int | None = option(
        None,
        "faces or templates per epoch (default: all images; coreset stage: a tenth)",
        minimum=1,
        maximum=10**9,
    )
    batch_size: int = stage_option(
        512, 20, "faces or templates per batch, over all processes", minimum=1, maximum=1_000_000
    )
    accumulate_grad_batches: int = option(1, "batches per optimiser step", minimum=1, maximum=100_000)
    lr: float = stage_option(0.1, 1e-4, "learning rate", minimum=0)
    lr_schedule: Literal["milestones", "one_cycle"] = option("milestones", "schedule of the learning rates")
    lr_milestones: tuple[int, ...] = stage_option(
        (12, 20, 24), (20,), "epochs after which the learning rate is reduced"
    )
    lr_gamma: float = option(0.1, "factor of each reduction", above=0)
    momentum: float = option(0.9, "momentum of SGD", minimum=0, stage="backbone")
    weight_decay: float = stage_option(5e-4, 1e-3, "weight decay", minimum=0)
    gamma_lr: float = option(
        1e-4, "learning rate of gamma and of the selection temperature", above=0, stage="coreset"
    )
    backbone_lr: float = option(
        1e-5, "learning rate of the backbone with --finetune_backbone", minimum=0, stage="coreset"
    )
    gradient_clip_val: float = stage_option(
        0.0, 1.0, "maximum norm of the gradients, 0 for no limit", minimum=0
    )
    contrast_weight: float = option(
        0.0,
        "weight of a contrastive loss between two templates of each subject; above 0, batches consist of "
        "pairs of templates",
        minimum=0,
        stage="coreset",
    )
    identity_mixup_prob: float = option(
        0.0,
        "fraction of template pairs whose identity is replaced by a synthetic one",
        minimum=0,
        maximum=1,
        stage="coreset",
    )
    test_run: bool = option(False, f"complete but short run: {TEST_RUN_EPOCHS} epochs of 10 steps")

    @property
    def trained_epochs(self) -> int:
        """Epochs that are trained; all schedules span these."""
        return TEST_RUN_EPOCHS if self.test_run else self.epochs

    @property
    def trained_milestones(self) -> tuple[int, ...]:
        """`lr_milestones`; those of a test run keep their relative position."""
        if not self.test_run:
            return self.lr_milestones
        return tuple(max(1, round(epoch * TEST_RUN_EPOCHS / self.epochs)) for epoch in self.lr_milestones)

"""LightningModules of both training stages: steps, optimisers, logging, validation."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from backbones.base import UnknownBackbone
from coreset import build_aggregator
from coreset.aggregator import CoresetAggregator
from coreset.selection import pick_agreement
from coreset.sets import FaceSets, SetDescriptor
from data.sampling.templates import TemplateBatch
from evaluation.metrics.verification import FoldAccuracy, fold_accuracy, rate_key
from features.bank import FeatureBatch
from features.extract import embed_batch, embed_tensor
from net import Backbone
from runtime.distributed import NumberedRows, gather_union, with_gradient_for
from runtime.errors import InputError
from runtime.text import listed
from training.config import AggregatorConfig, OptimiserConfig
from training.contrastive_loss import pair_contrast
from training.held_out import MONITORED_FAR, HeldOutFigures, held_out_figures
from training.identity_mixup import mix_identities
from training.loaders import FaceData, TemplateTrainingData
from training.optimisers import backbone_groups, coreset_groups, make_scheduler, selection_temperature
from weights import TRAINED_SUBJECTS, name_digests

# Poolings that held-out validation compares with the trained aggregator.
POOLINGS = ("mean", "norm_weighted")
BACKBONE_MONITOR = "val/accuracy"
CORESET_MONITOR = f"val/tar_at_far_{rate_key(MONITORED_FAR)}"
# Key of a checkpoint: classes with images that could not be used, for which training was stopped.
UNUSABLE_SUBJECTS = "unusable_subjects"


class TrainingModule(pl.LightningModule, ABC):
    """Shared by both stages: the checks of a step, the schedule, and the contents of a checkpoint.

    Args:
        backbone, head, optimiser: what is trained, and how.
        steps_per_epoch: optimiser steps.
        seed: of noise and dropout.
        identity: plain values for the checkpoint: flags, versions, fingerprint of the data.
        subjects: names of the classes, for messages; checkpoints contain digests of them.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        optimiser: OptimiserConfig,
        *,
        steps_per_epoch: int,
        seed: int,
        identity: Mapping[str, Any],
        subjects: Sequence[str],
    ) -> None:
        super().__init__()
        self.model = backbone.to(memory_format=torch.channels_last)
        self.head = head
        self.optimiser = optimiser
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.identity = dict(identity)
        self.last_checkpoint = "not written yet"
        self._subjects = subjects

    @property
    def expected_warnings(self) -> tuple[str, ...]:
        """Patterns of Lightning's warnings about intended settings."""
        return ()

    @property
    def num_subjects(self) -> int:
        """Classes of the head."""
        return len(self._subjects)

    def on_fit_start(self) -> None:
        """Set the training mode, which Lightning leaves as it is."""
        self.train()

    @abstractmethod
    def _loss(self, batch: Any, seed: int) -> tuple[Tensor, Tensor]:
        """Mean loss of this process's part of a batch, and its labels (B,).

        The mean over the processes is the loss of the whole batch; `seed` is the same on all of them. Every
        trained parameter receives a gradient for any batch, else the other processes would wait forever.
        """

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of one batch; InputError on every rank when the loss of any is not finite."""
        # Noise and dropout depend on the position only, so a resumed run repeats those of the original one.
        torch.manual_seed(_seed_of(self.seed, self.global_step, batch_idx, self.global_rank))
        loss, labels = self._loss(batch, _seed_of(self.seed, self.global_step, batch_idx))
        finite = bool(torch.isfinite(loss))
        if not self.trainer.strategy.reduce_boolean_decision(finite, all=True):
            mine = (float(loss), labels.tolist())
            raise InputError(
                self._non_finite_message(gather_union({} if finite else {self.global_rank: mine}))
            )
        self.log("train/loss", loss, prog_bar=True, batch_size=len(labels), sync_dist=True)
        return loss

    def _non_finite_message(self, failures: Mapping[int, tuple[float, list[int]]]) -> str:
        """The message for losses and labels by process; the contrastive loss spreads a fault to all."""
        names = sorted({self._subjects[label] for _, labels in failures.values() for label in labels})
        processes = ", ".join(str(rank) for rank in sorted(failures))
        loss, _ = failures[min(failures)]
        return (
            f"the loss is {loss:g} on process {processes} at step {self.global_step} "
            f"(epoch {self.current_epoch}); training stopped before the weights were changed. Subjects of "
            f"the batch: {listed(names, 10)}. Last good checkpoint: {self.last_checkpoint}. Try a lower "
            "--lr, --gradient_clip_val 1, or --precision bf16-mixed or 32 in place of 16 bit."
        )

    def _log_in_training(self, name: str, value: float, prog_bar: bool = False) -> None:
        """Log a validation figure, except when validation runs on its own."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log(name, value, prog_bar=prog_bar)

    def _scheduled(self, optimizer: torch.optim.Optimizer) -> Any:
        schedule, interval = make_scheduler(self.optimiser, optimizer, self.steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": interval}}

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimiser's parameter groups."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the backbone's spec, where there is a backbone, and the run's identity."""
        if not isinstance(self.model, UnknownBackbone):
            checkpoint["backbone_spec"] = self.model.spec.to_dict()
        checkpoint.update(self.identity)
        # Evaluation refuses training subjects.
        checkpoint[TRAINED_SUBJECTS] = " ".join(sorted(name_digests(self._subjects)))


class BackboneTrainer(TrainingModule):
    """Backbone stage: single faces through a margin head (AdaFace, arXiv 2204.00964).

    Validated on pair sets. In distributed training, BatchNorm uses the faces of its own process, as
    published; the head's statistics of norms are those of all.
    """

    def __init__(
        self, backbone: Backbone, head: nn.Module, optimiser: OptimiserConfig, **shared: Any
    ) -> None:
        super().__init__(backbone, head, optimiser, **shared)
        self.accuracies: dict[str, FoldAccuracy] = {}
        self._validated: list[NumberedRows] = []

    def _loss(self, batch: tuple[Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor]:
        images, labels = batch
        features, norms = embed_batch(self.model, images)
        return F.cross_entropy(self.head(features, norms.unsqueeze(1), labels), labels), labels

    def on_validation_epoch_start(self) -> None:
        """Discard the last validation."""
        self._validated = [NumberedRows() for _ in self._pair_data().pair_sets]

    def validation_step(
        self, batch: tuple[NDArray[np.int64], tuple[Tensor, Tensor]], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Embed images and their horizontal flips, fused as AdaFace does."""
        numbers, (images, _) = batch
        fused, _ = embed_tensor(self.model, images, "pre_norm_vector_add")
        self._validated[dataloader_idx].add(torch.from_numpy(numbers), fused.float())

    def on_validation_epoch_end(self) -> None:
        """Log ten-fold accuracies and their mean over the pair sets."""
        for pairs, part in zip(self._pair_data().pair_sets, self._validated, strict=True):
            rows = part.table(len(pairs.images))
            if rows is None:
                return  # --fast_dev_run sees one batch only.
            distances = (rows[0::2] - rows[1::2]).square().sum(dim=1).numpy()
            self.accuracies[pairs.name] = fold_accuracy(distances, pairs.is_mated, pairs.folds())
            self._log_in_training(f"val/{pairs.name}", self.accuracies[pairs.name].accuracy)
        if self.accuracies:
            mean = float(np.mean([result.accuracy for result in self.accuracies.values()]))
            self._log_in_training(BACKBONE_MONITOR, mean, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """SGD."""
        lr, momentum = self.optimiser.lr, self.optimiser.momentum
        return self._scheduled(torch.optim.SGD(self.parameter_groups(), lr=lr, momentum=momentum))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """See the base class."""
        return backbone_groups(self.optimiser, self)

    def _pair_data(self) -> FaceData:
        return self.trainer.datamodule  # type: ignore[attr-defined, no-any-return]


class FaceCoresetNet(TrainingModule):
    """Coreset stage: templates through aggregator and head; the backbone is frozen or fine-tuned.

    Templates are images, or features that the frozen backbone computed before. The backbone stays in
    evaluation mode, as published: the frames of a clip are too similar for batch statistics. Validated on
    templates of held-out subjects, beside plain poolings.

    Args:
        backbone, head, optimiser: see the base class.
        aggregator: flags of the aggregator.
        aggregator_options: arguments of its constructor.
        finetune_backbone: the backbone is trained too.
        head_weight: weight of the margin head's loss beside the contrastive loss; 0 leaves it out.
        subject_means: (S, D) unit rows for identity mixup, without auxiliary features; None for none.
        shared: see the base class.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        optimiser: OptimiserConfig,
        *,
        aggregator: AggregatorConfig,
        aggregator_options: Mapping[str, Any],
        finetune_backbone: bool = False,
        head_weight: float = 1.0,
        subject_means: Tensor | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(backbone, head, optimiser, **shared)
        # Computed from the data by every run, hence not in checkpoints.
        self.register_buffer("subject_means", subject_means, persistent=False)
        self.subject_means: Tensor | None
        self.aggregator_config: AggregatorConfig = aggregator
        self.aggregator_name = aggregator.aggregator
        self.aggregator_options = dict(aggregator_options)
        self.aggregator = build_aggregator(self.aggregator_name, aggregator_options)
        if aggregator.compile:
            self.aggregator.compile_padded()  # type: ignore[operator]
        self.poolings = nn.ModuleDict({name: build_aggregator(name, {}) for name in POOLINGS})
        self.finetune_backbone = finetune_backbone
        self.head_weight = head_weight
        self.figures: dict[str, HeldOutFigures] = {}
        self._validated: dict[str, NumberedRows] = {}
        self._known: dict[tuple[int, ...], FaceSets] = {}
        self.model.requires_grad_(finetune_backbone)

    def train(self, mode: bool = True) -> FaceCoresetNet:
        """Set the mode of aggregator and head; the backbone stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    @property
    def expected_warnings(self) -> tuple[str, ...]:
        """The backbone is in evaluation mode; the count keeps warnings about anything else."""
        return (rf"Found {len(list(self.model.modules()))} module\(s\) in eval mode",)

    def embedded(self, batch: TemplateBatch | FeatureBatch) -> FaceSets:
        """The faces of a batch as features, with gradient only where the backbone is trained."""
        if isinstance(batch, FeatureBatch):
            return self._sets(batch.features.float(), batch.norms, batch)
        trained = self.finetune_backbone and self.training
        features, norms = (embed_batch if trained else embed_tensor)(self.model, batch.images)
        return self._sets(features, norms, batch)

    def _sets(self, rows: Tensor, norms: Tensor, batch: TemplateBatch | FeatureBatch) -> FaceSets:
        size = self.model.spec.auxiliary_size
        return FaceSets.from_rows(rows, norms, batch.offsets, size, media=batch.media)

    def _loss(self, batch: TemplateBatch | FeatureBatch, seed: int) -> tuple[Tensor, Tensor]:
        sets, labels, more_columns = self.embedded(batch), batch.labels, None
        if self.subject_means is not None:
            sets, labels, more_columns = mix_identities(
                sets, labels, self.subject_means, self.optimiser.identity_mixup_prob, seed=seed
            )
        descriptor: SetDescriptor = self.aggregator(sets)
        embedding = with_gradient_for(self.aggregator.parameters(), descriptor.embedding)
        logits = self.head(embedding, descriptor.norm.unsqueeze(1), labels, more_columns)
        loss = F.cross_entropy(logits, labels)
        if self.optimiser.contrast_weight:
            contrast = pair_contrast(embedding, labels)
            self.log("train/contrast", contrast.detach(), batch_size=sets.num_sets, sync_dist=True)
            # With weight 0 the head stays in the graph, so its parameters have a gradient.
            loss = self.head_weight * loss + self.optimiser.contrast_weight * contrast
        self._log_selection(sets, descriptor)
        return loss, batch.labels

    def _log_selection(self, sets: FaceSets, descriptor: SetDescriptor) -> None:
        if not isinstance(self.aggregator, CoresetAggregator):
            return
        size = sets.num_sets
        self.log("train/gamma", self.aggregator.gamma.detach(), batch_size=size)
        self.log("train/temperature", self.aggregator.temperature.detach(), batch_size=size)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            agreement = pick_agreement(descriptor.picks, self.aggregator.evaluation_picks(sets))
            self.log("train/pick_agreement", agreement, batch_size=size, prog_bar=True, sync_dist=True)

    def on_train_epoch_start(self) -> None:
        """Set the selection temperature of the epoch."""
        config = self.aggregator_config
        start, end = config.selection_temperature, config.selection_temperature_end
        if end is not None and isinstance(self.aggregator, CoresetAggregator):
            epochs = self.optimiser.trained_epochs
            self.aggregator.set_temperature(selection_temperature(start, end, self.current_epoch, epochs))

    def on_validation_epoch_start(self) -> None:
        """Discard the last validation; the features of a frozen backbone are kept."""
        self._validated = {name: NumberedRows() for name in (self.aggregator_name, *self.poolings)}

    def validation_step(
        self, batch: tuple[NDArray[np.int64], TemplateBatch | FeatureBatch | None], batch_idx: int
    ) -> None:
        """Descriptors of held-out templates by the aggregator and by each pooling."""
        numbers, templates = batch
        key = tuple(numbers.tolist())
        sets = self._known.get(key)
        if sets is None:
            if templates is None:
                # The loader gave them to another module before.
                templates = self._template_data().held_out_batch(key).to(self.device)
            sets = self.embedded(templates)
            if not self.finetune_backbone:
                self._known[key] = sets
        for name, module in {self.aggregator_name: self.aggregator, **self.poolings}.items():
            self._validated[name].add(torch.from_numpy(numbers), module(sets).embedding.float())

    def on_validation_epoch_end(self) -> None:
        """Log TAR@FAR and rank 1 of each."""
        held_out = self._template_data().held_out
        for name, part in self._validated.items():
            embeddings = part.table(len(held_out))
            if embeddings is None:
                return  # --fast_dev_run sees one batch only.
            self.figures[name] = held_out_figures(embeddings.numpy(), held_out.labels, held_out.is_gallery)
            of_pooling = "" if name == self.aggregator_name else f"{name}_"
            for figure, value in self.figures[name].named().items():
                key = f"val/{of_pooling}{figure}"
                self._log_in_training(key, value, prog_bar=key == CORESET_MONITOR)

    def configure_optimizers(self) -> Any:
        """AdamW."""
        # Lightning cannot clip gradients that a fused step unscales.
        fused = self.trainer.precision != "16-mixed"
        return self._scheduled(
            torch.optim.AdamW(
                self.parameter_groups(),
                lr=self.optimiser.lr,
                weight_decay=self.optimiser.weight_decay,
                fused=fused,
            )
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """See the base class."""
        tuned = self.model if self.finetune_backbone else None
        return coreset_groups(self.optimiser, self.aggregator, self.head, tuned)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to build the aggregator."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["aggregator_name"] = self.aggregator_name
        checkpoint["aggregator_options"] = self.aggregator_options

    def _template_data(self) -> TemplateTrainingData:
        return self.trainer.datamodule  # type: ignore[attr-defined, no-any-return]


def _seed_of(*numbers: int) -> int:
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 2**63

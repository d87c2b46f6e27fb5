"""The training of both stages as LightningModules: steps, optimisers, logging, validation.

No maths of its own: faces become features in `net`, sets become descriptors in `coreset`, descriptors become
logits in `head` and figures in `evaluation`.
"""

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

from backbones.spec import BackboneSpec
from coreset import build_aggregator
from coreset.aggregator import CoresetAggregator
from coreset.selection import pick_agreement
from coreset.sets import FaceSets, SetDescriptor
from data.sampling.templates import TemplateBatch
from evaluation.metrics.verification import FoldAccuracy, fold_accuracy, rate_key
from features.bank import FeatureBatch
from features.extract import embed_batch, embed_tensor
from net import Backbone
from runtime.distributed import NumberedRows, gathered_union, with_gradient_for
from runtime.errors import InputError
from training.contrastive_loss import pair_contrast
from training.held_out import MONITORED_FAR, HeldOutFigures, held_out_figures
from training.identity_mixup import mix_identities
from training.loaders import FaceData, FeatureTemplateData, TemplateData
from training.optimisers import Recipe, TemperatureSchedule
from weights import TRAINED_SUBJECTS, name_digests

# What every held-out validation shows beside the trained aggregator.
POOLINGS = ("mean", "norm_weighted")
BACKBONE_MONITOR = "val/accuracy"
CORESET_MONITOR = f"val/tar_at_far_{rate_key(MONITORED_FAR)}"


# In a checkpoint: classes with images that could not be used, for which training was stopped.
UNUSABLE_SUBJECTS = "unusable_subjects"


class UnknownBackbone(Backbone):
    """Stands where features were made elsewhere and nothing is known of what made them but their sizes."""

    def __init__(self, embedding_size: int, auxiliary_size: int = 0) -> None:
        spec = BackboneSpec(
            "unknown", embedding_size, "RGB", 127.5, 127.5, True, auxiliary_size=auxiliary_size
        )
        super().__init__(spec)

    def features(self, images: Tensor) -> Tensor:
        """Raises InputError: there is nothing to embed with."""
        raise InputError(
            "This run has features and no backbone to embed images with. Give the one that made them by "
            "--start_from_model_statedict."
        )


class _Trained(pl.LightningModule, ABC):
    """What both stages share: the step's checks, the schedule, and what a checkpoint says beside its weights.

    `identity`: plain values that stand in the checkpoint beside the weights: flags, versions, the data's
    fingerprint. `subjects`: names of the classes, for messages; they do not enter the checkpoint.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        recipe: Recipe,
        *,
        seed: int,
        identity: Mapping[str, Any],
        subjects: Sequence[str],
    ) -> None:
        super().__init__()
        self.model = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.head = head
        self.recipe = recipe
        self.seed = seed
        self.identity = dict(identity)
        self.last_checkpoint = "none was written yet"
        self._subjects = subjects

    @property
    def expected_warnings(self) -> tuple[str, ...]:
        """Patterns of Lightning's warnings that say what is meant to be so."""
        return ()

    @property
    def num_subjects(self) -> int:
        """Classes of the head."""
        return len(self._subjects)

    def on_fit_start(self) -> None:
        """Sets the modes: Lightning trains in those that it finds, which loaded weights bring along."""
        self.train()

    @abstractmethod
    def _loss(self, batch: Any, seed: int) -> tuple[Tensor, Tensor]:
        """Mean loss of this process's part of a batch, and its labels (B,).

        The mean over the processes is the loss of the whole batch; `seed` is the same on all of them. Every
        parameter that is trained gets a gradient, whatever the batch holds: a process without one would make
        the others wait for ever.
        """

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One batch; InputError on every rank when the loss of any is not finite."""
        # Noise and dropout follow from the position, so that a resumed run draws what the unbroken one drew.
        torch.manual_seed(_seed_of(self.seed, self.global_step, batch_idx, self.global_rank))
        loss, labels = self._loss(batch, _seed_of(self.seed, self.global_step, batch_idx))
        finite = bool(torch.isfinite(loss))
        if not self.trainer.strategy.reduce_boolean_decision(finite, all=True):
            mine = (float(loss), labels.tolist())
            raise InputError(
                self._sentence_of_failure(gathered_union({} if finite else {self.global_rank: mine}))
            )
        self.log("train/loss", loss, prog_bar=True, batch_size=len(labels), sync_dist=True)
        return loss

    def _sentence_of_failure(self, failures: Mapping[int, tuple[float, list[int]]]) -> str:
        """Of losses and labels by process. A contrast spreads one process's fault to all."""
        names = sorted({self._subjects[label] for _, labels in failures.values() for label in labels})
        shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        processes = ", ".join(str(rank) for rank in sorted(failures))
        loss, _ = failures[min(failures)]
        return (
            f"the loss is {loss:g} on process {processes} at step {self.global_step} "
            f"(epoch {self.current_epoch}); training stopped before the weights were touched. Subjects of "
            f"the batch: {shown}. Last good checkpoint: {self.last_checkpoint}. Try a lower --lr, "
            "--gradient_clip_val 1, or --precision bf16-mixed or 32 in place of 16 bit."
        )

    def _log_in_training(self, name: str, value: float, prog_bar: bool = False) -> None:
        """A validation that runs for itself is no point of the learning curve."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log(name, value, prog_bar=prog_bar)

    def _scheduled(self, optimizer: torch.optim.Optimizer) -> Any:
        schedule, interval = self.recipe.scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": interval}}

    @abstractmethod
    def _groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups of parameters."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises InputError where training goes on and the optimiser's state is of other groups."""
        if self.trainer.state.fn != TrainerFn.FITTING:
            return
        saved = checkpoint["optimizer_states"][0]["param_groups"]
        if [len(group["params"]) for group in saved] != [len(group["params"]) for group in self._groups()]:
            raise InputError(
                "This checkpoint's optimiser state is of an earlier release, which decayed other parameters, "
                "so that its run cannot be resumed. Start a new run; to evaluate, the checkpoint is whole."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the backbone's spec, where there is a backbone, and the run's identity."""
        if not isinstance(self.model, UnknownBackbone):
            checkpoint["backbone_spec"] = self.model.spec.to_dict()
        checkpoint.update(self.identity)
        # So that nobody is judged on those whom it knows.
        checkpoint[TRAINED_SUBJECTS] = " ".join(sorted(name_digests(self._subjects)))


class BackboneTrainer(_Trained):
    """Backbone stage: single faces through a margin head (AdaFace; METHOD 6). Validated on pair sets.

    In distributed training BatchNorms see the faces of their own process, as published; the head's statistics
    of norms are those of all.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, recipe: Recipe, **common: Any) -> None:
        super().__init__(backbone, head, recipe, **common)
        self.accuracies: dict[str, FoldAccuracy] = {}
        self._validated: list[NumberedRows] = []

    def _loss(self, batch: tuple[Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor]:
        images, labels = batch
        features, norms = embed_batch(self.model, images)
        return F.cross_entropy(self.head(features, norms.unsqueeze(1), labels), labels), labels

    def on_validation_epoch_start(self) -> None:
        """Forgets the last validation."""
        self._validated = [NumberedRows() for _ in self._pair_data().pair_sets]

    def validation_step(
        self, batch: tuple[NDArray[np.int64], tuple[Tensor, Tensor]], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Embeds images and their mirror images, fused as AdaFace fuses them."""
        numbers, (images, _) = batch
        fused, _ = embed_tensor(self.model, images, "pre_norm_vector_add")
        self._validated[dataloader_idx].add(torch.from_numpy(numbers), fused.float())

    def on_validation_epoch_end(self) -> None:
        """Logs ten-fold accuracies and their mean over the pair sets."""
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
        recipe = self.recipe
        return self._scheduled(torch.optim.SGD(self._groups(), lr=recipe.lr, momentum=recipe.momentum))

    def _groups(self) -> list[dict[str, Any]]:
        return self.recipe.backbone_groups(self)

    def _pair_data(self) -> FaceData:
        return self.trainer.datamodule  # type: ignore[attr-defined, no-any-return]


class FaceCoresetNet(_Trained):
    """Coreset stage: templates through aggregator and head; the backbone frozen, or fine-tuned.

    Templates are images, or features that the frozen backbone made before; the rest is one way.

    The backbone stays in evaluation mode, as published: the frames of a clip are too much alike for batch
    statistics. Validated on templates of held-out subjects, beside plain poolings.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        recipe: Recipe,
        *,
        aggregator: str,
        aggregator_options: Mapping[str, Any],
        finetune_backbone: bool = False,
        compiled: bool = False,
        schedule: TemperatureSchedule | None = None,
        subject_means: Tensor | None = None,
        **common: Any,
    ) -> None:
        super().__init__(backbone, head, recipe, **common)
        # Made from the data anew by every run; None where there are no virtual subjects.
        self.register_buffer("subject_means", subject_means, persistent=False)
        self.subject_means: Tensor | None
        self.aggregator_name = aggregator
        self.aggregator_options = dict(aggregator_options)
        self.aggregator = build_aggregator(aggregator, aggregator_options)
        if compiled:
            self.aggregator.compile_maths()  # type: ignore[operator]
        self.poolings = nn.ModuleDict({name: build_aggregator(name, {}) for name in POOLINGS})
        self.finetune_backbone = finetune_backbone
        self.schedule = schedule
        self.figures: dict[str, HeldOutFigures] = {}
        self._validated: dict[str, NumberedRows] = {}
        self._known: dict[tuple[int, ...], FaceSets] = {}
        self.model.requires_grad_(finetune_backbone)

    def train(self, mode: bool = True) -> FaceCoresetNet:
        """Training mode for aggregator and head alone."""
        super().train(mode)
        self.model.eval()
        return self

    @property
    def expected_warnings(self) -> tuple[str, ...]:
        """The backbone is in evaluation mode; the count lets a warning pass where anything else is too."""
        return (rf"Found {len(list(self.model.modules()))} module\(s\) in eval mode",)

    def embedded(self, batch: TemplateBatch | FeatureBatch) -> FaceSets:
        """The faces of a batch as features; with gradient only where the backbone is trained."""
        if isinstance(batch, FeatureBatch):
            return FaceSets(batch.features.float(), batch.norms, batch.offsets, batch.media)
        trained = self.finetune_backbone and self.training
        features, norms = (embed_batch if trained else embed_tensor)(self.model, batch.images)
        return FaceSets(features, norms, batch.offsets, batch.media)

    def _loss(self, batch: TemplateBatch | FeatureBatch, seed: int) -> tuple[Tensor, Tensor]:
        sets, labels, people = self.embedded(batch), batch.labels, None
        if self.subject_means is not None:
            sets, labels, people = mix_identities(
                sets, labels, self.subject_means, self.recipe.identity_mixup_prob, seed=seed
            )
        descriptor: SetDescriptor = self.aggregator(sets)
        embedding = with_gradient_for(self.aggregator.parameters(), descriptor.embedding)
        logits = self.head(embedding, descriptor.norm.unsqueeze(1), labels, people)
        loss = F.cross_entropy(logits, labels)
        if self.recipe.contrast_weight:
            contrast = pair_contrast(embedding, labels)
            self.log("train/contrast", contrast.detach(), batch_size=sets.num_sets, sync_dist=True)
            # Times 0 the head stays in the graph.
            loss = self.recipe.head_weight * loss + self.recipe.contrast_weight * contrast
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
        """Sets the temperature of the schedule."""
        if self.schedule is not None and isinstance(self.aggregator, CoresetAggregator):
            self.aggregator.set_temperature(self.schedule.at(self.current_epoch))

    def on_validation_epoch_start(self) -> None:
        """Forgets the last validation; the features of a frozen backbone are kept."""
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
                # Loaded before, for another module.
                templates = self._template_data().held_out_batch(key).to(self.device)
            sets = self.embedded(templates)
            if not self.finetune_backbone:
                self._known[key] = sets
        for name, module in {self.aggregator_name: self.aggregator, **self.poolings}.items():
            self._validated[name].add(torch.from_numpy(numbers), module(sets).embedding.float())

    def on_validation_epoch_end(self) -> None:
        """Logs TAR@FAR and rank-1 of each."""
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
        # One pass over weights, gradients and moments in place of ten. Under a gradient scaler Lightning does
        # not clip what a fused step unscales.
        fused = self.trainer.precision != "16-mixed"
        return self._scheduled(
            torch.optim.AdamW(
                self._groups(), lr=self.recipe.lr, weight_decay=self.recipe.weight_decay, fused=fused
            )
        )

    def _groups(self) -> list[dict[str, Any]]:
        tuned = self.model if self.finetune_backbone else None
        return self.recipe.coreset_groups(self.aggregator, self.head, tuned)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what is needed to build the aggregator."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["aggregator_name"] = self.aggregator_name
        checkpoint["aggregator_options"] = self.aggregator_options

    def _template_data(self) -> TemplateData | FeatureTemplateData:
        return self.trainer.datamodule  # type: ignore[attr-defined, no-any-return]


def _seed_of(*numbers: int) -> int:
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 2**63

"""What the runs of both stages share: request, run, batches, margin head, checks of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from data.checks.colour_order import check_colour_order, check_skin_colour
from data.checks.label_noise_report import CheckedFaces
from data.sampling.augmentation import Augmentation
from data.sources.face_source import FaceSource
from data.sources.fingerprint import data_parts, reading_parts
from evaluation.reporting.report import versions
from features.extract import extract
from head import build_head, init_class_weights
from net import Backbone
from runs.config import TrainingConfig
from runs.saved_run import EPOCH_ITEMS, IMAGES_BY_SUBJECT, SavedRun, check_same_data, images_by_subject
from runtime.text import first_lines
from train_val import BackboneTrainer, FaceCoresetNet
from training.loaders import Loading, TrainingData

# Below this number of classes a warning is printed.
ENOUGH_CLASSES = 20
_SHOWN = 10
_TEST_RUN_STEPS = 10


@dataclass(frozen=True)
class RunRequest:
    """What a run is assembled from, beside its data.

    Attributes:
        config: of the run.
        saved: the checkpoint that is resumed or evaluated.
        processes: on all nodes.
        gpu: whether they have GPUs.
        dry_run: the run is described only; one view of each image is embedded.
        lines: what is printed about the run; extended while it is assembled.
        skipped: messages about images that are excluded; extended likewise.
    """

    config: TrainingConfig
    saved: SavedRun | None = None
    processes: int = 1
    gpu: bool = False
    dry_run: bool = False
    lines: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def loading(self, default_items: int) -> Loading:
        """How batches are loaded; `default_items`: items of an epoch without --epoch_items.

        A resumed run keeps its number of items, on which its position depends.
        """
        config, saved = self.config.optimiser, None if self.saved is None else self.saved.epoch_items
        items = config.epoch_items or saved or default_items
        if config.test_run:
            items = _TEST_RUN_STEPS * config.accumulate_grad_batches * config.batch_size
        return Loading(
            batch_size=config.batch_size,
            num_workers=self.config.run.num_workers,
            seed=self.config.run.seed,
            accumulate=config.accumulate_grad_batches,
            epoch_items=items,
        )

    def augmentation(self) -> Augmentation:
        """Probabilities of the augmentations."""
        data = self.config.data
        return Augmentation(
            crop_prob=data.crop_augmentation_prob,
            low_res_prob=data.low_res_augmentation_prob,
            photometric_prob=data.photometric_augmentation_prob,
        )

    def shared_options(self, data: TrainingData, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments that the modules of both stages share; `identity`: of `identity_of`."""
        return {
            "steps_per_epoch": -(-len(data.sampler()) // self.config.optimiser.accumulate_grad_batches),
            "seed": self.config.run.seed,
            **identity,
        }

    def identity_of(
        self, name: str, data: Mapping[str, str], subjects: Sequence[str], images: Tensor | None = None
    ) -> dict[str, Any]:
        """What a checkpoint says of the run, and the names of its classes.

        Args:
            name: of the data, for messages.
            data: fingerprint of the training data.
            subjects: names of the classes.
            images: `images_by_subject`, where images may be removed in the course of a run.

        Raises:
            InputError: a resumed run had other data.
        """
        if self.saved is not None:
            check_same_data(self.saved, name, data, subjects, images)
        identity: dict[str, Any] = {"hparams": self.config.to_flat(), "data_fingerprint": data}
        identity |= {"versions": versions(), IMAGES_BY_SUBJECT: images}
        return {"identity": identity, "subjects": subjects}

    def identity_of_images(self, source: FaceSource) -> dict[str, Any]:
        """`identity_of` images."""
        stamps = source.stamps()
        data = data_parts(source.subjects, source.labels, stamps) | reading_parts(source)
        images = images_by_subject(source.subjects, source.labels, stamps)
        return self.identity_of(source.name, data, source.subjects, images)

    def colour_warnings(self, source: FaceSource, backbone: Backbone | None = None) -> list[str]:
        """Warnings about the colours of images, and about the channel order that the backbone gets."""
        skin = check_skin_colour(source, seed=self.config.run.seed)
        found = [skin] if skin else []
        if backbone is not None:
            report = check_colour_order(source, lambda images: extract(images, backbone)[0], backbone.spec)
            if report.is_swapped:
                found.append(report.sentence)
        return found


@dataclass(frozen=True)
class Run:
    """A run ready for the Trainer.

    Attributes:
        module, data: for the Trainer.
        what: one sentence that describes the run.
        lines: details of it.
        warnings: printed before training.
        facts: for run.json.
        validates: whether there is something to validate on.
        skipped: what is wrong with each excluded image.
        faces: computes the labelled faces for --dry_run, where there are features to check labels by.
    """

    module: BackboneTrainer | FaceCoresetNet
    data: TrainingData
    what: str
    lines: list[str]
    warnings: list[str]
    facts: dict[str, Any]
    validates: bool
    skipped: Sequence[str] = ()
    faces: Callable[[], CheckedFaces] | None = None


def make_run(
    request: RunRequest,
    module: BackboneTrainer | FaceCoresetNet,
    data: TrainingData,
    what: str,
    *,
    num_images: int,
    each: str,
    validates: bool,
    warnings: list[str],
) -> Run:
    """A run with what is printed about its batches; `each`: what a batch consists of."""
    optimiser, lines, skipped = request.config.optimiser, request.lines, request.skipped
    accumulated = optimiser.accumulate_grad_batches
    lines.append(
        f"batches  {each} in all"
        + (f", {accumulated} batches a step" if accumulated > 1 else "")
        + f"; {module.steps_per_epoch:,} steps per epoch, {optimiser.trained_epochs} epochs"
    )
    module.identity[EPOCH_ITEMS] = data.sampler().num_items
    facts = {"classes": module.num_subjects, "images": num_images, **module.identity}
    del facts["hparams"], facts[IMAGES_BY_SUBJECT]
    if skipped:
        facts["skipped_images"] = {"count": len(skipped), "first": skipped[:_SHOWN]}
        warnings = [*warnings, skipped_text(skipped)]
    return Run(module, data, what, lines, warnings, facts, validates, skipped)


def skipped_text(skipped: Sequence[str]) -> str:
    """How many images are excluded, and the first of them."""
    title = f"{len(skipped):,} images that cannot be used are excluded:"
    return "\n".join([title, *first_lines(skipped, _SHOWN)])


def make_head(
    config: TrainingConfig, backbone: Backbone, num_classes: int, columns: Tensor | None = None
) -> torch.nn.Module:
    """The margin head; `columns` (C, D) replaces its random class weights."""
    torch.manual_seed(config.run.seed)
    model = config.model
    size = backbone.spec.identity_size
    head = build_head(model.head, size, num_classes, m=model.m, h=model.h, s=model.s, t_alpha=model.t_alpha)
    if columns is not None:
        init_class_weights(head, columns)
    return head

"""Parts that all training runs have: what a checkpoint says, the recipe of the flags, the first lines."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.spec import BackboneSpec
from coreset import AGGREGATORS
from coreset.catalogue import LEARNED_GAMMA
from coreset.weighted_coreset import COPY_SIMILARITY, GATE_START, GATE_STEEPNESS
from data.checks.colour_order import FEWEST_PAIRS, check_colour_order, check_skin_colour
from data.checks.label_noise_report import CheckedFaces
from data.sampling.templates import Augmentation
from data.sources.face_source import FaceSource, open_source
from data.sources.fingerprint import data_parts, reading_parts
from data.sources.image_files import pair_set_folders
from data.sources.pair_files import find_pair_sets
from data.sources.subject_names import same_names
from data.sources.unusable_images import usable_part
from evaluation.reporting.report import versions
from features.extract import extract
from head import start_columns_at
from net import Backbone
from runs.saved_run import EPOCH_ITEMS, IMAGES_BY_SUBJECT, SavedRun, check_same_data, images_by_subject
from runs.settings import Settings
from runtime.errors import InputError
from train_val import BackboneTrainer, FaceCoresetNet
from training.loaders import FaceData, FeatureTemplateData, Loading, TemplateData
from training.optimisers import HeadOptions, Recipe, TemperatureSchedule
from weights import default_quality, norm_warning

MOST_HELD_OUT = 500
# A margin head of two classes learns one direction. From three on it stays, as pairs alone are worse:
# MobileFaceNet's features of LFW, TAR@FAR 1e-02 on LFWS against the norm-weighted mean, 16 subjects +17.0
# points by the head and +11.7 by pairs, 4 subjects +4.1 and -8.7, 2 subjects -6.3 and -20.0.
FEWEST_CLASSES = 3
# From so many on, nothing is said.
ENOUGH_CLASSES = 20
_SHOWN = 10
_TEST_RUN_STEPS = 10
# Options of aggregators that are in the statistics of the backbone's cosines.
_COSINE_LIMITS = ("gate_start", "gate_steepness", "copy_similarity")


@dataclass(frozen=True)
class Run:
    """A run ready for the Trainer. `what` and `lines` say what will happen; `facts` go into run.json;
    `skipped`: what is wrong with each image that was left out; `faces`: all that have a label, where there
    are features to check the labels by.
    """

    module: BackboneTrainer | FaceCoresetNet
    data: FaceData | TemplateData | FeatureTemplateData
    what: str
    lines: list[str]
    warnings: list[str]
    facts: dict[str, Any]
    validates: bool
    steps_per_epoch: int
    skipped: Sequence[str] = ()
    faces: Callable[[], CheckedFaces] | None = None


def losses_of(settings: Settings, num_subjects: int, processes: int) -> tuple[Settings, str]:
    """The settings, in which a contrast stands for the margin head where subjects are too few for one.

    And a warning that says so, or nothing. The head's loss is left out where `head_counts` is False.

    Raises:
        InputError: the batch cannot hold pairs of templates.
    """
    if num_subjects >= ENOUGH_CLASSES:
        return settings, ""
    little = (
        f"{num_subjects} subjects are few (fewer than {ENOUGH_CLASSES}). With 16 an aggregator gained on "
        "other people, with 4 hardly, with 2 it lost: compare it with the poolings on people it has not "
        "seen, and train on more"
    )
    if head_counts(num_subjects):
        return settings, f"{little}."
    check_template_pairs(settings.batch_size, processes)
    weight = settings.contrast_weight or 1.0
    return replace(settings, contrast_weight=weight), (
        f"{little}. They are too few for a margin head; pairs of templates are contrasted instead."
    )


def check_template_pairs(batch_size: int, processes: int) -> None:
    """Raises InputError unless each process's part of a batch consists of pairs of templates."""
    if batch_size % (2 * processes):
        raise InputError(
            f"--batch_size {batch_size}: templates are trained in pairs of one subject here, so each of "
            f"{processes} processes needs an even number of them. Give a multiple of {2 * processes}."
        )


def head_counts(num_subjects: int) -> bool:
    """Whether there are subjects enough for the margin head's loss."""
    return num_subjects >= FEWEST_CLASSES


def check_apart(trained: Sequence[str], validated: Sequence[str]) -> None:
    """Raises InputError where a subject is trained on and validated on."""
    if both := same_names(validated, trained):
        raise InputError(
            f"--val_data_path: {len(both):,} of its subjects are trained on ({', '.join(both[:5])}). "
            "Validate on other subjects."
        )


def validation_people(settings: Settings, lines: list[str], skipped: list[str]) -> FaceSource:
    """The people of --val_data_path in the coreset stage.

    Notes on them are added to `lines`, and sentences of images that are left out to `skipped`.

    Raises:
        InputError: a folder of pair sets, which are for tests: they would choose best.ckpt.
    """
    folder = Path(settings.data_root) / str(settings.val_data_path)
    pair_sets = [*pair_set_folders(folder), *(find_pair_sets(folder) if folder.is_dir() else ())]
    if pair_sets and not settings.use_mxrecord:
        raise InputError(
            f"--val_data_path {folder}: holds pair sets ({', '.join(path.name for path in pair_sets)}); they "
            "are for tests; best.ckpt would be chosen by them. In the coreset stage give a folder of other "
            "people, <subject>/<image>, or remove the flag: some subjects are held out (--held_out)."
        )
    people = open_source(folder, settings.use_mxrecord, settings.swap_color_channel)
    lines += [f"         {note}" for note in people.notes]
    return usable_part(people, skipped) if settings.skip_bad_images else people


def aggregator_options(
    settings: Settings, spec: BackboneSpec, saved: SavedRun | None = None
) -> dict[str, Any]:
    """What the checkpoint stores to build the aggregator again, for features of such a backbone.

    `saved`: of the run that goes on; its limits of cosine stay.

    Raises:
        InputError: an aggregator that has nothing to train.
    """
    given = dict(settings.aggregator_options or {})
    options = inspect.signature(AGGREGATORS[settings.aggregator]).parameters
    if "embedding_size" not in options:
        raise InputError(f"--aggregator {settings.aggregator}: has nothing to train. Evaluate it as it is.")
    quality = settings.quality or default_quality(spec)
    if settings.aggregator != "coreset":
        values = {"quality": "" if quality == "norm" else quality, "auxiliary_size": spec.auxiliary_size}
        own = {name: value for name, value in values.items() if value and name in options}
        limits = _cosine_limits(spec) if saved is None else saved.aggregator_options
        own |= {name: limits[name] for name in _COSINE_LIMITS if name in options and name in limits}
        return {"embedding_size": spec.embedding_size, **own, **given}
    return {
        "embedding_size": spec.embedding_size,
        "coreset_size": settings.coreset_size,
        **({} if settings.gamma == LEARNED_GAMMA else {"gamma": settings.gamma}),
        "learn_gamma": settings.learns_gamma,
        "selection_temperature": settings.selection_temperature,
        "learn_temperature": settings.learn_temperature,
        "quality": quality,
        **given,
    }


def _cosine_limits(spec: BackboneSpec) -> dict[str, float]:
    """Options of `_COSINE_LIMITS` for a backbone that was measured; none for others."""
    if not spec.is_measured:
        return {}
    # How much steeper: by how much less the limits of this backbone are apart.
    width = (spec.cosine_limit(GATE_START + 0.05) - spec.cosine_limit(GATE_START - 0.05)) / 0.1
    limits = (spec.cosine_limit(GATE_START), GATE_STEEPNESS / width, spec.cosine_limit(COPY_SIMILARITY))
    return {name: round(limit, 6) for name, limit in zip(_COSINE_LIMITS, limits, strict=True)}


def make_run(
    settings: Settings,
    module: BackboneTrainer | FaceCoresetNet,
    data: FaceData | TemplateData | FeatureTemplateData,
    what: str,
    lines: list[str],
    *,
    num_images: int,
    each: str,
    validates: bool,
    warnings: list[str],
) -> Run:
    """Adds what is said of the batches; `each`: what a batch is."""
    steps = steps_per_epoch(settings, data)
    accumulated = settings.accumulate_grad_batches
    lines.append(
        f"batches  {each} in all"
        + (f", {accumulated} batches a step" if accumulated > 1 else "")
        + f"; {steps:,} steps an epoch, {settings.trained_epochs} epochs"
    )
    module.identity[EPOCH_ITEMS] = data.sampler().num_items
    facts = {"classes": module.num_subjects, "images": num_images, **module.identity}
    del facts["hparams"], facts[IMAGES_BY_SUBJECT]
    return Run(module, data, what, lines, warnings, facts, validates, steps)


def with_skipped(run: Run, skipped: Sequence[str]) -> Run:
    """The run, which tells of the images that were left out, in run.json too."""
    if not skipped:
        return run
    facts = run.facts | {"skipped_images": {"count": len(skipped), "first": list(skipped[:_SHOWN])}}
    return replace(run, facts=facts, skipped=skipped, warnings=[*run.warnings, skipped_text(skipped)])


def skipped_text(skipped: Sequence[str]) -> str:
    """How many images were left out, and the first of them."""
    more = len(skipped) - _SHOWN
    lines = [f"{len(skipped):,} images that cannot be used are left out:", *skipped[:_SHOWN]]
    return "\n".join([*lines, f"... and {more:,} more"] if more > 0 else lines)


def steps_per_epoch(settings: Settings, data: FaceData | TemplateData | FeatureTemplateData) -> int:
    """Optimiser steps of an epoch, the same for any number of processes."""
    return -(-len(data.sampler()) // settings.accumulate_grad_batches)


def module_identity(
    settings: Settings,
    saved: SavedRun | None,
    name: str,
    data: Mapping[str, str],
    subjects: Sequence[str],
    images: Tensor | None = None,
) -> dict[str, Any]:
    """The keyword arguments that both modules share.

    `data`: fingerprint of what is trained on, `name`: what messages call it; `images`: see
    `runs.trained_images`, where some may be removed in the course of a run.

    Raises:
        InputError: a resumed run had other data.
    """
    if saved is not None:
        check_same_data(saved, name, data, subjects, images)
    identity: dict[str, Any] = {"hparams": settings.to_dict(), "data_fingerprint": data}
    identity |= {"versions": versions(), IMAGES_BY_SUBJECT: images}
    return {"seed": settings.seed, "identity": identity, "subjects": subjects}


def items_of_epoch(settings: Settings, saved: SavedRun | None, default: int) -> int:
    """Items of an epoch; a resumed run keeps its number, since its position follows from it.

    `default`: what it is where --epoch_items says nothing.
    """
    if settings.epoch_items is not None:
        return settings.epoch_items
    return default if saved is None or saved.epoch_items is None else saved.epoch_items


def head_of(
    settings: Settings, backbone: Backbone, num_classes: int, columns: Tensor | None = None
) -> torch.nn.Module:
    """The margin head; `columns` (C, D) in place of random ones; all zero at the auxiliary values.

    What an aggregator makes of auxiliary values is zero there too, so a column would only lose by them.
    """
    torch.manual_seed(settings.seed)
    options = HeadOptions(settings.head, settings.m, settings.h, settings.s, settings.t_alpha)
    size, auxiliary_size = backbone.spec.embedding_size, backbone.spec.auxiliary_size
    head = options.build(size, num_classes)
    if columns is None and auxiliary_size:
        columns = head.get_parameter("kernel").T[:, : size - auxiliary_size]
    if columns is not None:
        start_columns_at(head, F.pad(columns, (0, auxiliary_size)))
    return head


def coreset_module(
    settings: Settings,
    backbone: Backbone,
    head: torch.nn.Module,
    options: Mapping[str, Any],
    data: TemplateData | FeatureTemplateData,
    identity_options: Mapping[str, Any],
    subject_means: torch.Tensor | None = None,
) -> FaceCoresetNet:
    """The coreset stage's module; `options`: the aggregator's; `identity_options`: of `module_identity`.

    `subject_means`: (S, D) unit rows, which virtual subjects are drawn from; None for none.
    """
    schedule = None
    if settings.selection_temperature_end is not None:
        schedule = TemperatureSchedule(
            settings.selection_temperature, settings.selection_temperature_end, settings.trained_epochs
        )
    return FaceCoresetNet(
        backbone,
        head,
        replace(
            recipe_of(settings, steps_per_epoch(settings, data)),
            head_weight=1.0 if head_counts(len(identity_options["subjects"])) else 0.0,
        ),
        aggregator=settings.aggregator,
        aggregator_options=options,
        finetune_backbone=settings.finetune_backbone,
        compiled=settings.compile,
        schedule=schedule,
        subject_means=subject_means,
        **identity_options,
    )


def check_compiler() -> None:
    """torch.compile looks for one at the first step, and ends with a page of its own words.

    Raises:
        InputError: there is none.
    """
    names = [*(os.environ.get(name, "") for name in ("CC", "CXX")), "gcc", "g++", "clang", "clang++"]
    if not any(name and shutil.which(name) for name in names):
        raise InputError(
            "--compile needs a C compiler, and neither gcc nor clang is found. Install one, tell its path by "
            "CC and CXX, or leave the flag out."
        )


def trained_aggregator(settings: Settings) -> str:
    """The aggregator in words."""
    if settings.aggregator != "coreset":
        return f"the aggregator {settings.aggregator}"
    gamma = "learned" if settings.learns_gamma else f"fixed at {settings.gamma:g}"
    return f"the aggregator (K {settings.coreset_size}, gamma {gamma})"


def recipe_of(settings: Settings, steps: int) -> Recipe:
    """The optimisation that the flags ask for, with `steps` an epoch."""
    return Recipe(
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        lr_milestones=settings.trained_milestones,
        lr_gamma=settings.lr_gamma,
        momentum=settings.momentum,
        gamma_lr=settings.gamma_lr,
        identity_mixup_prob=settings.identity_mixup_prob,
        backbone_lr=settings.backbone_lr,
        contrast_weight=settings.contrast_weight,
        lr_schedule=settings.lr_schedule,
        total_steps=steps * settings.trained_epochs,
    )


def loading_of(settings: Settings, epoch_items: int | None) -> Loading:
    """How batches are made."""
    if settings.test_run:
        epoch_items = _TEST_RUN_STEPS * settings.accumulate_grad_batches * settings.batch_size
    return Loading(
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        seed=settings.seed,
        accumulate=settings.accumulate_grad_batches,
        epoch_items=epoch_items,
    )


def cosine_lines(spec: BackboneSpec) -> list[str]:
    """What a run's first lines say of how alike two people are for its backbone."""
    if spec.cosine_statistics is None:
        return []
    subtracted = "" if spec.centre is None else "; the vector that all features share is subtracted"
    return [f"cosines  {spec.cosine_statistics.text()}{subtracted}"]


def quality_warnings(settings: Settings, backbone: Backbone | None) -> list[str]:
    """A sentence where faces are weighed by a norm that is not known to be a measure of quality."""
    if backbone is None:
        return []
    warning = norm_warning(backbone.spec, settings.quality or default_quality(backbone.spec))
    return [warning] if warning else []


def image_identity(settings: Settings, saved: SavedRun | None, source: FaceSource) -> dict[str, Any]:
    """The keyword arguments that both modules share, of a source of images."""
    stamps = source.stamps()
    data = data_parts(source.subjects, source.labels, stamps) | reading_parts(source)
    images = images_by_subject(source.subjects, source.labels, stamps)
    return module_identity(settings, saved, source.name, data, source.subjects, images)


def colour_warnings(settings: Settings, source: FaceSource, backbone: Backbone | None = None) -> list[str]:
    """What seems wrong with the colours of the images, or with the order that the backbone gets them in."""
    skin = check_skin_colour(source, seed=settings.seed)
    warnings = [skin.warning] if skin.warning else []
    if backbone is not None:
        report = check_colour_order(source, lambda images: extract(images, backbone)[0], backbone.spec)
        if report.verdict == "swapped" and report.num_pairs >= FEWEST_PAIRS:
            warnings.append(report.sentence)
    return warnings


def augmentation_of(settings: Settings) -> Augmentation:
    """Probabilities of the augmentations."""
    return Augmentation(
        crop_prob=settings.crop_augmentation_prob,
        low_res_prob=settings.low_res_augmentation_prob,
        photometric_prob=settings.photometric_augmentation_prob,
    )

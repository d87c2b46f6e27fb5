"""The coreset stage: templates through a frozen or fine-tuned backbone, aggregator and margin head.

Runs from images, and what those from features share with them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from backbones.spec import BackboneSpec
from coreset import AGGREGATORS
from coreset.catalogue import LEARNED_GAMMA
from coreset.weighted_coreset import COPY_SIMILARITY, GATE_START, GATE_STEEPNESS
from data.sampling.templates import HeldOutTemplates
from data.sources.face_source import FaceSource, open_source
from data.sources.image_files import pair_set_folders
from data.sources.pair_files import find_pair_sets
from data.sources.subject_names import same_names
from data.sources.subsets import hold_out
from data.sources.unusable_images import first_faults, unusable_images, usable_part
from net import Backbone
from quality.check import set_cosine_statistics
from runs.components import ENOUGH_CLASSES, Run, RunRequest, make_head, make_run
from runs.config import TrainingConfig
from runs.config_rules import template_pair_fault
from runs.saved_run import SavedRun
from runtime.errors import InputError
from runtime.text import listed
from train_val import FaceCoresetNet
from training.loaders import TemplateData, TemplateTrainingData
from weights import default_quality, norm_warning

MAX_HELD_OUT_SUBJECTS = 500
# With two classes a margin head learns one direction. MobileFaceNet features of LFW, TAR@FAR=1e-02 on LFWS
# against the norm-weighted mean, head and contrastive loss: 16 subjects +17.0 and +11.7 points, 4 subjects
# +4.1 and -8.7, 2 subjects -6.3 and -20.0.
MIN_CLASSES = 3
# Options of aggregators that follow from the cosine statistics of the backbone.
_COSINE_LIMITS = ("gate_start", "gate_steepness", "copy_similarity")


def coreset_run(request: RunRequest, backbone: Backbone, source: FaceSource) -> Run:
    """Loaders, head and module of the coreset stage on images."""
    data_config, seed, saved = request.config.data, request.config.run.seed, request.saved
    finetunes = request.config.model.finetune_backbone
    if data_config.val_data_path is None:
        source, others = hold_out(source, data_config.held_out, seed)
    else:
        others = validation_subjects(request)
        check_disjoint(source.subjects, others.subjects)
    held_out = _held_out(request, others, backbone.spec)
    config, few = with_losses_for(request.config, len(source.subjects), request.processes)
    request = replace(request, config=config)
    data = TemplateData(
        source,
        backbone.spec,
        request.augmentation(),
        held_out,
        request.loading(max(config.optimiser.batch_size, len(source) // 10)),
        max_template_size=data_config.max_template_size,
        sample_by=data_config.sample_by,
        paired=config.optimiser.contrast_weight > 0,
        keeps_features=not finetunes,
    )
    if saved is None and not finetunes and not backbone.spec.is_measured:
        with suppress(InputError):
            set_cosine_statistics(backbone, source, seed=seed)
    request.lines.extend(cosine_lines(backbone.spec))
    return make_coreset_run(
        request,
        backbone,
        data,
        request.identity_of_images(source),
        trains_on=f"templates; the backbone {backbone.spec.name} is "
        + ("fine-tuned" if finetunes else "frozen"),
        num_images=len(source),
        num_held_out=len(others.subjects),
        warnings=[few, *request.colour_warnings(source, None if saved else backbone)],
    )


def _held_out(request: RunRequest, source: FaceSource, spec: BackboneSpec) -> HeldOutTemplates:
    """Templates to validate on.

    Raises:
        InputError: as `HeldOutTemplates`, or images that cannot be used.
    """
    held_out = HeldOutTemplates(
        source,
        spec,
        request.augmentation(),
        seed=request.config.run.seed,
        max_template_size=request.config.data.max_template_size,
        max_subjects=MAX_HELD_OUT_SUBJECTS,
    )
    faults = unusable_images(held_out.rows().tolist(), source.image, "held-out images")
    if faults:
        raise InputError.from_faults(
            [f"{len(faults):,} images of held-out subjects cannot be used:", *first_faults(faults)]
        )
    return held_out


def with_losses_for(config: TrainingConfig, num_subjects: int, processes: int) -> tuple[TrainingConfig, str]:
    """The configuration, with a contrastive loss where subjects are too few for the margin head.

    Returns:
        The configuration, and a warning about few subjects, or an empty text.

    Raises:
        InputError: the batch cannot consist of pairs of templates.
    """
    if num_subjects >= ENOUGH_CLASSES:
        return config, ""
    few = (
        f"{num_subjects} subjects are few (fewer than {ENOUGH_CLASSES}). On subjects not trained on, an "
        "aggregator trained with 16 subjects was better than the poolings, with 4 hardly, and with 2 worse: "
        "compare them on other subjects, and train on more"
    )
    if head_is_used(num_subjects):
        return config, f"{few}."
    if fault := template_pair_fault(config.optimiser.batch_size, processes):
        raise InputError(fault)
    optimiser = replace(config.optimiser, contrast_weight=config.optimiser.contrast_weight or 1.0)
    return replace(config, optimiser=optimiser), (
        f"{few}. They are too few for a margin head; a contrastive loss on pairs of templates replaces it."
    )


def head_is_used(num_subjects: int) -> bool:
    """Whether there are enough subjects for the margin head's loss."""
    return num_subjects >= MIN_CLASSES


def check_disjoint(trained: Sequence[str], validated: Sequence[str]) -> None:
    """Raise InputError where a subject is trained on and validated on."""
    if both := same_names(validated, trained):
        raise InputError(
            f"--val_data_path: {len(both):,} of its subjects are trained on ({listed(both, 5)}). "
            "Validate on other subjects."
        )


def validation_subjects(request: RunRequest) -> FaceSource:
    """The faces of --val_data_path in the coreset stage.

    Raises:
        InputError: a folder of pair sets, which are for tests: they would select best.ckpt.
    """
    data = request.config.data
    folder = Path(data.data_root) / str(data.val_data_path)
    pair_sets = [*pair_set_folders(folder), *(find_pair_sets(folder) if folder.is_dir() else ())]
    if pair_sets and not data.use_mxrecord:
        raise InputError(
            f"--val_data_path {folder}: contains pair sets ({', '.join(path.name for path in pair_sets)}), "
            "which are for tests and would select best.ckpt. In the coreset stage give a folder of other "
            "subjects, <subject>/<image>, or remove the flag: some subjects are held out (--held_out)."
        )
    source = open_source(folder, data.use_mxrecord, data.swap_color_channel)
    request.lines.extend(f"         {note}" for note in source.notes)
    return usable_part(source, request.skipped) if data.skip_bad_images else source


def aggregator_options(
    config: TrainingConfig, spec: BackboneSpec, saved: SavedRun | None = None
) -> dict[str, Any]:
    """Arguments of the aggregator, which the checkpoint stores.

    Args:
        config: of the run.
        spec: of the backbone.
        saved: of a resumed run, which keeps its cosine limits.
    """
    aggregator = config.aggregator
    given = dict(aggregator.aggregator_options or {})
    quality = aggregator.quality or default_quality(spec)
    if aggregator.aggregator != "coreset":
        known = inspect.signature(AGGREGATORS[aggregator.aggregator]).parameters
        values = {"quality": "" if quality == "norm" else quality, "auxiliary_size": spec.auxiliary_size}
        own = {name: value for name, value in values.items() if value and name in known}
        limits = _cosine_limits(spec) if saved is None else saved.aggregator_options
        own |= {name: limits[name] for name in _COSINE_LIMITS if name in known and name in limits}
        size = spec.embedding_size if "auxiliary_size" in known else spec.identity_size
        return {"embedding_size": size, **own, **given}
    return {
        "embedding_size": spec.identity_size,
        "coreset_size": aggregator.coreset_size,
        **({} if aggregator.gamma == LEARNED_GAMMA else {"gamma": aggregator.gamma}),
        "learn_gamma": aggregator.learns_gamma,
        "selection_temperature": aggregator.selection_temperature,
        "learn_temperature": aggregator.learn_temperature,
        "quality": quality,
        **given,
    }


def _cosine_limits(spec: BackboneSpec) -> dict[str, float]:
    """Options of `_COSINE_LIMITS` for a backbone that was measured; none for others."""
    if not spec.is_measured:
        return {}
    # The gate is steeper by the factor by which this backbone's limits are closer together.
    width = (spec.cosine_limit(GATE_START + 0.05) - spec.cosine_limit(GATE_START - 0.05)) / 0.1
    limits = (spec.cosine_limit(GATE_START), GATE_STEEPNESS / width, spec.cosine_limit(COPY_SIMILARITY))
    return {name: round(limit, 6) for name, limit in zip(_COSINE_LIMITS, limits, strict=True)}


def make_coreset_run(
    request: RunRequest,
    backbone: Backbone,
    data: TemplateTrainingData,
    identity: Mapping[str, Any],
    *,
    trains_on: str,
    num_images: int,
    num_held_out: int,
    details: tuple[str, str] = ("", ""),
    class_means: Tensor | None = None,
    warnings: Sequence[str] = (),
) -> Run:
    """Head and module of the coreset stage, and what is printed about them.

    Args:
        request: of the run.
        backbone: of the templates.
        data: of the run.
        identity: of `RunRequest.identity_of`.
        trains_on: what templates consist of, in words.
        num_images: training images.
        num_held_out: subjects that are not trained on.
        details: added to what is printed about classes and about a batch.
        class_means: (C, D) mean clean feature of each subject, for head and identity mixup.
        warnings: printed before training; empty ones are not.
    """
    config, num_subjects = request.config, len(identity["subjects"])
    aggregator, head_name, held_out = config.aggregator, config.model.head, data.held_out
    columns = class_means if config.model.head_init == "centroids" else None
    module = FaceCoresetNet(
        backbone,
        make_head(config, backbone, num_subjects, columns),
        config.optimiser,
        aggregator=aggregator,
        aggregator_options=aggregator_options(config, backbone.spec, request.saved),
        finetune_backbone=config.model.finetune_backbone,
        head_weight=1.0 if head_is_used(num_subjects) else 0.0,
        subject_means=class_means if config.optimiser.identity_mixup_prob > 0 else None,
        **request.shared_options(data, identity),
    )
    request.lines.extend(
        [
            f"classes  {num_subjects:,} subjects with {num_images:,} images{details[0]}",
            f"validate {len(np.unique(held_out.labels)):,} of {num_held_out:,} held-out subjects: "
            f"{len(held_out):,} templates",
        ]
    )
    trained = f"the aggregator {aggregator.aggregator}"
    if aggregator.aggregator == "coreset":
        gamma = "learned" if aggregator.learns_gamma else f"fixed at {aggregator.gamma:g}"
        trained = f"the aggregator (K {aggregator.coreset_size}, gamma {gamma})"
    quality = aggregator.quality or default_quality(backbone.spec)
    return make_run(
        request,
        module,
        data,
        f"trains {trained} and a head of {head_name} on {trains_on}",
        num_images=num_images,
        each=f"{config.optimiser.batch_size} templates of 1 to {config.data.max_template_size} faces"
        + details[1],
        validates=True,
        warnings=[each for each in (norm_warning(backbone.spec, quality), *warnings) if each],
    )


def cosine_lines(spec: BackboneSpec) -> list[str]:
    """What is printed about the cosine statistics of the backbone."""
    if spec.cosine_statistics is None:
        return []
    subtracted = "" if spec.centre is None else "; the vector that all features share is subtracted"
    return [f"cosines  {spec.cosine_statistics.text()}{subtracted}"]

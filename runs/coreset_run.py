"""The coreset stage from images: templates of images through a backbone, an aggregator and a margin head."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from backbones.spec import BackboneSpec
from data.sampling.templates import Augmentation, HeldOutTemplates, held_out_templates
from data.sources.face_source import FaceSource
from data.sources.subsets import hold_out
from data.sources.unusable_images import first_faults, unusable_images
from net import Backbone
from quality.check import measure_cosines
from runs.components import (
    MOST_HELD_OUT,
    Run,
    aggregator_options,
    augmentation_of,
    check_apart,
    colour_warnings,
    coreset_module,
    cosine_lines,
    head_of,
    image_identity,
    items_of_epoch,
    loading_of,
    losses_of,
    make_run,
    quality_warnings,
    trained_aggregator,
    validation_people,
)
from runs.saved_run import SavedRun
from runs.settings import Settings
from runtime.errors import InputError
from training.loaders import TemplateData


def image_coreset_run(
    settings: Settings,
    saved: SavedRun | None,
    backbone: Backbone,
    source: FaceSource,
    lines: list[str],
    skipped: list[str],
    processes: int,
) -> Run:
    """Loaders, head and module of the coreset stage on images; `skipped` and `lines` are extended."""
    if settings.val_data_path is None:
        source, others = hold_out(source, settings.held_out, settings.seed)
    else:
        others = validation_people(settings, lines, skipped)
        check_apart(source.subjects, others.subjects)
    augmentation = augmentation_of(settings)
    held_out = _held_out(settings, others, backbone.spec, augmentation)
    settings, few = losses_of(settings, len(source.subjects), processes)
    items = items_of_epoch(settings, saved, max(settings.batch_size, len(source) // 10))
    loading = loading_of(settings, items)
    data = TemplateData(
        source,
        backbone.spec,
        augmentation,
        held_out,
        loading,
        max_template_size=settings.max_template_size,
        sample_by=settings.sample_by,
        paired=settings.contrast_weight > 0,
        keeps_features=not settings.finetune_backbone,
    )
    if saved is None and not settings.finetune_backbone and not backbone.spec.is_measured:
        with suppress(InputError):
            measure_cosines(backbone, source, seed=settings.seed)
    options = aggregator_options(settings, backbone.spec, saved)
    head = head_of(settings, backbone, len(source.subjects))
    identity_options = image_identity(settings, saved, source)
    module = coreset_module(settings, backbone, head, options, data, identity_options)
    lines += [
        *cosine_lines(backbone.spec),
        f"classes  {len(source.subjects):,} subjects with {len(source):,} images",
        f"validate {len(np.unique(held_out.labels)):,} of {len(others.subjects):,} held-out subjects: "
        f"{len(held_out):,} templates",
    ]
    state = "fine-tuned" if settings.finetune_backbone else "frozen"
    return make_run(
        settings,
        module,
        data,
        f"trains {trained_aggregator(settings)} and a head of {settings.head} on templates; the backbone "
        f"{backbone.spec.name} is {state}",
        lines,
        num_images=len(source),
        each=f"{settings.batch_size} templates of 1 to {settings.max_template_size} faces",
        validates=True,
        warnings=[
            *([few] if few else []),
            *quality_warnings(settings, backbone),
            *colour_warnings(settings, source, None if saved else backbone),
        ],
    )


def _held_out(
    settings: Settings, source: FaceSource, spec: BackboneSpec, augmentation: Augmentation
) -> HeldOutTemplates:
    """Templates to validate on.

    Raises:
        InputError: as `held_out_templates`, or images that cannot be used.
    """
    held_out = held_out_templates(
        source,
        spec,
        augmentation,
        seed=settings.seed,
        max_template_size=settings.max_template_size,
        max_subjects=MOST_HELD_OUT,
    )
    faults = unusable_images(held_out.rows().tolist(), source.image, "held-out images")
    if faults:
        raise InputError.from_faults(
            [f"{len(faults):,} images of held-out subjects cannot be used:", *first_faults(faults)]
        )
    return held_out

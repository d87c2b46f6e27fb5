"""The coreset stage from images: templates of images through backbone, aggregator and margin head."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np

from backbones.spec import BackboneSpec
from data.sampling.templates import HeldOutTemplates
from data.sources.face_source import FaceSource
from data.sources.subsets import hold_out
from data.sources.unusable_images import first_faults, unusable_images
from net import Backbone
from quality.check import set_cosine_statistics
from runs.components import Run, RunRequest, make_head, make_run
from runs.coreset_stage import (
    MAX_HELD_OUT_SUBJECTS,
    check_disjoint,
    coreset_module,
    cosine_lines,
    describe_aggregator,
    quality_warnings,
    validation_subjects,
    with_losses_for,
)
from runtime.errors import InputError
from training.loaders import TemplateData


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
    head = make_head(config, backbone, len(source.subjects))
    module = coreset_module(request, backbone, head, data, request.identity_of_images(source))
    request.lines.extend(
        [
            *cosine_lines(backbone.spec),
            f"classes  {len(source.subjects):,} subjects with {len(source):,} images",
            f"validate {len(np.unique(held_out.labels)):,} of {len(others.subjects):,} held-out subjects: "
            f"{len(held_out):,} templates",
        ]
    )
    return make_run(
        request,
        module,
        data,
        f"trains {describe_aggregator(config)} and a head of {config.model.head} on templates; the backbone "
        f"{backbone.spec.name} is {'fine-tuned' if finetunes else 'frozen'}",
        num_images=len(source),
        each=f"{config.optimiser.batch_size} templates of 1 to {data_config.max_template_size} faces",
        validates=True,
        warnings=[
            *([few] if few else []),
            *quality_warnings(config, backbone),
            *request.colour_warnings(source, None if saved else backbone),
        ],
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

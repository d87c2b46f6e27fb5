"""From settings to what the Trainer is given: sources, module and data of a run, and what is said of them.

All that can be refused is refused here, before any training starts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from backbones.spec import BackboneSpec
from data.sources.face_source import open_source
from data.sources.subsets import exclude_subjects, train_subset, with_enough_images
from data.sources.unusable_images import usable_part
from features.cache import cached_views, with_cosines
from net import Backbone, build_backbone
from runs.backbone_run import backbone_stage_run
from runs.components import (
    Run,
    check_compiler,
    check_template_pairs,
    with_skipped,
)
from runs.coreset_run import image_coreset_run
from runs.feature_run import cache_of, cached_feature_run, precomputed_feature_run
from runs.label_audit import FOLDER as LABEL_FOLDER
from runs.label_audit import faces_of_bank
from runs.saved_run import SavedRun
from runs.settings import Settings
from runtime.errors import InputError
from training.loaders import check_batch_split
from weights import empty_backbone, load_weights

DEFAULT_ARCH = "ir_18"
# Fewer say nothing of a backbone whose weights are poor.


def build_run(
    settings: Settings, saved: SavedRun | None, *, processes: int, gpu: bool = False, dry_run: bool = False
) -> Run:
    """Opens the data, builds module and loaders; embeds what is cached and is not there yet.

    `saved`: the checkpoint that the Trainer loads afterwards; its backbone is built without reading weights.
    `dry_run`: the run is described and its labels are checked, which takes one view of each image.

    Raises:
        InputError: paths or data that cannot be used, or another data set than that of the resumed run.
    """
    # Only the backbone stage trains with batch statistics; an epoch's incomplete last batch is left out.
    check_batch_split(settings.batch_size, processes, least=2 if settings.stage == "backbone" else 1)
    if settings.compile:
        check_compiler()
    if settings.contrast_weight:
        check_template_pairs(settings.batch_size, processes)
    if settings.features is not None:
        return precomputed_feature_run(settings, saved, processes=processes)
    backbone, weights_line = _backbone(settings, saved)
    path = Path(settings.data_root) / str(settings.train_data_path)
    opened = open_source(path, settings.use_mxrecord, settings.swap_color_channel)
    notes = list(opened.notes)
    source, subset = train_subset(opened, settings.train_data_subset, settings.seed)
    if settings.exclude_subjects is not None:
        source, left_out = exclude_subjects(source, settings.exclude_subjects)
        notes.append(left_out)
    skipped: list[str] = []
    if settings.skip_bad_images:
        source = usable_part(source, skipped)
    source, few = with_enough_images(source, settings.min_images_per_subject)
    notes += [few] if few else []
    lines = [f"weights  {weights_line}", f"data     {subset}", *(f"         {note}" for note in notes)]
    if settings.cache_features is not None:
        run = cached_feature_run(
            settings,
            saved,
            backbone,
            source,
            lines,
            skipped,
            processes=processes,
            gpu=gpu,
            plain_only=dry_run,
        )
        return with_skipped(run, skipped)
    if settings.stage == "coreset":
        run = image_coreset_run(settings, saved, backbone, source, lines, skipped, processes)
    else:
        run = backbone_stage_run(settings, saved, backbone, source, lines)
    run = with_skipped(run, skipped)
    if settings.start_from_model_statedict is None:
        return run
    folder = Path(settings.out) / LABEL_FOLDER / "features"
    cache = cache_of(settings, folder, processes, gpu=gpu, plain_only=True)
    return replace(
        run,
        faces=lambda: faces_of_bank(
            with_cosines(backbone, cached_views(backbone, source, cache).bank), source
        ),
    )


def _backbone(settings: Settings, saved: SavedRun | None) -> tuple[Backbone, str]:
    if saved is not None and settings.cache_features is not None:
        # Its weights are needed at once: they name the store.
        loaded = load_weights(saved.path)
        return loaded.backbone, f"{loaded.backbone.spec.name} of {saved.path}"
    if saved is not None and saved.backbone_spec is not None:
        spec = BackboneSpec.from_dict(dict(saved.backbone_spec))
        return empty_backbone(spec), f"{spec.name} of {saved.path}"
    start = settings.start_from_model_statedict
    if start is not None:
        loaded = load_weights(start, settings.arch)
        backbone = loaded.backbone
        is_trained = settings.stage == "backbone" or settings.finetune_backbone
        if is_trained and backbone.spec.auxiliary_size:
            raise InputError(
                f"--start_from_model_statedict {start}: gives auxiliary values behind its embedding, as a "
                "frozen "
                "backbone can. To train it, take it without: convert.py --weights IN OUT --auxiliary 0."
            )
        if is_trained and not any(True for _ in backbone.parameters()):
            raise InputError(
                f"--start_from_model_statedict {start}: an ONNX graph cannot be trained. It can be the "
                "frozen backbone of the coreset stage; to train it, give the weights it was made from."
            )
        if is_trained:
            # Both are of the weights as they were.
            backbone.spec = replace(backbone.spec, centre=None, cosine_statistics=None)
        return backbone, f"{backbone.spec.name} ({backbone.spec.channel_order}) of {start}: {loaded.kind}"
    torch.manual_seed(settings.seed)
    backbone = build_backbone(settings.arch or DEFAULT_ARCH)
    return backbone, f"{backbone.spec.name}, fresh"

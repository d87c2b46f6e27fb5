"""From a configuration to what the Trainer needs: data, backbone, module and loaders of a run.

Everything that can be refused is refused here, before training starts.
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
from runs.backbone_run import backbone_run
from runs.components import Run, RunRequest
from runs.coreset_stage import coreset_run
from runs.feature_run import cache_of, cached_feature_run, precomputed_feature_run
from runs.label_audit import FOLDER as LABEL_FOLDER
from runs.label_audit import faces_of_bank
from runtime.errors import InputError
from weights import empty_backbone, load_weights

DEFAULT_ARCH = "ir_18"


def build_run(request: RunRequest) -> Run:
    """Open the data and build module and loaders; embeds features that are to be cached.

    The backbone of a saved run is built without weights, which the Trainer loads afterwards.

    Raises:
        InputError: paths or data that cannot be used, or other data than those of the resumed run.
    """
    config, data, seed = request.config, request.config.data, request.config.run.seed
    if data.features is not None:
        return precomputed_feature_run(request)
    backbone, weights_line = _backbone(request)
    path = Path(data.data_root) / str(data.train_data_path)
    opened = open_source(path, data.use_mxrecord, data.swap_color_channel)
    notes = list(opened.notes)
    source, subset = train_subset(opened, data.train_data_subset, seed)
    if data.exclude_subjects is not None:
        source, excluded = exclude_subjects(source, data.exclude_subjects)
        notes.append(excluded)
    if data.skip_bad_images:
        source = usable_part(source, request.skipped)
    source, few = with_enough_images(source, data.min_images_per_subject)
    notes += [few] if few else []
    request.lines.extend(
        [f"weights  {weights_line}", f"data     {subset}", *(f"         {note}" for note in notes)]
    )
    if data.cache_features is not None:
        return cached_feature_run(request, backbone, source)
    run = (coreset_run if config.stage == "coreset" else backbone_run)(request, backbone, source)
    if config.model.start_from_model_statedict is None:
        return run
    cache = cache_of(request, Path(config.run.out) / LABEL_FOLDER / "features", plain_only=True)
    return replace(
        run,
        faces=lambda: faces_of_bank(
            with_cosines(backbone, cached_views(backbone, source, cache).bank), source
        ),
    )


def _backbone(request: RunRequest) -> tuple[Backbone, str]:
    """The backbone, and what is printed about it."""
    config, saved, model = request.config, request.saved, request.config.model
    if saved is not None and config.data.cache_features is not None:
        # Its weights are needed now: their digest names the store.
        loaded = load_weights(saved.path)
        return loaded.backbone, f"{loaded.backbone.spec.name} of {saved.path}"
    if saved is not None and saved.backbone_spec is not None:
        spec = BackboneSpec.from_dict(dict(saved.backbone_spec))
        return empty_backbone(spec), f"{spec.name} of {saved.path}"
    start = model.start_from_model_statedict
    if start is None:
        torch.manual_seed(config.run.seed)
        backbone = build_backbone(model.arch or DEFAULT_ARCH)
        return backbone, f"{backbone.spec.name}, random weights"
    loaded = load_weights(start, model.arch)
    backbone = loaded.backbone
    if config.stage == "backbone" or model.finetune_backbone:
        _check_trainable(backbone, start)
        # Both describe the weights before training.
        backbone.spec = replace(backbone.spec, centre=None, cosine_statistics=None)
    return backbone, f"{backbone.spec.name} ({backbone.spec.channel_order}) of {start}: {loaded.kind}"


def _check_trainable(backbone: Backbone, start: str) -> None:
    if backbone.spec.auxiliary_size:
        raise InputError(
            f"--start_from_model_statedict {start}: has auxiliary features, which a frozen backbone can "
            "have. To train it, remove them: convert.py --weights IN OUT --auxiliary 0."
        )
    if not any(True for _ in backbone.parameters()):
        raise InputError(
            f"--start_from_model_statedict {start}: an ONNX graph cannot be trained. It can be the "
            "frozen backbone of the coreset stage; to train it, give the weights it was made from."
        )

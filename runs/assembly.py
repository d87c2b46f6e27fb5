"""From settings to what the Trainer is given: sources, module and data of a run, and what is said of them.

All that can be refused is refused here, before any training starts.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbones.spec import BackboneSpec
from data.checks.colour_order import FEWEST_PAIRS, check_colour_order, check_skin_colour
from data.sampling.templates import Augmentation, HeldOutTemplates, held_out_templates
from data.sources.face_source import FaceSource, data_parts, open_source, reading_parts
from data.sources.pair_files import PairSet, check_pair_images, check_pairs, find_pair_sets, read_pair_set
from data.sources.subsets import exclude_subjects, hold_out, train_subset, with_enough_images
from data.sources.unusable_images import first_faults, unusable_images, usable_part
from features.cache import cached_views, with_cosines
from features.extract import embed_arrays
from net import Backbone, build_backbone
from quality.check import measure_cosines
from runs.components import (
    ENOUGH_CLASSES,
    MOST_HELD_OUT,
    Run,
    SavedRun,
    aggregator_options,
    check_apart,
    check_compiler,
    check_template_pairs,
    common,
    coreset_module,
    cosine_lines,
    finished_run,
    head_of,
    items_of_epoch,
    loading_of,
    losses_of,
    quality_warnings,
    recipe_of,
    steps_per_epoch,
    trained_aggregator,
    validation_people,
    with_skipped,
)
from runs.feature_run import cache_of, run_of_cached, run_of_given
from runs.label_audit import FOLDER as LABEL_FOLDER
from runs.label_audit import faces_of_bank
from runs.settings import Settings
from runs.trained_images import images_by_subject
from runtime.errors import InputError
from train_val import BackboneTrainer
from training.loaders import FaceData, TemplateData, check_batch_split
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
        return run_of_given(settings, saved, processes=processes)
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
        run = run_of_cached(
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
        run = _coreset_run(settings, saved, backbone, source, lines, skipped, processes)
    else:
        run = _backbone_run(settings, saved, backbone, source, lines)
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


def _backbone_run(
    settings: Settings, saved: SavedRun | None, backbone: Backbone, source: FaceSource, lines: list[str]
) -> Run:
    pair_sets = []
    if settings.val_data_path is not None:
        pair_sets = pair_sets_of(Path(settings.data_root) / settings.val_data_path)
    loading = loading_of(settings, items_of_epoch(settings, saved, len(source)))
    data = FaceData(source, backbone.spec, _augmentation(settings), pair_sets, loading)
    head = head_of(settings, backbone, len(source.subjects))
    recipe = recipe_of(settings, steps_per_epoch(settings, data))
    told = _told(settings, saved, source)
    module = BackboneTrainer(backbone, head, recipe, **told)
    sets = ", ".join(f"{pairs.name} ({len(pairs):,} pairs)" for pairs in pair_sets)
    lines.append(
        f"validate {sets or 'nothing: no --val_data_path was given, so last.ckpt is all there will be'}"
    )
    what = (
        f"trains {backbone.spec.name} and a head of {settings.head} of {len(source.subjects):,} classes on "
        "single faces"
    )
    return finished_run(
        settings,
        module,
        data,
        what,
        lines,
        num_images=len(source),
        each=f"{settings.batch_size} faces",
        validates=bool(pair_sets),
        warnings=[*_few_classes(len(source.subjects)), *_colour_warnings(settings, source)],
    )


def pair_sets_of(folder: Path) -> list[PairSet]:
    """All pair sets of a folder.

    Raises:
        InputError: none, or some that cannot be validated on, all of them in one message.
    """
    paths = find_pair_sets(folder)
    if not paths:
        raise InputError(
            f"--val_data_path {folder}: holds no pair sets (lfw.bin, cfp_fp.bin, ...), which come with "
            "the data of InsightFace."
        )
    faults: list[str] = []
    pair_sets = [pairs for path in paths if (pairs := _pair_set(path, faults)) is not None]
    if faults:
        raise InputError.from_faults(faults)
    return pair_sets


def _pair_set(path: Path, faults: list[str]) -> PairSet | None:
    """A pair set that can be validated on; None where a fault was added."""
    try:
        pairs = read_pair_set(path)
        check_pairs(str(path), pairs.is_mated)
        check_pair_images(pairs)
    except InputError as fault:
        faults.append(str(fault))
        return None
    return pairs


def _coreset_run(
    settings: Settings,
    saved: SavedRun | None,
    backbone: Backbone,
    source: FaceSource,
    lines: list[str],
    skipped: list[str],
    processes: int,
) -> Run:
    if settings.val_data_path is None:
        source, others = hold_out(source, settings.held_out, settings.seed)
    else:
        others = validation_people(settings, lines, skipped)
        check_apart(source.subjects, others.subjects)
    augmentation = _augmentation(settings)
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
    told = _told(settings, saved, source)
    module = coreset_module(settings, backbone, head, options, data, told)
    lines += [
        *cosine_lines(backbone.spec),
        f"classes  {len(source.subjects):,} subjects with {len(source):,} images",
        f"validate {len(np.unique(held_out.labels)):,} of {len(others.subjects):,} held-out subjects: "
        f"{len(held_out):,} templates",
    ]
    state = "fine-tuned" if settings.finetune_backbone else "frozen"
    return finished_run(
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
            *_colour_warnings(settings, source, None if saved else backbone),
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


def _told(settings: Settings, saved: SavedRun | None, source: FaceSource) -> dict[str, Any]:
    """What both modules are told of images that are trained on."""
    stamps = source.stamps()
    data = data_parts(source.subjects, source.labels, stamps) | reading_parts(source)
    images = images_by_subject(source.subjects, source.labels, stamps)
    return common(settings, saved, source.name, data, source.subjects, images)


def _few_classes(count: int) -> list[str]:
    if count >= ENOUGH_CLASSES:
        return []
    return [
        f"{count} subjects are too few to train a backbone by a margin head (fewer than {ENOUGH_CLASSES}): "
        "it would learn those and no others. Train the aggregator over weights that are there "
        "(--stage coreset)."
    ]


def _colour_warnings(settings: Settings, source: FaceSource, backbone: Backbone | None = None) -> list[str]:
    """What seems wrong with the colours of the images, or with the order that the backbone gets them in."""
    skin = check_skin_colour(source, seed=settings.seed)
    warnings = [skin.warning] if skin.warning else []
    if backbone is not None:
        report = check_colour_order(source, lambda images: embed_arrays(backbone, images)[0], backbone.spec)
        if report.verdict == "swapped" and report.num_pairs >= FEWEST_PAIRS:
            warnings.append(report.sentence)
    return warnings


def _augmentation(settings: Settings) -> Augmentation:
    return Augmentation(
        crop_prob=settings.crop_augmentation_prob,
        low_res_prob=settings.low_res_augmentation_prob,
        photometric_prob=settings.photometric_augmentation_prob,
    )

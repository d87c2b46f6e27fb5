"""The backbone stage: a backbone and a margin head on single faces, validated on pair sets."""

from __future__ import annotations

from pathlib import Path

from data.sources.face_source import FaceSource
from data.sources.pair_files import PairSet, check_pair_images, check_pairs, find_pair_sets, read_pair_set
from net import Backbone
from runs.components import (
    ENOUGH_CLASSES,
    Run,
    augmentation_of,
    colour_warnings,
    head_of,
    image_identity,
    items_of_epoch,
    loading_of,
    make_run,
    recipe_of,
    steps_per_epoch,
)
from runs.saved_run import SavedRun
from runs.settings import Settings
from runtime.errors import InputError
from train_val import BackboneTrainer
from training.loaders import FaceData


def backbone_stage_run(
    settings: Settings, saved: SavedRun | None, backbone: Backbone, source: FaceSource, lines: list[str]
) -> Run:
    """Loaders, head and module of the backbone stage."""
    pair_sets = []
    if settings.val_data_path is not None:
        pair_sets = pair_sets_of(Path(settings.data_root) / settings.val_data_path)
    loading = loading_of(settings, items_of_epoch(settings, saved, len(source)))
    data = FaceData(source, backbone.spec, augmentation_of(settings), pair_sets, loading)
    head = head_of(settings, backbone, len(source.subjects))
    recipe = recipe_of(settings, steps_per_epoch(settings, data))
    identity_options = image_identity(settings, saved, source)
    module = BackboneTrainer(backbone, head, recipe, **identity_options)
    sets = ", ".join(f"{pairs.name} ({len(pairs):,} pairs)" for pairs in pair_sets)
    lines.append(
        f"validate {sets or 'nothing: no --val_data_path was given, so last.ckpt is all there will be'}"
    )
    what = (
        f"trains {backbone.spec.name} and a head of {settings.head} of {len(source.subjects):,} classes on "
        "single faces"
    )
    return make_run(
        settings,
        module,
        data,
        what,
        lines,
        num_images=len(source),
        each=f"{settings.batch_size} faces",
        validates=bool(pair_sets),
        warnings=[*_few_classes(len(source.subjects)), *colour_warnings(settings, source)],
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


def _few_classes(count: int) -> list[str]:
    if count >= ENOUGH_CLASSES:
        return []
    return [
        f"{count} subjects are too few to train a backbone by a margin head (fewer than {ENOUGH_CLASSES}): "
        "it would learn those and no others. Train the aggregator over weights that are there "
        "(--stage coreset)."
    ]

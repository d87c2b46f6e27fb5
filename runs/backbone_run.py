"""The backbone stage: a backbone and a margin head on single faces, validated on pair sets."""

from __future__ import annotations

from pathlib import Path

from data.sources.face_source import FaceSource
from data.sources.pair_files import PairSet, check_pair_images, check_pairs, find_pair_sets, read_pair_set
from net import Backbone
from runs.components import ENOUGH_CLASSES, Run, RunRequest, make_head, make_run
from runtime.errors import InputError
from train_val import BackboneTrainer
from training.loaders import FaceData


def backbone_run(request: RunRequest, backbone: Backbone, source: FaceSource) -> Run:
    """Loaders, head and module of the backbone stage."""
    config, subjects = request.config, source.subjects
    pair_sets = []
    if config.data.val_data_path is not None:
        pair_sets = pair_sets_of(Path(config.data.data_root) / config.data.val_data_path)
    loading = request.loading(len(source))
    data = FaceData(source, backbone.spec, request.augmentation(), pair_sets, loading)
    head = make_head(config, backbone, len(subjects))
    options = request.shared_options(data, request.identity_of_images(source))
    module = BackboneTrainer(backbone, head, config.optimiser, **options)
    sets = ", ".join(f"{pairs.name} ({len(pairs):,} pairs)" for pairs in pair_sets)
    request.lines.append(
        f"validate {sets or 'nothing: no --val_data_path is given, so only last.ckpt is written'}"
    )
    return make_run(
        request,
        module,
        data,
        f"trains {backbone.spec.name} and a head of {config.model.head} of {len(subjects):,} classes on "
        "single faces",
        num_images=len(source),
        each=f"{config.optimiser.batch_size} faces",
        validates=bool(pair_sets),
        warnings=[*_few_classes(len(subjects)), *request.colour_warnings(source)],
    )


def pair_sets_of(folder: Path) -> list[PairSet]:
    """All pair sets of a folder.

    Raises:
        InputError: none, or some that cannot be used, all of them in one message.
    """
    paths = find_pair_sets(folder)
    if not paths:
        raise InputError(
            f"--val_data_path {folder}: contains no pair sets (lfw.bin, cfp_fp.bin, ...), which come with "
            "the data of InsightFace."
        )
    faults: list[str] = []
    pair_sets = []
    for path in paths:
        try:
            pairs = read_pair_set(path)
            check_pairs(str(path), pairs.is_mated)
            check_pair_images(pairs)
            pair_sets.append(pairs)
        except InputError as fault:  # noqa: PERF203 - a few pair sets
            faults.append(str(fault))
    if faults:
        raise InputError.from_faults(faults)
    return pair_sets


def _few_classes(count: int) -> list[str]:
    if count >= ENOUGH_CLASSES:
        return []
    return [
        f"{count} subjects are too few to train a backbone with a margin head (fewer than {ENOUGH_CLASSES}): "
        "it does not generalise to others. Train the aggregator over pretrained weights (--stage coreset)."
    ]

"""The backbone stage: a backbone and a margin head on single faces, validated on pair sets.

`main.py --evaluate` validates a backbone alone. `validation_hq/validate_pairs.py` has more figures, other
flip rules and lists of pairs.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from data.sources.face_source import FaceSource
from data.sources.pair_files import PairSet, check_pair_images, check_pairs, find_pair_sets, read_pair_set
from evaluation.metrics.verification import FoldAccuracy
from evaluation.protocols.pair_sets import pair_figures, pairs_of_bin
from features.extract import embed_faces
from features.options import FACES_AT_ONCE, EmbedOptions
from net import Backbone
from photos.alignment import AS_STORED
from runs.components import ENOUGH_CLASSES, Run, RunRequest, make_head, make_run
from runs.config import TrainingConfig
from runtime.errors import Faults, InputError
from train_val import BackboneTrainer
from training.loaders import FaceData
from weights import load_backbone, source_name, weights_sha256


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
    few = [
        f"{len(subjects)} subjects are too few to train a backbone with a margin head (fewer than "
        f"{ENOUGH_CLASSES}): it does not generalise to others. Train the aggregator over pretrained weights "
        "(--stage coreset)."
    ] * (len(subjects) < ENOUGH_CLASSES)
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
        warnings=[*few, *request.colour_warnings(source)],
    )


def evaluate_backbone(config: TrainingConfig, *, gpu: bool, devices: int) -> dict[str, FoldAccuracy] | None:
    """Ten-fold accuracy of a backbone by pair set; None in all processes but the first.

    As published, the features of an image and of its flip are added before they are normalised.

    Raises:
        InputError: weights or pair sets that cannot be used.
    """
    weights = config.model.start_from_model_statedict or ""
    pair_sets = pair_sets_of(Path(config.data.data_root) / (config.data.val_data_path or ""))
    backbone = load_backbone(weights, config.model.arch)
    options = EmbedOptions(
        flip="pre_norm_vector_add",
        precision=config.run.precision,
        batch_size=FACES_AT_ONCE["cuda" if gpu else "cpu"],
        num_workers=config.run.num_workers,
        gpu=gpu,
        devices=devices,
        num_nodes=config.run.num_nodes,
    )
    found: dict[str, FoldAccuracy] = {}
    for pairs in map(pairs_of_bin, pair_sets):
        store = embed_faces(
            backbone,
            pairs.faces,
            {"images": pairs.faces.digest(), "alignment": AS_STORED},
            Path(config.run.out) / "features",
            options,
            stamps=pairs.faces.stamps(),
            about={"weights": source_name(weights), "weights_sha256": weights_sha256(weights)},
            name=pairs.name,
        )
        if store is not None:
            found[pairs.name] = pair_figures(store.features, pairs).accuracy
    return found or None


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
    faults = Faults()
    pair_sets = [faults.of(partial(_checked_pair_set, path)) for path in paths]
    faults.raise_if_any()
    return [pairs for pairs in pair_sets if pairs is not None]


def _checked_pair_set(path: Path) -> PairSet:
    pairs = read_pair_set(path)
    check_pairs(str(path), pairs.is_mated)
    check_pair_images(pairs)
    return pairs

"""Evaluation of a backbone as it is, by `main.py --evaluate`: ten-fold accuracy on pair sets.

As the published code does it: features of an image and of its mirror image are added before they are
normalised. `validation_hq/validate_pairs.py` has more figures, other flip rules and lists of pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.metrics.verification import FoldAccuracy
from evaluation.protocols.pair_sets import pair_figures, pairs_of_bin
from features.extract import embed_faces
from features.options import FACES_AT_ONCE, EmbedOptions
from photos.alignment import AS_STORED
from runs.backbone_run import pair_sets_of
from runs.settings import Settings, resolve
from runtime.errors import InputError
from weights import load_backbone, source_name, weights_sha256

_FLIP = "pre_norm_vector_add"
# Flags that alone make a run one of the coreset stage.
_OF_CORESET_STAGE = ("features", "cache_features", "preset")


def evaluation_settings(given: Mapping[str, Any]) -> Settings:
    """The settings of the flags given with --evaluate, without a run that is resumed.

    Raises:
        InputError: the flags ask for another stage, or do not say what is evaluated on what.
    """
    flags = [f"--{name}" for name in _OF_CORESET_STAGE if name in given]
    flags += ["--stage coreset"] if given.get("stage") == "coreset" else []
    faults = [
        f"{flag} --evaluate: the weights of a backbone hold no aggregator of a run to evaluate. Give its "
        "checkpoint by --resume_from_checkpoint; to evaluate the backbone remove the flag."
        for flag in flags
    ]
    if "start_from_model_statedict" not in given:
        faults.append(
            "--evaluate: nothing is given that was trained. Give --start_from_model_statedict WEIGHTS of a "
            "backbone, or --resume_from_checkpoint of a run."
        )
    if given.get("val_data_path") is None:
        faults.append(
            "--val_data_path is missing: the folder of the pair sets (lfw.bin, ...) to evaluate on."
        )
    faults += [
        f"--{name} has no effect with --evaluate. Remove it."
        for name in ("dry_run", "fast_dev_run", "test_run")
        if given.get(name)
    ]
    if faults:
        raise InputError.from_faults(faults)
    return resolve({"train_data_path": None} | dict(given) | {"stage": "backbone"}, None)


def evaluate_backbone(settings: Settings, *, gpu: bool, devices: int) -> dict[str, FoldAccuracy] | None:
    """Accuracy by pair set; None in all processes but the first.

    Raises:
        InputError: weights or pair sets that cannot be used.
    """
    weights = settings.start_from_model_statedict or ""
    pair_sets = pair_sets_of(Path(settings.data_root) / (settings.val_data_path or ""))
    backbone = load_backbone(weights, settings.arch)
    options = EmbedOptions(
        flip=_FLIP,
        precision=settings.precision,
        batch_size=FACES_AT_ONCE["cuda" if gpu else "cpu"],
        num_workers=settings.num_workers,
        gpu=gpu,
        devices=devices,
        num_nodes=settings.num_nodes,
    )
    found: dict[str, FoldAccuracy] = {}
    for pairs in map(pairs_of_bin, pair_sets):
        store = embed_faces(
            backbone,
            pairs.faces,
            {"images": pairs.faces.digest(), "alignment": AS_STORED},
            Path(settings.out) / "features",
            options,
            stamps=pairs.faces.stamps(),
            about={"weights": source_name(weights), "weights_sha256": weights_sha256(weights)},
            name=pairs.name,
        )
        if store is not None:
            found[pairs.name] = pair_figures(store.features, pairs).accuracy
    return found or None

"""Ten-fold accuracy of a backbone on pair sets, for `main.py --evaluate`.

As published, the features of an image and of its horizontal flip are added before they are normalised.
`validation_hq/validate_pairs.py` has more figures, other flip rules and lists of pairs.
"""

from __future__ import annotations

from pathlib import Path

from evaluation.metrics.verification import FoldAccuracy
from evaluation.protocols.pair_sets import pair_figures, pairs_of_bin
from features.extract import embed_faces
from features.options import FACES_AT_ONCE, EmbedOptions
from photos.alignment import AS_STORED
from runs.backbone_run import pair_sets_of
from runs.config import TrainingConfig
from weights import load_backbone, source_name, weights_sha256

_FLIP = "pre_norm_vector_add"


def evaluate_backbone(config: TrainingConfig, *, gpu: bool, devices: int) -> dict[str, FoldAccuracy] | None:
    """Accuracy by pair set; None in all processes but the first.

    Raises:
        InputError: weights or pair sets that cannot be used.
    """
    weights = config.model.start_from_model_statedict or ""
    pair_sets = pair_sets_of(Path(config.data.data_root) / (config.data.val_data_path or ""))
    backbone = load_backbone(weights, config.model.arch)
    options = EmbedOptions(
        flip=_FLIP,
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

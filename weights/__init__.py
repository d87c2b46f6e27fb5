"""Load published weights as backbones and aggregators that are ready to use, mapped strictly; write our own.

A source is a file, a name of the catalogue, or hf://owner/repo[@revision][/file]. Only tensors and plain
containers are unpickled, and anything that does not fit exactly is an InputError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.lazy_attributes import lazy_attributes

# ruff: noqa: F401
if TYPE_CHECKING:
    from weights.aggregators import StoredAggregator
    from weights.catalogue import CATALOGUE, Entry
    from weights.compatibility import (
        check_feature_size,
        check_not_trained_on,
        check_precomputed,
        check_same_backbone,
        default_pooling,
        default_quality,
        norm_warning,
        prepare_for,
        trained_backbone_digest,
        trained_spec,
        trained_subjects,
    )
    from weights.digest import name_digest, name_digests, weights_digest
    from weights.loading import (
        Loaded,
        WeightFile,
        empty_backbone,
        load_aggregator,
        load_backbone,
        load_stored_aggregator,
        load_weights,
        open_weights,
    )
    from weights.onnx_backbone import OnnxBackbone
    from weights.overrides import Overrides
    from weights.reading import TRAINED_SUBJECTS, read_checkpoint
    from weights.sources import licence_of, resolve, source_name, weights_sha256
    from weights.storing import save_weights

# Imported on first use: command lines need some names of submodules, and no torch.
_MODULE_OF = {
    "StoredAggregator": "aggregators",
    **dict.fromkeys(("CATALOGUE", "Entry"), "catalogue"),
    **dict.fromkeys(
        (
            "check_feature_size",
            "check_not_trained_on",
            "check_precomputed",
            "check_same_backbone",
            "default_pooling",
            "default_quality",
            "norm_warning",
            "prepare_for",
            "trained_backbone_digest",
            "trained_spec",
            "trained_subjects",
        ),
        "compatibility",
    ),
    **dict.fromkeys(("name_digest", "name_digests", "weights_digest"), "digest"),
    **dict.fromkeys(
        (
            "Loaded",
            "WeightFile",
            "empty_backbone",
            "load_aggregator",
            "load_backbone",
            "load_stored_aggregator",
            "load_weights",
            "open_weights",
        ),
        "loading",
    ),
    "OnnxBackbone": "onnx_backbone",
    "Overrides": "overrides",
    **dict.fromkeys(("TRAINED_SUBJECTS", "read_checkpoint"), "reading"),
    **dict.fromkeys(("licence_of", "resolve", "source_name", "weights_sha256"), "sources"),
    "save_weights": "storing",
}

__getattr__ = lazy_attributes(__name__, _MODULE_OF)

"""Load published weights as backbones and aggregators that are ready to use, mapped strictly; write our own.

A source is a file, a name of the catalogue, or hf://owner/repo[@revision][/file]. Only tensors and plain
containers are unpickled, and anything that does not fit exactly is an InputError.
"""

from weights.aggregators import StoredAggregator
from weights.catalogue import CATALOGUE, Entry
from weights.compatibility import (
    check_feature_size,
    check_not_trained_on,
    check_precomputed,
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

__all__ = [
    "CATALOGUE",
    "TRAINED_SUBJECTS",
    "Entry",
    "Loaded",
    "OnnxBackbone",
    "Overrides",
    "StoredAggregator",
    "WeightFile",
    "check_feature_size",
    "check_not_trained_on",
    "check_precomputed",
    "default_pooling",
    "default_quality",
    "empty_backbone",
    "licence_of",
    "load_aggregator",
    "load_backbone",
    "load_stored_aggregator",
    "load_weights",
    "name_digest",
    "name_digests",
    "norm_warning",
    "open_weights",
    "prepare_for",
    "read_checkpoint",
    "resolve",
    "save_weights",
    "source_name",
    "trained_backbone_digest",
    "trained_spec",
    "trained_subjects",
    "weights_digest",
    "weights_sha256",
]

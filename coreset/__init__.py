"""Aggregation of a set of faces into one descriptor. Pure torch: no files, no training loop.

`AGGREGATORS` is the registry that commands, checkpoints and tests share; `coreset.catalogue` has its names
without importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coreset.catalogue import AGGREGATOR_NAMES, describe_aggregators, requires_training
from runtime.lazy_attributes import lazy_attributes

if TYPE_CHECKING:
    from coreset.registry import AGGREGATORS, build_aggregator
    from coreset.sets import FaceSets, SetDescriptor

__all__ = [
    "AGGREGATORS",
    "AGGREGATOR_NAMES",
    "FaceSets",
    "SetDescriptor",
    "build_aggregator",
    "describe_aggregators",
    "requires_training",
]

# Imported on first use, so that the names in `coreset.catalogue` cost no import of torch.
_LAZY = {
    "AGGREGATORS": "registry",
    "build_aggregator": "registry",
    "FaceSets": "sets",
    "SetDescriptor": "sets",
}

__getattr__ = lazy_attributes(__name__, _LAZY)

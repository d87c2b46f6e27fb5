"""Registry of aggregators."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import get_type_hints

import torch
from torch import nn

from coreset.aggregator import CoresetAggregator
from coreset.baselines.cluster_aggregate import ClusterAggregate
from coreset.baselines.context_attention import ContextAttention
from coreset.baselines.inverse_variance import InverseVariance
from coreset.baselines.learned_map import LearnedMap
from coreset.baselines.neural_aggregation import NeuralAggregation
from coreset.baselines.proxy_fusion import ProxyFusion
from coreset.baselines.set_transformer import SetTransformer
from coreset.catalogue import AGGREGATOR_ENTRIES, AggregatorEntry
from coreset.pooling import BestNorm, FpsMean, Mean, MediaMean, NormWeighted, RandomK, TopK
from coreset.weighted_coreset import WeightedCoreset
from runtime.errors import InputError, valid_names
from runtime.json_files import is_plain

# Modules that map FaceSets to a SetDescriptor; options are the keywords of the constructor.
AGGREGATORS: dict[str, type[nn.Module]] = {
    "coreset": CoresetAggregator,
    "mean": Mean,
    "norm_weighted": NormWeighted,
    "media_mean": MediaMean,
    "best_norm": BestNorm,
    "top_k": TopK,
    "fps_mean": FpsMean,
    "random_k": RandomK,
    "learned_map": LearnedMap,
    "weighted_coreset": WeightedCoreset,
    "nan": NeuralAggregation,
    "context_attention": ContextAttention,
    "inverse_variance": InverseVariance,
    "proxy_fusion": ProxyFusion,
    "caface": ClusterAggregate,
    "set_transformer": SetTransformer,
}


def register_aggregator(name: str, kind: type[nn.Module], entry: AggregatorEntry) -> None:
    """Add an aggregator to the registry and to the catalogue that command lines read."""
    AGGREGATORS[name] = kind
    AGGREGATOR_ENTRIES[name] = entry


# Limits of integer options; the largest published aggregator has 13 million parameters.
_MAX_VALUES = {"num_layers": 100, "num_heads": 1024, "seed": 2**63 - 1}
_MAX_VALUE = 65_536
_MAX_PARAMETERS = 128 << 20


def build_aggregator(name: str, options: Mapping[str, object]) -> nn.Module:
    """Build an aggregator.

    Args:
        name: a key of `AGGREGATORS`.
        options: keywords of its constructor; they may come from a file and are checked first.

    Raises:
        InputError: an unknown name, or an option that is unknown, missing, or of a wrong type or range.
    """
    if name not in AGGREGATORS:
        raise InputError(f"There is no aggregator {name!r}. {valid_names(name, AGGREGATORS)}")
    kind = AGGREGATORS[name]
    faults = option_faults(name, options)
    faults += [
        f"Aggregator {name!r} needs the option {option!r}."
        for option, parameter in _parameters(kind).items()
        if parameter.default is inspect.Parameter.empty and option not in options
    ]
    if faults:
        raise InputError.from_faults(faults)
    # Counted before memory is allocated.
    with torch.device("meta"):
        size = sum(value.numel() for value in kind(**options).state_dict().values())
    if size > _MAX_PARAMETERS:
        raise InputError(
            f"Aggregator {name!r}: {dict(options)} give {size:,} parameters; expected "
            f"{_MAX_PARAMETERS:,} or fewer."
        )
    return kind(**options)


def option_faults(name: str, options: Mapping[str, object]) -> list[str]:
    """A sentence for each option that the aggregator does not have, or whose type or range is wrong."""
    kind = AGGREGATORS[name]
    parameters = _parameters(kind)
    types = get_type_hints(kind.__init__) if parameters else {}
    faults = []
    for option, value in options.items():
        if option not in parameters:
            valid = valid_names(str(option), parameters)
            faults.append(f"Aggregator {name!r} has no option {option!r}. {valid}")
        elif not is_plain(value, types[option]) or (isinstance(value, float) and not math.isfinite(value)):
            wanted = (
                "finite " * (isinstance(value, float) and types[option] is float) + types[option].__name__
            )
            faults.append(f"Aggregator {name!r}, option {option!r}: expected {wanted}, found {value!r}.")
        elif isinstance(value, int) and value > (most := _MAX_VALUES.get(option, _MAX_VALUE)):
            faults.append(
                f"Aggregator {name!r}, option {option!r}: expected {most:,} or less, found {value!r}."
            )
    return faults


def _parameters(kind: type[nn.Module]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(kind).parameters if "__init__" in vars(kind) else {}

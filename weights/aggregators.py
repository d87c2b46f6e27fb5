"""The aggregator in a file: ours by the name and options that stand beside it, or the published one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from coreset import build_aggregator
from coreset.aggregator import CoresetAggregator
from errors import InputError
from weights.fitting import disagreements, shortened
from weights.reading import Stored, described

_OURS = "aggregator."
_PUBLISHED = "aggregate_model."
# Names that checkpoints were written with before, and what they are called now.
_RENAMED = {"conan": "context_attention"}


@dataclass(frozen=True, eq=False)
class StoredAggregator:
    """An aggregator in evaluation mode, and what builds it again."""

    module: nn.Module
    name: str
    options: dict[str, Any]


def stored_aggregator(stored: Stored) -> StoredAggregator | None:
    """The aggregator of a file that was read; None where it has none.

    Raises:
        InputError: it does not fit what the file says of it.
    """
    if any(key.startswith(_PUBLISHED) for key in stored.state):
        module = CoresetAggregator.from_published(stored.state)
        sizes = {"embedding_size": module.embedding_size, "coreset_size": module.coreset_size}
        return StoredAggregator(module, "coreset", sizes)
    own = {key.removeprefix(_OURS): value for key, value in stored.state.items() if key.startswith(_OURS)}
    if not own and stored.aggregator is None:
        return None
    try:
        name, options = stored.aggregator or (None, None)
        if not isinstance(name, str) or not isinstance(options, Mapping):
            raise InputError(f"its aggregator_name and aggregator_options are {described(options)}.")
        name = _RENAMED.get(name, name)
        built = build_aggregator(name, options)
    except InputError as error:
        raise InputError(f"{stored.path}: its aggregator cannot be built: {error}") from error
    expected = {key: tuple(value.shape) for key, value in built.state_dict().items()}
    if faults := disagreements(own, expected):
        first = f"{stored.path}: its {name} cannot be built; if an earlier release made it, train it again:"
        raise InputError.from_faults([first, *shortened(faults)])
    built.load_state_dict(own)
    return StoredAggregator(built.eval(), name, dict(options))

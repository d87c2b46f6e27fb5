"""The aggregator in a file: one of this project by its stated name and options, or the published one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coreset import build_aggregator
from coreset.catalogue import LEARNED_GAMMA
from runtime.errors import InputError
from weights.fitting import shortened, state_dict_mismatches
from weights.overrides import Overrides
from weights.published_aggregator import published_aggregator
from weights.reading import Stored, described

_OURS = "aggregator."
_PUBLISHED = "aggregate_model."
# Names in checkpoints of earlier versions.
_RENAMED = {"conan": "context_attention"}


@dataclass(frozen=True, eq=False)
class StoredAggregator:
    """An aggregator in evaluation mode, with its name and options in `coreset.AGGREGATORS`."""

    name: str
    options: Mapping[str, Any]
    module: nn.Module

    def metadata(self) -> dict[str, str]:
        """Name and options as texts."""
        return {"aggregator_name": self.name, "aggregator_options": json.dumps(dict(self.options))}


def stored_aggregator(stored: Stored, overrides: Overrides | None = None) -> StoredAggregator | None:
    """The aggregator of a file that was read; None where there is none.

    `overrides` replace what the file states, for options that the aggregator has.

    Raises:
        InputError: it does not match what the file states of it, or is a published one without a coreset
            size or gamma.
    """
    overrides = overrides or Overrides()
    if any(key.startswith(_PUBLISHED) for key in stored.state):
        return _published(stored, overrides)
    own = {key.removeprefix(_OURS): value for key, value in stored.state.items() if key.startswith(_OURS)}
    if not own and stored.aggregator is None:
        return None
    try:
        name, options = stored.aggregator or (None, None)
        if not isinstance(name, str) or not isinstance(options, Mapping):
            raise InputError(f"its aggregator_name and aggregator_options are {described(options)}.")
        name = _RENAMED.get(name, name)
        options, own = _overridden(name, options, own, overrides)
        built = build_aggregator(name, options)
    except InputError as error:
        raise InputError(f"{stored.path}: its aggregator cannot be built: {error}") from error
    expected = {key: tuple(value.shape) for key, value in built.state_dict().items()}
    if faults := state_dict_mismatches(own, expected):
        first = f"{stored.path}: its {name} cannot be built. If an earlier release made it, train it again:"
        raise InputError.from_faults([first, *shortened(faults)])
    built.load_state_dict(own)
    return StoredAggregator(name, dict(options), built.eval())


def _published(stored: Stored, overrides: Overrides) -> StoredAggregator:
    """Coreset size and a fixed gamma are hyper-parameters, a learned gamma is in the state dict."""
    faults = []
    size = overrides.coreset_size
    if size is None:
        size = _number(stored, "coreset_size", int)
    if size is None:
        faults.append(
            f"{stored.path}: the coreset size of its aggregator is not stated (no coreset_size among "
            "hyper_parameters). Pass --coreset_size K; the paper uses 3."
        )
    gamma = None if overrides.gamma == LEARNED_GAMMA else overrides.gamma
    if gamma is None and f"{_PUBLISHED}gamma" not in stored.state:
        gamma = _number(stored, "gamma", (int, float)) if overrides.gamma is None else None
        if gamma in (None, LEARNED_GAMMA):
            faults.append(
                f"{stored.path}: the gamma of its aggregator was fixed, and its value is not stated. Pass "
                "--gamma."
            )
    if faults or size is None:
        raise InputError.from_faults(faults)
    module = published_aggregator(stored.state, size, gamma=gamma)
    options = {
        "embedding_size": module.embedding_size,
        "coreset_size": module.coreset_size,
        "gamma": module.gamma.item(),
        "learn_gamma": gamma is None,
        "clamp_gamma": module.clamp_gamma,
    }
    return StoredAggregator("coreset", options, module)


def _number(stored: Stored, name: str, kind: type | tuple[type, ...]) -> Any:
    """A hyper-parameter, None where it is not stated; InputError unless it is a number."""
    value = stored.hyper_parameters.get(name)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise InputError(
            f"{stored.path}: {name} among its hyper_parameters is {value!r}, expected a number. "
            f"Pass --{name}."
        )
    return value


def _overridden(
    name: str, options: Mapping[str, Any], own: dict[str, Tensor], overrides: Overrides
) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    changes: dict[str, Any] = overrides.options_of(name)
    if changes.get("gamma") == LEARNED_GAMMA:
        if "gamma" not in own or not options.get("learn_gamma", True):
            raise InputError("--gamma -1 selects the learned gamma, but this one was fixed.")
        del changes["gamma"]
    if "gamma" in changes and "gamma" in own:
        changes["learn_gamma"] = False
        own = own | {"gamma": torch.tensor(float(changes["gamma"]))}
    return {**options, **changes}, own

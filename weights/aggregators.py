"""The aggregator in a file: ours by the name and options that stand beside it, or the published one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coreset import build_aggregator
from coreset.catalogue import LEARNED_GAMMA
from runtime.errors import InputError
from weights.fitting import disagreements, shortened
from weights.overrides import Overrides
from weights.published_aggregator import published_aggregator
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


def stored_aggregator(stored: Stored, overrides: Overrides | None = None) -> StoredAggregator | None:
    """The aggregator of a file that was read; None where it has none.

    `overrides` take the place of what the file says, where the aggregator has such options.

    Raises:
        InputError: it does not fit what the file says of it, or a published one whose coreset size or gamma
            nothing says.
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
    if faults := disagreements(own, expected):
        first = f"{stored.path}: its {name} cannot be built; if an earlier release made it, train it again:"
        raise InputError.from_faults([first, *shortened(faults)])
    built.load_state_dict(own)
    return StoredAggregator(built.eval(), name, dict(options))


def _published(stored: Stored, overrides: Overrides) -> StoredAggregator:
    """Coreset size and a fixed gamma stand among the hyper-parameters, a learned gamma in the state."""
    faults = []
    size = overrides.coreset_size
    if size is None:
        size = _number(stored, "coreset_size", int)
    if size is None:
        faults.append(
            f"{stored.path}: it does not say the coreset size of its aggregator, which is needed to use it "
            "(no coreset_size among hyper_parameters). Give --coreset_size K; the paper's is 3."
        )
    gamma = None if overrides.gamma == LEARNED_GAMMA else overrides.gamma
    if gamma is None and f"{_PUBLISHED}gamma" not in stored.state:
        gamma = _number(stored, "gamma", (int, float)) if overrides.gamma is None else None
        if gamma in (None, LEARNED_GAMMA):
            faults.append(
                f"{stored.path}: the gamma of its aggregator is not among the weights, so that it was fixed, "
                "and nothing says its value. Give --gamma."
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
    return StoredAggregator(module, "coreset", options)


def _number(stored: Stored, name: str, kind: type | tuple[type, ...]) -> Any:
    """A hyper-parameter; None where the file does not say it. InputError: it is something else."""
    value = stored.hyper_parameters.get(name)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise InputError(
            f"{stored.path}: {name} among its hyper_parameters is {value!r}, expected a number. "
            f"Give --{name}."
        )
    return value


def _overridden(
    name: str, options: Mapping[str, Any], own: dict[str, Tensor], overrides: Overrides
) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    changes: dict[str, Any] = overrides.options_of(name)
    if changes.get("gamma") == LEARNED_GAMMA:
        if "gamma" not in own or not options.get("learn_gamma", True):
            raise InputError("--gamma -1 asks for the learned gamma, and this one was fixed.")
        del changes["gamma"]
    if "gamma" in changes and "gamma" in own:
        changes["learn_gamma"] = False
        own = own | {"gamma": torch.tensor(float(changes["gamma"]))}
    return {**options, **changes}, own

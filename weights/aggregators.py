"""The aggregator in a file: one of this project by its stated name and options, or a published one.

The published one is that of FaceCoresetNet (arXiv 2308.14075).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coreset import build_aggregator
from coreset.aggregator import CoresetAggregator
from coreset.catalogue import LEARNED_GAMMA
from runtime.errors import InputError
from weights.fitting import shortened, state_dict_mismatches
from weights.overrides import Overrides
from weights.reading import Stored, described

_OURS = "aggregator."
_PUBLISHED = "aggregate_model."
# Names in checkpoints of earlier versions.
_FORMER_NAMES = {"conan": "context_attention"}
# Published names and ours; the published layer has other parts, which its forward pass does not use.
_NAMES = {
    "gamma": "gamma",
    "pos_trans_norm": "norm_code_scale",
    "decoder_layer1.self_attn1": "self_attention",
    "decoder_layer1.multihead_attn1": "cross_attention",
    "decoder_layer1.norm1": "self_norm",
    "decoder_layer1.norm2": "cross_norm",
}
# Each with a dot at the end, so that only whole names match.
_UNUSED = (
    *("tau.", "feature_norm_normalizer.", "ur_center.", "dist_from_ur_center_norm_size_balance."),
    *("quality_measure.", "decoder_layer1.self_attn2.", "decoder_layer1.multihead_attn2."),
    *("decoder_layer1.multihead_attn3.", "decoder_layer1.norm3.", "decoder_layer1.norm4."),
)
# The other parts of a whole checkpoint: the margin head and, twice, the backbone.
_OTHER_PARTS = ("head.", "model.", "template_model.module.")


@dataclass(frozen=True, eq=False)
class StoredAggregator:
    """An aggregator in evaluation mode, with its name and options in `coreset.AGGREGATORS`."""

    name: str
    options: Mapping[str, Any]
    module: nn.Module

    def metadata(self) -> dict[str, str]:
        """Name and options as texts."""
        return {"aggregator_name": self.name, "aggregator_options": json.dumps(dict(self.options))}


def stored_aggregator(stored: Stored, overrides: Overrides) -> StoredAggregator | None:
    """The aggregator of a file that was read; None where there is none.

    `overrides` replace what the file states, for options that the aggregator has.

    Raises:
        InputError: it does not match what the file states of it, or is a published one without a coreset
            size or gamma.
    """
    if any(key.startswith(_PUBLISHED) for key in stored.state):
        return _published(stored, overrides)
    own = {key.removeprefix(_OURS): value for key, value in stored.state.items() if key.startswith(_OURS)}
    if not own and stored.aggregator is None:
        return None
    try:
        name, options = stored.aggregator or (None, None)
        if not isinstance(name, str) or not isinstance(options, Mapping):
            raise InputError(f"its aggregator_name and aggregator_options are {described(options)}.")
        name = _FORMER_NAMES.get(name, name)
        options, own = _overridden(name, options, own, overrides)
        built = build_aggregator(name, options)
    except InputError as error:
        raise InputError(f"{stored.path}: its aggregator cannot be built: {error}") from error
    if faults := state_dict_mismatches(own, built.state_dict()):
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


def published_aggregator(
    state: Mapping[str, object], coreset_size: int, *, gamma: float | None = None
) -> CoresetAggregator:
    """Build the aggregator of a published checkpoint, in evaluation mode.

    Args:
        state: name -> tensor or array, with or without the prefix `_PUBLISHED`; parts of the head and
            the backbone are ignored. Values become float32.
        coreset_size: K, which is stored in the hyper-parameters of a checkpoint, not in its state.
        gamma: a fixed value; None for the learned one of the state.

    Raises:
        InputError: a key is unknown or missing, a shape is wrong, or gamma is out of range or missing.
    """
    ours, unknown = {}, []
    for key, value in state.items():
        name = key.removeprefix(_PUBLISHED)
        if key.startswith(_OTHER_PARTS) or f"{name}.".startswith(_UNUSED):
            continue
        part = next((part for part in _NAMES if name == part or name.startswith(f"{part}.")), None)
        if part is None:
            unknown.append(key)
        else:
            ours[_NAMES[part] + name.removeprefix(part)] = torch.as_tensor(value).detach().float()
    faults = []
    if unknown:
        faults.append(f"unknown keys {', '.join(map(repr, unknown[:5]))} ({len(unknown)} in all)")
    if "self_norm.weight" not in ours:
        faults.append("'decoder_layer1.norm1.weight' is missing; is this the state of an aggregator?")
    if "gamma" not in ours and gamma is None:
        faults.append("there is no 'gamma' in it, so it was fixed; state its value")
    if "gamma" in ours and ours["gamma"].numel() != 1:
        faults.append(f"its gamma is {tuple(ours['gamma'].shape)}, expected one number")
    if faults:
        raise InputError.from_faults([f"Published aggregator: {fault}." for fault in faults])
    ours["gamma"] = ours["gamma"].reshape(()) if gamma is None else torch.tensor(float(gamma))
    aggregator = CoresetAggregator(
        embedding_size=ours["self_norm.weight"].shape[0],
        coreset_size=coreset_size,
        gamma=float(ours["gamma"]),
        learn_gamma=gamma is None,
        clamp_gamma=False,
    )
    ours["log_temperature"] = aggregator.log_temperature.detach()
    if faults := state_dict_mismatches(ours, aggregator.state_dict()):
        first = "Published aggregator, by our names; is the checkpoint complete?"
        raise InputError.from_faults([first, *shortened(faults)])
    aggregator.load_state_dict(ours)
    return aggregator.eval()


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

"""The aggregator of a published FaceCoresetNet checkpoint under our names (METHOD 5, key table)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from runtime.errors import InputError

# The published checkpoint's names (METHOD 5, key table) and ours.
_PUBLISHED_NAMES = {
    "gamma": "gamma",
    "pos_trans_norm": "norm_code_scale",
    "decoder_layer1.self_attn1": "self_attention",
    "decoder_layer1.multihead_attn1": "cross_attention",
    "decoder_layer1.norm1": "self_norm",
    "decoder_layer1.norm2": "cross_norm",
}
# Each with a dot behind it, so that a name matches whole.
_PUBLISHED_UNUSED = (
    "tau.",
    "feature_norm_normalizer.",
    "ur_center.",
    "dist_from_ur_center_norm_size_balance.",
    "quality_measure.",
    "decoder_layer1.self_attn2.",
    "decoder_layer1.multihead_attn2.",
    "decoder_layer1.multihead_attn3.",
    "decoder_layer1.norm3.",
    "decoder_layer1.norm4.",
)
# Other parts of a whole published checkpoint: the margin head and, twice, the backbone.
_PUBLISHED_NEIGHBOURS = ("head.", "model.", "template_model.module.")


def published_state(state: Mapping[str, object], *, gamma: float | None = None) -> dict[str, Tensor]:
    """A published checkpoint's aggregator under our names, float32; as `CoresetAggregator.from_published`.

    `gamma` takes the place of the learned one.
    """
    ours: dict[str, Tensor] = {}
    unknown = []
    for key, value in state.items():
        name = key.removeprefix("aggregate_model.")
        if key.startswith(_PUBLISHED_NEIGHBOURS) or f"{name}.".startswith(_PUBLISHED_UNUSED):
            continue
        part = next((part for part in _PUBLISHED_NAMES if name == part or name.startswith(f"{part}.")), None)
        if part is None:
            unknown.append(key)
        else:
            tensor = torch.as_tensor(value).detach().to(torch.float32)
            ours[_PUBLISHED_NAMES[part] + name.removeprefix(part)] = tensor
    faults = []
    if unknown:
        faults.append(
            f"Published aggregator: unknown keys {', '.join(map(repr, unknown[:5]))} ({len(unknown)} in all)."
        )
    if "self_norm.weight" not in ours:
        faults.append(
            "Published aggregator: 'decoder_layer1.norm1.weight' is missing; is this an aggregator's state?"
        )
    if "gamma" not in ours and gamma is None:
        faults.append(
            "Published aggregator: there is no 'gamma' in it, so it was fixed; give the value it had."
        )
    if "gamma" in ours and ours["gamma"].numel() != 1:
        faults.append(
            f"Published aggregator: its gamma is {tuple(ours['gamma'].shape)}, expected one number."
        )
    if faults:
        raise InputError.from_faults(faults)
    ours["gamma"] = ours["gamma"].reshape(()) if gamma is None else torch.tensor(float(gamma))
    return ours

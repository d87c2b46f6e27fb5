"""The aggregator of a published FaceCoresetNet checkpoint (arXiv 2308.14075) under our parameter names."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from coreset.aggregator import CoresetAggregator
from runtime.errors import InputError

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


def published_aggregator(
    state: Mapping[str, object], coreset_size: int, *, gamma: float | None = None
) -> CoresetAggregator:
    """Build the aggregator of a published checkpoint, in evaluation mode.

    Args:
        state: name -> tensor or array, with or without the prefix 'aggregate_model.'; parts of the head and
            the backbone are ignored. Values become float32.
        coreset_size: K, which is stored in the hyper-parameters of a checkpoint, not in its state.
        gamma: a fixed value; None for the learned one of the state.

    Raises:
        InputError: a key is unknown or missing, a shape is wrong, or gamma is out of range or missing.
    """
    ours, unknown = {}, []
    for key, value in state.items():
        name = key.removeprefix("aggregate_model.")
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
    expected = aggregator.state_dict()
    ours["log_temperature"] = expected["log_temperature"]
    faults = [f"{name} is missing" for name in expected if name not in ours]
    for name, tensor in ours.items():
        if name not in expected:
            faults.append(f"{name} is not a parameter of it")
        elif tensor.shape != expected[name].shape:
            faults.append(f"{name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}")
    if faults:
        raise InputError(
            f"Published aggregator, by our names: {'; '.join(faults)}. Is the checkpoint complete?"
        )
    aggregator.load_state_dict(ours)
    return aggregator.eval()

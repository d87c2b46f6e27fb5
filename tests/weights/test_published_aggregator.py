"""The published aggregator: its results, its training step and its checkpoints, from golden data."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreset.sets import FaceSets
from runtime.errors import InputError
from weights.aggregators import published_aggregator

GAMMAS = ("0.0", "0.01", "0.5", "1.0")
SIZES = (1, 2, 3, 7, 20, 64)
PUBLISHED_PARTS = {
    "gamma": "gamma",
    "pos_trans_norm.": "norm_code_scale.",
    "decoder_layer1.self_attn1.": "self_attention.",
    "decoder_layer1.multihead_attn1.": "cross_attention.",
    "decoder_layer1.norm1.": "self_norm.",
    "decoder_layer1.norm2.": "cross_norm.",
}


@pytest.fixture(scope="module")
def cases(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "aggregator_d64.npz") as archive:
        return dict(archive)


def published_weights(cases: dict[str, np.ndarray], K: int) -> dict[str, np.ndarray]:
    prefix = f"k{K}_weights_"
    weights = {name.removeprefix(prefix): value for name, value in cases.items() if name.startswith(prefix)}
    del weights["gamma"]
    return weights


@pytest.mark.parametrize("K", [3, 5])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_evaluation_equals_the_published_code(cases: dict[str, np.ndarray], K: int, gamma: str) -> None:
    aggregator = published_aggregator(published_weights(cases, K), K, gamma=float(gamma))
    prefixes = [f"k{K}_g{gamma}_t{T}_" for T in SIZES]
    sets = FaceSets.from_list(
        [(torch.tensor(cases[p + "features"]), torch.tensor(cases[p + "norms"])) for p in prefixes]
    )
    with torch.no_grad():
        found = aggregator(sets)
    for b, prefix in enumerate(prefixes):
        picks = cases[prefix + "picks"].tolist()
        assert found.picks[b].tolist() == picks + [-1] * (K - len(picks))
        np.testing.assert_allclose(found.embedding[b], cases[prefix + "embedding"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.norm[b], cases[prefix + "norm"][0], rtol=1e-6)


def adaface_logits(embedding: Tensor, norm: Tensor, kernel: Tensor, labels: Tensor) -> Tensor:
    """AdaFace (m 0.4, h 0.333, s 64, t_alpha 0.01, from mean 20 and deviation 100)."""
    quality = norm.clamp(0.001, 100).detach()[:, None]
    mean, deviation = 0.01 * quality.mean() + 0.99 * 20, 0.01 * quality.std() + 0.99 * 100
    z = ((quality - mean) / (deviation + 1e-3) * 0.333).clamp(-1, 1)
    cosine = (embedding @ F.normalize(kernel, dim=0)).clamp(-1 + 1e-3, 1 - 1e-3)
    target = F.one_hot(labels, kernel.shape[1])
    theta = (cosine.acos() - target * 0.4 * z).clamp(1e-3, math.pi - 1e-3)
    return (theta.cos() - target * (0.4 + 0.4 * z)) * 64


def test_a_training_step_equals_the_published_code(golden: Path) -> None:
    """Picks, loss and the gradient of every parameter and input; noise off, picked faces not masked."""
    with np.load(golden / "train_step_d64.npz") as archive:
        step = dict(archive)
    state = {name.removeprefix("weights_"): step[name] for name in step if name.startswith("weights_")}
    aggregator = published_aggregator(state, 3).train()
    aggregator.gumbel_noise = aggregator.mask_picked = False
    for module in aggregator.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    inputs = {
        "features": torch.tensor(step["features"], requires_grad=True),
        "norms": torch.tensor(step["norms"], requires_grad=True),
        "head_kernel": torch.tensor(step["head_kernel"], requires_grad=True),
    }
    found = aggregator(FaceSets.dense(inputs["features"], inputs["norms"].squeeze(-1)))
    labels = torch.tensor(step["labels"])
    logits = adaface_logits(found.embedding, found.norm, inputs["head_kernel"], labels)
    loss = F.cross_entropy(logits, labels)
    loss.backward()

    assert found.picks.tolist() == step["picks"].tolist()
    np.testing.assert_allclose(found.embedding.detach(), step["embedding"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.norm.detach(), step["norm"].squeeze(-1), rtol=1e-6)
    np.testing.assert_allclose(logits.detach(), step["logits"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(loss.item(), step["loss"], rtol=1e-5)
    ours = dict(aggregator.named_parameters()) | inputs
    gradients = {name.removeprefix("grad_"): step[name] for name in step if name.startswith("grad_")}
    assert len(gradients) == 18
    for name, wanted in gradients.items():
        part = next((part for part in PUBLISHED_PARTS if name.startswith(part)), "")
        gradient = ours[PUBLISHED_PARTS[part] + name.removeprefix(part) if part else name].grad
        assert gradient is not None, name
        np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-5 * abs(wanted).max(), err_msg=name)


@pytest.fixture(scope="module")
def published(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "published_aggregator_d64.npz") as archive:
        return dict(archive)


@pytest.mark.parametrize("prefixed", [True, False])
def test_a_published_checkpoint_loads_key_by_key(published: dict[str, np.ndarray], prefixed: bool) -> None:
    prefix = "aggregate_model."
    state = published if prefixed else {key.removeprefix(prefix): value for key, value in published.items()}
    state = state | {"model.input_layer.0.weight": np.zeros(3), "template_model.module.x": np.zeros(3)}
    aggregator = published_aggregator(state, coreset_size=4)
    assert not aggregator.training
    assert aggregator.coreset_size == 4
    assert isinstance(aggregator.gamma, nn.Parameter)
    ours = aggregator.state_dict()
    named = 0
    for theirs, mine in PUBLISHED_PARTS.items():
        for key, value in published.items():
            if key.startswith(prefix + theirs):
                loaded = ours[mine + key.removeprefix(prefix + theirs)]
                assert loaded.dtype == torch.float32
                assert torch.equal(loaded, torch.tensor(value))
                named += 1
    assert named == len(ours) - 1 == 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loading_copies_and_takes_tensors(published: dict[str, np.ndarray], dtype: torch.dtype) -> None:
    state = {key: torch.tensor(value, dtype=dtype).requires_grad_() for key, value in published.items()}
    aggregator = published_aggregator(state, 3)
    with torch.no_grad():
        state["aggregate_model.decoder_layer1.norm1.weight"].fill_(7)
    assert not (aggregator.self_norm.weight == 7).any()
    assert all(parameter.is_leaf for parameter in aggregator.parameters())


def test_fixed_gamma_stays_fixed(published: dict[str, np.ndarray]) -> None:
    state = {key: value for key, value in published.items() if not key.endswith("gamma")}
    aggregator = published_aggregator(state, 3, gamma=0.3)
    assert not isinstance(aggregator.gamma, nn.Parameter)
    assert float(aggregator.gamma) == pytest.approx(0.3)
    with pytest.raises(InputError, match="no 'gamma' in it"):
        published_aggregator(state, 3)
    # Given, it takes the place of a learned one.
    aggregator = published_aggregator(published, 3, gamma=0.3)
    assert not isinstance(aggregator.gamma, nn.Parameter)
    assert float(aggregator.gamma) == pytest.approx(0.3)


def test_faulty_checkpoints_are_refused(published: dict[str, np.ndarray]) -> None:
    norm = "aggregate_model.decoder_layer1.norm1.weight"
    for state, words in (
        (
            published | {"aggregate_model.tau_two": np.zeros(3)},
            "unknown keys 'aggregate_model.tau_two' (1 in all)",
        ),
        (published | {"aggregate_model.gamma": np.zeros(3)}, "gamma is (3,)"),
        ({key: value for key, value in published.items() if key != norm}, "norm1.weight' is missing"),
        (
            {key: value for key, value in published.items() if "norm2" not in key},
            "cross_norm.weight: missing",
        ),
        (
            published | {norm.replace("1.weight", "2.bias"): np.zeros(3)},
            "cross_norm.bias: (3,)",
        ),
        (published | {norm.replace("weight", "scale"): np.zeros(3)}, "self_norm.scale: unexpected"),
        ({}, "is missing"),
    ):
        with pytest.raises(InputError) as error:
            published_aggregator(state, 3)
        assert words in str(error.value)

"""What a published FaceCoresetNet checkpoint says of its aggregator: coreset size, gamma, selection."""

from __future__ import annotations

import argparse
import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from coreset import FaceSets, SetDescriptor
from coreset.aggregator import CoresetAggregator
from net import build_backbone
from recognition.model import load_model
from runtime.errors import InputError
from validation.frame import open_aggregators
from weights import Overrides, StoredAggregator, load_aggregator, load_backbone, save_weights
from weights.converting import convert_weights, extract_aggregator

D = 64


@pytest.fixture(scope="module")
def published(golden: Path) -> dict[str, Tensor]:
    """The aggregator's entries of a published checkpoint, and its head's."""
    with np.load(golden / "published_aggregator_d64.npz") as archive:
        return {key: torch.tensor(value) for key, value in archive.items()}


def checkpoint(
    path: Path, published: dict[str, Tensor], gamma: float | None, hyper: object, **how: Any
) -> Path:
    """A whole checkpoint as Lightning writes it; `gamma` is the learned one, None where it was fixed."""
    state = {key: value for key, value in published.items() if key != "aggregate_model.gamma"}
    if gamma is not None:
        state["aggregate_model.gamma"] = torch.tensor(gamma)
    backbone = build_backbone("ir_tiny").state_dict()
    state |= {f"model.{key}": value for key, value in backbone.items()}
    content = {"state_dict": state, "epoch": 3, "hyper_parameters": hyper}
    torch.save({key: value for key, value in content.items() if value is not None}, path, **how)
    return path


def faces(count: int = 24) -> FaceSets:
    """Sets of faces whose norms differ much, as those of poor and good images do."""
    generator = np.random.default_rng(3)
    sets = []
    for _ in range(8):
        features = generator.standard_normal((count, D)) + 0.5 * generator.standard_normal(D)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        norms = generator.uniform(2, 40, count)
        sets.append((torch.tensor(features).float(), torch.tensor(norms).float()))
    return FaceSets.from_list(sets)


def slow_picks(features: np.ndarray, norms: np.ndarray, K: int, gamma: float) -> list[int]:
    """The listing of the paper, one face and one pick after another; gamma is not clamped."""
    picks = [int(np.argmax(norms))]
    while len(picks) < min(K, len(norms)):
        scores = [
            norms[i] ** gamma * min((1 - features[i] @ features[j]) / 2 for j in picks)
            for i in range(len(norms))
        ]
        picks.append(int(np.argmax(scores)))
    return picks


def slow_descriptor(
    published: dict[str, Tensor], features: np.ndarray, norms: np.ndarray, picks: list[int]
) -> np.ndarray:
    """The published decoder on one set in float64, with PyTorch's own attention."""

    def part(name: str) -> dict[str, Tensor]:
        prefix = f"aggregate_model.{name}."
        return {k.removeprefix(prefix): v.double() for k, v in published.items() if k.startswith(prefix)}

    def attention(name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        module = nn.MultiheadAttention(D, 8, batch_first=True).double()
        module.load_state_dict(part(name))
        found: Tensor = module(q, k, v)[0]
        return found

    def normalised(name: str, x: Tensor) -> Tensor:
        module = nn.LayerNorm(D).double()
        module.load_state_dict(part(name))
        found: Tensor = module(x)
        return found

    def code(r: Tensor) -> Tensor:
        rows = [
            [
                (math.sin if j % 2 == 0 else math.cos)(x * 2 * math.pi / 10000 ** (2 * (j // 2) / D))
                for j in range(D)
            ]
            for x in r.tolist()
        ]
        return normalised("pos_trans_norm", torch.tensor(rows, dtype=torch.float64))

    x = torch.tensor(features * norms[:, None])[None]
    core, encoded = x[:, picks], code(torch.tensor(norms))[None]
    start = core + encoded[:, picks]
    inner = "decoder_layer1."
    queries = normalised(f"{inner}norm1", start + attention(f"{inner}self_attn1", start, start, start))
    attended = attention(f"{inner}multihead_attn1", queries, x + encoded, x)
    vector = (core + normalised(f"{inner}norm2", core + attended)).mean(dim=1)[0]
    found: np.ndarray = (vector / vector.norm()).detach().numpy()
    return found


def described(aggregator: nn.Module | None) -> SetDescriptor:
    assert isinstance(aggregator, nn.Module)
    assert not aggregator.training
    with torch.no_grad():
        found: SetDescriptor = aggregator(faces())
    return found


def assert_as_published(
    found: SetDescriptor, published: dict[str, Tensor], *, K: int, gamma: float, embeddings: bool = False
) -> None:
    sets, bounds = faces(), faces().offsets.tolist()
    for b in range(sets.num_sets):
        features = sets.features[bounds[b] : bounds[b + 1]].double().numpy()
        norms = sets.norms[bounds[b] : bounds[b + 1]].double().numpy()
        picks = slow_picks(features, norms, K, gamma)
        assert found.picks[b].tolist() == picks
        if embeddings:
            wanted = slow_descriptor(published, features, norms, picks)
            np.testing.assert_allclose(found.embedding[b], wanted, rtol=0, atol=1e-5)


HYPER = {"coreset_size": 5, "gamma": -1.0, "arch": "ir_tiny", "lr_milestones": [20], "resume": None}


@pytest.mark.parametrize("gamma", [-0.5, 0.01])
@pytest.mark.parametrize("form", ["dict", "namespace", "legacy"])
def test_coreset_size_and_learned_gamma_are_those_of_the_file(
    form: str, gamma: float, published: dict[str, Tensor], tmp_path: Path
) -> None:
    hyper = argparse.Namespace(**HYPER) if form == "namespace" else HYPER
    path = checkpoint(
        tmp_path / "a.ckpt", published, gamma, hyper, _use_new_zipfile_serialization=form != "legacy"
    )
    assert_as_published(described(load_aggregator(path)), published, K=5, gamma=gamma, embeddings=True)
    assert load_backbone(path).spec.name == "ir_tiny"


@pytest.mark.parametrize("gamma", [-0.5, 0.0, 0.3])
def test_a_fixed_gamma_is_that_of_the_hyper_parameters(
    gamma: float, published: dict[str, Tensor], tmp_path: Path
) -> None:
    path = checkpoint(tmp_path / "a.ckpt", published, None, HYPER | {"coreset_size": 4, "gamma": gamma})
    aggregator = load_aggregator(path)
    assert isinstance(aggregator, CoresetAggregator)
    assert not isinstance(aggregator.gamma, nn.Parameter)
    assert_as_published(described(aggregator), published, K=4, gamma=gamma)


def test_flags_override_the_file(published: dict[str, Tensor], tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt", published, 0.01, HYPER)
    found = described(load_aggregator(path, Overrides(coreset_size=3)))
    assert_as_published(found, published, K=3, gamma=0.01)
    found = described(load_aggregator(path, Overrides(gamma=-0.75)))
    assert_as_published(found, published, K=5, gamma=-0.75)
    # -1 is no exponent: it asks for the learned one.
    found = described(load_aggregator(path, Overrides(gamma=-1)))
    assert_as_published(found, published, K=5, gamma=0.01)


def test_missing_values_name_their_flag(published: dict[str, Tensor], tmp_path: Path) -> None:
    without = checkpoint(tmp_path / "without.ckpt", published, 0.01, None)
    fixed = checkpoint(tmp_path / "fixed.ckpt", published, None, HYPER)
    neither = checkpoint(tmp_path / "neither.ckpt", published, None, {"arch": "ir_tiny"})
    text = checkpoint(tmp_path / "text.ckpt", published, 0.01, HYPER | {"coreset_size": "five"})
    far = checkpoint(tmp_path / "far.ckpt", published, -40.0, HYPER)
    for path, flags in (
        (without, ["--coreset_size"]),
        (fixed, ["--gamma"]),
        (neither, ["--coreset_size", "--gamma"]),
        (text, ["--coreset_size", "five"]),
        (far, ["gamma -40"]),
    ):
        with pytest.raises(InputError) as error:
            load_aggregator(path)
        assert all(flag in str(error.value) for flag in flags)
    with pytest.raises(InputError, match="--gamma"):
        load_aggregator(fixed, Overrides(gamma=-1))
    found = described(load_aggregator(neither, Overrides(coreset_size=2, gamma=-0.5)))
    assert_as_published(found, published, K=2, gamma=-0.5)
    # Whoever wants the backbone or a pooling alone needs neither.
    assert load_backbone(neither).spec.name == "ir_tiny"
    assert load_model(neither, aggregator="mean", device="cpu").aggregator_name == "mean"


def test_safetensors_keeps_size_gamma_and_sign(published: dict[str, Tensor], tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt", published, -0.5, HYPER)
    convert_weights(str(path), tmp_path / "whole.safetensors")
    extract_aggregator(str(path), tmp_path / "alone.safetensors")
    for name in ("whole", "alone"):
        found = described(load_aggregator(tmp_path / f"{name}.safetensors"))
        assert_as_published(found, published, K=5, gamma=-0.5)
    convert_weights(str(path), tmp_path / "two.safetensors", overrides=Overrides(coreset_size=2, gamma=0.5))
    assert_as_published(described(load_aggregator(tmp_path / "two.safetensors")), published, K=2, gamma=0.5)
    with safe_open(tmp_path / "two.safetensors", "pt") as stored:
        options = json.loads(stored.metadata()["aggregator_options"])
    assert (options["coreset_size"], options["gamma"], options["learn_gamma"]) == (2, 0.5, False)
    with pytest.raises(InputError, match="--gamma -1"):
        load_aggregator(tmp_path / "two.safetensors", Overrides(gamma=-1))


def test_own_aggregator_accepts_overrides_and_clamps(tmp_path: Path) -> None:
    ours = CoresetAggregator(embedding_size=D, coreset_size=4, gamma=0.2)
    with torch.no_grad():
        ours.gamma.fill_(-0.5)
    options = {"embedding_size": D, "coreset_size": 4, "gamma": 0.2}
    path = tmp_path / "ours.safetensors"
    save_weights(path, build_backbone("ir_tiny"), StoredAggregator("coreset", options, ours))
    assert_as_published(described(load_aggregator(path)), {}, K=4, gamma=0.0)
    found = load_aggregator(path, Overrides(coreset_size=2, gamma=0.7))
    assert_as_published(described(found), {}, K=2, gamma=0.7)
    with pytest.raises(InputError, match=r"gamma -0\.5"):
        load_aggregator(path, Overrides(gamma=-0.5))


def test_commands_pass_the_flags_on(published: dict[str, Tensor], tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt", published, 0.01, HYPER)
    model = load_model(path, device="cpu", overrides=Overrides(coreset_size=2))
    assert model.aggregator.coreset_size == 2
    assert model.fingerprint != load_model(path, device="cpu").fingerprint
    with pytest.raises(InputError, match="--gamma"):
        load_model(path, aggregator="mean", device="cpu", overrides=Overrides(gamma=0.5))
    names = ["coreset", "top_k", "mean"]
    args = Namespace(weights=path, aggregator=names, aggregator_weights=None, coreset_size=2, gamma=None)
    found, _ = open_aggregators(args, "mean")
    assert [found[name].coreset_size for name in names[:2]] == [2, 2]
    args.aggregator = ["mean"]
    with pytest.raises(InputError, match="--coreset_size"):
        open_aggregators(args, "mean")


def test_hyper_parameters_of_any_class_are_read_without_running_code(
    published: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pytorch_lightning.callbacks import ModelCheckpoint
    from pytorch_lightning.utilities.parsing import AttributeDict

    path = checkpoint(tmp_path / "a.ckpt", published, 0.01, AttributeDict(HYPER))
    content = torch.load(path, weights_only=False) | {
        "callbacks": {ModelCheckpoint: {"best_model_path": "x"}}
    }
    torch.save(content, path)
    assert_as_published(described(load_aggregator(path)), published, K=5, gamma=0.01)

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("this must not run",)

    checkpoint(path, published, 0.01, HYPER | {"callback": Payload()})
    with pytest.raises(InputError, match="print"):
        load_aggregator(path)
    assert capsys.readouterr().out == ""

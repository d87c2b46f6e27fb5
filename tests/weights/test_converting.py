"""convert.py's modes for weights: any kind -> our form, fetching, the catalogue, old pickles."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from convert import convert, flags
from coreset import FaceSets, build_aggregator
from net import Backbone, build_backbone
from recognition.model import load_model
from runtime.errors import InputError
from weights import (
    StoredAggregator,
    load_aggregator,
    load_backbone,
    load_weights,
    name_digest,
    prepare_for,
    save_weights,
    trained_backbone_digest,
    trained_subjects,
    weights_digest,
)


@pytest.fixture
def tiny() -> Backbone:
    return build_backbone("ir_tiny").eval()


def run(*given: str) -> None:
    convert(vars(flags().parse_args([str(each) for each in given])))


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as stored:
        return dict(stored.metadata())


def test_converted_file_states_spec_source_and_licence(
    tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {f"net.{key}": value for key, value in tiny.state_dict().items()}
    torch.save(state, tmp_path / "model.pt")
    out = tmp_path / "new" / "tiny.safetensors"
    run("--weights", tmp_path / "model.pt", out, "--licence", "MIT")
    told = capsys.readouterr().out
    assert "CVLFace IR" in told
    assert "channel order RGB, pixels (value - 127.5) / 127.5" in told
    stored = metadata(out)
    wanted = {"architecture": "ir_tiny", "embedding_size": "64", "channel_order": "RGB", "version": "2"}
    assert wanted.items() <= stored.items()
    assert (stored["source"], stored["licence"]) == ("model.pt", "MIT")
    loaded = load_weights(out)
    assert loaded.kind == "ours"
    assert loaded.backbone.spec.channel_order == "RGB"
    # Again from our own form: what it says of its origin stays.
    run("--weights", out, tmp_path / "again.safetensors")
    assert metadata(tmp_path / "again.safetensors") == stored


def test_channel_order_can_be_stated(tiny: Backbone, tmp_path: Path) -> None:
    torch.save(tiny.state_dict(), tmp_path / "a.pt")
    run("--weights", tmp_path / "a.pt", tmp_path / "a.safetensors", "--channel-order", "RGB")
    assert load_backbone(tmp_path / "a.safetensors").spec.channel_order == "RGB"
    assert metadata(tmp_path / "a.safetensors")["licence"] == "not stated"


def some_sets() -> FaceSets:
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(2, 5, 64, generator=generator), dim=2)
    return FaceSets.dense(features, torch.rand(2, 5, generator=generator) * 20 + 5)


@pytest.mark.parametrize("published", [True, False])
def test_backbone_and_aggregator_become_one_file(
    published: bool, tiny: Backbone, golden: Path, tmp_path: Path
) -> None:
    backbone = {f"model.{key}": value for key, value in tiny.state_dict().items()}
    checkpoint: dict[str, Any]
    if published:
        with np.load(golden / "published_aggregator_d64.npz") as archive:
            checkpoint = {
                "state_dict": backbone | {key: torch.tensor(archive[key]) for key in archive},
                "hyper_parameters": {"coreset_size": 3, "gamma": -1.0},
            }
    else:
        options = {"embedding_size": 64, "coreset_size": 2, "num_heads": 4}
        own = build_aggregator("coreset", options).state_dict()
        checkpoint = {
            "state_dict": backbone | {f"aggregator.{key}": value for key, value in own.items()},
            "aggregator_name": "coreset",
            "aggregator_options": options,
            "backbone_spec": tiny.spec.to_dict(),
        }
    torch.save(checkpoint, tmp_path / "whole.ckpt")
    run("--weights", tmp_path / "whole.ckpt", tmp_path / "fused.safetensors")
    before, after = (load_aggregator(tmp_path / name) for name in ("whole.ckpt", "fused.safetensors"))
    assert before is not None
    assert after is not None
    assert torch.equal(before(some_sets()).embedding, after(some_sets()).embedding)
    loaded = load_backbone(tmp_path / "fused.safetensors")
    assert all(torch.equal(value, tiny.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert metadata(tmp_path / "fused.safetensors")["aggregator_name"] == "coreset"


def test_the_former_name_of_an_aggregator_loads(tmp_path: Path) -> None:
    built = build_aggregator("context_attention", {"embedding_size": 64})
    state = {f"aggregator.{name}": value for name, value in built.state_dict().items()}
    content = {"state_dict": state, "aggregator_name": "conan", "aggregator_options": {"embedding_size": 64}}
    torch.save(content, tmp_path / "old.ckpt")
    assert type(load_aggregator(tmp_path / "old.ckpt")) is type(built)


def test_mismatching_aggregator_lists_the_differences(tmp_path: Path) -> None:
    state = build_aggregator("weighted_coreset", {"embedding_size": 64}).state_dict()
    # As a former release had them.
    state = {f"aggregator.old_{number}": value for number, value in enumerate(state.values())}
    torch.save(
        {
            "state_dict": state,
            "aggregator_name": "weighted_coreset",
            "aggregator_options": {"embedding_size": 64},
        },
        tmp_path / "old.ckpt",
    )
    with pytest.raises(InputError, match="earlier release made it, train it again") as error:
        load_aggregator(tmp_path / "old.ckpt")
    text = str(error.value)
    assert "exponent.tenth: missing" in text
    assert "more" in text.splitlines()[-1]
    assert len(text.splitlines()) < 10


class Callback:
    """Stands for a class of an old Lightning that a checkpoint pickled."""


def test_old_pickle_needs_the_flag(
    tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {f"model.{key}": value for key, value in tiny.state_dict().items()}
    old = {"state_dict": state, "hyper_parameters": {"out": PurePosixPath("runs")}}
    torch.save(old, tmp_path / "old.ckpt")
    out = tmp_path / "new.safetensors"
    with pytest.raises(InputError, match=r"pathlib\.PurePosixPath.*--allow-pickle"):
        run("--weights", tmp_path / "old.ckpt", out)
    assert not out.exists()
    run("--weights", tmp_path / "old.ckpt", out, "--allow-pickle")
    assert "can run any code" in capsys.readouterr().err
    assert torch.equal(
        load_backbone(out).state_dict()["input_layer.0.weight"], state["model.input_layer.0.weight"]
    )


def test_missing_classes_do_not_prevent_loading(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {f"model.{key}": value for key, value in tiny.state_dict().items()}
    module = types.ModuleType("lightning_of_old")
    module.Callback = Callback  # type: ignore[attr-defined]
    with monkeypatch.context() as then:
        then.setattr(Callback, "__module__", "lightning_of_old")
        then.setitem(sys.modules, "lightning_of_old", module)
        torch.save({"state_dict": state, "callbacks": [Callback()]}, tmp_path / "old.ckpt")
    with pytest.raises(InputError, match=r"lightning_of_old\.Callback"):
        load_backbone(tmp_path / "old.ckpt")
    run("--weights", tmp_path / "old.ckpt", tmp_path / "new.safetensors", "--allow-pickle")
    assert load_backbone(tmp_path / "new.safetensors").spec.name == "ir_tiny"


def test_a_whole_pickled_module_gives_its_weights(tiny: Backbone, tmp_path: Path) -> None:
    torch.save(tiny, tmp_path / "module.pt")
    run("--weights", tmp_path / "module.pt", tmp_path / "new.safetensors", "--allow-pickle")
    assert load_backbone(tmp_path / "new.safetensors").spec.name == "ir_tiny"


def test_a_damaged_pickle_stays_an_error_with_the_flag(tmp_path: Path) -> None:
    (tmp_path / "old.ckpt").write_bytes(b"\x80\x02nothing")
    with pytest.raises(InputError, match="no weights can be read"):
        run("--weights", tmp_path / "old.ckpt", tmp_path / "new.safetensors", "--allow-pickle")


def test_flags_of_another_mode_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--allow_pickle has no effect with --list_weights"):
        run("--list-weights", "--allow-pickle")
    with pytest.raises(InputError, match=r"choose a name that ends in it"):
        run("--weights", tmp_path / "a.ckpt", tmp_path / "b.pt")


@pytest.mark.parametrize("spelling", ["--list-weights", "--list_weights"])
def test_catalogue_is_listed(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run(spelling)
    assert "adaface_ir_101_webface12m" in capsys.readouterr().out


def test_fetching_what_is_not_in_the_catalogue_is_an_error() -> None:
    with pytest.raises(InputError, match="'nothing' is not in the catalogue"):
        run("--fetch-weights", "nothing")


@pytest.fixture
def trained(tiny: Backbone, tmp_path: Path) -> Path:
    """A checkpoint of ours: a backbone that levels light, and an aggregator trained for it."""
    tiny.spec = replace(tiny.spec, normalises_illumination=True)
    module = build_aggregator("learned_map", {"embedding_size": 64})
    path = tmp_path / "trained.safetensors"
    save_weights(path, tiny, StoredAggregator("learned_map", {"embedding_size": 64}, module))
    return path


def test_illumination_normalisation_is_stored_with_the_weights(
    tiny: Backbone, tmp_path: Path, trained: Path
) -> None:
    torch.save(tiny.state_dict(), tmp_path / "a.pt")
    run("--weights", tmp_path / "a.pt", tmp_path / "b.safetensors", "--normalise_illumination")
    assert metadata(tmp_path / "b.safetensors")["normalises_illumination"] == "true"
    assert load_backbone(tmp_path / "b.safetensors").spec.normalises_illumination
    run("--weights", tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    assert load_backbone(tmp_path / "c.safetensors").spec.normalises_illumination


def test_aggregator_alone_states_its_backbone(
    tiny: Backbone, tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "alone.safetensors"
    run("--aggregator", trained, out, "--licence", "CC BY 4.0")
    assert "with illumination normalisation" in capsys.readouterr().out
    alone, whole = load_aggregator(out), load_aggregator(trained)
    assert alone is not None
    assert whole is not None
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(alone.state_dict()[key], value.half().float())
    with safe_open(out, "pt") as stored:
        assert all(key.startswith("aggregator.") for key in stored.keys())  # noqa: SIM118
    # A backbone as it was published is prepared as in training; other weights are refused.
    plain = build_backbone("ir_tiny").eval()
    plain.load_state_dict(tiny.state_dict())
    prepare_for(plain, [out])
    assert plain.spec.normalises_illumination
    with pytest.raises(InputError, match="another backbone"):
        prepare_for(build_backbone("ir_tiny"), [out])
    assert trained_backbone_digest(out) == weights_digest(tiny)


def test_illumination_normalisation_below_an_aggregator_is_refused(tiny: Backbone, tmp_path: Path) -> None:
    module = build_aggregator("learned_map", {"embedding_size": 64})
    save_weights(
        tmp_path / "a.safetensors", tiny, StoredAggregator("learned_map", {"embedding_size": 64}, module)
    )
    with pytest.raises(InputError, match="--normalise_illumination and --auxiliary change every feature"):
        run("--weights", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--normalise_illumination")
    torch.save(tiny.state_dict(), tmp_path / "c.pt")
    with pytest.raises(InputError, match="there is no aggregator in it"):
        run("--aggregator", tmp_path / "c.pt", tmp_path / "d.safetensors")


def of_features(path: Path, options: dict[str, Any], features: dict[str, str]) -> Path:
    """A checkpoint as a run from --features leaves it: aggregator and head, and what made the features."""
    state = build_aggregator("weighted_coreset", options).state_dict()
    content = {
        "state_dict": {f"aggregator.{k}": v for k, v in state.items()} | {"head.kernel": torch.zeros(64, 3)},
        "aggregator_name": "weighted_coreset",
        "aggregator_options": options,
        "data_fingerprint": features,
        "trained_subjects": name_digest("anna"),
    }
    torch.save(content, path)
    return path


@pytest.mark.parametrize("says", [True, False])
def test_a_backbone_and_an_aggregator_of_its_features_are_joined(
    says: bool, tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = tmp_path / "tiny.safetensors", tmp_path / "out.safetensors"
    save_weights(weights, tiny)
    made = {"backbone_sha256": weights_digest(tiny), "illumination_normalisation": "mean 118"} if says else {}
    checkpoint = of_features(tmp_path / "last.ckpt", {"embedding_size": 76, "auxiliary_size": 12}, made)
    with pytest.raises(InputError, match=r"found only aggregator, head.*--aggregator_weights .*last\.ckpt"):
        load_backbone(checkpoint)
    run("--weights", weights, out, "--aggregator_weights", checkpoint)
    assert ("only sizes were compared" in capsys.readouterr().out) is not says
    model = load_model(out, device="cpu")
    assert (model.aggregator_name, model.spec.auxiliary_size) == ("weighted_coreset", 12)
    assert model.spec.normalises_illumination is says
    assert trained_subjects(out) == {name_digest("anna")}
    apart = load_model(weights, checkpoint, device="cpu")
    assert model.fingerprint == apart.fingerprint


def test_mismatching_aggregator_is_not_joined(tiny: Backbone, tmp_path: Path) -> None:
    weights, out = tmp_path / "tiny.safetensors", tmp_path / "out.safetensors"
    save_weights(weights, tiny)
    other = of_features(tmp_path / "a.ckpt", {"embedding_size": 64}, {"backbone_sha256": "0" * 64})
    wide = of_features(tmp_path / "b.ckpt", {"embedding_size": 128}, {})
    for checkpoint, told in (
        (other, r"a\.ckpt: .*another backbone"),
        (wide, r"b\.ckpt: .*128 values.* 64\b"),
        (weights, r"--aggregator_weights .*tiny\.safetensors: there is no aggregator"),
    ):
        with pytest.raises(InputError, match=told):
            run("--weights", weights, out, "--aggregator_weights", checkpoint)
    assert not out.exists()


def test_auxiliary_size_is_stored_with_the_weights(
    tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(tiny.state_dict(), tmp_path / "a.pt")
    run("--weights", tmp_path / "a.pt", tmp_path / "b.safetensors", "--auxiliary", 12)
    assert "64 values and 12 auxiliary values" in capsys.readouterr().out
    assert metadata(tmp_path / "b.safetensors")["auxiliary_size"] == "12"
    backbone = load_backbone(tmp_path / "b.safetensors")
    assert (backbone.spec.embedding_size, backbone.spec.auxiliary_size) == (76, 12)
    # The same weights, so that an aggregator has any copy of them prepared.
    assert weights_digest(backbone) == weights_digest(tiny)
    options = {"embedding_size": 76, "auxiliary_size": 12}
    module = build_aggregator("weighted_coreset", options)
    save_weights(tmp_path / "c.safetensors", backbone, StoredAggregator("weighted_coreset", options, module))
    plain = load_backbone(tmp_path / "a.pt", "ir_tiny")
    prepare_for(plain, [tmp_path / "c.safetensors"])
    assert plain.spec.auxiliary_size == 12
    run("--weights", tmp_path / "b.safetensors", tmp_path / "d.safetensors", "--auxiliary", 0)
    assert load_backbone(tmp_path / "d.safetensors").spec.auxiliary_size == 0
    save_weights(tmp_path / "e.safetensors", load_backbone(tmp_path / "a.pt"), None)
    with pytest.raises(InputError, match=r"e\.safetensors .* 0 auxiliary values.*c\.safetensors .* 12 "):
        prepare_for(plain, [tmp_path / "e.safetensors", tmp_path / "c.safetensors"])
    with pytest.raises(InputError, match="--normalise_illumination and --auxiliary change every feature"):
        run("--weights", tmp_path / "c.safetensors", tmp_path / "f.safetensors", "--auxiliary", 3)
    with pytest.raises(InputError, match="auxiliary_size must be at least 0"):
        run("--weights", tmp_path / "a.pt", tmp_path / "f.safetensors", "--auxiliary", -1)

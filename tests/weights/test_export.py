"""The graphs give what PyTorch gives, for any number of images, sets and faces, and say what they are."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import convert
from backbones.auxiliary import append_auxiliary
from coreset import AGGREGATORS, FaceSets, build_aggregator
from net import build_backbone
from runtime.errors import InputError
from weights import export, load_aggregator, load_backbone, onnx_backbone, save_weights
from weights.export import ExportedAggregator, export_aggregator

onnx = pytest.importorskip("onnx", reason="an export needs onnx")
pytest.importorskip("onnxscript", reason="an export needs onnxscript")
onnxruntime = pytest.importorskip("onnxruntime", reason="graphs are run by onnxruntime")

D = 64
TRAINED = [
    name
    for name, kind in AGGREGATORS.items()
    if "embedding_size" in inspect.signature(kind).parameters and "__init__" in vars(kind)
]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    name, _, auxiliary = name.partition("/")
    # A graph repeats the selection for each of K faces, and its export takes that much longer.
    options = {"auxiliary_size": int(auxiliary), "coreset_size": 2} if auxiliary else {}
    return build_aggregator(name, {"embedding_size": D, **options}).eval()


def ragged(sizes: list[int], seed: int = 0, auxiliary_size: int = 0) -> FaceSets:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(sum(sizes), D, generator=generator)
    norms = 5 + 30 * torch.rand(sum(sizes), generator=generator)
    features = F.normalize(values[:, : D - auxiliary_size], dim=1)
    auxiliary = values[:, D - auxiliary_size :] if auxiliary_size else None
    return FaceSets(features, norms, torch.tensor([0, *sizes]).cumsum(0), auxiliary)


def padded(sets: FaceSets) -> dict[str, NDArray[Any]]:
    """Padding as a program in another language does it; NaN where there is no face."""
    B, T = sets.num_sets, int(sets.sizes.max())
    features, norms = np.full((B, T, D), np.nan, np.float32), np.full((B, T), np.nan, np.float32)
    mask = np.arange(T) < sets.sizes.numpy()[:, None]
    rows = sets.features if sets.auxiliary is None else append_auxiliary(sets.features, sets.auxiliary)
    features[mask], norms[mask] = rows.numpy(), sets.norms.numpy()
    return {"features": features, "norms": norms, "mask": mask}


# An export takes seconds, so each graph is made once; the aggregators of the presets are always tested.
GATED = "weighted_coreset/8"
ALWAYS = ("coreset", GATED)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Backbone and coreset aggregator as training writes them."""
    torch.manual_seed(0)
    backbone, options = build_backbone("ir_tiny"), {"embedding_size": D, "coreset_size": 2}
    aggregator = build_aggregator("coreset", options)
    parts: list[tuple[str, nn.Module]] = [("model.", backbone), ("aggregator.", aggregator)]
    state: dict[str, Tensor] = {
        f"{prefix}{key}": value for prefix, module in parts for key, value in module.state_dict().items()
    }
    path = tmp_path_factory.mktemp("weights") / "a.ckpt"
    content = {"state_dict": state, "backbone_spec": backbone.spec.to_dict()}
    torch.save(content | {"aggregator_name": "coreset", "aggregator_options": options}, path)
    return path


@pytest.fixture(scope="module")
def by_command(checkpoint: Path) -> Path:
    """The folder that the command writes of the checkpoint."""
    out = checkpoint.with_name("out")
    convert.convert({"export": ["onnx", str(checkpoint)], "out": str(out)})
    return out


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """The weighted coreset aggregator and its graph."""
    aggregator, path = build(GATED), tmp_path_factory.mktemp("onnx") / "aggregator.onnx"
    export_aggregator(ExportedAggregator(aggregator), path, {})
    return aggregator, path


@pytest.fixture(
    scope="module",
    params=[
        name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in (*TRAINED, GATED)
    ],
)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, Any]:
    """A trained kind of aggregator and its graph, opened."""
    aggregator: nn.Module | None
    if request.param == "coreset":
        path = request.getfixturevalue("by_command") / "aggregator.onnx"
        aggregator = load_aggregator(request.getfixturevalue("checkpoint"))
    elif request.param == GATED:
        aggregator, path = request.getfixturevalue("gated")
    else:
        aggregator, path = build(request.param), tmp_path_factory.mktemp("onnx") / "aggregator.onnx"
        export_aggregator(ExportedAggregator(aggregator), path, {})
    assert aggregator is not None
    return aggregator, onnxruntime.InferenceSession(path)


def test_there_are_trained_aggregators() -> None:
    assert "coreset" in TRAINED
    assert all(any(True for _ in build(name).parameters()) for name in TRAINED)


@pytest.mark.parametrize("seed", range(4))
def test_ragged_batches_of_1_to_300_faces_are_equal(exported: tuple[nn.Module, Any], seed: int) -> None:
    aggregator, graph = exported
    sizes = np.random.default_rng(seed).integers(1, 301, 12).tolist()
    sets = ragged([1, 2, 3, 300, *sizes], seed, aggregator.auxiliary_size)
    embedding, norm, picks = graph.run(["embedding", "norm", "picks"], padded(sets))
    with torch.no_grad():
        wanted = aggregator(sets)
    np.testing.assert_allclose(embedding, wanted.embedding, rtol=0, atol=1e-5)
    np.testing.assert_allclose(norm, wanted.norm, rtol=1e-5)
    np.testing.assert_array_equal(picks, wanted.picks)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 57, 300])
def test_one_set_alone_is_equal(exported: tuple[nn.Module, Any], size: int) -> None:
    aggregator, graph = exported
    sets = ragged([size], size, aggregator.auxiliary_size)
    embedding, _, picks = graph.run(None, padded(sets))
    with torch.no_grad():
        wanted = aggregator(sets)
    np.testing.assert_allclose(embedding, wanted.embedding, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(picks, wanted.picks)


def test_equal_faces_are_picked_from_the_first(exported: tuple[nn.Module, Any]) -> None:
    _, graph = exported
    faces = padded(ragged([1]))
    copies = {name: values.repeat(5, axis=1) for name, values in faces.items()}
    picks = graph.run(["picks"], copies)[0][0].tolist()
    assert picks == list(range(len(picks)))


def test_a_set_without_faces_has_zeros_and_no_picks(exported: tuple[nn.Module, Any]) -> None:
    _, graph = exported
    faces = padded(ragged([3, 5, 2]))
    wanted = graph.run(None, faces)
    faces["mask"][1] = False
    faces["features"][1], faces["norms"][1] = np.nan, np.nan
    embedding, norm, picks = graph.run(None, faces)
    assert not embedding[1].any()
    assert norm[1] == 0
    assert (picks[1] == -1).all()
    for found, before in zip((embedding, norm, picks), wanted, strict=True):
        np.testing.assert_allclose(found[[0, 2]], before[[0, 2]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("raised", [-500.0, 500.0])
def test_a_nearly_closed_or_open_gate_is_equal(raised: float, gated: tuple[nn.Module, Path]) -> None:
    """ONNX's log(sigmoid) is -inf below -88, where PyTorch's is the value itself."""
    aggregator, graph = copy.deepcopy(gated[0]), onnx.load(gated[1])
    bias = "belief.rest.2.bias"
    with torch.no_grad():
        aggregator.get_parameter(bias).fill_(raised)
    stored = next(each for each in graph.graph.initializer if each.name == f"aggregator.{bias}")
    stored.CopyFrom(onnx.numpy_helper.from_array(np.array([raised], np.float32), stored.name))
    sets = ragged([1, 2, 7, 30], auxiliary_size=8)
    found = onnxruntime.InferenceSession(graph.SerializeToString()).run(["embedding"], padded(sets))[0]
    with torch.no_grad():
        wanted = aggregator(sets).embedding
        assert not torch.allclose(wanted, gated[0](sets).embedding, atol=1e-3)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_command_writes_both_graphs_with_metadata(checkpoint: Path, by_command: Path) -> None:
    opened = onnxruntime.InferenceSession(by_command / "aggregator.onnx")
    stored = opened.get_modelmeta().custom_metadata_map
    spec = load_backbone(checkpoint).spec
    assert stored["architecture"] == "ir_tiny"
    assert stored["channel_order"] == spec.channel_order
    assert float(stored["mean"]) == spec.mean
    assert float(stored["std"]) == spec.std
    assert int(stored["embedding_size"]) == D
    assert stored["aggregator_name"] == "coreset"
    assert json.loads(stored["aggregator_options"]) == {"embedding_size": D, "coreset_size": 2}
    assert [each.shape for each in opened.get_inputs()] == [["sets", "faces", D], *[["sets", "faces"]] * 2]
    assert opened.get_outputs()[2].shape[1] == 2
    # Our own reader takes the backbone back, colours and all.
    original, graph = load_backbone(checkpoint), load_backbone(by_command / "backbone.onnx")
    assert graph.spec.channel_order == spec.channel_order
    for count in (1, 2, 5):
        images = spec.normalise(torch.randint(0, 256, (count, 3, 112, 112), dtype=torch.uint8))
        with torch.no_grad():
            for found, wanted in zip(graph(images), original(images), strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_backbone_alone_gives_one_file_with_its_auxiliary_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone, out = build_backbone("ir_tiny").eval(), tmp_path / "out"
    backbone.spec = backbone.spec.with_auxiliary(10)
    save_weights(tmp_path / "b.safetensors", backbone)
    convert.convert({"export": ["onnx", str(tmp_path / "b.safetensors")], "out": str(out)})
    assert [path.name for path in out.iterdir()] == ["backbone.onnx"]
    assert "no trained aggregator" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"backbone\.onnx.* ONNX graph"):
        convert.convert({"export": ["onnx", str(out / "backbone.onnx")], "out": str(tmp_path)})
    graph = load_backbone(out / "backbone.onnx")
    assert (graph.spec.embedding_size, graph.spec.auxiliary_size) == (74, 10)
    pixels = backbone.spec.normalise(torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8))
    with torch.no_grad():
        for found, wanted in zip(graph(pixels), backbone(pixels), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="10"):
        graph.set_auxiliary(0)
    given = {"weights": [str(out / "backbone.onnx"), str(tmp_path / "c.safetensors")], "auxiliary": 0}
    with pytest.raises(InputError, match="ONNX graph of 10"):
        convert.convert(given)


def test_invalid_exports_are_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"--export tflite: .*onnx"):
        convert.convert({"export": ["tflite", str(checkpoint)], "out": str(tmp_path)})
    with pytest.raises(InputError, match="--export needs --out"):
        convert.convert({"export": ["onnx", str(checkpoint)]})
    with pytest.raises(InputError, match="no padded form"):
        ExportedAggregator(build_aggregator("mean", {}))
    monkeypatch.setattr(onnx_backbone, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install onnx onnxscript"):
        convert.convert({"export": ["onnx", str(checkpoint)], "out": str(tmp_path / "new")})
    assert not (tmp_path / "new").exists()


def test_a_graph_that_is_wrong_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_difference", lambda *_: 0.5)
    images, names = {"input": torch.ones(2, 3)}, (("input",), ("embedding",))
    with pytest.raises(RuntimeError, match=r"0\.5"):
        export._export(nn.Linear(3, 2), [images], names, {"input": {}}, tmp_path / "b.onnx", {})
    assert list(tmp_path.iterdir()) == []

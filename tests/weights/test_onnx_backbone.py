"""An ONNX graph as a backbone; small graphs are made here, MobileFaceNet's is compared with its weights."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backbones.face_template import ARCFACE_POINTS
from convert import convert
from convert import flags as convert_flags
from features.extract import fused_for_inference
from net import BACKBONES, build_backbone
from runtime.errors import InputError
from weights import (
    OnnxBackbone,
    empty_backbone,
    load_aggregator,
    load_backbone,
    save_weights,
    weights_digest,
    weights_sha256,
)

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

METADATA = {
    "architecture": "onnx",
    "embedding_size": "3",
    "channel_order": "RGB",
    "mean": "127.5",
    "std": "128.0",
    "norm_is_quality": "false",
}


def means_of_channels(
    path: Path,
    metadata: dict[str, str] | None = None,
    *,
    batch: Any = "n",
    norm: bool = False,
    side: int = 112,
    size: int = 3,
) -> Path:
    """A graph whose three features are the means of the channels; with `norm`: unit rows, and lengths.

    `size`: so many values in place of the three.
    """
    helper = onnx.helper
    node, kind = helper.make_node, onnx.TensorProto.FLOAT
    nodes = [node("GlobalAveragePool", ["data"], ["pooled"]), node("Flatten", ["pooled"], ["features"])]
    outputs = [("features", [batch, 3])]
    if norm:
        nodes += [
            node("ReduceL2", ["features"], ["norm"], axes=[1], keepdims=1),
            node("Div", ["features", "norm"], ["embedding"]),
        ]
        outputs = [("embedding", [batch, 3]), ("norm", [batch, 1])]
    constants = []
    if size != 3:
        constants = [onnx.numpy_helper.from_array(np.ones((3, size), np.float32), "spread")]
        nodes.append(node("MatMul", ["features", "spread"], ["wide"]))
        outputs = [("wide", [batch, size])]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("data", kind, [batch, 3, side, side])],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


def test_a_graph_with_metadata_has_the_call_of_a_backbone(tmp_path: Path) -> None:
    backbone = load_backbone(means_of_channels(tmp_path / "a.onnx", METADATA))
    spec = backbone.spec
    assert (spec.name, spec.embedding_size, spec.channel_order) == ("onnx", 3, "RGB")
    assert (spec.std, spec.norm_is_quality) == (128.0, False)
    images = torch.randn(4, 3, 112, 112)
    embedding, norm = backbone(images)
    wanted = images.mean(dim=(2, 3))
    torch.testing.assert_close(embedding * norm, wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(norm, wanted.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-6)
    assert backbone(images[:0])[0].shape == (0, 3)
    assert load_aggregator(tmp_path / "a.onnx") is None


@pytest.mark.parametrize("batch", ["n", 1, 2])
def test_unit_rows_and_norms_as_outputs_and_fixed_batches_give_the_same(batch: Any, tmp_path: Path) -> None:
    images = torch.randn(4, 3, 112, 112)
    plain = load_backbone(means_of_channels(tmp_path / "a.onnx", METADATA))(images)
    split = load_backbone(means_of_channels(tmp_path / "b.onnx", METADATA, batch=batch, norm=True))(images)
    for one, other in zip(plain, split, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_last_batch_of_a_fixed_size_is_padded(tmp_path: Path) -> None:
    backbone = load_backbone(means_of_channels(tmp_path / "a.onnx", METADATA, batch=4))
    images = torch.randn(6, 3, 112, 112)
    embedding, norm = backbone(images)
    torch.testing.assert_close(embedding * norm, images.mean(dim=(2, 3)), rtol=1e-4, atol=1e-6)


def test_graph_without_metadata_needs_flags(tmp_path: Path) -> None:
    path = means_of_channels(tmp_path / "a.onnx", size=512)
    with pytest.raises(InputError, match=r"preprocessing.*--arch, one of ir_18"):
        load_backbone(path)
    assert load_backbone(path, "iresnet50").spec.channel_order == "RGB"
    assert load_backbone(path, "ir_50").spec.channel_order == "BGR"
    assert load_backbone(path, "ir_50", channel_order="RGB").spec.channel_order == "RGB"
    assert load_backbone(path, "ir_50").spec.embedding_size == 512


def test_a_graph_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = means_of_channels(tmp_path / "a.onnx", size=128)
    with pytest.raises(InputError, match=r"128 values.*ir_50 has 512.*mobilefacenet"):
        load_backbone(path, "ir_50")
    assert load_backbone(path, "mobilefacenet").spec.embedding_size == 128
    # What the file itself says counts as well.
    told = means_of_channels(tmp_path / "b.onnx", METADATA | {"embedding_size": "512"}, size=128)
    with pytest.raises(InputError, match=r"128 values.*512"):
        load_backbone(told)
    told = means_of_channels(tmp_path / "c.onnx", METADATA | {"embedding_size": "128"}, size=128)
    assert load_backbone(told, "mobilefacenet").spec.embedding_size == 128
    with pytest.raises(InputError, match=r"128 values.*ir_50 has 512"):
        load_backbone(told, "ir_50")
    named = {"architecture": "ir_tiny", "embedding_size": "64"}
    told = means_of_channels(tmp_path / "d.onnx", named, size=64)
    assert load_backbone(told, "ir_tiny").spec.channel_order == "BGR"
    with pytest.raises(InputError, match=r"holds ir_tiny, but iresnet_tiny"):
        load_backbone(told, "iresnet_tiny")


def test_graph_is_copied_pickled_and_digested_like_any_backbone(tmp_path: Path) -> None:
    backbone = load_backbone(means_of_channels(tmp_path / "a.onnx", METADATA))
    images = torch.randn(2, 3, 112, 112)
    wanted = backbone(images)[0]
    for other in (
        copy.deepcopy(backbone),
        pickle.loads(pickle.dumps(backbone)),
        fused_for_inference(backbone),
    ):
        assert torch.equal(other(images)[0], wanted)
        assert weights_digest(other) == weights_digest(backbone)
    another = load_backbone(means_of_channels(tmp_path / "b.onnx", METADATA, norm=True))
    assert weights_digest(another) != weights_digest(backbone)


def test_safetensors_and_checkpoints_contain_the_graph(tmp_path: Path) -> None:
    backbone = load_backbone(means_of_channels(tmp_path / "a.onnx", METADATA))
    images = torch.randn(2, 3, 112, 112)
    save_weights(tmp_path / "ours.safetensors", backbone)
    checkpoint = {
        "state_dict": {f"model.{key}": value for key, value in backbone.state_dict().items()},
        "backbone_spec": backbone.spec.to_dict(),
    }
    torch.save(checkpoint, tmp_path / "ours.ckpt")
    for name in ("ours.safetensors", "ours.ckpt"):
        again = load_backbone(tmp_path / name)
        assert again.spec == backbone.spec
        assert torch.equal(again(images)[0], backbone(images)[0])
    resumed = empty_backbone(backbone.spec)
    assert isinstance(resumed, OnnxBackbone)
    resumed.load_state_dict(backbone.state_dict())
    assert torch.equal(resumed(images)[0], backbone(images)[0])


def with_external_weights(path: Path, scale: float = 2.0, location: str = "a.data") -> Path:
    """The means of the channels, times the values of a file beside the graph."""
    model = onnx.load(means_of_channels(path, METADATA))
    scales = onnx.numpy_helper.from_array(np.array([[scale, 1, 1]], np.float32), "scale")
    (path.parent / "a.data").write_bytes(scales.raw_data)
    onnx.external_data_helper.set_external_data(scales, location, 0, len(scales.raw_data))
    scales.ClearField("raw_data")
    model.graph.initializer.append(scales)
    model.graph.node.append(onnx.helper.make_node("Mul", ["features", "scale"], ["scaled"]))
    model.graph.output[0].name = "scaled"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_weights_become_part_of_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "elsewhere").mkdir()
    path = with_external_weights(tmp_path / "m" / "a.onnx")
    # Another file of that name in the working directory.
    (tmp_path / "elsewhere" / "a.data").write_bytes(np.array([7, 7, 7], np.float32).tobytes())
    monkeypatch.chdir(tmp_path / "elsewhere")
    images = torch.rand(2, 3, 112, 112)
    first = load_backbone(path)
    wanted = images.mean(dim=(2, 3)) * torch.tensor([2, 1, 1])
    torch.testing.assert_close(first.features(images), wanted, rtol=1e-4, atol=1e-6)
    digests = weights_digest(first), weights_sha256(path)
    (path.parent / "a.data").write_bytes(np.array([3, 1, 1], np.float32).tobytes())
    second = load_backbone(path)
    assert weights_digest(second) != digests[0]
    assert weights_sha256(path) != digests[1]
    # What was made of it needs the file no more.
    (path.parent / "a.data").unlink()
    torch.testing.assert_close(second.features(images)[:, 0], wanted[:, 0] * 1.5, rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match=r"a\.onnx: refers to weights in 'a\.data'"):
        load_backbone(path)


@pytest.mark.parametrize("location", ["../a.data", "/a.data"])
def test_other_external_weights_are_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    path = with_external_weights(tmp_path / "m" / "a.onnx", location=location)
    for read in (load_backbone, weights_sha256):
        with pytest.raises(InputError, match=r"a\.onnx: refers to weights in"):
            read(path)
    # Nor in a graph that a file of ours carries.
    content = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    spec = BACKBONES["mobilefacenet"].to_dict() | {"name": "onnx", "embedding_size": 3}
    torch.save({"state_dict": {"graph": content}, "backbone_spec": spec}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=r"a\.ckpt: .*external weights"):
        load_backbone(tmp_path / "a.ckpt")


def test_a_graph_of_constant_or_damaged_features_is_refused(tmp_path: Path) -> None:
    for value, told in ((0.0, "the same for all images"), (np.nan, "NaN or infinite values in 'spread'")):
        model = onnx.load(means_of_channels(tmp_path / "a.onnx", METADATA | {"embedding_size": "4"}, size=4))
        spread = onnx.numpy_helper.from_array(np.full((3, 4), value, np.float32), "spread")
        model.graph.initializer[0].CopyFrom(spread)
        onnx.save(model, tmp_path / "a.onnx")
        with pytest.raises(InputError, match=rf"a\.onnx: .*{told}"):
            load_backbone(tmp_path / "a.onnx")


def test_face_detector_is_recognised(shared: Path) -> None:
    with pytest.raises(InputError, match=r"640, 640.*12 outputs.*--detector"):
        load_backbone(shared / "faces" / "face_detection_yunet_2023mar.onnx", "mobilefacenet")


@pytest.mark.parametrize("size", [0, 1, 100])
def test_truncated_graph_is_an_error(size: int, tmp_path: Path) -> None:
    path = means_of_channels(tmp_path / "a.onnx", METADATA)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"a\.onnx: (.*ONNX graph|expected)"):
        load_backbone(path)


def test_graph_of_another_network_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"expected one input \(n, 3, 112, 112\).*found data \['n', 3, 96, 96\]"
    ):
        load_backbone(means_of_channels(tmp_path / "a.onnx", METADATA | {"input_size": "112"}, side=96))
    with pytest.raises(InputError, match="no such file"):
        load_backbone(tmp_path / "none.onnx")


def test_mobilefacenets_graph_equals_its_weights(shared: Path) -> None:
    graph = load_backbone(shared / "faces" / "mobilefacenet.onnx", "mobilefacenet")
    backbone = load_backbone(shared / "faces" / "mobilefacenet.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 112, 112), dtype=np.uint8)
    images = backbone.spec.normalise(torch.from_numpy(pixels))
    with torch.no_grad():
        for one, other in zip(graph(images), backbone(images), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------- graphs that state their spec


def test_spec_of_a_graph_is_stated_once(tmp_path: Path) -> None:
    """By flags, with a mean and a deviation of each channel and another side; nothing is inherited."""
    path, out = means_of_channels(tmp_path / "a.onnx", side=160), tmp_path / "a.safetensors"
    with pytest.raises(InputError, match="--channel_order, --mean, --std"):
        load_backbone(path)
    given = {"channel_order": "RGB", "mean": (120.0, 110.0, 100.0), "std": (50.0, 60.0, 70.0)}
    convert({"weights": (str(path), str(out)), **given})
    spec = load_backbone(out).spec
    assert (spec.mean, spec.std, spec.input_size) == (given["mean"], given["std"], 160)
    assert spec.norm_is_quality is None
    assert spec.to_dict()["norm_is_quality"] is None
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    pixels = spec.normalise(images)
    assert pixels.shape == (2, 3, 160, 160)
    means = images.float().mean(dim=(2, 3))
    wanted = (means - torch.tensor(given["mean"])) / torch.tensor(given["std"])
    torch.testing.assert_close(pixels.mean(dim=(2, 3)), wanted, atol=0.02, rtol=0)
    embedding, norm = load_backbone(out)(pixels)
    torch.testing.assert_close(embedding * norm, pixels.mean(dim=(2, 3)), atol=1e-3, rtol=0)


def test_a_graph_can_state_its_spec_by_metadata(tmp_path: Path) -> None:
    metadata = {"architecture": "onnx", "channel_order": "BGR", "mean": "[1, 2, 3]", "std": "4"}
    spec = load_backbone(means_of_channels(tmp_path / "a.onnx", metadata, side=96)).spec
    assert (spec.mean, spec.std, spec.input_size) == ((1, 2, 3), 4, 96)
    assert (spec.channel_order, spec.norm_is_quality, spec.embedding_size) == ("BGR", None, 3)
    known = means_of_channels(tmp_path / "b.onnx", metadata | {"norm_is_quality": "true"})
    assert load_backbone(known).spec.norm_is_quality is True
    with pytest.raises(InputError, match="mean"):
        load_backbone(means_of_channels(tmp_path / "c.onnx", metadata | {"mean": "[1, 2]"}))


def test_stated_architecture_leaves_the_norm_unknown(tmp_path: Path) -> None:
    path = means_of_channels(tmp_path / "a.onnx", size=128)
    assert load_backbone(path, "mobilefacenet").spec.norm_is_quality is None
    out = tmp_path / "a.safetensors"
    given = {"weights": (str(path), str(out)), "arch": "mobilefacenet"}
    convert(given | {"norm_is_quality": "yes"})
    assert load_backbone(out).spec.norm_is_quality is True


@pytest.mark.parametrize(
    ("text", "flag"),
    [("1,2", "--mean"), ("a", "--std"), ("1,2,3", "--template"), ("maybe", "--norm_is_quality")],
)
def test_invalid_spec_values_are_refused(
    text: str, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        convert_flags().parse_args(["--weights", "a.onnx", "b.safetensors", flag, text])
    assert ended.value.code == 2
    assert flag in capsys.readouterr().err


def test_faces_are_moved_to_the_stated_template(tmp_path: Path) -> None:
    """A dot at each of the five points comes to lie where the template says."""
    side, points = 128, (np.array(ARCFACE_POINTS) * 0.8 + 20) * 128 / 112
    spec = replace(
        BACKBONES["mobilefacenet"],
        input_size=side,
        alignment=tuple(points.ravel().tolist()),
        mean=0.0,
        std=1.0,
    )
    for place, wanted in zip(ARCFACE_POINTS, points, strict=True):
        image = np.zeros((1, 3, 112, 112), np.uint8)
        x, y = (round(value) for value in place)
        image[..., y - 1 : y + 2, x - 1 : x + 2] = 255
        found = spec.normalise(torch.from_numpy(image))[0, 0].numpy()
        rows, columns = np.indices(found.shape)
        centre = np.array([(columns * found).sum(), (rows * found).sum()]) / found.sum()
        np.testing.assert_allclose(centre, wanted, atol=1.0)


def test_input_size_is_refused_for_built_in_backbones(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", build_backbone("ir_tiny").eval())
    with pytest.raises(InputError, match="--input_size 128"):
        convert(
            {"weights": (str(tmp_path / "w.safetensors"), str(tmp_path / "x.safetensors")), "input_size": 128}
        )
    convert({"weights": (str(tmp_path / "w.safetensors"), str(tmp_path / "x.safetensors")), "mean": 100.0})
    assert load_backbone(tmp_path / "x.safetensors").spec.mean == 100.0

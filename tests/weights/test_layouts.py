"""Weights of other projects in their exact layouts, built here: names, shapes, prefixes, what they compute.

Sources: arcface_torch/backbones/iresnet.py; CVLFace's models/iresnet,
models/iresnet_insightface and wrapper.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from coreset.aggregator import CoresetAggregator
from coreset.sets import FaceSets
from net import BACKBONES, Backbone, build_backbone
from runtime.errors import InputError
from weights import load_aggregator, load_backbone, load_weights, save_weights
from weights.aggregators import published_aggregator


class ArcfaceBlock(nn.Module):
    """arcface_torch's IBasicBlock, under its names."""

    def __init__(self, inputs: int, outputs: int, stride: int, first: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        if first:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x) if hasattr(self, "downsample") else x
        y = self.bn2(self.conv1(self.bn1(x)))
        return shortcut + self.bn3(self.conv2(self.prelu(y)))


class ArcfaceNet(nn.Module):
    """arcface_torch's IResNet, under its names; the small one has the widths and strides of iresnet_tiny."""

    def __init__(self, units: tuple[int, ...], *, small: bool = False) -> None:
        super().__init__()
        stem, widths = (8, (8, 16, 32, 64)) if small else (64, (64, 128, 256, 512))
        size = 64 if small else 512
        self.conv1 = nn.Conv2d(3, stem, 3, 2 if small else 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.prelu = nn.PReLU(stem)
        inputs = stem
        for stage, (count, width) in enumerate(zip(units, widths, strict=True), start=1):
            stride = 1 if small and stage == 4 else 2
            blocks = [
                ArcfaceBlock(width if unit else inputs, width, 1 if unit else stride, unit == 0)
                for unit in range(count)
            ]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            inputs = width
        self.bn2 = nn.BatchNorm2d(inputs)
        self.dropout = nn.Dropout(0.0)
        self.fc = nn.Linear(inputs * 49, size)
        self.features = nn.BatchNorm1d(size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        found: Tensor = self.features(self.fc(self.bn2(x).flatten(1)))
        return found


def lively(module: nn.Module) -> nn.Module:
    """Statistics, scales and shifts that no order of layers could hide."""
    for name, value in [*module.named_buffers(), *module.named_parameters()]:
        with torch.no_grad():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif name.endswith(("running_mean", "bias")):
                value.normal_(0, 0.3)
            elif "bn" in name and name.endswith("weight"):
                value.uniform_(0.5, 1.5)
    return module.eval()


def zeros(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Entries that share one zero, so that the file of a deep network is small."""
    kinds = {True: torch.int64, False: torch.float32}
    return {
        key: torch.zeros((), dtype=kinds[key.endswith("num_batches_tracked")]).expand(tuple(shape))
        for key, shape in shapes.items()
    }


@pytest.fixture
def tiny() -> Backbone:
    found = lively(build_backbone("ir_tiny"))
    assert isinstance(found, Backbone)
    return found


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


# arcface_torch


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "_orig_mod.module."])
def test_an_arcface_torch_network_computes_the_same_under_our_names(prefix: str, tmp_path: Path) -> None:
    theirs = lively(ArcfaceNet((1, 1, 1, 1), small=True))
    torch.save(prefixed(prefix, dict(theirs.state_dict())), tmp_path / "r18_backbone.pth")
    loaded = load_weights(tmp_path / "r18_backbone.pth")
    assert loaded.kind == "InsightFace arcface_torch"
    assert loaded.backbone.spec == BACKBONES["iresnet_tiny"]
    assert loaded.backbone.spec.channel_order == "RGB"
    images = torch.randn(3, 3, 112, 112)
    with torch.no_grad():
        wanted = theirs(images)
        embedding, norm = loaded.backbone(images)
    torch.testing.assert_close(embedding * norm, wanted, rtol=1e-4, atol=1e-5)


def test_a_training_checkpoint_of_arcface_torch_gives_its_backbone(tmp_path: Path) -> None:
    state = ArcfaceNet((1, 1, 1, 1), small=True).state_dict()
    checkpoint = {
        "epoch": 3,
        "state_dict_backbone": state,
        "state_dict_softmax_fc": {"weight": torch.ones(2)},
    }
    torch.save(checkpoint, tmp_path / "checkpoint_gpu_0.pt")
    assert load_backbone(tmp_path / "checkpoint_gpu_0.pt").spec.name == "iresnet_tiny"


DEPTHS = {"iresnet18": (2, 2, 2, 2), "iresnet34": (3, 4, 6, 3), "iresnet50": (3, 4, 14, 3)}


@pytest.mark.usefixtures("zeros_load")
@pytest.mark.parametrize(
    ("name", "units"),
    [
        pytest.param(name, units, marks=() if name == "iresnet18" else pytest.mark.slow)
        for name, units in (DEPTHS | {"iresnet100": (3, 13, 30, 3)}).items()
    ],
)
def test_published_depths_are_deduced_from_shapes(name: str, units: tuple[int, ...], tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in ArcfaceNet(units).state_dict().items()}
    torch.save(zeros(shapes), tmp_path / "backbone.pth")
    assert load_backbone(tmp_path / "backbone.pth").spec == BACKBONES[name]


def test_additional_block_is_reported_by_our_names(tmp_path: Path) -> None:
    state = dict(ArcfaceNet((1, 1, 1, 1), small=True).state_dict())
    state["layer2.7.bn1.weight"] = torch.ones(8)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"not those of iresnet_tiny, the closest backbone:\n.*unexpected"):
        load_backbone(tmp_path / "a.pth")


# CVLFace


def cvlface_repository(folder: Path, state: dict[str, Tensor], color_space: str = "RGB") -> None:
    """The files of a repository on the hub: the network is `net`, and `model` in the wrapper."""
    (folder / "pretrained_model").mkdir()
    conf = {"color_space": color_space, "input_size": [3, 112, 112], "name": "ir101", "output_dim": 512}
    config = {"architectures": ["CVLFaceRecognitionModel"], "conf": conf}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(prefixed("net.", state), folder / "pretrained_model" / "model.pt")
    (folder / "pretrained_model" / "model.yaml").write_text(f"color_space: '{color_space}'\nname: 'ir101'\n")
    save_file(prefixed("model.net.", {k: v.clone() for k, v in state.items()}), folder / "model.safetensors")


@pytest.mark.parametrize("file", ["model.safetensors", "pretrained_model/model.pt"])
@pytest.mark.parametrize("color_space", ["RGB", "BGR"])
def test_channel_order_of_a_cvlface_repository_is_read(
    file: str, color_space: str, tiny: Backbone, tmp_path: Path
) -> None:
    cvlface_repository(tmp_path, dict(tiny.state_dict()), color_space)
    loaded = load_weights(tmp_path / file)
    assert loaded.kind == "CVLFace IR"
    assert loaded.backbone.spec.channel_order == color_space
    assert all(
        torch.equal(value, tiny.state_dict()[key]) for key, value in loaded.backbone.state_dict().items()
    )


@pytest.mark.parametrize("prefix", ["net.", "model.net.", "module.model.net."])
def test_a_cvlface_file_alone_reads_rgb(prefix: str, tiny: Backbone, tmp_path: Path) -> None:
    torch.save(prefixed(prefix, dict(tiny.state_dict())), tmp_path / "model.pt")
    assert load_backbone(tmp_path / "model.pt").spec.channel_order == "RGB"
    assert load_backbone(tmp_path / "model.pt", channel_order="BGR").spec.channel_order == "BGR"


def test_channel_order_of_a_yaml_file_is_read(tiny: Backbone, tmp_path: Path) -> None:
    torch.save(prefixed("net.", dict(tiny.state_dict())), tmp_path / "model.pt")
    (tmp_path / "model.yaml").write_text("input_size: [3, 112, 112]\ncolor_space: 'BGR'\n")
    assert load_backbone(tmp_path / "model.pt").spec.channel_order == "BGR"
    (tmp_path / "model.yaml").write_text("color_space: 'YUV'\n")
    with pytest.raises(InputError, match="color_space 'YUV'; expected RGB or BGR"):
        load_backbone(tmp_path / "model.pt")


def test_cvlfaces_arcface_is_insightfaces_network(tmp_path: Path) -> None:
    state = dict(ArcfaceNet((1, 1, 1, 1), small=True).state_dict())
    cvlface_repository(tmp_path, state)
    loaded = load_weights(tmp_path / "model.safetensors")
    assert loaded.backbone.spec.name == "iresnet_tiny"
    assert loaded.kind == "CVLFace, InsightFace's IResNet"


# AdaFace and FaceCoresetNet


@pytest.mark.usefixtures("zeros_load")
@pytest.mark.parametrize(
    "name", ["ir_18", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ir_50", "ir_101"))]
)
def test_an_adaface_checkpoint_of_full_size_loads(name: str, golden: Path, tmp_path: Path) -> None:
    table = json.loads((golden / "ir_state_dict_shapes.json").read_text())[name]["state_dict"]
    head = {"head.kernel": torch.zeros(512, 5), "head.t": torch.zeros(1), "head.batch_mean": torch.ones(1)}
    state = prefixed("model.", zeros(table)) | head
    torch.save({"state_dict": state, "epoch": 25, "pytorch-lightning_version": "1.4.4"}, tmp_path / "a.ckpt")
    loaded = load_weights(tmp_path / "a.ckpt")
    assert loaded.kind == "AdaFace checkpoint"
    assert loaded.backbone.spec == BACKBONES[name]
    assert loaded.backbone.spec.channel_order == "BGR"


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "student.backbone."])
def test_backbone_is_found_below_any_prefix(prefix: str, tiny: Backbone, tmp_path: Path) -> None:
    torch.save(prefixed(prefix, dict(tiny.state_dict())), tmp_path / "a.pt")
    loaded = load_weights(tmp_path / "a.pt")
    assert loaded.backbone.spec == BACKBONES["ir_tiny"]
    assert all(
        torch.equal(value, tiny.state_dict()[key]) for key, value in loaded.backbone.state_dict().items()
    )


def test_two_backbones_in_one_file_are_refused(tiny: Backbone, tmp_path: Path) -> None:
    state = prefixed("teacher.", dict(tiny.state_dict())) | prefixed("pupil.", dict(tiny.state_dict()))
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"teacher\.input_layer\.0\.weight: unexpected"):
        load_backbone(tmp_path / "a.pt")


def published_state(golden: Path, tiny: Backbone) -> dict[str, Tensor]:
    """A whole published FaceCoresetNet checkpoint: aggregator, head, and the backbone twice."""
    with np.load(golden / "published_aggregator_d64.npz") as archive:
        state = {key: torch.tensor(value) for key, value in archive.items()}
    backbone = dict(tiny.state_dict())
    return state | prefixed("model.", backbone) | prefixed("template_model.module.", backbone)


def test_a_published_facecoresetnet_gives_backbone_and_aggregator(
    golden: Path, tiny: Backbone, tmp_path: Path
) -> None:
    state = published_state(golden, tiny)
    hyper = {"coreset_size": 5, "gamma": -1.0}
    torch.save({"state_dict": state, "epoch": 9, "hyper_parameters": hyper}, tmp_path / "published.ckpt")
    backbone = load_backbone(tmp_path / "published.ckpt")
    assert backbone.spec == BACKBONES["ir_tiny"]
    aggregator = load_aggregator(tmp_path / "published.ckpt")
    assert isinstance(aggregator, CoresetAggregator)
    features = torch.nn.functional.normalize(torch.randn(2, 5, 64), dim=2)
    sets = FaceSets.dense(features, torch.rand(2, 5) * 20 + 5)
    wanted = published_aggregator(state, 5)(sets)
    assert torch.equal(aggregator(sets).embedding, wanted.embedding)


def test_a_published_aggregator_with_a_missing_key_is_an_error(
    golden: Path, tiny: Backbone, tmp_path: Path
) -> None:
    state = published_state(golden, tiny)
    del state["aggregate_model.decoder_layer1.norm1.weight"]
    hyper = {"coreset_size": 3}
    torch.save({"state_dict": state, "hyper_parameters": hyper}, tmp_path / "published.ckpt")
    with pytest.raises(InputError, match=r"self_norm\.weight|norm1"):
        load_aggregator(tmp_path / "published.ckpt")


# MagFace


def magface_network() -> nn.Module:
    """arcface_torch's blocks with the larger eps that MagFace's BatchNorms have."""
    theirs = lively(ArcfaceNet((1, 1, 1, 1), small=True))
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = 2e-5
    for name in ("bn1", "features"):
        # So small that eps shows.
        theirs.get_submodule(name).running_var *= 1e-3
    return theirs


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("features.module.", "parallel_fc.weight"),
        ("module.features.", "module.fc.weight"),
        ("features.", "fc.weight"),
        ("features.module.", None),
    ],
)
def test_magface_is_recognised_with_its_pixels_and_quality(
    prefix: str, head: str | None, tmp_path: Path
) -> None:
    theirs = magface_network()
    state = prefixed(prefix, dict(theirs.state_dict())) | ({head: torch.zeros(64, 10)} if head else {})
    content = {"epoch": 25, "arch": "iresnet18", "state_dict": state, "best_acc1": 0}
    torch.save(content, tmp_path / "magface_epoch_00025.pth")
    loaded = load_weights(tmp_path / "magface_epoch_00025.pth")
    spec = loaded.backbone.spec
    assert loaded.kind == "MagFace"
    assert (spec.name, spec.channel_order, spec.mean, spec.std) == ("iresnet_tiny", "BGR", 0.0, 255.0)
    assert spec.norm_is_quality
    pixels = torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8)
    with torch.no_grad():
        wanted = theirs(pixels / 255)
        embedding, norm = loaded.backbone(spec.normalise(pixels))
    torch.testing.assert_close(embedding * norm, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    # Ours keeps what was recognised.
    save_weights(tmp_path / "ours.safetensors", loaded.backbone)
    assert load_backbone(tmp_path / "ours.safetensors").spec == spec
    order = load_backbone(tmp_path / "magface_epoch_00025.pth", channel_order="RGB").spec
    assert (order.channel_order, order.std) == ("RGB", 255.0)


# arcface_torch's MobileFaceNet


def slow_mbf(state: dict[str, Tensor], x: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """backbones/mobilefacenet.py of arcface_torch, as functions of its state dict."""

    def norm(name: str, y: Tensor) -> Tensor:
        kinds = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(y, *(state[f"{name}.{kind}"] for kind in kinds))

    def unit(name: str, y: Tensor, stride: int = 1, *, prelu: bool = True) -> Tensor:
        weight = state[f"{name}.layers.0.weight"]
        padding = weight.shape[-1] // 2 if weight.shape[-1] < 7 else 0
        groups = y.shape[1] // weight.shape[1]
        y = norm(f"{name}.layers.1", F.conv2d(y, weight, None, stride, padding, 1, groups))
        return F.prelu(y, state[f"{name}.layers.2.weight"]) if prelu else y

    def block(name: str, y: Tensor, stride: int) -> Tensor:
        y = unit(f"{name}.layers.0", y)
        y = unit(f"{name}.layers.1", y, stride)
        return unit(f"{name}.layers.2", y, prelu=False)

    x = unit("layers.0", x, 2)
    if blocks[0] == 1:
        x = unit("layers.1", x)
    else:
        for number in range(blocks[0]):
            x = x + block(f"layers.1.layers.{number}", x, 1)
    for place, count in zip((2, 4, 6), blocks[1:], strict=True):
        x = block(f"layers.{place}", x, 2)
        for number in range(count):
            x = x + block(f"layers.{place + 1}.layers.{number}", x, 1)
    x = unit("conv_sep", x)
    x = unit("features.layers.0", x, prelu=False).flatten(1)
    return norm("features.layers.3", x @ state["features.layers.2.weight"].T)


@pytest.mark.parametrize(
    ("name", "blocks", "prefix"), [("mbf", (1, 4, 6, 2), ""), ("mbf_large", (2, 8, 12, 4), "module.")]
)
def test_mbf_of_arcface_torch_is_its_own_architecture(
    name: str, blocks: tuple[int, ...], prefix: str, tmp_path: Path
) -> None:
    ours = lively(build_backbone(name))
    state = {re.sub(r"^output\.", "features.layers.", key): value for key, value in ours.state_dict().items()}
    torch.save(prefixed(prefix, state), tmp_path / "backbone.pth")
    loaded = load_weights(tmp_path / "backbone.pth")
    assert loaded.kind == "InsightFace arcface_torch, MobileFaceNet"
    assert loaded.backbone.spec == BACKBONES[name]
    assert (loaded.backbone.spec.channel_order, loaded.backbone.spec.embedding_size) == ("RGB", 512)
    images = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        embedding, norm = loaded.backbone(images)
        wanted = slow_mbf(state, images, blocks)
    torch.testing.assert_close(embedding * norm, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    with pytest.raises(InputError, match=f"exactly those of {name}"):
        load_backbone(tmp_path / "backbone.pth", "mobilefacenet")
    # Its last layer drops nothing that could be auxiliary.
    loaded.backbone.set_auxiliary(4)
    with pytest.raises(InputError, match="0 auxiliary"):
        loaded.backbone(images)


# Files without counts


def without_counts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("form", ["ours", "arcface", "aggregator", "mobilefacenet"])
def test_files_without_num_batches_tracked_load(
    form: str, golden: Path, tiny: Backbone, tmp_path: Path
) -> None:
    theirs: nn.Module = tiny
    if form == "arcface":
        theirs = lively(ArcfaceNet((1, 1, 1, 1), small=True))
    elif form == "mobilefacenet":
        theirs = lively(build_backbone("mobilefacenet"))
    state = without_counts(dict(theirs.state_dict()))
    content: dict[str, object] = dict(state)
    if form == "aggregator":
        content = {"state_dict": without_counts(published_state(golden, tiny))}
    torch.save(content, tmp_path / "old.pt")
    backbone = load_backbone(tmp_path / "old.pt")
    loaded = backbone.state_dict()
    counts = [value for key, value in loaded.items() if key.endswith("num_batches_tracked")]
    assert counts
    assert all(int(value) == 0 for value in counts)
    images = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        wanted = theirs(images)
        embedding, norm = backbone(images)
    wanted = wanted[0] * wanted[1] if isinstance(wanted, tuple) else wanted
    torch.testing.assert_close(embedding * norm, wanted, rtol=1e-4, atol=1e-5)
    # Anything else that lacks is still an error.
    gone = next(key for key in state if key.endswith("running_var"))
    torch.save({key: value for key, value in state.items() if key != gone}, tmp_path / "less.pt")
    with pytest.raises(InputError, match="running_var: missing"):
        load_backbone(tmp_path / "less.pt")

from __future__ import annotations

import copy
import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from backbones.auxiliary import append_auxiliary, split_auxiliary
from backbones.iresnet import IResNetLayout
from backbones.spec import BackboneSpec
from features.extract import fused_for_inference
from net import BACKBONES, Backbone, IResNet, build_backbone
from runtime.errors import InputError

PUBLISHED = ["ir_18", "ir_34", "ir_50", "ir_101", "ir_152", "ir_200", "ir_se_50"]
SMALL = ["ir_tiny", "mobilefacenet", "mbf"]
NARROW = {
    "basic": IResNetLayout((2, 1), (16, 24), (2, 2), stem_width=16),
    "bottleneck": IResNetLayout((2, 1), (32, 64), (2, 2), stem_width=16, bottleneck=True),
    "squeeze": IResNetLayout((2, 1), (16, 32), (2, 2), stem_width=16, squeeze_excitation=True),
}


def weights_by_rule(network: nn.Module) -> dict[str, Tensor]:
    """Weights generated from each entry's name and shape."""
    activations = {name for name, module in network.named_modules() if isinstance(module, nn.PReLU)}
    state = {}
    for name, entry in network.state_dict().items():
        module, _, kind = name.rpartition(".")
        if kind == "num_batches_tracked":
            state[name] = torch.tensor(0)
            continue
        shape = tuple(entry.shape)
        z = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
        if kind == "running_mean" or kind == "bias":
            value = 0.1 * z
        elif kind == "running_var":
            value = 1 + 0.1 * np.abs(z)
        elif len(shape) >= 2:
            value = z * math.sqrt(1 / math.prod(shape[1:]))
        elif module in activations:
            value = 0.25 + 0.05 * z
        else:
            value = 1 + 0.1 * z
        state[name] = torch.from_numpy(value.astype(np.float32))
    return state


def with_weights_by_rule(name: str) -> Backbone:
    with torch.device("meta"):
        backbone = build_backbone(name)
    backbone.to_empty(device="cpu").load_state_dict(weights_by_rule(backbone))
    return backbone.eval()


def some_images(count: int, size: int = 112) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(3)).byte()


class FixedFeatures(Backbone):
    """A backbone whose features are its weights."""

    def __init__(self, features: Tensor) -> None:
        super().__init__(BACKBONES["ir_tiny"])
        self.weight = nn.Parameter(features)

    def features(self, images: Tensor) -> Tensor:
        return self.weight


# Published names and values


@pytest.mark.parametrize("name", PUBLISHED)
def test_state_dict_has_the_published_names_shapes_and_order(name: str, golden: Path) -> None:
    published = json.loads((golden / "ir_state_dict_shapes.json").read_text())[name]
    with torch.device("meta"):
        backbone = build_backbone(name)
    assert [(key, list(value.shape)) for key, value in backbone.state_dict().items()] == list(
        published["state_dict"].items()
    )
    assert sum(parameter.numel() for parameter in backbone.parameters()) == published["parameters"]


@pytest.mark.parametrize("name", ["ir_18", "ir_34", "ir_50", "ir_101", "ir_se_50"])
def test_outputs_equal_the_published_code(name: str, golden: Path) -> None:
    reference = np.load(golden / "iresnet_io.npz")
    images = torch.from_numpy(reference["images_hwc_bgr_uint8"]).permute(0, 3, 1, 2)
    embedding_expected = torch.from_numpy(reference[f"{name}_embedding"])
    norm_expected = torch.from_numpy(reference[f"{name}_norm"])
    backbone = with_weights_by_rule(name)
    with torch.no_grad():
        embedding, norm = backbone(backbone.spec.normalise(images))
        torch.testing.assert_close(embedding, embedding_expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(norm, norm_expected, atol=0, rtol=1e-4)
        if name != "ir_101":
            return
        # The longest features (3.8e4, whose square no float16 holds), so the hardest case of low precision.
        embedding, norm = backbone.half()(backbone.spec.normalise(images))
        torch.testing.assert_close(embedding, embedding_expected, atol=2e-3, rtol=0)
        torch.testing.assert_close(norm, norm_expected, atol=0, rtol=5e-3)


@pytest.mark.parametrize("kind", NARROW)
def test_residual_units_equal_their_definition(kind: str) -> None:
    """With strided 1x1 convolutions and max-pools, which our shortcut replaces by slicing."""
    layout = NARROW[kind]
    network = IResNet(BACKBONES["ir_tiny"], layout).double().eval()
    network.load_state_dict(weights_by_rule(network))
    x = torch.randn(2, layout.stem_width, 10, 10, dtype=torch.float64)
    strides = [2, 1, 2]
    for unit, stride in zip(network.body, strides, strict=True):
        expected = residual_unit({k: v.double() for k, v in unit.state_dict().items()}, x, stride, layout)
        torch.testing.assert_close(unit(x), expected, atol=1e-12, rtol=1e-10)
        x = expected
    assert x.shape[-1] == 3


def residual_unit(state: dict[str, Tensor], x: Tensor, stride: int, layout: IResNetLayout) -> Tensor:
    def norm(name: str, y: Tensor) -> Tensor:
        entries = (state[f"{name}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(y, *entries)

    def conv(name: str, y: Tensor, step: int) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(y, weight, stride=step, padding=weight.shape[-1] // 2)

    y = norm("res_layer.2", conv("res_layer.1", norm("res_layer.0", x), 1))
    y = F.prelu(y, state["res_layer.3.weight"])
    if layout.bottleneck:
        y = F.prelu(norm("res_layer.5", conv("res_layer.4", y, 1)), state["res_layer.6.weight"])
        y = norm("res_layer.8", conv("res_layer.7", y, stride))
    else:
        y = norm("res_layer.5", conv("res_layer.4", y, stride))
    if layout.squeeze_excitation:
        gate = conv("res_layer.se_block.fc1", F.adaptive_avg_pool2d(y, 1), 1).relu()
        y = y * conv("res_layer.se_block.fc2", gate, 1).sigmoid()
    if "shortcut_layer.0.weight" in state:
        return y + norm("shortcut_layer.1", conv("shortcut_layer.0", x, stride))
    return y + F.max_pool2d(x, 1, stride)


# The contract of every backbone


@pytest.mark.parametrize("name", SMALL)
def test_output_is_unit_rows_and_feature_norms(name: str) -> None:
    backbone = with_weights_by_rule(name)
    images = backbone.spec.normalise(some_images(3))
    with torch.no_grad():
        embedding, norm = backbone(images)
        features = backbone.features(images)
    assert embedding.shape == (3, backbone.spec.embedding_size)
    assert norm.shape == (3, 1)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(embedding * norm, features)


@pytest.mark.parametrize("name", SMALL)
def test_output_is_independent_of_the_batch(name: str) -> None:
    backbone = with_weights_by_rule(name)
    images = backbone.spec.normalise(some_images(4))
    with torch.no_grad():
        together, _ = backbone(images)
        alone, _ = backbone(images[2:3])
    torch.testing.assert_close(alone, together[2:3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_values_and_gradients_agree(name: str) -> None:
    """ir_tiny ended here in a segmentation fault of oneDNN, when its shortcuts were strided convolutions."""
    backbone = with_weights_by_rule(name).double()
    images = backbone.spec.normalise(some_images(2)).double()

    def run(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        backbone.zero_grad()
        embedding, norm = backbone(x)
        (embedding.sum() + norm.sum()).backward()
        return embedding, [p.grad.clone() for p in backbone.parameters() if p.grad is not None]

    expected, gradients_expected = run(images)
    backbone.to(memory_format=torch.channels_last)
    embedding, gradients = run(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(embedding, expected)
    torch.testing.assert_close(gradients, gradients_expected)


def test_tiny_trains_in_channels_last_in_float32() -> None:
    backbone = build_backbone("ir_tiny").to(memory_format=torch.channels_last)
    images = backbone.spec.normalise(some_images(64)).to(memory_format=torch.channels_last)
    embedding, norm = backbone(images)
    (embedding.sum() + norm.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("how", ["autocast", "weights"])
@pytest.mark.parametrize("name", SMALL)
def test_low_precision_output_is_float32_and_close(name: str, how: str, dtype: torch.dtype) -> None:
    backbone = with_weights_by_rule(name)
    images = backbone.spec.normalise(some_images(2))
    with torch.no_grad():
        expected, norm_expected = backbone(images)
        if how == "autocast":
            with torch.autocast("cpu", dtype=dtype):
                embedding, norm = backbone(images)
        else:
            embedding, norm = backbone.to(dtype)(images)
    assert embedding.dtype == norm.dtype == torch.float32
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
    tolerance = 0.004 if dtype is torch.float16 else 0.03
    torch.testing.assert_close(embedding, expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(norm, norm_expected, atol=0, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_norms_beyond_the_range_of_float16_stay_finite(dtype: torch.dtype) -> None:
    embedding, norm = FixedFeatures(torch.full((2, 64), 30000.0).to(dtype))(torch.zeros(2, 3, 1, 1))
    torch.testing.assert_close(norm, torch.full((2, 1), 240000.0), atol=0, rtol=2e-3)
    torch.testing.assert_close(embedding, torch.full((2, 64), 0.125))


def test_a_zero_feature_gives_zero_and_finite_gradients() -> None:
    backbone = FixedFeatures(torch.zeros(2, 64))
    embedding, norm = backbone(torch.zeros(2, 3, 1, 1))
    (embedding.sum() + norm.sum()).backward()
    assert embedding.abs().max() == norm.abs().max() == 0
    assert backbone.weight.grad is not None
    assert backbone.weight.grad.isfinite().all()


@given(
    features=st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4),
    scale=st.floats(0.01, 100.0),
)
def test_direction_is_independent_of_length(features: list[float], scale: float) -> None:
    x = torch.tensor([features], dtype=torch.float64)
    if x.norm() * min(scale, 1) < 1e-3:
        return
    embedding, norm = FixedFeatures(x)(torch.zeros(1, 3, 1, 1))
    embedding_scaled, norm_scaled = FixedFeatures(x * scale)(torch.zeros(1, 3, 1, 1))
    torch.testing.assert_close(embedding_scaled, embedding)
    torch.testing.assert_close(norm_scaled, norm * scale)


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_learns(name: str) -> None:
    backbone = build_backbone(name)
    embedding, norm = backbone(backbone.spec.normalise(some_images(4)))
    (embedding.square().cumsum(1).sum() + norm.sum()).backward()
    fixed = {key for key, p in backbone.named_parameters() if not p.requires_grad}
    # MobileFaceNet's last scale is fixed to 1 (MXNet's fix_gamma).
    assert fixed == ({"fc1.weight"} if name == "mobilefacenet" else set())
    idle = {key for key, p in backbone.named_parameters() if p.grad is None or not p.grad.any()} - fixed
    # A bias in front of a BatchNorm has no effect in training; it is there because published weights have it.
    idle_in_theory = {"output_layer.3.bias", "pre_fc1.bias"}
    assert idle <= idle_in_theory


def test_fresh_weights_are_kaiming_normal_by_fan_out() -> None:
    backbone = build_backbone("ir_18")
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_out = module.weight.shape[0] * math.prod(module.weight.shape[2:])
            spread = math.sqrt(2 / fan_out)
            error = 4 * spread / math.sqrt(2 * module.weight.numel())
            assert abs(module.weight.std().item() - spread) < error, name
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()


def test_ir_tiny_is_tiny() -> None:
    assert sum(parameter.numel() for parameter in build_backbone("ir_tiny").parameters()) < 300_000


def test_unknown_name_reports_valid_and_nearest_names() -> None:
    with pytest.raises(InputError, match=r"'ir_se50'.*ir_18, .*Did you mean 'ir_se_50'"):
        build_backbone("ir_se50")


# Auxiliary features


@pytest.mark.parametrize("name", ["ir_tiny", "iresnet_tiny", "mobilefacenet"])
def test_auxiliary_features_are_orthogonal_to_the_last_layer(name: str) -> None:
    plain, backbone = with_weights_by_rule(name), with_weights_by_rule(name)
    backbone.spec = backbone.spec.with_auxiliary(24)
    D = plain.spec.embedding_size
    assert (backbone.spec.embedding_size, backbone.spec.with_auxiliary(0)) == (D + 24, plain.spec)
    pixels = plain.spec.normalise(some_images(3))
    with torch.no_grad():
        embedding, norm = plain(pixels)
        found, same_norm = backbone(pixels)
        features, hidden = plain.features_and_hidden(pixels)
        own, auxiliary = split_auxiliary(found, 24)
        assert torch.equal(plain.features(pixels), features)
        torch.testing.assert_close(own, embedding)
        torch.testing.assert_close(same_norm, norm)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
        # Along its directions the last layer's features do not move; across them the auxiliary values does
        # not.
        weight, bias = backbone.auxiliary_layer()
        torch.testing.assert_close(auxiliary, hidden @ weight.T + bias, rtol=1e-3, atol=1e-3)
        before, last = backbone.last_layers()
        scale = before.weight.double().repeat_interleave(hidden.shape[1] // len(before.weight))
        standard = weight.double() * scale
        torch.testing.assert_close(standard @ standard.T, torch.eye(24).double(), atol=1e-5, rtol=0)
        read = last.weight.double() * scale
        assert (read @ standard.T).abs().max() < 1e-5 * read.norm(dim=1).max()
        # The shift of the BatchNorm is the middle: a face of average channels has no auxiliary values.
        shift = before.bias.repeat_interleave(hidden.shape[1] // len(before.weight))
        assert (shift @ weight.T + bias).abs().max() < 1e-4


def test_auxiliary_layer_follows_weights_and_copies() -> None:
    first, second = with_weights_by_rule("ir_tiny"), build_backbone("ir_tiny").eval()
    for backbone in (first, second):
        backbone.spec = backbone.spec.with_auxiliary(8)
    pixels = first.spec.normalise(some_images(2))
    with torch.no_grad():
        wanted, _ = first(pixels)
        second(pixels)
        second.load_state_dict(first.state_dict())
        for backbone in (second, copy.deepcopy(second), fused_for_inference(first)):
            torch.testing.assert_close(backbone(pixels)[0], wanted, rtol=1e-4, atol=1e-6)
        second.spec = second.spec.with_auxiliary(5)
        assert second(pixels)[0].shape == (2, 64 + 5)


def test_unavailable_auxiliary_features_are_rejected() -> None:
    backbone = build_backbone("mobilefacenet")
    backbone.spec = backbone.spec.with_auxiliary(385)
    with pytest.raises(InputError, match="384 auxiliary features, asked for 385"):
        backbone.auxiliary_layer()
    with pytest.raises(InputError, match="auxiliary_size must be at least 0"):
        backbone.spec.with_auxiliary(-1)
    unknown = FixedFeatures(torch.ones(1, 64))
    unknown.spec = unknown.spec.with_auxiliary(4)
    with pytest.raises(InputError, match="its last layer is not known"):
        unknown(torch.zeros(1, 3, 112, 112))
    assert "auxiliary_size" not in BACKBONES["ir_50"].to_dict()
    assert BackboneSpec.from_dict(backbone.spec.to_dict()) == backbone.spec


def test_auxiliary_features_hardly_change_cosines() -> None:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.nn.functional.normalize(torch.randn(50, 128, generator=generator), dim=1)
    embedding[7] = 0
    auxiliary = torch.randn(50, 256, generator=generator)
    joined = append_auxiliary(embedding, auxiliary)
    assert (joined @ joined.T - embedding @ embedding.T).abs().max() < 0.01
    assert not joined[7].any()
    own, found = split_auxiliary(joined.half().float(), 256)
    torch.testing.assert_close(own, embedding, atol=1e-3, rtol=0)
    shown = torch.arange(50) != 7
    torch.testing.assert_close(found[shown], auxiliary[shown], atol=0.01, rtol=0.01)
    assert split_auxiliary(embedding, 0)[0] is embedding

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from backbones.illumination import normalise_illumination
from backbones.spec import BackboneSpec
from net import BACKBONES, build_backbone
from runtime.errors import InputError

PUBLISHED = ["ir_18", "ir_34", "ir_50", "ir_101", "ir_152", "ir_200", "ir_se_50"]


def some_images(count: int, size: int = 112) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(3)).byte()


@pytest.mark.parametrize("name", BACKBONES)
def test_each_backbone_has_the_spec_of_its_name(name: str) -> None:
    with torch.device("meta"):
        assert build_backbone(name).spec is BACKBONES[name]
    assert BACKBONES[name].name == name


def test_published_backbones_have_their_channel_order() -> None:
    insightface = [*(f"iresnet{depth}" for depth in (18, 34, 50, 100, 200)), "iresnet_tiny"]
    for name in (*PUBLISHED, "ir_tiny"):
        assert BACKBONES[name].channel_order == "BGR"
    for name in (*insightface, "mbf", "mbf_large", "mobilefacenet"):
        assert BACKBONES[name].channel_order == "RGB"


def test_normalise_scales_pixels_and_keeps_the_memory_format() -> None:
    pixels = torch.tensor([0, 127, 128, 255], dtype=torch.uint8).view(1, 1, 2, 2).expand(2, 3, 2, 2)
    values = BACKBONES["ir_50"].normalise(pixels)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values[0, 0].flatten(), torch.tensor([-1, -1 / 255, 1 / 255, 1]))
    mobile = BACKBONES["mobilefacenet"].normalise(pixels)
    torch.testing.assert_close(mobile[1, 2].flatten(), torch.tensor([-127.5, -0.5, 0.5, 127.5]) / 128)
    images = some_images(2).to(memory_format=torch.channels_last)
    assert BACKBONES["ir_50"].normalise(images).is_contiguous(memory_format=torch.channels_last)


def test_normalised_images_are_rejected() -> None:
    spec = BACKBONES["ir_50"]
    with pytest.raises(InputError, match=r"must be uint8 with values 0\.\.255, found torch\.float32"):
        spec.normalise(spec.normalise(some_images(1)))


@given(
    shape=st.lists(st.integers(0, 4), min_size=2, max_size=4),
    name=st.sampled_from(["ir_50", "mobilefacenet"]),
)
def test_from_rgb_transposes_and_orders_channels(shape: list[int], name: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    before = images.copy()
    ordered = BACKBONES[name].from_rgb(images)
    channels = [0, 1, 2] if name == "mobilefacenet" else [2, 1, 0]
    for position, channel in enumerate(channels):
        np.testing.assert_array_equal(ordered[..., position, :, :], images[..., channel])
    assert ordered.flags.c_contiguous
    assert ordered.flags.writeable
    ordered[...] = 0
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize(
    "images", [np.zeros((4, 4, 3), np.float32), np.zeros((3, 4, 4), np.uint8), np.zeros((4, 3), np.uint8)]
)
def test_from_rgb_rejects_other_arrays(images: Any) -> None:
    with pytest.raises(
        InputError, match=r"expected RGB images as uint8 of shape \(\.\.\., height, width, 3\)"
    ):
        BACKBONES["ir_50"].from_rgb(images)


@given(
    st.builds(
        BackboneSpec,
        name=st.text(),
        embedding_size=st.integers(1, 4096),
        channel_order=st.sampled_from(["BGR", "RGB"]),
        mean=st.floats(-300, 300),
        std=st.floats(0.01, 300),
        norm_is_quality=st.booleans(),
        input_size=st.integers(1, 448),
    )
)
def test_spec_survives_json(spec: BackboneSpec) -> None:
    assert BackboneSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("channel_order", "GBR", "channel_order is BGR or RGB, not 'GBR'"),
        ("std", 0.0, "std finite and positive"),
        ("mean", float("nan"), "mean must be finite"),
        ("embedding_size", 0, "must be positive"),
        ("embedding_size", "512", "embedding_size must be of type int, found '512'"),
        ("norm_is_quality", 1, "norm_is_quality must be of type bool, found 1"),
        ("colour", "BGR", "unknown field 'colour'"),
    ],
)
def test_invalid_spec_is_rejected(field: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BackboneSpec.from_dict(BACKBONES["ir_50"].to_dict() | {field: value})


def test_missing_fields_are_reported_together() -> None:
    with pytest.raises(InputError, match=r"(?s)channel_order is missing.*mean is missing.*std is missing"):
        BackboneSpec.from_dict({"name": "ir_50", "embedding_size": 512, "norm_is_quality": True})


def test_former_field_names_are_accepted() -> None:
    spec = replace(BACKBONES["ir_50"], input_size=96, alignment=(1.0,) * 10, normalises_illumination=True)
    spec = spec.with_auxiliary(8)
    values = spec.to_dict()
    for current, former in (
        ("input_size", "image_size"),
        ("alignment", "template"),
        ("auxiliary_size", "context_size"),
        ("normalises_illumination", "levels_light"),
    ):
        values[former] = values.pop(current)
    assert BackboneSpec.from_dict(values) == spec


def test_illumination_normalisation_is_invariant_to_gain_and_offset() -> None:
    rng = np.random.default_rng(0)
    face = torch.from_numpy(rng.normal(120, 30, (1, 3, 112, 112)).clip(60, 190)).float()
    darker = face * 0.4 + 15
    flat = torch.full((1, 3, 112, 112), 7.0)
    normalised = normalise_illumination(torch.cat([face, darker, flat]))
    torch.testing.assert_close(normalised[0], normalised[1], atol=1e-3, rtol=0)
    inner = normalised[0, :, 20:100, 20:92]
    assert inner.mean().item() == pytest.approx(118, abs=1)
    assert inner.std(correction=0).item() == pytest.approx(52, abs=2)
    assert normalised.min() >= 0
    assert normalised.max() <= 255
    # No contrast to bring back: grey, not noise.
    torch.testing.assert_close(normalised[2], torch.full((3, 112, 112), 118.0))


def test_spec_normalises_illumination_first() -> None:
    plain = BACKBONES["mobilefacenet"]
    spec = replace(plain, normalises_illumination=True)
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    expected = (normalise_illumination(images.float()) - spec.mean) / spec.std
    torch.testing.assert_close(spec.normalise(images), expected)
    assert BackboneSpec.from_dict(spec.to_dict()) == spec
    assert BackboneSpec.from_dict(plain.to_dict()) == plain
    assert "normalises_illumination" not in plain.to_dict()

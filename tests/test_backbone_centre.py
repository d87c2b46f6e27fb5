"""The vector that the features of all people share is subtracted wherever features are made, and stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backbones.auxiliary import split_auxiliary, subtract_centre
from backbones.cosine_statistics import CosineStatistics
from backbones.preprocessing import describe_preprocessing
from backbones.spec import BackboneSpec
from features.extract import identity_of
from features.options import EmbedOptions
from net import BACKBONES, Backbone, build_backbone
from runtime.errors import InputError
from weights import StoredAggregator, load_backbone, prepare_for, save_weights

STATISTICS = CosineStatistics(0.01, 0.15, 0.7, 0.11, 400, 200)


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return build_backbone("ir_tiny").eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 112, 112, generator=torch.Generator().manual_seed(1))


def centre_of(features: Tensor) -> tuple[float, ...]:
    return tuple(features.mean(0).tolist())


@pytest.mark.parametrize("auxiliary", [0, 8])
@torch.no_grad()
def test_the_centre_is_subtracted_from_the_embedding_alone(
    backbone: Backbone, images: Tensor, auxiliary: int
) -> None:
    backbone.set_auxiliary(auxiliary)
    plain, norms = backbone(images)
    own, behind = split_auxiliary(plain, auxiliary)
    centre = centre_of(own)
    backbone.spec = replace(backbone.spec, centre=centre)
    found, found_norms = backbone(images)
    rest = own - torch.tensor(centre)
    embedding, found_behind = split_auxiliary(found, auxiliary)
    torch.testing.assert_close(embedding, rest / rest.norm(dim=1, keepdim=True), atol=2e-5, rtol=0)
    torch.testing.assert_close(found_behind, behind, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found_norms, norms)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(6))


def test_a_feature_of_zeros_stays_one() -> None:
    assert not subtract_centre(torch.zeros(2, 64), (0.1,) * 64, 0).any()


@torch.no_grad()
def test_centre_and_statistics_go_with_the_weights(
    backbone: Backbone, images: Tensor, tmp_path: Path
) -> None:
    centre = centre_of(backbone(images)[0])
    backbone.spec = replace(backbone.spec, centre=centre, cosine_statistics=STATISTICS)
    wanted = backbone(images)[0]
    save_weights(tmp_path / "a.safetensors", backbone)
    torch.save(
        {"state_dict": backbone.state_dict(), "backbone_spec": backbone.spec.to_dict()}, tmp_path / "b.ckpt"
    )
    for name in ("a.safetensors", "b.ckpt"):
        back = load_backbone(tmp_path / name)
        assert back.spec == backbone.spec
        torch.testing.assert_close(back(images)[0], wanted)


@torch.no_grad()
def test_an_export_subtracts_the_centre_once(backbone: Backbone, images: Tensor, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from weights.export import export_backbone

    centre = centre_of(backbone(images)[0])
    backbone.spec = replace(backbone.spec, centre=centre, cosine_statistics=STATISTICS)
    export_backbone(backbone, tmp_path / "backbone.onnx")
    back = load_backbone(tmp_path / "backbone.onnx")
    assert back.spec.cosine_statistics == STATISTICS
    torch.testing.assert_close(back(images)[0], backbone(images)[0], atol=1e-4, rtol=0)
    # A graph of others, measured by us.
    again = replace(back.spec, centre=tuple(back(images)[0].mean(0).tolist()))
    back.spec = again
    assert not torch.allclose(back(images)[0], backbone(images)[0], atol=1e-3)


def test_features_of_another_centre_are_other_features(backbone: Backbone) -> None:
    spec = backbone.spec
    names = [None, (0.1,) * 64, (0.1,) * 63 + (0.1001,)]
    described, identities = [], []
    for centre in names:
        backbone.spec = replace(spec, centre=centre)
        described.append(describe_preprocessing(backbone.spec, alignment="a", flip="none", precision="32"))
        identities.append(identity_of(backbone, {"faces": "x"}, EmbedOptions()))
    assert "centre" not in described[0]  # What was made before stays what it was.
    assert len({str(each) for each in described}) == len({str(each) for each in identities}) == 3
    backbone.spec = replace(spec, cosine_statistics=STATISTICS)
    assert identity_of(backbone, {"faces": "x"}, EmbedOptions()) == identities[0]


def test_backbone_is_prepared_for_an_aggregator(backbone: Backbone, tmp_path: Path) -> None:
    spec, centre = backbone.spec, (0.1,) * 64
    module = nn.Linear(2, 2)
    stored = tmp_path / "aggregator.safetensors"
    backbone.spec = replace(spec, centre=centre, cosine_statistics=STATISTICS)
    save_weights(stored, backbone, StoredAggregator("mean", {}, module), aggregator_alone=True)
    backbone.spec = spec
    prepare_for(backbone, [stored])
    assert (backbone.spec.centre, backbone.spec.cosine_statistics) == (centre, STATISTICS)
    save_weights(stored, _with(backbone, spec), StoredAggregator("mean", {}, module), aggregator_alone=True)
    prepare_for(_with(backbone, replace(spec, centre=centre, cosine_statistics=STATISTICS)), [stored])
    # Statistics of features with the centre subtracted say nothing of those without.
    assert backbone.spec == spec
    prepare_for(_with(backbone, replace(spec, cosine_statistics=STATISTICS)), [stored])
    assert backbone.spec.cosine_statistics == STATISTICS


@pytest.mark.parametrize("centre", [(0.1,) * 63, (1.0,) * 64, (float("nan"),) * 64, [0.1] * 64, "x"])
def test_invalid_centre_is_refused(centre: Any) -> None:
    with pytest.raises(InputError, match="centre"):
        replace(BACKBONES["ir_tiny"], centre=centre)


def _with(backbone: Backbone, spec: BackboneSpec) -> Backbone:
    backbone.spec = spec
    return backbone


def test_old_spec_is_read_as_unmeasured() -> None:
    values = BACKBONES["ir_tiny"].to_dict()
    assert not {"centre", "cosine_statistics"} & set(values)
    spec = BackboneSpec.from_dict(values)
    assert (spec.centre, spec.is_measured) == (None, False)
    assert np.isclose(spec.cosine_limit(0.95), 0.95)

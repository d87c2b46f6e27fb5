"""An aggregator is used with the features, weights and subjects that it is for, by every command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backbones.spec import BackboneSpec, centre_digest
from coreset import build_aggregator
from net import Backbone, build_backbone
from recognition.model import load_model
from runtime.errors import InputError
from weights import (
    StoredAggregator,
    check_feature_size,
    check_not_trained_on,
    check_precomputed,
    check_same_backbone,
    default_pooling,
    default_quality,
    load_aggregator,
    load_backbone,
    name_digest,
    norm_warning,
    open_weights,
    prepare_for,
    reading,
    save_weights,
)

OPTIONS = {"embedding_size": 64}


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return build_backbone("ir_tiny").eval()


def stored_aggregator() -> StoredAggregator:
    return StoredAggregator("learned_map", OPTIONS, build_aggregator("learned_map", OPTIONS))


@pytest.fixture
def whole(backbone: Backbone, tmp_path: Path) -> Path:
    """Backbone and aggregator in one file, which states no digest."""
    save_weights(tmp_path / "whole.safetensors", backbone, stored_aggregator())
    return tmp_path / "whole.safetensors"


def test_backbone_and_aggregator_come_from_one_reading(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    original = reading._read_safetensors
    monkeypatch.setattr(reading, "_read_safetensors", lambda path: read.append(path) or original(path))
    assert load_model(whole, device="cpu").aggregator_name == "learned_map"
    assert read == [whole]
    opened = open_weights(whole)
    assert load_aggregator(opened) is not None
    assert load_backbone(opened).spec.name == "ir_tiny"
    assert read == [whole, whole]


def test_an_aggregator_beside_another_backbone_is_refused(whole: Path, tmp_path: Path) -> None:
    other = build_backbone("ir_tiny").eval()
    with pytest.raises(InputError, match=r"whole\.safetensors.*another backbone"):
        prepare_for(other, [whole])
    save_weights(tmp_path / "other.safetensors", other)
    with pytest.raises(InputError, match=r"whole\.safetensors.*another backbone"):
        load_model(tmp_path / "other.safetensors", whole, device="cpu")


@pytest.mark.parametrize(
    "change", [{"channel_order": "RGB"}, {"mean": 0.0}, {"std": (1.0, 2.0, 3.0)}, {"alignment": (30.0,) * 10}]
)
def test_an_aggregator_of_other_pixel_values_is_refused(
    backbone: Backbone, whole: Path, change: dict[str, object]
) -> None:
    prepare_for(backbone, [whole])
    backbone.spec = replace(backbone.spec, **change)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=next(iter(change))):
        prepare_for(backbone, [whole])


def test_precomputed_features_are_compared_with_what_the_file_states(whole: Path) -> None:
    aggregator, spec = load_aggregator(whole), load_backbone(whole).spec
    assert aggregator is not None
    identity = {"illumination_normalisation": "none", "auxiliary_size": "0"}
    check_precomputed(aggregator, whole, {}, 64, "x")
    check_precomputed(aggregator, whole, identity, 64, "x")
    for change, named in (
        ({"illumination_normalisation": "mean 118"}, "illumination"),
        ({"auxiliary_size": "8"}, r"\b8\b"),
        ({"centre": (digest := centre_digest((0.1,) * 64))}, digest),
        ({"backbone_sha256": "0" * 64}, "0000"),
    ):
        with pytest.raises(InputError, match=named):
            check_precomputed(aggregator, whole, identity | change, 64, "x")
    with pytest.raises(InputError, match=r"64.*128"):
        check_precomputed(aggregator, whole, identity, 128, "x")
    with pytest.raises(InputError, match=r"64.*128"):
        check_feature_size(aggregator, 2 * spec.embedding_size, 0, whole)


@pytest.mark.parametrize(
    ("read", "size", "auxiliary_size", "fits"),
    [
        (0, 64, 0, True),
        (0, 70, 6, True),
        (0, 70, 0, False),
        (6, 70, 6, True),
        (6, 70, 0, False),
        (6, 71, 7, False),
    ],
)
def test_aggregators_without_auxiliary_features_take_rows_with_any(
    read: int, size: int, auxiliary_size: int, fits: bool
) -> None:
    aggregator = build_aggregator("weighted_coreset", {"embedding_size": 64 + read, "auxiliary_size": read})
    if fits:
        check_feature_size(aggregator, size, auxiliary_size, "a.ckpt")
    else:
        with pytest.raises(InputError, match=r"a\.ckpt"):
            check_feature_size(aggregator, size, auxiliary_size, "a.ckpt")


def test_evaluated_subjects_of_the_training_are_refused(backbone: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    about = {"trained_subjects": f"{name_digest('anna')} {name_digest('cem')}"}
    save_weights(path, backbone, stored_aggregator(), about)
    check_not_trained_on(frozenset({"bea"}), {"learned_map": path}, "MINE")
    with pytest.raises(InputError, match=r"a\.safetensors.*learned_map.* 1 of the 2 .*MINE.*anna"):
        check_not_trained_on(frozenset({"anna", "bea"}), {"learned_map": path}, "MINE")


@pytest.mark.parametrize(
    ("norm_is_quality", "quality", "pooling", "warns"),
    [(True, "norm", "norm_weighted", False), (None, "norm", "mean", True), (False, "learned", "mean", True)],
)
def test_the_norm_weighs_faces_only_where_it_is_a_quality(
    backbone: Backbone, norm_is_quality: bool | None, quality: str, pooling: str, warns: bool
) -> None:
    spec: BackboneSpec = replace(backbone.spec, norm_is_quality=norm_is_quality)
    assert default_quality(spec) == quality
    assert default_pooling(spec) == pooling
    assert bool(norm_warning(spec, "norm")) == warns
    assert not norm_warning(spec, "learned")


@pytest.mark.parametrize(("digest", "wanted"), [(None, "b" * 64), ("a" * 64, None), ("a" * 64, "a" * 64)])
def test_backbones_that_may_be_the_same_are_accepted(digest: str | None, wanted: str | None) -> None:
    check_same_backbone("--cohort C", digest, "the benchmark's", wanted, "Use one.")


def test_features_of_another_backbone_are_refused_with_both_digests() -> None:
    with pytest.raises(InputError, match=r"--cohort C.*aaaaaaaa.*bbbbbbbb.*Use one\."):
        check_same_backbone("--cohort C", "a" * 64, "the benchmark's", "b" * 64, "Use one.")

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from coreset import AGGREGATORS, FaceSets, build_aggregator
from net import build_backbone
from recognition.model import (
    FaceModel,
    aggregate_features,
    embed_images,
    embed_set,
    fingerprint_options,
    load_model,
)
from runtime.errors import InputError
from weights import load_aggregator, load_backbone, save_weights


def faces(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, 112, 112, 3), np.uint8)


def test_features_equal_the_backbones(model: FaceModel, checkpoint: Path) -> None:
    images = faces(5)
    features, norms = embed_images(replace(model, batch_size=2), images)
    backbone = load_backbone(checkpoint)
    with torch.inference_mode():
        expected, lengths = backbone(
            backbone.spec.normalise(torch.from_numpy(backbone.spec.from_rgb(images)))
        )
    assert np.abs(features - expected.numpy()).max() < 1e-5
    assert norms == pytest.approx(lengths[:, 0].numpy(), rel=1e-5)
    assert features.dtype == norms.dtype == np.float32


def test_set_is_aggregated_by_the_checkpoints_aggregator(model: FaceModel, checkpoint: Path) -> None:
    images = faces(7)
    found = embed_set(model, images)
    features, norms = embed_images(model, images)
    aggregator = load_aggregator(checkpoint)
    assert aggregator is not None
    sets = FaceSets.dense(torch.from_numpy(features)[None], torch.from_numpy(norms)[None])
    with torch.inference_mode():
        expected = aggregator.eval()(sets)
    assert np.abs(found.embedding - expected.embedding[0].numpy()).max() < 1e-5
    assert found.norm == pytest.approx(float(expected.norm[0]), rel=1e-4)
    assert found.picks.tolist() == expected.picks[0].tolist()
    assert found.weights is not None
    assert found.weights.sum() == pytest.approx(1, abs=1e-5)
    assert model.aggregator_name == "coreset"
    assert "trained aggregator 'coreset'" in model.about


def test_small_set_has_no_padded_picks(model: FaceModel) -> None:
    found = embed_set(model, faces(2))
    assert sorted(found.picks.tolist()) == [0, 1]


def test_backbone_without_aggregator_uses_norm_weighted(bare_model: FaceModel) -> None:
    images = faces(6)
    features, norms = embed_images(bare_model, images)
    found = embed_set(bare_model, images)
    mean = (features * norms[:, None]).sum(axis=0)
    assert np.abs(found.embedding - mean / np.linalg.norm(mean)).max() < 1e-5
    assert found.weights == pytest.approx(norms / norms.sum(), rel=1e-4)
    assert len(found.picks) == 0
    assert "norm_weighted" in bare_model.about
    assert "backbone only" in bare_model.about


def test_aggregator_from_another_file(bare_weights: Path, checkpoint: Path, model: FaceModel) -> None:
    joined = load_model(bare_weights, checkpoint, device="cpu")
    images = faces(5)
    assert np.abs(embed_set(joined, images).embedding - embed_set(model, images).embedding).max() < 1e-5
    assert joined.fingerprint == model.fingerprint


def test_pooling_replaces_trained_aggregator(checkpoint: Path) -> None:
    asked = load_model(checkpoint, aggregator="best_norm", device="cpu")
    images = faces(5)
    best = embed_images(asked, images)[1].argmax()
    assert embed_set(asked, images).picks.tolist() == [best]


def test_media_reach_the_aggregator(bare_weights: Path) -> None:
    asked = load_model(bare_weights, aggregator="media_mean", device="cpu")
    features, norms = embed_images(asked, faces(4))
    media = np.array([0, 0, 0, 1])
    sums = (features * norms[:, None]).astype(float)
    expected = sums[:3].mean(axis=0) + sums[3]
    found = aggregate_features(asked, features, norms, media)
    assert np.abs(found.embedding - expected / np.linalg.norm(expected)).max() < 1e-5


def test_flip_rule_fuses_horizontal_flips(bare_weights: Path) -> None:
    plain = load_model(bare_weights, device="cpu")
    flipped = load_model(bare_weights, device="cpu", flip="pre_norm_vector_add")
    images = faces(3)
    one, one_norm = embed_images(plain, images)
    two, two_norm = embed_images(plain, images[:, :, ::-1])
    expected = one * one_norm[:, None] + two * two_norm[:, None]
    found, norms = embed_images(flipped, images)
    assert np.abs(found * norms[:, None] - expected).max() < 1e-3
    assert load_model(bare_weights, device="cpu", flip="concat").embedding_size == 2 * plain.embedding_size


def test_doubled_norms_with_trained_aggregator_are_a_warning(checkpoint: Path) -> None:
    with pytest.warns(UserWarning, match="coreset.*norm_weighted_avg"):
        load_model(checkpoint, device="cpu", flip="pre_norm_vector_add")


def changed_weights(source: Path, folder: Path, key: str) -> Path:
    content = torch.load(source, weights_only=True)
    content["state_dict"][key] = content["state_dict"][key] * 1.001
    torch.save(content, folder / "changed.ckpt")
    return folder / "changed.ckpt"


def test_fingerprint_changes_with_everything_that_changes_descriptors(
    checkpoint: Path, bare_weights: Path, model: FaceModel, tmp_path: Path
) -> None:
    wider = torch.load(checkpoint, weights_only=True)
    wider["aggregator_options"] = wider["aggregator_options"] | {"num_heads": 4}
    torch.save(wider, tmp_path / "heads.ckpt")
    spec = torch.load(checkpoint, weights_only=True)
    spec["backbone_spec"]["channel_order"] = "RGB"
    torch.save(spec, tmp_path / "rgb.ckpt")
    (tmp_path / "a").mkdir()
    others = [
        load_model(checkpoint, device="cpu", flip="average"),
        load_model(checkpoint, aggregator="mean", device="cpu"),
        load_model(bare_weights, device="cpu"),
        load_model(tmp_path / "heads.ckpt", device="cpu"),
        load_model(tmp_path / "rgb.ckpt", device="cpu"),
        load_model(changed_weights(checkpoint, tmp_path, "model.input_layer.0.weight"), device="cpu"),
        load_model(changed_weights(checkpoint, tmp_path / "a", "aggregator.gamma"), device="cpu"),
    ]
    prints = {model.fingerprint, *(other.fingerprint for other in others)}
    assert len(prints) == len(others) + 1
    assert load_model(checkpoint, device="cpu", batch_size=3).fingerprint == model.fingerprint


def test_fingerprints_do_not_change_when_options_are_renamed() -> None:
    """Otherwise galleries and calibrations of earlier versions would be refused."""
    golden = json.loads((Path(__file__).parents[1] / "golden" / "fingerprint_options.json").read_text())
    assert golden.keys() == AGGREGATORS.keys()
    for name, (options, expected) in golden.items():
        assert fingerprint_options(build_aggregator(name, options)) == expected, name


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 112, 112, 3), np.float32),
        np.zeros((112, 112, 3), np.uint8),
        np.zeros((2, 3, 112, 112), np.uint8),
        np.zeros((2, 160, 160, 3), np.uint8),
    ],
)
def test_images_of_wrong_shape_or_dtype_are_refused(model: FaceModel, images: np.ndarray) -> None:
    with pytest.raises(InputError, match="aligned faces as uint8 RGB"):
        embed_images(model, images)


def test_no_faces(model: FaceModel) -> None:
    features, norms = embed_images(model, faces(0))
    assert features.shape == (0, model.embedding_size)
    assert norms.shape == (0,)
    with pytest.raises(InputError, match="without faces"):
        embed_set(model, faces(0))


def test_descriptors_that_are_not_finite_are_refused(model: FaceModel) -> None:
    """Finite weights can overflow."""
    features = np.eye(model.embedding_size, dtype=np.float32)[:3]
    damaged = copy.deepcopy(model)
    with torch.no_grad():
        next(each for each in damaged.aggregator.parameters() if each.ndim == 2).fill_(3e38)
    with pytest.raises(InputError, match="1 of 1 sets"):
        aggregate_features(damaged, features, np.ones(3, np.float32))


def test_load_model_errors_name_the_fault(bare_weights: Path, checkpoint: Path) -> None:
    with pytest.raises(InputError, match="--aggregator_weights"):
        load_model(bare_weights, aggregator="coreset", device="cpu")
    with pytest.raises(InputError, match="no aggregator"):
        load_model(checkpoint, bare_weights, device="cpu")
    with pytest.raises(InputError, match="norm_weighte"):
        load_model(bare_weights, aggregator="norm_weighte", device="cpu")
    with pytest.raises(InputError, match="trained with"):
        load_model(checkpoint, device="cpu", flip="concat")
    with pytest.raises(InputError) as fault:
        load_model(checkpoint, device="cpu", flip="sideways", batch_size=0)
    assert "sideways" in str(fault.value)
    assert "batch_size" in str(fault.value)


def test_norm_that_does_not_measure_quality_gives_no_weights(tmp_path: Path) -> None:
    backbone = build_backbone("ir_tiny").eval()
    names = {}
    for is_quality in (True, False):
        backbone.spec = replace(backbone.spec, norm_is_quality=is_quality)
        save_weights(tmp_path / f"{is_quality}.safetensors", backbone)
        model = load_model(tmp_path / f"{is_quality}.safetensors")
        names[is_quality] = model.aggregator_name, "not measure quality" in model.about
    assert names == {True: ("norm_weighted", False), False: ("mean", True)}

"""Training from features of a backbone whose features share a vector: measured, subtracted, recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from backbones.base import UnknownBackbone
from coreset import FaceSets, build_aggregator
from features.bank import FeatureBank, bank_of_rows, gather_batch, with_centre_of
from features.cache import with_cosines
from net import BACKBONES, Backbone, build_backbone
from runs.config_rules import resolve
from runs.coreset_stage import aggregator_options
from runs.saved_run import SavedRun
from runtime.errors import InputError
from validation.subjects import with_centre

PEOPLE, EACH, SIZE = 60, 4, 64


def planted(common: float) -> NDArray[np.float32]:
    """(N, D) unit rows of people, to which a vector of this length is added, as that of one person is."""
    rng = np.random.default_rng(0)
    people = unit(rng.standard_normal((PEOPLE, SIZE))).repeat(EACH, axis=0)
    faces = unit(people + 0.7 * unit(rng.standard_normal((PEOPLE * EACH, SIZE))))
    return unit(faces + common * unit(rng.standard_normal((1, SIZE)))).astype(np.float32)


def unit(rows: NDArray[Any]) -> NDArray[Any]:
    found: NDArray[Any] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def bank_of(features: NDArray[np.float32]) -> FeatureBank:
    labels = np.arange(PEOPLE).repeat(EACH)
    return bank_of_rows("planted", features, np.ones(len(features), np.float32), labels, None)


@pytest.fixture
def backbone() -> Backbone:
    return build_backbone("ir_tiny")


def options_of(backbone: Backbone, saved: SavedRun | None = None) -> dict[str, Any]:
    given = {"stage": "coreset", "features": "x.npz", "preset": "good"}
    return aggregator_options(resolve(given), backbone.spec, saved)


def test_a_shared_vector_is_measured_subtracted_and_recorded(backbone: Backbone) -> None:
    raw = bank_of(planted(2.0))
    bank = with_cosines(backbone, raw)
    statistics = backbone.spec.cosine_statistics
    assert statistics is not None
    assert abs(statistics.nonmated_mean) < 0.05
    assert (statistics.num_subjects, statistics.num_faces) == (PEOPLE, 2 * PEOPLE)
    assert bank.centre == backbone.spec.centre is not None
    assert bank.identity["centre"]
    assert bank.digest != raw.digest
    rows = np.arange(10)
    batch = gather_batch(bank, rows, np.array([0, 10]), np.zeros(1, np.int64), rows)
    own = raw.features[:10] - np.array(bank.centre)
    np.testing.assert_allclose(batch.features.numpy(), unit(own), atol=1e-5)
    np.testing.assert_allclose(bank.values(rows), batch.features)
    means = bank.clean_means()
    others = (means @ means.T)[np.triu_indices(PEOPLE, 1)]
    assert abs(np.median(others)) < 0.1
    # A run that goes on finds all of it in its checkpoint.
    again = build_backbone("ir_tiny")
    again.spec = type(again.spec).from_dict(backbone.spec.to_dict())
    assert with_centre_of(again.spec, raw).digest == bank.digest


def test_features_without_a_shared_vector_stay_as_they_are(backbone: Backbone) -> None:
    raw = bank_of(planted(0.0))
    bank = with_cosines(backbone, raw)
    assert backbone.spec.is_measured
    assert backbone.spec.centre is bank.centre is None
    assert bank.digest == raw.digest


def test_features_that_were_made_with_the_centre_are_not_centred_again(backbone: Backbone) -> None:
    bank = with_cosines(backbone, bank_of(planted(2.0)))
    rows = np.arange(PEOPLE * EACH)
    made = bank_of(bank.values(rows).numpy())
    np.testing.assert_array_equal(with_centre_of(backbone.spec, made).values(rows), made.features)


def test_too_few_subjects_leave_the_backbone_unmeasured(backbone: Backbone) -> None:
    bank = bank_of(planted(2.0)).of_subjects([str(number) for number in range(20)])
    assert with_cosines(backbone, bank).centre is None
    assert not backbone.spec.is_measured


def test_the_inlier_gate_starts_where_the_backbones_cosines_are(backbone: Backbone) -> None:
    assert not {"gate_start", "gate_steepness"} & set(options_of(backbone))
    unknown = UnknownBackbone(SIZE)
    with_cosines(unknown, bank_of(planted(2.0)), keep_centre=True)
    assert unknown.spec.centre is None
    options = options_of(unknown)
    assert options["gate_start"] > 0.8
    assert options["gate_steepness"] > 40
    assert 0.999 < options["copy_similarity"] < 1
    saved = SavedRun(Path("x"), 1, {}, {}, None, 1, None, None, (), {"gate_start": 0.5})
    assert options_of(unknown, saved)["gate_start"] == 0.5
    # Of a run that was started before backbones were measured.
    assert "gate_start" not in options_of(unknown, replace(saved, aggregator_options={}))


@torch.no_grad()
def test_gate_separates_impostors_of_a_raw_backbone() -> None:
    """Half of what is believed is at the limit; with the defaults all faces are believed alike."""
    features = planted(2.0)
    backbone = UnknownBackbone(SIZE)
    with_cosines(backbone, bank_of(features), keep_centre=True)
    rows = [0, 1, 2, 3, EACH]  # The last is somebody else.
    sets = FaceSets(torch.from_numpy(features[rows]), torch.ones(5), torch.tensor([0, 5]))
    measured = {key: value for key, value in options_of(backbone).items() if key != "embedding_size"}
    shares = {
        name: build_aggregator("weighted_coreset", {"embedding_size": SIZE, **options}).eval()(sets).weights
        for name, options in {"measured": measured, "default": {}}.items()
    }
    assert shares["measured"][4] < 0.5 * shares["default"][4]


@pytest.mark.parametrize("option", [{"gate_start": 1.0}, {"gate_steepness": 0.0}, {"copy_similarity": 1.5}])
def test_invalid_gate_is_refused(option: dict[str, float]) -> None:
    with pytest.raises(InputError, match="gate_start"):
        build_aggregator("weighted_coreset", {"embedding_size": 8, **option})


def test_specs_of_the_registry_have_no_centre() -> None:
    assert all(spec.centre is None and not spec.is_measured for spec in BACKBONES.values())


@pytest.mark.parametrize("norm_is_quality", [True, False])
def test_training_weights_faces_by_the_quality_of_the_spec(backbone: Backbone, norm_is_quality: bool) -> None:
    backbone.spec = replace(backbone.spec, norm_is_quality=norm_is_quality)
    assert options_of(backbone).get("quality", "norm") == ("norm" if norm_is_quality else "learned")
    given = {"stage": "coreset", "features": "x.npz", "preset": "good", "quality": "none"}
    assert aggregator_options(resolve(given), backbone.spec)["quality"] == "none"
    published = {"stage": "coreset", "features": "x.npz", "preset": "published"}
    assert aggregator_options(resolve(published), backbone.spec)["quality"] == "norm"


def test_a_cohort_is_without_the_centre_that_the_benchmarks_features_are_without(backbone: Backbone) -> None:
    raw = bank_of(planted(2.0))
    bank = with_cosines(backbone, raw)
    wanted = bank.identity["centre"]
    assert with_centre(raw, None, [backbone.spec]) is raw
    assert with_centre(raw, wanted, [None, BACKBONES["ir_tiny"], backbone.spec]).digest == bank.digest
    with pytest.raises(InputError, match="--weights"):
        with_centre(raw, wanted, [BACKBONES["ir_tiny"]])

"""Limits of cosine follow a backbone's own statistics."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backbones.cosine_statistics import REFERENCE, CosineStatistics, measure_cosines
from net import BACKBONES
from runtime.errors import InputError

# As measured on LFW with dlib's ResNet, with its common vector and without.
RAW = CosineStatistics(0.839, 0.034, 0.952, 0.015, 400, 200)
CENTRED = CosineStatistics(-0.003, 0.174, 0.697, 0.111, 400, 200)
POOR = CosineStatistics(0.3, 0.3, 0.4, 0.3, 400, 200)
EVERYWHERE = np.linspace(-1, 1, 401)


def test_reference_limits_are_unchanged() -> None:
    np.testing.assert_allclose([REFERENCE.limit(value) for value in EVERYWHERE[40:]], EVERYWHERE[40:])
    assert REFERENCE.difference(0.1) == pytest.approx(0.1)


@pytest.mark.parametrize("statistics", [RAW, CENTRED, POOR, replace(RAW, mated_mean=None, mated_std=None)])
def test_limits_are_monotone_and_map_both_means(statistics: CosineStatistics) -> None:
    limits = np.array([statistics.limit(value) for value in EVERYWHERE])
    assert (np.diff(limits) >= 0).all()
    assert limits.min() >= -1
    assert statistics.limit(1) == pytest.approx(1)
    assert statistics.limit(REFERENCE.nonmated_mean) == pytest.approx(statistics.nonmated_mean)
    assert statistics.limit(REFERENCE.mated[0]) == pytest.approx(statistics.mated[0])


def test_limits_keep_the_fraction_of_pairs() -> None:
    """Cosines that as many mated pairs of LFW reach as with MobileFaceNet at 0.95 and at 0.2."""
    assert RAW.limit(0.95) == pytest.approx(0.991, abs=0.003)
    assert CENTRED.limit(0.95) == pytest.approx(0.952, abs=0.004)
    assert RAW.limit(0.2) == pytest.approx(0.90, abs=0.01)
    assert 0.27 - 0.01 <= CENTRED.limit(0.2) <= 0.37


@pytest.mark.parametrize("known", [RAW, CENTRED])
def test_unknown_mated_statistics_are_extrapolated(known: CosineStatistics) -> None:
    unlabelled = replace(known, mated_mean=None, mated_std=None, num_subjects=None)
    assert unlabelled.mated == pytest.approx(known.mated, abs=0.012)
    assert "unknown" in unlabelled.text()


@pytest.mark.parametrize(
    "change",
    [
        {"nonmated_mean": math.nan},
        {"nonmated_std": 0.0},
        {"mated_mean": 0.5},
        {"mated_std": None},
        {"num_faces": 0},
        {"num_faces": 1.5},
        {"nonmated_mean": "0.8"},
    ],
)
def test_invalid_statistics_are_rejected(change: dict[str, Any]) -> None:
    values = {**RAW.to_dict(), **change}
    with pytest.raises(InputError, match="cosine statistics"):
        CosineStatistics.from_dict(values)


def test_spec_without_statistics_uses_the_reference() -> None:
    spec = BACKBONES["ir_tiny"]
    assert not spec.is_measured
    assert spec.cosine_limit(0.35) == 0.35
    assert spec.cosine_difference(0.1) == pytest.approx(0.1)
    measured = replace(spec, cosine_statistics=RAW)
    assert measured.is_measured
    assert measured.cosine_limit(0.35) == RAW.limit(0.35)
    assert measured.cosine_difference(0.1) == pytest.approx(0.1 * 0.113 / 0.688)


def subjects_with_a_shared_vector(count: int, each: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Mated cosines of about 0.67 and non-mated of about 0, before a vector is added."""
    rng = np.random.default_rng(0)
    faces = rng.standard_normal((count, 1, 128)) + 0.7 * rng.standard_normal((count, each, 128))
    faces = faces.reshape(-1, 128) + 3 * rng.standard_normal((1, 128))
    unit = faces / np.linalg.norm(faces, axis=1, keepdims=True)
    return unit.astype(np.float32), np.arange(count).repeat(each)


@pytest.mark.parametrize(("count", "each"), [(60, 2), (900, 2), (40, 50)])
def test_statistics_are_measured_without_the_shared_vector(count: int, each: int) -> None:
    features, labels = subjects_with_a_shared_vector(count, each)
    centre, found = measure_cosines(features, labels)
    assert centre is not None
    assert found.nonmated_mean == pytest.approx(0, abs=0.03)
    assert found.mated_mean == pytest.approx(0.67, abs=0.03)
    assert found.num_faces <= 1000
    kept, raw = measure_cosines(features, labels, keep_common=True)
    assert kept is None
    assert raw.nonmated_mean > 0.7
    assert measure_cosines(features, labels) == (centre, found)


def test_unlabelled_faces_give_similar_statistics() -> None:
    features, labels = subjects_with_a_shared_vector(200, 2)
    centre, known = measure_cosines(features, labels)
    other, unknown = measure_cosines(features, None)
    np.testing.assert_allclose(np.array(other), np.array(centre), atol=1e-5)
    assert unknown.nonmated_mean == pytest.approx(known.nonmated_mean, abs=0.01)
    assert (unknown.mated_mean, unknown.num_subjects) == (None, None)


def test_too_few_subjects_are_rejected() -> None:
    with pytest.raises(InputError, match="29 subjects"):
        measure_cosines(*subjects_with_a_shared_vector(29, 4))

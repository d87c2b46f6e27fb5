"""Limits of cosine follow a backbone's own statistics."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cosine_statistics import REFERENCE, CosineStatistics
from errors import InputError
from net import BACKBONES

# As measured on LFW with dlib's ResNet, with its common vector and without.
RAW = CosineStatistics(0.839, 0.034, 0.952, 0.015, 400, 200)
CENTRED = CosineStatistics(-0.003, 0.174, 0.697, 0.111, 400, 200)
POOR = CosineStatistics(0.3, 0.3, 0.4, 0.3, 400, 200)
EVERYWHERE = np.linspace(-1, 1, 401)


def test_limits_of_the_reference_stay_as_they_are() -> None:
    np.testing.assert_allclose([REFERENCE.limit(value) for value in EVERYWHERE[40:]], EVERYWHERE[40:])
    assert REFERENCE.difference(0.1) == pytest.approx(0.1)


@pytest.mark.parametrize("statistics", [RAW, CENTRED, POOR, replace(RAW, mated_mean=None, mated_std=None)])
def test_limits_rise_with_the_reference_and_meet_both_means(statistics: CosineStatistics) -> None:
    limits = np.array([statistics.limit(value) for value in EVERYWHERE])
    assert (np.diff(limits) >= 0).all()
    assert limits.min() >= -1
    assert statistics.limit(1) == pytest.approx(1)
    assert statistics.limit(REFERENCE.nonmated_mean) == pytest.approx(statistics.nonmated_mean)
    assert statistics.limit(REFERENCE.mated[0]) == pytest.approx(statistics.mated[0])


def test_limits_lie_where_as_many_pairs_are_as_with_the_reference() -> None:
    """Cosines that as many mated pairs of LFW reach as with MobileFaceNet at 0.95 and at 0.2."""
    assert RAW.limit(0.95) == pytest.approx(0.991, abs=0.003)
    assert CENTRED.limit(0.95) == pytest.approx(0.952, abs=0.004)
    assert RAW.limit(0.2) == pytest.approx(0.90, abs=0.01)
    assert 0.27 - 0.01 <= CENTRED.limit(0.2) <= 0.37


@pytest.mark.parametrize("known", [RAW, CENTRED])
def test_unknown_mated_pairs_are_assumed_and_not_claimed(known: CosineStatistics) -> None:
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
def test_impossible_statistics_are_refused(change: dict[str, Any]) -> None:
    values = {**RAW.to_dict(), **change}
    with pytest.raises(InputError, match="cosine statistics"):
        CosineStatistics.from_dict(values)


def test_a_spec_without_statistics_is_taken_for_the_reference() -> None:
    spec = BACKBONES["ir_tiny"]
    assert not spec.is_measured
    assert spec.cosine_limit(0.35) == 0.35
    assert spec.cosine_difference(0.1) == pytest.approx(0.1)
    measured = replace(spec, cosine_statistics=RAW)
    assert measured.is_measured
    assert measured.cosine_limit(0.35) == RAW.limit(0.35)
    assert measured.cosine_difference(0.1) == pytest.approx(0.1 * 0.113 / 0.688)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from backbones.cosine_statistics import CosineStatistics
from recognition.enrolment.checks import check_set
from recognition.enrolment.limits import EnrolmentLimits
from recognition.model import FaceModel
from recognition.records import AggregatedSet
from runtime.errors import InputError

Make = Callable[..., AggregatedSet]


D = 64


def person(count: int, seed: int = 0, spread: float = 0.7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=D) + spread * rng.normal(size=(count, D))


RAW = CosineStatistics(0.84, 0.04, 0.95, 0.016, 400, 200)


def shared(features: np.ndarray) -> np.ndarray:
    """Unit features plus a common vector, which raises non-mated cosines to 0.84."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    rows = unit + 2.3 * np.eye(D)[0]
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@pytest.mark.parametrize("values", [{"duplicate": 1.5}, {"outlier": float("nan")}, {"poor": -0.1}])
def test_limits_outside_their_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"--{next(iter(values))}"):
        EnrolmentLimits(**values)


def test_limits_follow_the_cosine_statistics(model: FaceModel, make_set: Make) -> None:
    """With a common vector in all features, the default limits take all photos for near-duplicates."""
    clean = make_set(model, shared(person(6, spread=0.6)))
    mixed = make_set(model, shared(np.concatenate([person(6), person(1, seed=9)])))
    halves = make_set(model, shared(np.concatenate([person(4), person(4, seed=9)])))
    assert check_set(model, clean, EnrolmentLimits()).num_groups == 1
    measured = replace(model, spec=replace(model.spec, cosine_statistics=RAW))
    assert check_set(measured, clean, EnrolmentLimits()).num_groups == 0
    assert not check_set(measured, clean, EnrolmentLimits()).is_contaminated
    assert check_set(measured, mixed, EnrolmentLimits()).outlier.tolist() == [False] * 6 + [True]
    assert check_set(measured, halves, EnrolmentLimits()).num_identities == 2
    # A given limit is not mapped.
    assert check_set(measured, clean, EnrolmentLimits(duplicate=0.9)).num_groups == 1


def test_poor_limit_follows_the_spread_of_norms(model: FaceModel, make_set: Make) -> None:
    aggregated = replace(make_set(model, person(6)), norms=np.array([10, 10, 10, 10, 10, 5.5], np.float32))
    limits = EnrolmentLimits()
    assert check_set(model, aggregated, limits).poor.tolist() == [False] * 5 + [True]
    wide = replace(model.spec, cosine_statistics=replace(RAW, log_norm_std=0.3))
    assert not check_set(replace(model, spec=wide), aggregated, limits).poor.any()

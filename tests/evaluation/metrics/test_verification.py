"""Rates at false accept rates, folds and 1:N figures, against scikit-learn and obvious loops; with ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from evaluation.metrics.verification import (
    fold_accuracy,
    rate_key,
    roc_curve,
    roc_points,
    tar_at_far,
)
from runtime.errors import InputError

FARS = (0.0, 1e-6, 1e-3, 0.01, 0.05, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1.0)


@st.composite
def scored_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties or none, mated ones higher or not; at least one pair of each kind."""
    n = draw(st.integers(2, 80))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    is_mated = rng.random(n) < draw(st.sampled_from([0.05, 0.3, 0.5, 0.9]))
    is_mated[:2] = [True, False]
    levels = draw(st.sampled_from([1, 2, 4, 12, 10_000]))
    scores = (rng.integers(0, levels, n) + draw(st.sampled_from([0, 1, 3])) * is_mated) / levels - 0.5
    return scores.astype(draw(st.sampled_from([np.float32, np.float64]))), is_mated


def published_nearest(scores: np.ndarray, is_mated: np.ndarray, far: float) -> float:
    fpr, tpr, _ = sklearn_metrics.roc_curve(is_mated, scores)
    fpr, tpr = np.flipud(fpr), np.flipud(tpr)
    return float(tpr[min(zip(abs(fpr - far), range(len(fpr)), strict=True))[1]])


def strict_by_trying(scores: np.ndarray, is_mated: np.ndarray, far: float) -> float:
    thresholds = [*scores, np.inf]
    return max(
        float(np.mean(scores[is_mated] >= t)) for t in thresholds if np.mean(scores[~is_mated] >= t) <= far
    )


@settings(max_examples=300, deadline=None)
@given(scored_pairs())
def test_rates_are_those_of_scikit_learn_and_of_trying_every_threshold(
    pairs: tuple[np.ndarray, np.ndarray],
) -> None:
    scores, is_mated = pairs
    rates = tar_at_far(scores, is_mated, FARS)
    assert list(rates) == [rate_key(far) for far in FARS]
    for far in FARS:
        rate = rates[rate_key(far)]
        assert rate.nearest == published_nearest(scores, is_mated, far)
        assert rate.strict == strict_by_trying(scores, is_mated, far)
        assert np.mean(scores[is_mated] >= rate.threshold) == rate.strict
        assert np.sum(scores[~is_mated] >= rate.threshold) == rate.nonmated_above


@pytest.mark.parametrize("seed", range(4))
def test_rates_of_a_tail_are_those_of_the_whole(seed: int) -> None:
    # Long enough that only the top of the non-mated scores is looked at, and that this must grow.
    rng = np.random.default_rng(seed)
    is_mated = rng.random(6000) < 0.01
    scores = rng.normal(size=6000) + (0.5 + seed) * is_mated
    scores = scores.round(1) if seed % 2 else scores
    for far in (1e-6, 1e-3, 1e-2, 0.1):
        rate = tar_at_far(scores, is_mated, [far])[rate_key(far)]
        assert rate.nearest == published_nearest(scores, is_mated, far)
        assert rate.strict == strict_by_trying(scores, is_mated, far)


def test_the_published_rule_looks_as_far_down_as_it_must() -> None:
    # Between the first non-mated score and the mated ones at the bottom the ROC has no corner.
    scores, is_mated = np.arange(9000.0), np.arange(9000) < 3
    rate = tar_at_far(scores, is_mated, [1e-3, 0.6])
    assert rate["1e-03"].nearest == published_nearest(scores, is_mated, 1e-3) == 0.0
    assert rate["6e-01"].nearest == published_nearest(scores, is_mated, 0.6) == 1.0
    assert rate["6e-01"].strict == 0.0


@settings(max_examples=200, deadline=None)
@given(scored_pairs(), st.data())
def test_a_stretch_of_the_roc_knows_the_rate_or_says_that_it_does_not(
    pairs: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    scores, is_mated = pairs
    low, high = sorted(data.draw(st.tuples(st.sampled_from(list(scores)), st.sampled_from(list(scores)))))
    inside = (scores >= low) & (scores <= high)
    points = roc_points(
        scores[inside & ~is_mated],
        scores[inside & is_mated],
        nonmated=int(np.sum(~is_mated)),
        mated=int(np.sum(is_mated)),
        nonmated_above=int(np.sum(scores[~is_mated] > high)),
        mated_above=int(np.sum(scores[is_mated] > high)),
    )
    fars = np.linspace(0, 1, 61).tolist()
    whole = tar_at_far(scores, is_mated, fars)
    for far in fars:
        assert points.decide(far) in (None, whole[rate_key(far)])


@settings(max_examples=200, deadline=None)
@given(scored_pairs())
def test_the_area_is_scikit_learns_and_the_curve_meets_the_strict_rates(
    pairs: tuple[np.ndarray, np.ndarray],
) -> None:
    scores, is_mated = pairs
    curve = roc_curve(scores, is_mated)
    assert curve.auc == pytest.approx(sklearn_metrics.roc_auc_score(is_mated, scores), abs=1e-12)
    rates = tar_at_far(scores, is_mated, curve.far.tolist())
    assert [rate.strict for rate in rates.values()] == curve.tar.tolist()


def test_a_perfect_system_accepts_all_mated_pairs_and_no_other() -> None:
    rate = tar_at_far(np.array([0.9, 0.8, 0.1, 0.0]), np.array([True, True, False, False]), [1e-4])["1e-04"]
    assert (rate.strict, rate.nearest, rate.nonmated_above, rate.threshold) == (
        1.0,
        1.0,
        0,
        np.nextafter(0.1, 1),
    )


def test_where_nothing_may_be_accepted_the_threshold_is_finite_and_above_all() -> None:
    rate = tar_at_far(np.array([0.5, 0.5]), np.array([True, False]), [0.1])["1e-01"]
    assert rate.strict == 0.0
    assert 0.5 < rate.threshold < 0.6


@pytest.mark.parametrize(
    ("rate", "key"), [(1e-4, "1e-04"), (0.1, "1e-01"), (0.025, "2.5e-02"), (1, "1e+00"), (0, "0e+00")]
)
def test_rates_are_written_as_in_files(rate: float, key: str) -> None:
    assert rate_key(rate) == key


@pytest.mark.parametrize(
    ("scores", "is_mated", "said"),
    [
        ([0.1, 0.2], [True, True], "none of them non-mated"),
        ([0.1, 0.2], [False, False], "none of them mated"),
        ([0.1, np.nan], [True, False], "score 1 is nan"),
        ([0.1, np.inf], [True, False], "score 1 is inf"),
        ([0.1, 0.2], [True], "expected one of each"),
        ([], [], "none of them mated"),
    ],
)
def test_what_gives_no_rate_is_said(scores: list[float], is_mated: list[bool], said: str) -> None:
    with pytest.raises(InputError, match=said):
        tar_at_far(np.array(scores), np.array(is_mated, dtype=np.bool_), [0.1])
    with pytest.raises(InputError, match=said):
        roc_curve(np.array(scores), np.array(is_mated, dtype=np.bool_))


def test_a_rate_in_per_cent_is_refused() -> None:
    with pytest.raises(InputError, match="FAR 10: expected a fraction"):
        tar_at_far(np.array([0.1, 0.2]), np.array([True, False]), [10])


# ---------------------------------------------------------------------------------------------- folds


def slow_folds(distances: np.ndarray, is_mated: np.ndarray, folds: np.ndarray) -> tuple[list[float], float]:
    accuracies, chosen = [], []
    for fold in np.unique(folds):
        best, best_threshold = -1.0, 0.0
        for threshold in np.arange(0, 4, 0.01):
            right = (distances < threshold) == is_mated
            if np.mean(right[folds != fold]) > best:
                best, best_threshold = float(np.mean(right[folds != fold])), float(threshold)
        right = (distances < best_threshold) == is_mated
        accuracies.append(float(np.mean(right[folds == fold])))
        chosen.append(best_threshold)
    return accuracies, float(np.mean(chosen))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3, 10]), st.booleans())
def test_fold_accuracy_is_that_of_the_loop(seed: int, folds: int, on_thresholds: bool) -> None:
    rng = np.random.default_rng(seed)
    fold = rng.integers(0, folds, 60) * 5
    fold[:folds] = np.arange(folds) * 5
    is_mated = rng.random(60) < 0.5
    distances = np.clip(rng.normal(2, 0.7, 60) - is_mated, 0, 3.9)
    if on_thresholds:
        distances = np.arange(0, 4, 0.01)[(distances * 100).astype(int)]
    accuracies, threshold = slow_folds(distances, is_mated, fold)
    result = fold_accuracy(distances, is_mated, fold)
    assert result.accuracy == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert result.standard_error == pytest.approx(np.std(accuracies, ddof=1) / np.sqrt(folds), abs=1e-12)
    assert result.threshold == pytest.approx(threshold, abs=1e-12)


@pytest.mark.parametrize(
    ("distances", "folds", "said"),
    [
        ([0.1, 0.2], [0, 0], "two are needed"),
        ([0.1, np.nan], [0, 1], "not|nan"),
        ([0.1], [0, 1], "one of each"),
    ],
)
def test_folds_that_give_no_accuracy_are_said(distances: list[float], folds: list[int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        fold_accuracy(np.array(distances), np.array([True, False]), np.array(folds))


def test_folds_without_an_error_are_no_certainty() -> None:
    is_mated = np.arange(200) % 2 == 0
    found = fold_accuracy(np.where(is_mated, 0.5, 1.8), is_mated, np.arange(200) // 20)
    assert (found.accuracy, found.standard_error) == (1, 0)
    assert found.interval95 == pytest.approx((0.05 ** (1 / 200), 1))

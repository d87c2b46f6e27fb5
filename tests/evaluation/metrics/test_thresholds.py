"""One threshold for one false match rate, whoever asks for it; against trying every candidate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.metrics.calibration import calibrate
from evaluation.metrics.identification import tpir_at_fpir
from evaluation.metrics.score_normalisation import gains
from evaluation.metrics.search import Search
from evaluation.metrics.set_pairs import all_pairs
from evaluation.metrics.thresholds import (
    accepted_counts,
    allowed_counts,
    at_or_above,
    threshold_at,
    thresholds_of_counts,
    thresholds_of_falling,
)
from evaluation.metrics.verification import tar_at_far
from quality.error_versus_discard import FaceComparisons, discard_curves
from recognition.gallery.open_set import threshold_from_nonmated

RATES = [0.0, 0.01, 0.07, 0.1, 0.25, 0.3, 0.5, 0.9, 1.0]


def slow_threshold(nonmated: Sequence[float], rate: float) -> float:
    """The lowest of all candidates that keeps the rate: -inf, and the next number above every score."""
    count = len(nonmated)
    return min(
        candidate
        for candidate in [-math.inf, *(math.nextafter(score, math.inf) for score in nonmated)]
        if sum(score >= candidate for score in nonmated) / count <= rate
    )


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=40), st.sampled_from(RATES))
def test_threshold_is_the_lowest_at_the_target_rate(scores: list[int], rate: float) -> None:
    assert threshold_at(np.array(scores, float), rate) == slow_threshold(scores, rate)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 3)), min_size=1, max_size=20),
    st.sampled_from(RATES),
)
def test_weights_equal_repeated_scores(scores: list[tuple[int, int]], rate: float) -> None:
    values, weights = (np.array(column) for column in zip(*scores, strict=True))
    if weights.sum():
        repeated = np.repeat(values, weights).astype(float)
        assert threshold_at(values.astype(float), rate, weights) == slow_threshold(repeated.tolist(), rate)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 0.1, 0.5, 1e30]), min_size=1, max_size=30),
    st.sampled_from([np.float32, np.float64]),
    st.lists(st.sampled_from(RATES) | st.floats(0, 1), min_size=1, max_size=4),
)
def test_every_form_gives_the_threshold_of_trying_all(
    scores: list[float], dtype: type[np.float32] | type[np.float64], rates: list[float]
) -> None:
    """Ascending scores, and the highest of descending ones; in float64 whatever the dtype."""
    rising = np.sort(np.array(scores, dtype))
    expected = [slow_threshold(rising.astype(float).tolist(), rate) for rate in rates]
    counts = accepted_counts(rising, rates)
    assert thresholds_of_counts(rising, counts).tolist() == expected
    with np.errstate(over="ignore"):
        # The threshold above a score of -inf is outside float32.
        assert counts.tolist() == [np.count_nonzero(at_or_above(rising, at)) for at in expected]
    falling, highest = rising[::-1].astype(float), 1 + len(rising) // 2
    found = thresholds_of_falling(
        falling[:highest], np.arange(1, highest + 1), rates, total=len(rising)
    ).tolist()
    reaches = [highest / len(rising) > rate for rate in rates]
    assert found == [at if reach else -math.inf for at, reach in zip(expected, reaches, strict=True)]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=4), st.sampled_from(RATES) | st.floats(0, 1))
def test_allowed_counts_are_the_largest_at_the_target_rate(totals: list[int], rate: float) -> None:
    slow = [max(c for c in range(total + 1) if c == 0 or c / total <= rate) for total in totals]
    assert allowed_counts(np.array(totals), rate).tolist() == slow


def test_rates_are_compared_as_quotients() -> None:
    assert 0.07 * 100 != 7
    assert 0.29 * 100 < 29
    for rate, accepted in ((0.07, 7), (0.29, 29)):
        assert (np.arange(100.0) >= threshold_at(np.arange(100.0), rate)).sum() == accepted


def test_float32_scores_are_compared_in_float32() -> None:
    scores = np.random.default_rng(0).random(100).astype(np.float32)
    assert (scores >= threshold_at(scores, 0.1)).sum() == 10


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from([5, 40, 10_000]))
def test_all_metrics_share_the_threshold_of_the_same_scores(seed: int, levels: int) -> None:
    """Ten subjects compared pairwise and once with themselves, by everything that sets a threshold."""
    rng = np.random.default_rng(seed)
    faces = np.repeat(np.arange(10), 2)
    similarity = rng.integers(0, levels, (20, 20)) / levels
    similarity = np.triu(similarity, 1) + np.triu(similarity, 1).T
    pairs = all_pairs(similarity, faces, np.ones(20, np.int64))
    scores, mated = pairs.scores, pairs.is_mated
    others, rate = scores[~mated], 0.25
    expected = slow_threshold(others.tolist(), rate)
    calibrated = calibrate(pairs, [rate], replicates=2)[0].rates["2.5e-01"]
    verified = tar_at_far(scores, mated, [rate])["2.5e-01"]
    rejected = discard_curves(FaceComparisons(faces, similarity), {"q": rng.random(20)}, rate, replicates=2)
    found = Search(
        np.append(np.ones(mated.sum(), np.int64), np.zeros(len(others), np.int64)),
        np.append(scores[mated], np.full(len(others), -np.inf)),
        np.append(np.full(mated.sum(), -np.inf), others),
    )
    identified = tpir_at_fpir(found, [rate])["0.25"]
    for threshold in (
        calibrated.threshold,
        verified.threshold,
        rejected.threshold,
        identified.threshold,
    ):
        assert threshold == expected
    fnmr = float((scores[mated] < expected).mean())
    gained = gains(pairs, scores, [rate], replicates=2)["2.5e-01"].before
    assert [calibrated.fnmr, 1 - verified.strict, 1 - identified.tpir, gained] == pytest.approx([fnmr] * 4)


def test_open_set_search_shares_the_threshold() -> None:
    rows = np.random.default_rng(3).normal(size=(250, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    gallery, nonmated = rows[:50], rows[50:]
    found = threshold_from_nonmated(nonmated, gallery, 0.07)
    best = (nonmated.astype(np.float64) @ gallery.T.astype(np.float64)).astype(np.float32).max(axis=1)
    assert found.threshold == threshold_at(best, 0.07)
    assert found.false_positives == 14

"""Exact intervals of counts, against scipy.stats and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binomtest

from evaluation.metrics.binomial import exact_interval95, folds_interval95, threshold_rate_interval95


@pytest.mark.parametrize(("count", "trials"), [(1, 20), (7, 28), (27, 28), (300, 1000)])
def test_interval_is_clopper_pearson(count: int, trials: int) -> None:
    expected = binomtest(count, trials).proportion_ci(0.95, "exact")
    assert exact_interval95(count, trials) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("trials", [1, 20, 28, 1000])
def test_none_and_all_follow_the_rule_of_three(trials: int) -> None:
    low, high = exact_interval95(0, trials)
    # With this rate, none of the trials fails in one sample of twenty.
    assert (low, (1 - high) ** trials) == (0, pytest.approx(0.05))
    assert exact_interval95(trials, trials) == pytest.approx((1 - high, 1))
    assert trials < 100 or high == pytest.approx(3 / trials, rel=0.01)


def test_rate_above_an_order_statistic_is_beta() -> None:
    rng = np.random.default_rng(0)
    for accepted, trials in ((0, 10), (5, 100), (30, 60)):
        next_scores = np.sort(1 - rng.random((20_000, trials)), axis=1)[:, accepted]
        assert beta.fit(next_scores, floc=0, fscale=1)[:2] == pytest.approx(
            (accepted + 1, trials - accepted), rel=0.05
        )
        low, high = threshold_rate_interval95(accepted, trials)
        inside = (next_scores >= low) & (next_scores <= high)
        assert inside.mean() == pytest.approx(0.95 if accepted else 0.975, abs=0.006)


def test_folds_have_student_intervals_unless_all_are_equal() -> None:
    folds = np.array([0.9, 0.95, 1.0, 0.95])
    error = folds.std(ddof=1) / 2
    # 3.182: Student's t, three degrees of freedom.
    low, high = folds_interval95(folds, 76, 80)
    assert (low, high) == pytest.approx((0.95 - 3.182446 * error, 1.0), abs=1e-6)
    assert folds_interval95(np.ones(10), 600, 600) == pytest.approx((0.05 ** (1 / 600), 1))
    assert folds_interval95(np.full(10, 0.9), 540, 600) == exact_interval95(540, 600)

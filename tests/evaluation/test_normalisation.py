from __future__ import annotations

import numpy as np
import pytest

from errors import InputError
from evaluation.calibration import ScoredPairs, all_pairs
from evaluation.metrics import tar_at_far
from evaluation.normalisation import adaptive_snorm, cohort_lengths, cohort_statistics, compared, gains


def test_statistics_are_those_of_the_nearest() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 40))
    mean, deviation = cohort_statistics(scores, 7)
    for row in range(5):
        nearest = sorted(scores[row])[-7:]
        assert mean[row] == pytest.approx(np.mean(nearest))
        assert deviation[row] == pytest.approx(np.std(nearest))


def test_normalisation_is_symmetric_and_as_written_in_the_paper() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(6, 8))
    cohort = rng.normal(size=(30, 8))
    mean, deviation = cohort_statistics(features @ cohort.T, 10)
    found = adaptive_snorm(
        features @ features.T, (mean[:, None], deviation[:, None]), (mean[None], deviation[None])
    )
    assert np.allclose(found, found.T)
    score = features[2] @ features[4]
    expected = ((score - mean[2]) / deviation[2] + (score - mean[4]) / deviation[4]) / 2
    assert found[2, 4] == pytest.approx(expected)


def test_copies_of_one_descriptor_in_the_cohort_stay_finite() -> None:
    mean, deviation = cohort_statistics(np.ones((2, 30)), 10)
    assert np.isfinite(adaptive_snorm(np.eye(2), (mean, deviation), (mean, deviation))).all()


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_scores_of_lengths_are_cosines_over_the_mean_nearness_of_both() -> None:
    rng = np.random.default_rng(3)
    # All lean one way, as blurred faces do, some more than others.
    features = unit(rng.normal(size=(9, 16)) + rng.uniform(0, 4, (9, 1)))
    cohort = unit(rng.normal(size=(41, 16)) + 1)
    scaled = features * cohort_lengths(features, cohort, top=12)[:, None]
    nearness = [np.mean(sorted(float(row @ other) for other in cohort)[-12:]) for row in features]
    for first, second in ((0, 1), (4, 8)):
        expected = features[first] @ features[second] / np.sqrt(nearness[first] * nearness[second])
        assert scaled[first] @ scaled[second] == pytest.approx(expected, rel=1e-5)


def test_both_people_of_a_template_get_their_own_length() -> None:
    rng = np.random.default_rng(5)
    features, cohort = unit(rng.normal(size=(6, 8)) + 1), unit(rng.normal(size=(30, 8)) + 1)
    lengths = cohort_lengths(features, cohort)
    found = compared(features.reshape(3, 2, 8), cohort)
    np.testing.assert_allclose(np.linalg.norm(found, axis=2).ravel(), lengths, rtol=1e-6)
    assert compared(features, None) is features


def test_of_a_small_cohort_half_is_near_and_a_tiny_one_is_refused() -> None:
    rng = np.random.default_rng(4)
    features, cohort = unit(rng.normal(size=(3, 8)) + 1), unit(rng.normal(size=(30, 8)) + 1)
    assert np.array_equal(cohort_lengths(features, cohort), cohort_lengths(features, cohort, top=15))
    with pytest.raises(InputError, match="expected 20 or more"):
        cohort_lengths(features, cohort[:19])
    with pytest.raises(InputError, match="of 8 values"):
        cohort_lengths(features, cohort[:, :7])


def test_a_descriptor_far_from_all_people_counts_within_limits() -> None:
    features = -np.eye(4)[:1]
    cohort = unit(np.abs(np.random.default_rng(5).normal(size=(40, 4))))
    assert cohort_lengths(features, cohort)[0] == pytest.approx(10)


def hubs() -> tuple[ScoredPairs, np.ndarray]:
    """Pairs of sets of which some are near to everybody, and the same scores with that taken away."""
    rng = np.random.default_rng(2)
    subjects = np.repeat(np.arange(50), 3)
    own = subjects[:, None] == subjects[None]
    noise = rng.normal(size=own.shape) * 0.1
    clean = own + (noise + noise.T) / 2
    hub = rng.choice([0.0, 0.8], len(subjects))
    sizes = np.ones(len(subjects), np.int64)
    plain = all_pairs(clean + hub[:, None] + hub[None], subjects, sizes)
    return plain, all_pairs(clean, subjects, sizes).scores


def test_the_gain_is_measured_on_the_same_pairs() -> None:
    pairs, better = hubs()
    found = gains(pairs, better, [1e-2], replicates=40)["1e-02"]
    for scores, fnmr in ((pairs.scores, found.before), (better, found.after)):
        tar = tar_at_far(scores, pairs.is_mated, [1e-2])["1e-02"].strict
        assert fnmr == pytest.approx(1 - tar)
    assert found.before > 0.3
    assert found.after < 0.01
    assert found.difference95[1] < 0
    worse = gains(
        ScoredPairs(better, pairs.first, pairs.second, pairs.first_group, pairs.second_group),
        pairs.scores,
        [1e-2],
        replicates=40,
    )["1e-02"]
    assert worse.difference95[0] > 0


def test_without_mated_pairs_there_is_no_gain() -> None:
    pairs, better = hubs()
    others = pairs.only(~pairs.is_mated)
    with pytest.raises(InputError, match="no pair of sets of one person"):
        gains(others, better[~pairs.is_mated], [1e-2])

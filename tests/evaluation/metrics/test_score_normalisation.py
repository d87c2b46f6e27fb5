from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evaluation.metrics.score_normalisation import METHODS, ScoreNormalisation, compared, gains
from evaluation.metrics.search import search
from evaluation.metrics.set_pairs import SetPairs, all_pairs
from evaluation.metrics.template_pairs import verify
from evaluation.metrics.verification import tar_at_far
from runtime.errors import InputError


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def leaning(count: int, size: int = 16, seed: int = 3) -> np.ndarray:
    """Descriptors that all lean one way, as those of blurred faces do, some more than others."""
    rng = np.random.default_rng(seed)
    return unit(rng.normal(size=(count, size)) + rng.uniform(0, 4, (count, 1)))


def slow_score(method: str, x: np.ndarray, y: np.ndarray, cohort: np.ndarray, top: int) -> float:
    """As the papers write it."""
    sides = [np.array(sorted(float(each @ other) for other in cohort)[-top:]) for each in (x, y)]
    if method == "local_scaling":
        nearness = [max(float(side.mean()), 0.01) for side in sides]
        return float(x @ y / np.sqrt(nearness[0] * nearness[1]))
    return float(np.mean([(x @ y - side.mean()) / side.std() for side in sides]))


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_the_papers(method: str) -> None:
    features, cohort = leaning(9), unit(np.random.default_rng(0).normal(size=(41, 16)) + 1)
    first, second = ScoreNormalisation(method, cohort, 12).sides(features)
    found = first @ second.T
    expected = [[slow_score(method, x, y, cohort, 12) for y in features] for x in features]
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    np.testing.assert_allclose(found, found.T, rtol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_verification_and_search_compare_normalised_scores(method: str) -> None:
    rng = np.random.default_rng(1)
    subjects = np.repeat(np.arange(12), 3)
    features = unit(np.repeat(rng.normal(size=(12, 16)), 3, axis=0) + leaning(36)).astype(np.float32)
    cohort = unit(rng.normal(size=(30, 16)) + 1).astype(np.float32)
    normalisation = ScoreNormalisation.with_cohort(method, cohort)
    first, second = compared(features, normalisation)
    rows, columns = np.triu_indices(36, 1)
    mated = subjects[rows] == subjects[columns]
    expected = np.array(
        [slow_score(method, features[i], features[k], cohort, 15) for i, k in zip(rows, columns, strict=True)]
    )
    found = verify(first, rows, columns, mated, [0.1], second_descriptors=second)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4, atol=1e-4)
    assert found.rates["1e-01"].strict == tar_at_far(expected, mated, [0.1])["1e-01"].strict
    searched = search(first[:6], second[6:], subjects[:6], subjects[6:])
    best = [max(slow_score(method, x, y, cohort, 15) for y in features[6:]) for x in features[:6]]
    np.testing.assert_allclose(searched.other, best, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_both_people_of_a_template_are_normalised_by_themselves(method: str) -> None:
    features, cohort = leaning(6, 8), unit(np.random.default_rng(5).normal(size=(30, 8)) + 1)
    normalisation = ScoreNormalisation.with_cohort(method, cohort)
    for alone, both in zip(
        compared(features, normalisation), compared(features.reshape(3, 2, 8), normalisation), strict=True
    ):
        assert np.array_equal(alone, both.reshape(6, -1))
    assert compared(features, None) == (features, features)


def test_of_a_small_cohort_half_is_near_and_a_tiny_one_is_refused() -> None:
    cohort = leaning(30, 8)
    assert ScoreNormalisation.with_cohort("as_norm", cohort).top == 15
    assert ScoreNormalisation.with_cohort("as_norm", cohort, 7).top == 7
    with pytest.raises(InputError, match="expected 20 or more"):
        ScoreNormalisation.with_cohort("as_norm", cohort[:19])
    with pytest.raises(InputError, match="of 7 values"):
        ScoreNormalisation.with_cohort("as_norm", cohort).sides(leaning(3, 7))
    with pytest.raises(InputError, match="'s_norm': expected one of local_scaling, as_norm"):
        ScoreNormalisation.with_cohort("s_norm", cohort)


@pytest.mark.parametrize("method", METHODS)
def test_scores_stay_finite_far_from_all_people_and_beside_copies_of_one(method: str) -> None:
    cohort = unit(np.abs(np.random.default_rng(5).normal(size=(40, 4))))
    for others in (cohort, np.repeat(cohort[:1], 40, axis=0)):
        first, second = ScoreNormalisation.with_cohort(method, others).sides(-np.eye(4))
        assert np.isfinite(first @ second.T).all()
    if method == "local_scaling":
        first, _ = ScoreNormalisation.with_cohort(method, cohort).sides(-np.eye(4)[:1])
        assert np.linalg.norm(first) == pytest.approx(10)


def hubs() -> tuple[SetPairs, np.ndarray]:
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
    worse = gains(replace(pairs, scores=better), pairs.scores, [1e-2], replicates=40)["1e-02"]
    assert worse.difference95[0] > 0


def test_without_mated_pairs_there_is_no_gain() -> None:
    people = all_pairs(np.eye(30), np.arange(30), np.ones(30, np.int64))
    with pytest.raises(InputError, match="mated"):
        gains(people, people.scores, [1e-2])

"""Bootstrap over subjects, against explicit lists of drawn subjects and their pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.metrics import bootstrap as intervals
from evaluation.metrics.bootstrap import (
    PairBootstrap,
    ProbeBootstrap,
    difference_interval95,
    draw_subjects,
    interval95,
    rate_interval95,
)
from evaluation.metrics.identification import cmc, tpir_at_fpir
from evaluation.metrics.search import search_similarity
from evaluation.metrics.verification import rate_key, tar_at_far
from runtime.errors import InputError

FARS = (1e-6, 0.01, 0.1, 0.5, 1.0)


@st.composite
def scored_subjects(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and second subject of each pair and its score, with ties; both kinds of pairs."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    S, n = draw(st.integers(2, 12)), draw(st.integers(4, 300))
    first, second = rng.integers(0, S, n), rng.integers(0, S, n)
    second[: n // 3] = first[: n // 3]
    first[0], second[0], first[1], second[1] = 0, 0, 0, S - 1
    levels = draw(st.sampled_from([3, 20, 10_000]))
    scores = (rng.integers(0, levels, n) + levels // 3 * (first == second)) / levels
    return first, second, scores.astype(np.float32)


def explicit_tar(
    first: np.ndarray, second: np.ndarray, scores: np.ndarray, drawn: np.ndarray, far: float
) -> float:
    """One replicate with every pair written out as often as its drawn subjects bring it in."""
    is_mated = first == second
    times = np.where(is_mated, drawn[first], drawn[first].astype(int) * drawn[second])
    scores, is_mated = np.repeat(scores, times), np.repeat(is_mated, times)
    if is_mated.all() or not is_mated.any():
        return np.nan
    return tar_at_far(scores, is_mated, [far])[rate_key(far)].strict


@settings(max_examples=60, deadline=None)
@given(scored_subjects(), st.sampled_from([2, 128]))
def test_replicates_are_the_rates_of_pairs_written_out(
    case: tuple[np.ndarray, np.ndarray, np.ndarray], chunk: int
) -> None:
    first, second, scores = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "_CHUNK", chunk)
        bootstrap = PairBootstrap(first, second, first == second, replicates=12, seed=3)
        rates = bootstrap.tar(scores, FARS)
    drawn = draw_subjects(1 + max(first.max(), second.max()), replicates=12, seed=3)
    expected = [[explicit_tar(*case, drawn[:, r], far) for far in FARS] for r in range(12)]
    np.testing.assert_array_equal(rates, np.array(expected))


@pytest.mark.parametrize("seed", range(3))
def test_a_threshold_far_below_the_usual_one_is_still_found(seed: int) -> None:
    # Few subjects, of whom one has all the high scores: in draws without it the tail is empty.
    rng = np.random.default_rng(seed)
    first, second = (side.ravel() for side in np.indices((6, 6)).repeat(200, axis=1))
    scores = rng.normal(size=len(first)) + 5 * ((first == 0) | (second == 0)) + (first == second)
    bootstrap = PairBootstrap(first, second, first == second, replicates=20, seed=seed)
    drawn = draw_subjects(6, replicates=20, seed=seed)
    expected = [explicit_tar(first, second, scores, drawn[:, r], 1e-3) for r in range(20)]
    np.testing.assert_array_equal(bootstrap.tar(scores, [1e-3])[:, 0], expected)


def test_draws_are_with_replacement_and_follow_the_seed() -> None:
    drawn = draw_subjects(50, replicates=40, seed=1)
    assert (drawn.sum(axis=0) == 50).all()
    assert drawn.max() > 1
    assert (drawn == 0).any()
    assert (drawn == draw_subjects(50, replicates=40, seed=1)).all()
    assert (drawn != draw_subjects(50, replicates=40, seed=2)).any()


def test_many_draws_of_one_subject_are_counted_right(monkeypatch: pytest.MonkeyPatch) -> None:
    # 20 x 30 does not fit the small integers that are used otherwise.
    class Draws:
        def multinomial(self, *_: object, **__: object) -> np.ndarray:
            return np.array([[20, 30]])

    monkeypatch.setattr(intervals.np.random, "default_rng", lambda _: Draws())
    first, second = np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1])
    bootstrap = PairBootstrap(first, second, first == second, replicates=1)
    assert bootstrap.total.tolist() == [1200]
    assert bootstrap.tar(np.array([0.9, 0.8, 0.1, 0.2]), [0.0, 0.5]).tolist() == [[0.4, 1.0]]


def test_the_interval_of_subjects_is_wider_than_that_of_pairs() -> None:
    # Ten subjects with a level of their own and 400 mated pairs each: 4,000 pairs are no 4,000 experiments.
    rng = np.random.default_rng(0)
    first = np.repeat(np.arange(10), 400)
    second = np.concatenate([first, np.roll(first, 400)])
    first = np.concatenate([first, first])
    is_mated = first == second
    scores = rng.normal(size=10)[first] * is_mated + 0.3 * rng.normal(size=len(first)) + 0.5 * is_mated
    low, high = interval95(PairBootstrap(first, second, is_mated, seed=0).tar(scores, [0.01]))
    rate = tar_at_far(scores, is_mated, [0.01])["1e-02"].strict
    assert low[0] < rate < high[0]
    assert high[0] - low[0] > 5 * 2 * 1.96 * np.sqrt(rate * (1 - rate) / 4000)


def test_the_paired_interval_of_two_close_aggregators_is_narrow() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 40, 6000), rng.integers(0, 40, 6000)
    second[:2000] = first[:2000]
    is_mated = first == second
    scores = rng.normal(size=40)[first] * is_mated + rng.normal(size=6000) + is_mated
    bootstrap = PairBootstrap(first, second, is_mated, seed=0)
    one, other = (bootstrap.tar(s, [0.01]) for s in (scores, scores + 0.02 * rng.normal(size=6000)))
    assert np.array_equal(one, bootstrap.tar(scores, [0.01]))
    low, high = interval95(one)
    paired_low, paired_high = interval95(other - one)
    assert (paired_high - paired_low) < (high - low) / 3


def test_labels_that_subjects_contradict_are_refused() -> None:
    with pytest.raises(InputError, match=r"1 pairs have a label .* pair 1: subjects 0 and 1, label 1"):
        PairBootstrap(np.array([0, 0, 0]), np.array([0, 1, 1]), np.array([True, True, False]))


def test_one_subject_gives_no_interval() -> None:
    with pytest.raises(InputError, match="two or more"):
        PairBootstrap(np.zeros(3, int), np.zeros(3, int), np.ones(3, bool))
    with pytest.raises(InputError, match="too few subjects"):
        interval95(np.array([[0.5, np.nan], [0.7, np.nan]]))
    low, high = interval95(np.array([[0.5], [np.nan], [0.7]]))
    assert 0.5 <= low[0] < high[0] <= 0.7


def test_rates_of_other_scores_are_refused() -> None:
    bootstrap = PairBootstrap(np.array([0, 0]), np.array([0, 1]), np.array([True, False]))
    with pytest.raises(InputError, match="one for each of 2 pairs"):
        bootstrap.tar(np.zeros(3), [0.1])
    with pytest.raises(InputError, match="fraction"):
        bootstrap.tar(np.zeros(2), [10])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 1000]))
def test_replicates_of_a_search_are_the_rates_of_probes_written_out(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    gallery, probes = np.arange(6), rng.integers(0, 10, 50)
    probes[:2] = [0, 9]
    similarity = (rng.integers(0, levels, (50, 6)) + levels // 3 * (probes[:, None] == gallery)) / levels
    found = search_similarity(similarity, probes, gallery)
    bootstrap = ProbeBootstrap(probes, replicates=10, seed=1)
    ranks, fpirs = [1, 3], [0.01, 0.1, 0.5, 1.0]
    closed, opened = bootstrap.cmc(found, ranks), bootstrap.tpir(found, fpirs)
    for number in range(10):
        again = np.repeat(np.arange(50), bootstrap.weights[:, number])
        drawn = search_similarity(similarity[again], probes[again], gallery)
        if not drawn.is_mated.any() or drawn.is_mated.all():
            continue
        assert closed[number].tolist() == pytest.approx(list(cmc(drawn, ranks).values()), abs=1e-12)
        assert opened[number].tolist() == [rate.tpir for rate in tpir_at_fpir(drawn, fpirs).values()]


def test_rates_of_few_people_are_covered_although_none_is_observed() -> None:
    """20 people with one comparison each: a third of all samples has no error, and 0 to 0 for a bootstrap."""
    people, rate, samples = 20, 0.05, 2_000
    rng = np.random.default_rng(0)
    covered = percentile = 0
    drawn = draw_subjects(people, replicates=200, seed=1).T.astype(float) / people
    for errors in rng.random((samples, people)) < rate:
        replicates = (drawn @ errors)[:, None]
        low, high = rate_interval95(replicates, [errors.mean()], people)
        covered += low[0] <= rate <= high[0]
        percentile += interval95(replicates)[1][0] >= rate
    assert covered / samples > 0.93
    assert percentile / samples < 0.7


@pytest.mark.parametrize("observed", [0.0, 1.0])
def test_a_rate_of_none_or_all_has_the_exact_interval_of_so_many_people(observed: float) -> None:
    low, high = rate_interval95(np.full((50, 1), observed), [observed], 20)
    distance = 0.05 ** (1 / 20)
    assert (low[0], high[0]) == pytest.approx((0, 1 - distance) if observed == 0 else (distance, 1))


def test_equal_decisions_on_few_people_are_no_proof_of_equality() -> None:
    same, other = np.full((50, 1), 1.0), np.random.default_rng(0).random((50, 1))
    low, high = difference_interval95(same - same, 20)
    assert (low[0], high[0]) == pytest.approx((0.05 ** (1 / 20) - 1, 1 - 0.05 ** (1 / 20)))
    assert np.array_equal(difference_interval95(same - other, 20), interval95(same - other))


def test_people_of_a_bootstrap_are_those_with_mated_comparisons() -> None:
    first, second = np.array([0, 1, 1, 2, 0]), np.array([0, 1, 1, 3, 1])
    assert PairBootstrap(first, second, first == second, replicates=2).mated_subjects == 2
    probes, gallery = np.array([7, 7, 8, 9]), np.array([7, 8])
    found = search_similarity(np.random.default_rng(0).random((4, 2)), probes, gallery)
    assert ProbeBootstrap(probes, replicates=2).mated_subjects(found) == 2

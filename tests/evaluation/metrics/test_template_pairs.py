"""Scores of pair lists and their rates: the fast way equals all scores in float64 and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.metrics import template_pairs
from evaluation.metrics.search import exact_products, rounding_of_products
from evaluation.metrics.template_pairs import pair_scores, verify
from evaluation.metrics.verification import (
    RocPoints,
    TarAtFar,
    few_scores_warnings,
    rate_key,
    roc_curve,
    tar_at_far,
)
from runtime.errors import InputError

FARS = (1e-6, 1e-3, 0.01, 0.1, 0.3, 1.0)


@st.composite
def pair_lists(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Descriptors and pairs, with copies (ties) and differences that only float64 sees."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    M, n, D = draw(st.integers(2, 40)), draw(st.integers(2, 400)), draw(st.sampled_from([2, 16, 40]))
    subjects = rng.integers(0, draw(st.sampled_from([2, 10])), M)
    spread = draw(st.sampled_from([0.0, 1e-5, 1e-4, 0.2, 1.0]))
    centres = rng.normal(size=(10, D))
    descriptors = centres[subjects] + spread * rng.normal(size=(M, D))
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    first, second = rng.integers(0, M, n), rng.integers(0, M, n)
    if draw(st.booleans()):
        first, second = np.minimum(first, M // 2), np.maximum(second, M // 2)
    is_mated = subjects[first] == subjects[second]
    is_mated[:2] = [True, False]
    return descriptors.astype(draw(st.sampled_from([np.float32, np.float64]))), first, second, is_mated


@settings(max_examples=200, deadline=None)
@given(pair_lists(), st.sampled_from([1, 3, 256]), st.booleans())
def test_rates_are_those_of_all_scores_in_float64(
    case: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], reach: int, small_blocks: bool
) -> None:
    descriptors, first, second, is_mated = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(template_pairs, "_FIRST_REACH", reach)
        if small_blocks:
            patch.setattr(template_pairs, "_BLOCK_BYTES", 700)
            patch.setattr(template_pairs, "_CHUNK_PAIRS", 13)
        found = verify(descriptors, first, second, is_mated, FARS)
    exact = exact_products(descriptors, descriptors, first, second)
    assert found.rates == tar_at_far(exact, is_mated, FARS)
    assert np.abs(found.scores - exact).max() <= rounding_of_products(descriptors, descriptors)
    assert found.curve.auc == roc_curve(found.scores, is_mated).auc


@settings(max_examples=60, deadline=None)
@given(pair_lists(), st.sampled_from([1, 256]))
def test_of_two_people_the_best_score_counts(
    case: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], reach: int
) -> None:
    one, first, second, is_mated = case
    descriptors = np.stack([one, one[::-1]], axis=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(template_pairs, "_FIRST_REACH", reach)
        found = verify(descriptors, first, second, is_mated, FARS)
    exact = np.array(
        [
            max(exact_products(descriptors[a], descriptors[b], [p], [q])[0] for p in (0, 1) for q in (0, 1))
            for a, b in zip(first, second, strict=True)
        ]
    )
    assert found.rates == tar_at_far(exact, is_mated, FARS)
    assert np.abs(found.scores - exact).max() <= rounding_of_products(one, one)


@pytest.mark.parametrize("reach", [1, 4])
@pytest.mark.parametrize("levels", [20, 1000])
@pytest.mark.parametrize("margin", [0.01, 0.04, 0.2])
@pytest.mark.parametrize("pairs", [20, 60, 300])
def test_scores_may_be_wrong_by_the_whole_margin(
    pairs: int, margin: float, levels: int, reach: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_pairs, "_FIRST_REACH", reach)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        is_mated = rng.random(pairs) < 0.3
        is_mated[:2] = [True, False]
        exact = (rng.integers(0, levels, pairs) / levels + 0.3 * is_mated).round(3)
        scores = (exact + 0.999 * margin * rng.choice([-1, -0.5, 0, 1], pairs)).astype(np.float32)
        fars = rng.permutation(np.linspace(0, 1, 23)).tolist()
        decisions = template_pairs._Decisions(
            scores, is_mated, np.sort(scores[is_mated]), np.sort(scores[~is_mated]), margin, exact.__getitem__
        )
        assert {rate_key(far): decisions.decide(far) for far in fars} == tar_at_far(exact, is_mated, fars)


@settings(max_examples=60, deadline=None)
@given(pair_lists())
def test_gathered_and_multiplied_scores_are_equal(
    case: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    descriptors, first, second, _ = case
    scores = []
    for worth in (0.0, np.inf):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(template_pairs, "_WORTH_A_MATRIX", worth)
            scores.append(pair_scores(descriptors, first, second))
    assert np.abs(scores[0] - scores[1]).max() <= 2 * rounding_of_products(descriptors, descriptors)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs were computed again, time after time."""
    counts: list[int] = []
    points = template_pairs._Decisions._points

    def counting(decisions: template_pairs._Decisions, lowest: float, highest: float) -> RocPoints:
        exact = decisions.exact
        decisions.exact = lambda pairs: counts.append(len(pairs)) or exact(pairs)
        try:
            return points(decisions, lowest, highest)
        finally:
            decisions.exact = exact

    monkeypatch.setattr(template_pairs._Decisions, "_points", counting)
    monkeypatch.setattr(template_pairs, "_FIRST_REACH", 16)
    return counts


def test_well_separated_scores_are_decided_without_looking_at_all(looked_at: list[int]) -> None:
    # All mated pairs lie above every other; the published rule then needs no score from the bulk.
    rng = np.random.default_rng(0)
    centres = np.eye(40)[np.repeat(np.arange(40), 5)] + 0.01 * rng.normal(size=(200, 40))
    first, second = (side.ravel() for side in np.indices((200, 200)))
    rate = verify(centres, first, second, first // 5 == second // 5, [0.1]).rates["1e-01"]
    assert rate.strict == rate.nearest == 1.0
    assert max(looked_at) < len(first) / 20


def test_few_mated_scores_in_the_bulk_are_found_at_once(looked_at: list[int]) -> None:
    rng = np.random.default_rng(0)
    descriptors = rng.normal(size=(200, 40))
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    first, second = (side.ravel() for side in np.indices((200, 200)))
    is_mated = (rng.permutation(40_000) < 5) & (first != second)
    rates = verify(descriptors, first, second, is_mated, [0.1]).rates
    assert rates == tar_at_far(exact_products(descriptors, descriptors, first, second), is_mated, [0.1])
    assert len(looked_at) <= 3
    assert sum(looked_at) < len(first) / 2


def test_float32_alone_would_be_wrong() -> None:
    """Guards the other tests: there are scores whose order float32 does not know, and they decide a rate."""
    descriptors = np.array([[1.0, 0.0], [0.6, 0.8], [0.6 + 2e-9, 0.8], [0.6 + 1e-9, 0.8]])
    first, second = np.zeros(3, np.int64), np.array([1, 2, 3])
    is_mated = np.array([True, False, False])
    scores = pair_scores(descriptors, first, second)
    assert len(set(scores.tolist())) == 1
    assert verify(descriptors, first, second, is_mated, [0.5]).rates["5e-01"].strict == 0.0
    is_mated = np.array([False, True, False])
    assert verify(descriptors, first, second, is_mated, [0.5]).rates["5e-01"].strict == 1.0


@pytest.mark.parametrize(
    ("rows", "said"), [([0, 3], "there are 3 descriptors"), ([-1, 0], "there are 3 descriptors")]
)
def test_rows_that_do_not_exist_are_refused(rows: list[int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        pair_scores(np.eye(3), np.array(rows), np.array([0, 1]))


def test_a_broken_descriptor_is_named_only_if_it_is_used() -> None:
    descriptors = np.eye(3)
    descriptors[2] = np.nan
    assert pair_scores(descriptors, np.array([0, 1]), np.array([1, 1])).tolist() == [0.0, 1.0]
    assert verify(descriptors, np.array([0, 1]), np.array([1, 1]), np.array([False, True]), [0.1]).rates
    with pytest.raises(InputError, match="descriptor 2 is not finite"):
        pair_scores(descriptors, np.array([0, 1]), np.array([1, 2]))


def test_lists_without_both_kinds_of_pairs_are_refused() -> None:
    for is_mated in (True, False):
        with pytest.raises(InputError, match="none of them"):
            verify(np.eye(3), np.array([0, 1]), np.array([1, 2]), np.full(2, is_mated), [0.1])


def test_rates_that_rest_on_few_scores_are_warned_of() -> None:
    rates = {
        "1e-06": TarAtFar(0.5, 0.5, 0.7, 1),
        "1e-05": TarAtFar(0.5, 0.5, 0.6, 9),
        "1e-04": TarAtFar(0.5, 0.5, 0.5, 10),
        "1e-07": TarAtFar(0.5, 0.5, 0.9, 0),
    }
    said = few_scores_warnings(rates)
    assert [sentence.split(",")[0] for sentence in said] == [
        "TAR@FAR 1e-06 rests on 1 non-mated score",
        "TAR@FAR 1e-05 rests on 9 non-mated scores",
        "TAR@FAR 1e-07 rests on no non-mated scores",
    ]

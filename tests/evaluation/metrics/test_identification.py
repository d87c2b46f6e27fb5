"""CMC and TPIR@FPIR against loops over thresholds, with ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.metrics.identification import cmc, tpir_at_fpir, tpir_curve
from evaluation.metrics.search import search_similarity
from runtime.errors import InputError


@st.composite
def searches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Similarities with ties, probes with and without a mate, one entry per subject or several."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    P, G = draw(st.integers(2, 30)), draw(st.integers(1, 15))
    gallery = np.arange(G) * 3 if draw(st.booleans()) else rng.integers(0, 6, G) * 3
    probes = rng.choice(np.append(gallery, [100, 101]), P)
    probes[:2] = [gallery[0], 100]
    levels = draw(st.sampled_from([2, 5, 1000]))
    gain = draw(st.sampled_from([0, 1, levels // 3]))
    similarity = (rng.integers(0, levels, (P, G)) + gain * (probes[:, None] == gallery)) / levels
    return similarity, probes, gallery


def slow_ranks(similarity: np.ndarray, probes: np.ndarray, gallery: np.ndarray) -> list[int | None]:
    ranks: list[int | None] = []
    for scores, subject in zip(similarity, probes, strict=True):
        if subject not in gallery:
            ranks.append(None)
            continue
        own = scores[gallery == subject].max()
        ranks.append(1 + sum(score >= own for score in scores[gallery != subject]))
    return ranks


@settings(max_examples=200, deadline=None)
@given(searches())
def test_cmc_counts_ties_as_errors(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    ranks = [rank for rank in slow_ranks(*case) if rank is not None]
    for rank, rate in cmc(search_similarity(*case), [1, 2, 5, 100]).items():
        assert rate == np.mean([found <= int(rank) for found in ranks])


def slow_tpir(case: tuple[np.ndarray, np.ndarray, np.ndarray], fpir: float) -> float:
    similarity, probes, gallery = case
    ranks = slow_ranks(*case)
    nonmated = [s.max() for s, rank in zip(similarity, ranks, strict=True) if rank is None]
    mated = [
        (s[gallery == subject].max(), rank)
        for s, subject, rank in zip(similarity, probes, ranks, strict=True)
        if rank is not None
    ]
    thresholds = [*similarity.ravel(), np.inf]
    return max(
        float(np.mean([rank == 1 and score >= t for score, rank in mated]))
        for t in thresholds
        if np.mean([score >= t for score in nonmated]) <= fpir
    )


@settings(max_examples=200, deadline=None)
@given(searches())
def test_tpir_equals_brute_force_over_thresholds(
    case: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    rates = tpir_at_fpir(search_similarity(*case), [0.01, 0.1, 0.5, 1.0])
    assert list(rates) == ["0.01", "0.1", "0.5", "1"]
    for key, rate in rates.items():
        assert rate.tpir == slow_tpir(case, float(key))
        assert rate.nonmated_above <= float(key) * sum(rank is None for rank in slow_ranks(*case))
    fpirs, tpirs = tpir_curve(search_similarity(*case))
    for fpir, tpir in zip(fpirs, tpirs, strict=True):
        assert tpir == slow_tpir(case, fpir)


def insightface_tpir(similarity: np.ndarray, probes: np.ndarray, gallery: np.ndarray, far: float) -> float:
    """The rule of InsightFace's evaluation_1N, re-created; one entry per subject."""
    own, others, nonmated = [], [], []
    for scores, subject in zip(similarity, probes, strict=True):
        if subject in gallery:
            own.append(scores[gallery == subject][0])
            others.append(scores[gallery != subject].max(initial=-np.inf))
        else:
            nonmated.append(scores.max())
    falling = np.sort(nonmated)[::-1]
    threshold = falling[max(int(len(falling) * far) - 1, 0)]
    return float(np.mean((np.array(own) > others) & (np.array(own) > threshold)))


@settings(max_examples=100, deadline=None)
@given(searches(), st.sampled_from([0.0, 0.1, 0.25, 0.5]))
def test_insightface_rule_accepts_one_nonmated_probe_less(
    case: tuple[np.ndarray, np.ndarray, np.ndarray], far: float
) -> None:
    similarity, probes, gallery = case
    unique = np.unique(gallery, return_index=True)[1]
    case = similarity[:, unique], probes, gallery[unique]
    nonmated = sum(rank is None for rank in slow_ranks(*case))
    # Theirs accepts what lies above the k-th non-mated score, ours what lies above the one after it.
    one_less = max(int(nonmated * far) - 1, 0) / nonmated
    assert (
        insightface_tpir(*case, far)
        == next(iter(tpir_at_fpir(search_similarity(*case), [one_less]).values())).tpir
    )


def test_tpir_without_nonmated_probes_raises() -> None:
    similarity, subjects = np.eye(3), np.arange(3)
    assert cmc(search_similarity(similarity, subjects, subjects), [1]) == {"1": 1.0}
    with pytest.raises(InputError, match="search each"):
        tpir_at_fpir(search_similarity(similarity, subjects, subjects), [0.1])


def test_cmc_without_mated_probes_raises() -> None:
    with pytest.raises(InputError, match="no probe's subject is in the gallery"):
        cmc(search_similarity(np.eye(3), np.arange(3), np.arange(3, 6)), [1])


def test_search_refuses_wrong_shapes_and_non_finite_similarities() -> None:
    with pytest.raises(InputError, match="3 probes x 2 gallery entries"):
        cmc(search_similarity(np.eye(3), np.arange(3), np.arange(2)), [1])
    with pytest.raises(InputError, match="not finite"):
        cmc(search_similarity(np.full((2, 2), np.nan), np.arange(2), np.arange(2)), [1])

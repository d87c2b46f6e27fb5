"""Search is exact whatever the blocks, and a threshold says what it stands on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta

from recognition.gallery import search as search_module
from recognition.gallery.search import (
    Matches,
    check_strangers,
    faiss_is_installed,
    search,
    threshold_from_gallery,
    threshold_from_strangers,
)
from runtime.errors import InputError

Floats = NDArray[np.float32]

needs_faiss = pytest.mark.skipif(not faiss_is_installed(), reason="FAISS is not installed (faiss-cpu)")


def unit(count: int, size: int = 16, seed: int = 0) -> Floats:
    rows = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def slow_search(probes: Floats, descriptors: Floats, top: int) -> tuple[list[list[int]], Floats]:
    scores = (probes.astype(np.float64)[:, None, :] * descriptors[None]).sum(axis=2).astype(np.float32)
    rows = [sorted(range(len(descriptors)), key=lambda row: (-each[row], row))[:top] for each in scores]
    return rows, np.stack([each[order] for each, order in zip(scores, rows, strict=True)])


def assert_as_slow(found: Matches, probes: Floats, descriptors: Floats, top: int) -> None:
    rows, scores = slow_search(probes, descriptors, top)
    assert found.rows.tolist() == rows
    np.testing.assert_array_equal(found.scores, scores)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 8), st.integers(1, 70), st.integers(0, 999))
def test_the_best_are_found_whatever_the_blocks(
    count: int, different: int, top: int, block: int, seed: int
) -> None:
    """With many copies, of which the lowest rows win."""
    rows = np.random.default_rng(seed).integers(0, different, count)
    descriptors, probes = unit(different, seed=seed)[rows], unit(5, seed=seed + 1)
    assert_as_slow(
        search(probes, descriptors, top, use_faiss=False, block_rows=block), probes, descriptors, top
    )


@needs_faiss
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 8), st.integers(0, 999))
def test_faiss_gives_the_same(count: int, different: int, top: int, seed: int) -> None:
    rows = np.random.default_rng(seed).integers(0, different, count)
    descriptors, probes = unit(different, seed=seed)[rows], unit(5, seed=seed + 1)
    assert_as_slow(search(probes, descriptors, top, use_faiss=True), probes, descriptors, top)


@pytest.mark.parametrize("use_faiss", [False, pytest.param(True, marks=needs_faiss)])
@pytest.mark.parametrize("noise", [1e-8, 3e-8])
@pytest.mark.parametrize("block", [7, 1000])
def test_what_a_float32_product_cannot_tell_apart_is_ordered_exactly(
    use_faiss: bool, noise: float, block: int
) -> None:
    noises = np.random.default_rng(1).standard_normal((600, 512)) * noise
    rows = unit(1, 512).astype(np.float64) + noises
    descriptors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    probes = unit(30, 512, seed=2)
    found = search(probes, descriptors, 5, use_faiss=use_faiss, block_rows=block)
    assert_as_slow(found, probes, descriptors, 5)


def test_many_probes_are_searched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "_MOST_PROBES_AT_ONCE", 7)
    monkeypatch.setattr(search_module, "_AGAIN_AT_ONCE", 5)
    descriptors, probes = unit(50), unit(30, seed=1)
    leave_out = np.arange(30)
    assert_as_slow(search(probes, descriptors, 4), probes, descriptors, 4)
    found = search(descriptors[:30], descriptors, 3, leave_out=leave_out)
    rows, _ = slow_search(descriptors[:30], descriptors, 4)
    assert found.rows.tolist() == [row[1:] for row in rows]


def test_who_is_alone_has_no_match_but_itself() -> None:
    descriptors = unit(1)
    found = search(descriptors, descriptors, 5, leave_out=np.zeros(1, np.int64))
    assert found.rows.tolist() == [[-1]]
    assert search(descriptors, descriptors, 5).rows.tolist() == [[0]]
    assert search(unit(0), descriptors, 5).rows.shape == (0, 1)
    assert search(descriptors, unit(0), 5).rows.shape == (1, 0)


def test_arrays_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="top 0"):
        search(unit(2), unit(3), 0)
    with pytest.raises(InputError, match="float32 probes"):
        search(unit(2, size=4), unit(3), 1)
    with pytest.raises(InputError, match="float64"):
        search(unit(2).astype(np.float64), unit(3), 1)  # type: ignore[arg-type]
    monkeypatch.setattr(search_module, "faiss_is_installed", lambda: False)
    with pytest.raises(InputError, match="faiss-cpu"):
        search(unit(2), unit(3), 1, use_faiss=True)


def test_the_threshold_lets_the_wanted_share_of_the_enrolled_pass() -> None:
    descriptors = unit(500)
    products = (descriptors.astype(np.float64) @ descriptors.T.astype(np.float64)).astype(np.float32)
    np.fill_diagonal(products, -1)
    best = products.max(axis=1)
    found = threshold_from_gallery(descriptors, 0.02)
    assert found.comparisons == 500
    # Best matches come in pairs: of the eleventh and its equal none may pass.
    assert found.alarms == (best >= np.float32(found.threshold)).sum() <= 10
    assert (best >= np.nextafter(np.float32(found.threshold), np.float32(-2))).sum() > 10
    assert found.interval95[0] < found.alarms / 500 < found.interval95[1]
    assert found.closest is not None
    first, second = found.closest
    assert products[first, second] == best.max()


@pytest.mark.parametrize(("people", "fpir"), [(300, 0.05), (150, 0.1)])
def test_interval_of_a_gallery_that_searches_itself_covers_the_true_rate(people: int, fpir: float) -> None:
    """95 % of the intervals hold the true rate; the Monte-Carlo deviation of that share is 0.5 points."""
    draws, values = 2_000, 32
    covered = 0
    for draw in range(draws):
        found = threshold_from_gallery(unit(people, values, seed=draw), fpir)
        # Cosines of independent directions are those of a beta distribution.
        above = beta.sf((1 + found.threshold) / 2, (values - 1) / 2, (values - 1) / 2)
        low, high = found.interval95
        covered += low <= 1 - (1 - above) ** (people - 1) <= high
    assert 0.93 <= covered / draws <= 0.97


def test_interval_of_strangers_covers_the_true_rate() -> None:
    draws, values = 2_000, 32
    covered = 0
    gallery = unit(20, values, seed=draws)
    best = np.sort((unit(200_000, values, seed=draws + 1) @ gallery.T).max(axis=1))
    for draw in range(draws):
        found = threshold_from_strangers(unit(200, values, seed=draw), gallery, 0.05)
        true = 1 - np.searchsorted(best, np.float32(found.threshold)) / len(best)
        covered += found.interval95[0] <= true <= found.interval95[1]
    assert 0.93 <= covered / draws <= 0.97


def test_large_galleries_are_sampled() -> None:
    found = threshold_from_gallery(unit(400), 0.2)
    assert found.comparisons == 150
    assert 20 <= found.alarms <= 30


def test_the_threshold_of_strangers_holds_for_other_strangers() -> None:
    """And that of the gallery too, where the probes are like what is enrolled."""
    descriptors, strangers, others = unit(800), unit(2000, seed=1), unit(4000, seed=2)
    best = search(others, descriptors, 1).scores[:, 0]
    for found in (
        threshold_from_strangers(strangers, descriptors, 0.05),
        threshold_from_gallery(descriptors, 0.05),
    ):
        low, high = found.interval95
        assert low - 0.01 < (best >= found.threshold).mean() < high + 0.01
        assert found.alarms <= 0.05 * found.comparisons


@pytest.mark.parametrize("copies", [1, 9])
def test_equal_scores_never_exceed_the_rate(copies: int) -> None:
    strangers = np.repeat(unit(100 // copies + 1, seed=3), copies, axis=0)[:100]
    found = threshold_from_strangers(strangers, unit(50), 0.1)
    assert found.alarms == (10 if copies == 1 else 9)


def test_an_fpir_that_too_few_people_support_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"needs 500 people in the gallery.* there are 40, which support 0\.12"
    ):
        threshold_from_gallery(unit(40), 0.01)
    assert threshold_from_gallery(unit(40), 0.125).comparisons == 40
    with pytest.raises(InputError, match="there are 3, which support none"):
        threshold_from_gallery(unit(3), 0.5)
    with pytest.raises(InputError, match="needs 50 people who are not enrolled"):
        check_strangers(49, 0.1)
    check_strangers(50, 0.1)
    with pytest.raises(InputError, match="nobody is enrolled"):
        threshold_from_strangers(unit(50), unit(0), 0.1)
    for rate in (0.0, 1.0, float("nan"), -1.0):
        with pytest.raises(InputError, match="expected a share"):
            threshold_from_gallery(unit(40), rate)

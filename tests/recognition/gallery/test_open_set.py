"""Thresholds of open-set search: their false positive identification rate and its interval."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import beta

from recognition.gallery.open_set import check_num_nonmated, threshold_from_gallery, threshold_from_nonmated
from recognition.gallery.search import search
from runtime.errors import InputError

Floats = NDArray[np.float32]


def unit(count: int, size: int = 16, seed: int = 0) -> Floats:
    rows = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_threshold_of_the_gallery_has_the_target_fpir() -> None:
    descriptors = unit(500)
    products = (descriptors.astype(np.float64) @ descriptors.T.astype(np.float64)).astype(np.float32)
    np.fill_diagonal(products, -1)
    best = products.max(axis=1)
    found = threshold_from_gallery(descriptors, 0.02)
    assert found.comparisons == 500
    # Best matches come in pairs: of the eleventh and its equal none may pass.
    assert found.false_positives == (best >= np.float32(found.threshold)).sum() <= 10
    assert (best >= np.nextafter(np.float32(found.threshold), np.float32(-2))).sum() > 10
    assert found.interval95[0] < found.false_positives / 500 < found.interval95[1]
    assert found.closest is not None
    first, second = found.closest
    assert products[first, second] == best.max()


@pytest.mark.parametrize(("count", "fpir"), [(300, 0.05), (150, 0.1)])
def test_interval_of_leave_one_out_covers_the_true_rate(count: int, fpir: float) -> None:
    """95 % of the intervals hold the true rate; the Monte-Carlo deviation of that share is 0.5 points."""
    draws, values = 2_000, 32
    covered = 0
    for draw in range(draws):
        found = threshold_from_gallery(unit(count, values, seed=draw), fpir)
        # Cosines of independent directions are those of a beta distribution.
        above = beta.sf((1 + found.threshold) / 2, (values - 1) / 2, (values - 1) / 2)
        low, high = found.interval95
        covered += low <= 1 - (1 - above) ** (count - 1) <= high
    assert 0.93 <= covered / draws <= 0.97


def test_interval_of_nonmated_subjects_covers_the_true_rate() -> None:
    draws, values = 2_000, 32
    covered = 0
    gallery = unit(20, values, seed=draws)
    best = np.sort((unit(200_000, values, seed=draws + 1) @ gallery.T).max(axis=1))
    for draw in range(draws):
        found = threshold_from_nonmated(unit(200, values, seed=draw), gallery, 0.05)
        true = 1 - np.searchsorted(best, np.float32(found.threshold)) / len(best)
        covered += found.interval95[0] <= true <= found.interval95[1]
    assert 0.93 <= covered / draws <= 0.97


def test_large_galleries_are_sampled() -> None:
    found = threshold_from_gallery(unit(400), 0.2)
    assert found.comparisons == 150
    assert 20 <= found.false_positives <= 30


def test_threshold_from_nonmated_subjects_has_target_fpir_for_others() -> None:
    """And that of the gallery too, where the probes are like what is enrolled."""
    descriptors, nonmated, others = unit(800), unit(2000, seed=1), unit(4000, seed=2)
    best = search(others, descriptors, 1).scores[:, 0]
    for found in (
        threshold_from_nonmated(nonmated, descriptors, 0.05),
        threshold_from_gallery(descriptors, 0.05),
    ):
        low, high = found.interval95
        assert low - 0.01 < (best >= found.threshold).mean() < high + 0.01
        assert found.false_positives <= 0.05 * found.comparisons


@pytest.mark.parametrize("copies", [1, 9])
def test_equal_scores_do_not_exceed_the_fpir(copies: int) -> None:
    nonmated = np.repeat(unit(100 // copies + 1, seed=3), copies, axis=0)[:100]
    found = threshold_from_nonmated(nonmated, unit(50), 0.1)
    assert found.false_positives == (10 if copies == 1 else 9)


def test_an_fpir_that_too_few_subjects_support_is_refused() -> None:
    with pytest.raises(InputError, match=r"500 .*40, .*0\.12"):
        threshold_from_gallery(unit(40), 0.01)
    assert threshold_from_gallery(unit(40), 0.125).comparisons == 40
    with pytest.raises(InputError, match=r"3, .*none"):
        threshold_from_gallery(unit(3), 0.5)
    with pytest.raises(InputError, match=r"50 .*not enrolled"):
        check_num_nonmated(49, 0.1)
    check_num_nonmated(50, 0.1)
    with pytest.raises(InputError, match="no subject is enrolled"):
        threshold_from_nonmated(unit(50), unit(0), 0.1)
    for rate in (0.0, 1.0, float("nan"), -1.0):
        with pytest.raises(InputError, match="FPIR"):
            threshold_from_gallery(unit(40), rate)

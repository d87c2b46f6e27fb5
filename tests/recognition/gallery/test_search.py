"""Search is exact whatever the size of blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recognition.gallery import search as search_module
from recognition.gallery.search import Matches, search
from runtime.errors import InputError

Floats = NDArray[np.float32]


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
def test_best_matches_do_not_depend_on_blocks(
    count: int, different: int, top: int, block: int, seed: int
) -> None:
    """With many copies, of which the lowest rows win."""
    rows = np.random.default_rng(seed).integers(0, different, count)
    descriptors, probes = unit(different, seed=seed)[rows], unit(5, seed=seed + 1)
    assert_as_slow(search(probes, descriptors, top, block_rows=block), probes, descriptors, top)


@pytest.mark.parametrize("noise", [1e-8, 3e-8])
@pytest.mark.parametrize("block", [7, 1000])
def test_scores_equal_in_float32_products_are_ordered_exactly(noise: float, block: int) -> None:
    noises = np.random.default_rng(1).standard_normal((600, 512)) * noise
    rows = unit(1, 512).astype(np.float64) + noises
    descriptors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    probes = unit(30, 512, seed=2)
    found = search(probes, descriptors, 5, block_rows=block)
    assert_as_slow(found, probes, descriptors, 5)


def test_many_probes_are_searched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "_MOST_PROBES_AT_ONCE", 7)
    descriptors, probes = unit(50), unit(30, seed=1)
    excluded = np.arange(30)
    assert_as_slow(search(probes, descriptors, 4), probes, descriptors, 4)
    found = search(descriptors[:30], descriptors, 3, excluded=excluded)
    rows, _ = slow_search(descriptors[:30], descriptors, 4)
    assert found.rows.tolist() == [row[1:] for row in rows]


def test_a_gallery_of_one_matches_itself_alone() -> None:
    descriptors = unit(1)
    found = search(descriptors, descriptors, 5, excluded=np.zeros(1, np.int64))
    assert found.rows.tolist() == [[-1]]
    assert search(descriptors, descriptors, 5).rows.tolist() == [[0]]
    assert search(unit(0), descriptors, 5).rows.shape == (0, 1)
    assert search(descriptors, unit(0), 5).rows.shape == (1, 0)


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="top 0"):
        search(unit(2), unit(3), 0)
    with pytest.raises(InputError, match="float32"):
        search(unit(2, size=4), unit(3), 1)
    with pytest.raises(InputError, match="float64"):
        search(unit(2).astype(np.float64), unit(3), 1)  # type: ignore[arg-type]

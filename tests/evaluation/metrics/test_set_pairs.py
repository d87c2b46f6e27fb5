from __future__ import annotations

import tracemalloc
from itertools import combinations

import numpy as np
import pytest

from evaluation.metrics import set_pairs
from evaluation.metrics.calibration import calibrate, one_threshold
from evaluation.metrics.set_pairs import CELLS, InnerProducts, all_pairs, bootstrap_thresholds, cells_of
from evaluation.metrics.thresholds import accepted_counts, at_or_above, threshold_at, thresholds_of_counts


def descriptors(count: int, sets: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit rows, subjects and sizes."""
    rng = np.random.default_rng(seed)
    subjects = rng.permutation(np.repeat(np.arange(count), sets))
    rows = rng.normal(size=(count, 16))[subjects] + rng.normal(size=(len(subjects), 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), subjects, rng.choice([1, 3, 8, 40], len(subjects), p=[0.5, 0.3, 0.1, 0.1])


@pytest.mark.parametrize("pairs_at_once", [1, 100, 1 << 20])
def test_pairs_and_their_counts_equal_a_loop(monkeypatch: pytest.MonkeyPatch, pairs_at_once: int) -> None:
    monkeypatch.setattr(set_pairs, "_PAIRS_AT_ONCE", pairs_at_once)
    rows, subjects, sizes = descriptors(7, 4)
    pairs = all_pairs(InnerProducts(rows, rows, clip=True), subjects, sizes)
    drawn = np.random.default_rng(1).integers(0, 4, (7, 3)).astype(np.uint8)
    listed = list(combinations(range(28), 2))
    first, second = pairs.sets_at(np.arange(len(listed)))
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == listed
    assert pairs.scores == pytest.approx([float(rows[i] @ rows[k]) for i, k in listed], abs=1e-6)
    for cell in (None, *range(len(CELLS))):
        others = [
            (subjects[i], subjects[k])
            for i, k in listed
            if subjects[i] != subjects[k] and cell in (None, int(cells_of(sizes[i], sizes[k])))
        ]
        assert len(pairs.nonmated(cell)) == len(others)
        assert pairs.count_subject_pairs(cell) == len({frozenset(each) for each in others})
        weights = [sum(int(drawn[a, r]) * int(drawn[b, r]) for a, b in others) for r in range(3)]
        assert pairs.nonmated_weights(drawn, cell).tolist() == weights


def test_bootstrap_thresholds_equal_those_of_all_scores() -> None:
    """One draw is of two subjects whose scores are the lowest of all, one of nobody."""
    rng = np.random.default_rng(0)
    subjects = rng.permutation(np.repeat(np.arange(11), 12))
    similarity = rng.normal(size=(132, 132)) - np.maximum(subjects[:, None], subjects)
    pairs = all_pairs(similarity.astype(np.float32), subjects, np.ones(132, np.int64))
    drawn = rng.multinomial(11, np.full(11, 1 / 11), 30).T
    drawn[:, 3] = 0
    drawn[:, 7] = np.repeat([0, 4], [9, 2])
    rates = [0.1, 0.01]
    found, false = bootstrap_thresholds(pairs, pairs.nonmated(), rates, drawn)
    places = np.flatnonzero(~pairs.is_mated)
    scores = pairs.scores[places].astype(np.float64)
    one, other = (drawn[subjects[sets]] for sets in pairs.sets_at(places))
    expected = np.array(
        [
            [threshold_at(scores, rate, w) for rate in rates] if w.any() else [np.nan] * 2
            for w in (one * other).T
        ]
    )
    assert np.array_equal(found, expected, equal_nan=True)
    wanted = int(1.3 * 0.1 * len(scores)) + 1024
    assert np.nanmin(found) < np.sort(scores)[-wanted]
    for draw in range(30):
        weights = (one * other)[:, draw]
        if draw in (0, 3, 4):
            assert np.isnan(false[draw]).all()
        else:
            rate = [weights[scores >= at].sum() / weights.sum() for at in found[draw - 1]]
            assert false[draw].tolist() == rate


def test_counts_and_thresholds_of_ascending_scores() -> None:
    rng = np.random.default_rng(0)
    for levels in (3, 40, 10_000):
        scores = (rng.integers(0, levels, 200) / levels).astype(np.float32)
        rates = [0, 0.005, 7 / 200, 0.07, 0.5, 0.999, 1]
        counts = accepted_counts(np.sort(scores), rates)
        found = thresholds_of_counts(np.sort(scores), counts)
        assert found.tolist() == [threshold_at(scores.astype(np.float64), rate) for rate in rates]
        assert counts.tolist() == [(scores.astype(np.float64) >= at).sum() for at in found]
        assert counts.tolist() == [at_or_above(scores, at).sum() for at in found.tolist()]


def test_calibration_takes_few_bytes_per_pair() -> None:
    rows, subjects, sizes = descriptors(400, 5)
    tracemalloc.start()
    pairs = all_pairs(InnerProducts(rows, rows, clip=True), subjects, sizes)
    everything, cells = calibrate(pairs, [1e-1, 1e-2], replicates=2)
    one_threshold(pairs, everything, cells)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert everything.nonmated > 1_900_000
    assert peak < 30 * len(pairs.scores)

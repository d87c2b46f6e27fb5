from __future__ import annotations

import numpy as np
import pytest

from evaluation.metrics.bootstrap import draw_subjects
from evaluation.metrics.calibration import MIN_SUBJECTS, calibrate, num_subjects_for, one_threshold
from evaluation.metrics.set_pairs import all_pairs, cell_name, cells_of
from evaluation.metrics.thresholds import threshold_at
from runtime.errors import InputError


def sets_of(count: int, *, sets: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Similarity, subjects and sizes of subjects in a world where larger sets are less noisy."""
    rng = np.random.default_rng(seed)
    subjects = np.repeat(np.arange(count), sets)
    sizes = rng.choice([1, 1, 2, 4, 8, 20], len(subjects))
    noise = rng.normal(size=(len(subjects), 24)) / np.sqrt(sizes)[:, None]
    features = rng.normal(size=(count, 24))[subjects] + noise + 0.3
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features @ features.T, subjects, sizes


def test_size_groups_are_those_of_the_file() -> None:
    names = [cell_name(int(cell)) for cell in cells_of(np.array([1, 4, 17, 5]), np.array([1, 1, 16, 400]))]
    assert names == ["1 x 1", "1 x 2-4", "5-16 x 17+", "5-16 x 17+"]


def test_rates_and_thresholds_of_groups_equal_a_plain_count() -> None:
    similarity, subjects, sizes = sets_of(60)
    pairs = all_pairs(similarity, subjects, sizes)
    everything, cells = calibrate(pairs, [1e-1, 1e-2], replicates=5)
    listed = [
        (cell_name(int(cells_of(sizes[i], sizes[j]))), subjects[i] == subjects[j], float(similarity[i, j]))
        for i in range(len(subjects))
        for j in range(i + 1, len(subjects))
    ]
    for name, group in [("", everything), *cells.items()]:
        here = [(mated, score) for cell, mated, score in listed if name in ("", cell)]
        own = [score for mated, score in here if mated]
        others = [score for mated, score in here if not mated]
        assert (group.mated, group.nonmated) == (len(own), len(others))
        for key, figures in group.rates.items():
            assert figures.threshold == threshold_at(np.array(others), float(key))
            assert figures.fmr == np.mean([score >= figures.threshold for score in others])
            if own:
                assert figures.fnmr == pytest.approx(np.mean([score < figures.threshold for score in own]))


def test_bootstrap_draws_subjects_not_pairs() -> None:
    """The interval equals that of repeating each person as often as drawn, and counting."""
    similarity, subjects, sizes = sets_of(16, sets=2)
    pairs = all_pairs(similarity, subjects, sizes)
    replicates, rate = 60, 0.1
    found = calibrate(pairs, [rate], replicates=replicates, seed=4)[0].rates["1e-01"]
    drawn = draw_subjects(16, replicates=replicates, seed=4)
    thresholds, false, missed = [], [], []
    for draw in range(replicates):
        others, own = [], []
        first, second = (subjects[sets] for sets in np.triu_indices(len(subjects), 1))
        for score, one, two in zip(pairs.scores, first, second, strict=True):
            times = int(drawn[one, draw]) * (1 if one == two else int(drawn[two, draw]))
            (own if one == two else others).extend([float(score)] * times)
        thresholds.append(threshold_at(np.array(others), rate))
        if draw:
            false.append(np.mean([score >= thresholds[-2] for score in others]))
            missed.append(np.mean([score < thresholds[-2] for score in own]))
    for interval, values in (
        (found.interval95, thresholds),
        (found.fmr_interval95, false),
        (found.fnmr_interval95, missed),
    ):
        assert interval == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))


def test_no_error_among_few_subjects_keeps_a_wide_interval() -> None:
    """20 subjects, 28 mated comparisons, none missed."""
    subjects = np.append(np.repeat(np.arange(20), 2), [0, 1, 2, 3])
    similarity = np.random.default_rng(0).normal(0, 0.05, (44, 44))
    similarity = (similarity + similarity.T) / 2 + 0.9 * (subjects[:, None] == subjects)
    found = calibrate(all_pairs(similarity, subjects, np.ones(44, int)), [0.1], replicates=40)[0]
    assert found.mated == 28
    figures = found.rates["1e-01"]
    assert figures.fnmr == 0
    assert figures.fnmr_interval95 == pytest.approx((0, 1 - 0.05 ** (1 / 20)))


def test_intervals_depend_on_the_seed_alone() -> None:
    pairs = all_pairs(*sets_of(40))
    first, again, other = (calibrate(pairs, [1e-1], replicates=30, seed=seed) for seed in (1, 1, 2))
    assert first[0].rates == again[0].rates
    assert first[0].rates["1e-01"].interval95 != other[0].rates["1e-01"].interval95
    assert first[0].rates["1e-01"].threshold == other[0].rates["1e-01"].threshold


def test_a_rate_that_too_few_subjects_support_is_refused_with_the_number() -> None:
    everything, _ = calibrate(all_pairs(*sets_of(50, sets=6)), [1e-1, 1e-2, 1e-3], replicates=5)
    # 1,225 pairs of subjects carry 10 false matches at 1e-2; at 1e-3 it takes 10,000, though 44,100
    # comparisons of sets were made.
    assert list(everything.rates) == ["1e-01", "1e-02"]
    assert everything.nonmated == 44_100
    assert "10,000 comparisons" in everything.refused["1e-03"]
    assert "142 subjects have; there are 1,225" in everything.refused["1e-03"]
    assert num_subjects_for(10_000) == 142
    assert 142 * 141 / 2 >= 10_000 > 141 * 140 / 2


def test_a_size_that_few_subjects_have_is_refused() -> None:
    similarity, subjects, sizes = sets_of(80)
    sizes = np.where(np.isin(subjects, [0, 1, 2]), 20, 1)
    _, cells = calibrate(all_pairs(similarity, subjects, sizes), [1e-1], replicates=5)
    assert not cells["1 x 17+"].rates
    assert "only 3 subjects have sets of 17+ faces" in cells["1 x 17+"].refused["1e-01"]
    assert cells["1 x 1"].rates


def test_the_curve_agrees_with_the_thresholds() -> None:
    pairs = all_pairs(*sets_of(60))
    everything, _ = calibrate(pairs, [1e-1, 1e-2], replicates=5)
    rates, scores = map(np.array, everything.curve)
    assert (np.diff(rates) > 0).all()
    assert (np.diff(scores) < 0).all()
    for figures in everything.rates.values():
        assert rates[scores == figures.threshold] == [figures.fmr]
    others = pairs.scores[~pairs.is_mated]
    assert (rates[0], rates[-1]) == (0, 1)
    for rate, score in zip(rates, scores, strict=True):
        assert np.mean(others >= score) == rate
        assert rate == 1 or np.mean(others >= np.nextafter(score, -2)) > rate


def test_one_threshold_for_all_sizes_is_counted_per_size() -> None:
    pairs = all_pairs(*sets_of(60))
    everything, cells = calibrate(pairs, [1e-1, 1e-2], replicates=5)
    costs = one_threshold(pairs, everything, cells)["1e-02"]
    threshold = everything.rates["1e-02"].threshold
    total = 0.0
    for name, (fmr, _) in costs.cells.items():
        inside = np.array([cell_name(int(cell)) == name for cell in pairs.cell]) & ~pairs.is_mated
        assert fmr == np.mean(pairs.scores[inside] >= threshold)
        total += fmr * inside.sum()
    assert total == pytest.approx(everything.rates["1e-02"].fmr * everything.nonmated)
    missed = 0
    names = np.array([cell_name(int(cell)) for cell in pairs.cell])
    for score, name, mated in zip(pairs.scores, names, pairs.is_mated, strict=True):
        own = cells[name].rates.get("1e-02") if name in cells else None
        missed += mated and score < (threshold if own is None else own.threshold)
    assert costs.fnmr_by_size == pytest.approx(missed / pairs.is_mated.sum())


def test_too_few_subjects_are_refused() -> None:
    similarity, subjects, sizes = sets_of(MIN_SUBJECTS - 1)
    with pytest.raises(InputError, match=r"9 subjects .*1e-02 needs 46"):
        calibrate(all_pairs(similarity, subjects, sizes), [1e-1])
    with pytest.raises(InputError, match="expected"):
        all_pairs(similarity, subjects[:-1], sizes)
    similarity[3, 5] = np.nan
    with pytest.raises(InputError, match="finite"):
        all_pairs(similarity, subjects, sizes)


def test_intervals_cover_rates_of_other_subjects() -> None:
    """Coverage in a world where the truth is known; 95 % but for chance over 40 worlds."""
    inside = 0
    for seed in range(40):
        one, other = (all_pairs(*sets_of(40, sets=2, seed=2 * seed + half)) for half in (0, 1))
        figures = calibrate(one, [1e-1], replicates=60, seed=seed)[0].rates["1e-01"]
        observed = np.mean(other.scores[~other.is_mated] >= figures.threshold)
        inside += figures.fmr_interval95[0] <= observed <= figures.fmr_interval95[1]
    assert inside >= 34

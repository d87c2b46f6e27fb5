from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.metrics.bootstrap import draw_subjects
from quality.error_versus_discard import (
    PARTIAL,
    RANDOM,
    FaceComparisons,
    choice_text,
    discard_curve,
    discard_curves,
    discard_fractions,
    ideal_curve,
)
from runtime.errors import InputError


def slow_rate(missed: list[bool], quality: list[int], weights: list[int], share: Fraction) -> Fraction:
    """In exact fractions, level after level: all comparisons of the lowest quality give the same part."""
    left = [Fraction(weight) for weight in weights]
    to_go = share * sum(left)
    for level in sorted(set(quality)):
        here = [place for place, value in enumerate(quality) if value == level]
        total = sum(left[place] for place in here)
        part = min(Fraction(1), to_go / total) if total else Fraction(0)
        for place in here:
            left[place] *= 1 - part
        to_go -= part * total
    return sum((kept for kept, error in zip(left, missed, strict=True) if error), Fraction(0)) / sum(left)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=25).filter(
        lambda rows: any(weight for _, _, weight in rows)
    )
)
def test_curve_equals_explicit_discarding(rows: list[tuple[bool, int, int]]) -> None:
    missed, quality, weights = (list(column) for column in zip(*rows, strict=True))
    found = discard_curve(np.array(missed), np.array(quality, float), np.array(weights))
    for place in (0, 1, 20, 50, 95):
        expected = slow_rate(missed, quality, weights, Fraction(place, 100))
        assert found[place] == pytest.approx(float(expected), abs=1e-9)


def test_curve_equals_counting_at_whole_comparisons() -> None:
    rng = np.random.default_rng(0)
    missed, quality = rng.random(100) < 0.3, rng.normal(size=100)
    found = discard_curve(missed, quality, np.ones(100, int))
    order = np.argsort(quality)
    for rejected in (0, 1, 37, 95):
        assert found[rejected] == pytest.approx(missed[order[rejected:]].mean())


def test_equal_qualities_give_a_constant_curve() -> None:
    missed = np.arange(50) < 10
    assert discard_curve(missed, np.ones(50), np.ones(50, int)) == pytest.approx(0.2)


def test_no_measure_beats_the_ideal_curve() -> None:
    rng = np.random.default_rng(1)
    missed = np.arange(200) < 40
    best = ideal_curve(0.2)
    assert discard_curve(missed, np.where(missed, 0.0, 1.0), np.ones(200, int)) == pytest.approx(best)
    for _ in range(20):
        assert (discard_curve(missed, rng.normal(size=200), np.ones(200, int)) >= best - 1e-12).all()


def faces(seed: int = 0, people: int = 60, each: int = 4) -> tuple[FaceComparisons, np.ndarray]:
    """Faces whose noise is known, which is what a perfect measure would tell."""
    rng = np.random.default_rng(seed)
    subjects = np.repeat(np.arange(people), each)
    noise = rng.choice([0.2, 0.5, 1.5], len(subjects))
    features = rng.normal(size=(people, 32))[subjects] + noise[:, None] * rng.normal(size=(len(subjects), 32))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return FaceComparisons(subjects, features @ features.T), noise


def test_informative_measure_is_chosen() -> None:
    pairs, noise = faces()
    rng = np.random.default_rng(5)
    qualities = {"chance": rng.normal(size=len(noise)), "known": -noise, "wrong": noise}
    found = discard_curves(pairs, qualities, 1e-2, replicates=60)
    assert found.choice == "known"
    assert found.curves["known"].against_random[1] < 0
    assert found.curves["wrong"].against_random[0] > 0
    assert found.curves["wrong"].partial > found.curves[RANDOM].partial > found.curves["known"].partial
    assert found.differences["wrong"][0] > 0
    assert "by known" in choice_text(found)
    other = discard_curves(pairs, qualities, 1e-2, choices=("chance", "wrong"), replicates=60)
    assert other.choice is None
    assert "known would" in choice_text(other)
    assert found.curves[RANDOM].fnmr == pytest.approx(found.curves["known"].fnmr[0])


def test_random_measure_is_not_chosen() -> None:
    pairs, noise = faces()
    found = discard_curves(pairs, {"constant": np.ones(len(noise)), "wrong": noise}, 1e-2, replicates=60)
    assert found.choice is None
    assert "No measure" in choice_text(found)


def test_favourite_is_kept_unless_another_is_significantly_better() -> None:
    pairs, noise = faces()
    rng = np.random.default_rng(5)
    nearly = -noise + 0.05 * rng.normal(size=len(noise))
    both = {"known": -noise, "nearly": nearly}
    assert discard_curves(pairs, both, 1e-2, favourite="nearly", replicates=60).choice == "nearly"
    poor = {"known": -noise, "poor": -noise + 3 * rng.normal(size=len(noise))}
    assert discard_curves(pairs, poor, 1e-2, favourite="poor", replicates=60).choice == "known"


def test_threshold_area_and_interval_equal_a_slow_twin() -> None:
    pairs, noise = faces(people=14, each=3)
    replicates = 12
    found = discard_curves(pairs, {"known": -noise}, 0.05, replicates=replicates, seed=2)
    drawn = draw_subjects(14, replicates=replicates, seed=2)

    def partial(count: np.ndarray) -> float:
        others, mated = [], []
        for one in range(len(noise)):
            for two in range(one):
                first, second = pairs.subjects[one], pairs.subjects[two]
                score, quality = pairs.similarity[one, two], -max(noise[one], noise[two])
                if first == second:
                    mated += [(score, quality)] * int(count[first])
                else:
                    others += [score] * (int(count[first]) * int(count[second]))
        threshold = min(
            np.nextafter(s, 2) for s in set(others) if sum(o > s for o in others) <= 0.05 * len(others) + 1e-9
        )
        missed = [bool(score < threshold) for score, _ in mated]
        grades = [quality for _, quality in mated]
        rates = [
            float(slow_rate(missed, grades, [1] * len(mated), Fraction(place, 100))) for place in range(31)
        ]
        return sum((one + two) / 2 for one, two in pairwise(rates)) * 0.01 / PARTIAL

    assert found.curves["known"].partial == pytest.approx(partial(np.ones(14, int)))
    slow = [partial(drawn[:, draw]) for draw in range(replicates)]
    assert found.curves["known"].partial95 == pytest.approx(tuple(np.percentile(slow, [2.5, 97.5])))
    again = discard_curves(pairs, {"known": -noise}, 0.05, replicates=replicates, seed=2)
    assert again.curves["known"].area95 == found.curves["known"].area95


def test_invalid_inputs_are_refused() -> None:
    pairs, noise = faces(people=5, each=2)
    with pytest.raises(InputError, match="norm of face 3"):
        discard_curves(pairs, {"norm": np.where(np.arange(10) == 3, np.nan, noise)}, 0.1)
    with pytest.raises(InputError, match="a quality for each of 10 faces"):
        discard_curves(pairs, {"norm": noise[:4]}, 0.1)
    with pytest.raises(InputError, match="no mated pair"):
        discard_curves(FaceComparisons(np.arange(10), pairs.similarity), {"norm": noise}, 0.1)
    with pytest.raises(InputError, match="no non-mated pair"):
        discard_curves(FaceComparisons(np.zeros(10, int), pairs.similarity), {"norm": noise}, 0.1)


def test_discard_fractions_are_hundredths() -> None:
    assert discard_fractions() == pytest.approx(np.arange(96) / 100)


def test_interval_without_missed_pairs_is_not_empty() -> None:
    subjects = np.repeat(np.arange(12), 2)
    similarity = np.where(subjects[:, None] == subjects, 0.9, 0.1)
    quality = np.arange(24.0)
    curve = discard_curves(FaceComparisons(subjects, similarity), {"q": quality}, 0.1, replicates=20).curves[
        "q"
    ]
    bound = 1 - 0.05 ** (1 / 12)
    assert (curve.area, curve.area95, curve.partial95) == (0, (0, bound), (0, bound))
    assert curve.against_random == (-bound, bound)

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation.metrics.score_normalisation import METHODS, ScoreNormalisation
from recognition.calibration.decisions import (
    about_threshold,
    decide,
    decide_sets,
    decisions_text,
    nearest_pairs,
    write_decisions,
)
from recognition.calibration.thresholds import Calibration, Group, Threshold
from recognition.model import FaceModel
from recognition.records import AggregatedSet
from recognition.report.tables import matrix_text, similarities

Make = Callable[..., AggregatedSet]
RATE = "1e-02"
ALL = Group({RATE: Threshold(0.4, (0.35, 0.45))}, (0, 0.001, 0.01, 0.1), (0.65, 0.6, 0.4, 0.2))
LARGE = Group({RATE: Threshold(0.55)}, (0.01, 0.5), (0.55, 0.3))


def decided(scores: list[float], first: int, second: int) -> object:
    calibration = Calibration(RATE, ALL, {"5-16 x 5-16": LARGE, "1 x 1": Group({})})
    return decide(calibration, np.array(scores), np.full(len(scores), first), np.full(len(scores), second))


def test_a_score_at_the_threshold_is_one_person() -> None:
    found = decided([0.4, np.nextafter(0.4, 0)], 1, 2)
    assert found.is_same.tolist() == [True, False]
    assert found.verdict((0,)) == "one person"
    assert found.threshold_text((0,)) == "0.4000 (0.3500 to 0.4500)"


def test_fmr_at_the_score() -> None:
    found = decided([0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 1, 2)
    assert found.fmr_at_score.tolist() == [0.001, 0.001, 0.01, 0.01, 0.1, 0.1, 1]
    assert found.is_bound.tolist() == [True, *[False] * 6]
    assert found.fmr_text((0,)) == "below 1.0e-03"
    # One person exactly where the FMR at the score is at most this rate.
    assert (found.is_same == (found.fmr_at_score <= float(RATE))).all()


def test_set_sizes_have_their_own_threshold_if_supported() -> None:
    assert decided([0.5], 8, 12).is_same.tolist() == [False]
    assert decided([0.5], 8, 12).sizes_text((0,)) == "5-16 x 5-16"
    for first, second in ((8, 2), (1, 1)):
        assert decided([0.5], first, second).is_same.tolist() == [True]
        assert decided([0.5], first, second).sizes_text((0,)) == "all sizes"


def test_a_file_without_a_curve_gives_no_fmr_at_the_score() -> None:
    calibration = Calibration(RATE, Group({RATE: Threshold(0.4)}))
    found = decide(calibration, np.array([0.5]), np.array([1]), np.array([1]))
    assert found.fmr_text((0,)) == "not known"
    assert found.threshold_text((0,)) == "0.4000"


@pytest.fixture
def three(model: FaceModel, make_set: Make) -> list[AggregatedSet]:
    rng = np.random.default_rng(0)
    anna, berta = rng.normal(size=(2, 64))
    return [
        make_set(model, anna + 0.3 * rng.normal(size=(6, 64)), name="anna"),
        make_set(model, anna + 0.3 * rng.normal(size=(7, 64)), name="anna again"),
        make_set(model, berta + 0.3 * rng.normal(size=(1, 64)), name="berta"),
    ]


def test_all_pairs_are_printed_and_written(three: list[AggregatedSet], tmp_path: Path) -> None:
    matrix = similarities(three)
    found = decide_sets(Calibration(RATE, ALL, {"5-16 x 5-16": LARGE}), three, matrix)
    text = decisions_text(three, found)
    assert "anna - anna again" in text
    assert "5-16 x 5-16" in text
    assert "0.4000 to 0.5500, by the sizes of the two sets" in about_threshold(found)
    assert "by the sizes" in matrix_text(three, matrix, found)
    distance = [abs(found.scores[place] - found.thresholds[place]) for place in nearest_pairs(found)]
    assert distance == sorted(distance)
    write_decisions(tmp_path / "d.csv", three, matrix, found)
    rows = list(csv.DictReader((tmp_path / "d.csv").open()))
    assert [(row["first"], row["second"]) for row in rows] == [
        ("anna", "anna again"),
        ("anna", "berta"),
        ("anna again", "berta"),
    ]
    assert rows[0]["of_sizes"] == "5-16 x 5-16"
    assert [int(row["one_person"]) for row in rows] == [
        int(float(row["score"]) >= float(row["threshold"])) for row in rows
    ]
    assert rows[0]["threshold_low"] == ""
    assert rows[1]["threshold_low"] == "0.350000"


@pytest.mark.parametrize("method", METHODS)
def test_normalised_scores_are_compared(three: list[AggregatedSet], method: str) -> None:
    cohort = np.random.default_rng(1).normal(size=(30, 64)).astype(np.float32)
    cohort /= np.linalg.norm(cohort, axis=1, keepdims=True)
    matrix = similarities(three)
    found = decide_sets(Calibration(RATE, ALL, {}, ScoreNormalisation(method, cohort, 10)), three, matrix)
    sides = []
    for each in three:
        nearest = np.sort(cohort @ each.embedding)[-10:]
        sides.append((nearest.mean(), nearest.std()))
    expected = sum((matrix[0, 2] - mean) / deviation for mean, deviation in (sides[0], sides[2])) / 2
    if method == "local_scaling":
        expected = matrix[0, 2] / np.sqrt(max(sides[0][0], 0.01) * max(sides[2][0], 0.01))
    assert found.scores[0, 2] == pytest.approx(expected, rel=1e-4)
    assert f"normalised with a cohort ({method})" in about_threshold(found)

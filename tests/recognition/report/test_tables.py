from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recognition.calibration.decisions import decide_sets
from recognition.calibration.thresholds import Calibration, Group, Threshold
from recognition.enrolment.checks import check_set
from recognition.enrolment.limits import EnrolmentLimits
from recognition.model import FaceModel
from recognition.records import AggregatedSet, Rejection
from recognition.report.tables import (
    check_text,
    matrix_text,
    similarities,
    write_descriptors,
    write_similarity,
)

Make = Callable[..., AggregatedSet]


D = 64


CALIBRATION = Calibration("1e-03", Group({"1e-03": Threshold(0.42)}))


def person(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=D) + 0.7 * rng.normal(size=(count, D))


@pytest.fixture
def two(model: FaceModel, make_set: Make) -> list[AggregatedSet]:
    """A set with near-duplicates, an outlier, a poor face and a rejected file; and a set of two faces."""
    own = person(6)
    features = np.concatenate([own, own[:1] * 1.001, own[:1], person(1, seed=4)])
    rejected = [Rejection("<b>.jpg", "the file is empty.")]
    anna = make_set(model, features, [10, 11, 9, 10, 3, 10, 10, 10, 9], "anna & <co>", rejected)
    return [anna, make_set(model, person(2, seed=7), name="berta")]


def test_similarity_csv_and_descriptors_npz(
    model: FaceModel, two: list[AggregatedSet], tmp_path: Path
) -> None:
    matrix = similarities(two)
    write_similarity(tmp_path / "similarity.csv", two, matrix)
    rows = (tmp_path / "similarity.csv").read_text().splitlines()
    assert rows[0] == ",anna & <co>,berta"
    assert float(rows[1].split(",")[2]) == pytest.approx(float(two[0].embedding @ two[1].embedding), abs=1e-6)
    write_descriptors(tmp_path / "descriptors.npz", two, model)
    with np.load(tmp_path / "descriptors.npz", allow_pickle=False) as stored:
        assert stored["name"].tolist() == ["anna & <co>", "berta"]
        assert (stored["descriptor"] == np.stack([each.embedding for each in two])).all()
        assert stored["picks"].tolist() == [two[0].picks.tolist(), [*two[1].picks.tolist(), -1]]
        assert stored["offsets"].tolist() == [0, 9, 11]
        assert stored["face_name"].tolist()[9:] == two[1].files
        assert str(stored["fingerprint"]) == model.fingerprint


def test_tables_in_the_terminal(model: FaceModel, two: list[AggregatedSet]) -> None:
    matrix = np.array([[1, 0.5], [0.5, 1]], np.float32)
    text = matrix_text(two, matrix, decide_sets(CALIBRATION, two, matrix))
    assert "0.5000*" in text
    assert "1.0000*" not in text
    assert "0.4200" in text
    assert "*" not in matrix_text(two, matrix, None)
    checks = [check_set(model, each, EnrolmentLimits()) for each in two]
    cells = check_text(two, checks).splitlines()[1].removeprefix("anna & <co>").split()
    assert cells[:5] == ["9", "1", "2", "1", "1"]

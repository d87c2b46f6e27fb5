from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from photos.face_measures import FaceMeasures
from recognition.enrolment.checks import check_set
from recognition.enrolment.limits import EnrolmentLimits
from recognition.enrolment.quality_feedback import (
    feedback_text,
    quality_feedback,
)
from recognition.model import FaceModel
from recognition.records import AggregatedSet, EmptySet, FaceRecord, Rejection
from recognition.report.summary import InferenceReport, write_summary
from recognition.report.tables import similarities

Make = Callable[..., AggregatedSet]


D = 64


GOOD = FaceMeasures(yaw=0.0, pitch=0.0, sharpness=0.22, brightness=130, contrast=35, side_light=0.0)


def person(count: int, seed: int = 0, spread: float = 0.7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=D) + spread * rng.normal(size=(count, D))


@pytest.fixture
def good_set(model: FaceModel, make_set: Make) -> AggregatedSet:
    """Six good faces from all sides."""
    aggregated = make_set(model, person(6))
    yaws = (-25.0, 0.0, 3.0, 22.0, -4.0, 40.0)
    return with_faces(
        aggregated,
        [
            replace(face, size=150.0, measures=replace(GOOD, yaw=yaw))
            for face, yaw in zip(aggregated.faces, yaws, strict=True)
        ],
    )


def with_faces(aggregated: AggregatedSet, faces: list[FaceRecord]) -> AggregatedSet:
    return replace(aggregated, faces=faces)


def changed(aggregated: AggregatedSet, faces: list[int], **values: float) -> AggregatedSet:
    records = list(aggregated.faces)
    for face in faces:
        measures = records[face].measures
        assert measures is not None
        records[face] = replace(records[face], measures=replace(measures, **values))
    return with_faces(aggregated, records)


def test_summary_has_feedback_and_no_nan(
    model: FaceModel, good_set: AggregatedSet, make_set: Make, tmp_path: Path
) -> None:
    alone = make_set(model, person(1), name="bert", rejected=[Rejection("x.jpg", "the file is empty.")])
    sets = [changed(good_set, [0], yaw=-5.0), alone]
    checks = [check_set(model, each, EnrolmentLimits()) for each in sets]
    advice = [quality_feedback(each, check) for each, check in zip(sets, checks, strict=True)]
    empty = [EmptySet("carl", Path("carl"), [Rejection("y.jpg", "no face was found in it.")])]
    report = InferenceReport(model, sets, empty, similarities(sets), checks, advice)
    write_summary(tmp_path / "descriptors.json", report)
    text = (tmp_path / "descriptors.json").read_text()
    content = json.loads(text)
    assert "NaN" not in text
    assert content["fingerprint"] == model.fingerprint
    first, second = content["sets"]
    assert first["feedback"] == [
        {"topic": "pose", "text": "no view with the face turned to the left of the image.", "faces": []}
    ]
    assert first["details"][3]["yaw"] == 22.0
    assert first["details"][0]["size"] == 150.0
    assert (first["faces"], first["samples"], first["picks"]) == (6, 6, good_set.picks.tolist())
    assert second["details"][0]["outlier_prob"] is None
    assert second["rejected"] == [{"name": "x.jpg", "reason": "the file is empty."}]
    assert content["empty"][0]["name"] == "carl"
    shown = feedback_text(sets, advice)
    assert "anna\n    - no view with" in shown
    assert "bert\n    - there is only 1 photo" in shown

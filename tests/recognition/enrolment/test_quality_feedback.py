from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from photos.face_measures import FaceMeasures
from recognition.enrolment.checks import check_set
from recognition.enrolment.limits import EnrolmentLimits
from recognition.enrolment.quality_feedback import (
    Feedback,
    Topic,
    feedback_text,
    num_samples,
    quality_feedback,
)
from recognition.model import FaceModel
from recognition.records import AggregatedSet, FaceChoice, FaceRecord

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


def feedback_texts(model: FaceModel, aggregated: AggregatedSet, topic: Topic | None = None) -> list[str]:
    found = quality_feedback(aggregated, check_set(model, aggregated, EnrolmentLimits()))
    return [each.text for each in found if topic is None or each.topic is topic]


def changed(aggregated: AggregatedSet, faces: list[int], **values: float) -> AggregatedSet:
    records = list(aggregated.faces)
    for face in faces:
        measures = records[face].measures
        assert measures is not None
        records[face] = replace(records[face], measures=replace(measures, **values))
    return with_faces(aggregated, records)


def test_good_set_gives_no_feedback(model: FaceModel, good_set: AggregatedSet) -> None:
    assert feedback_texts(model, good_set) == []


def test_missing_views_are_named(model: FaceModel, good_set: AggregatedSet) -> None:
    assert feedback_texts(model, changed(good_set, [0], yaw=-5.0)) == [
        "no view with the face turned to the left of the image."
    ]
    assert feedback_texts(model, changed(good_set, [3, 5], yaw=5.0)) == [
        "no view with the face turned to the right of the image."
    ]
    frontal = changed(good_set, list(range(6)), yaw=2.0)
    assert feedback_texts(model, frontal) == ["no view from the side: all faces are frontal."]
    profile = changed(changed(good_set, [1, 2, 4], yaw=-30.0), [0], yaw=-50.0)
    assert feedback_texts(model, profile) == ["no view from the front."]


def test_no_view_feedback_without_landmarks(model: FaceModel, good_set: AggregatedSet) -> None:
    assert feedback_texts(model, changed(good_set, list(range(6)), yaw=float("nan"))) == []


def test_small_faces(model: FaceModel, good_set: AggregatedSet) -> None:
    small = with_faces(good_set, [replace(face, size=31.0) for face in good_set.faces])
    assert feedback_texts(model, small, Topic.SIZE)[0].startswith("all 6 faces are under 40 px high.")
    one = with_faces(good_set, [replace(good_set.faces[0], size=31.0), *good_set.faces[1:]])
    assert feedback_texts(model, one) == ["1 of 6 faces is under 40 px high: 0000.jpg."]


@pytest.mark.parametrize(
    ("values", "topic", "words"),
    [
        ({"sharpness": 0.05}, Topic.SHARPNESS, "blurred"),
        ({"brightness": 20}, Topic.ILLUMINATION, "too dark"),
        ({"brightness": 240}, Topic.ILLUMINATION, "overexposed"),
        ({"contrast": 5}, Topic.ILLUMINATION, "low in contrast"),
        ({"side_light": -0.6}, Topic.ILLUMINATION, "lit from one side only"),
    ],
)
def test_quality_faults_are_named(
    model: FaceModel, good_set: AggregatedSet, values: dict[str, float], topic: Topic, words: str
) -> None:
    poor = changed(good_set, [2, 4], **values)
    assert feedback_texts(model, poor) == [f"2 of 6 faces are {words}: 0002.jpg, 0004.jpg."]
    found = quality_feedback(poor, check_set(model, poor, EnrolmentLimits()))
    assert [(each.topic, each.faces) for each in found] == [(topic, (2, 4))]
    assert feedback_texts(model, changed(good_set, [0, 1, 2], **values))[0].count(".") >= 5


def test_outliers_come_first(model: FaceModel, make_set: Make) -> None:
    features = np.concatenate([person(10), person(1, seed=9), person(1, seed=12)])
    found = feedback_texts(model, make_set(model, features))
    assert found[0] == (
        "2 of 12 faces may show a different person: 0010.jpg, 0011.jpg. Check them before enrolling this set."
    )


def test_copies_of_one_photo(model: FaceModel, make_set: Make) -> None:
    rows = person(4)
    aggregated = make_set(model, rows[[0, 0, 0, 1, 2, 3]])
    assert feedback_texts(model, aggregated, Topic.REPEATS) == [
        "3 faces are copies of one photo: 0000.jpg, 0001.jpg, 0002.jpg. One is enough."
    ]
    # Frames of one video are expected to repeat.
    video = with_faces(
        aggregated, [replace(face, medium=0) for face in aggregated.faces[:3]] + aggregated.faces[3:]
    )
    assert feedback_texts(model, video, Topic.REPEATS) == []
    assert num_samples(video, check_set(model, video, EnrolmentLimits())) == 4


def test_photos_of_one_session_are_not_copies(model: FaceModel, make_set: Make) -> None:
    """Near-duplicates by cosine whose pixels differ."""
    rows = person(4)
    aggregated = make_set(model, rows[[0, 0, 1, 2, 3]])
    other = replace(aggregated.faces[1], thumbnail=aggregated.faces[2].thumbnail)
    apart = with_faces(aggregated, [aggregated.faces[0], other, *aggregated.faces[2:]])
    assert check_set(model, apart, EnrolmentLimits()).num_groups == 1
    assert feedback_texts(model, apart, Topic.REPEATS) == []


def test_many_copies_give_one_sentence(model: FaceModel, make_set: Make) -> None:
    aggregated = make_set(model, person(6)[np.repeat(np.arange(6), 2)])
    assert feedback_texts(model, aggregated, Topic.REPEATS) == [
        "12 faces are copies of 6 photos; 6 of them could be removed."
    ]


def test_two_dissimilar_photos(model: FaceModel, make_set: Make) -> None:
    aggregated = make_set(model, np.eye(2, D))
    texts = feedback_texts(model, aggregated)
    assert texts[0].startswith("0000.jpg and 0001.jpg have a similarity of 0.00 and may show two identities.")
    assert texts[1].startswith("there are only 2 different photos or videos.")
    assert feedback_texts(model, make_set(model, person(2)), Topic.SEVERAL_IDENTITIES) == []


def test_two_identities_are_listed(model: FaceModel, make_set: Make) -> None:
    mixed = make_set(model, np.concatenate([person(3, spread=0.3), person(3, seed=9, spread=0.3)]))
    (text,) = feedback_texts(model, mixed, Topic.SEVERAL_IDENTITIES)
    assert "(1) 0000.jpg, 0001.jpg, 0002.jpg; (2) 0003.jpg, 0004.jpg, 0005.jpg" in text
    assert feedback_texts(model, make_set(model, person(6, spread=0.3)), Topic.SEVERAL_IDENTITIES) == []


def test_single_photo(model: FaceModel, make_set: Make) -> None:
    assert feedback_texts(model, make_set(model, person(1))) == [
        "there is only 1 photo or video. More from other days would help."
    ]


def test_terminal_text_without_feedback(good_set: AggregatedSet) -> None:
    assert feedback_text([good_set], [[]]).startswith("quality feedback: none")


def test_identities_and_unmatched_photos_are_listed(model: FaceModel, make_set: Make) -> None:
    groups = [person(count, seed, spread=0.3) for seed, count in enumerate((3, 2, 1))]
    aggregated = make_set(model, np.concatenate(groups))
    check = check_set(model, aggregated, EnrolmentLimits())
    (found,) = [
        each
        for each in quality_feedback(aggregated, check)
        if each.topic in (Topic.OUTLIER, Topic.SEVERAL_IDENTITIES)
    ]
    assert "2 identities: (1) 0000.jpg, 0001.jpg, 0002.jpg; (2) 0003.jpg, 0004.jpg" in found.text
    assert "0005.jpg" in found.text
    assert found.faces == (3, 4, 5)


@pytest.mark.parametrize(("agrees", "word"), [(True, "agrees"), (False, "largest")])
def test_face_choice_is_explained(model: FaceModel, good_set: AggregatedSet, agrees: bool, word: str) -> None:
    """The text names the photo, the face and the reason."""
    chosen = replace(good_set.faces[2], choice=FaceChoice(3, from_left=2, agrees=agrees))
    faces = [*good_set.faces[:2], chosen, *good_set.faces[3:]]
    (text,) = feedback_texts(model, with_faces(good_set, faces))
    assert "0002.jpg (face 2 of 3 from the left, 150 px high)" in text
    assert word in text


def test_terminal_text_names_where_omitted_sets_are(good_set: AggregatedSet) -> None:
    advice = [[Feedback(Topic.POSE, "x.")]] * 25
    shown = feedback_text([good_set] * 25, advice, all_in="list --here")
    assert "5 more sets" in shown
    assert "list --here" in shown
    assert "report.html" not in shown

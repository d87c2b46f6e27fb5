from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from backbones.cosine_statistics import CosineStatistics
from backbones.spec import BackboneSpec
from recognition.enrolment import checks
from recognition.enrolment.checks import check_set, check_sets, descriptor_shifts, similarity_to_rest
from recognition.enrolment.limits import EnrolmentLimits
from recognition.enrolment.quality_feedback import CONTAMINATION, Topic, quality_feedback
from recognition.model import FaceModel, aggregate_features
from recognition.records import AggregatedSet
from runtime.errors import InputWarning

Make = Callable[..., AggregatedSet]
D = 64


def person(count: int, seed: int = 0, spread: float = 0.7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=D) + spread * rng.normal(size=(count, D))


def test_impostor_face_is_an_outlier(model: FaceModel, make_set: Make) -> None:
    features = np.concatenate([person(6), person(1, seed=9)])
    check = check_set(model, make_set(model, features), EnrolmentLimits())
    assert check.outlier.tolist() == [False] * 6 + [True]
    assert check.similarity[:6].min() > 0.5
    assert abs(check.similarity[6]) < 0.3


def test_outlier_limit(model: FaceModel, make_set: Make) -> None:
    aggregated = make_set(model, person(5))
    assert not check_set(model, aggregated, EnrolmentLimits(outlier=0.5)).outlier.any()
    assert check_set(model, aggregated, EnrolmentLimits(outlier=0)).outlier.all()


def test_two_photos_have_no_outlier(model: FaceModel, make_set: Make) -> None:
    aggregated = make_set(model, np.concatenate([person(1), person(1, seed=9)]))
    check = check_set(model, aggregated, EnrolmentLimits())
    assert np.isnan(check.outlier_prob).all()
    assert not check.outlier.any()


def test_two_identities_are_separated(model: FaceModel, make_set: Make) -> None:
    features = np.concatenate([person(4, spread=0.3), person(4, seed=9, spread=0.3)])
    order = np.random.default_rng(0).permutation(8)
    check = check_set(model, make_set(model, features[order]), EnrolmentLimits())
    whose = order >= 4
    assert check.identity.tolist() == (whose != whose[0]).astype(int).tolist()
    assert check.num_identities == 2
    assert check.is_contaminated
    assert not check.outlier.any()
    assert np.isnan(check.outlier_prob).all()
    for count in (4, 1):
        clean = check_set(model, make_set(model, features[:count]), EnrolmentLimits())
        assert clean.identity.tolist() == [0] * count
        assert not clean.is_contaminated


def test_impostor_faces_have_no_identity(model: FaceModel, make_set: Make) -> None:
    features = np.concatenate([person(3, spread=0.3), person(1, seed=9), person(1, seed=12)])
    check = check_set(model, make_set(model, features), EnrolmentLimits())
    assert check.identity.tolist() == [0, 0, 0, -1, -1]
    assert check.outlier.tolist() == [False] * 3 + [True] * 2
    assert check.num_identities == 1
    assert check.is_contaminated


@pytest.mark.parametrize("frames", [(4, 4), (3, 1), (2, 3, 4)])
def test_video_of_several_identities_is_contaminated(
    model: FaceModel, make_set: Make, frames: tuple[int, ...]
) -> None:
    def of_video(*counts: int) -> AggregatedSet:
        people = [person(count, seed=9 * number, spread=0.3) for number, count in enumerate(counts)]
        # The last face is a photo of the first subject.
        aggregated = make_set(model, np.concatenate([*people, person(4, spread=0.3)[-1:]]))
        count = sum(counts)
        faces = [replace(face, medium=int(row == count)) for row, face in enumerate(aggregated.faces)]
        return replace(aggregated, faces=faces)

    mixed, clean = of_video(*frames), of_video(frames[0])
    check = check_set(model, mixed, EnrolmentLimits())
    assert check.is_contaminated
    owner = np.repeat([*range(len(frames)), 0], [*frames, 1])
    assert (check.identity[owner == 0] == 0).all()
    assert (check.identity[owner > 0] != 0).all()
    (told,) = (one for one in quality_feedback(mixed, check) if one.topic in CONTAMINATION)
    assert all(mixed.files[row] in told.text for row in np.flatnonzero(owner == 1)[:3])
    assert not check_set(model, clean, EnrolmentLimits()).is_contaminated


def test_faces_of_one_frame_are_separate_samples(model: FaceModel, make_set: Make) -> None:
    aggregated = make_set(model, np.concatenate([person(5), person(1, seed=9)]))
    one_video = [replace(face, medium=0) for face in aggregated.faces]
    told = check_set(model, replace(aggregated, faces=one_video), EnrolmentLimits())
    assert np.isnan(told.outlier_prob).all()
    crowded = [replace(face, alone=False) for face in one_video]
    check = check_set(model, replace(aggregated, faces=crowded), EnrolmentLimits())
    assert check.outlier.tolist() == [False] * 5 + [True]


def test_single_face(model: FaceModel, make_set: Make) -> None:
    check = check_set(model, make_set(model, person(1)), EnrolmentLimits())
    assert np.isnan(check.similarity).all()
    assert np.isnan(check.shift).all()
    assert not check.outlier.any()
    assert check.num_groups == 0


def test_low_norms_are_poor(model: FaceModel, make_set: Make) -> None:
    aggregated = make_set(model, person(6), norms=[10, 11, 9, 10, 5, 6.5])
    assert check_set(model, aggregated, EnrolmentLimits()).poor.tolist() == [False] * 4 + [True, False]
    assert check_set(model, aggregated, EnrolmentLimits(poor=0.7)).poor.tolist() == [False] * 4 + [True, True]


RAW = CosineStatistics(0.84, 0.04, 0.95, 0.016, 400, 200)


def shared(features: np.ndarray) -> np.ndarray:
    """Unit features plus a common vector, which raises non-mated cosines to 0.84."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    rows = unit + 2.3 * np.eye(D)[0]
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_limits_without_cosine_statistics_are_not_applied(model: FaceModel, make_set: Make) -> None:
    """Six subjects of a backbone without cosine statistics, all similar."""
    own = [person(4, seed=number) for number in range(6)]
    sets = [make_set(model, shared(features)) for features in own]
    with pytest.warns(InputWarning, match=r"--check-quality WEIGHTS IMAGES --store") as told:
        checks = check_sets(model, sets, EnrolmentLimits(), leave_out=False)
    assert len(told) == 1
    assert not any(check.is_calibrated or check.num_groups or check.is_contaminated for check in checks)
    assert quality_feedback(sets[0], checks[0])[0].topic is Topic.UNCHECKED
    with pytest.warns(InputWarning):
        assert not check_sets(model, sets[:1], EnrolmentLimits(), others=gallery_of(sets))[0].is_calibrated
    # Sets of one subject are similar with any backbone; a measured backbone is calibrated.
    for trusted, some in ((model, sets[:4]), (replace(model, spec=measured_spec(model)), sets)):
        assert all(
            check.is_calibrated for check in check_sets(trusted, some, EnrolmentLimits(), leave_out=False)
        )
    plain = [make_set(model, features) for features in own]
    assert all(check.is_calibrated for check in check_sets(model, plain, EnrolmentLimits(), leave_out=False))


def measured_spec(model: FaceModel) -> BackboneSpec:
    return replace(model.spec, cosine_statistics=RAW)


def gallery_of(sets: list[AggregatedSet]) -> np.ndarray:
    return np.stack([each.embedding for each in sets])


def test_similarity_excludes_the_face_itself() -> None:
    features = np.eye(3, dtype=np.float32)
    assert similarity_to_rest(features, np.array([1, 2, 3], np.float32)) == pytest.approx(np.zeros(3))
    pair = np.array([[1, 0], [0.6, 0.8]], np.float32)
    assert similarity_to_rest(pair, np.array([5, 1], np.float32)) == pytest.approx([0.6, 0.6])


def test_shift_equals_that_of_the_set_without_the_face(
    model: FaceModel, make_set: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    aggregated = make_set(model, np.concatenate([person(8), person(1, seed=5)]), norms=range(5, 14))
    moved = descriptor_shifts(model, aggregated)
    for face in range(9):
        rest = [other for other in range(9) if other != face]
        without = aggregate_features(model, aggregated.features[rest], aggregated.norms[rest])
        assert moved[face] == pytest.approx(1 - without.embedding @ aggregated.embedding, abs=1e-5)
    monkeypatch.setattr(checks, "_FACES_PER_BATCH", 20)
    assert descriptor_shifts(model, aggregated) == pytest.approx(moved, abs=1e-6)


def test_large_set_measures_selected_and_heaviest_faces(model: FaceModel, make_set: Make) -> None:
    aggregated = make_set(model, person(200), norms=np.linspace(5, 15, 200))
    moved = descriptor_shifts(model, aggregated)
    assert 32 <= np.isfinite(moved).sum() < 60
    assert np.isfinite(moved[aggregated.picks]).all()

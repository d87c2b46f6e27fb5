from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from backbones.cosine_statistics import CosineStatistics
from backbones.spec import BackboneSpec
from recognition.enrolment import leave_one_out, samples
from recognition.enrolment.checks import check_set, check_sets
from recognition.enrolment.leave_one_out import descriptor_shifts, similarity_to_rest
from recognition.enrolment.limits import EnrolmentLimits
from recognition.enrolment.quality_feedback import CONTAMINATION, Topic, quality_feedback
from recognition.enrolment.samples import duplicate_groups
from recognition.model import FaceModel, aggregate_features
from recognition.records import AggregatedSet
from runtime.errors import InputError, InputWarning

Make = Callable[..., AggregatedSet]
D = 64


def person(count: int, seed: int = 0, spread: float = 0.7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=D) + spread * rng.normal(size=(count, D))


def test_a_face_of_someone_else_is_found(model: FaceModel, drawn_set: Make) -> None:
    features = np.concatenate([person(6), person(1, seed=9)])
    check = check_set(model, drawn_set(model, features), EnrolmentLimits())
    assert check.outlier.tolist() == [False] * 6 + [True]
    assert check.similarity[:6].min() > 0.5
    assert abs(check.similarity[6]) < 0.3


def test_the_limit_decides_who_is_a_stranger(model: FaceModel, drawn_set: Make) -> None:
    described = drawn_set(model, person(5))
    assert not check_set(model, described, EnrolmentLimits(outlier=0.5)).outlier.any()
    assert check_set(model, described, EnrolmentLimits(outlier=0)).outlier.all()


def test_of_two_photos_nobody_knows_which_one_is_wrong(model: FaceModel, drawn_set: Make) -> None:
    described = drawn_set(model, np.concatenate([person(1), person(1, seed=9)]))
    check = check_set(model, described, EnrolmentLimits())
    assert np.isnan(check.outlier_prob).all()
    assert not check.outlier.any()


def test_halves_of_two_people_are_told_apart(model: FaceModel, drawn_set: Make) -> None:
    features = np.concatenate([person(4, spread=0.3), person(4, seed=9, spread=0.3)])
    order = np.random.default_rng(0).permutation(8)
    check = check_set(model, drawn_set(model, features[order]), EnrolmentLimits())
    whose = order >= 4
    assert check.identity.tolist() == (whose != whose[0]).astype(int).tolist()
    assert check.num_identities == 2
    assert check.is_contaminated
    assert not check.outlier.any()
    assert np.isnan(check.outlier_prob).all()
    for count in (4, 1):
        clean = check_set(model, drawn_set(model, features[:count]), EnrolmentLimits())
        assert clean.identity.tolist() == [0] * count
        assert not clean.is_contaminated


def test_a_face_of_someone_else_is_of_no_identity(model: FaceModel, drawn_set: Make) -> None:
    features = np.concatenate([person(3, spread=0.3), person(1, seed=9), person(1, seed=12)])
    check = check_set(model, drawn_set(model, features), EnrolmentLimits())
    assert check.identity.tolist() == [0, 0, 0, -1, -1]
    assert check.outlier.tolist() == [False] * 3 + [True] * 2
    assert check.num_identities == 1
    assert check.is_contaminated


@pytest.mark.parametrize("frames", [(4, 4), (3, 1), (2, 3, 4)])
def test_a_video_of_several_people_is_told(
    model: FaceModel, drawn_set: Make, frames: tuple[int, ...]
) -> None:
    def of_video(*counts: int) -> AggregatedSet:
        people = [person(count, seed=9 * number, spread=0.3) for number, count in enumerate(counts)]
        # The last is a photo of the first.
        described = drawn_set(model, np.concatenate([*people, person(4, spread=0.3)[-1:]]))
        count = sum(counts)
        faces = [replace(face, medium=int(row == count)) for row, face in enumerate(described.faces)]
        return replace(described, faces=faces)

    mixed, clean = of_video(*frames), of_video(frames[0])
    check = check_set(model, mixed, EnrolmentLimits())
    assert check.is_contaminated
    owner = np.repeat([*range(len(frames)), 0], [*frames, 1])
    assert (check.identity[owner == 0] == 0).all()
    assert (check.identity[owner > 0] != 0).all()
    (told,) = (one for one in quality_feedback(mixed, check) if one.topic in CONTAMINATION)
    assert all(mixed.files[row] in told.text for row in np.flatnonzero(owner == 1)[:3])
    assert not check_set(model, clean, EnrolmentLimits()).is_contaminated


def test_a_crowded_frame_does_not_vouch_for_its_faces(model: FaceModel, drawn_set: Make) -> None:
    described = drawn_set(model, np.concatenate([person(5), person(1, seed=9)]))
    one_video = [replace(face, medium=0) for face in described.faces]
    told = check_set(model, replace(described, faces=one_video), EnrolmentLimits())
    assert np.isnan(told.outlier_prob).all()
    crowded = [replace(face, alone=False) for face in one_video]
    check = check_set(model, replace(described, faces=crowded), EnrolmentLimits())
    assert check.outlier.tolist() == [False] * 5 + [True]


def test_similarity_is_to_the_others_not_to_itself() -> None:
    features = np.eye(3, dtype=np.float32)
    assert similarity_to_rest(features, np.array([1, 2, 3], np.float32)) == pytest.approx(np.zeros(3))
    pair = np.array([[1, 0], [0.6, 0.8]], np.float32)
    assert similarity_to_rest(pair, np.array([5, 1], np.float32)) == pytest.approx([0.6, 0.6])


def test_a_face_alone_is_nobodys_stranger_or_duplicate(model: FaceModel, drawn_set: Make) -> None:
    check = check_set(model, drawn_set(model, person(1)), EnrolmentLimits())
    assert np.isnan(check.similarity).all()
    assert np.isnan(check.shift).all()
    assert not check.outlier.any()
    assert check.num_groups == 0


def test_poor_faces_are_told_by_their_norm(model: FaceModel, drawn_set: Make) -> None:
    described = drawn_set(model, person(6), norms=[10, 11, 9, 10, 5, 6.5])
    assert check_set(model, described, EnrolmentLimits()).poor.tolist() == [False] * 4 + [True, False]
    assert check_set(model, described, EnrolmentLimits(poor=0.7)).poor.tolist() == [False] * 4 + [True, True]


def test_duplicates_are_grouped_in_the_order_of_their_first_faces() -> None:
    rng = np.random.default_rng(0)
    a, b, c = np.linalg.qr(rng.normal(size=(8, 3)))[0].T
    chain = [np.cos(0.2 * k) * a + np.sin(0.2 * k) * c for k in range(3)]
    rows = np.array([b, chain[0], c - 0.0, chain[1], b, chain[2]], np.float32)
    # Faces 1 and 5 are joined by 3 alone.
    assert rows[1] @ rows[5] < 0.95 < rows[1] @ rows[3]
    assert duplicate_groups(rows, 0.95).tolist() == [0, 1, -1, 1, 0, 1]


def test_groups_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(60, 6)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    whole = duplicate_groups(rows, 0.9)
    assert whole.max() > 0
    for rows_at_once in (1, 7):
        monkeypatch.setattr(samples, "_PAIRS_PER_BLOCK", 60 * rows_at_once)
        assert duplicate_groups(rows, 0.9).tolist() == whole.tolist()


def test_copies_of_one_face_need_no_memory_of_pairs() -> None:
    copies = np.full((3000, 4), 0.5, np.float32)
    tracemalloc.start()
    groups = duplicate_groups(copies, 0.95)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not groups.any()
    # All 4.5 million pairs at 16 bytes would be 72 MB.
    assert peak < 32 << 20


def test_the_shift_is_that_of_the_set_without_the_face(
    model: FaceModel, drawn_set: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = drawn_set(model, np.concatenate([person(8), person(1, seed=5)]), norms=range(5, 14))
    moved = descriptor_shifts(model, described)
    for face in range(9):
        rest = [other for other in range(9) if other != face]
        without = aggregate_features(model, described.features[rest], described.norms[rest])
        assert moved[face] == pytest.approx(1 - without.embedding @ described.embedding, abs=1e-5)
    monkeypatch.setattr(leave_one_out, "_FACES_PER_BATCH", 20)
    assert descriptor_shifts(model, described) == pytest.approx(moved, abs=1e-6)


def test_of_a_large_set_the_faces_that_can_move_it_are_measured(model: FaceModel, drawn_set: Make) -> None:
    described = drawn_set(model, person(200), norms=np.linspace(5, 15, 200))
    moved = descriptor_shifts(model, described)
    assert 32 <= np.isfinite(moved).sum() < 60
    assert np.isfinite(moved[described.picks]).all()


@pytest.mark.parametrize("values", [{"duplicate": 1.5}, {"outlier": float("nan")}, {"poor": -0.1}])
def test_limits_outside_their_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"--{next(iter(values))}"):
        EnrolmentLimits(**values)


RAW = CosineStatistics(0.84, 0.04, 0.95, 0.016, 400, 200)


def shared(features: np.ndarray) -> np.ndarray:
    """Unit features with a vector added that all people share, as long as it takes for a cosine of 0.84."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    rows = unit + 2.3 * np.eye(D)[0]
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_limits_follow_a_measured_backbone(model: FaceModel, drawn_set: Make) -> None:
    """Of features that all share a vector: by the limits of others all photos are one, and nobody is told."""
    clean = drawn_set(model, shared(person(6, spread=0.6)))
    mixed = drawn_set(model, shared(np.concatenate([person(6), person(1, seed=9)])))
    halves = drawn_set(model, shared(np.concatenate([person(4), person(4, seed=9)])))
    assert check_set(model, clean, EnrolmentLimits()).num_groups == 1
    measured = replace(model, spec=replace(model.spec, cosine_statistics=RAW))
    assert check_set(measured, clean, EnrolmentLimits()).num_groups == 0
    assert not check_set(measured, clean, EnrolmentLimits()).is_contaminated
    assert check_set(measured, mixed, EnrolmentLimits()).outlier.tolist() == [False] * 6 + [True]
    assert check_set(measured, halves, EnrolmentLimits()).num_identities == 2
    # A limit that is given is a cosine and nothing else.
    assert check_set(measured, clean, EnrolmentLimits(duplicate=0.9)).num_groups == 1


def test_the_poor_share_follows_the_spread_of_the_norms(model: FaceModel, drawn_set: Make) -> None:
    described = replace(drawn_set(model, person(6)), norms=np.array([10, 10, 10, 10, 10, 5.5], np.float32))
    limits = EnrolmentLimits()
    assert check_set(model, described, limits).poor.tolist() == [False] * 5 + [True]
    wide = replace(model.spec, cosine_statistics=replace(RAW, log_norm_std=0.3))
    assert not check_set(replace(model, spec=wide), described, limits).poor.any()


def test_limits_that_cannot_be_trusted_are_left_out_and_told(model: FaceModel, drawn_set: Make) -> None:
    """Six people of a backbone that nobody measured, who are all alike."""
    own = [person(4, seed=number) for number in range(6)]
    sets = [drawn_set(model, shared(features)) for features in own]
    with pytest.warns(InputWarning, match=r"--check-quality WEIGHTS IMAGES --store") as told:
        checks = check_sets(model, sets, EnrolmentLimits(), leave_out=False)
    assert len(told) == 1
    assert not any(check.is_calibrated or check.num_groups or check.is_contaminated for check in checks)
    assert quality_feedback(sets[0], checks[0])[0].topic is Topic.UNCHECKED
    with pytest.warns(InputWarning):
        assert not check_sets(model, sets[:1], EnrolmentLimits(), others=gallery_of(sets))[0].is_calibrated
    # One person's sets are alike with any backbone, and a measured one is trusted.
    for trusted, some in ((model, sets[:4]), (replace(model, spec=measured_spec(model)), sets)):
        assert all(
            check.is_calibrated for check in check_sets(trusted, some, EnrolmentLimits(), leave_out=False)
        )
    plain = [drawn_set(model, features) for features in own]
    assert all(check.is_calibrated for check in check_sets(model, plain, EnrolmentLimits(), leave_out=False))


def measured_spec(model: FaceModel) -> BackboneSpec:
    return replace(model.spec, cosine_statistics=RAW)


def gallery_of(sets: list[AggregatedSet]) -> np.ndarray:
    return np.stack([each.embedding for each in sets])

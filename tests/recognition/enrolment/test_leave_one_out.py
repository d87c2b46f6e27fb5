from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from recognition.enrolment import leave_one_out
from recognition.enrolment.leave_one_out import descriptor_shifts, similarity_to_rest
from recognition.model import FaceModel, aggregate_features
from recognition.records import AggregatedSet

Make = Callable[..., AggregatedSet]


D = 64


def person(count: int, seed: int = 0, spread: float = 0.7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=D) + spread * rng.normal(size=(count, D))


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
    monkeypatch.setattr(leave_one_out, "_FACES_PER_BATCH", 20)
    assert descriptor_shifts(model, aggregated) == pytest.approx(moved, abs=1e-6)


def test_large_set_measures_selected_and_heaviest_faces(model: FaceModel, make_set: Make) -> None:
    aggregated = make_set(model, person(200), norms=np.linspace(5, 15, 200))
    moved = descriptor_shifts(model, aggregated)
    assert 32 <= np.isfinite(moved).sum() < 60
    assert np.isfinite(moved[aggregated.picks]).all()

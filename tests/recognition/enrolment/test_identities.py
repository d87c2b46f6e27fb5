from __future__ import annotations

import numpy as np
import pytest

from backbones.spec import BackboneSpec
from recognition.enrolment import identities as module
from recognition.enrolment.identities import IdentityLimits, find_identities, unmatched_samples

D = 128
LIMITS = IdentityLimits()
WITHOUT_QUALITY = IdentityLimits.of(BackboneSpec("fake", D, "RGB", 127.5, 127.5, norm_is_quality=False))


def photos(counts: list[int], spread: float = 0.5, seed: int = 0) -> np.ndarray:
    """Unit rows of `counts` photos per subject; mated cosine 0.8, non-mated about 0."""
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.normal(size=D) + spread * rng.normal(size=(count, D)) for count in counts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_any_number_of_identities_in_any_order() -> None:
    counts = [2, 5, 3, 3, 2, 4]
    rows, whose = photos(counts), np.repeat(np.arange(6), counts)
    order = np.random.default_rng(1).permutation(len(rows))
    found = find_identities(rows[order], np.full(len(rows), 10.0), LIMITS)
    assert [sorted(set(whose[order][found == number])) for number in (0, 1)] == [[1], [5]]
    assert np.unique(np.stack([found, whose[order]]), axis=1).shape[1] == 6
    assert found.min() == 0


def test_photos_of_one_subject_are_one_identity() -> None:
    for count in (1, 2, 9):
        assert find_identities(photos([count]), np.full(count, 10.0), LIMITS).tolist() == [0] * count


def test_photos_without_matches_are_identities_of_their_own() -> None:
    assert find_identities(photos([1, 1, 1]), np.full(3, 10.0), LIMITS).tolist() == [0, 1, 2]
    # A set of two photos has a lower limit.
    pair = np.array([[1, 0], [0.2, 0.96**0.5]])
    assert find_identities(pair, np.full(2, 10.0), LIMITS).tolist() == [0, 0]
    assert find_identities(pair, np.full(2, 10.0), IdentityLimits(pair=0.21)).tolist() == [0, 1]


def test_cluster_of_low_quality_is_no_identity() -> None:
    rows = photos([4, 3])
    qualities = np.array([11.0, 10, 9, 10, 9, 5, 5])
    assert find_identities(rows, qualities, LIMITS).tolist() == [0, 0, 0, 0, -1, -1, -1]
    assert find_identities(rows, qualities, WITHOUT_QUALITY).tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert find_identities(photos([1, 1, 1]), np.array([11.0, 5, 5]), LIMITS).tolist() == [0, -1, -1]


@pytest.mark.parametrize("most", [5, 2000])
def test_samples_that_are_not_clustered_join_the_nearest_cluster(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(module, "_MOST_CLUSTERED", most)
    rows = photos([6, 4, 1])
    # The best five show both subjects.
    qualities = np.array([10.0, 11, 12, 9, 9, 9, 11, 12, 9, 9, 8.5])
    expected = [0] * 6 + [1] * 4 + [-1]
    assert find_identities(rows, qualities, LIMITS).tolist() == expected


def test_unmatched_photo_of_good_quality_is_an_outlier() -> None:
    rows, found = photos([3, 1, 1]), np.array([0, 0, 0, -1, -1])
    qualities = np.array([10.0, 10, 10, 9, 5])
    assert unmatched_samples(rows, qualities, found, LIMITS).tolist() == [False, False, False, True, False]
    ignoring = unmatched_samples(rows, qualities, found, WITHOUT_QUALITY)
    assert ignoring.tolist() == [False, False, False, True, True]
    assert not unmatched_samples(rows[:2], qualities[:2], np.array([0, -1]), LIMITS).any()

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recognition.enrolment import samples
from recognition.enrolment.samples import duplicate_groups, independent_samples


def test_duplicate_groups_are_numbered_by_first_face() -> None:
    rng = np.random.default_rng(0)
    a, b, c = np.linalg.qr(rng.normal(size=(8, 3)))[0].T
    chain = [np.cos(0.2 * k) * a + np.sin(0.2 * k) * c for k in range(3)]
    rows = np.array([b, chain[0], c - 0.0, chain[1], b, chain[2]], np.float32)
    # Faces 1 and 5 are connected only by face 3.
    assert rows[1] @ rows[5] < 0.95 < rows[1] @ rows[3]
    assert duplicate_groups(rows, 0.95).tolist() == [0, 1, -1, 1, 0, 1]


def test_duplicate_groups_do_not_depend_on_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(60, 6)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    whole = duplicate_groups(rows, 0.9)
    assert whole.max() > 0
    for rows_at_once in (1, 7):
        monkeypatch.setattr(samples, "_PAIRS_PER_BLOCK", 60 * rows_at_once)
        assert duplicate_groups(rows, 0.9).tolist() == whole.tolist()


def test_duplicate_groups_need_no_memory_of_all_pairs() -> None:
    copies = np.full((3000, 4), 0.5, np.float32)
    tracemalloc.start()
    groups = duplicate_groups(copies, 0.95)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not groups.any()
    # All 4.5 million pairs at 16 bytes would be 72 MB.
    assert peak < 32 << 20


def test_near_duplicates_join_their_media() -> None:
    media, groups = np.array([7, 7, 8, 9, 9, 10]), np.array([-1, 0, 0, 1, -1, 1])
    assert independent_samples(media, groups).tolist() == [0, 0, 0, 1, 1, 1]
    assert independent_samples(media, np.full(6, -1)).tolist() == [0, 0, 1, 2, 2, 3]
    chained = independent_samples(np.arange(4), np.array([0, 0, -1, 1]))
    assert chained.tolist() == [0, 0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(-1, 4)), min_size=1, max_size=12))
def test_independent_samples_equal_a_naive_union(faces: list[tuple[int, int]]) -> None:
    samples: list[set[int]] = []
    for face, (medium, group) in enumerate(faces):
        linked = {
            other
            for other in range(face)
            if faces[other][0] == medium or (group >= 0 and faces[other][1] == group)
        }
        samples = [each for each in samples if not each & linked] + [
            {face}.union(*(each for each in samples if each & linked))
        ]
    media, groups = np.array(faces).T
    found = independent_samples(media, groups)
    assert found.max() + 1 == len(samples)
    assert all(len({int(found[face]) for face in each}) == 1 for each in samples)

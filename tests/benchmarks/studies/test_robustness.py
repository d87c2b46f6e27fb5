"""Sets changed one way at a time: what is added, what stays, and the tables of it."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.studies import robustness
from benchmarks.studies import robustness_tables as robustness_table
from benchmarks.studies.robustness import (
    Faces,
    of_size,
    unreadable_images,
    with_impostor_faces,
    with_repeats,
    with_unreadable,
    with_wrong_among_several,
    with_wrong_medium,
)
from coreset import build_aggregator
from evaluation.protocols.templates import FaceGroups
from runtime.errors import InputError

D = 8


@pytest.fixture
def sets() -> tuple[FaceGroups, Faces]:
    """Forty templates of ten subjects, four faces each in two media; then 12 unreadable, 10 of donors."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((182, D)).astype(np.float32)
    subjects = np.concatenate([np.repeat(np.arange(40) % 10, 4), np.full(12, -1), np.full(10, -2)])
    faces = Faces(
        rows / np.linalg.norm(rows, axis=1, keepdims=True),
        rng.uniform(1, 9, 182).astype(np.float32),
        subjects,
        [[np.arange(172, 173), np.arange(173, 177)], [np.arange(177, 182)]],
    )
    return FaceGroups(np.arange(160), np.arange(41) * 4, np.arange(160) // 2), faces


def test_the_worst_face_is_there_so_many_times(sets: tuple[FaceGroups, Faces]) -> None:
    groups, faces = sets
    found = with_repeats(groups, faces, 7, 0)
    assert set(found.sizes) == {10}
    for number in range(len(groups)):
        own = np.arange(4 * number, 4 * number + 4)
        worst = own[np.argmin(faces.norms[own])]
        rows = found.rows[found.offsets[number] : found.offsets[number + 1]]
        assert np.array_equal(np.unique(rows), own)
        assert (rows == worst).sum() == 7
    assert np.array_equal(with_repeats(groups, faces, 1, 0).rows, groups.rows)
    assert np.array_equal(found.media, found.rows // 2)


def test_fractions_are_right_on_average_and_impostors_are_of_other_subjects(
    sets: tuple[FaceGroups, Faces],
) -> None:
    groups, faces = sets
    for change in (with_impostor_faces, with_unreadable):
        found = change(groups, faces, 0.3, 1)
        added = found.sizes - 4
        assert set(added) <= {1, 2}
        assert added.mean() == pytest.approx(4 * 0.3 / 0.7, abs=0.25)
        for number in range(len(groups)):
            rows = found.rows[found.offsets[number] : found.offsets[number + 1]]
            assert np.array_equal(rows[:4], np.arange(4 * number, 4 * number + 4))
            others = faces.subjects[rows[4:]]
            assert (others == (-1 if change is with_unreadable else -2)).all()
        assert np.array_equal(change(groups, faces, 0.0, 1).rows, groups.rows)
        assert np.array_equal(change(groups, faces, 0.3, 1).rows, found.rows)
        assert not np.array_equal(change(groups, faces, 0.3, 2).rows, found.rows)


def test_sizes(sets: tuple[FaceGroups, Faces]) -> None:
    groups, faces = sets
    for size in (1, 3, 4, 10):
        found = of_size(groups, faces, size, 0)
        assert set(found.sizes) == {size}
        assert len(np.unique(found.rows)) == 40 * min(size, 4)
        assert np.array_equal(found.rows // 4, np.repeat(np.arange(40), size))


def test_a_best_face_does_not_mind_repeats_and_a_mean_does(sets: tuple[FaceGroups, Faces]) -> None:
    groups, faces = sets
    best = robustness.repeat_cosine(build_aggregator("best_norm", {}), groups, faces)
    mean = robustness.repeat_cosine(build_aggregator("mean", {}), groups, faces)
    assert best == pytest.approx((1, 1), abs=1e-5)
    assert mean[0] < 0.9


def test_unreadable_images_are_of_three_kinds() -> None:
    images = unreadable_images(6, 0)
    assert images.shape == (6, 112, 112, 3)
    spread = images.reshape(6, -1, 3).std(axis=1).max(axis=1)
    assert (spread[[0, 3]] > 60).all()
    assert (spread[[1, 4]] == 0).all()
    assert (spread[[2, 5]] > 5).all()


def test_the_report_says_what_holds() -> None:
    lost = {"norm_weighted": 10.0, "good": 4.0, "poor": 6.0}
    rows = [
        {
            "aggregator": name,
            "change": kind,
            "amount": amount,
            "tar_at_far_1e-02": 80 - loss * (amount == 0.2),
        }
        for name, loss in lost.items()
        for kind, amounts in robustness_table.AMOUNTS.items()
        for amount in amounts
    ]
    text = robustness_table.report(pd.DataFrame(rows), dict.fromkeys(lost, (0.99, 0.9)), "X")
    assert "| good | 0.990 (0.900), holds | 4.0, holds |" in text
    assert "| poor | 0.990 (0.900), holds | 6.0, does not hold |" in text


def test_weights_without_an_aggregator_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected NAME=FILE"):
        robustness.compare(Namespace(aggregator=["mean"], aggregator_weights=["coreset"]))


def test_a_wrong_medium_is_one_medium_of_one_donor(sets: tuple[FaceGroups, Faces]) -> None:
    groups, faces = sets
    assert np.array_equal(with_wrong_medium(groups, faces, 0, 0).rows, groups.rows)
    found = with_wrong_medium(groups, faces, 0.5, 0)
    changed = 0
    for number in range(len(groups)):
        place = slice(found.offsets[number], found.offsets[number + 1])
        added, media = found.rows[place][4:], found.media[place][4:]
        assert np.array_equal(found.rows[place][:4], np.arange(4 * number, 4 * number + 4))
        if len(added):
            changed += 1
            assert any(
                set(added.tolist()) <= set(medium.tolist()) for media in faces.donated for medium in media
            )
            assert len(added) == 1 or 4 <= len(added) <= 40
            assert len(set(media.tolist())) == 1
            assert media[0] not in groups.media
    assert 10 < changed < 30


def test_every_template_has_its_own_impostor(sets: tuple[FaceGroups, Faces]) -> None:
    groups, faces = sets
    donors = [[np.arange(n, n + 1)] for n in range(100, 140)]
    found = with_wrong_medium(groups, replace(faces, donated=donors), 1, 3)
    added = found.rows[found.offsets[1:] - 1]
    assert sorted(added.tolist()) == list(range(100, 140))


def test_sets_of_one_medium_can_be_left_alone(sets: tuple[FaceGroups, Faces]) -> None:
    groups, faces = sets
    # The first twenty sets have one medium now.
    media = np.where(groups.rows < 80, groups.rows // 4, groups.media)
    mixed = FaceGroups(groups.rows, groups.offsets, media)
    found = with_wrong_among_several(mixed, faces, 1, 0)
    assert (found.sizes[:20] == 4).all()
    everywhere = with_wrong_medium(mixed, faces, 1, 0)
    assert (everywhere.sizes > 4).all()
    assert np.array_equal(found.rows[found.offsets[20] :], everywhere.rows[everywhere.offsets[20] :])

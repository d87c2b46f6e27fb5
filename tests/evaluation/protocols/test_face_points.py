"""Landmarks, detector scores and galleries without sense are refused or told, others are not."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import least_squares

from evaluation.protocols import ijb_layout as protocols
from evaluation.protocols.face_points import (
    POINTS,
    _fit,
    check_detector_scores,
    check_landmarks,
    check_points_in_images,
    read_points,
)
from evaluation.protocols.ijb_layout import read_protocol
from photos.alignment import TEMPLATE
from runtime.errors import InputError
from tests.ijb_layout import Dataset, write_dataset, write_lines, write_meta

Points = np.ndarray

# What other programs write, from points in our order.
OTHER_ORDERS: dict[str, Callable[[Points], Points]] = {
    "right eye first": lambda points: points[:, [1, 0, 2, 4, 3]],
    "y x": lambda points: points[:, :, ::-1],
    "right eye first, mouth as here": lambda points: points[:, [1, 0, 2, 3, 4]],
    "mouth exchanged": lambda points: points[:, [0, 1, 2, 4, 3]],
    "nose first": lambda points: points[:, [2, 0, 1, 3, 4]],
    "nose last": lambda points: points[:, [0, 1, 3, 4, 2]],
    "all x before all y": lambda points: np.concatenate([points[:, :, 0], points[:, :, 1]], 1).reshape(
        -1, 5, 2
    ),
    "y from below": lambda points: points * (1, -1) + (0, 200),
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return write_dataset(tmp_path / "sets", images=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mine_name_5pts_score.txt"
    path.write_text("\n" + "a line\n" * 400)
    return path


def faces(count: int = 300, noise: float = 3.0) -> Points:
    """Faces of several sizes and angles with points as uncertain as those of poor images."""
    rng = np.random.default_rng(0)
    angles, sizes = rng.normal(0, 0.2, count), rng.uniform(0.3, 3, count)
    turns = np.stack([np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)], 1).reshape(-1, 2, 2)
    noisy = TEMPLATE + rng.normal(0, noise, (count, 5, 2))
    return (sizes[:, None, None] * (noisy @ turns) + 20).astype(np.float32)


def test_the_distance_is_that_of_the_best_similarity_transform() -> None:
    points = faces(5, noise=9)
    scales, distances = _fit(points)
    eyes = np.linalg.norm(TEMPLATE[1] - TEMPLATE[0])
    for own, scale, distance in zip(points.astype(float), scales, distances, strict=True):

        def off(values: np.ndarray, own: Points = own) -> np.ndarray:
            a, b, x, y = values
            return (own @ np.array([[a, b], [-b, a]]) + (x, y) - TEMPLATE).ravel()

        found = least_squares(off, (1.0, 0.0, 0.0, 0.0))
        assert np.sqrt((found.fun**2).sum() / 5) / eyes == pytest.approx(distance, abs=1e-6)
        assert np.hypot(*found.x[:2]) == pytest.approx(scale, rel=1e-6)


def test_points_of_faces_pass(path: Path) -> None:
    assert check_landmarks(faces(), path) == []


@pytest.mark.parametrize("order", OTHER_ORDERS)
def test_points_in_another_order_are_refused(path: Path, order: str) -> None:
    # The first line of the file is empty.
    with pytest.raises(InputError, match=r"5pts_score\.txt, line [2-9]: expected x y of the left eye"):
        check_landmarks(OTHER_ORDERS[order](faces()), path)


def test_points_as_shares_of_the_image_are_refused(path: Path) -> None:
    with pytest.raises(InputError, match=r"line 2: expected pixels"):
        check_landmarks(faces() / 400, path)


def test_some_faces_in_another_order_are_told_with_the_first_line(path: Path) -> None:
    points = faces()
    points[100:160] = OTHER_ORDERS["y x"](points[100:160])
    (said,) = check_landmarks(points, path)
    assert "60 of 300" in said
    assert "line 102" in said
    few = faces()
    few[100:110] = OTHER_ORDERS["y x"](few[100:110])
    assert check_landmarks(few, path) == []


def test_real_points_pass_and_in_any_other_order_do_not(shared: Path, tmp_path: Path) -> None:
    with tarfile.open(shared / "faces" / "lfws_dev.tar") as archive:
        wanted = [member for member in archive if "/meta/" in member.name]
        archive.extractall(tmp_path, wanted, filter="data")
    protocol = read_protocol(tmp_path, "LFWS")
    assert protocol.warnings == ()
    points, path = read_points(protocol), protocol.meta(POINTS)
    assert check_landmarks(points.landmarks, path) == []
    assert check_detector_scores(points.scores, protocol.template_of_face, protocol.template_ids, path) == []
    for change in OTHER_ORDERS.values():
        with pytest.raises(InputError):
            check_landmarks(change(points.landmarks), path)


def test_points_of_larger_images_are_refused(tmp_path: Path) -> None:
    data = write_dataset(tmp_path)
    protocol = read_protocol(tmp_path, data.name)
    points, path = read_points(protocol).landmarks, protocol.meta(POINTS)
    names, folder = protocol.image_names, protocol.image_folder
    assert check_points_in_images(points, names, folder, path) == []
    with pytest.raises(InputError, match=r"line 1: .*1\.jpg is \d+ x \d+ pixels"):
        check_points_in_images(points * 4, names, folder, path)
    some = points.copy()
    some[: len(some) // 4] *= 4
    assert len(check_points_in_images(some, names, folder, path)) == 1


@pytest.mark.parametrize(
    ("scores", "fact"),
    [
        ([0, 0, 0, 0], "line 2: all detector scores of template 10 are 0"),
        ([0.5, 0.5, 0, 0], r"line 4: all detector scores of template 20 are 0.*1 of 2 templates"),
        ([-1, -1, -1, -1], r"line 2: a detector score of -1.*4 are below 0"),
        ([0.9, 0.9, 0.9, -0.1], r"line 5: a detector score of -0.1"),
        ([99, 99, 99, 99], r"line 2: a detector score of 99.*100% are above 1"),
        ([0.5, 12, 87, 95], "line 3: a detector score of 12"),
    ],
)
def test_scores_that_are_no_weights_are_refused(path: Path, scores: list[float], fact: str) -> None:
    with pytest.raises(InputError, match=fact):
        check_detector_scores(np.array(scores, np.float32), np.array([0, 0, 1, 1]), np.array([10, 20]), path)


@pytest.mark.parametrize(
    ("scores", "fact"),
    [
        ([0.5, 0.6, 0.7, 0.8], None),
        ([1, 1, 1, 1], "all detector scores are 1"),
        ([0.5, 0, 0.7, 0.8], "1 detector scores are 0"),
        ([0.5, 0.6, 0.7, 1.5], "1 detector scores are above 1, up to 1.5"),
    ],
)
def test_odd_scores_are_told(path: Path, scores: list[float], fact: str | None) -> None:
    said = check_detector_scores(
        np.array(scores, np.float32), np.array([0, 0, 1, 1]), np.array([10, 20]), path
    )
    assert [bool(re.search(fact or "", each)) for each in said] == ([] if fact is None else [True])


def with_two_ids(data: Dataset) -> tuple[int, int]:
    """Gives the gallery template of a subject another id than its probes have."""
    template = data.gallery["S1"][0]
    before = data.subject_of[template]
    data.subject_of[template] = 99
    write_meta(data)
    return before, template


def test_a_subject_under_two_ids_is_refused(data: Dataset) -> None:
    before, template = with_two_ids(data)
    with pytest.raises(InputError) as fault:
        read_protocol(data.root, data.name)
    for fact in (f"subjects {before} and 99", str(template), "3 of 24 mated pairs"):
        assert fact in str(fault.value)


def test_two_ids_joined_by_a_template_of_no_list_are_refused(data: Dataset) -> None:
    _, template = with_two_ids(data)
    between = max(data.subject_of) + 1
    probe = next(b for a, b, mated in data.pairs if a == template and mated)
    data.faces.append(("1.jpg", between, 1))
    data.pairs = [pair for pair in data.pairs if pair[0] != template]
    data.pairs += [(template, between, 1), (between, probe, 1)]
    write_meta(data)
    with pytest.raises(InputError, match="1 groups of templates"):
        read_protocol(data.root, data.name)


def test_two_people_under_one_id_are_told_and_many_are_refused(data: Dataset) -> None:
    pairs = [
        (a, b, 1 - mated if number % 8 == 0 and mated else mated)
        for number, (a, b, mated) in enumerate(data.pairs)
    ]
    data.pairs = pairs
    write_meta(data)
    wrong = sum(data.subject_of[a] == data.subject_of[b] and not mated for a, b, mated in pairs)
    (said,) = read_protocol(data.root, data.name).warnings
    assert f"so are {wrong} pairs" in said
    data.subject_of = dict.fromkeys(data.subject_of, 5)
    write_meta(data)
    with pytest.raises(InputError, match="of one subject by the 1:N lists"):
        read_protocol(data.root, data.name)


def test_a_published_data_set_may_have_a_slip(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(protocols.IJB_SIZES, data.name, read_protocol(data.root, data.name).sizes)
    monkeypatch.setitem(protocols._KNOWN_SUBJECTS, data.name, 8)
    monkeypatch.setattr("evaluation.protocols.ijb_layout._MOST_MATED_CONTRADICTIONS", 0.2)
    with_two_ids(data)
    assert len(read_protocol(data.root, data.name).warnings) == 1
    write_lines(data.meta("1N_gallery_S1.csv"), ["TEMPLATE_ID,SUBJECT_ID", "1,1"])
    with pytest.raises(InputError):
        read_protocol(data.root, data.name)

"""Pair sets: figures against a slow oracle, both list layouts, and every fault of a list told by its line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.sources.face_loader import Faces
from data.sources.pair_files import PairSet
from evaluation.protocols.face_files import FaceFiles
from evaluation.protocols.pair_sets import (
    FacePairs,
    PairFigures,
    accuracy_table,
    details_table,
    mean_accuracy,
    pair_figures,
    pairs_of_bin,
    read_pair_list,
    size_notes,
)
from runtime.errors import InputError

Draw = Callable[[int, int], bytes]


class NoFaces:
    """So many faces that nobody looks at."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def image(self, number: int) -> Any:
        raise AssertionError(f"face {number} was looked at")


def embed(faces: Faces) -> np.ndarray:
    """A 'network' that distinguishes synthetic faces: the levels of their pattern."""
    levels = np.stack([faces.image(n)[8::16, 8::16, 0].ravel() for n in range(len(faces))]) - 128.0
    return unit(levels)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def slow_accuracy(a: np.ndarray, b: np.ndarray, mated: np.ndarray, folds: np.ndarray) -> tuple[float, ...]:
    """The published protocol, one threshold after another."""
    distances = [sum((x - y) ** 2 for x, y in zip(p, q, strict=True)) for p, q in zip(a, b, strict=True)]
    accuracies, best_thresholds = [], []
    for fold in sorted(set(folds.tolist())):
        best = (-1.0, 0.0)
        for step in range(400):
            right = [
                (d < step * 0.01) == m for d, m, f in zip(distances, mated, folds, strict=True) if f != fold
            ]
            if sum(right) > best[0]:
                best = (sum(right), step * 0.01)
        held = [(d < best[1]) == m for d, m, f in zip(distances, mated, folds, strict=True) if f == fold]
        accuracies.append(sum(held) / len(held))
        best_thresholds.append(best[1])
    mean = sum(accuracies) / len(accuracies)
    variance = sum((x - mean) ** 2 for x in accuracies) / (len(accuracies) - 1)
    return mean, (variance / len(accuracies)) ** 0.5, sum(best_thresholds) / len(best_thresholds)


def slow_tar(a: np.ndarray, b: np.ndarray, mated: np.ndarray, far: float) -> float:
    distances = ((a - b) ** 2).sum(axis=1)
    nonmated = sorted(distances[~mated])
    # One more non-mated pair than allowed would be accepted at its own distance.
    bar = nonmated[int(far * len(nonmated) + 1e-9)]
    return float((distances[mated] < bar).mean())


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.integers(20, 60), st.floats(0.2, 3.0))
def test_figures_equal_a_slow_twin(seed: int, n: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    features = unit(rng.normal(size=(n, 8)) + noise * rng.normal(size=8))
    first, second = rng.integers(0, n, (2, 3 * n))
    mated = rng.random(3 * n) < 0.5
    mated[:2] = True, False
    features[second[mated]] = unit(features[first[mated]] + 0.2 * rng.normal(size=(mated.sum(), 8)))
    folds = rng.permutation(np.arange(3 * n) % 10)
    figures = pair_figures(features, FacePairs("x", NoFaces(n), first, second, mated, folds))
    a, b = features[first], features[second]
    accuracy = figures.accuracy
    expected = slow_accuracy(a, b, mated, folds)
    assert (accuracy.accuracy, accuracy.standard_error, accuracy.threshold) == pytest.approx(expected)
    assert figures.tar_at_far["1e-03"].strict == pytest.approx(slow_tar(a, b, mated, 1e-3))
    distances = ((a - b) ** 2).sum(axis=1)
    closer = distances[mated][:, None] - distances[~mated]
    assert figures.auc == pytest.approx((closer < 0).mean() + (closer == 0).mean() / 2)


def test_far_counts_whole_pairs() -> None:
    # 2,000 non-mated pairs: two may be accepted at 1e-3, a third may not.
    rng = np.random.default_rng(0)
    features = unit(rng.normal(size=(2400, 16)))
    features[2200:] = unit(features[2000:2200] + 0.16 * rng.normal(size=(200, 16)))
    pairs = np.r_[np.c_[np.arange(2000, 2200), np.arange(2200, 2400)], rng.integers(0, 2000, (2000, 2))]
    mated = np.arange(2200) < 200
    figures = pair_figures(
        features, FacePairs("x", NoFaces(2400), pairs[:, 0], pairs[:, 1], mated, np.arange(2200) % 10)
    )
    rate = figures.tar_at_far["1e-03"]
    assert rate.strict == slow_tar(features[pairs[:, 0]], features[pairs[:, 1]], mated, 1e-3)
    assert rate.nonmated_above <= 2


def test_features_that_are_no_unit_rows_are_refused() -> None:
    pairs = FacePairs("lfw", NoFaces(3), *np.zeros((2, 20), int), np.arange(20) < 10, np.arange(20) % 10)
    features = np.eye(3)
    for broken in (np.nan, 2.0, 0.0):
        features[1, 1] = broken
        with pytest.raises(InputError, match=r"lfw: the feature of image 1 has length"):
            pair_figures(features, pairs)
    with pytest.raises(InputError, match=r"features \(2, 3\) of 3 images"):
        pair_figures(features[:2], pairs)


def test_equal_images_of_a_bin_are_embedded_once(drawn_face: Draw) -> None:
    images = [drawn_face(0, 0), drawn_face(0, 1), drawn_face(1, 0), drawn_face(0, 0)] * 10
    pairs = pairs_of_bin(PairSet("lfw", images, np.array([True, False] * 10)))
    assert len(pairs.faces) == 3
    assert pairs.first.tolist() == [0, 2] * 10
    assert pairs.second.tolist() == [1, 0] * 10
    for number, image in enumerate(images[:3]):
        same = PairSet("x", [image], np.array([])).image(0)
        assert (pairs.faces.image(number) == same).all()
    assert pairs.folds.tolist() == np.repeat(np.arange(10), 2).tolist()
    all_images = PairSet("lfw", images, pairs.is_mated)
    levels = embed(pairs.faces)
    plain = np.stack([all_images.image(n)[8::16, 8::16, 0].ravel() for n in range(40)]) - 128.0
    assert (np.r_[levels[pairs.first], levels[pairs.second]] == unit(np.r_[plain[0::2], plain[1::2]])).all()


def test_a_bin_needs_a_pair_a_fold(drawn_face: Draw) -> None:
    with pytest.raises(InputError, match=r"lfw: 9 mated and 0 non-mated pairs.* 10"):
        pairs_of_bin(PairSet("lfw", [drawn_face(0, 0)] * 18, np.ones(9, bool)))


@pytest.fixture
def people(tmp_path: Path, drawn_face: Draw) -> Path:
    """LFW's layout: <tmp>/lfw/p00/p00_0001.png ..., 20 people with two images."""
    for person in range(20):
        folder = tmp_path / "lfw" / f"p{person:02}"
        folder.mkdir(parents=True)
        for number in (1, 2):
            (folder / f"p{person:02}_{number:04}.png").write_bytes(drawn_face(person, number))
    return tmp_path / "lfw"


def lfw_list(folds: int, per_kind: int) -> str:
    lines = [f"{folds}\t{per_kind}"]
    for fold in range(folds):
        people = [(fold * per_kind + k) % 20 for k in range(per_kind)]
        lines += [f"p{p:02}\t1\t2" for p in people]
        lines += [f"p{p:02}\t1\tp{(p + 7) % 20:02}\t2" for p in people]
    return "\n".join(lines) + "\n"


def test_lfw_layout_from_files_to_figures(people: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text(lfw_list(10, 3))
    pairs = read_pair_list(people, tmp_path / "pairs.txt")
    assert (pairs.name, len(pairs), len(pairs.faces)) == ("pairs", 60, 40)
    assert pairs.folds.tolist() == np.repeat(np.arange(10), 6).tolist()
    assert pairs.is_mated.tolist() == ([True] * 3 + [False] * 3) * 10
    figures = pair_figures(embed(pairs.faces), pairs)
    # The same from the list by hand: every image is read anew.
    rows = []
    for fold in range(10):
        for mated in (True, False):
            for k in range(3):
                p = (fold * 3 + k) % 20
                other = p if mated else (p + 7) % 20
                rows.append((p, 1, other, 2, mated, fold))

    class One:
        def __init__(self, person: int, number: int) -> None:
            self.path = people / f"p{person:02}" / f"p{person:02}_{number:04}.png"

        def __len__(self) -> int:
            return 1

        def image(self, _number: int) -> Any:
            return PairSet("x", [self.path.read_bytes()], np.array([])).image(0)

    a = np.concatenate([embed(One(p, n)) for p, n, *_ in rows])
    b = np.concatenate([embed(One(p, n)) for _, _, p, n, *_ in rows])
    mated, folds = np.array([r[4] for r in rows]), np.array([r[5] for r in rows])
    expected = slow_accuracy(a, b, mated, folds)
    accuracy = figures.accuracy
    assert (accuracy.accuracy, accuracy.standard_error, accuracy.threshold) == pytest.approx(expected)
    assert figures.tar_at_far["1e-03"].strict == pytest.approx(slow_tar(a, b, mated, 1e-3))
    assert accuracy.accuracy > 0.8


def test_a_view_without_folds_is_cut_in_ten(people: Path, tmp_path: Path) -> None:
    (tmp_path / "pairsDevTest.txt").write_text(lfw_list(1, 20).replace("1\t20\n", "20\n", 1))
    pairs = read_pair_list(people, tmp_path / "pairsDevTest.txt")
    assert pairs.folds.tolist() == np.repeat(np.arange(10), 2).tolist() * 2
    assert pairs.is_mated.tolist() == [True] * 20 + [False] * 20


def test_simple_layout_in_any_order(people: Path, tmp_path: Path) -> None:
    lines = [f"p{p:02}/p{p:02}_0001.png p{p:02}/p{p:02}_0002 1" for p in range(20)]
    lines += [f"p{p:02}/p{p:02}_0001\tp{(p + 1) % 20:02}/p{(p + 1) % 20:02}_0002.png\t0" for p in range(20)]
    (tmp_path / "mine.txt").write_text("\n\n".join(lines))
    pairs = read_pair_list(people, tmp_path / "mine.txt")
    assert (len(pairs), pairs.is_mated.sum()) == (40, 20)
    for fold in range(10):
        assert pairs.is_mated[pairs.folds == fold].tolist() == [True, True, False, False]
    # With and without suffix is one image only where the names are the same.
    assert len(pairs.faces) == 80
    assert pair_figures(embed(pairs.faces), pairs).accuracy.accuracy > 0.8


def test_names_with_spaces_need_tabs(people: Path, tmp_path: Path, drawn_face: Draw) -> None:
    (people / "a b.png").write_bytes(drawn_face(0, 1))
    rows = [f"a b.png\tp0{p}/p0{p}_0001.png\t{p % 2}" for p in range(10)] * 2
    (tmp_path / "mine.txt").write_text("\n".join(rows))
    assert len(read_pair_list(people, tmp_path / "mine.txt")) == 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("10 3\np00 1 2\n", r"line 1: '10 3' promises 60 pairs, but 1 lines follow"),
        (lfw_list(1, 3).replace("p01\t1\t2", "p01\t1\tx"), r"line 3: expected 'NAME N1 N2' \(a mated pair\)"),
        (lfw_list(1, 3).replace("p02\t1\tp09\t2", "p02\t1\tp09"), r"line 7: expected 'NAME1 N1 NAME2 N2'"),
        ("a b 2\n", "line 1: expected 'FILE1 FILE2 0|1'.*found 'a b 2'"),
        ("a b 1\nc d\n", "line 2: expected"),
        (
            lfw_list(10, 3).replace("p00", "q00"),
            r"2 of 40 images of .* are missing: q00/q00_0001, q00/q00_0002",
        ),
        ("p00/p00_0001 p00/p00_0002 1\n" * 20, "20 mated and 0 non-mated pairs"),
        ("p00/p00_0001 p00/p00_0002 1\np00/p00_0001 p01/p01_0002 0\n", "1 mated and 1 non-mated"),
    ],
)
def test_a_broken_list_is_told_by_its_line(people: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "pairs.txt").write_text(content)
    with pytest.raises(InputError, match=message):
        read_pair_list(people, tmp_path / "pairs.txt")


def test_many_faults_are_counted(people: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("a b c\n" * 25)
    with pytest.raises(InputError) as caught:
        read_pair_list(people, tmp_path / "pairs.txt")
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "... and 15 more such lines."


def test_a_missing_folder_and_list_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_pair_list(tmp_path / "gone", tmp_path / "gone.txt")
    assert str(caught.value).count("\n") == 1
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="no text file"):
        read_pair_list(tmp_path, tmp_path / "binary.txt")


def test_tables_show_the_seeds_order_and_what_is_unknown() -> None:
    pairs = FacePairs(
        "x", NoFaces(40), np.arange(20), np.arange(20, 40), np.arange(20) % 2 == 0, np.arange(20) % 10
    )

    def figures(seed: int) -> PairFigures:
        return pair_figures(unit(np.random.default_rng(seed).normal(size=(40, 4))), pairs)

    ours = {name: figures(seed) for seed, name in enumerate(("agedb_30", "lfw", "mine"))}
    sets = dict.fromkeys(ours, pairs)
    assert mean_accuracy(ours) == pytest.approx(np.mean([f.accuracy.accuracy for f in ours.values()]))
    rows = {
        "ours": {name: f.accuracy.accuracy for name, f in ours.items()},
        "published": {"lfw": 0.5, "mean": 0.95},
    }
    table = accuracy_table(rows).splitlines()
    assert [cell.strip() for cell in table[0].strip("|").split("|")] == [
        "model",
        "LFW",
        "AgeDB-30",
        "mine",
        "mean",
    ]
    assert [cell.strip() for cell in table[3].strip("|").split("|")] == [
        "published",
        "50.00",
        "-",
        "-",
        "95.00",
    ]
    cells = [cell.strip() for cell in table[2].strip("|").split("|")]
    expected = [ours[n].accuracy.accuracy for n in ("lfw", "agedb_30", "mine")]
    assert cells[1:] == [f"{100 * value:.2f}" for value in (*expected, np.mean(expected))]
    details = details_table(ours, sets)
    assert "TAR@FAR 1e-03" in details
    assert f"{100 * ours['lfw'].accuracy.standard_error:.2f}" in details
    assert len(size_notes(sets)) == 2
    assert "lfw: 20 pairs, the published set has 6,000" in " ".join(size_notes(sets))
    part = ours["lfw"].to_result()
    assert part["verification"]["tar_at_far"]["1e-03"]["strict"] == ours["lfw"].tar_at_far["1e-03"].strict
    assert part["accuracy"]["accuracy"] == ours["lfw"].accuracy.accuracy


@pytest.mark.parametrize("place", ["absolute", "above", "hidden"])
def test_images_outside_of_the_folder_are_not_read(people: Path, tmp_path: Path, place: str) -> None:
    (first, *_) = people.glob("*/*")
    shutil.copy(first, tmp_path / "secret.jpg")
    name = {"absolute": str(first), "above": "../secret.jpg", "hidden": "p/../../secret.jpg"}[place]
    path = tmp_path / "list.txt"
    path.write_text(f"{name} {name} 1\n" * 20)
    with pytest.raises(InputError) as fault:
        read_pair_list(people, path)
    assert str(path) in str(fault.value)
    assert name in str(fault.value)


def test_an_image_replaced_by_one_of_the_same_size_and_time_has_another_stamp(
    people: Path, tmp_path: Path
) -> None:
    names = [str(path.relative_to(people)) for path in sorted(people.glob("*/*"))]
    files = FaceFiles.of(people, names)
    before, path = files.stamps(), people / names[2]
    state, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert np.flatnonzero(files.stamps() != before).tolist() == [2]
    path.unlink()
    with pytest.raises(InputError, match=path.name):
        files.stamps()

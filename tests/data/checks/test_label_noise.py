from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.cosine_statistics import CosineStatistics
from data.checks import label_noise
from data.checks.label_noise import LabelFindings, LabelLimits, Mislabelled, SimilarPair, check_labels
from data.checks.label_noise_report import CheckedFaces, findings_text, write_report
from net import BACKBONES
from runtime.errors import InputError

D = 96


def people(counts: list[int], seed: int = 0, spread: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.normal(size=D) + spread * rng.normal(size=(count, D)) for count in counts])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), np.repeat(np.arange(len(counts)), counts)


def slow_findings(features: np.ndarray, labels: np.ndarray, limits: LabelLimits) -> LabelFindings:
    """Image by image, pair by pair."""
    subjects = range(int(labels.max()) + 1)

    def mean(rows: list[int]) -> np.ndarray:
        total = features[rows].astype(np.float64).sum(axis=0)
        return total / max(np.linalg.norm(total), 1e-6)

    rows_of = {s: np.flatnonzero(labels == s).tolist() for s in subjects}
    same = [
        SimilarPair(a, b, float(mean(rows_of[a]) @ mean(rows_of[b])))
        for a in subjects
        for b in subjects
        if a < b and mean(rows_of[a]) @ mean(rows_of[b]) >= limits.split_identity
    ]
    pairs = {(p.first, p.second) for p in same}
    mislabelled = []
    for image, own in enumerate(labels.tolist()):
        # Copies of an image say nothing for it.
        rest = [r for r in rows_of[own] if r != image and features[r] @ features[image] < limits.duplicate]
        others = [s for s in subjects if s != own and (min(s, own), max(s, own)) not in pairs]
        if not rest or not others:
            continue
        to_own = float(features[image] @ mean(rest))
        to_other, other = max((float(features[image] @ mean(rows_of[s])), s) for s in others)
        if to_other - to_own > limits.lead:
            mislabelled.append(Mislabelled(image, other, to_own, to_other))
    twins = [
        SimilarPair(i, j, float(features[i] @ features[j]))
        for i in range(len(labels))
        for j in range(i + 1, len(labels))
        if features[i] @ features[j] >= limits.duplicate
    ]
    return LabelFindings(
        mislabelled=sorted(mislabelled, key=lambda each: each.to_own - each.to_other),
        split_identities=sorted(same, key=lambda pair: -pair.similarity),
        duplicates=sorted(
            (p for p in twins if labels[p.first] == labels[p.second]), key=lambda p: -p.similarity
        ),
        duplicates_across=sorted(
            (p for p in twins if labels[p.first] != labels[p.second]), key=lambda p: -p.similarity
        ),
        single=[s for s in subjects if len(rows_of[s]) == 1],
    )


def keys(findings: LabelFindings) -> list[set[tuple[int, int]]]:
    return [
        {(each.image, each.other) for each in findings.mislabelled},
        {(pair.first, pair.second) for pair in findings.split_identities},
        {(pair.first, pair.second) for pair in findings.duplicates},
        {(pair.first, pair.second) for pair in findings.duplicates_across or []},
        set(findings.single),
    ]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=7), st.integers(0, 50), st.integers(7, 400))
def test_findings_are_those_of_brute_force(counts: list[int], seed: int, cells: int) -> None:
    features, labels = people(counts, seed)
    rng = np.random.default_rng(seed)
    # A few wrong names, a copy or two; every subject keeps an image.
    features[rng.integers(len(features), size=2)] = features[rng.integers(len(features), size=2)]
    limits = LabelLimits(split_identity=0.4, lead=0.05)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_noise, "_CELLS_AT_ONCE", cells)
        found = check_labels(features, labels, limits)
    expected = slow_findings(features, labels, limits)
    assert keys(found) == keys(expected)
    assert [each.to_other for each in found.mislabelled] == pytest.approx(
        [each.to_other for each in expected.mislabelled], abs=1e-5
    )
    assert [each.to_own for each in found.mislabelled] == pytest.approx(
        [each.to_own for each in expected.mislabelled], abs=1e-5
    )


def test_face_in_the_wrong_folder_is_found_with_its_owner() -> None:
    features, labels = people([5, 5, 5])
    labels[3] = 2
    (only,) = check_labels(features, labels).mislabelled
    assert (only.image, only.other) == (3, 0)
    assert only.to_own < 0.3 < 0.6 < only.to_other


def test_split_identity_is_a_pair_and_not_mislabelled() -> None:
    features, labels = people([8, 5])
    labels = np.concatenate([np.repeat([0, 2], 4), labels[8:]])
    found = check_labels(features, labels)
    assert [(pair.first, pair.second) for pair in found.split_identities] == [(0, 2)]
    assert found.mislabelled == []


def test_copies_are_reported_within_and_across_names() -> None:
    features, labels = people([3, 3])
    features[1], features[5] = features[0], features[0]
    found = check_labels(features, labels)
    assert [(p.first, p.second) for p in found.duplicates] == [(0, 1)]
    assert {(p.first, p.second) for p in found.duplicates_across or []} == {(0, 5), (1, 5)}


def test_too_many_images_are_not_compared_across_and_this_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(label_noise, "MAX_COMPARED", 5)
    features, labels = people([3, 3])
    found = check_labels(features, labels)
    assert found.duplicates_across is None
    assert "not searched" in findings_text(found, 2, 6)


def test_subject_of_one_image_is_reported_but_not_as_mislabelled() -> None:
    features, labels = people([4, 1])
    found = check_labels(features, labels)
    assert found.single == [1]
    assert found.mislabelled == []


@pytest.mark.parametrize(
    ("shape", "labels"), [((3, 4), [0, 1]), ((3, 4), [0, 0, 0]), ((3, 4), [0, 2, 2]), ((3,), [0, 1, 1])]
)
def test_what_cannot_be_checked_is_refused(shape: tuple[int, ...], labels: list[int]) -> None:
    with pytest.raises(InputError, match="label audit"):
        check_labels(np.ones(shape, np.float32), np.array(labels))


def test_limits_outside_their_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"duplicate 1\.5(.|\n)*lead nan"):
        LabelLimits(duplicate=1.5, lead=float("nan"))


@pytest.fixture
def noisy() -> tuple[CheckedFaces, LabelFindings]:
    features, labels = people([4, 4, 4])
    labels[3] = 1
    features[1] = features[0]

    def image(row: int) -> np.ndarray:
        return np.full((112, 112, 3), 10 * row, np.uint8)

    faces = CheckedFaces(features, labels, ["anna", "bert", "carl"], lambda row: f"{row}.jpg", image)
    return faces, check_labels(features, labels)


def test_list_names_images_and_subjects(noisy: tuple[CheckedFaces, LabelFindings], tmp_path: Path) -> None:
    written = write_report(tmp_path, *noisy)
    rows = list(csv.DictReader((tmp_path / "label_check.csv").open()))
    assert [(row["kind"], row["first"], row["second"]) for row in rows] == [
        ("mislabelled", "3.jpg", "anna"),
        ("duplicate", "0.jpg", "1.jpg"),
    ]
    assert float(rows[0]["similarity_to_own"]) < float(rows[0]["similarity"])
    assert written == ["label_check.csv", "mislabelled.png", "duplicates.png"]


def test_sheet_shows_the_face_its_subject_and_the_other(
    noisy: tuple[CheckedFaces, LabelFindings], tmp_path: Path
) -> None:
    write_report(tmp_path, *noisy)
    sheet = cv2.imread(str(tmp_path / "mislabelled.png"))
    # A number, the face, four of its subject, three of the other.
    assert sheet.shape == (114, 9 * 114, 3)
    shown = [int(sheet[60, 114 * column + 56].mean()) for column in range(1, 9)]
    assert shown == [30, 40, 50, 60, 70, 0, 10, 20]


def test_without_images_there_is_the_list_alone_and_no_old_sheet(
    noisy: tuple[CheckedFaces, LabelFindings], tmp_path: Path
) -> None:
    faces, findings = noisy
    write_report(tmp_path, faces, findings)
    alone = CheckedFaces(faces.features, faces.labels, faces.subjects, faces.name, None)
    assert write_report(tmp_path, alone, findings) == ["label_check.csv"]
    assert [path.name for path in tmp_path.iterdir()] == ["label_check.csv"]


def test_copy_does_not_hide_a_mislabelled_image() -> None:
    features, labels = people([6, 6, 4])
    # The same image of subject 0 twice among those of subject 2.
    features = np.concatenate([features, features[:1], features[:1]])
    labels = np.concatenate([labels, [2, 2]])
    found = check_labels(features, labels, LabelLimits(split_identity=0.9))
    assert [(each.image, each.other) for each in found.mislabelled] == [(16, 0), (17, 0)]
    alone = check_labels(features[:17], labels[:17], LabelLimits(split_identity=0.9))
    assert found.mislabelled[0].to_own == pytest.approx(alone.mislabelled[0].to_own, abs=1e-5)


def test_limits_follow_a_measured_backbone() -> None:
    """Features that all share a vector: nobody is everybody else, and the mislabelled image is found."""
    features, labels = people([5] * 20)
    labels[0] = 1
    shared = features + 2.3 * np.eye(D, dtype=np.float32)[0]
    shared /= np.linalg.norm(shared, axis=1, keepdims=True)
    spec = BACKBONES["ir_tiny"]
    assert LabelLimits.of(spec) == LabelLimits()
    assert len(check_labels(shared, labels).split_identities) == 20 * 19 / 2
    raw = CosineStatistics(0.84, 0.03, 0.97, 0.01, 400, 200)
    found = check_labels(shared, labels, LabelLimits.of(replace(spec, cosine_statistics=raw)))
    assert not found.split_identities
    assert not found.duplicates_across
    assert [(each.image, each.other) for each in found.mislabelled] == [(0, 0)]

"""Which subjects are trained on and which are held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sources.face_source import FaceSource, select
from data.sources.subsets import PUBLISHED_SUBSET, hold_out, train_subset
from runtime.errors import InputError


class NamedFaces:
    """A source without pixels: rows are numbered, subjects named."""

    name = "named"

    def __init__(self, counts: dict[str, int], location: Path = Path("nowhere")) -> None:
        self.subjects = sorted(counts)
        self.labels = np.repeat(np.arange(len(counts)), [counts[subject] for subject in self.subjects])
        self.location = location

    def __len__(self) -> int:
        return len(self.labels)

    def read_bytes(self, row: int) -> bytes:
        return str(row).encode()

    def describe(self, row: int) -> str:
        return f"row {row}"

    def image(self, row: int) -> np.ndarray:
        return np.full((112, 112, 3), row % 256, np.uint8)

    def names_digest(self) -> bytes:
        return str(len(self)).encode()


def rows_of(source: FaceSource) -> list[int]:
    return [int(source.read_bytes(row)) for row in range(len(source))]


@pytest.fixture
def faces(tmp_path: Path) -> NamedFaces:
    folder = tmp_path / "faces_emore" / "imgs"
    folder.mkdir(parents=True)
    return NamedFaces({f"{number}": 3 + number % 5 for number in range(40)}, folder)


def test_without_the_flag_everything_is_taken(faces: NamedFaces) -> None:
    subset, sentence = train_subset(faces, None, 0)
    assert subset is faces
    assert sentence == "all 200 images of 40 subjects"


@pytest.mark.parametrize("place", ["faces_emore/imgs", "faces_emore", "."])
def test_bare_flag_takes_the_published_file_beside_the_data(
    faces: NamedFaces, tmp_path: Path, place: str
) -> None:
    wanted = [row for row in range(199, 20, -1) if row % 11]
    (tmp_path / place / PUBLISHED_SUBSET).write_text(",".join(map(str, wanted)) + "\n")
    subset, sentence = train_subset(faces, "", 0)
    counts = np.bincount(faces.labels[wanted], minlength=40)
    expected = [row for row in wanted if counts[faces.labels[row]] >= 5]
    assert rows_of(subset) == expected
    assert subset.subjects == [faces.subjects[s] for s in range(40) if counts[s] >= 5]
    assert np.bincount(subset.labels).min() >= 5
    assert str(tmp_path / place / PUBLISHED_SUBSET) in sentence
    assert f"without {int(((counts > 0) & (counts < 5)).sum())} subjects" in sentence


def test_path_is_taken_as_an_index_file(faces: NamedFaces, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(", ".join(map(str, range(200))))
    subset, _ = train_subset(faces, str(tmp_path / "mine.txt"), 0)
    assert np.bincount(subset.labels).tolist() == [n for n in np.bincount(faces.labels) if n >= 5]


def test_bare_flag_falls_back_to_a_fraction_and_reports_searched_folders(
    faces: NamedFaces, tmp_path: Path
) -> None:
    subset, sentence = train_subset(faces, "", 0)
    assert len(subset.subjects) == 4
    assert "a fraction of 0.1 of the 40 subjects" in sentence
    assert str(tmp_path) in sentence


@given(st.floats(0.01, 1), st.integers(0, 3))
def test_fraction_takes_whole_subjects_by_the_seed(fraction: float, seed: int) -> None:
    faces = NamedFaces({f"{number}": 1 + number % 5 for number in range(60)})
    subset, _ = train_subset(faces, str(fraction), seed)
    again, _ = train_subset(faces, str(fraction), seed)
    assert len(subset.subjects) == max(2, round(fraction * 60))
    assert rows_of(subset) == rows_of(again)
    kept = set(subset.subjects)
    assert rows_of(subset) == [row for row in range(len(faces)) if faces.subjects[faces.labels[row]] in kept]


def test_another_seed_takes_other_subjects(faces: NamedFaces) -> None:
    assert train_subset(faces, "0.5", 0)[0].subjects != train_subset(faces, "0.5", 1)[0].subjects


@pytest.mark.parametrize("spec", ["0", "1.5", "-0.1", "nan", "missing.txt"])
def test_neither_a_file_nor_a_fraction_is_refused(faces: NamedFaces, spec: str) -> None:
    with pytest.raises(InputError, match="--train_data_subset"):
        train_subset(faces, spec, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,1,200,7,5000", r"mine\.txt: named: 2 of 5 .* 200 images \(the first is 200\)"),
        ("0,1,-2", "out of range"),
        ("0,1,two,3", r"mine\.txt, entry 3: .* found 'two'"),
        ("0,99999999999999999999,3", r"entry 2"),
        ("", r"entry 1"),
        ("0,1,8", "no subject of"),
    ],
)
def test_wrong_index_file_is_refused(faces: NamedFaces, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        train_subset(faces, str(tmp_path / "mine.txt"), 0)


@given(
    st.dictionaries(st.text(max_size=3), st.integers(1, 4), min_size=12, max_size=60),
    st.sampled_from([0.1, 0.5, 1, 2, 3]),
    st.integers(0, 5),
)
def test_held_out_subjects_are_apart_and_have_two_images(
    counts: dict[str, int], fraction_or_count: float, seed: int
) -> None:
    faces = NamedFaces(counts)
    try:
        rest, held_out = hold_out(faces, fraction_or_count, seed)
    except InputError:
        several = sum(count >= 2 for count in counts.values())
        assert several < max(2, fraction_or_count) or several > len(counts) - 2 or fraction_or_count == 0.5
        return
    assert not set(rest.subjects) & set(held_out.subjects)
    assert set(rest.subjects) | set(held_out.subjects) == set(counts)
    assert sorted(rows_of(rest) + rows_of(held_out)) == list(range(len(faces)))
    assert np.bincount(held_out.labels).min() >= 2
    if fraction_or_count >= 1:
        assert len(held_out.subjects) == max(2, fraction_or_count)


def test_subset_holds_out_the_same_subjects() -> None:
    faces = NamedFaces({f"{number}": 2 + number % 3 for number in range(400)})
    _, held_out = hold_out(faces, 0.2, 7)
    half = select(faces, np.flatnonzero(faces.labels % 2 == 0))
    _, of_half = hold_out(half, 0.2, 7)
    assert of_half.subjects == [subject for subject in held_out.subjects if subject in set(half.subjects)]
    assert 50 < len(held_out.subjects) < 110
    assert hold_out(faces, 0.2, 8)[1].subjects != held_out.subjects


@pytest.mark.parametrize("count", [39, 1000])
def test_too_few_subjects_to_hold_out_are_refused(faces: NamedFaces, count: int) -> None:
    with pytest.raises(InputError, match="cannot hold out"):
        hold_out(faces, count, 0)


@pytest.mark.parametrize("fraction", [0, -1, 2.5, float("nan")])
def test_invalid_fraction_is_refused(faces: NamedFaces, fraction: float) -> None:
    with pytest.raises(InputError, match="cannot hold out"):
        hold_out(faces, fraction, 0)

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.metrics.calibration import MIN_SUBJECTS
from evaluation.metrics.enrolment_failures import EnrolmentFailures
from evaluation.metrics.set_pairs import groups_of
from recognition.calibration.labelled_sets import aggregate_labelled, find_labelled, mixed_text, split_photos
from recognition.face_reading import PhotoOptions
from recognition.model import FaceModel
from recognition.records import AggregatedSet
from runtime.errors import InputError, InputWarning

Folder = Callable[..., Path]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=60), st.integers(0, 5))
def test_sets_of_a_subject_share_no_photo_and_no_video(faces: list[int], seed: int) -> None:
    media = np.repeat(np.arange(len(faces)), faces)
    parts = split_photos(media, np.random.default_rng(seed))
    rows = np.concatenate(parts)
    assert len(rows) == len(set(rows.tolist()))
    assert min(map(len, parts)) > 0
    whole = [set(media[part].tolist()) for part in parts]
    assert sum(map(len, whole)) == len(set.union(*whole))
    for part in parts:
        for medium in set(media[part].tolist()):
            assert (media[part] == medium).sum() == faces[medium]
    assert len(parts) <= 8
    assert len(parts) >= min(2, len(faces))


def test_many_photos_give_sets_of_all_sizes() -> None:
    rng = np.random.default_rng(0)
    sizes = [len(part) for _ in range(40) for part in split_photos(np.arange(60), rng)]
    assert set(groups_of(np.array(sizes)).tolist()) == {0, 1, 2, 3}


def test_subfolders_are_sets_and_loose_photos_are_split(
    model: FaceModel, face_folder: Folder, tmp_path: Path, drawn_face: Callable[..., bytes]
) -> None:
    root = face_folder(12, 3, spread=40)
    for place, name in ((40, "2019"), (50, "2024")):
        (root / "s000" / name).mkdir()
        for number in range(4):
            (root / "s000" / name / f"{number}.png").write_bytes(drawn_face(0, place + number, 40))
    (root / "s011" / "0.png").write_bytes(b"")
    for number in (1, 2):
        (root / "s011" / f"{number}.png").unlink()
    found = aggregate_labelled(
        model, find_labelled(root, "--images_root"), PhotoOptions(aligned=True), seed=1
    )
    assert found.subject_names == [f"s{number:03}" for number in range(11)]
    own = [found.names[row] for row in np.flatnonzero(found.subjects == 0)]
    assert {"s000/2019", "s000/2024"} <= set(own)
    assert len(own) >= 4
    sizes = dict(zip(found.names, found.sizes.tolist(), strict=True))
    assert sizes["s000/2019"] == 4
    assert found.sizes.sum() == 11 * 3 + 8
    assert "s011" in found.rejected
    assert {name.split("/")[0] for name, _ in found.left_out} == {"s011"}
    # Twelve folders of loose photos and two of sets; of one person nothing is left.
    assert found.failures == EnrolmentFailures(attempts=14, failed=1, subjects=12, subjects_failed=1)
    assert np.allclose(np.linalg.norm(found.descriptors, axis=1), 1, atol=1e-5)
    # Who else is there does not change a person's sets.
    for number in range(2, 12):
        (root / f"s{number:03}" / "0.png").unlink()
    again = aggregate_labelled(
        model, find_labelled(root, "--images_root"), PhotoOptions(aligned=True), seed=1
    )
    rows = [[f.names.index(name) for name in f.names if name.startswith("s001")] for f in (found, again)]
    assert np.allclose(found.descriptors[rows[0]], again.descriptors[rows[1]], atol=1e-5)


def test_unusable_folders_are_reported(face_folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--images_root .*gone"):
        find_labelled(tmp_path / "gone", "--images_root")
    root = face_folder(9, 1)
    (root / "empty").mkdir()
    with pytest.raises(InputError, match=r"9 subjects .* 10 or more"):
        find_labelled(root, "--cohort")
    os.symlink(root / "s000", root / "s000_again")
    with pytest.raises(InputError, match=r"s000 and s000_again"):
        find_labelled(root, "--cohort")


def test_copies_of_a_photo_count_once(
    model: FaceModel, face_folder: Folder, drawn_face: Callable[..., bytes]
) -> None:
    root = face_folder(11, 3, spread=40)
    (root / "s003" / "album").mkdir()
    (root / "s003" / "album" / "x.png").write_bytes(drawn_face(3, 77, 40))
    options = PhotoOptions(aligned=True)
    alone = aggregate_labelled(model, find_labelled(root, "--images_root"), options)
    assert alone.notes == []
    for folder in sorted(root.iterdir()):
        for path in sorted(folder.glob("*.png")):
            path.with_name(f"{path.stem} (1).png").write_bytes(path.read_bytes())
    # In another set of the same person, and as another format.
    photo = cv2.imdecode(np.frombuffer((root / "s003" / "0.png").read_bytes(), np.uint8), 1)
    cv2.imwrite(str(root / "s003" / "album" / "again.jpg"), photo, [cv2.IMWRITE_JPEG_QUALITY, 80])
    found = aggregate_labelled(model, find_labelled(root, "--images_root"), options)
    assert "34 photos" in found.notes[0]
    assert "s000/0.png of s000/0 (1).png" in found.notes[0]
    assert found.names == alone.names
    assert found.sizes.tolist() == alone.sizes.tolist()
    assert np.allclose(found.descriptors, alone.descriptors, atol=1e-3)


def test_a_set_of_copies_alone_is_left_out(
    model: FaceModel, face_folder: Folder, drawn_face: Callable[..., bytes]
) -> None:
    root = face_folder(11, 2, spread=40)
    (root / "s003" / "album").mkdir()
    (root / "s003" / "album" / "x.png").write_bytes((root / "s003" / "1.png").read_bytes())
    # One photo of s004 stands under s005 too.
    (root / "s005" / "2.png").write_bytes((root / "s004" / "1.png").read_bytes())
    found = aggregate_labelled(model, find_labelled(root, "--images_root"), PhotoOptions(aligned=True))
    said = "\n".join(found.notes)
    assert "s003/album/x.png of s003/1.png" in said
    assert "s003/album: all of its photos are copies" in said
    assert "s004/1.png and s005/2.png" in said
    assert "s003/album" not in found.names
    # Two photos of each of 11 subjects, less one of s004; the copy in s005 is no photo of anybody.
    assert found.sizes.sum() == 21
    assert found.failures.failed == 0
    (root / "s005" / "3.png").write_bytes((root / "s004" / "0.png").read_bytes())
    with pytest.raises(InputError, match=r"s004 and s005"):
        aggregate_labelled(model, find_labelled(root, "--images_root"), PhotoOptions(aligned=True))


def test_subjects_whose_folders_show_several_persons_are_named(
    model: FaceModel, make_set: Callable[..., AggregatedSet]
) -> None:
    def of_person(number: int, name: str) -> AggregatedSet:
        rows = np.eye(64)[[10 * number + 1, 10 * number + 2, 10 * number + 3]] + 2 * np.eye(64)[10 * number]
        return make_set(model, rows, name=name)

    sets = [of_person(0, "s0"), of_person(1, "s1/a"), of_person(2, "s1/b")]
    text = mixed_text(model, sets, ["s0", "s1", "s1"])
    assert "1 of 2 subjects" in text
    assert "s0" not in text
    assert all(f"{each.name}/{file}" in text for each in sets[1:] for file in each.files)
    assert mixed_text(model, sets, ["s0", "s1", "s2"]) == ""


def test_folders_without_photos_are_named(face_folder: Folder) -> None:
    root = face_folder(10, 1)
    (root / "bare" / "inner").mkdir(parents=True)
    with pytest.warns(InputWarning, match="bare"):
        assert len(find_labelled(root, "--images_root")) == 10


def test_folders_without_a_usable_photo_are_refused(bare_model: FaceModel, tmp_path: Path) -> None:
    for number in range(MIN_SUBJECTS):
        (tmp_path / f"s{number}").mkdir()
        (tmp_path / f"s{number}" / "a.png").write_bytes(b"broken")
    sources = find_labelled(tmp_path, "--images_root")
    with pytest.raises(InputError, match="no file"):
        aggregate_labelled(bare_model, sources, PhotoOptions(aligned=True))

"""Messages about rejected files, photos in subfolders and special files."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.sources.image_files import files_below
from recognition.aggregation import aggregate_sets
from recognition.calibration.labelled_sets import find_labelled
from recognition.enrolment.checks import check_set
from recognition.enrolment.limits import EnrolmentLimits
from recognition.enrolment.rejections import rejection_reasons, rejection_text
from recognition.face_reading import PhotoOptions
from recognition.model import FaceModel
from recognition.records import AggregatedSet, EmptySet, Rejection
from recognition.report.summary import InferenceReport, write_summary
from recognition.sources import find_sets
from runtime.errors import InputError, InputWarning

HEIC = b"\x00\x00\x00\x18ftypheic" + bytes(40)


def aggregate(model: FaceModel, *paths: Path) -> tuple[list[AggregatedSet], list[EmptySet]]:
    return aggregate_sets(model, find_sets(list(paths)), PhotoOptions(aligned=True))


@pytest.fixture
def anna(face_folder: Callable[..., Path]) -> Path:
    """One usable face and three files that are rejected."""
    folder = face_folder(1, 1) / "s000"
    (folder / "c.heic").write_bytes(HEIC)
    (folder / "d.jpg").write_bytes(b"")
    (folder / "e.txt").write_text("notes")
    return folder


def test_rejected_files_are_counted_and_named_with_reasons(model: FaceModel, anna: Path) -> None:
    (line,) = rejection_text(*aggregate(model, anna)).splitlines()
    for fact in ("3 of 4", "s000", "c.heic", "HEIC", "d.jpg", "empty", "e.txt", "not an image"):
        assert fact in line


def test_heic_photos(model: FaceModel, tmp_path: Path) -> None:
    (tmp_path / "iphone").mkdir()
    for number in range(5):
        (tmp_path / "iphone" / f"{number}.heic").write_bytes(HEIC)
    found, empty = aggregate(model, tmp_path / "iphone")
    assert not found
    for text in (rejection_text(found, empty), rejection_reasons(empty)):
        assert "HEIC" in text
        assert "JPEG" in text
        assert text.count("HEIC") == 1
        assert "2 more" in text
    assert "all 5" in rejection_text(found, empty)


def test_set_of_one_file_is_named_once(model: FaceModel, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"text")
    assert rejection_text(*aggregate(model, tmp_path / "a.jpg")).count("a.jpg") == 1


def test_empty_folder_is_reported(model: FaceModel, face_folder: Callable[..., Path]) -> None:
    people = face_folder(1, 1)
    (people / "nobody" / "inner").mkdir(parents=True)
    found, empty = aggregate_sets(model, find_sets([], people), PhotoOptions(aligned=True))
    assert [each.name for each in found] == ["s000"]
    assert "nobody" in rejection_text(found, empty)
    assert "s000" not in rejection_text(found, empty)


def test_frames_and_files_are_counted_separately(
    model: FaceModel, make_set: Callable[..., AggregatedSet]
) -> None:
    frames = [
        *(Rejection(f"walk.avi at {number}.00 s", "no face", "walk.avi", 0) for number in range(9)),
        *(Rejection(f"wall.avi at {number}.00 s", "no face", "wall.avi", 7) for number in range(9)),
    ]
    found = make_set(model, np.eye(3, 64), rejected=frames)
    text = rejection_text([found], [], all_in="descriptors.json")
    assert "1 of 4 files of anna: wall.avi" in text
    assert "walk.avi at 2.00 s and 6 more" in text
    assert "descriptors.json" in text


def test_photos_in_subfolders_belong_to_the_set(model: FaceModel, face_folder: Callable[..., Path]) -> None:
    people = face_folder(2, 3)
    for old, new in ((1, "2021/x"), (2, "2021")):
        (people / "s000" / new).mkdir(parents=True, exist_ok=True)
        (people / "s000" / f"{old}.png").rename(people / "s000" / new / f"{old}.png")
    (people / "s000" / "2021" / "again").symlink_to(people / "s000")
    (people / "loose.png").write_bytes((people / "s001" / "0.png").read_bytes())
    with pytest.warns(InputWarning, match=r"loose\.png"):
        sources = find_sets([], people)
    found, _ = aggregate_sets(model, sources, PhotoOptions(aligned=True))
    assert [each.files for each in found] == [
        ["0.png", "2021/2.png", "2021/x/1.png"],
        ["0.png", "1.png", "2.png"],
    ]
    text = rejection_text(found, [])
    for fact in ("s000", "2 of its 3", "2021", "2021/x"):
        assert fact in text
    assert "s001" not in text


def test_calibration_takes_subfolders_of_a_subject_as_sets(
    face_folder: Callable[..., Path],
) -> None:
    people = face_folder(2, 2)
    (people / "s000" / "2021" / "march").mkdir(parents=True)
    (people / "s000" / "1.png").rename(people / "s000" / "2021" / "march" / "1.png")
    (people / "loose.png").write_bytes(b"")
    with pytest.warns(InputWarning, match=r"loose\.png"):
        found = find_labelled(people, "--images_root", 2)
    sets = {each.source.name: each.source for each in found}
    assert sets.keys() == {"s000", "s000/2021", "s001"}
    assert sets["s000/2021"].with_subfolders
    assert not sets["s000"].with_subfolders


@pytest.fixture
def special(tmp_path: Path) -> Path:
    """A folder with a FIFO, a socket and a link to a device, named as photos and videos."""
    folder = tmp_path / "special"
    folder.mkdir()
    os.mkfifo(folder / "fifo.jpg")
    os.mkfifo(folder / "fifo.mp4")
    os.mkfifo(folder / "fifo")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "socket.png"))
    return folder


@pytest.mark.timeout(30)
def test_special_files_are_rejected_without_opening(model: FaceModel, anna: Path, special: Path) -> None:
    for each in special.iterdir():
        (anna / each.name).symlink_to(each)
    (found,), _ = aggregate(model, anna)
    reasons = {each.name: each.reason for each in found.rejected}
    assert found.files == ["0.png"]
    assert all("FIFO" in reasons[name] for name in ("fifo", "fifo.jpg", "fifo.mp4"))
    assert "device" in reasons["zero.jpg"]
    assert "socket" in reasons["socket.png"]
    assert len(files_below(anna)) == 9


@pytest.mark.timeout(30)
def test_special_file_is_not_a_set(special: Path) -> None:
    with pytest.raises(InputError) as fault:
        find_sets(sorted(special.iterdir()))
    assert [line.count("FIFO") for line in str(fault.value).splitlines()] == [1, 1, 1, 0, 0]


def test_rotated_photos_are_reported(
    model: FaceModel, make_set: Callable[..., AggregatedSet], tmp_path: Path
) -> None:
    found = make_set(model, np.eye(3, 64))
    found.faces[1] = replace(found.faces[1], rotation=180)
    text = rejection_text([found], [])
    for fact in ("anna", "1 of 3", found.faces[1].name, "180"):
        assert fact in text
    check = check_set(model, found, EnrolmentLimits())
    write_summary(
        tmp_path / "d.json", InferenceReport(model, [found], [], np.eye(1, dtype="f4"), [check], [[]])
    )
    (told,) = json.loads((tmp_path / "d.json").read_text())["sets"]
    assert [face["rotation"] for face in told["details"]] == [0, 180, 0]

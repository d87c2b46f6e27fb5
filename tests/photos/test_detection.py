from __future__ import annotations

import csv
import hashlib
import io
import tarfile
import urllib.error
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data.sources.decoding import Image
from photos import detection
from photos.alignment import TEMPLATE, align, align_photo, similarity_transforms
from photos.detection import (
    DETECTOR_NAME,
    DETECTOR_SHA256,
    DETECTOR_URL,
    DetectedFace,
    FaceDetector,
    chosen_faces,
    find_detector,
)
from photos.photo_files import decode_photo
from runtime.errors import InputError


@pytest.fixture(scope="module")
def detector(shared: Path) -> FaceDetector:
    return FaceDetector(shared / "faces" / DETECTOR_NAME)


@pytest.fixture(scope="module")
def photos(shared: Path) -> dict[str, tuple[Image, np.ndarray]]:
    """Photo and five points of each file of the raw sample."""
    with tarfile.open(shared / "faces" / "raw_sample.tar") as archive:
        files = {
            member.name.removeprefix("./"): archive.extractfile(member)
            for member in archive
            if member.isfile()
        }
        content = {name: stream.read() for name, stream in files.items() if stream is not None}
    rows = list(csv.reader(io.StringIO(content["landmarks.csv"].decode())))[1:]
    return {
        name: (decode_photo(content[name]), np.array(points, float).reshape(5, 2)) for name, *points in rows
    }


def test_every_face_is_found_and_landmarks_are_within_two_pixels(
    detector: FaceDetector, photos: dict[str, tuple[Image, np.ndarray]]
) -> None:
    distances = []
    for name, (photo, points) in photos.items():
        found = detector.detect(photo, "central")
        assert found, name
        distances.append(np.linalg.norm(found[0].landmarks - points, axis=1).mean())
    assert len(distances) == 60
    assert np.median(distances) < 2.0


def test_face_is_found_at_any_size_of_the_photo(
    detector: FaceDetector, photos: dict[str, tuple[Image, np.ndarray]]
) -> None:
    for photo, points in list(photos.values())[:5]:
        for scale in (0.4, 3.0, 12.0):
            resized = np.asarray(cv2.resize(photo, None, fx=scale, fy=scale), np.uint8)
            found = detector.detect(resized, "central")
            assert found, scale
            assert np.linalg.norm(found[0].landmarks / scale - points, axis=1).mean() < 8, scale


def test_wall_has_no_face(detector: FaceDetector) -> None:
    assert detector.detect(np.full((300, 400, 3), 140, np.uint8)) == []
    assert detector.detect(np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)) == []


def test_all_faces_of_a_group_are_found(
    detector: FaceDetector, photos: dict[str, tuple[Image, np.ndarray]]
) -> None:
    four = [photo for photo, _ in list(photos.values())[::15]]
    group = np.concatenate([np.concatenate(four[:2], axis=1), np.concatenate(four[2:], axis=1)])
    found = detector.detect(group, "all")
    assert len(found) == 4
    sizes = [face.box[2] * face.box[3] for face in found]
    assert min(face.score for face in found) > 0.6
    assert np.abs(np.array(sizes) / np.sort(sizes)[::-1] - 1).max() < 0.2


def test_file_that_is_not_a_detector_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no network")
    with pytest.raises(InputError, match=r"model\.onnx"):
        FaceDetector(path)


def test_networks_that_are_not_a_detector_are_reported(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mobilefacenet\.onnx: .*1 outputs, not 12.*--weights.*--detector"):
        FaceDetector(shared / "faces" / "mobilefacenet.onnx")
    onnx = pytest.importorskip("onnx")
    model = onnx.load(shared / "faces" / DETECTOR_NAME)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(InputError, match=r"m\.onnx: refers to weights"):
        FaceDetector(tmp_path / "m.onnx")


def face(left: float, top: float, side: float) -> DetectedFace:
    return DetectedFace((left, top, side, side), np.zeros((5, 2), np.float32), 0.9)


def test_selection_among_several_faces() -> None:
    small_in_the_middle, large_at_the_edge = face(45, 45, 10), face(0, 0, 30)
    found = [small_in_the_middle, large_at_the_edge]
    assert chosen_faces(found, (100, 100), "largest") == [large_at_the_edge]
    assert chosen_faces(found, (100, 100), "central") == [small_in_the_middle]
    assert chosen_faces(found, (100, 100), "all") == [large_at_the_edge, small_in_the_middle]
    assert chosen_faces([], (100, 100), "central") == []
    with pytest.raises(InputError, match="largest, central, all"):
        chosen_faces(found, (100, 100), "smallest")


def test_small_face_is_aligned_as_published() -> None:
    photo = np.random.default_rng(0).integers(0, 255, (150, 150, 3), np.uint8)
    points = (TEMPLATE + np.array((20, 10))).astype(np.float32)
    expected = align(photo, similarity_transforms(points[None])[0])
    assert (align_photo(photo, points) == expected).all()


def test_large_face_is_aligned_without_noise_and_in_place() -> None:
    wave = np.sin(np.linspace(0, 12, 112))[:, None] * np.cos(np.linspace(0, 9, 112))
    face_pixels = (127 + 100 * wave).astype(np.uint8)[..., None].repeat(3, axis=2)
    scale = 8
    large = cv2.resize(face_pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(0).normal(0, 40, large.shape)
    photo = np.clip(np.asarray(large, float) + noise, 0, 255).astype(np.uint8)
    photo = np.pad(photo, ((300, 100), (500, 0), (0, 0)))
    points = ((TEMPLATE + 0.5) * scale - 0.5 + (500, 300)).astype(np.float32)
    difference = align_photo(photo, points).astype(float) - face_pixels
    # One pixel of each patch would leave a noise of 40; the mean of 64 leaves 5.
    assert np.abs(difference[4:-4, 4:-4]).mean() < 6


def test_face_beyond_the_edge_is_black_there() -> None:
    photo = np.full((900, 900, 3), 200, np.uint8)
    points = (TEMPLATE * 8 - (400, 0)).astype(np.float32)
    aligned = align_photo(photo, points)
    assert (aligned[:, :40] == 0).all()
    assert (aligned[20:90, 70:105] == 200).all()


class Answer(io.BytesIO):
    """What urlopen gives."""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    state: dict[str, Any] = {"calls": [], "content": b"detector", "fault": None}

    def urlopen(url: str, timeout: float) -> Answer:
        state["calls"].append(url)
        if state["fault"] is not None:
            raise state["fault"]
        return Answer(state["content"])

    monkeypatch.setattr(detection.urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(detection, "DETECTOR_SHA256", hashlib.sha256(b"detector").hexdigest())
    return state


def test_detector_is_fetched_once_and_kept(tmp_path: Path, served: dict[str, Any]) -> None:
    path = find_detector(cache=tmp_path / "cache")
    assert path.read_bytes() == b"detector"
    assert find_detector(cache=tmp_path / "cache") == path
    assert served["calls"] == [DETECTOR_URL]


def test_offline_the_error_explains_the_download(tmp_path: Path, served: dict[str, Any]) -> None:
    served["fault"] = urllib.error.URLError("Name or service not known")
    with pytest.raises(InputError) as fault:
        find_detector(cache=tmp_path)
    text = str(fault.value)
    for part in (
        DETECTOR_URL,
        detection.DETECTOR_SHA256,
        str(tmp_path / DETECTOR_NAME),
        "--detector",
        "Name or service",
    ):
        assert part in text
    assert list(tmp_path.iterdir()) == []


def test_file_with_another_hash_is_not_kept(tmp_path: Path, served: dict[str, Any]) -> None:
    served["content"] = b"<html>"
    with pytest.raises(InputError, match="another file"):
        find_detector(cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_damaged_detector_in_the_cache_is_named(tmp_path: Path, served: dict[str, Any]) -> None:
    (tmp_path / DETECTOR_NAME).write_bytes(b"detect")
    with pytest.raises(InputError, match="damaged"):
        find_detector(cache=tmp_path)
    assert served["calls"] == []


def test_detector_that_is_named_is_used_and_nothing_fetched(tmp_path: Path, served: dict[str, Any]) -> None:
    own = tmp_path / "own.onnx"
    with pytest.raises(InputError, match="no such file"):
        find_detector(own)
    own.write_bytes(b"own")
    assert find_detector(own) == own
    assert served["calls"] == []


def test_pinned_hash_is_that_of_the_official_file(shared: Path) -> None:
    content = (shared / "faces" / DETECTOR_NAME).read_bytes()
    assert hashlib.sha256(content).hexdigest() == DETECTOR_SHA256


def test_faces_of_half_the_largest_area_are_similar() -> None:
    points = np.zeros((5, 2), np.float32)
    boxes = [(0, 0, 10, 10), (20, 0, 12, 12), (40, 0, 7, 7), (60, 0, 9, 9)]
    faces = [DetectedFace(box, points, 0.9) for box in boxes]
    found = chosen_faces(faces, (100, 100), "largest", with_similar=True)
    assert [face.box[2] for face in found] == [12, 10, 9]
    assert chosen_faces([], (100, 100), "largest", with_similar=True) == []


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_rotated_photo_gives_the_face_of_the_upright_one(
    detector: FaceDetector, photos: dict[str, tuple[Image, np.ndarray]], quarters: int
) -> None:
    for photo, _ in list(photos.values())[quarters::12]:
        (upright,) = detector.detect(photo, "central")
        turned = np.ascontiguousarray(np.rot90(photo, quarters))
        (found,) = detector.detect(turned, "central")
        assert (upright.rotation, found.rotation) == (0, 90 * quarters)
        assert found.height == pytest.approx(upright.height, rel=0.1)
        faces = [
            cv2.GaussianBlur(each, (0, 0), 3).astype(float)
            for each in (upright.aligned(photo), found.aligned(turned))
        ]
        assert np.abs(faces[0] - faces[1]).mean() < 8


def test_upright_photo_is_searched_once(
    detector: FaceDetector, photos: dict[str, tuple[Image, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []
    run = detector._run

    def counted(image: Image, scale: float, score: float, turn: int) -> list[DetectedFace]:
        turns.append(turn)
        return run(image, scale, score, turn)

    monkeypatch.setattr(detector, "_run", counted)
    for photo, _ in list(photos.values())[:10]:
        detector.detect(photo, "central")
    assert set(turns) == {0}
    assert len(turns) == 10 * (1 + len(detection._LANDMARK_HEIGHTS))
    assert detector.detect(np.ascontiguousarray(photo[::-1]), "central", is_upright=True)[0].rotation == 0

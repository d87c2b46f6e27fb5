from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.sources.decoding import Image
from photos.alignment import TEMPLATE
from photos.detection import DETECTOR_NAME, DetectedFace
from photos.photo_files import read_photo
from recognition import face_reading as module
from recognition.aggregation import aggregate_sets
from recognition.face_reading import PhotoOptions
from recognition.model import FaceModel, embed_set
from recognition.records import FaceChoice
from recognition.sources import find_sets
from synthetic.faces import draw_frontal_face

ALIGNED = PhotoOptions(aligned=True)


def clip(path: Path, count: int, side: int = 112) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (side, side))
    for number in range(count):
        writer.write(np.random.default_rng(number // 5).integers(0, 255, (side, side, 3), np.uint8))
    writer.release()
    return path


def aggregate(model: FaceModel, *paths: Path, options: PhotoOptions = ALIGNED):
    return aggregate_sets(model, find_sets(list(paths)), options)


def test_folder_is_aggregated_from_all_its_faces(model: FaceModel, face_folder: Callable[..., Path]) -> None:
    root = face_folder(2, 5)
    found, empty = aggregate_sets(model, find_sets([], root), ALIGNED)
    assert [each.name for each in found] == ["s000", "s001"]
    assert empty == []
    for each in found:
        assert each.files == [f"{number}.png" for number in range(5)]
        images = np.stack([read_photo(each.path / name) for name in each.files])
        expected = embed_set(model, images)
        assert np.abs(each.embedding - expected.embedding).max() < 1e-5
        assert each.picks.tolist() == expected.picks.tolist()
        assert each.rejected == []


def test_batches_across_sets_keep_faces_in_their_sets(
    model: FaceModel, face_folder: Callable[..., Path]
) -> None:
    from dataclasses import replace

    root = face_folder(5, 3)
    small, _ = aggregate_sets(replace(model, batch_size=2), find_sets([], root), ALIGNED)
    large, _ = aggregate_sets(replace(model, batch_size=64), find_sets([], root), ALIGNED)
    for one, other in zip(small, large, strict=True):
        assert one.files == other.files
        assert np.abs(one.features - other.features).max() < 1e-5


def test_unusable_files_are_rejected_with_reasons(model: FaceModel, face_folder: Callable[..., Path]) -> None:
    folder = face_folder(1, 3) / "s000"
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("who is who")
    (folder / "half.png").write_bytes((folder / "0.png").read_bytes()[:200])
    cv2.imwrite(str(folder / "large.png"), np.zeros((200, 300, 3), np.uint8))
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / ".hidden").write_bytes(b"x")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "sub").mkdir()
    (found,), _ = aggregate(model, folder)
    assert found.files == ["0.png", "1.png", "2.png"]
    reasons = {each.name: each.reason for each in found.rejected}
    assert reasons.keys() == {"empty.jpg", "notes.txt", "half.png", "large.png", "broken.mp4"}
    assert "empty" in reasons["empty.jpg"]
    assert "not an image" in reasons["notes.txt"]
    assert "truncated" in reasons["half.png"]
    assert "300 x 200" in reasons["large.png"]
    assert str(folder) not in "".join(reasons.values())


def test_set_without_faces_is_empty(
    model: FaceModel, face_folder: Callable[..., Path], tmp_path: Path
) -> None:
    empty_one = tmp_path / "nobody"
    empty_one.mkdir()
    (empty_one / "a.jpg").write_bytes(b"")
    found, empty = aggregate(model, face_folder(1, 2) / "s000", empty_one)
    assert [each.name for each in found] == ["s000"]
    assert [(each.name, len(each.rejected)) for each in empty] == [("nobody", 1)]


def test_video_is_a_set_of_frames_and_one_medium(model: FaceModel, tmp_path: Path) -> None:
    path = clip(tmp_path / "walk.avi", 30)
    (found,), _ = aggregate(model, path, options=PhotoOptions(aligned=True, fps=2))
    assert found.name == "walk.avi"
    assert found.files == [f"walk.avi at {second:.2f} s" for second in (0, 0.5, 1, 1.5, 2, 2.5)]
    assert {face.medium for face in found.faces} == {0}


def test_folder_with_photos_and_videos(
    model: FaceModel, face_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = face_folder(1, 2) / "s000"
    clip(folder / "0b.avi", 10)
    (found,), _ = aggregate(model, folder)
    assert found.files == ["0.png", "0b.avi at 0.00 s", "0b.avi at 0.50 s", "1.png"]
    assert [face.medium for face in found.faces] == [0, 1, 1, 2]


def test_image_is_a_set_of_one_face(model: FaceModel, face_folder: Callable[..., Path]) -> None:
    (found,), _ = aggregate(model, face_folder(1, 1) / "s000" / "0.png")
    assert found.name == "0.png"
    assert len(found.faces) == 1


def test_real_photos_are_detected_and_aligned(shared: Path, bare_model: FaceModel, tmp_path: Path) -> None:
    shutil.unpack_archive(shared / "faces" / "raw_sample.tar", tmp_path)
    folder = tmp_path / "Liam_Neeson"
    cv2.imwrite(str(folder / "wall.png"), np.full((200, 200, 3), 130, np.uint8))
    options = PhotoOptions(detector=shared / "faces" / DETECTOR_NAME)
    (found,), _ = aggregate(bare_model, folder, options=options)
    assert len(found.faces) == 3
    assert [(each.name, each.reason) for each in found.rejected] == [("wall.png", "no face was found in it.")]
    for face in found.faces:
        assert face.size is not None
        assert 80 < face.size < 200
        assert face.score is not None
        assert 0.6 < face.score <= 1
        assert face.measures is not None
        assert abs(face.measures.yaw) < 60


def test_all_faces_of_a_photo_are_numbered(shared: Path, bare_model: FaceModel, tmp_path: Path) -> None:
    shutil.unpack_archive(shared / "faces" / "raw_sample.tar", tmp_path)
    pair = [read_photo(path) for path in sorted((tmp_path / "Liam_Neeson").iterdir())[:2]]
    cv2.imwrite(str(tmp_path / "pair.png"), np.concatenate(pair, axis=1)[..., ::-1])
    options = PhotoOptions(faces="all", detector=shared / "faces" / DETECTOR_NAME)
    (found,), _ = aggregate(bare_model, tmp_path / "pair.png", options=options)
    # There may be more faces in the background.
    assert found.files == [f"pair.png #{number}" for number in range(1, len(found.faces) + 1)]
    assert len(found.faces) >= 2
    sizes = [face.size for face in found.faces]
    assert min(sizes[:2]) > 80


def test_of_two_faces_of_similar_size_the_one_that_agrees_is_chosen(
    model: FaceModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The left face of the pair shows a different person than the other photo of the folder."""
    anna, other = draw_frontal_face(0, seed=1), draw_frontal_face(7, seed=1)

    class TwoFaces:
        def __init__(self, _: Path) -> None:
            pass

        def detect(self, photo: Image, faces: str, *, with_similar: bool) -> list[DetectedFace]:
            assert (faces, with_similar) == ("largest", True)
            return [
                DetectedFace((left, 0, 112, 112), TEMPLATE + np.float32([left, 0]), 0.9)
                for left in range(0, photo.shape[1], 112)
            ]

    monkeypatch.setattr(module, "FaceDetector", TwoFaces)
    folder = tmp_path / "anna"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), anna[..., ::-1])
    cv2.imwrite(str(folder / "pair.png"), np.concatenate([other, anna], axis=1)[..., ::-1])
    detector = tmp_path / "detector"
    detector.touch()
    options = PhotoOptions(detector=detector)
    (found, alone), _ = aggregate(model, folder, folder / "pair.png", options=options)
    assert found.files == ["a.png", "pair.png"]
    assert [face.choice for face in found.faces] == [None, FaceChoice(2, from_left=2, agrees=True)]
    assert found.features[0] @ found.features[1] > 0.999
    assert alone.files == ["pair.png"]
    assert alone.faces[0].choice == FaceChoice(2, from_left=1, agrees=False)
    assert all(face.alone for each in (found, alone) for face in each.faces)

from __future__ import annotations

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.videos import Frame, expected_frames, frames
from errors import InputError

RATE = 25


def video(path: Path, count: int) -> Path:
    """Frame n is of the grey level n % 200 + 20, with red above and blue below."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (64, 48))
    for number in range(count):
        image = np.full((48, 64, 3), number % 200 + 20, np.uint8)
        writer.write(image)
    writer.release()
    return path


@pytest.mark.parametrize(
    ("fps", "wanted"), [(5.0, range(0, 50, 5)), (1.0, (0, 25)), (25.0, range(50)), (60.0, range(50))]
)
def test_frames_are_sampled_evenly(tmp_path: Path, fps: float, wanted: range) -> None:
    path = video(tmp_path / "clip.avi", 50)
    found = list(frames(path, fps))
    levels = [round(float(frame.image.mean())) - 20 for frame in found]
    assert np.abs(np.array(levels) - list(wanted)).max() <= 2
    assert np.abs(np.array([frame.seconds for frame in found]) * RATE - list(wanted)).max() < 0.6
    assert expected_frames(path, fps) == pytest.approx(len(found), abs=1)


def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    """OpenCV 5 ends the process at such a name."""
    path = tmp_path / "a\udcff.mp4"
    video(tmp_path / "a.mp4", 10).replace(path)
    assert len(list(frames(path, 30.0))) == 10
    assert expected_frames(path, 30.0) == 10


def test_frames_are_rgb(tmp_path: Path) -> None:
    path = tmp_path / "red.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (64, 48))
    writer.write(np.full((48, 64, 3), (0, 0, 250), np.uint8))
    writer.release()
    red, green, blue = next(frames(path, 1.0)).image.mean(axis=(0, 1))
    assert red > 200
    assert max(green, blue) < 50


def test_frames_come_one_after_another_and_none_is_kept(tmp_path: Path) -> None:
    path = video(tmp_path / "long.avi", 500)
    stream = frames(path, RATE)
    next(stream)
    tracemalloc.start()
    for _ in stream:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 48 * 64 * 3


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty"), (b"no video at all" * 20, "not a video")])
def test_what_is_no_video_says_so(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as fault:
        list(frames(path, 2.0))
    assert str(path) in str(fault.value)


def test_a_video_that_is_cut_short_gives_what_it_has_and_then_says_so(tmp_path: Path) -> None:
    path = video(tmp_path / "clip.avi", 200)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    stream = frames(path, RATE)
    found: list[Frame] = []
    with pytest.raises(InputError, match="cut short"):
        found.extend(stream)
    assert 50 < len(found) < 150

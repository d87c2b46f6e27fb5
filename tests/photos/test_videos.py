from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.sources.image_files import is_image_file, is_video
from photos import videos
from photos.videos import Frame, expected_frames, frames
from runtime.errors import InputError

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


def test_frames_are_decoded_one_at_a_time(tmp_path: Path) -> None:
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
def test_non_video_is_reported(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as fault:
        list(frames(path, 2.0))
    assert str(path) in str(fault.value)


def test_decoder_messages_on_a_damaged_video_are_suppressed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = marked(tmp_path / "clip.mp4")
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(InputError, match=r"clip\.mp4"):
        list(frames(path, 2.0))
    assert capfd.readouterr() == ("", "")


def test_video_that_is_truncated_gives_its_frames_and_then_an_error(tmp_path: Path) -> None:
    path = video(tmp_path / "clip.avi", 200)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    stream = frames(path, RATE)
    found: list[Frame] = []
    with pytest.raises(InputError, match="truncated"):
        found.extend(stream)
    assert 50 < len(found) < 150


def marked(path: Path, fourcc: str = "mp4v") -> Path:
    """Red in the top left quarter, on black, 128 x 96."""
    image = np.zeros((96, 128, 3), np.uint8)
    image[:48, :64] = (0, 0, 255)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*fourcc), RATE, (128, 96))
    for _ in range(5):
        writer.write(image)
    writer.release()
    return path


def with_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """With another display matrix in tkhd (version 0)."""
    content = bytearray(path.read_bytes())
    at = content.find(b"tkhd") + 4 + 40
    content[at : at + 36] = struct.pack(">9i", *(65536 * each for each in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("matrix", "corner", "size"),
    [
        ((1, 0, 0, 1), "top left", (96, 128)),
        ((-1, 0, 0, 1), "top right", (96, 128)),
        ((1, 0, 0, -1), "bottom left", (96, 128)),
        ((-1, 0, 0, -1), "bottom right", (96, 128)),
        ((0, 1, -1, 0), "top right", (128, 96)),
        ((0, 1, 1, 0), "top left", (128, 96)),
        ((0, -1, -1, 0), "bottom right", (128, 96)),
    ],
)
def test_frames_are_turned_and_mirrored_as_the_container_says(
    tmp_path: Path, matrix: tuple[int, int, int, int], corner: str, size: tuple[int, int]
) -> None:
    image = next(frames(with_matrix(marked(tmp_path / "a.mp4"), *matrix), 1.0)).image
    assert image.shape[:2] == size
    row, column = np.argwhere(image[..., 0] > 150).mean(axis=0) / size
    assert f"{'top' if row < 0.5 else 'bottom'} {'left' if column < 0.5 else 'right'}" == corner


def test_frames_that_are_too_large_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "_MAX_PIXELS", 128 * 96 - 1)
    with pytest.raises(InputError, match="128 x 96"):
        next(frames(marked(tmp_path / "a.mp4"), 1.0))


@pytest.mark.filterwarnings("error")
def test_video_is_known_by_its_content(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kinds = {".mp4": "mp4v", ".mov": "mp4v", ".avi": "MJPG", ".mkv": "mp4v", ".flv": "FLV1", ".ts": "MPG2"}
    kinds |= {".m2ts": "MPG2", ".mts": "MPG2", ".wmv": "WMV2", ".3gp": "mp4v", ".mpg": "MPG1"}
    for suffix, fourcc in kinds.items():
        path = marked(tmp_path / f"a{suffix}", fourcc)
        assert is_video(path), suffix
        renamed = path.rename(tmp_path / f"{suffix[1:]} without suffix")
        assert is_video(renamed), suffix
        assert len(list(frames(renamed, RATE))) == 5, suffix
        assert not is_image_file(str(renamed))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a note\n" * 100,
        b"#EXTM3U\n/etc/passwd\n",
        b"ffconcat version 1.0\nfile a\n",
        b"GIF89a" + bytes(99),
    ]
    + [b"\x00\x00\x00\x18ftyp" + brand + bytes(40) for brand in (b"heic", b"avif", b"mif1")],
)
def test_non_video_is_recognised_under_any_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    assert not is_video(tmp_path / "a.mp4")

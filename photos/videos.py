"""Frames of a video, a few a second, decoded one after another: memory does not grow with its length."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from data.sources.decoding import Image
from runtime.errors import InputError
from runtime.input_files import utf8_path

# Containers without a rate of their own say 0 or something absurd; so do damaged ones.
_ASSUMED_RATE, _LOWEST_RATE, _HIGHEST_RATE = 25.0, 1e-3, 1000.0
# FFmpeg's level that prints nothing.
_SILENT = "-8"
# Of a frame; 8,192 x 4,320 is the largest common size. FFmpeg holds some twenty frames of 1.5 bytes a pixel.
_MOST_PIXELS = 36_000_000
# A header's count is an estimate; only a clear gap says that the file is cut short.
_WHOLE = 0.9


@dataclass(frozen=True, eq=False)
class Frame:
    """`seconds` from the start; `image`: (H, W, 3) uint8 RGB, turned and mirrored as the container says."""

    seconds: float
    image: Image


def frames(path: Path, fps: float) -> Iterator[Frame]:
    """The first frame, and then the next one after every 1/fps seconds; all frames where it has fewer.

    Frames between are not converted. Times are the container's own (the rate may vary), or counted by the
    frame rate where it has none.

    Raises:
        InputError: no video that can be decoded, or its frames are too large; or, after the last good frame,
            that the file ends early.
    """
    video = _opened(path)
    try:
        if not video.isOpened():
            raise InputError(f"{path}: {_why_closed(path)}")
        width, height = video.get(cv2.CAP_PROP_FRAME_WIDTH), video.get(cv2.CAP_PROP_FRAME_HEIGHT)
        if width * height > _MOST_PIXELS:
            raise InputError(
                f"{path}: its frames are {width:,.0f} x {height:,.0f} pixels; more than "
                f"{_MOST_PIXELS / 1e6:.0f} million are not decoded. Make it smaller."
            )
        matrix = mirroring_matrix(path)
        if matrix is not None:
            video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
        rate, count = _rate(video), video.get(cv2.CAP_PROP_FRAME_COUNT)
        wanted, number, last = 0, 0, -1.0
        while video.grab():
            told = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
            seconds = told if last < told < math.inf else max(number / rate, last)
            number, last = number + 1, seconds
            # Half a frame of tolerance, so that 5 of 25 frames a second are evenly 5 apart.
            if seconds + 0.5 / rate < wanted / fps:
                continue
            whole, image = video.retrieve()
            if whole and image is not None:
                wanted = int((seconds + 0.5 / rate) * fps) + 1
                rgb = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
                yield Frame(seconds, rgb if matrix is None else _mirrored(rgb, matrix))
        if number == 0:
            raise InputError(f"{path}: no frame of it can be decoded. It may be cut short or damaged.")
        if count > 0 and number < _WHOLE * count:
            raise InputError(
                f"{path}: ends after {number:,} of {count:,.0f} frames. It may be cut short; what could be "
                "read of it is used."
            )
    finally:
        video.release()


def expected_frames(path: Path, fps: float) -> int:
    """About how many frames `frames` gives, for a progress bar; 1 where the container does not tell."""
    video = _opened(path)
    try:
        count = video.get(cv2.CAP_PROP_FRAME_COUNT) if video.isOpened() else 0.0
        return max(1, round(min(count, count / _rate(video) * fps)))
    finally:
        video.release()


def _opened(path: Path) -> cv2.VideoCapture:
    # OpenCV reads it before it opens the first video. What is wrong with a file is in our sentences alone.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", _SILENT)
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    try:
        return _captured(path)
    finally:
        cv2.utils.logging.setLogLevel(level)


def _captured(path: Path) -> cv2.VideoCapture:
    with utf8_path(path) as readable:
        # Absolute, as FFmpeg takes 'concat:a' for a protocol.
        return cv2.VideoCapture(os.path.abspath(readable), _backend())


def _backend() -> int:
    """FFmpeg, which OpenCV's wheels have: others would be tried on a damaged file, that for images too."""
    has_ffmpeg = cv2.CAP_FFMPEG in cv2.videoio_registry.getStreamBackends()
    return cv2.CAP_FFMPEG if has_ffmpeg else cv2.CAP_ANY


def _mirrored(image: Image, matrix: Matrix) -> Image:
    """A stored frame as a display matrix that mirrors shows it."""
    a, b, c, d = matrix
    across, down = a, d
    if abs(b) > abs(a):
        image, across, down = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])


def _rate(video: cv2.VideoCapture) -> float:
    rate: float = video.get(cv2.CAP_PROP_FPS)
    return rate if _LOWEST_RATE <= rate <= _HIGHEST_RATE else _ASSUMED_RATE


def _why_closed(path: Path) -> str:
    try:
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except OSError as fault:
        return f"cannot be read ({fault.strerror})."
    return "the file is empty." if size == 0 else "is not a video, or of a kind that OpenCV does not read."


# ------------------------------------------------------------------ display matrix of MP4 and MOV (box tkhd)

# a, b, c, d of x' = a x + c y, y' = b x + d y.
Matrix = tuple[float, float, float, float]

_MOST_BOXES = 10_000
# Behind the box's header: version and flags, two times, track, reserved and duration, then 16 bytes.
_MATRIX_AT = {0: 40, 1: 52}


def mirroring_matrix(path: Path) -> Matrix | None:
    """The matrix where it mirrors the frames; None where it does not, or is not found."""
    try:
        with path.open("rb") as stream:
            end = stream.seek(0, 2)
            matrix = next(_matrices(stream, end), None)
    except (OSError, struct.error):
        return None
    if matrix is None:
        return None
    a, b, c, d = matrix
    return matrix if a * d - b * c < 0 else None


def _matrices(stream: BinaryIO, end: int) -> Iterator[Matrix]:
    for moov in _boxes(stream, 0, end, b"moov"):
        for track in _boxes(stream, *moov, b"trak"):
            handlers = (
                handler
                for media in _boxes(stream, *track, b"mdia")
                for handler in _boxes(stream, *media, b"hdlr")
            )
            if not any(_read(stream, start + 8, 4) == b"vide" for start, _ in handlers):
                continue
            for start, _ in _boxes(stream, *track, b"tkhd"):
                at = _MATRIX_AT.get(_read(stream, start, 1)[0])
                if at is not None:
                    a, b, _, c, d = struct.unpack(">5i", _read(stream, start + at, 20))
                    yield a, b, c, d


def _boxes(stream: BinaryIO, start: int, end: int, kind: bytes) -> Iterator[tuple[int, int]]:
    """Where the contents of the boxes of a kind between two places start and end."""
    for _ in range(_MOST_BOXES):
        if start + 8 > end:
            return
        size, name = struct.unpack(">I4s", _read(stream, start, 8))
        header = 8
        if size == 1:
            (size,), header = struct.unpack(">Q", _read(stream, start + 8, 8)), 16
        stop = end if size == 0 else start + size
        if stop < start + header or stop > end:
            return
        if name == kind:
            yield start + header, stop
        start = stop


def _read(stream: BinaryIO, at: int, count: int) -> bytes:
    stream.seek(at)
    content = stream.read(count)
    if len(content) < count:
        raise struct.error("the file ends here")
    return content

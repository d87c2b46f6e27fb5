"""Decode frames of a video at a given rate, one at a time, with the rotation and flip of its container."""

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

# Containers without a frame rate, and damaged ones, report 0 or absurd values.
_ASSUMED_RATE, _LOWEST_RATE, _HIGHEST_RATE = 25.0, 1e-3, 1000.0
# FFmpeg's level that prints nothing.
_SILENT = "-8"
# Limit for a frame; 8,192 x 4,320 is the largest common size. FFmpeg buffers about twenty frames.
_MAX_PIXELS = 36_000_000
# The frame count of a header is an estimate; a fraction below this means a truncated file.
_WHOLE = 0.9
# a, b, c, d of x' = a x + c y, y' = b x + d y.
Matrix = tuple[float, float, float, float]
_MAX_BOXES = 10_000
# Behind the box's header: version and flags, two times, track, reserved and duration, then 16 bytes.
_MATRIX_AT = {0: 40, 1: 52}


@dataclass(frozen=True, eq=False)
class Frame:
    """`seconds` from the start; `image`: (H, W, 3) uint8 RGB, upright."""

    seconds: float
    image: Image


def frames(path: Path, fps: float) -> Iterator[Frame]:
    """Yield a frame every 1/fps seconds, or all frames of a video with a lower rate.

    Times are those of the container (the rate may vary), or derived from the frame rate.

    Raises:
        InputError: the video cannot be decoded or its frames are too large; or, after the last good frame,
            the file is truncated.
    """
    video = _opened(path)
    try:
        if not video.isOpened():
            raise InputError(f"{path}: {_why_closed(path)}")
        width, height = video.get(cv2.CAP_PROP_FRAME_WIDTH), video.get(cv2.CAP_PROP_FRAME_HEIGHT)
        if width * height > _MAX_PIXELS:
            raise InputError(
                f"{path}: its frames are {width:,.0f} x {height:,.0f} pixels; more than "
                f"{_MAX_PIXELS / 1e6:.0f} million are not decoded. Reduce its size."
            )
        matrix = mirroring_matrix(path)
        if matrix is not None:
            video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
        rate, count = _rate(video), video.get(cv2.CAP_PROP_FRAME_COUNT)
        wanted, number, last = 0, 0, -1.0
        while video.grab():
            time = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
            seconds = time if last < time < math.inf else max(number / rate, last)
            number, last = number + 1, seconds
            # With a tolerance of half a frame, so that 5 of 25 frames per second are evenly spaced.
            if seconds + 0.5 / rate < wanted / fps:
                continue
            whole, image = video.retrieve()
            if whole and image is not None:
                wanted = int((seconds + 0.5 / rate) * fps) + 1
                rgb = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
                yield Frame(seconds, rgb if matrix is None else _mirrored(rgb, matrix))
        if number == 0:
            raise InputError(f"{path}: no frame can be decoded. The file may be truncated or damaged.")
        if count > 0 and number < _WHOLE * count:
            raise InputError(
                f"{path}: ends after {number:,} of {count:,.0f} frames and may be truncated; the frames "
                "before are used."
            )
    finally:
        video.release()


def expected_frames(path: Path, fps: float) -> int:
    """Approximate number of frames of `frames`, for a progress bar; 1 if unknown."""
    video = _opened(path)
    try:
        count = video.get(cv2.CAP_PROP_FRAME_COUNT) if video.isOpened() else 0.0
        return max(1, round(min(count, count / _rate(video) * fps)))
    finally:
        video.release()


def _opened(path: Path) -> cv2.VideoCapture:
    # OpenCV reads the variable before it opens the first video. FFmpeg's own messages are suppressed.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", _SILENT)
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    # Without FFmpeg, OpenCV tries other backends on a damaged file, even for images.
    has_ffmpeg = cv2.CAP_FFMPEG in cv2.videoio_registry.getStreamBackends()
    try:
        with utf8_path(path) as readable:
            # Absolute, because FFmpeg takes 'concat:a' for a protocol.
            name = os.path.abspath(readable)
            return cv2.VideoCapture(name, cv2.CAP_FFMPEG if has_ffmpeg else cv2.CAP_ANY)
    finally:
        cv2.utils.logging.setLogLevel(level)


def _mirrored(image: Image, matrix: Matrix) -> Image:
    """Apply a display matrix that mirrors to a stored frame."""
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
        with path.open("rb") as stream:
            is_empty = not stream.read(1)
    except OSError as fault:
        return f"cannot be read ({fault.strerror})."
    return "the file is empty." if is_empty else "is not a video, or of an unsupported format."


# ------------------------------------------------------------------ display matrix of MP4 and MOV (box tkhd)


def mirroring_matrix(path: Path) -> Matrix | None:
    """The display matrix of the first video track if it mirrors the frames, else None.

    OpenCV applies the matrix, but takes mirroring for a rotation by 180 degrees (ISO/IEC 14496-12).
    """
    try:
        with path.open("rb") as stream:
            end = stream.seek(0, 2)
            matrix = next(_matrices(stream, end), None)
    except (OSError, struct.error):
        return None
    a, b, c, d = matrix or (0, 0, 0, 0)
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
    """Start and end of the contents of the boxes of a kind."""
    for _ in range(_MAX_BOXES):
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

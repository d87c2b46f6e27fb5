"""The display matrix of the first video track of an MP4 or MOV file (ISO/IEC 14496-12, box tkhd).

OpenCV turns frames as the matrix says, but takes one that mirrors for a turn by 180 degrees.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

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

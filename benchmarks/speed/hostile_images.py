"""Makers of small images and videos that demand much memory or time, for `hostile_files.py`."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image as Pillow


def _photo(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    Pillow.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def png(side: int, depth: int, colour: int, *, pixels: bool) -> bytes:
    """A black PNG of side x side; without `pixels` its header alone."""
    packer = zlib.compressobj(1)
    row = bytes(1 + side * depth // 8 * (3 if colour == 2 else 1))
    parts = [packer.compress(row) for _ in range(side if pixels else 0)]
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)),
        (b"IDAT", b"".join(parts) + packer.flush()),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def float_tiff(side: int) -> bytes:
    """A TIFF of 32-bit floats whose strips of 100 rows are all the same bytes."""
    strip = zlib.compress(bytes(side * 4 * 100), 9)
    strips = side // 100
    start = 8 + len(strip) + len(strip) % 2
    arrays = start + 2 + 10 * 12 + 4
    entries = [
        *((256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 32), (259, 3, 1, 8), (262, 3, 1, 1)),
        *((273, 4, strips, arrays), (277, 3, 1, 1), (278, 4, 1, 100)),
        *((279, 4, strips, arrays + 4 * strips), (339, 3, 1, 3)),
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *each) for each in entries)
    lists = struct.pack(f"<{strips}I", *[8] * strips) + struct.pack(f"<{strips}I", *[len(strip)] * strips)
    head = b"II*\0" + struct.pack("<I", start) + strip + bytes(len(strip) % 2)
    return head + directory + bytes(4) + lists


def scans(count: int) -> bytes:
    """A progressive JPEG of 3,000 x 3,000 with its last scan many times."""
    content = _jpeg(3000)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


def _jpeg(side: int) -> bytes:
    size = struct.pack(">HH", 48, 64)
    content = _photo("JPEG", progressive=True, subsampling=0)
    at = content.index(b"\xff\xc2") + 5
    if content[at : at + 4] != size:
        raise RuntimeError("the size is not where it was")
    return content[:at] + struct.pack(">HH", side, side) + content[at + 4 :]


def animated_webp(side: int) -> bytes:
    """An animation of small frames on a canvas of side x side."""
    frames = [Pillow.fromarray(np.full((48, 64, 3), level, np.uint8)) for level in (0, 200)]
    stream = io.BytesIO()
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:])
    content = bytearray(stream.getvalue())
    content[24:30] = (side - 1).to_bytes(3, "little") * 2
    return bytes(content)


def wide_gif(side: int) -> bytes:
    """A GIF with a small image on a screen of side x side."""
    content = _photo("GIF")
    return content[:6] + struct.pack("<HH", side, side) + content[10:]


def sparse(path: Path) -> None:
    """20 GB of zeros that compress to a few bytes."""
    with path.open("wb") as stream:
        stream.truncate(20_000_000_000)


def _written(content: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content())


# By what they are: name of the file, maker.
IMAGE_BOMBS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "PNG, header 100,000 x 100,000": ("b.png", _written(lambda: png(100_000, 8, 2, pixels=False))),
    "PNG, 12,000 x 12,000": ("b.png", _written(lambda: png(12_000, 8, 2, pixels=True))),
    "PNG, 12,000 x 12,000, 16 bits": ("b.png", _written(lambda: png(12_000, 16, 0, pixels=True))),
    "TIFF, 12,000 x 12,000, float": ("b.tif", _written(lambda: float_tiff(12_000))),
    "JPEG, 12,000 x 12,000, progressive": ("b.jpg", _written(lambda: _jpeg(12_000))),
    "JPEG, 2,000 scans of 9 million": ("b.jpg", _written(lambda: scans(2_000))),
    "WebP, canvas 12,000 x 12,000": ("b.webp", _written(lambda: animated_webp(12_000))),
    "GIF, screen 12,000 x 12,000": ("b.gif", _written(lambda: wide_gif(12_000))),
    "PPM, header 12,000 x 12,000": (
        "b.ppm",
        _written(lambda: b"P6 12000 12000 65535\n" + bytes(99)),
    ),
    "JPEG, 20 GB of zeros": ("b.jpg", sparse),
}

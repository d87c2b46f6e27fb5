from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow

from data.sources.decoding import MAX_PIXELS, decode_face
from data.sources.image_files import is_image_file
from photos.photo_files import decode_photo, read_photo, thumbnail
from runtime.errors import InputError

# Red on the left, blue on the right, dark at the top.
PIXELS = np.zeros((40, 60, 3), np.uint8)
PIXELS[10:, :30, 0], PIXELS[10:, 30:, 2] = 200, 200


def encoded(image: Pillow.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_colours_are_rgb() -> None:
    assert (decode_photo(encoded(Pillow.fromarray(PIXELS))) == PIXELS).all()


# What each EXIF orientation says to do with the stored pixels.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("tag", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_followed(tag: int, kind: str) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = tag
    found = decode_photo(encoded(Pillow.fromarray(PIXELS), kind, exif=exif, quality=95))
    expected = UPRIGHT[tag](PIXELS)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 12


def test_grey_gets_three_equal_channels() -> None:
    grey = PIXELS[..., 0]
    found = decode_photo(encoded(Pillow.fromarray(grey)))
    assert (found == grey[..., None]).all()


def test_transparent_parts_are_white_and_half_transparent_ones_mixed() -> None:
    layered = np.dstack([PIXELS, np.full((40, 60), 255, np.uint8)])
    layered[:, :30, 3] = 0
    layered[:, 30:, 3] = 128
    found = decode_photo(encoded(Pillow.fromarray(layered)))
    assert (found[:, :30] == 255).all()
    assert np.abs(found[20, 40].astype(int) - (127, 127, 227)).max() <= 1


def test_palette_with_a_transparent_colour_is_white_there() -> None:
    image = Pillow.new("P", (20, 20), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert (decode_photo(encoded(image, transparency=1)) == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_eight_by_their_upper_half(channels: int) -> None:
    levels = np.linspace(0, 65535, 1600).astype(np.uint16).reshape(40, 40, 1).repeat(channels, axis=2)
    found = decode_photo(cv2.imencode(".png", levels)[1].tobytes())
    assert np.abs(found.astype(int) - (levels >> 8)).max() <= 1


def test_cmyk_is_read() -> None:
    assert decode_photo(encoded(Pillow.fromarray(PIXELS).convert("CMYK"), "JPEG")).shape == PIXELS.shape


def bomb(side: int) -> bytes:
    """A PNG whose header says side x side, and which has no pixels."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"IDAT": zlib.compress(b"")}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks.items()
    )


@pytest.mark.parametrize("side", [int(MAX_PIXELS**0.5) + 1, 13_000, 60_000])
def test_huge_image_is_refused_by_its_header(side: int) -> None:
    with pytest.raises(InputError, match="million"):
        decode_photo(bomb(side))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"this is a note, no image", "not an image"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(40), "HEIC"),
        (encoded(Pillow.fromarray(PIXELS))[:60], "truncated"),
        (
            encoded(
                Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)), "JPEG"
            )[:900],
            "truncated",
        ),
        (encoded(Pillow.fromarray(PIXELS[:4, :4])), "too small"),
    ],
)
def test_unusable_file_is_named_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as fault:
        read_photo(path)
    assert str(path) in str(fault.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jpg: cannot be read"):
        read_photo(tmp_path / "gone.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_any_damage_is_an_input_error(kind: str) -> None:
    whole = encoded(Pillow.fromarray(PIXELS), kind)
    rng = np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, len(broken), 4):
            broken[place] = rng.integers(256)
        with contextlib.suppress(InputError):
            assert decode_photo(bytes(broken)).shape[2] == 3


def test_thumbnail_is_a_small_jpeg_in_true_colours() -> None:
    face = np.zeros((112, 112, 3), np.uint8)
    face[..., 0] = 200
    small = thumbnail(face)
    assert len(small) < 3000
    assert np.abs(decode_photo(small).astype(int).mean(axis=(0, 1)) - (200, 0, 0)).max() < 6


def test_postscript_is_not_interpreted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would run the program gs of the PATH."""
    gs, trace = tmp_path / "gs", tmp_path / "trace"
    gs.write_text(f"#!/bin/sh\ntouch {trace}\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = tmp_path / "holiday"
    path.write_bytes(encoded(Pillow.fromarray(PIXELS), "EPS"))
    assert not is_image_file(str(path))
    with pytest.raises(InputError, match="is not an image"):
        decode_photo(path.read_bytes())
    with pytest.raises(InputError, match="cannot be decoded as an image"):
        decode_face(path.read_bytes(), "holiday")
    assert not trace.exists()

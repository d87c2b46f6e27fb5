"""Depths, sizes, metadata and damage of images, and the memory that they take."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow

from data.sources import decoding
from data.sources.decoding import (
    WrongSizeError,
    decode_face,
    decode_image,
    memory_to_decode,
    read_encoded,
    white_level,
)
from photos.photo_files import read_aligned
from photos.video_frames import aligned_frame
from runtime.errors import InputError
from set_benchmark.media import collect_media
from set_benchmark.protocol import BenchmarkProtocol

RAMP = np.linspace(0, 1, 1600, dtype=np.float32).reshape(40, 40)


def encoded(pixels: np.ndarray, kind: str = "TIFF", **options: object) -> bytes:
    stream = io.BytesIO()
    Pillow.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "pixels",
    [
        RAMP,
        RAMP * 255,
        RAMP * 4095,
        (RAMP * 1023).astype(np.uint16),
        (RAMP * 4095).astype(np.uint16),
        (RAMP * 16383).astype(np.uint16),
        (RAMP * 65535).astype(np.uint16),
        (RAMP * 255).astype(np.int32),
        (RAMP * 4095).astype(np.int32),
        (RAMP * 65535).astype(np.int32),
    ],
    ids=lambda pixels: f"{pixels.dtype} to {pixels.max():g}",
)
def test_white_follows_from_the_type_and_the_range(pixels: np.ndarray) -> None:
    found = decode_image(encoded(pixels), upright=True)
    assert np.abs(found[..., 0].astype(int) - RAMP * 255).max() < 2
    assert (found == found[..., :1]).all()


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_colour_of_few_bits_in_sixteen_is_as_bright(bits: int, kind: str) -> None:
    colours = np.stack([RAMP, RAMP[::-1], RAMP * 0.5], axis=2)
    deep = (colours * (2**bits - 1)).astype(np.uint16)
    found = decode_image(cv2.imencode(f".{kind}", deep[..., ::-1])[1].tobytes(), upright=True)
    assert np.abs(found.astype(int) - colours * 255).max() < 2


@pytest.mark.parametrize(
    "pixels",
    [
        np.where(RAMP > 0.5, np.nan, RAMP),
        np.where(RAMP > 0.5, np.inf, RAMP),
        RAMP * 3,
        RAMP * 1e6,
        RAMP * 255 - 128,
        (RAMP * 1e6).astype(np.int32),
        (RAMP * 255).astype(np.int32) - 100,
    ],
    ids=["NaN", "infinity", "0..3", "0..1e6", "negative", "20 bits", "negative integers"],
)
@pytest.mark.filterwarnings("error")
def test_range_with_ambiguous_white_is_refused(pixels: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="8 bits"):
        decode_image(encoded(pixels.astype(pixels.dtype.newbyteorder("="))), upright=True)


def test_overshoot_of_resampling_is_clipped() -> None:
    assert white_level(-0.02, 1.04, is_float=True) == 1
    assert white_level(0, 0, is_float=True) == 1


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "I;16", "RGBA", "P"])
def test_parts_give_the_same_pixels_as_the_whole(
    tag: int, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (50, 30, 4), np.uint8)
    pixels[..., 3] = np.linspace(0, 255, 50).astype(np.uint8)[:, None]
    image = Pillow.fromarray(pixels)
    if mode == "I;16":
        image = Pillow.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode != "RGBA":
        image = image.convert(mode)
    exif = Pillow.Exif()
    exif[0x0112] = tag
    stream = io.BytesIO()
    image.save(stream, "PNG", exif=exif)
    whole = decode_image(stream.getvalue(), upright=True)
    monkeypatch.setattr(decoding, "_PART_PIXELS", 7 * 30)
    assert (decode_image(stream.getvalue(), upright=True) == whole).all()


def tagged_face(tag: int) -> tuple[bytes, np.ndarray]:
    pixels = np.random.default_rng(1).integers(0, 255, (112, 112, 3), np.uint8)
    exif = Pillow.Exif()
    exif[0x0112] = tag
    return encoded(pixels, "PNG", exif=exif), pixels


def test_orientation_tag_on_an_aligned_face_is_ignored_everywhere(tmp_path: Path) -> None:
    content, pixels = tagged_face(6)
    path = tmp_path / "s" / "a.png"
    path.parent.mkdir()
    path.write_bytes(content)
    assert (decode_face(content, "a") == pixels).all()
    assert (read_aligned(path) == pixels).all()
    assert (aligned_frame(content, "a", None) == pixels).all()
    pool = collect_media(
        tmp_path, BenchmarkProtocol(), tmp_path / "w", detector=None, exclude=frozenset(), chosen=list
    )
    assert (pool.image(pool.media[0].frames[0]) == pixels).all()
    assert not (decode_image(content, upright=True) == pixels).all()


def test_damaged_metadata_leave_the_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(self: Pillow.Image) -> None:
        raise ZeroDivisionError("a rational number")

    content, pixels = tagged_face(1)
    monkeypatch.setattr(Pillow.Image, "getexif", damaged)
    assert (decode_image(content, upright=True) == pixels).all()


@pytest.mark.parametrize(
    "fault", [RuntimeError, MemoryError, ZeroDivisionError, RecursionError, AttributeError]
)
def test_any_decoder_error_is_an_input_error(
    fault: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(self: Pillow.Image) -> None:
        raise fault("deep inside")

    content, _ = tagged_face(1)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", broken)
    with pytest.raises(InputError, match="deep inside"):
        decode_image(content, upright=True)


def test_face_of_another_size_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("it was decoded"))
    with pytest.raises(WrongSizeError):
        decode_image(encoded(np.zeros((500, 900, 3), np.uint8), "PNG"), upright=False, side=112)
    with pytest.raises(InputError, match="900 x 500"):
        decode_face(encoded(np.zeros((500, 900, 3), np.uint8), "PNG"), "a")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF", "JPEG2000", "GIF", "progressive JPEG"])
def test_memory_is_bounded_by_the_header(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"progressive": True} if kind.startswith("progressive") else {}
    content = encoded(np.zeros((800, 1000, 3), np.uint8), kind.split()[-1], **options)
    decode_image(content, upright=True)
    monkeypatch.setattr(decoding, "MAX_MEMORY", 800 * 1000 * 4)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("it was decoded"))
    with pytest.raises(InputError, match="1,000 x 800"):
        decode_image(content, upright=True)


def test_huge_jpeg_is_read_at_half_its_size_as_a_photo_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_HALVED_PIXELS", 100 * 100)
    ramp = np.linspace(0, 255, 202).astype(np.uint8)[:, None, None].repeat(150, 1).repeat(3, 2)
    content = encoded(ramp, "JPEG", quality=95)
    halved = decode_image(content, upright=True)
    assert halved.shape == (101, 75, 3)
    assert np.abs(halved[:, 0, 0].astype(int) - ramp[::2, 0, 0]).max() < 6
    assert decode_image(content, upright=False).shape == (202, 150, 3)


def test_jpeg_of_very_many_scans_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(np.zeros((100, 100, 3), np.uint8), "JPEG", progressive=True)
    monkeypatch.setattr(decoding, "_MAX_SCANNED", 50_000)
    with pytest.raises(InputError, match="scans"):
        decode_image(content, upright=True)


def test_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as stream:
        stream.truncate(decoding.MAX_BYTES + 1)
    with pytest.raises(InputError, match="larger"):
        read_encoded(tmp_path / "a.jpg")


def test_threads_share_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(np.zeros((100, 100, 3), np.uint8), "PNG"))
    needed = 100 * 100 * 7 + path.stat().st_size
    monkeypatch.setattr(decoding, "_MEMORY", decoding._Memory(2 * needed))
    inside, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(2)

    def decode() -> None:
        nonlocal inside, most
        with memory_to_decode(path):
            with lock:
                inside += 1
                most = max(most, inside)
            together.wait(10)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=decode) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2


@pytest.mark.parametrize(
    "start", [b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"\x00\x00\x00\x20ftypavif", b"RIFF\x00\x00\x00\x00WEBP"]
)
def test_damaged_image_with_a_valid_header_is_reported(start: bytes) -> None:
    with pytest.raises(InputError, match="truncated"):
        decode_image(start + bytes(40), upright=True)
    with pytest.raises(InputError, match="not an image"):
        decode_image(b"x" + start + bytes(40), upright=True)

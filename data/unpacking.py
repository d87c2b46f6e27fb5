"""Packs and pair sets to folders of images, and a folder to a pack: the work of convert.py.

Images keep their original bytes unless told otherwise. A kill at any moment leaves whole files only, and the
same call goes on from there.
"""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.pairs import PairSet
from data.recordio import REC_NAME, FacePack, RecordReader, read_face_pack, write_face_pack
from data.sources import ImageFolder
from errors import InputError
from files import atomic_write, require_free_space

FORMATS = ("original", "jpg", "png")
IMAGES = "imgs"

_MARKER = ".unpacked.json"
_CHUNK = 256
_SIGNATURES = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"BM": ".bmp", b"RIFF": ".webp"}
# Each file fills its last block.
_BLOCK = 4096
# Of a JPEG of quality 90 to 95.
_PNG_GROWTH = 4


@dataclass
class Unpacked:
    """What became of the records: `skipped` are (record, why)."""

    subjects: int = 0
    written: int = 0
    there: int = 0
    of_other_size: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def add(self, other: Unpacked) -> None:
        """Sums up a part; subjects are counted once for all."""
        self.written += other.written
        self.there += other.there
        self.of_other_size += other.of_other_size
        self.skipped += other.skipped


@dataclass(frozen=True)
class _Job:
    reader: RecordReader
    out: Path
    image_format: str
    quality: int


def unpack_pack(
    folder: Path, out: Path, *, num_workers: int = 0, image_format: str = "original", quality: int = 95
) -> Unpacked:
    """Writes the images of `train.rec` to `<out>/imgs/<subject>/<key>.jpg`.

    Every image is decoded once, so that a broken one is found now and not in training; it is left out and
    told. `quality` is that of JPEG where `image_format` is 'jpg'.

    Raises:
        InputError: a pack whose records cannot be followed, a folder that holds another pack's images, or too
            little room on the disk.
    """
    pack = read_face_pack(folder)
    images = out / IMAGES
    rec_bytes = (folder / REC_NAME).stat().st_size
    _claim(images, {"images": len(pack.keys), "bytes": rec_bytes, "format": image_format})
    missing = 1 - sum(1 for _ in images.glob("*/[!.]*")) / max(1, len(pack.keys))
    whole = rec_bytes * (_PNG_GROWTH if image_format == "png" else 1) + len(pack.keys) * _BLOCK
    require_free_space(images, int(whole * max(0.0, missing)))
    job = _Job(pack.reader, images, image_format, quality)
    total = Unpacked(subjects=len(np.unique(pack.labels)))
    for label in np.unique(pack.labels).tolist():
        (images / str(label)).mkdir(exist_ok=True)
    with tqdm(total=len(pack.keys), desc="unpacking", unit="image", smoothing=0) as bar:
        for part, count in _parts(job, pack, num_workers):
            total.add(part)
            bar.update(count)
    return total


def unpack_pairs(pairs: PairSet, out: Path) -> int:
    """Writes the images of a pair set to `<out>/<pair>_<a|b>.<suffix>` and `pairs.csv`; gives the pair count.

    `pairs.csv` has the columns first, second, mated (0 or 1), in the order of the pair set.
    """
    out.mkdir(parents=True, exist_ok=True)
    names = [
        f"{number // 2:05}_{'ab'[number % 2]}{_suffix(content)}"
        for number, content in enumerate(pairs.images)
    ]
    require_free_space(out, sum(len(content) + _BLOCK for content in pairs.images))
    for name, content in zip(names, pairs.images, strict=True):
        _write(out / name, content)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["first", "second", "mated"])
    rows.writerows(zip(names[0::2], names[1::2], pairs.is_mated.astype(int).tolist(), strict=True))
    atomic_write(out / "pairs.csv", table.getvalue())
    return len(pairs)


def pack_folder(folder: Path, out: Path) -> tuple[int, int]:
    """Packs `<folder>/<subject>/<image>` with the original bytes; gives the counts of subjects and images.

    Subjects are numbered in the order of their names, which `subjects.txt` keeps, a line each.

    Raises:
        InputError: no images in the folder, or an image that cannot be decoded.
    """
    source = ImageFolder(folder)
    require_free_space(out, sum(source.path(row).stat().st_size + 40 for row in range(len(source))))

    def images() -> Iterator[tuple[int, bytes]]:
        for row in tqdm(range(len(source)), desc="packing", unit="image", smoothing=0):
            # Decoded to find what is no face of 112 x 112 now.
            source.image(row)
            yield int(source.labels[row]), source.read_bytes(row)

    count = write_face_pack(out, images())
    atomic_write(out / "subjects.txt", "".join(f"{name}\n" for name in source.subjects))
    return len(source.subjects), count


def _claim(images: Path, pack: dict[str, object]) -> None:
    """Marks the folder as this pack's; InputError where another pack's images are in it."""
    marker = images / _MARKER
    if marker.is_file() and json.loads(marker.read_text()) != pack:
        raise InputError(
            f"{images}: holds the images of another pack, or of this one in another format: "
            f"{marker.read_text()}, now {json.dumps(pack)}. Choose another --out, or remove the folder."
        )
    if not marker.is_file() and images.is_dir() and any(images.iterdir()):
        raise InputError(f"{images}: is not empty and was not made by convert.py. Choose another --out.")
    atomic_write(marker, json.dumps(pack))


def _parts(job: _Job, pack: FacePack, num_workers: int) -> Iterator[tuple[Unpacked, int]]:
    rows = list(zip(pack.keys.tolist(), pack.labels.tolist(), strict=True))
    chunks = [(job, rows[first : first + _CHUNK]) for first in range(0, len(rows), _CHUNK)]
    if num_workers < 2:
        yield from map(_unpack, chunks)
        return
    # Spawned: a fork of a process with threads (OpenCV's) may hang.
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        yield from pool.imap_unordered(_unpack, chunks)


def _unpack(chunk: tuple[_Job, list[tuple[int, int]]]) -> tuple[Unpacked, int]:
    job, rows = chunk
    part = Unpacked()
    for key, label in rows:
        try:
            _, content = job.reader.read(key)
            image = _decoded(content)
        except InputError as fault:
            part.skipped.append((f"record {key}", str(fault)))
            continue
        part.of_other_size += image.shape[:2] != (112, 112)
        content, suffix = _recoded(content, image, job)
        path = job.out / str(label) / f"{key}{suffix}"
        if path.is_file() and path.stat().st_size == len(content):
            part.there += 1
        else:
            _write(path, content)
            part.written += 1
    return part, len(rows)


def _decoded(content: bytes) -> NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if image is None:
        raise InputError(f"{len(content):,} bytes that cannot be decoded as an image")
    return np.asarray(image, np.uint8)


def _recoded(content: bytes, image: NDArray[np.uint8], job: _Job) -> tuple[bytes, str]:
    if job.image_format == "original":
        return content, _suffix(content)
    suffix = f".{job.image_format}"
    options = [cv2.IMWRITE_JPEG_QUALITY, job.quality] if suffix == ".jpg" else []
    return cv2.imencode(suffix, image, options)[1].tobytes(), suffix


def _suffix(content: bytes) -> str:
    return next((suffix for start, suffix in _SIGNATURES.items() if content.startswith(start)), ".jpg")


def _write(path: Path, content: bytes) -> None:
    """Puts a whole file in place; without fsync, which would cost more than all else.

    What a power cut may leave behind is shorter than its record, and written again by the next call.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as fault:
        raise InputError(
            f"{path}: cannot be written ({fault.strerror}). Nothing is lost: mend that and run the same "
            "command again, it goes on from here."
        ) from None

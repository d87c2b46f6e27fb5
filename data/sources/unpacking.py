"""Unpack RecordIO packs and pair sets to folders of images, and pack a folder.

Images keep their original bytes by default. A killed call leaves complete files only, and the same call
continues it.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, cast

import numpy as np

from data.sources.decoding import FACE_SIZE, Image, decode_face, decode_image, encode_image, suffix_of
from data.sources.face_source import ImageFolder
from data.sources.image_files import IMAGES, PAIRS
from data.sources.pair_files import PairSet
from data.sources.recordio import IDX_NAME, REC_NAME, FacePack, read_face_pack, write_face_pack
from data.sources.subject_names import check_one_line
from runtime.errors import InputError
from runtime.escaping import csv_text
from runtime.files import atomic_write, private_folder
from runtime.json_files import json_text, read_json
from runtime.output_checks import require_free_space
from runtime.progress import progress_bar

FORMATS = ("original", "jpg", "png")

_MARKER = ".unpacked.json"
_PART = ".part"
_CHUNK = 512
# End markers of complete images, which decoders do not always require.
_ENDS = {".jpg": b"\xff\xd9", ".png": b"IEND\xaeB`\x82"}
_END_IS_WITHIN = 1024
# Disk usage is rounded up to blocks.
_BLOCK = 4096
# Size of a PNG relative to a JPEG of quality 90 to 95.
_PNG_GROWTH = 4


@dataclass
class Unpacked:
    """Counts of unpacked records.

    `there`: images of an earlier call; `of_other_size`: written images that are not 112 x 112; `skipped`:
    (key, reason); `notes`: sentences on the subjects' labels.
    """

    subjects: int = 0
    written: int = 0
    there: int = 0
    of_other_size: int = 0
    skipped: list[tuple[int, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: Unpacked) -> None:
        """Add the counts of a chunk."""
        self.written += other.written
        self.there += other.there
        self.of_other_size += other.of_other_size
        self.skipped += other.skipped


@dataclass(frozen=True)
class _Job:
    pack: FacePack
    out: Path
    image_format: str
    quality: int


def unpack_pack(
    folder: Path, out: Path, *, num_workers: int = 0, image_format: str = "original", quality: int = 95
) -> Unpacked:
    """Write the images of `train.rec` to `<out>/imgs/<subject>/<key>.jpg`.

    Every image is decoded once, so broken ones are found now and not in training; they are skipped and
    reported. `quality` applies to `image_format` 'jpg'. A repeated call continues an interrupted one.

    Raises:
        InputError: a damaged record (before anything is written), no usable image, a folder with another
            pack's images, or too little disk space.
    """
    pack = read_face_pack(folder)
    _check_records(pack)
    images = out / IMAGES
    rec_bytes = (folder / REC_NAME).stat().st_size
    form = {"format": image_format} | ({"quality": quality} if image_format == "jpg" else {})
    _claim(images, {"images": len(pack.keys), "bytes": rec_bytes, **form})
    missing = max(0, len(pack.keys) - _whole_images(images))
    growth = _PNG_GROWTH if image_format == "png" else 1
    require_free_space(images, missing * (rec_bytes * growth // max(1, len(pack.keys)) + _BLOCK))
    _require_free_files(images, missing)
    job = _Job(pack, images, image_format, quality)
    subjects = np.unique(pack.labels).tolist()
    for label in subjects:
        private_folder(images / str(label))
    total = Unpacked(subjects=len(subjects), notes=list(pack.notes))
    with progress_bar(total=len(pack.keys), desc="unpacking", unit="image", smoothing=0) as bar:
        for part, count in _parts(job, num_workers):
            total.add(part)
            bar.update(count)
    if not total.written + total.there:
        key, why = min(total.skipped)
        raise InputError(
            f"{folder / REC_NAME}: none of its {len(pack.keys):,} records is a readable image; "
            f"record {key}: {why}. Compare the file's size and checksum with the original."
        )
    return total


def unpack_pairs(pairs: PairSet, out: Path) -> int:
    """Write the images of a pair set to `<out>/<pair>_<a|b>.<suffix>`; returns the number of pairs.

    `pairs.csv` lists them in the order of the pair set, with the columns first, second, mated (0 or 1). Pairs
    with an undecodable image are skipped.

    Raises:
        InputError: no pair can be decoded, or too little disk space.
    """
    private_folder(out)
    require_free_space(out, sum(len(content) + _BLOCK for content in pairs.images))
    rows: list[list[object]] = [["first", "second", "mated"]]
    count = 0
    for number, mated in enumerate(pairs.is_mated.astype(int).tolist()):
        contents = pairs.images[2 * number : 2 * number + 2]
        if any(isinstance(_decoded(content), str) for content in contents):
            continue
        names = [f"{number:05}_{'ab'[place]}{_suffix(content)}" for place, content in enumerate(contents)]
        for name, content in zip(names, contents, strict=True):
            if not _is_there(out / name, len(content)):
                _write(out / name, content)
        rows.append([*names, mated])
        count += 1
    if not count:
        raise InputError(f"{pairs.name}: none of its {len(pairs):,} pairs has two readable images.")
    # Written last, so that it implies that all images are complete.
    atomic_write(out / PAIRS, csv_text(rows))
    return count


def pack_folder(folder: Path, out: Path) -> tuple[int, int, list[str]]:
    """Pack `<folder>/<subject>/<image>` with the original bytes.

    Subjects are numbered in the order of their names, which are written to `subjects.txt`.

    Returns:
        Number of subjects, number of images, and sentences on files that are not read.

    Raises:
        InputError: no images, an undecodable image, or `out` already contains a pack.
    """
    for name in (REC_NAME, IDX_NAME, "property", "subjects.txt"):
        if (out / name).exists():
            raise InputError(f"{out / name}: already exists. Choose another --out, or remove it.")
    source = ImageFolder(folder)
    check_one_line(source.subjects, str(source.location))
    require_free_space(out, sum(source.path(row).stat().st_size + 40 for row in range(len(source))))

    def images() -> Iterator[tuple[int, bytes]]:
        for row in progress_bar(range(len(source)), desc="packing", unit="image", smoothing=0):
            content = source.read_bytes(row)
            # Rejects undecodable images and images of another size.
            decode_face(content, source.describe(row))
            yield int(source.labels[row]), content

    count = write_face_pack(out, images())
    atomic_write(out / "subjects.txt", "".join(f"{name}\n" for name in source.subjects))
    return len(source.subjects), count, source.notes


def _claim(images: Path, pack: dict[str, object]) -> None:
    """Mark the folder as this pack's; raises InputError if it has another pack's images."""
    marker = images / _MARKER
    what = "the origin of unpacked images"
    before = read_json(marker, dict[str, Any], what)[0] if marker.is_file() else None
    if before not in (None, pack):
        raise InputError(
            f"{images}: contains images of another pack, or of this one in another format: "
            f"{json.dumps(before)}, now {json.dumps(pack)}. Choose another --out, or remove the folder."
        )
    if before is None and images.is_dir() and any(images.iterdir()):
        raise InputError(f"{images}: is not empty and was not written by convert.py. Choose another --out.")
    atomic_write(marker, json_text(pack))


def _check_records(pack: FacePack) -> None:
    """Check the frame of every record; raises InputError that names the first damaged one."""
    with progress_bar(total=len(pack.keys), desc="checking", unit="record", delay=2, leave=False) as bar:
        for first in range(0, len(pack.keys), _CHUNK * 64):
            part = pack.keys[first : first + _CHUNK * 64]
            pack.reader.first_labels(part)
            bar.update(len(part))


def _whole_images(images: Path) -> int:
    """Count existing images, and remove partial files of a killed call."""
    count = 0
    for folder in (entry.path for entry in os.scandir(images) if entry.is_dir()):
        for entry in os.scandir(folder):
            if entry.name.startswith(".") and entry.name.endswith(_PART):
                Path(entry.path).unlink(missing_ok=True)
            else:
                count += 1
    return count


def _require_free_files(folder: Path, needed: int) -> None:
    """Check the number of free inodes."""
    # Windows has neither statvfs nor inodes.
    if not hasattr(os, "statvfs"):
        return
    disk = os.statvfs(folder)
    if disk.f_files and disk.f_favail < needed:
        raise InputError(
            f"{folder}: needs {needed:,} files, but its file system has only {disk.f_favail:,} free inodes. "
            "Choose an --out on another disk, or train from the pack itself (main.py --use_mxrecord)."
        )


def _parts(job: _Job, num_workers: int) -> Iterator[tuple[Unpacked, int]]:
    starts = range(0, len(job.pack.keys), _CHUNK)
    if num_workers < 2:
        yield from (_unpack(job, start) for start in starts)
        return
    # Pool waits forever when a worker is killed; ProcessPoolExecutor (Python 3.11.7) when one is killed while
    # another starts, and its workers when the parent is killed. One pipe per worker has no lock that a killed
    # worker could hold. Spawned, because forking a process with OpenCV's threads may hang.
    spawned = multiprocessing.get_context("spawn")
    workers: dict[Connection, SpawnProcess] = {}
    try:
        for _ in range(num_workers):
            here, there = spawned.Pipe()
            workers[here] = spawned.Process(target=_work, args=(there,), daemon=True)
            workers[here].start()
            there.close()
        for number, connection in enumerate(workers):
            _talk(connection, workers, (job, starts[number::num_workers]))
        while workers:
            for ready in wait(list(workers)):
                connection = cast("Connection", ready)
                part = _talk(connection, workers)
                if part is None:
                    workers.pop(connection).join()
                elif isinstance(part, InputError):
                    raise part
                else:
                    yield part
    finally:
        for process in workers.values():
            process.terminate()
            process.join()


def _talk(connection: Connection, workers: dict[Connection, SpawnProcess], message: object = None) -> Any:
    """Send `message` to a worker, or without one receive from it."""
    try:
        return connection.recv() if message is None else connection.send(message)
    except (EOFError, OSError):
        process = workers[connection]
        process.join()
        if process.exitcode is not None and process.exitcode >= 0:
            raise RuntimeError("a worker process failed; its own error is printed above") from None
        raise InputError(
            "A worker process was killed, possibly for lack of memory. Run the same command again with fewer "
            "--num_workers; it continues from here."
        ) from None


def _work(connection: Connection) -> None:
    """A worker: receives a job and sends the result of each chunk, finally None."""
    # Ctrl-C is handled by the parent, which ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The parent may have been killed.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        job, starts = connection.recv()
        try:
            for start in starts:
                connection.send(_unpack(job, start))
            connection.send(None)
        except InputError as fault:
            connection.send(fault)


def _unpack(job: _Job, start: int) -> tuple[Unpacked, int]:
    """Unpack the images `start` to `start` + _CHUNK - 1 of the pack."""
    rows = slice(start, start + _CHUNK)
    keys, labels = job.pack.keys[rows].tolist(), job.pack.labels[rows].tolist()
    part = Unpacked()
    original = job.image_format == "original"
    for key, label in zip(keys, labels, strict=True):
        _, content = job.pack.reader.read(key)
        suffix = _suffix(content) if original else f".{job.image_format}"
        path = job.out / str(label) / f"{key}{suffix}"
        if _is_there(path, len(content) if original else None):
            part.there += 1
            continue
        image = _decoded(content)
        if isinstance(image, str):
            part.skipped.append((key, image))
            continue
        part.of_other_size += image.shape[:2] != (FACE_SIZE, FACE_SIZE)
        _write(path, content if original else encode_image(image, suffix, job.quality))
        part.written += 1
    return part, len(keys)


def _is_there(path: Path, size: int | None) -> bool:
    """Whether a complete image exists: by its size if known, else by the end marker of its format.

    Only a power failure can leave an incomplete file under this name (see `_write`).
    """
    try:
        found = os.stat(path).st_size
        if size is not None:
            return found == size
        with path.open("rb") as stream:
            stream.seek(max(0, found - 16))
            return stream.read().endswith(_ENDS[path.suffix])
    except FileNotFoundError:
        return False


def _decoded(content: bytes) -> Image | str:
    """The image (H, W, 3) in RGB, or the reason why it cannot be decoded."""
    try:
        image = decode_image(content, upright=False)
    except InputError:
        return f"{len(content):,} bytes that cannot be decoded as an image"
    if _ENDS.get(_suffix(content), b"") not in content[-_END_IS_WITHIN:]:
        return f"{len(content):,} bytes of a truncated image"
    return image


def _suffix(content: bytes) -> str:
    return suffix_of(content) or ".jpg"


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically, without fsync, which would dominate the cost.

    A killed process leaves a file under another name. After a power failure a file may be too short; the next
    call writes it again.
    """
    # With the process id, because a worker of a killed call may still be writing when the next call begins.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as fault:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"{path}: cannot be written ({fault.strerror}). Correct this and run the same command again; it "
            "continues from here."
        ) from None

"""Small files that demand much memory or time: each has to end in an InputError.

The limits are 1 GB and 5 s of CPU time. Every file is made, then read in a process of its own, whose memory
on top of the imports is measured. To add one, add an entry to BOMBS. Run from the root:
`python benchmarks/speed/hostile_files.py`.
"""

from __future__ import annotations

import argparse
import io
import pickle
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.speed.hostile_images import IMAGE_BOMBS
from benchmarks.speed.usage import Usage, hand_over, in_process_of_its_own, measured
from coreset import build_aggregator
from data.sources.face_source import ImageFolder
from data.sources.pair_files import read_pair_set
from data.sources.recordio import read_face_pack
from evaluation.protocols.matlab_files import read_matlab
from features.bank import read_feature_bank
from photos.photo_files import read_photo
from recognition.calibration.thresholds import read_calibration
from recognition.gallery.exchange import read_gallery
from runtime.array_files import read_npz, write_npz
from runtime.errors import InputError
from runtime.json_files import read_json

MOST_MIB, MOST_SECONDS = 1000, 5


@dataclass(frozen=True)
class Bomb:
    """`make` writes a file of this name; `read` is what has to refuse it."""

    file: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]


def npy(shape: tuple[int, ...], kind: str, size: int) -> bytes:
    """An .npy file that declares a shape, and has so many zero bytes."""
    stream = io.BytesIO()
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[arg-type]
    return stream.getvalue() + bytes(size)


def npz(**members: bytes) -> Callable[[Path], None]:
    """Make a compressed .npz of these members."""

    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as stored:
            for name, content in members.items():
                stored.writestr(f"{name}.npy", content)

    return make


def text(content: str) -> Callable[[Path], object]:
    """Make a text file."""
    return lambda path: path.write_text(content)


def content(make: Callable[[], bytes]) -> Callable[[Path], object]:
    """Make a file of bytes."""
    return lambda path: path.write_bytes(make())


def matlab(*elements: bytes) -> bytes:
    """A .mat file of compressed variables."""
    packed = [zlib.compress(element, 9) for element in elements]
    parts = [struct.pack("<II", 15, len(each)) + each for each in packed]
    return b"MATLAB 5.0".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + b"".join(parts)


def matrix(kind: int, rows: int, data: bytes) -> bytes:
    """A variable x of one column."""
    flags = _element(6, struct.pack("<II", kind, 0)) + _element(5, struct.pack("<ii", rows, 1))
    return _element(14, flags + _element(1, b"x") + data)


def _element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def many_names(path: Path) -> None:
    """A .face_index beside one image, of a listing that unpacks to much."""
    (path / "a").mkdir(parents=True)
    names = npy((1 << 28,), "|u1", 1 << 28)
    (path / ".face_index").mkdir()
    npz(names=names, format=npy((), "<i8", 8))(path / ".face_index" / "listing.npz")


def record_of_infinite_ranges(path: Path) -> None:
    """A pack whose first record announces ranges to infinity."""
    path.mkdir()
    record = struct.pack("<IfQQ", 2, 0.0, 0, 0) + struct.pack("<ff", 1e30, np.inf)
    (path / "train.rec").write_bytes(struct.pack("<II", 0xCED7230A, len(record)) + record)
    (path / "train.idx").write_text("0\t0\n")


MiB = 1 << 20
BOMBS: dict[str, Bomb] = {
    "gallery, 256 MB of zeros": Bomb(
        "g.npz", npz(schema=npy((), "<i8", 8), descriptors=npy((MiB, 64), "<f4", 256 * MiB)), read_gallery
    ),
    "gallery, a shape of 4 TB": Bomb("g.npz", npz(descriptors=npy((10**12,), "<f4", 128)), read_gallery),
    "gallery, a list of lists": Bomb(
        "g.npz",
        lambda path: write_npz(
            path,
            {"schema": np.array(3), "files": np.frombuffer(b"[" + b"[]," * (20 * MiB), np.uint8)}
            | {"names": np.array(["a"]), "descriptors": np.ones((1, 1), np.float32)}
            | {"norms": np.ones(1, np.float32), "fingerprint": np.array("f"), "reading": np.array("{}")},
        ),
        read_gallery,
    ),
    "npz, a header of 200 MB": Bomb(
        "f.npz",
        npz(features=b"\x93NUMPY\x02\x00" + struct.pack("<I", 200 * MiB) + bytes(200 * MiB)),
        read_feature_bank,
    ),
    "npz, 30,000 members": Bomb(
        "f.npz", npz(**{str(n): b"" for n in range(30_000)}), lambda path: read_npz(path, "arrays")
    ),
    "features, 256 MB of zeros": Bomb(
        "f.npz",
        npz(
            features=npy((MiB, 64), "<f4", 256 * MiB),
            norms=npy((MiB,), "<f4", 4 * MiB),
            labels=npy((MiB,), "<i4", 4 * MiB),
        ),
        read_feature_bank,
    ),
    "JSON, 40 million lists": Bomb(
        "c.json", text("[" + "[]," * 40_000_000), lambda p: read_json(p, Any, "JSON")
    ),
    "JSON, 60 million numbers": Bomb(
        "c.json", text("[" + "1," * 60_000_000), lambda p: read_json(p, Any, "JSON")
    ),
    "JSON, nested 10 million deep": Bomb(
        "c.json", text("[" * 10_000_000), lambda p: read_json(p, Any, "JSON")
    ),
    "calibration, 10^400": Bomb(
        "c.json",
        text('{"schema": 1, "curve": 1' + "0" * 4000 + "}"),
        lambda path: read_calibration(path, "f"),
    ),
    ".mat, 8 million empty cells": Bomb(
        "x.mat", content(lambda: matlab(matrix(1, 1 << 23, bytes(8 << 23)))), read_matlab
    ),
    ".mat, 250 MB of numbers": Bomb(
        "x.mat", content(lambda: matlab(matrix(6, 1 << 25, _element(2, bytes(1 << 25))))), read_matlab
    ),
    ".mat, 40 variables of 60 MB": Bomb(
        "x.mat",
        content(lambda: matlab(*[matrix(6, 1 << 22, _element(9, bytes(15 << 22)))] * 40)),
        read_matlab,
    ),
    ".mat, 60 million rows of text": Bomb(
        "x.mat", content(lambda: matlab(matrix(4, 60 * MiB, _element(1, b"a" * (60 * MiB))))), read_matlab
    ),
    ".bin of 12 bytes": Bomb("x.bin", content(lambda: b"p300000000\n."), read_pair_set),
    ".bin, one array 100,000 times": Bomb(
        "x.bin",
        content(lambda: pickle.dumps(([np.zeros(MiB, np.uint8)] * 1 + [bytearray(MiB)] * 100_000, [2]), 5)),
        read_pair_set,
    ),
    "pack, ranges to infinity": Bomb("pack", record_of_infinite_ranges, read_face_pack),
    ".face_index of 256 MB": Bomb("imgs", many_names, ImageFolder),
    "aggregator, a million layers": Bomb(
        "x",
        text(""),
        lambda _: build_aggregator("weighted_coreset", {"embedding_size": 512, "num_layers": 1_000_000}),
    ),
    "aggregator, 60,000 wide": Bomb(
        "x",
        text(""),
        lambda _: build_aggregator("set_transformer", {"embedding_size": 512, "width": 60_000}),
    ),
} | {name: Bomb(file, make, read_photo) for name, (file, make) in IMAGE_BOMBS.items()}


def main() -> int:
    """Print a table; return 1 where a file was read, or took too much."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=BOMBS, help="one of them")
    parser.add_argument("--read", nargs=2, metavar=("NAME", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        hand_over(_read(BOMBS[args.read[0]], Path(args.read[1])))
        return 0
    failed = False
    print(f"{'file':<32}{'bytes':>12}{'seconds':>9}{'MiB':>7}  ended in")
    for name in [args.only] if args.only else BOMBS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / BOMBS[name].file
            BOMBS[name].make(path)
            files = [path] if path.is_file() else path.rglob("*")
            size = sum(each.stat().st_size for each in files if each.is_file())
            usage = in_process_of_its_own(__file__, ["--read", name, str(path)])
        is_well = usage.remark != "read" and usage.cpu < MOST_SECONDS and usage.extra_mib < MOST_MIB
        failed |= not is_well
        print(
            f"{name:<32}{size:>12,}{usage.cpu:>9.2f}{usage.extra_mib:>7.0f}  "
            f"{'' if is_well else 'FAILED: '}{usage.remark[:120]}",
            flush=True,
        )
    return int(failed)


def _read(bomb: Bomb, path: Path) -> Usage:
    with measured() as usage:
        try:
            bomb.read(path)
            remark = "read"
        except InputError as fault:
            remark = " ".join(str(fault).replace(str(path), path.name).split())
    usage.remark = remark
    return usage


if __name__ == "__main__":
    sys.exit(main())

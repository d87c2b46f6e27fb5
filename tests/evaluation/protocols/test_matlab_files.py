"""MATLAB 5 files: what another writer wrote is read, and a damaged file is an InputError, never a crash."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from evaluation.protocols import matlab_files
from evaluation.protocols.matlab_files import read_matlab
from runtime.errors import InputError


def cells(texts: list[Any]) -> np.ndarray:
    column = np.empty((len(texts), 1), object)
    column[:, 0] = texts
    return column


@pytest.mark.parametrize("compressed", [False, True])
def test_numbers_and_strings_are_read(tmp_path: Path, compressed: bool) -> None:
    kinds = ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]
    numbers = {kind: np.arange(12).reshape(3, 4).astype(kind) for kind in kinds}
    texts = ["1_2.jpg", "abc", "a longer name.jpg", "x"]
    content = numbers | {"texts": cells(texts), "one": "text", "many": np.array(["ab", "c"])}
    savemat(tmp_path / "x.mat", content, do_compression=compressed)
    found = read_matlab(tmp_path / "x.mat")
    assert list(found) == [*kinds, "texts", "one", "many"]
    for kind in kinds:
        assert np.asarray(found[kind]).tolist() == numbers[kind].ravel(order="F").tolist()
    assert (found["texts"], found["one"], found["many"]) == (texts, ["text"], ["ab", "c"])


def test_other_kinds_are_skipped(tmp_path: Path) -> None:
    content = {
        "struct": {"a": 1},
        "mixed": cells(["a", 1.0]),
        "nested": cells([cells(["a"])]),
        "empty": np.empty((0, 0)),
        "kept": np.array([[2.5]]),
    }
    savemat(tmp_path / "x.mat", content)
    found = read_matlab(tmp_path / "x.mat")
    assert set(found) == {"empty", "kept"}
    assert (np.asarray(found["empty"]).tolist(), np.asarray(found["kept"]).tolist()) == ([], [2.5])


def test_big_endian_and_small_storage_as_matlab_writes_them(tmp_path: Path) -> None:
    # By hand, from the format's description: a double array whose numbers are stored as two unsigned bytes.
    def element(kind: int, data: bytes) -> bytes:
        return struct.pack(">II", kind, len(data)) + data + b"\0" * (-len(data) % 8)

    small = struct.pack(">HH", 2, 2) + bytes([7, 200, 0, 0])
    flags = element(6, struct.pack(">II", 6, 0))
    matrix = element(14, flags + element(5, struct.pack(">ii", 2, 1)) + element(1, b"ids") + small)
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(">H", 0x0100) + b"MI"
    packed = zlib.compress(matrix)
    for body in (matrix, struct.pack(">II", 15, len(packed)) + packed):
        (tmp_path / "x.mat").write_bytes(header + body)
        assert np.asarray(read_matlab(tmp_path / "x.mat")["ids"]).tolist() == [7, 200]


@pytest.mark.parametrize(
    ("content", "fact"),
    [(b"", "header"), (b"<html>" * 100, "header"), (b"MATLAB 7.3 MAT-file" + bytes(500), "7.3")],
)
def test_files_of_another_kind_raise(tmp_path: Path, content: bytes, fact: str) -> None:
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(InputError, match=rf"x\.mat.*{fact}"):
        read_matlab(tmp_path / "x.mat")


def test_a_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.mat"):
        read_matlab(tmp_path / "gone.mat")


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(kind: int, rows: int, columns: int, data: bytes) -> bytes:
    """An array named x: its flags, dimensions and name, then its parts."""
    head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack("<ii", rows, columns))
    return element(14, head + element(1, b"x") + data)


def write(path: Path, body: bytes) -> Path:
    path.write_bytes(b"MATLAB 5.0".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + body)
    return path


@pytest.mark.parametrize("ending", ["os.abort()", "time.sleep(60)", "bytes(1 << 40)"])
def test_a_crash_a_hang_and_a_bomb_are_contained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(f"import os, time\n{ending}\n")
    monkeypatch.setattr(matlab_files, "_WORKER", worker)
    monkeypatch.setattr(matlab_files, "_MAX_SECONDS", 1)
    path = write(tmp_path / "x.mat", matrix(6, 1, 1, element(9, bytes(8))))
    with pytest.raises(InputError, match=r"x\.mat"):
        read_matlab(path)


def test_memory_and_values_are_limited(tmp_path: Path) -> None:
    packed = zlib.compress(matrix(6, 1 << 20, 1, element(2, bytes(1 << 20))), 9)
    path = write(tmp_path / "x.mat", struct.pack("<II", 15, len(packed)) + packed)
    with pytest.raises(InputError, match=r"x\.mat.*1,048,576"):
        read_matlab(path)
    # 10 GiB of text.
    with pytest.raises(InputError, match=r"x\.mat"):
        read_matlab(write(path, matrix(4, 1 << 30, 10, element(1, b"a"))))


def test_damage_is_an_input_error_or_harmless(tmp_path: Path) -> None:
    """One process for all files would end with the first crash; ten here, more in
    tests/test_damaged_files.py."""
    path = tmp_path / "x.mat"
    savemat(path, {"names": cells(["1_2.jpg", "33_4.jpg"]), "ids": [[1.0], [33.0]]})
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(5):
        content = bytearray(whole)
        content[rng.integers(128, len(content))] = rng.integers(256)
        path.write_bytes(content[: rng.integers(len(content) // 2, len(content) + 1)])
        try:
            found = read_matlab(path)
        except InputError:
            continue
        assert all(isinstance(value, (list, np.ndarray)) for value in found.values())

"""MATLAB 5 files: what another writer wrote is read, and a damaged file is an InputError, never a crash."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from evaluation.protocols.matlab import read_matlab
from runtime.errors import InputError


def cells(texts: list[Any]) -> np.ndarray:
    column = np.empty((len(texts), 1), object)
    column[:, 0] = texts
    return column


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_numbers_and_cells_of_another_writer_are_read(tmp_path: Path, compressed: bool, kind: str) -> None:
    numbers = np.arange(12).reshape(3, 4).astype(kind)
    texts = ["1_2.jpg", "abc", "a longer name.jpg", "x"]
    content = {"numbers": numbers, "texts": cells(texts), "one": "text", "many": np.array(["ab", "c"])}
    savemat(tmp_path / "x.mat", content, do_compression=compressed)
    found = read_matlab(tmp_path / "x.mat")
    assert list(found) == ["numbers", "texts", "one", "many"]
    assert np.asarray(found["numbers"]).tolist() == numbers.ravel(order="F").tolist()
    assert (found["texts"], found["one"], found["many"]) == (texts, ["text"], ["ab", "c"])


def test_other_kinds_are_passed_over(tmp_path: Path) -> None:
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
    ("content", "message"),
    [
        (b"", "not the header"),
        (b"<html>" * 100, "not the header"),
        (b"MATLAB 7.3 MAT-file" + bytes(500), "version 7.3; save it again with -v7"),
    ],
)
def test_files_of_another_kind_are_told(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(InputError, match=rf"x\.mat: cannot be read as a MATLAB file .*{message}"):
        read_matlab(tmp_path / "x.mat")


def test_an_array_without_dimensions_is_told(tmp_path: Path) -> None:
    def element(kind: int, data: bytes) -> bytes:
        return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)

    flags, text = element(6, struct.pack("<II", 4, 0)), element(16, b"x")
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    for dimensions in (b"", struct.pack("<i", 1)):
        matrix = element(14, flags + element(5, dimensions) + element(1, b"names") + text)
        (tmp_path / "x.mat").write_bytes(header + matrix)
        with pytest.raises(InputError, match=r"an array of dimensions \["):
            read_matlab(tmp_path / "x.mat")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.mat: cannot be read"):
        read_matlab(tmp_path / "gone.mat")


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damage_is_an_input_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.mat"
    compressed = draw.draw(st.booleans())
    savemat(
        path, {"names": cells(["1_2.jpg", "33_4.jpg"]), "ids": [[1.0], [33.0]]}, do_compression=compressed
    )
    content = bytearray(path.read_bytes())
    for _ in range(draw.draw(st.integers(0, 3))):
        content[draw.draw(st.integers(0, len(content) - 1))] = draw.draw(st.integers(0, 255))
    path.write_bytes(content[: draw.draw(st.integers(len(content) // 2, len(content)))])
    try:
        found = read_matlab(path)
    except InputError:
        return
    assert all(isinstance(value, (list, np.ndarray)) for value in found.values())


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(kind: int, rows: int, columns: int, data: bytes) -> bytes:
    """An array named x: its flags, dimensions and name, then its parts."""
    head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack("<ii", rows, columns))
    return element(14, head + element(1, b"x") + data)


def compressed(content: bytes) -> bytes:
    packed = zlib.compress(content, 9)
    return struct.pack("<II", 15, len(packed)) + packed


BOMBS = {
    "empty cells": lambda: compressed(matrix(1, 2000, 1, bytes(8 * 2000))),
    "numbers": lambda: compressed(matrix(6, 20_000, 1, element(2, bytes(20_000)))),
    "rows of text": lambda: compressed(matrix(4, 2000, 1, element(1, b"a" * 2000))),
    "zeros": lambda: compressed(matrix(6, 1 << 18, 1, element(9, bytes(8 << 18)))),
    "many": lambda: compressed(matrix(6, 9000, 1, element(9, bytes(72_000)))) * 20,
    "elements": lambda: element(6, b"") * 2000,
}


@pytest.mark.parametrize("kind", BOMBS)
def test_sizes_are_limited_before_there_is_memory_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """With small limits; benchmarks/speed/hostile_files.py measures the real ones."""
    monkeypatch.setattr("evaluation.protocols.matlab._LARGEST", 1 << 20)
    monkeypatch.setattr("evaluation.protocols.matlab._MOST_ELEMENTS", 1000)
    monkeypatch.setattr("evaluation.protocols.matlab._MOST_NUMBERS", 10_000)
    path = tmp_path / "x.mat"
    path.write_bytes(b"MATLAB 5.0".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + BOMBS[kind]())
    with pytest.raises(InputError, match=r"x\.mat"):
        read_matlab(path)

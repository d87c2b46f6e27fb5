"""NumPy files from anywhere: read back, refused before they are unpacked, and flipped bits told."""

from __future__ import annotations

import io
import random
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from runtime.array_files import map_npy, read_npz, write_npz
from runtime.errors import InputError

ARRAYS = {"a": np.arange(40, dtype=np.float32).reshape(8, 5), "text": np.array(["Ann", "Çağla"])}


def npy(declared: object, body: bytes = b"", descr: str = "<f4") -> bytes:
    """An .npy file that declares a shape."""
    stream = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": declared}
    np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[arg-type]
    return stream.getvalue() + body


def zip_of(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as stored:
        for name, content in members.items():
            stored.writestr(name, content)
    return path


def test_written_data_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_npz(path, ARRAYS)
    found, has_checksum = read_npz(path, "arrays", optional=ARRAYS)
    assert has_checksum
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
    assert set(np.load(path).files) == {*ARRAYS, "sha256"}
    assert list(read_npz(path, "arrays", needed=["text"])[0]) == ["text"]
    np.savez_compressed(path, **ARRAYS)  # type: ignore[arg-type]
    assert not read_npz(path, "arrays", needed=["a", "text"])[1]


def test_no_flipped_bit_is_read_as_something_else(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_npz(path, ARRAYS)
    whole = path.read_bytes()
    for place in range(0, len(whole), 2):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.Random(place).randrange(8)
        path.write_bytes(damaged)
        try:
            found, has_checksum = read_npz(path, "arrays", needed=ARRAYS, optional=[])
        except InputError as fault:
            assert str(path) in str(fault)  # noqa: PT017 (flips of times and modes change nothing)
            continue
        # A file that seems to have no checksum is refused by formats that have one.
        for name, array in ARRAYS.items() if has_checksum else ():
            np.testing.assert_array_equal(found[name], array)


def test_members_of_another_file_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_npz(path, ARRAYS)
    with zipfile.ZipFile(path) as stored:
        members = {info.filename: stored.read(info) for info in stored.infolist()}
    for changed in (
        members | {"a.npy": npy((3,), bytes(12))},
        {name: content for name, content in members.items() if name != "text.npy"},
        members | {"more.npy": npy((3,), bytes(12))},
    ):
        with pytest.raises(InputError, match=r"a\.npz"):
            read_npz(zip_of(path, changed), "arrays", needed=["a"])


MiB = 1 << 20
HOSTILE = {
    "bomb": {"a.npy": npy((25 * MiB,), bytes(100 * MiB))},
    "shape": {"a.npy": npy((10**12,), bytes(128))},
    "empty": {"a.npy": npy((10**12, 0))},
    "negative": {"a.npy": npy((-4, -8), bytes(128))},
    "no_size": {"a.npy": npy((10**9,), descr="<U0")},
    "objects": {"a.npy": npy((16,), bytes(128), "|O")},
    "times": {"a.npy": npy((16,), bytes(128), "<M8[s]")},
    "structure": {"a.npy": npy((16,), bytes(128), "|V8")},
    "long_header": {"a.npy": b"\x93NUMPY\x02\x00\xff\xff\xff\x3f" + bytes(20 * MiB)},
    "no_array": {"a.npy": b"text"},
    "no_npy": {"a.txt": npy((3,), bytes(12))},
    "tuple": {"a.npy": npy("x" * 8000, bytes(12))},
    "members": {f"{number}.npy": npy((3,), bytes(12)) for number in range(65)},
    "other": {"b.npy": npy((3,), bytes(12))},
    "nothing": {},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_before_they_are_unpacked(tmp_path: Path, kind: str) -> None:
    path = zip_of(tmp_path / "a.npz", HOSTILE[kind])
    tracemalloc.start()
    with pytest.raises(InputError, match=r"a\.npz"):
        read_npz(path, "arrays", needed=["a"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * MiB


@pytest.mark.parametrize(
    ("offset", "value"), [(6, b"\x01\x00"), (8, b"\x0c\x00")], ids=["encrypted", "bzip2"]
)
def test_odd_members_are_refused(tmp_path: Path, offset: int, value: bytes) -> None:
    path = tmp_path / "a.npz"
    write_npz(path, ARRAYS)
    content = bytearray(path.read_bytes())
    for mark, more in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        place = content.find(mark) + offset + more
        content[place : place + 2] = value
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.npz"):
        read_npz(path, "arrays", needed=["a"])


@pytest.mark.parametrize("content", [b"", b"text", npy((10**12,), bytes(128)), npy((4,), b"ab", "|O")])
def test_damaged_npy_files_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.npy"):
        map_npy(path, "features")
    with pytest.raises(InputError, match=r"gone\.npy"):
        map_npy(tmp_path / "gone.npy", "features")

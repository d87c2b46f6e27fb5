"""Pair sets are read whatever wrote them, and nothing that such a file names is run."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from data.sources.pair_files import find_pair_sets, read_pair_set, write_pair_set
from runtime.errors import InputError

IMAGES = [
    cv2.imencode(".png", np.full((112, 112, 3), (0, 0, level), np.uint8))[1].tobytes() for level in range(8)
]
MATED = [True, False, False, True]


def read(tmp_path: Path, content: bytes) -> Any:
    (tmp_path / "set.bin").write_bytes(content)
    return read_pair_set(tmp_path / "set.bin")


def test_written_data_are_read_back(tmp_path: Path) -> None:
    write_pair_set(tmp_path / "lfw.bin", IMAGES, MATED)
    pairs = read_pair_set(tmp_path / "lfw.bin")
    assert (pairs.name, pairs.images, pairs.is_mated.tolist()) == ("lfw", IMAGES, MATED)
    assert pairs.is_mated.dtype == np.bool_
    assert pairs.image(5)[0, 0].tolist() == [5, 0, 0]


def test_published_readers_can_read_written_pair_sets(tmp_path: Path) -> None:
    write_pair_set(tmp_path / "lfw.bin", IMAGES, np.array(MATED))
    content = (tmp_path / "lfw.bin").read_bytes()
    assert pickle.loads(content, encoding="bytes") == (IMAGES, MATED)
    assert content[:2] == b"\x80\x02"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize("numpy_flags", [False, True])
def test_every_form_of_plain_data_is_read(
    tmp_path: Path, protocol: int, arrays: bool, numpy_flags: bool
) -> None:
    images = [np.frombuffer(image, np.uint8) for image in IMAGES] if arrays else IMAGES
    flags = np.array(MATED) if numpy_flags else MATED
    pairs = read(tmp_path, pickle.dumps((images, flags), protocol))
    assert pairs.images == IMAGES
    assert pairs.is_mated.tolist() == MATED


def test_numpy_scalars_and_both_names_of_numpy_are_read(tmp_path: Path) -> None:
    content = pickle.dumps(([np.frombuffer(i, np.uint8) for i in IMAGES], [np.bool_(m) for m in MATED]), 2)
    old, new = b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"
    for name in (old, new):
        pairs = read(tmp_path, content.replace(old, name).replace(new, name))
        assert pairs.images == IMAGES
        assert pairs.is_mated.tolist() == MATED


def fault_of(path: Path) -> str | None:
    try:
        pairs = read_pair_set(path)
    except InputError as fault:
        return str(fault)
    return None if len(pairs.images) == 2 * len(pairs) else "set.bin: read without a fault, but wrong"


class Harmful:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickle_that_names_code_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    harmful = pickle.dumps((IMAGES, [Harmful(os.mkdir, str(trace))]), protocol)
    with pytest.raises(InputError, match=r"set\.bin: .*refers to posix\.mkdir"):
        read(tmp_path, harmful)
    assert not trace.exists()


@pytest.mark.parametrize(
    "named", [eval, getattr, __import__, np.load, np.fromfile, np.lib.format.open_memmap, pickle.loads]
)
def test_other_globals_are_refused(tmp_path: Path, named: Any) -> None:
    with pytest.raises(InputError, match="refers to"):
        read(tmp_path, pickle.dumps(([Harmful(named, "x")], [True]), 2))


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an array of type O8"):
        read(tmp_path, pickle.dumps((np.array(IMAGES, dtype=object), MATED), 2))


def test_pickle_cannot_change_the_reader(tmp_path: Path) -> None:
    # GLOBAL numpy.ndarray, then BUILD with a state that would set attributes on what stands in for it
    attack = b"\x80\x02cnumpy\nndarray\n}X\x07\x00\x00\x00contentX\x01\x00\x00\x00xsb."
    with pytest.raises(InputError):
        read(tmp_path, attack)
    assert (
        read(tmp_path, pickle.dumps(([np.frombuffer(i, np.uint8) for i in IMAGES], MATED), 2)).images
        == IMAGES
    )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_broken_file_is_an_input_error(tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp()
    write_pair_set(folder / "whole.bin", [image[:20] for image in IMAGES], MATED)
    content = bytearray((folder / "whole.bin").read_bytes())
    if draw.draw(st.booleans()):
        content = content[: draw.draw(st.integers(0, len(content) - 1))]
    else:
        content[draw.draw(st.integers(0, len(content) - 1))] = draw.draw(st.integers(0, 255))
    (folder / "set.bin").write_bytes(content)
    fault = fault_of(folder / "set.bin")
    assert fault is None or ("set.bin: " in fault and "but wrong" not in fault)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ((IMAGES, MATED[:3]), "8 images for 3 pairs"),
        (([], []), "0 images for 0 pairs"),
        ((IMAGES, [1, 0, 2, 1]), "neither true nor false"),
        (([*IMAGES[:7], 5], MATED), "image 7 is a int"),
        ({"images": IMAGES}, "a dict"),
        ((5, MATED), "its images are a int"),
        ((IMAGES, MATED, 1), "a list"),
    ],
)
def test_invalid_pair_set_is_refused(tmp_path: Path, held: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, pickle.dumps(held, 4))


def test_undecodable_image_is_named_when_it_is_asked_for(tmp_path: Path) -> None:
    write_pair_set(tmp_path / "lfw.bin", [*IMAGES[:7], b"torn"], MATED)
    pairs = read_pair_set(tmp_path / "lfw.bin")
    with pytest.raises(InputError, match=r"lfw, image 7 \(pair 3\)"):
        pairs.image(7)


def test_unequal_counts_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="8 images for 3 pairs"):
        write_pair_set(tmp_path / "lfw.bin", IMAGES, MATED[:3])


def test_pair_sets_are_found_by_name(tmp_path: Path) -> None:
    for name in ("lfw.bin", "agedb_30.bin", ".lfw.part.bin", "train.rec"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_pair_sets(tmp_path)] == ["agedb_30.bin", "lfw.bin"]
    with pytest.raises(InputError, match="no such folder"):
        find_pair_sets(tmp_path / "gone")
    with pytest.raises(InputError, match="cannot be read"):
        read_pair_set(tmp_path / "gone.bin")


@pytest.mark.parametrize("number", [10, 57, 600])
def test_folds_are_those_of_the_published_protocol(tmp_path: Path, number: int) -> None:
    write_pair_set(tmp_path / "lfw.bin", [b"x"] * (2 * number), [True] * number)
    folds = read_pair_set(tmp_path / "lfw.bin").folds()
    for fold, (_, test) in enumerate(KFold(10, shuffle=False).split(np.zeros(number))):
        assert np.flatnonzero(folds == fold).tolist() == test.tolist()


def test_set_of_real_faces_is_read(shared: Path) -> None:
    pairs = read_pair_set(shared / "faces" / "dev_pairs.bin")
    assert (len(pairs), int(pairs.is_mated.sum())) == (1600, 800)
    assert np.bincount(pairs.folds(), pairs.is_mated).tolist() == [80] * 10
    assert pairs.image(3199).shape == (112, 112, 3)


@pytest.mark.parametrize("kind", ["int64", "int32", "uint8", "bool", "float64"])
@pytest.mark.parametrize("form", ["array", "scalars", "list"])
def test_flags_of_any_number_type_are_read(tmp_path: Path, kind: str, form: str) -> None:
    flags = np.array([1, 0, 0, 1], kind)
    stored = {"array": flags, "scalars": list(flags), "list": [int(flag) for flag in flags]}[form]
    path = tmp_path / "x.bin"
    path.write_bytes(pickle.dumps(([b"a"] * 8, stored), protocol=2))
    assert read_pair_set(path).is_mated.tolist() == [True, False, False, True]
    path.write_bytes(pickle.dumps(([b"a"] * 8, flags + flags + flags), protocol=2))
    if kind != "bool":
        with pytest.raises(InputError, match=r"x\.bin.*flag"):
            read_pair_set(path)


def test_one_array_named_many_times_is_copied_once(tmp_path: Path) -> None:
    image = np.zeros(1 << 20, np.uint8)
    path = tmp_path / "x.bin"
    for each in (image, bytearray(image)):
        path.write_bytes(pickle.dumps(([each] * 4000, [True] * 2000), protocol=5))
        tracemalloc.start()
        assert len(read_pair_set(path)) == 2000
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
        tracemalloc.stop()
    path.write_bytes(b"p300000000\n.")
    with pytest.raises(InputError, match=r"x\.bin"):
        read_pair_set(path)

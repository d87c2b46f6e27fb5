"""Files that ONNX graphs name, whatever part of a graph names them; compared with the package onnx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import InputError
from runtime.onnx_files import check_onnx_values, external_files, graph_outputs, onnx_tensors

onnx = pytest.importorskip("onnx")

PLACES = ("initializer", "constant", "inner graph", "function", "sparse")


def tensor(location: str | None = None, values: Any = (1.0, 2.0), **changes: Any) -> Any:
    made = onnx.numpy_helper.from_array(np.array(values, changes.get("kind", np.float32)), "weight")
    if location is not None:
        onnx.external_data_helper.set_external_data(made, location, 0, len(made.raw_data))
        made.ClearField("raw_data")
    return made


def graph(*tensors: Any, nodes: Any = ()) -> Any:
    value = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [2])
    return onnx.helper.make_graph(list(nodes), "g", [], [value], list(tensors))


def model(value: Any, place: str = "initializer") -> bytes:
    node = onnx.helper.make_node("Constant", [], ["out"], value=value)
    made = onnx.helper.make_model(graph(value) if place == "initializer" else graph())
    if place == "constant":
        made.graph.node.append(node)
    elif place == "inner graph":
        made.graph.node.append(onnx.helper.make_node("If", ["c"], ["out"], then_branch=graph(value)))
    elif place == "function":
        opset = onnx.helper.make_opsetid("", 17)
        made.functions.append(onnx.helper.make_function("own", "F", [], ["out"], [node], [opset]))
    elif place == "sparse":
        made.graph.sparse_initializer.add().values.CopyFrom(value)
    content: bytes = made.SerializeToString()
    return content


@pytest.mark.parametrize("place", PLACES)
def test_files_are_found_in_every_part_of_a_graph(place: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(8))
    assert external_files(tmp_path / "m.onnx", model(tensor("w.bin"), place)) == [tmp_path / "w.bin"]
    assert external_files(tmp_path / "m.onnx", model(tensor(), place)) == []
    with pytest.raises(InputError, match=r"m\.onnx.*'\.\./w\.bin'"):
        external_files(tmp_path / "m.onnx", model(tensor("../w.bin"), place))


@pytest.mark.parametrize(
    "location",
    ["/w.bin", "../w.bin", "..", "", ".", "a/w.bin", "a\\w.bin", "C:w.bin", "link.bin", "gone.bin"],
)
def test_paths_outside_of_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "a").mkdir(parents=True)
    for path in (tmp_path / "w.bin", folder / "a" / "w.bin"):
        path.write_bytes(bytes(8))
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(InputError, match=r"m\.onnx"):
        external_files(folder / "m.onnx", model(tensor(location)))


def test_more_values_than_one_file_can_hold_are_refused_unread(tmp_path: Path) -> None:
    """Tensors may share the bytes of a file, which may have holes."""
    with (tmp_path / "w.bin").open("wb") as stream:
        stream.truncate(1 << 30)
    one = tensor("w.bin")
    next(entry for entry in one.external_data if entry.key == "length").value = str(1 << 30)
    made = onnx.helper.make_model(graph(one))
    assert external_files(tmp_path / "m.onnx", made.SerializeToString()) == [tmp_path / "w.bin"]
    made = onnx.helper.make_model(graph(one, one))
    with pytest.raises(InputError, match=r"m\.onnx.*2\.1 GB"):
        external_files(tmp_path / "m.onnx", made.SerializeToString())


@pytest.mark.parametrize("kind", ["float32", "float16", "float64", "bfloat16", "float_data"])
def test_values_are_those_of_the_package(kind: str) -> None:
    values = [1.0, -2.5, 0.0]
    if kind in ("bfloat16", "float_data"):
        number = onnx.TensorProto.BFLOAT16 if kind == "bfloat16" else onnx.TensorProto.FLOAT
        made = onnx.helper.make_tensor("weight", number, [3], values)
        if kind == "bfloat16":
            made = onnx.helper.make_tensor(
                "weight", number, [3], np.array([0x3F80, 0xC020, 0], "<u2").tobytes(), True
            )
    else:
        made = tensor(values=values, kind=kind)
    (found,) = onnx_tensors(model(made))
    np.testing.assert_array_equal(np.concatenate(found.values), values)


@pytest.mark.parametrize(
    ("values", "is_wrong"),
    [
        ((1.0, np.nan), True),
        ((1.0, np.inf), True),
        ((np.nan,), True),
        ((np.inf,), False),
        ((1.0, 2.0), False),
    ],
)
@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_nan_is_refused_and_infinity_unless_it_is_a_bound(
    values: tuple[float, ...], is_wrong: bool, kind: str
) -> None:
    content = model(tensor(values=values, kind=kind))
    if not is_wrong:
        check_onnx_values(Path("m.onnx"), content)
        return
    with pytest.raises(InputError, match=r"m\.onnx: NaN or infinite values in 'weight'"):
        check_onnx_values(Path("m.onnx"), content)


def test_damaged_bytes_are_an_error_and_nothing_else() -> None:
    whole = model(tensor("w.bin"), "inner graph")
    rng = np.random.default_rng(0)
    for _ in range(2000):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        try:
            list(onnx_tensors(bytes(damaged)))
        except ValueError:
            continue
    assert graph_outputs(whole) == ["out"]
    assert graph_outputs(whole[:10]) == []
    deep = b""
    for _ in range(200):
        deep = _nested(deep)
    with pytest.raises(ValueError, match="too deep"):
        list(onnx_tensors(_field(7, deep)))


def _nested(graph_bytes: bytes) -> bytes:
    """A graph whose node has an attribute that is this graph."""
    return _field(1, _field(5, _field(6, graph_bytes)))


def _field(number: int, content: bytes) -> bytes:
    length, size = b"", len(content)
    while size >= 0x80:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content

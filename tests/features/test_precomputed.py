"""Features that were published as a pickle, and pickles that are made to harm the reader."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.precomputed import read_features
from runtime.errors import InputError

N, D = 40, 16


def content(dtype: str = "<f4") -> dict[str, Any]:
    """What AdaFace's and FaceCoresetNet's evaluations keep."""
    rows = np.random.default_rng(0).standard_normal((N, D))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return {
        "img_feats": (rows / norms).astype(dtype),
        "norms": (5 * norms).astype(dtype),
        "faceness_scores": np.linspace(0, 1, N).astype(dtype),
    }


def written(folder: Path, held: object, protocol: int = 4) -> Path:
    path = folder / "IJBB-AdaFace-Backbone-Features.pickle"
    path.write_bytes(held if isinstance(held, bytes) else pickle.dumps(held, protocol))
    return path


@pytest.mark.parametrize("dtype", ["<f4", "<f2", ">f4", "<f8"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_published_pickle_is_read(protocol: int, dtype: str, tmp_path: Path) -> None:
    wanted = content(dtype)
    found = read_features(written(tmp_path, wanted, protocol), "not used")
    np.testing.assert_array_equal(found.features, wanted["img_feats"])
    np.testing.assert_array_equal(found.norms, wanted["norms"].reshape(-1).astype(np.float32))
    assert found.features.dtype.isnative
    assert found.features.flags.writeable
    assert found.norms.dtype == np.float32


def test_numpy_names_and_axis_orders_of_all_versions_are_read(tmp_path: Path) -> None:
    wanted = content()
    dumped = pickle.dumps({"img_feats": np.asfortranarray(wanted["img_feats"]), "norms": wanted["norms"]}, 2)
    old, new = b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"
    for name in (old, new):
        path = written(tmp_path, dumped.replace(old, name).replace(new, name))
        np.testing.assert_array_equal(read_features(path, None).features, wanted["img_feats"])
    # Python 2 wrote texts as byte strings.
    python2 = pickle.dumps({key.encode(): value for key, value in wanted.items()}, 2)
    np.testing.assert_array_equal(
        read_features(written(tmp_path, python2), None).features, wanted["img_feats"]
    )


class Harmful:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_that_a_pickle_names_is_run(protocol: int, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    held = content() | {"faceness_scores": Harmful(os.mkdir, str(trace))}
    with pytest.raises(InputError, match=r"refers to posix\.mkdir"):
        read_features(written(tmp_path, held, protocol), "not used")
    assert not trace.exists()


FAR_MEMO = b"\x80\x02}r\xff\xff\xff\x7f."
LONG_BYTES = b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f."


@pytest.mark.parametrize(
    ("held", "named"),
    [
        (FAR_MEMO, "2147483647"),
        (LONG_BYTES, "cannot be read"),
        (b"", "cannot be read"),
        (pickle.dumps(content())[:500], "truncated"),
        ([1, 2], "list"),
        ({"embs": 1}, "'embs'"),
        ({"img_feats": [1.0], "norms": [1.0]}, "'img_feats'"),
        (content() | {"norms": np.ones(3)}, r"\(3,\)"),
        (content() | {"img_feats": np.ones((N, D))}, "unit rows"),
        (content() | {"img_feats": np.ones((N, D), np.int64)}, "int64"),
        (content() | {"img_feats": np.ones((N, D), object)}, "type O"),
        (content() | {"norms": np.full(N, np.nan)}, "finite"),
    ],
)
def test_other_pickles_are_refused_without_using_memory(held: object, named: str, tmp_path: Path) -> None:
    path = written(tmp_path, held)
    with pytest.raises(InputError, match=named) as error:
        read_features(path, "not used")
    assert str(path) in str(error.value)


def test_array_with_too_large_a_header_is_refused(tmp_path: Path) -> None:
    dumped = pickle.dumps(content(), 2)
    assert dumped.count(b"K\x28K\x10") == 1
    path = written(tmp_path, dumped.replace(b"K\x28K\x10", b"K\x28K\x20"))
    with pytest.raises(InputError, match=r"\(40, 32\)"):
        read_features(path, "not used")

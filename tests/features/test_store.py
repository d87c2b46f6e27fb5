"""Cached features: round trip, continued after a kill, never stale, never damaged without a word."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import store as feature_store
from features.store import FeatureWriter, StoreLayout, fingerprint, is_complete, open_store
from runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
IDENTITY = {"weights": "a", "flip": "none"}
LAYOUT = StoreLayout(10, 4, columns={"label": "int64"}, part_rows=3)


def rows_of(layout: StoreLayout, part: int, seed: int = 0) -> dict[str, np.ndarray]:
    """The content of a part: a function of its rows, so that every writer writes the same."""
    rng = np.random.default_rng(seed)
    everything = {
        "features": rng.standard_normal((layout.num_rows, layout.embedding_size)).astype(layout.feature_type),
        "norms": rng.uniform(5, 35, layout.num_rows).astype(np.float32),
        **{name: np.arange(layout.num_rows).astype(kind) for name, kind in layout.columns.items()},
    }
    rows = layout.rows(part)
    return {name: array[rows.start : rows.stop] for name, array in everything.items()}


def written(folder: Path, layout: StoreLayout = LAYOUT, identity: dict[str, str] = IDENTITY):
    writer = FeatureWriter(folder, layout, identity, {"device": "cpu"})
    for part in writer.pending():
        writer.write_part(part, rows_of(layout, part))
    return writer.finish()


@given(
    st.integers(1, 20),
    st.integers(1, 5),
    st.sampled_from(["float32", "float16"]),
    st.sampled_from([{}, {"label": "int64", "view": "int16"}]),
    st.integers(1, 7),
)
@settings(max_examples=25, deadline=None)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: int, size: int, kind: str, columns: dict, part: int
) -> None:
    folder = tmp_path_factory.mktemp("store")
    layout = StoreLayout(rows, size, kind, columns, part)
    store = written(folder / "s", layout)
    assert len(store) == rows
    assert store.identity == IDENTITY
    assert store.about == {"device": "cpu"}
    parts = [rows_of(layout, number) for number in range(layout.num_parts)]
    for name, array in {"features": store.features, "norms": store.norms, **store.columns}.items():
        np.testing.assert_array_equal(array, np.concatenate([each[name] for each in parts]))
    assert store.features.dtype == kind


def test_features_are_mapped_and_plain_numpy_reads_them(tmp_path: Path) -> None:
    store = written(tmp_path)
    assert isinstance(store.features.base, np.memmap)
    np.testing.assert_array_equal(np.load(tmp_path / "features.npy"), store.features)


def test_changing_a_mapped_array_leaves_the_file_alone(tmp_path: Path) -> None:
    store = written(tmp_path)
    store.features[0] = 7
    assert open_store(tmp_path, IDENTITY).features[0, 0] != 7


def test_parts_of_several_writers_make_one_store(tmp_path: Path) -> None:
    first = FeatureWriter(tmp_path, LAYOUT, IDENTITY, {})
    second = FeatureWriter(tmp_path, LAYOUT, IDENTITY, {})
    pending = first.pending()
    assert second.pending() == pending == [0, 1, 2, 3]
    for part in reversed(pending):
        (first if part % 2 else second).write_part(part, rows_of(LAYOUT, part))
    assert not is_complete(tmp_path)
    np.testing.assert_array_equal(second.finish().columns["label"], np.arange(10))
    assert is_complete(tmp_path)
    assert first.pending() == []


def test_finished_parts_are_not_written_again(tmp_path: Path) -> None:
    writer = FeatureWriter(tmp_path, LAYOUT, IDENTITY, {})
    writer.write_part(1, rows_of(LAYOUT, 1))
    assert FeatureWriter(tmp_path, LAYOUT, IDENTITY, {}).pending() == [0, 2, 3]
    with pytest.raises(InputError, match="3 parts are missing"):
        writer.finish()
    with pytest.raises(InputError, match="incomplete"):
        open_store(tmp_path, IDENTITY)


def test_store_of_another_identity_is_refused_with_the_differences(tmp_path: Path) -> None:
    written(tmp_path)
    for make in (
        lambda other: open_store(tmp_path, other),
        lambda other: FeatureWriter(tmp_path, LAYOUT, other, {}),
    ):
        with pytest.raises(InputError, match="weights: a there, b now") as fault:
            make(IDENTITY | {"weights": "b"})
        assert "flip" not in str(fault.value)
        with pytest.raises(InputError, match="flip: none there, nothing now"):
            make({"weights": "a"})
    with pytest.raises(InputError, match="another layout"):
        FeatureWriter(tmp_path, StoreLayout(10, 4, columns={}, part_rows=3), IDENTITY, {})
    assert fingerprint(IDENTITY) == fingerprint(dict(reversed(IDENTITY.items())))
    assert fingerprint(IDENTITY) != fingerprint(IDENTITY | {"weights": "b"})


@pytest.mark.parametrize("complete", [True, False])
def test_parts_made_for_other_values_are_pending_again(tmp_path: Path, complete: bool) -> None:
    labels = np.arange(10)
    writer = FeatureWriter(tmp_path, LAYOUT, IDENTITY, {})
    for part in range(4 if complete else 3):
        writer.write_part(part, rows_of(LAYOUT, part))
    if complete:
        writer.finish()
        assert writer.pending({"label": labels}) == []
        assert is_complete(tmp_path)
    labels[4] = 99
    assert writer.pending({"label": labels}) == ([1] if complete else [1, 3])
    assert not is_complete(tmp_path)
    assert writer.pending() == ([1] if complete else [1, 3])
    for part in writer.pending():
        rows = LAYOUT.rows(part)
        writer.write_part(part, rows_of(LAYOUT, part) | {"label": labels[rows.start : rows.stop]})
    assert writer.finish().columns["label"][4] == 99


@pytest.mark.parametrize("name", ["features", "norms", "label"])
def test_a_changed_byte_is_found_on_opening(tmp_path: Path, name: str) -> None:
    written(tmp_path)
    content = bytearray((tmp_path / f"{name}.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / f"{name}.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"1 of 4 parts are damaged \(the first: rows 9 to 9"):
        open_store(tmp_path, IDENTITY)


def test_a_shorter_file_is_found_even_without_digests(tmp_path: Path) -> None:
    written(tmp_path)
    content = (tmp_path / "norms.npy").read_bytes()
    (tmp_path / "norms.npy").write_bytes(content[:-4])
    with pytest.raises(InputError, match=r"norms.npy: cannot be read"):
        open_store(tmp_path, IDENTITY, verify=False)
    (tmp_path / "norms.npy").unlink()
    with pytest.raises(InputError, match=r"norms.npy: cannot be read"):
        open_store(tmp_path, IDENTITY)


def test_a_part_damaged_before_the_end_is_pending_again(tmp_path: Path) -> None:
    writer = FeatureWriter(tmp_path, LAYOUT, IDENTITY, {})
    for part in writer.pending():
        writer.write_part(part, rows_of(LAYOUT, part))
    np.lib.format.open_memmap(tmp_path / "features.npy", "r+")[4] = 0
    with pytest.raises(InputError, match="1 of 4 parts"):
        writer.finish()
    assert writer.pending() == [1]
    writer.write_part(1, rows_of(LAYOUT, 1))
    writer.finish()


@pytest.mark.parametrize("content", ["", "{}", '{"format": 99}', "[1]"])
def test_a_broken_manifest_is_refused(tmp_path: Path, content: str) -> None:
    written(tmp_path)
    (tmp_path / feature_store.MANIFEST).write_text(content)
    with pytest.raises(InputError, match=r"store\.json"):
        open_store(tmp_path, IDENTITY)


def test_folder_without_manifest_is_created_again(tmp_path: Path) -> None:
    writer = FeatureWriter(tmp_path, LAYOUT, IDENTITY, {})
    writer.write_part(0, rows_of(LAYOUT, 0))
    (tmp_path / feature_store.MANIFEST).unlink()
    assert FeatureWriter(tmp_path, LAYOUT, IDENTITY, {}).pending() == [0, 1, 2, 3]
    with pytest.raises(InputError, match="holds no cached features"):
        open_store(tmp_path / "nothing", IDENTITY)


def test_values_that_are_not_finite_are_refused_by_row(tmp_path: Path) -> None:
    writer = FeatureWriter(tmp_path, LAYOUT, IDENTITY, {})
    arrays = rows_of(LAYOUT, 1)
    arrays["features"] = arrays["features"].copy()
    arrays["features"][2, 1] = np.inf
    with pytest.raises(InputError, match="features of row 5 are not finite"):
        writer.write_part(1, arrays)
    with pytest.raises(InputError, match=r"expected \(3, 4\)"):
        writer.write_part(1, arrays | {"features": arrays["features"][:, :3]})
    assert writer.pending() == [0, 1, 2, 3]


def test_full_disk_is_reported_and_written_parts_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = FeatureWriter(tmp_path, LAYOUT, IDENTITY, {})
    writer.write_part(0, rows_of(LAYOUT, 0))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"No space left on device.*kept"):
            writer.write_part(1, rows_of(LAYOUT, 1))
    assert writer.pending() == [1, 2, 3]
    monkeypatch.setattr(feature_store, "require_free_space", full)
    with pytest.raises(OSError, match="No space"):
        FeatureWriter(tmp_path / "other", LAYOUT, IDENTITY, {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_rows": 0}, "num_rows"),
        ({"feature_type": "int8"}, "float32 or float16"),
        ({"columns": {"norms": "int64"}}, "norms"),
    ],
)
def test_invalid_layouts_are_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        StoreLayout(**({"num_rows": 3, "embedding_size": 2} | values))


_WRITER = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
import numpy as np
from features.store import FeatureWriter, StoreLayout
layout = StoreLayout(40_000, 64, part_rows=100)
writer = FeatureWriter(Path({folder!r}), layout, {{"weights": "a"}}, {{}})
for part in writer.pending():
    rows = np.arange(100 * part, 100 * part + 100, dtype=np.float32)
    writer.write_part(part, {{"features": np.repeat(rows[:, None], 64, 1), "norms": rows}})
writer.finish()
"""


@pytest.mark.slow
def test_repeated_kills_end_in_a_complete_store(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    code = _WRITER.format(root=str(ROOT), folder=str(folder))
    done = []
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", code])
        before = len(list((folder / "parts").glob("*.json"))) if folder.is_dir() else 0
        while process.poll() is None and len(list((folder / "parts").glob("*.json"))) < before + 20:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done.append(len(list((folder / "parts").glob("*.json"))))
    assert done == sorted(done)
    assert not is_complete(folder)
    subprocess.run([sys.executable, "-c", code], check=True)
    store = open_store(folder, {"weights": "a"})
    np.testing.assert_array_equal(store.norms, np.arange(40_000))
    np.testing.assert_array_equal(store.features[:, 63], np.arange(40_000))
    assert json.loads((folder / "store.json").read_text())["layout"]["num_rows"] == 40_000

"""Store features of single faces on disk: written in parts, resumed after a kill, read as mapped arrays.

A store is a folder of `.npy` files with N rows each (features, norms, columns of the caller) and
`store.json`, which states what they were made from. Several processes write rows in place; a part is valid
once its digest is written beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from runtime.array_files import map_npy
from runtime.errors import InputError
from runtime.files import atomic_write, private_folder
from runtime.json_files import check_type, json_text, read_json
from runtime.machine import usable_cores
from runtime.output_checks import require_free_space

MANIFEST = "store.json"
# Column that identifies the image of each row.
STAMP = "stamp"
_FORMAT = 3
_COLUMN_TYPES = [f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)] + ["bool"]
_PARTS = "parts"
# 4 MiB at 512 values. A kill loses at most one part, about three minutes of an IR-50 on two cores.
_PART_ROWS = 2048

Array = NDArray[Any]


@dataclass(frozen=True)
class StoreLayout:
    """Rows and columns of a store.

    `columns`: name -> dtype of further columns (N,), such as {"label": "int64"}; `feature_type`: float32 or
    float16.
    """

    num_rows: int
    embedding_size: int
    feature_type: str = "float32"
    columns: Mapping[str, str] = field(default_factory=dict)
    part_rows: int = _PART_ROWS

    def __post_init__(self) -> None:
        faults = []
        if min(self.num_rows, self.embedding_size, self.part_rows) < 1:
            faults.append("feature store: num_rows, embedding_size and part_rows must be 1 or more.")
        if self.feature_type not in ("float32", "float16"):
            faults.append(f"feature store: features are float32 or float16, not {self.feature_type}.")
        if taken := {"features", "norms"} & set(self.columns):
            faults.append(f"feature store: the columns {', '.join(sorted(taken))} are reserved.")
        # Column names are file names.
        faults += [
            f"feature store: {name!r} of dtype {kind!r} is not a column of numbers."
            for name, kind in self.columns.items()
            if not name.isidentifier() or kind not in _COLUMN_TYPES
        ]
        if faults:
            raise InputError.from_faults(faults)

    @property
    def num_parts(self) -> int:
        """Number of parts of `part_rows` rows; the last one may be shorter."""
        return -(-self.num_rows // self.part_rows)

    def rows(self, part: int) -> range:
        """The rows of a part."""
        return range(part * self.part_rows, min((part + 1) * self.part_rows, self.num_rows))

    def arrays(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Dtype and shape of every array by name."""
        N = self.num_rows
        own = {
            "features": (np.dtype(self.feature_type), (N, self.embedding_size)),
            "norms": (np.dtype("float32"), (N,)),
        }
        return own | {name: (np.dtype(kind), (N,)) for name, kind in self.columns.items()}

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return vars(self) | {"columns": dict(self.columns)}


@dataclass(frozen=True, eq=False)
class FeatureStore:
    """A complete store with mapped arrays.

    Attributes:
        folder: of the store.
        features: (N, D) unit rows.
        norms: (N,).
        columns: further arrays (N,) by name.
        identity: all that a feature depends on.
        about: further facts.
    """

    folder: Path
    features: Array
    norms: NDArray[np.float32]
    columns: Mapping[str, Array]
    identity: Mapping[str, str]
    about: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.norms)


class FeatureWriter:
    """Writes a store, new or resumed; several processes may write different parts."""

    def __init__(
        self, folder: Path, layout: StoreLayout, identity: Mapping[str, str], about: Mapping[str, str]
    ) -> None:
        """Create the files, or open those of an interrupted run. See `FeatureStore` for `identity`.

        Raises:
            InputError: the folder holds a store of another identity or layout, or the disk is full.
        """
        self.folder, self.layout = folder, layout
        manifest = _read_manifest(folder)
        if manifest is None:
            self._create(identity, about)
        else:
            _check_identity(folder, manifest, identity)
            if manifest["layout"] != json.loads(json.dumps(layout.to_dict())):
                raise InputError(
                    f"{folder}: holds features of another layout ({manifest['layout']}, now "
                    f"{layout.to_dict()}). Remove the folder."
                )

    def pending(self, expected: Mapping[str, Array] | None = None) -> list[int]:
        """Parts that are not written yet, or were written for other values of a column.

        `expected`: columns (N,) that identify what rows were made from, such as stamps of the images. A
        complete store with such parts becomes incomplete and keeps the others.
        """
        layout = self.layout
        manifest = _read_manifest(self.folder)
        digests = None if manifest is None else manifest.get("digests")
        done = set(range(layout.num_parts) if digests else _part_digests(self.folder))
        for name, array in (expected or {}).items():
            stored = _mapped(self.folder / f"{name}.npy", *layout.arrays()[name])
            for part in list(done):
                rows = layout.rows(part)
                if not np.array_equal(stored[rows.start : rows.stop], array[rows.start : rows.stop]):
                    done.remove(part)
        if manifest and digests and len(done) < layout.num_parts:
            for part in done:
                atomic_write(self._digest_file(part), digests[part])
            del manifest["digests"]
            _write_manifest(self.folder, manifest)
        for part in set(_part_digests(self.folder)) - done:
            self._digest_file(part).unlink()
        return [part for part in range(layout.num_parts) if part not in done]

    def _digest_file(self, part: int) -> Path:
        return self.folder / _PARTS / f"{part}.json"

    def write_part(self, part: int, arrays: Mapping[str, Array]) -> None:
        """Write all rows of a part, then its digest; after a kill in between it is still pending.

        Args:
            part: 0..num_parts-1.
            arrays: features (n, D), norms (n,) and every column (n,).

        Raises:
            InputError: wrong shapes, a value that is not finite, or a full disk.
        """
        rows = self.layout.rows(part)
        digest = hashlib.sha256()
        for name, (kind, shape) in self.layout.arrays().items():
            array = np.ascontiguousarray(arrays[name], dtype=kind)
            if array.shape != (len(rows), *shape[1:]):
                raise InputError(
                    f"{self.folder}: {name} {array.shape} for rows {rows.start} to {rows.stop - 1}, expected "
                    f"{(len(rows), *shape[1:])}."
                )
            if kind.kind == "f" and not np.isfinite(array).all():
                row = rows[int(np.argwhere(~np.isfinite(array))[0][0])]
                raise InputError(
                    f"{self.folder}: {name} of row {row} are not finite. Large features overflow in half "
                    "precision: use precision 32."
                )
            digest.update(array.tobytes())
            try:
                _write_rows(self.folder / f"{name}.npy", rows.start, array)
            except OSError as fault:
                raise InputError(
                    f"{self.folder}: cannot be written ({fault.strerror}). The parts written so far are "
                    "kept; free some disk space and run the command again."
                ) from None
        atomic_write(self._digest_file(part), digest.hexdigest())

    def copy_parts(
        self, known: Callable[[range], Mapping[str, Array] | None], columns: Mapping[str, Array]
    ) -> None:
        """Write the pending parts for which `known` gives features and norms; `columns` (N,) of all rows."""
        for part in self.pending({STAMP: columns[STAMP]}):
            rows = self.layout.rows(part)
            if (arrays := known(rows)) is not None:
                beside = {name: column[rows.start : rows.stop] for name, column in columns.items()}
                self.write_part(part, {**arrays, **beside})

    def finish(self) -> FeatureStore:
        """Verify what all processes wrote, mark the store complete and open it.

        Raises:
            InputError: parts are missing, or differ from their digests; the latter are pending again.
        """
        manifest = _read_manifest(self.folder)
        if manifest is None:
            raise InputError(f"{self.folder}: the store was removed while it was being written.")
        if "digests" not in manifest:
            if pending := self.pending():
                raise InputError(f"{self.folder}: {len(pending)} parts are missing. Run the command again.")
            written = _part_digests(self.folder)
            digests = [written[part] for part in range(self.layout.num_parts)]
            if broken := _differing(self.folder, self.layout, dict(enumerate(digests))):
                for part in broken:
                    self._digest_file(part).unlink()
                raise InputError(
                    f"{self.folder}: {len(broken)} of {len(digests)} parts differ from what was written. "
                    "Check that the disk is sound and shared by all nodes, then run the command again."
                )
            _write_manifest(self.folder, manifest | {"digests": digests})
            shutil.rmtree(self.folder / _PARTS)
        return open_store(self.folder, None, verify=False)

    def _create(self, identity: Mapping[str, str], about: Mapping[str, str]) -> None:
        arrays = self.layout.arrays()
        require_free_space(self.folder, sum(kind.itemsize * int(np.prod(s)) for kind, s in arrays.values()))
        private_folder(self.folder / _PARTS)
        # Without a manifest this is not a store; stale digests would mark parts as written.
        for leftover in (self.folder / _PARTS).iterdir():
            leftover.unlink()
        for name, (kind, shape) in arrays.items():
            np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", kind, shape).flush()
        manifest = {"identity": dict(identity), "about": dict(about), "layout": self.layout.to_dict()}
        # Written last: a folder without it is created again.
        _write_manifest(self.folder, manifest)


def open_store(folder: Path, identity: Mapping[str, str] | None, *, verify: bool = True) -> FeatureStore:
    """Open a complete store for reading.

    Args:
        folder: of the store.
        identity: expected identity; None accepts any.
        verify: compare all bytes with the digests (0.3 s per GiB on two cores), not only file sizes.

    Raises:
        InputError: no store, an incomplete or damaged one, or one of another identity.
    """
    manifest = _read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder}: holds no cached features; expected {MANIFEST} and features.npy in it.")
    if identity is not None:
        _check_identity(folder, manifest, identity)
    if "digests" not in manifest:
        raise InputError(
            f"{folder}: its features are incomplete. Run the command that makes them again; it resumes where "
            "it stopped."
        )
    layout = _layout(folder, manifest)
    store = _mapped_store(folder, layout, manifest)
    if verify and (broken := _differing(folder, layout, dict(enumerate(manifest["digests"])))):
        first = layout.rows(broken[0])
        raise InputError(
            f"{folder}: {len(broken)} of {layout.num_parts} parts are damaged (the first: rows {first.start} "
            f"to {first.stop - 1}). Remove the folder to make them again."
        )
    return store


def _mapped_store(folder: Path, layout: StoreLayout, manifest: Mapping[str, Any]) -> FeatureStore:
    arrays = {name: _mapped(folder / f"{name}.npy", *form) for name, form in layout.arrays().items()}
    features, norms = arrays.pop("features"), arrays.pop("norms")
    return FeatureStore(folder, features, norms, arrays, manifest["identity"], manifest["about"])


def written_rows(folder: Path) -> tuple[FeatureStore, NDArray[np.bool_]] | None:
    """A store, complete or not, and (N,) which rows match their digest; None where it cannot be read."""
    try:
        if (manifest := _read_manifest(folder)) is None:
            return None
        layout = _layout(folder, manifest)
        store = _mapped_store(folder, layout, manifest)
        digests = dict(enumerate(manifest.get("digests", []))) or _part_digests(folder)
        valid = np.zeros(layout.num_rows, bool)
        for part in set(digests) - set(_differing(folder, layout, digests)):
            valid[layout.rows(part)] = True
        return store, valid
    except (InputError, OSError, ValueError):
        return None


def stored_identity(folder: Path) -> dict[str, str] | None:
    """The identity of a store, complete or not; None as for `written_rows`."""
    try:
        manifest = _read_manifest(folder)
    except InputError:
        return None
    return None if manifest is None else manifest["identity"]


def is_complete(folder: Path) -> bool:
    """Whether the folder holds a complete store."""
    manifest = _read_manifest(folder)
    return manifest is not None and "digests" in manifest


def fingerprint(identity: Mapping[str, str]) -> str:
    """SHA-256 of an identity, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest, has_checksum = read_json(path, dict[str, Any], "the manifest of a store of features")
        if manifest.get("format") != _FORMAT:
            stored = manifest.get("format")
            raise InputError(f"{path}: has format {stored!r}; this version reads format {_FORMAT}.")
        if not has_checksum:
            raise InputError(f"{path}: is damaged: its checksum is missing.")
        check_type(manifest, _Manifest, str(path))
        check_type(manifest.get("digests", []), list[str], f"{path}: digests")
        parts = _layout(folder, manifest).num_parts
        if len(manifest.get("digests", ())) not in (0, parts):
            raise InputError(f"{path}: is damaged: {len(manifest['digests']):,} digests of {parts:,} parts.")
    except InputError as fault:
        raise InputError(f"{fault} Remove the folder and make the features again.") from None
    found: dict[str, Any] = manifest
    return found


class _Layout(TypedDict):
    num_rows: int
    embedding_size: int
    feature_type: str
    columns: dict[str, str]
    part_rows: int


class _Manifest(TypedDict):
    """Content of `store.json`; a complete store also has `digests`, a list of texts."""

    format: int
    identity: dict[str, str]
    about: dict[str, str]
    layout: _Layout


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    atomic_write(folder / MANIFEST, json_text({**manifest, "format": _FORMAT}))


def _layout(folder: Path, manifest: Mapping[str, Any]) -> StoreLayout:
    stored: _Layout = manifest["layout"]
    try:
        return StoreLayout(**{key: stored[key] for key in _Layout.__annotations__})  # type: ignore[literal-required]
    except InputError as fault:
        raise InputError(f"{folder / MANIFEST}: {fault}") from None


def _part_digests(folder: Path) -> dict[int, str]:
    """The digests of the written parts of an incomplete store."""
    paths = [path for path in (folder / _PARTS).glob("[0-9]*.json") if path.stem.isdecimal()]
    return {int(path.stem): path.read_bytes()[:100].decode("ascii", "replace") for path in paths}


def _check_identity(folder: Path, manifest: Mapping[str, Any], identity: Mapping[str, str]) -> None:
    stored = manifest["identity"]
    differ = [key for key in {**stored, **identity} if stored.get(key) != identity.get(key)]
    if differ:
        lines = [
            f"  {key}: {stored.get(key, 'nothing')} there, {identity.get(key, 'nothing')} now"
            for key in differ
        ]
        raise InputError.from_faults([f"{folder}: holds features of another identity:", *lines])


def _write_rows(path: Path, first: int, array: Array) -> None:
    with path.open("r+b") as stream:
        np.lib.format.read_magic(stream)
        np.lib.format.read_array_header_1_0(stream)
        stream.seek(stream.tell() + first * array[:1].nbytes)
        stream.write(array.tobytes())
        stream.flush()
        # Before the digest: after a power cut it must not be beside rows of zeros.
        os.fsync(stream.fileno())


def _mapped(path: Path, kind: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    try:
        array = map_npy(path, f"{shape} {kind}")
    except InputError as fault:
        raise InputError(f"{fault} Remove the folder to make it again.") from None
    if array.dtype != kind or array.shape != shape:
        raise InputError(
            f"{path}: holds {array.dtype} {array.shape}, expected {kind} {shape}. Remove the folder."
        )
    return array


def _differing(folder: Path, layout: StoreLayout, digests: Mapping[int, str]) -> list[int]:
    """The parts whose bytes do not match their digest."""
    arrays = [_mapped(folder / f"{name}.npy", *form) for name, form in layout.arrays().items()]

    def differs(part: int) -> bool:
        rows, digest = layout.rows(part), hashlib.sha256()
        for array in arrays:
            digest.update(array[rows.start : rows.stop].tobytes())
        return digest.hexdigest() != digests[part]

    # Hashing releases the interpreter lock.
    with ThreadPoolExecutor(usable_cores()) as pool:
        return [part for part, wrong in zip(digests, pool.map(differs, digests), strict=True) if wrong]

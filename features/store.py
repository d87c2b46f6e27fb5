"""Features of single faces kept on the disk: written in parts, continued after a kill, read as mapped arrays.

A store is a folder of `.npy` files with N rows each (features, norms, columns of the caller's own) and
`store.json`, which says what they were made from. Rows are written in place by several processes; a part
counts when its digest has been written beside it. What a face is, is the caller's affair.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from runtime.array_files import map_npy
from runtime.errors import InputError, InputWarning
from runtime.files import atomic_write, private_folder
from runtime.json_files import check_type, json_text, read_json
from runtime.machine import usable_cores
from runtime.output_checks import require_free_space

MANIFEST = "store.json"
# Column of what each row was made from: another stamp is another image.
STAMP = "stamp"
# 3: has a checksum. 2: the identity says the decoder and the colours, and stamps of training images their
# content.
_FORMAT, _WITHOUT_CHECKSUM = 3, 2
_COLUMN_TYPES = [f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)] + ["bool"]
_PARTS = "parts"
# A part of 512 values is 4 MiB: what a kill costs, about three minutes of an IR-50 on two cores.
_PART_ROWS = 2048

Array = NDArray[Any]


@dataclass(frozen=True)
class StoreLayout:
    """Rows and columns of a store.

    `columns`: name -> type of further columns (N,), such as {"label": "int64"}; `feature_type`: float32 or
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
            faults.append("feature store: expected one or more rows, values a feature and rows a part.")
        if self.feature_type not in ("float32", "float16"):
            faults.append(f"feature store: features are float32 or float16, not {self.feature_type}.")
        if taken := {"features", "norms"} & set(self.columns):
            faults.append(f"feature store: {', '.join(sorted(taken))} are its own columns.")
        # They name files.
        faults += [
            f"feature store: {name!r} of type {kind!r} is no column of numbers."
            for name, kind in self.columns.items()
            if not name.isidentifier() or kind not in _COLUMN_TYPES
        ]
        if faults:
            raise InputError.from_faults(faults)

    @property
    def num_parts(self) -> int:
        """Parts of `part_rows` rows; the last one may be shorter."""
        return -(-self.num_rows // self.part_rows)

    def rows(self, part: int) -> range:
        """The rows of a part."""
        return range(part * self.part_rows, min((part + 1) * self.part_rows, self.num_rows))

    def arrays(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Type and shape of every array by its name."""
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
    """A complete store. Arrays are mapped, so that reading some rows costs what these are worth.

    `features` (N, D) unit rows; `norms` (N,) float32; `columns`: further (N,) arrays; `identity`: what it was
    made from, all that a feature depends on; `about`: what is only good to know.
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
    """A store in the making, new or continued; several processes may hold one and write different parts."""

    def __init__(
        self, folder: Path, layout: StoreLayout, identity: Mapping[str, str], about: Mapping[str, str]
    ) -> None:
        """Creates the files, or takes up those of an interrupted run. See `FeatureStore` for `identity`.

        Raises:
            InputError: the folder holds a store of another identity or layout, or the disk lacks room.
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
        """Parts that are still to be written, or were written for other values of a column.

        `expected`: columns (N,) that tell what each row was made from, such as stamps of the images. Of a
        complete store with such parts the others stay, and it is no longer complete.
        """
        layout = self.layout
        manifest = _read_manifest(self.folder)
        digests = None if manifest is None else manifest.get("digests")
        done = set(range(layout.num_parts)) if digests else self._written()
        for name, array in (expected or {}).items():
            stored = _mapped(self.folder / f"{name}.npy", *layout.arrays()[name])
            done -= {
                part
                for part in done
                for rows in [layout.rows(part)]
                if not np.array_equal(stored[rows.start : rows.stop], array[rows.start : rows.stop])
            }
        if digests and len(done) < layout.num_parts:
            for part in done:
                atomic_write(self._digest_file(part), digests[part])
            manifest = {key: value for key, value in (manifest or {}).items() if key != "digests"}
            _write_manifest(self.folder, manifest)
        for part in self._written() - done:
            self._digest_file(part).unlink()
        return [part for part in range(layout.num_parts) if part not in done]

    def _written(self) -> set[int]:
        return set(_part_digests(self.folder))

    def _digest_file(self, part: int) -> Path:
        return self.folder / _PARTS / f"{part}.json"

    def write_part(self, part: int, arrays: Mapping[str, Array]) -> None:
        """Writes all rows of a part, then its digest; killed in between, the part is still pending.

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
                    f"{self.folder}: {name} of row {row} are not finite. In half precision a large feature "
                    "overflows: use precision 32."
                )
            digest.update(array.tobytes())
            try:
                _write_rows(self.folder / f"{name}.npy", rows.start, array)
            except OSError as fault:
                raise InputError(
                    f"{self.folder}: cannot be written ({fault.strerror}). The parts there are kept; "
                    "make room and run the command again."
                ) from None
        atomic_write(self._digest_file(part), digest.hexdigest())

    def copy_parts(
        self, known: Callable[[range], Mapping[str, Array] | None], columns: Mapping[str, Array]
    ) -> None:
        """Writes the pending parts of whose rows `known` gives features and norms; `columns` (N,) of all."""
        for part in self.pending({STAMP: columns[STAMP]}):
            rows = self.layout.rows(part)
            if (arrays := known(rows)) is not None:
                beside = {name: column[rows.start : rows.stop] for name, column in columns.items()}
                self.write_part(part, {**arrays, **beside})

    def finish(self) -> FeatureStore:
        """Verifies what all processes wrote, marks the store complete and opens it.

        Raises:
            InputError: parts are missing, or differ from what was written (these are pending again).
        """
        manifest = _read_manifest(self.folder)
        if manifest is None:
            raise InputError(f"{self.folder}: the store is gone; somebody removed it meanwhile.")
        if "digests" not in manifest:
            if pending := self.pending():
                raise InputError(f"{self.folder}: {len(pending)} parts are missing. Run the command again.")
            written = _part_digests(self.folder)
            digests = [written[part] for part in range(self.layout.num_parts)]
            if broken := _differing(self.folder, self.layout, dict(enumerate(digests))):
                for part in broken:
                    self._digest_file(part).unlink()
                raise InputError(
                    f"{self.folder}: {len(broken)} of {len(digests)} parts are not as written. Is the disk "
                    "sound, and shared by all nodes? Run the command again: these parts are made anew."
                )
            _write_manifest(self.folder, manifest | {"digests": digests})
            shutil.rmtree(self.folder / _PARTS)
        return open_store(self.folder, None, verify=False)

    def _create(self, identity: Mapping[str, str], about: Mapping[str, str]) -> None:
        arrays = self.layout.arrays()
        require_free_space(self.folder, sum(kind.itemsize * int(np.prod(s)) for kind, s in arrays.values()))
        private_folder(self.folder / _PARTS)
        # Nothing here is a store yet: digests of an earlier one without its manifest would be believed.
        for leftover in (self.folder / _PARTS).iterdir():
            leftover.unlink()
        for name, (kind, shape) in arrays.items():
            np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", kind, shape).flush()
        manifest = {"identity": dict(identity), "about": dict(about), "layout": self.layout.to_dict()}
        # The last file: a folder without it is made anew.
        _write_manifest(self.folder, manifest)


def open_store(folder: Path, identity: Mapping[str, str] | None, *, verify: bool = True) -> FeatureStore:
    """Opens a complete store for reading.

    Args:
        folder: of the store.
        identity: what its features have to be made from; None takes any.
        verify: compare all bytes with their digests (0.3 s a GiB on two cores), not only the files' sizes.

    Raises:
        InputError: no store, an incomplete or damaged one, or one that was made from something else.
    """
    manifest = _read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder}: holds no cached features; expected {MANIFEST} and features.npy in it.")
    if identity is not None:
        _check_identity(folder, manifest, identity)
    if "digests" not in manifest:
        raise InputError(
            f"{folder}: its features are not complete. Run the command that makes them again; it goes on "
            "where it stopped."
        )
    if verify and manifest["format"] == _WITHOUT_CHECKSUM:
        warnings.warn(
            f"{folder}: was written before stores had a checksum; that what it says of its features is "
            "undamaged cannot be told.",
            InputWarning,
            stacklevel=2,
        )
    layout = _layout(folder, manifest)
    store = _mapped_store(folder, layout, manifest)
    if verify and (broken := _differing(folder, layout, dict(enumerate(manifest["digests"])))):
        first = layout.rows(broken[0])
        raise InputError(
            f"{folder}: {len(broken)} of {layout.num_parts} parts are damaged (the first: rows {first.start} "
            f"to {first.stop - 1}). Remove the folder; they are made anew."
        )
    return store


def _mapped_store(folder: Path, layout: StoreLayout, manifest: Mapping[str, Any]) -> FeatureStore:
    arrays = {name: _mapped(folder / f"{name}.npy", *form) for name, form in layout.arrays().items()}
    features, norms = arrays.pop("features"), arrays.pop("norms")
    return FeatureStore(folder, features, norms, arrays, manifest["identity"], manifest["about"])


@dataclass(frozen=True, eq=False)
class WrittenRows:
    """What is there of a store, complete or not: `valid` (N,) are its rows that are as they were written."""

    store: FeatureStore
    valid: NDArray[np.bool_]


def written_rows(folder: Path) -> WrittenRows | None:
    """The rows of a store that can be used; None where there is no store, or one that cannot be read."""
    try:
        manifest = _read_manifest(folder)
        if manifest is None:
            return None
        return _written_rows(folder, manifest)
    except (InputError, OSError, ValueError):
        return None


def _written_rows(folder: Path, manifest: Mapping[str, Any]) -> WrittenRows:
    layout = _layout(folder, manifest)
    store = _mapped_store(folder, layout, manifest)
    digests = dict(enumerate(manifest.get("digests", []))) or _part_digests(folder)
    valid = np.zeros(layout.num_rows, bool)
    for part in set(digests) - set(_differing(folder, layout, digests)):
        valid[layout.rows(part)] = True
    return WrittenRows(store, valid)


def stored_identity(folder: Path) -> dict[str, str] | None:
    """What the features of a store, complete or not, are made from; None as for `written_rows`."""
    try:
        manifest = _read_manifest(folder)
    except InputError:
        return None
    return None if manifest is None else manifest["identity"]


def is_complete(folder: Path) -> bool:
    """Whether a complete store is there."""
    manifest = _read_manifest(folder)
    return manifest is not None and "digests" in manifest


def fingerprint(identity: Mapping[str, str]) -> str:
    """SHA-256 of an identity, to name a folder by."""
    return hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest, has_checksum = read_json(path, dict[str, Any], "the manifest of a store of features")
        if manifest.get("format") not in (_FORMAT, _WITHOUT_CHECKSUM):
            raise InputError(
                f"{path}: is of format {manifest.get('format')!r}, not of the form that this version writes "
                f"(format {_FORMAT}, which says all that features depend on)."
            )
        check_type(manifest, _Manifest, str(path))
        check_type(manifest.get("digests", []), list[str], f"{path}: digests")
        if not has_checksum and manifest["format"] == _FORMAT:
            raise InputError(f"{path}: is damaged: its checksum is missing.")
        parts = _layout(folder, manifest).num_parts
        if len(manifest.get("digests", ())) not in (0, parts):
            raise InputError(f"{path}: is damaged: {len(manifest['digests']):,} digests of {parts:,} parts.")
    except InputError as fault:
        raise InputError(f"{fault} Make the features again, and remove the folder.") from None
    found: dict[str, Any] = manifest
    return found


class _Layout(TypedDict):
    num_rows: int
    embedding_size: int
    feature_type: str
    columns: dict[str, str]
    part_rows: int


class _Manifest(TypedDict):
    """What `store.json` holds; of a complete store also `digests`, a list of texts."""

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
    """The digests of parts of a store that is not complete, as they were written."""
    paths = [path for path in (folder / _PARTS).glob("[0-9]*.json") if path.stem.isdecimal()]
    # Versions before wrote them as JSON texts.
    return {int(path.stem): path.read_bytes()[:100].decode("ascii", "replace").strip('"') for path in paths}


def _check_identity(folder: Path, manifest: Mapping[str, Any], identity: Mapping[str, str]) -> None:
    stored = manifest["identity"]
    differ = [key for key in {**stored, **identity} if stored.get(key) != identity.get(key)]
    if differ:
        lines = [
            f"  {key}: {stored.get(key, 'nothing')} there, {identity.get(key, 'nothing')} now"
            for key in differ
        ]
        raise InputError.from_faults([f"{folder}: its features were made from something else:", *lines])


def _write_rows(path: Path, first: int, array: Array) -> None:
    with path.open("r+b") as stream:
        np.lib.format.read_magic(stream)
        np.lib.format.read_array_header_1_0(stream)
        stream.seek(stream.tell() + first * array[:1].nbytes)
        stream.write(array.tobytes())
        stream.flush()
        # Before the digest counts: after a power cut it must not stand beside rows of zeros.
        os.fsync(stream.fileno())


def _mapped(path: Path, kind: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    try:
        array = map_npy(path, f"{shape} {kind}")
    except InputError as fault:
        raise InputError(f"{fault} Remove the folder; it is made anew.") from None
    if array.dtype != kind or array.shape != shape:
        raise InputError(
            f"{path}: holds {array.dtype} {array.shape}, expected {kind} {shape}. Remove the folder."
        )
    return array


def _differing(folder: Path, layout: StoreLayout, digests: Mapping[int, str]) -> list[int]:
    """Those of the parts whose bytes are not as their digest says."""
    arrays = [_mapped(folder / f"{name}.npy", *form) for name, form in layout.arrays().items()]

    def differs(part: int) -> bool:
        rows, digest = layout.rows(part), hashlib.sha256()
        for array in arrays:
            digest.update(array[rows.start : rows.stop].tobytes())
        return digest.hexdigest() != digests[part]

    # Hashing lets go of the interpreter.
    with ThreadPoolExecutor(usable_cores()) as pool:
        return [part for part, wrong in zip(digests, pool.map(differs, digests), strict=True) if wrong]

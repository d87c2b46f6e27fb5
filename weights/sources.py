"""Resolve sources of weights to local files: a path, a name of the catalogue, or hf://..."""

from __future__ import annotations

import hashlib
from pathlib import Path

from runtime.errors import InputError, did_you_mean
from runtime.input_files import sha256_of
from runtime.onnx_files import external_files
from weights.catalogue import CATALOGUE, Entry, fetched_path
from weights.hub import PREFIX, cached_file, hub_file

NOT_STATED = "not stated"


def resolve(source: Path | str) -> Path:
    """The file of a source. A path is returned as it is, whether it exists or not.

    An hf:// source is downloaded into the hub's cache if needed. A name of the catalogue is not, so that
    nothing large is downloaded by accident: `convert.py --fetch-weights` does it.

    Raises:
        InputError: a name that was not fetched, or a hub file that is not available.
    """
    if isinstance(source, Path):
        return source
    if source.startswith(PREFIX):
        return hub_file(source)
    if Path(source).exists() or source not in CATALOGUE:
        return _path(source)
    entry = CATALOGUE[source]
    if (there := fetched(entry)) is None:
        raise InputError(
            f"{source}: is in the catalogue, but was not downloaded yet: python convert.py --fetch-weights "
            f"{source} (its terms: python convert.py --list-weights)"
        )
    return there


def fetched(entry: Entry) -> Path | None:
    """The local file of an entry of the catalogue; None where it was not downloaded."""
    if entry.source.startswith(PREFIX):
        return cached_file(entry.source)
    path = fetched_path(entry)
    return path if path.is_file() else None


def check_weights_exist(path: Path) -> None:
    """Raise InputError if there is no such file."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the weights of a backbone.")


def weights_sha256(source: Path | str) -> str:
    """Hexadecimal SHA-256 of the file of a source; of an ONNX graph with external weights, over all files.

    Raises:
        InputError: as `resolve`, or no such file.
    """
    path = resolve(source)
    check_weights_exist(path)
    others = external_files(path, path.read_bytes()) if path.suffix == ".onnx" else []
    if not others:
        return sha256_of(path)
    return hashlib.sha256("".join(map(sha256_of, [path, *others])).encode()).hexdigest()


def source_name(source: Path | str) -> str:
    """The name of a source in tables: that of a file, otherwise the source itself."""
    return Path(source).name if isinstance(source, Path) or Path(source).is_file() else source


def licence_of(source: Path | str) -> str:
    """The licence of weights in the catalogue; `NOT_STATED` for other sources."""
    for entry in CATALOGUE.values():
        if str(source) in (entry.name, entry.source):
            return entry.weights_licence
    return NOT_STATED


def _path(source: str) -> Path:
    path = Path(source)
    if not path.exists() and not path.suffix and path.name == source:
        near = did_you_mean(source, CATALOGUE, cutoff=0.6)
        hint = near or " python convert.py --list-weights shows its names."
        raise InputError(f"{source}: is neither a file nor a name of the catalogue.{hint}")
    return path

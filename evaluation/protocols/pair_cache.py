"""The pair list of a benchmark in binary beside its text, made when that is first read.

IJB-C's 15.7 million lines take a second to read as text and nothing as a mapped file. A cache only saves
time: it is used for exactly the file and the templates that it was made from, and never missed.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.files import atomic_path, cache_folder
from runtime.json_files import check_type, parse_json

CACHE_FOLDER = ".pair_cache"
# 2: has a checksum.
_FORMAT = 2
_HEADER_BYTES = 4096
# Blocks of the text that are looked at besides its size and times: a rewritten file differs in some.
_SAMPLES, _SAMPLE_BYTES = 64, 4096

_Pairs = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]


def cached_pairs(path: Path, template_ids: NDArray[np.int64]) -> _Pairs | None:
    """Rows of first and second template (n,) and labels (n,), mapped, if a cache of `path` is there."""
    try:
        fingerprint = _fingerprint(path, template_ids)
    except OSError:
        return None
    for folder in _folders(path):
        try:
            pairs = _mapped(folder / f"{path.stem}.bin", fingerprint, len(template_ids))
        except (OSError, ValueError, InputError):
            continue
        if pairs is not None:
            return pairs
    return None


def keep_pairs(
    path: Path,
    template_ids: NDArray[np.int64],
    first: NDArray[np.int32],
    second: NDArray[np.int32],
    is_mated: NDArray[np.bool_],
) -> None:
    """Writes the cache beside the text, or to the user's cache folder where that is not allowed.

    A full disk or a read-only one is no reason to stop.
    """
    checksum = 0
    for array in (first, second, is_mated):
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    header = {"fingerprint": _fingerprint(path, template_ids), "pairs": len(first), "crc32": checksum}
    for folder in _folders(path):
        try:
            with atomic_path(folder / f"{path.stem}.bin") as temporary, temporary.open("wb") as stream:
                stream.write(json.dumps(header).encode().ljust(_HEADER_BYTES))
                for array in (first, second, is_mated):
                    array.tofile(stream)
        except OSError:
            continue
        return


class _Header(TypedDict):
    fingerprint: dict[str, Any]
    pairs: int
    crc32: int


def _mapped(file: Path, fingerprint: dict[str, Any], num_templates: int) -> _Pairs | None:
    with file.open("rb") as stream:
        header = parse_json(stream.read(_HEADER_BYTES), str(file))
        size = os.fstat(stream.fileno()).st_size
    check_type(header, _Header, str(file))
    count = header["pairs"]
    if header["fingerprint"] != fingerprint or count < 1 or size != _HEADER_BYTES + 9 * count:
        return None
    content = np.memmap(file, np.uint8, mode="r", offset=_HEADER_BYTES)
    first, second, labels = np.split(content, [4 * count, 8 * count])
    rows = content[: 8 * count].view(np.int32)
    # 0.1 s for IJB-C's 141 MB. The rows are looked at too, since a cache may have come with the data.
    if zlib.crc32(content.data) != header["crc32"] or labels.max() > 1:
        return None
    if rows.min() < 0 or rows.max() >= num_templates:
        return None
    return first.view(np.int32), second.view(np.int32), labels.view(np.bool_)


def _fingerprint(path: Path, template_ids: NDArray[np.int64]) -> dict[str, Any]:
    status = path.stat()
    digest = hashlib.sha256(template_ids.astype("<i8").tobytes())
    with path.open("rb", buffering=0) as stream:
        for place in np.linspace(0, max(0, status.st_size - _SAMPLE_BYTES), _SAMPLES).astype(int).tolist():
            stream.seek(place)
            digest.update(stream.read(_SAMPLE_BYTES))
    return {
        "format": _FORMAT,
        "size": status.st_size,
        "times": [status.st_mtime_ns, status.st_ctime_ns],
        "digest": digest.hexdigest(),
    }


def _folders(path: Path) -> Iterator[Path]:
    yield path.parent / CACHE_FOLDER
    yield cache_folder() / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:24]

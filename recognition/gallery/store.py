"""A gallery of enrolled people in one file: exact search, an open-set threshold, writers that lose nothing.

Arrays in, arrays out: nothing is described here, and nothing is printed. The commands are in
`gallery_commands`.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from data.sources.subject_names import normal, same_names
from recognition.preprocessing import check_same_preprocessing, without_auxiliary
from runtime.array_files import read_npz, write_npz
from runtime.errors import InputError, InputWarning
from runtime.escaping import escaped
from runtime.files import atomic_path, private_folder
from runtime.json_files import check_type, parse_json
from runtime.output_checks import require_free_space

# 3: has a checksum. 2: says how faces were read.
SCHEMA, _WITHOUT_CHECKSUM = 3, 2
_MEMBERS = ("schema", "names", "descriptors", "norms", "files", "fingerprint", "reading")
SUFFIX = ".npz"
# A writer holds the lock for one reading and one writing of the file: some ten seconds at two million.
_LOCK_SECONDS = 300.0
_NAMES_SHOWN = 5

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Gallery:
    """Descriptors of enrolled people, one each, in the order of enrolment.

    Attributes:
        names: N different names.
        descriptors: (N, D) float32, unit rows.
        norms: (N,) float32 lengths before, the quality of each set in the aggregator's own scale.
        files: of each, the names of its photos.
        fingerprint: of the model that made the descriptors; others cannot be compared with them.
        reading: how faces were read and preprocessed, of `recognition.preprocessing`; empty where it is not
        known.
    """

    names: tuple[str, ...]
    descriptors: Floats
    norms: Floats
    files: tuple[tuple[str, ...], ...]
    fingerprint: str
    reading: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        faults = _faults_of(self)
        if faults:
            raise InputError.from_faults(faults)

    def __len__(self) -> int:
        return len(self.names)

    def with_people(self, others: Gallery, *, replace: bool = False) -> Gallery:
        """This one and others behind; InputError for names that are there, unless they are replaced."""
        _check_fingerprint(others.fingerprint, self.fingerprint, "the new descriptors")
        self.check_reading(others.reading)
        if self.names and self.descriptors.shape[1] != others.descriptors.shape[1]:
            raise InputError(
                f"gallery: holds descriptors of {self.descriptors.shape[1]} values, the new ones have "
                f"{others.descriptors.shape[1]}. Use the model that the gallery was made with."
            )
        there = same_names(others.names, self.names)
        if there and not replace:
            raise InputError(
                f"gallery: {_listed(there)} already enrolled. Nothing was changed. Remove them first, "
                "replace them with --replace, or give the new sets other names."
            )
        kept = self.without(there) if there else self
        if not kept.names:
            return others
        return Gallery(
            kept.names + others.names,
            np.concatenate([kept.descriptors, others.descriptors]),
            np.concatenate([kept.norms, others.norms]),
            kept.files + others.files,
            self.fingerprint,
            # What is not known of some is not known of all.
            {**others.reading, **self.reading} if others.reading and self.reading else {},
        )

    def without(self, names: Sequence[str]) -> Gallery:
        """All others; raises InputError for names that are not there, and removes nothing then."""
        known = set(map(normal, self.names))
        strangers = [name for name in names if normal(name) not in known]
        if strangers:
            raise InputError(
                f"gallery: {_listed(strangers)} not enrolled. Nothing was changed; 'list' shows who is."
            )
        gone = set(map(normal, names))
        rows = [row for row, name in enumerate(self.names) if normal(name) not in gone]
        return Gallery(
            tuple(self.names[row] for row in rows),
            self.descriptors[rows],
            self.norms[rows],
            tuple(self.files[row] for row in rows),
            self.fingerprint,
            self.reading,
        )

    def check_model(self, fingerprint: str) -> None:
        """Raises InputError unless that is the model which made the gallery."""
        _check_fingerprint(fingerprint, self.fingerprint, "this model")

    def check_reading(self, reading: Mapping[str, str]) -> None:
        """Raises InputError where faces were read in another way; where that is not known, warns."""
        if reading and len(self):
            check_same_preprocessing("gallery", self.reading, reading, "enroll anew into another file")


def open_gallery(path: Path) -> Gallery:
    """Reads a gallery; what another process writes meanwhile is seen whole or not at all.

    Raises:
        InputError: there is none, it is damaged, or no gallery.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such gallery. Make it with 'enroll'.")
    values, has_checksum = read_npz(path, "a gallery", optional=_MEMBERS)
    schema = values["schema"].tolist() if "schema" in values else SCHEMA
    if schema not in (SCHEMA, _WITHOUT_CHECKSUM):
        raise InputError(
            f"{path}: a gallery of form {schema!r}, and this program reads form {SCHEMA}. Enroll anew into "
            "another file."
        )
    if missing := sorted(set(_MEMBERS) - set(values)):
        raise InputError(f"{path}: is no gallery: {', '.join(missing)} missing. Expected a file of 'enroll'.")
    if schema == SCHEMA and not has_checksum:
        raise InputError(
            f"{path}: is damaged: its checksum is missing. Restore it from a copy, or enroll anew."
        )
    if not has_checksum:
        warnings.warn(
            f"{path}: was written before galleries had a checksum; that it is undamaged cannot be told. The "
            "next 'enroll' or 'remove' adds one.",
            InputWarning,
            stacklevel=2,
        )
    try:
        return _gallery_of(values)
    except (InputError, ValueError, TypeError, AttributeError) as fault:
        raise InputError(f"{path}: {fault}") from None


def _gallery_of(values: Mapping[str, NDArray[Any]]) -> Gallery:
    names = values["names"].tolist()
    text, reading = values["files"], values["reading"].tolist()
    if values["names"].dtype.kind != "U" or text.dtype != np.uint8 or not isinstance(reading, str):
        raise InputError("gallery: expected names and reading as texts, and files as bytes of a text.")
    files = parse_json(
        text.tobytes(), "gallery: files: expected a list", num_lists=len(values["descriptors"])
    )
    is_list = isinstance(files, list) and set(map(type, files)) <= {list}
    if not is_list or not set(map(type, chain.from_iterable(files))) <= {str}:
        raise InputError("gallery: files: expected a list of file names for each name.")
    record = parse_json(reading, "gallery: reading: expected an object")
    check_type(record, dict[str, str], "gallery: reading")
    descriptors = values["descriptors"]
    return Gallery(
        tuple(map(escaped, names)),
        without_auxiliary(descriptors, record) if descriptors.ndim == 2 else descriptors,
        values["norms"],
        tuple(map(tuple, files)),
        escaped(str(values["fingerprint"])),
        record,
    )


def enroll(path: Path, people: Gallery, *, replace: bool = False) -> Gallery:
    """Adds people to the gallery of that path, or makes it; gives what it holds then.

    Several processes may do so at once: each waits for its turn, and a kill at any moment leaves the gallery
    as it was before or as it is after.

    Raises:
        InputError: as `Gallery.with_people` and `open_gallery`; the gallery is as it was.
    """
    return _changed(path, lambda there: there.with_people(people, replace=replace) if there else people)


def remove(path: Path, names: Sequence[str]) -> Gallery:
    """Takes people out, as `enroll` adds them. Raises InputError for names that are not there."""

    def less(there: Gallery | None) -> Gallery:
        # With the words for a gallery that is not there.
        return (there or open_gallery(path)).without(list(map(escaped, names)))

    if not path.is_file():
        # No lock can be made in a folder that is not there, or is of the system.
        open_gallery(path)
    return _changed(path, less)


def _changed(path: Path, change: Callable[[Gallery | None], Gallery]) -> Gallery:
    if path.suffix != SUFFIX:
        raise InputError(f"{path}: a gallery is a file that ends in {SUFFIX}.")
    private_folder(path.parent)
    # A file of its own: the gallery is replaced, and a lock on what was replaced protects nothing. The system
    # frees it when its holder is killed.
    lock = FileLock(path.with_name(path.name + ".lock"), timeout=_LOCK_SECONDS, mode=0o600)
    try:
        with lock:
            gallery = change(open_gallery(path) if path.exists() else None)
            _write(path, gallery)
    except Timeout:
        raise InputError(
            f"{path}: another process has been writing it for {_LOCK_SECONDS:.0f} seconds. Try again later."
        ) from None
    return gallery


def _write(path: Path, gallery: Gallery) -> None:
    files = np.frombuffer(json.dumps(gallery.files).encode(), np.uint8)
    values: dict[str, NDArray[Any]] = {
        "schema": np.array(SCHEMA),
        "names": np.array(gallery.names, dtype=np.str_),
        "descriptors": gallery.descriptors,
        "norms": gallery.norms,
        "files": files,
        "fingerprint": np.array(gallery.fingerprint),
        "reading": np.array(json.dumps(dict(gallery.reading))),
    }
    require_free_space(path.parent, sum(value.nbytes for value in values.values()) + 4096)
    with atomic_path(path) as temporary:
        write_npz(temporary, values)


def _faults_of(gallery: Gallery) -> list[str]:
    N, descriptors = len(gallery.names), gallery.descriptors
    if descriptors.ndim != 2 or descriptors.dtype != np.float32 or len(descriptors) != N:
        form = f"{descriptors.shape} {descriptors.dtype}"
        return [f"gallery: expected descriptors ({N}, D) float32, one for each name; found {form}."]
    faults = []
    if gallery.norms.shape != (N,) or gallery.norms.dtype != np.float32 or len(gallery.files) != N:
        faults.append(f"gallery: expected {N} float32 norms and as many lists of files, one for each name.")
    # By parts: the squares of a few million descriptors would fill the memory once more.
    lengths = [np.linalg.norm(descriptors[row : row + 65_536], axis=1) for row in range(0, N, 65_536)]
    # A NaN is not within either.
    bad = np.flatnonzero(~(np.abs(np.concatenate([*lengths, np.ones(0)]) - 1) < 1e-3))
    if len(bad):
        faults.append(
            f"gallery: the descriptor of {gallery.names[bad[0]]!r} is not of length one ({len(bad)} such)."
        )
    if len(set(map(normal, gallery.names))) < N:
        twice = [name for name, count in Counter(map(normal, gallery.names)).items() if count > 1]
        faults.append(f"gallery: {_listed(twice)} named more than once. Give each set a name of its own.")
    if any(not name or name != name.strip("\0") for name in gallery.names):
        faults.append("gallery: a name is empty or ends in a zero character. Give each set a name.")
    return faults


def _check_fingerprint(found: str, wanted: str, whose: str) -> None:
    if found != wanted:
        raise InputError(
            f"gallery: made with the model {wanted[:12]}, but {whose} is {found[:12]}: other weights, "
            "another aggregator or other options, whose descriptors cannot be compared. Use the model that "
            "the gallery was made with, or enroll anew into another file."
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_NAMES_SHOWN]))
    more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"

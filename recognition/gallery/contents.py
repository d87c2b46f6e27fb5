"""Contents of a gallery in memory: descriptors, names and sources of enrolled subjects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.sources.subject_names import normal
from recognition.preprocessing import check_same_preprocessing
from runtime.errors import InputError
from runtime.text import listed

_NAMES_SHOWN = 5

Floats = NDArray[np.float32]


def is_file_lists(files: object) -> bool:
    """Whether parsed JSON is a list with a list of file names per subject."""
    if not isinstance(files, list) or not set(map(type, files)) <= {list}:
        return False
    return set(map(type, chain.from_iterable(files))) <= {str}


@dataclass(frozen=True)
class GalleryInfo:
    """What holds for all subjects of a gallery.

    Attributes:
        fingerprint: of the model that made the descriptors; others cannot be compared with them.
        reading: how faces were read (`recognition.preprocessing`); empty where it is not known.
        dimension: values of a descriptor.
        count: number of subjects.
    """

    fingerprint: str
    reading: Mapping[str, str]
    dimension: int
    count: int

    def check_model(self, path: Path, fingerprint: str) -> None:
        """Raise InputError unless that is the model which made the gallery, or no subject is enrolled."""
        if self.count and fingerprint != self.fingerprint:
            raise InputError(
                f"{path}: holds descriptors of the model {self.fingerprint[:12]}, not of {fingerprint[:12]}. "
                "Descriptors of other weights, another aggregator or other options cannot be compared. Use "
                "the model of this gallery, or another gallery."
            )

    def check_reading(self, path: Path, reading: Mapping[str, str]) -> None:
        """Raise InputError where faces were read in another way; where that is not known, warn."""
        if reading and self.count:
            check_same_preprocessing(path, self.reading, reading, "use another gallery")


class Subject(NamedTuple):
    """An enrolled subject without its descriptor; `norm` and `files` as in `Gallery`."""

    name: str
    norm: float
    files: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Gallery:
    """Descriptors of N subjects in memory, one each, in the order of enrolment.

    Attributes:
        names: N different names.
        descriptors: (N, D) float32, unit rows.
        norms: (N,) float32 lengths before normalisation, the quality of each set in the aggregator's scale.
        files: of each, the names of its photos.
        fingerprint: as in `GalleryInfo`.
        reading: as in `GalleryInfo`.
    """

    names: tuple[str, ...]
    descriptors: Floats
    norms: Floats
    files: tuple[tuple[str, ...], ...]
    fingerprint: str
    reading: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if faults := _faults_of(self):
            raise InputError.from_faults(faults)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def info(self) -> GalleryInfo:
        """What holds for all subjects."""
        return GalleryInfo(self.fingerprint, self.reading, self.descriptors.shape[1], len(self))


def _faults_of(gallery: Gallery) -> list[str]:
    N, descriptors = len(gallery.names), gallery.descriptors
    if descriptors.ndim != 2 or descriptors.dtype != np.float32 or len(descriptors) != N:
        form = f"{descriptors.shape} {descriptors.dtype}"
        return [f"expected descriptors ({N}, D) float32, one for each name; found {form}."]
    faults = []
    if N and not gallery.fingerprint:
        faults.append("the fingerprint of the model is missing. Enroll the subjects anew.")
    norms = gallery.norms
    if norms.shape != (N,) or norms.dtype != np.float32 or len(gallery.files) != N:
        faults.append(f"expected {N} float32 norms and as many lists of files, one for each name.")
    elif not np.isfinite(norms).all():
        faults.append("a norm is not finite.")
    squares = np.einsum("nd,nd->n", descriptors, descriptors)
    # A NaN is not within either.
    bad = np.flatnonzero(~(np.abs(np.sqrt(squares) - 1) < 1e-3))
    if len(bad):
        faults.append(f"the descriptor of {gallery.names[bad[0]]!r} is not of length one ({len(bad)} such).")
    if len(set(names := normal_names(gallery.names))) < N:
        twice = [name for name, count in Counter(names).items() if count > 1]
        faults.append(f"{are_names(twice)} named more than once. Give each subject a name of its own.")
    if not all(gallery.names):
        faults.append("a name is empty. Give each subject a name.")
    return faults


def normal_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The forms in which names are compared; of a million ASCII names at once."""
    return names if "".join(names).isascii() else tuple(map(normal, names))


def are_names(names: Sequence[str]) -> str:
    """The first names with the verb, as "'Ann' and 3 more are", for messages."""
    return f"{listed([*map(repr, names)], _NAMES_SHOWN)} {'is' if len(names) == 1 else 'are'}"

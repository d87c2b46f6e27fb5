"""Aligned faces that a protocol names by file: pair lists, TinyFace and IJB-S have them in common.

Names are kept in one array, since IJB-S has millions of frames and every loader has its own copy of a list.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.input_files import check_inside

if TYPE_CHECKING:
    from data.sources.decoding import Image
    from data.sources.image_stamps import FileState


class ListedFaces(Protocol):
    """Faces (`data.sources.face_loader.Faces`) whose features may be kept."""

    def __len__(self) -> int: ...

    def image(self, number: int) -> Image:
        """(112, 112, 3) RGB."""

    def digest(self) -> str:
        """Digest that identifies this list of images."""

    def stamps(self) -> NDArray[np.uint64]:
        """(N,) numbers that change if an image is replaced."""


@dataclass(frozen=True)
class FaceFiles:
    """`names`: (N,) bytes, files relative to `root`."""

    root: Path
    names: NDArray[np.bytes_]

    @classmethod
    def of(cls, root: Path, names: Iterable[str]) -> FaceFiles:
        """Pack `names`, each relative to `root`; InputError for one that leads out of it."""
        names = list(names)
        check_inside(names, str(root))
        return cls(root, np.array([os.fsencode(name) for name in names], dtype=np.bytes_))

    def __len__(self) -> int:
        return len(self.names)

    def path(self, number: int) -> Path:
        """Where image `number` lies."""
        return self.root / os.fsdecode(bytes(self.names[number]))

    def image(self, number: int) -> Image:
        """(112, 112, 3) RGB."""
        from data.sources.decoding import decode_face, read_encoded

        path = self.path(number)
        try:
            encoded = read_encoded(path)
        except InputError as fault:
            raise InputError(f"{path}: {fault}") from None
        return decode_face(encoded, str(path))

    def digest(self) -> str:
        """SHA-256 over folder and names: which list this is."""
        return hashlib.sha256(os.fsencode(self.root.resolve()) + b"\0" + self.names.tobytes()).hexdigest()

    def stamps(self) -> NDArray[np.uint64]:
        """(N,) `data.sources.image_stamps` of every file: another stamp is another image."""
        from data.sources.image_stamps import UNREADABLE, stamps_of, state_of_files

        root = os.fsencode(self.root)

        def state(rows: NDArray[np.int64]) -> FileState:
            return state_of_files([os.path.join(root, name) for name in self.names[rows].tolist()])

        stamps = stamps_of(np.arange(len(self)), state, lambda row: self.path(row).read_bytes(), self.root)
        for number in np.flatnonzero(stamps == UNREADABLE).tolist():
            raise InputError(f"{self.path(number)}: cannot be read.")
        return stamps


def files_by_stem(folder: Path) -> dict[str, str]:
    """All images of a folder and the folders below it: name without suffix -> path relative to `folder`.

    Aligned copies of a data set are often stored in another format than the lists say, hence no suffix.

    Raises:
        InputError: no such folder, or two images differ in suffix or subfolder alone.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder.")
    from data.sources.image_files import is_leftover

    found: dict[str, str] = {}
    for parent, folders, _ in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_leftover(name))
        for name in sorted(image_names(parent)):
            stem = os.path.splitext(name)[0]
            relative = os.path.relpath(os.path.join(parent, name), folder)
            if stem in found:
                raise InputError(
                    f"{folder}: '{found[stem]}' and '{relative}' are both the image '{stem}'. Keep one."
                )
            found[stem] = relative
    return found


def image_names(folder: Path | str) -> list[str]:
    """Names of the images in a folder, in any order; OSError where it cannot be read."""
    from data.sources.image_files import is_image_file, is_leftover

    names = os.listdir(folder)
    return [name for name in names if not is_leftover(name) and is_image_file(os.path.join(folder, name))]

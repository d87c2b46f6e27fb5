"""Pair sets (`lfw.bin`, `agedb_30.bin`, ...): encoded images two a pair, and whether a pair is mated.

These files are pickles, and are read as plain data (`runtime.pickle_files`).
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from data.sources.decoding import Image, decode_face
from data.sources.unusable_images import first_faults, unusable_images
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.pickle_files import StoredArray, read_plain_pickle

NUM_FOLDS = 10


@dataclass(frozen=True)
class PairSet:
    """`images`: 2 n encoded images, those of pair i at 2 i and 2 i + 1; `is_mated`: (n,) bool."""

    name: str
    images: list[bytes]
    is_mated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.is_mated)

    def image(self, number: int) -> Image:
        """Decodes image `number` of 2 n to (112, 112, 3) RGB."""
        return decode_face(self.images[number], f"{self.name}, image {number} (pair {number // 2})")

    def folds(self, number: int = NUM_FOLDS) -> NDArray[np.int64]:
        """(n,) fold of each pair: blocks in the order of the file, the first ones longer by one pair."""
        return np.repeat(np.arange(number), [len(part) for part in np.array_split(self.is_mated, number)])


def check_pairs(name: str, is_mated: NDArray[np.bool_], num_folds: int = NUM_FOLDS) -> None:
    """Raises InputError unless accuracy over so many folds can be had of pairs that are mated or not (n,)."""
    mated, count = int(is_mated.sum()), len(is_mated)
    if count < num_folds or mated in (0, count):
        raise InputError(
            f"{name}: {mated:,} mated and {count - mated:,} non-mated pairs; its accuracy over {num_folds} "
            f"folds needs pairs of both kinds, and {num_folds} or more."
        )


def check_pair_images(pairs: PairSet) -> None:
    """Decodes all images; raises InputError that names the first ten that cannot be used."""
    numbers = list({image: number for number, image in reversed(list(enumerate(pairs.images)))}.values())
    faults = unusable_images(sorted(numbers), pairs.image, pairs.name)
    if faults:
        raise InputError.from_faults(
            [f"{pairs.name}: {len(faults):,} of its images cannot be used:", *first_faults(faults)]
        )


def find_pair_sets(folder: Path) -> list[Path]:
    """The `.bin` files of a folder, sorted by name; none is no error.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: there is no such folder. Expected one that holds pair sets (lfw.bin, ...)."
        )
    return sorted(path for path in folder.glob("*.bin") if path.is_file() and path.name[0] != ".")


def read_pair_set(path: Path) -> PairSet:
    """Reads a `.bin` pair set as Python 2 or Python 3 wrote it; images are decoded when they are asked for.

    Raises:
        InputError: cut short, no pair set, or a pickle that asks for anything but plain data.
    """
    loaded = read_plain_pickle(path, "a pair set (.bin)")
    plain = [_without_arrays(part) for part in loaded] if isinstance(loaded, (tuple, list)) else loaded
    if isinstance(plain, list) and len(plain) == 2:
        plain[1] = _flags(plain[1])
    faults = _faults_of(plain)
    if faults:
        raise InputError.from_faults([f"{path}: {fault}" for fault in faults])
    images, is_mated = cast("tuple[list[bytes], list[int]]", plain)
    return PairSet(path.stem, list(images), np.array(list(is_mated)).astype(np.bool_))


def write_pair_set(path: Path, images: Sequence[bytes], is_mated: Sequence[bool] | NDArray[np.bool_]) -> None:
    """Writes a pair set in the published form (Python 2's protocol 2), which every reader of such files
    takes.

    Raises:
        InputError: not two images a pair.
    """
    if len(images) != 2 * len(is_mated):
        raise InputError(f"{path}: {len(images)} images for {len(is_mated)} pairs, expected two a pair.")
    # Written by hand, since Python 3 has no opcode of its own for the byte strings of Python 2.
    parts = [pickle.PROTO, b"\x02", pickle.EMPTY_LIST, pickle.MARK]
    for image in images:
        parts += (pickle.BINSTRING, len(image).to_bytes(4, "little"), image)
    parts += (pickle.APPENDS, pickle.EMPTY_LIST, pickle.MARK)
    parts += (pickle.NEWTRUE if mated else pickle.NEWFALSE for mated in is_mated)
    atomic_write(path, b"".join((*parts, pickle.APPENDS, pickle.TUPLE2, pickle.STOP)))


def _without_arrays(part: object) -> object:
    """Replaces an array of bytes or flags, or those in a list, by its content (bytes: numbers 0 to 255)."""
    if isinstance(part, (list, tuple)):
        # A pickle names one array many times at no cost; it is copied once.
        contents = {id(entry): entry for entry in part if isinstance(entry, (StoredArray, bytearray))}
        copied = {number: _content(entry) for number, entry in contents.items()}
        return [copied.get(id(entry), entry) for entry in part]
    return _content(part)


def _content(entry: object) -> object:
    if isinstance(entry, StoredArray) and entry.values.dtype.str in ("|u1", "|b1"):
        return entry.values.tobytes()
    return bytes(entry) if isinstance(entry, bytearray) else entry


def _flags(part: object) -> object:
    """Flags as plain numbers, whatever type of number an array of them, or one of them, is."""
    if isinstance(part, StoredArray) and part.values.ndim == 1:
        return part.values.tolist()
    if isinstance(part, list):
        return [e.values.item() if isinstance(e, StoredArray) and e.values.size == 1 else e for e in part]
    return part


def _faults_of(loaded: object) -> list[str]:
    if not (isinstance(loaded, list) and len(loaded) == 2):
        return [f"holds a {type(loaded).__name__}, expected a pair (list of encoded images, list of bool)."]
    images, is_mated = loaded
    faults = [
        f"its {name} are a {type(part).__name__}, expected a list."
        for name, part in (("images", images), ("flags", is_mated))
        if not isinstance(part, (list, tuple, bytes))
    ]
    if faults:
        return faults
    if len(images) != 2 * len(is_mated) or not len(is_mated):
        faults.append(
            f"{len(images):,} images for {len(is_mated):,} pairs, expected two a pair and a pair at least."
        )
    strange = [i for i, image in enumerate(images) if not isinstance(image, bytes)]
    if strange:
        kind = type(images[strange[0]]).__name__
        faults.append(f"image {strange[0]} is a {kind}, expected the bytes of an encoded image.")
    if not all(isinstance(mated, (int, float)) and mated in (0, 1) for mated in is_mated):
        faults.append("a flag is neither true nor false.")
    return faults

"""Read and write pair sets (`lfw.bin`, `agedb_30.bin`, ...): pickled pairs of encoded images with labels."""

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
    """`images`: 2n encoded images, pair i at 2i and 2i + 1; `is_mated`: (n,) bool."""

    name: str
    images: list[bytes]
    is_mated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.is_mated)

    def image(self, number: int) -> Image:
        """Decode image `number` of 2n to (112, 112, 3) RGB."""
        return decode_face(self.images[number], f"{self.name}, image {number} (pair {number // 2})")

    def folds(self, number: int = NUM_FOLDS) -> NDArray[np.int64]:
        """(n,) fold of each pair: consecutive blocks, the first ones longer by one pair."""
        return np.repeat(np.arange(number), [len(part) for part in np.array_split(self.is_mated, number)])


def check_pairs(name: str, is_mated: NDArray[np.bool_], num_folds: int = NUM_FOLDS) -> None:
    """Raise InputError unless k-fold accuracy can be computed from `is_mated` (n,)."""
    mated, count = int(is_mated.sum()), len(is_mated)
    if count < num_folds or mated in (0, count):
        raise InputError(
            f"{name}: {mated:,} mated and {count - mated:,} non-mated pairs; {num_folds}-fold accuracy needs "
            f"pairs of both kinds, at least {num_folds} in total."
        )


def check_pair_images(pairs: PairSet) -> None:
    """Decode all images; raises InputError that names the first ten unusable ones."""
    numbers = list({image: number for number, image in reversed(list(enumerate(pairs.images)))}.values())
    faults = unusable_images(sorted(numbers), pairs.image, pairs.name)
    if faults:
        raise InputError.from_faults(
            [f"{pairs.name}: {len(faults):,} of its images cannot be used:", *first_faults(faults)]
        )


def find_pair_sets(folder: Path) -> list[Path]:
    """The `.bin` files of a folder, sorted by name; may be empty.

    Raises:
        InputError: the folder does not exist.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Expected a folder of pair sets (lfw.bin, ...).")
    return sorted(path for path in folder.glob("*.bin") if path.is_file() and path.name[0] != ".")


def read_pair_set(path: Path) -> PairSet:
    """Read a `.bin` pair set written by Python 2 or 3; images stay encoded.

    Raises:
        InputError: truncated, not a pair set, or a pickle of anything but plain data.
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
    """Write a pair set in the published form (pickle protocol 2 of Python 2).

    Raises:
        InputError: the number of images is not twice the number of pairs.
    """
    if len(images) != 2 * len(is_mated):
        raise InputError(f"{path}: {len(images)} images for {len(is_mated)} pairs, expected two per pair.")
    # Written by opcode, because Python 3's pickle cannot write the byte strings of Python 2.
    parts = [pickle.PROTO, b"\x02", pickle.EMPTY_LIST, pickle.MARK]
    for image in images:
        parts += (pickle.BINSTRING, len(image).to_bytes(4, "little"), image)
    parts += (pickle.APPENDS, pickle.EMPTY_LIST, pickle.MARK)
    parts += (pickle.NEWTRUE if mated else pickle.NEWFALSE for mated in is_mated)
    atomic_write(path, b"".join((*parts, pickle.APPENDS, pickle.TUPLE2, pickle.STOP)))


def _without_arrays(part: object) -> object:
    """Replace arrays of bytes or flags, also within a list, by their content."""
    if isinstance(part, (list, tuple)):
        # A pickle may refer to one array many times; it is copied once.
        contents = {id(entry): entry for entry in part if isinstance(entry, (StoredArray, bytearray))}
        copied = {number: _content(entry) for number, entry in contents.items()}
        return [copied.get(id(entry), entry) for entry in part]
    return _content(part)


def _content(entry: object) -> object:
    if isinstance(entry, StoredArray) and entry.values.dtype.str in ("|u1", "|b1"):
        return entry.values.tobytes()
    return bytes(entry) if isinstance(entry, bytearray) else entry


def _flags(part: object) -> object:
    """Flags as plain numbers, from arrays or NumPy scalars of any type."""
    if isinstance(part, StoredArray) and part.values.ndim == 1:
        return part.values.tolist()
    if isinstance(part, list):
        return [e.values.item() if isinstance(e, StoredArray) and e.values.size == 1 else e for e in part]
    return part


def _faults_of(loaded: object) -> list[str]:
    if not (isinstance(loaded, list) and len(loaded) == 2):
        return [f"contains a {type(loaded).__name__}, expected (list of encoded images, list of bool)."]
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
            f"{len(images):,} images for {len(is_mated):,} pairs, expected two per pair and at least one "
            "pair."
        )
    strange = [i for i, image in enumerate(images) if not isinstance(image, bytes)]
    if strange:
        kind = type(images[strange[0]]).__name__
        faults.append(f"image {strange[0]} is a {kind}, expected the bytes of an encoded image.")
    if not all(isinstance(mated, (int, float)) and mated in (0, 1) for mated in is_mated):
        faults.append("a flag is neither true nor false.")
    return faults

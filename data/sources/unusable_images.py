"""Images that cannot be decoded: found before the work, or carried through a loader as `UnusableBatch`.

An exception in a worker would print a traceback, on one rank while the others wait for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from data.sources.decoding import Image
from data.sources.face_source import FaceSource, select
from runtime.errors import InputError
from runtime.progress import progress_bar
from runtime.text import first_lines

_MAX_THREADS = 16
_SHOWN = 10


def unusable_images(numbers: Sequence[int], image: Callable[[int], Image], name: str) -> dict[int, str]:
    """Decode the images with these numbers; returns the fault of each one that `image` rejects.

    Decoding releases the GIL, so threads are used: about 2,000 images of 112 x 112 per second and core.
    """

    def fault_of(number: int) -> str:
        try:
            image(number)
        except InputError as fault:
            return str(fault)
        return ""

    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        said = pool.map(fault_of, numbers)
        bar = progress_bar(
            said,
            desc=f"checking {name}",
            total=len(numbers),
            unit=" images",
            unit_scale=True,
            delay=2,
            leave=False,
        )
        return {number: fault for number, fault in zip(numbers, bar, strict=True) if fault}


def usable_part(source: FaceSource, skipped: list[str]) -> FaceSource:
    """Select the images of a source that can be decoded; the faults of the others are added to `skipped`.

    Raises:
        InputError: no image can be decoded.
    """
    faults = unusable_images(range(len(source)), source.image, "images")
    if not faults:
        return source
    skipped += [faults[row] for row in sorted(faults)]
    if len(faults) == len(source):
        raise InputError.from_faults(
            [f"{source.name}: none of its {len(source):,} images can be used:", *first_faults(faults)]
        )
    return select(source, np.setdiff1d(np.arange(len(source)), np.fromiter(faults, np.int64)))


def first_faults(faults: Mapping[int, str]) -> list[str]:
    """The first ten faults by number, and the number of further ones."""
    return first_lines([faults[number] for number in sorted(faults)], _SHOWN)


class UnusableBatch:
    """A batch with unusable images; `faults`: fault -> subject of the image, if the dataset has
    `label_of`.
    """

    def __init__(self, faults: Mapping[str, int | None]) -> None:
        self.faults = dict(faults)


class FaultsAsItems(Dataset[Any]):
    """Wraps a dataset to return InputErrors as items."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __getitem__(self, item: Any) -> Any:
        try:
            return self._dataset[item]
        except InputError as fault:
            label_of = getattr(self._dataset, "label_of", None)
            return UnusableBatch({str(fault): None if label_of is None else label_of(item)})


@dataclass(frozen=True)
class CollateWithFaults:
    """Collates items of `FaultsAsItems`. A class, because spawned workers pickle it."""

    collate: Callable[[Any], Any]

    def __call__(self, items: Any) -> Any:
        """The batch, or an `UnusableBatch` with the faults of all items."""
        if isinstance(items, UnusableBatch):
            return items
        faults: dict[str, int | None] = {}
        for item in items:
            faults |= item.faults if isinstance(item, UnusableBatch) else {}
        return UnusableBatch(faults) if faults else self.collate(items)

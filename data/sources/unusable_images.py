"""Which of some images cannot be used: each is decoded, before work starts that needs them all."""

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

_MOST_THREADS = 16
_SHOWN = 10


def unusable_images(numbers: Sequence[int], image: Callable[[int], Image], name: str) -> dict[int, str]:
    """Decodes the images with these numbers and gives what is wrong with those that `image` refuses.

    OpenCV decodes outside of Python's lock, so threads serve: about 2,000 images of 112 x 112 a second and
    core. `name`: what the progress bar calls them.
    """

    def fault_of(number: int) -> str:
        try:
            image(number)
        except InputError as fault:
            return str(fault)
        return ""

    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
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
    """The images of a source that can be decoded; the sentences of all others are added to `skipped`.

    Raises:
        InputError: none can be.
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
    """The first ten faults by number, and how many there are more."""
    shown = [faults[number] for number in sorted(faults)[:_SHOWN]]
    more = len(faults) - len(shown)
    return shown + ([f"... and {more:,} more"] if more else [])


class UnusableBatch:
    """A batch that cannot be trained on.

    `faults`: what is wrong with an image that cannot be used -> its subject, where the dataset says it by
    `label_of`.
    """

    def __init__(self, faults: Mapping[str, int | None]) -> None:
        self.faults = dict(faults)


class FaultsAsItems(Dataset[Any]):
    """A dataset whose InputErrors are items."""

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
    """Collates items of `FaultsAsItems`; a class, so that workers can be spawned."""

    collate: Callable[[Any], Any]

    def __call__(self, items: Any) -> Any:
        """A batch, or an `UnusableBatch` with the faults of all its items."""
        if isinstance(items, UnusableBatch):
            return items
        faults: dict[str, int | None] = {}
        for item in items:
            faults |= item.faults if isinstance(item, UnusableBatch) else {}
        return UnusableBatch(faults) if faults else self.collate(items)

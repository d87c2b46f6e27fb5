"""Which of some images cannot be used: each is decoded, before work starts that needs them all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

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

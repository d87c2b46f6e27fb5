"""What a checkpoint keeps of the images that a run was trained on, and how those of a resumed run differ.

A run may go on without some of its images, as when one that could not be read was removed; its classes stay.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.errors import InputError

_SHOWN = 5


def images_by_subject(
    subjects: Sequence[str], labels: NDArray[np.int64], stamps: NDArray[np.uint64]
) -> Tensor:
    """(S, 3) int64: a digest of each subject's name, the number of its images, and the sum of their stamps.

    Args:
        subjects: S names.
        labels: (N,) of the images.
        stamps: (N,) of their content (`data.sources.image_stamps`); the sum is that of 64-bit numbers,
        wrapped round.
    """
    digests = [
        int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "little", signed=True)
        for name in subjects
    ]
    contents = np.zeros(len(subjects), np.int64)
    np.add.at(contents, labels, stamps.view(np.int64))
    counts = np.bincount(labels, minlength=len(subjects)).astype(np.int64)
    return torch.from_numpy(np.stack([np.array(digests, np.int64), counts, contents], axis=1))


def removed_note(
    path: Path,
    name: str,
    before: Tensor,
    subjects: Sequence[str],
    now: Tensor,
    unusable: Collection[int] = (),
) -> str:
    """What a user is told where images of `name` were removed since checkpoint `path` was written.

    `before`, `now`: `images_by_subject`, the latter of `subjects`; `unusable`: those of `before` with images
    that could not be used, which may have been mended.

    Raises:
        InputError: the difference is another one; it says which, by subjects.
    """
    known = {digest: (place, *rest) for place, (digest, *rest) in enumerate(before.tolist())}
    there = {digest: (name, *rest) for name, (digest, *rest) in zip(subjects, now.tolist(), strict=True)}
    new = [there[digest][0] for digest in there if digest not in known]
    gone = len(known.keys() - there.keys())
    changed: list[str] = []
    refused = bool(new or gone)
    for digest in known.keys() & there.keys():
        place, was, content = known[digest]
        subject, count, other = there[digest]
        if (was, content) != (count, other):
            changed.append(f"{subject} ({was:,} images then, {count:,} now)")
            refused |= count > was or (count == was and place not in unusable)
    changed.sort()
    if changed and not refused:
        return (
            f"{name}: has other images than {path} was trained on, of {_first(changed)}. The run goes on "
            "with those that are there."
        )
    differences = [
        f"{gone:,} of its {len(known):,} subjects have no image now" if gone else "",
        f"{len(new):,} subjects are new: {_first(new)}" if new else "",
        f"{len(changed):,} subjects have other images: {_first(changed)}" if changed else "",
        "" if new or gone or changed else "the same images are in another order",
    ]
    classes = " The head has one class a subject, so that these must stay." if new or gone else ""
    raise InputError(
        f"{path}: was trained on other data than {name} as it is now: "
        f"{'; '.join(each for each in differences if each)}.{classes} A run is resumed or evaluated on its "
        "own data, of which single images may be removed, and those that could not be read mended."
    )


def _first(texts: Sequence[str]) -> str:
    more = len(texts) - _SHOWN
    return ", ".join(texts[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")

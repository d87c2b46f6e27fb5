"""Aligned faces by number -> batches that a backbone takes, read and decoded by workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.sources.decoding import FACE_SIZE, Image
from runtime.errors import InputError

if TYPE_CHECKING:
    from backbones.spec import BackboneSpec


class Faces(Protocol):
    """Aligned faces by number; picklable, and cheap enough to be sent to every worker."""

    def __len__(self) -> int: ...

    def image(self, number: int) -> Image:
        """(112, 112, 3) RGB. Raises InputError that names an image that cannot be used."""


@dataclass(frozen=True)
class FaceBatch:
    """`numbers` (n,) int64 of the faces; `images` (n, 3, 112, 112) uint8 in the order of the spec.

    `faults`: number -> what is wrong with an image that cannot be used; black stands in its place.
    """

    numbers: NDArray[np.int64]
    images: Tensor
    faults: dict[int, str]

    def pin_memory(self) -> FaceBatch:
        """The same batch in pinned memory; DataLoader calls it."""
        return replace(self, images=self.images.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = True) -> FaceBatch:
        """The same batch on `device`; Lightning calls it."""
        return replace(self, images=self.images.to(device, non_blocking=non_blocking))


def face_loader(
    faces: Faces,
    spec: BackboneSpec,
    numbers: Sequence[int],
    *,
    batch_size: int,
    num_workers: int,
    pin_memory: bool,
) -> DataLoader[Any]:
    """`FaceBatch` after `FaceBatch` of the faces with these numbers, in their order."""
    return DataLoader(
        _Decoded(faces, spec),
        sampler=numbers,
        batch_size=batch_size,
        collate_fn=_collate,
        num_workers=num_workers,
        worker_init_fn=_one_thread if num_workers else None,
        pin_memory=pin_memory,
    )


class _Decoded(Dataset["_Item"]):
    def __init__(self, faces: Faces, spec: BackboneSpec) -> None:
        self._faces = faces
        self._spec = spec

    def __getitem__(self, number: int) -> _Item:
        # An exception would end hours of work and lose its sentence in the worker's traceback.
        try:
            return number, self._spec.from_rgb(self._faces.image(number)), ""
        except InputError as fault:
            return number, np.zeros((3, FACE_SIZE, FACE_SIZE), np.uint8), str(fault)


def _collate(items: Sequence[_Item]) -> FaceBatch:
    return FaceBatch(
        np.array([number for number, *_ in items], np.int64),
        torch.from_numpy(np.stack([image for _, image, _ in items])),
        {number: fault for number, _, fault in items if fault},
    )


def _one_thread(_worker: int) -> None:
    cv2.setNumThreads(0)


_Item = tuple[int, NDArray[np.uint8], str]

"""Load aligned faces as batches for a backbone, decoded by workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.sources.decoding import FACE_SIZE, Image
from data.tensor_batch import TensorBatch
from runtime.errors import InputError

if TYPE_CHECKING:
    from backbones.spec import BackboneSpec


class Faces(Protocol):
    """Aligned faces by number; cheap to pickle, because every worker gets a copy."""

    def __len__(self) -> int: ...

    def image(self, number: int) -> Image:
        """(112, 112, 3) RGB. Raises InputError that names an unusable image."""


@dataclass(frozen=True)
class FaceBatch(TensorBatch):
    """`numbers` (n,) int64 of the faces; `images` (n, 3, 112, 112) uint8 in the spec's channel order.

    `faults`: number -> fault of an unusable image, which is black in `images`.
    """

    numbers: NDArray[np.int64]
    images: Tensor
    faults: dict[int, str]


def face_loader(
    faces: Faces,
    spec: BackboneSpec,
    numbers: Sequence[int],
    *,
    batch_size: int,
    num_workers: int,
    pin_memory: bool,
) -> DataLoader[Any]:
    """A loader of `FaceBatch` of the faces with these numbers, in this order."""
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
        # An exception would stop the whole run, its message lost in the worker's traceback.
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

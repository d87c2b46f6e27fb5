"""Contact sheets of training batches and of label-audit findings, as PNG files."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.sources.decoding import Image
from runtime.files import atomic_write

if TYPE_CHECKING:
    from backbones.spec import BackboneSpec
    from data.sampling.templates import TemplateBatch

# Rows of a sheet, and faces in a row.
_ROWS, _FACES, _TEMPLATE_FACES = 8, 16, 24
_GAP = 2
_NEXT_MEDIUM = 255
_CHOSEN = (20, 140, 60)


def face_sheet(images: Tensor, spec: BackboneSpec, path: Path) -> None:
    """Write a grid of faces in true colours; `images`: (B, 3, H, W) uint8 in the spec's channel order."""
    faces = _true_colours(images[: _ROWS * _FACES], spec)
    _write(path, [[*faces[first : first + _FACES]] for first in range(0, len(faces), _FACES)], None)


def template_sheet(
    batch: TemplateBatch, spec: BackboneSpec, path: Path, *, picks: Tensor | None = None
) -> None:
    """Write a row of faces per template in true colours, with white lines between media.

    `picks`: (B, K) selected faces of an aggregator, -1 where none; they are framed and numbered in order.
    """
    offsets = batch.offsets.tolist()
    ranges = [slice(a, min(b, a + _TEMPLATE_FACES)) for a, b in pairwise(offsets[: _ROWS + 1])]
    media = [batch.media[part].cpu().numpy() for part in ranges]
    grid = [[*_true_colours(batch.images[part], spec)] for part in ranges]
    if picks is not None:
        for faces, chosen in zip(grid, picks.tolist(), strict=False):
            for order, face in enumerate(chosen, 1):
                if 0 <= face < len(faces):
                    faces[face] = _framed(faces[face], order)
    _write(path, grid, media)


def contact_sheet(rows: list[list[list[Image]]], path: Path) -> None:
    """Write rows, numbered from 1, of groups of (H, W, 3) RGB images, with white lines between groups."""
    side = rows[0][0][0].shape
    grid, media = [], []
    for number, groups in enumerate(rows, start=1):
        label = np.zeros(side, np.uint8)
        cv2.putText(label, str(number), (12, 70), cv2.FONT_HERSHEY_SIMPLEX, 1.4, (255, 255, 255), 2)
        grid.append([label, *(image for group in groups for image in group)])
        media.append(np.repeat(np.arange(-1, len(groups)), [1, *map(len, groups)]))
    _write(path, grid, media)


def _framed(face: Image, order: int) -> Image:
    framed = np.ascontiguousarray(face)
    side = framed.shape[0]
    cv2.rectangle(framed, (0, 0), (side - 1, side - 1), _CHOSEN, 7)
    cv2.rectangle(framed, (0, 0), (30, 32), _CHOSEN, -1)
    cv2.putText(framed, str(order), (7, 25), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 2, cv2.LINE_AA)
    return framed


def _true_colours(images: Tensor, spec: BackboneSpec) -> NDArray[np.uint8]:
    pixels = np.moveaxis(images.cpu().numpy(), 1, -1)
    return pixels[..., ::-1] if spec.channel_order == "BGR" else pixels


def _write(path: Path, grid: list[list[Image]], media: list[NDArray[np.int64]] | None) -> None:
    # Imported late, because only runs with contact sheets need torchvision.
    from torchvision.utils import make_grid

    height, width = (side + _GAP for side in grid[0][0].shape[:2])
    columns, blank = max(map(len, grid)), np.zeros_like(grid[0][0])
    cells = [cell for row in grid for cell in (*row, *[blank] * (columns - len(row)))]
    # make_grid does not pad a single image, so there is always one more.
    tensor = torch.from_numpy(np.stack([*cells, blank])).movedim(-1, 1)
    sheet = make_grid(tensor, nrow=columns, padding=_GAP).movedim(0, -1).numpy()
    sheet = sheet[_GAP:, _GAP:][: height * len(grid)].copy()
    for y, row in enumerate(media or ()):
        for x in np.flatnonzero(np.diff(row)).tolist():
            right = (x + 1) * width
            sheet[y * height : (y + 1) * height - _GAP, right - _GAP : right] = _NEXT_MEDIUM
    _written, encoded = cv2.imencode(".png", sheet[..., ::-1])
    atomic_write(path, encoded.tobytes())

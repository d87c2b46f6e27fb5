"""Drawn faces in the form in which real data sets come: a RecordIO pack, and a pair set of other subjects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from data.pairs import write_pair_set
from data.recordio import write_face_pack
from data.sources import Image
from data.synthetic import SyntheticFace, draw_faces

PAIRS = 600
PAIR_SET = "synthetic.bin"
_JPEG_QUALITY = 95


def draw_pack(folder: Path, *, num_subjects: int, seed: int) -> tuple[int, int, int]:
    """Draws subjects 0 to `num_subjects` - 1 into a pack and more of them into a pair set.

    The same seed gives the same bytes. Half of the pairs are mated; their images are of different media.
    Gives the counts of subjects, images and pairs.
    """
    images = write_face_pack(folder, _encoded(draw_faces(num_subjects=num_subjects, seed=seed), num_subjects))
    others = max(20, num_subjects // 5)
    drawn = list(draw_faces(num_subjects=others, seed=seed, first_subject=num_subjects))
    rng = np.random.default_rng(seed)
    by_subject = [[f for f in drawn if f.subject == num_subjects + s] for s in range(others)]
    content: list[bytes] = []
    mated = np.arange(PAIRS) % 2 == 0
    for same in mated:
        first, second = rng.choice(others, 2, replace=False)
        face = by_subject[first][rng.integers(len(by_subject[first]))]
        candidates = by_subject[first if same else second]
        candidates = [f for f in candidates if not same or f.medium != face.medium]
        content += [_jpeg(face.image), _jpeg(candidates[rng.integers(len(candidates))].image)]
    write_pair_set(folder / PAIR_SET, content, mated)
    return num_subjects, images, PAIRS


def _encoded(faces: Iterator[SyntheticFace], num_subjects: int) -> Iterator[tuple[int, bytes]]:
    with tqdm(total=num_subjects, desc="drawing", unit="subject") as bar:
        for face in faces:
            bar.update(face.subject - bar.n)
            yield face.subject, _jpeg(face.image)
        bar.update(num_subjects - bar.n)


def _jpeg(image: Image) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()

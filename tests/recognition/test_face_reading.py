from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from photos.photo_files import read_photo
from recognition import face_reading as module
from recognition.face_reading import PhotoOptions, read_faces
from recognition.sources import SetSource

ALIGNED = PhotoOptions(aligned=True)


def test_photos_are_prefetched_in_bounded_number(
    monkeypatch: pytest.MonkeyPatch, face_folder: Callable[..., Path]
) -> None:
    reads: list[Path] = []

    def reading(path: Path) -> np.ndarray:
        reads.append(path)
        return read_photo(path)

    monkeypatch.setattr(module, "read_photo", reading)
    root = face_folder(1, 60)
    stream = read_faces([SetSource("s", root / "s000")], ALIGNED, None)
    next(stream)
    assert len(reads) <= 2 * module._READERS
    assert len(list(stream)) == 59

"""A wrong channel order is reported wherever faces are embedded."""

from __future__ import annotations

import tarfile
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

from features.extract import embed_faces
from features.options import EmbedOptions
from recognition.aggregation import ColourSample
from recognition.model import load_model
from runtime.errors import InputWarning
from weights import load_backbone, save_weights

SUBJECTS = 40


@pytest.fixture(scope="module")
def faces(shared: Path) -> list[np.ndarray]:
    """Two faces of each subject, one after the other."""
    found: dict[str, list[np.ndarray]] = {}
    with tarfile.open(shared / "faces" / "lfw_dev112.tar") as archive:
        for member in archive:
            parts = Path(member.name).parts
            if not member.name.endswith(".jpg"):
                continue
            own = found.setdefault(parts[-2], [])
            if len(own) < 2 and (stream := archive.extractfile(member)) is not None:
                image = cv2.imdecode(np.frombuffer(stream.read(), np.uint8), 1)
                own.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
            if len(found) > SUBJECTS:
                break
    return [face for own in list(found.values())[:SUBJECTS] for face in own]


@pytest.fixture(params=["RGB", "BGR"])
def weights(request: pytest.FixtureRequest, shared: Path, tmp_path: Path) -> tuple[str, Path]:
    """MobileFaceNet, which was trained in RGB, with either channel order in its spec."""
    backbone = load_backbone(shared / "faces" / "mobilefacenet.safetensors", channel_order=request.param)
    save_weights(tmp_path / "backbone.safetensors", backbone)
    return request.param, tmp_path / "backbone.safetensors"


def test_swapped_channel_order_is_reported(weights: tuple[str, Path], faces: list[np.ndarray]) -> None:
    order, path = weights
    sample = ColourSample()
    for number, face in enumerate(faces):
        sample.add(number // 2, face)
    warning = sample.warning(load_model(str(path)))
    assert ("--channel_order RGB" in warning) == (order == "BGR")


def test_few_sets_give_no_warning(weights: tuple[str, Path], faces: list[np.ndarray]) -> None:
    sample = ColourSample()
    for number, face in enumerate(faces[:12]):
        sample.add(number // 2, face)
    assert sample.warning(load_model(str(weights[1]))) == ""


def test_embedding_with_known_subjects_reports_swapped_channel_order(
    weights: tuple[str, Path], faces: list[np.ndarray], tmp_path: Path
) -> None:
    class Faces:
        def __len__(self) -> int:
            return len(faces)

        def image(self, number: int) -> np.ndarray:
            return faces[number]

    order, path = weights
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        embed_faces(
            load_backbone(path),
            Faces(),
            {"faces": "of a test"},
            tmp_path / "cache",
            EmbedOptions(batch_size=16, num_workers=0),
            labels=np.repeat(np.arange(SUBJECTS), 2),
        )
    told = [str(each.message) for each in caught if issubclass(each.category, InputWarning)]
    assert [("--channel_order RGB" in text) for text in told] == ([True] if order == "BGR" else [])

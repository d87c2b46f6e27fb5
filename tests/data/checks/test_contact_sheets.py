"""The picture of what the network is fed shows true colours and parts media."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from backbones.spec import BackboneSpec
from data.checks import contact_sheets
from data.checks.contact_sheets import face_sheet, template_sheet
from data.sampling.templates import TemplateBatch

COLOURS = [(250, 10, 30), (20, 240, 30), (30, 20, 230), (200, 190, 10), (60, 70, 80)]


def spec(order: str) -> BackboneSpec:
    return BackboneSpec("fake", 4, order, 127.5, 127.5, True)


def faces(order: str) -> torch.Tensor:
    pixels = np.stack([np.full((112, 112, 3), colour, np.uint8) for colour in COLOURS])
    return torch.from_numpy(spec(order).from_rgb(pixels))


def read_rgb(path: Path) -> np.ndarray:
    return cv2.imread(str(path))[..., ::-1]


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_single_faces_form_a_grid_in_true_colours(
    tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contact_sheets, "_ROWS", 2)
    monkeypatch.setattr(contact_sheets, "_FACES", 2)
    face_sheet(faces(order), spec(order), tmp_path / "run" / "faces.png")
    sheet = read_rgb(tmp_path / "run" / "faces.png")
    assert sheet.shape == (2 * 114, 2 * 114, 3)
    seen = [tuple(sheet[y, x].tolist()) for y in (50, 164) for x in (50, 164)]
    assert seen == COLOURS[:4]


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_templates_form_rows_with_lines_between_media(tmp_path: Path, order: str) -> None:
    batch = TemplateBatch(
        faces(order), torch.tensor([0, 3, 5]), torch.tensor([7, 8]), torch.tensor([0, 0, 1, 2, 3])
    )
    template_sheet(batch, spec(order), tmp_path / "templates.png")
    sheet = read_rgb(tmp_path / "templates.png")
    assert sheet.shape == (2 * 114, 3 * 114, 3)
    assert [tuple(sheet[50, x].tolist()) for x in (50, 164, 278)] == COLOURS[:3]
    assert [tuple(sheet[164, x].tolist()) for x in (50, 164)] == COLOURS[3:]
    assert sheet[50, 112].tolist() == [0, 0, 0]
    assert sheet[50, 226].tolist() == [255, 255, 255]
    assert sheet[164, 112].tolist() == [255, 255, 255]
    assert (sheet[164, 230:] == 0).all()


def test_long_templates_and_large_batches_are_cut(tmp_path: Path) -> None:
    images = faces("RGB")[torch.arange(300) % 5]
    batch = TemplateBatch(images, torch.arange(0, 301, 30), torch.arange(10), torch.arange(300))
    template_sheet(batch, spec("RGB"), tmp_path / "templates.png")
    assert read_rgb(tmp_path / "templates.png").shape == (8 * 114, 24 * 114, 3)
    face_sheet(images[:3], spec("RGB"), tmp_path / "faces.png")
    assert read_rgb(tmp_path / "faces.png").shape == (114, 3 * 114, 3)

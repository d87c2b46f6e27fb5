"""Swapped colours are noticed by looking at images."""

from __future__ import annotations

import re
import tarfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from backbones.spec import BackboneSpec
from data.checks.colour_order import check_colour_order, check_skin_colour
from data.sources.face_source import ImageFolder
from net import BACKBONES

SPEC = BackboneSpec("fake", 4, "RGB", 127.5, 127.5, True)


def faces(root: Path, tint: tuple[int, int, int], subjects: int = 30, noise: int = 30) -> Path:
    """Two faces per subject around one colour: red tells the subject, blue is noise."""
    rng = np.random.default_rng(0)
    for subject in range(subjects):
        (root / f"{subject}").mkdir(parents=True)
        for number in range(2):
            change = np.array((subject, 0, rng.integers(-noise, noise + 1)))
            pixels = np.full((112, 112, 3), tint) + change
            cv2.imwrite(
                str(root / f"{subject}" / f"{number}.png"), pixels[..., ::-1].clip(0, 255).astype(np.uint8)
            )
    return root


def embed_red(images: np.ndarray) -> np.ndarray:
    """An embedding that a red channel decides and that the blue one has no part in."""
    angle = images[..., 0].mean(axis=(1, 2)) / 20
    return np.stack((np.cos(angle), np.sin(angle)), axis=1)


def means(sentence: str) -> list[float]:
    """Mean cosines as given and swapped."""
    return [float(text) for text in re.findall(r"(\d\.\d{3}) (?:as given|with red)", sentence)]


def test_true_skin_gives_no_warning(tmp_path: Path) -> None:
    assert check_skin_colour(ImageFolder(faces(tmp_path, (190, 140, 110)))) == ""


def test_swapped_skin_gives_a_warning_that_says_what_to_do(tmp_path: Path) -> None:
    warning = check_skin_colour(ImageFolder(faces(tmp_path, (110, 140, 190), noise=5)))
    assert "look swapped: only 0% of 60 coloured" in warning
    assert "--swap_color_channel" in warning
    assert check_skin_colour(ImageFolder(tmp_path, swap_color_channel=True)) == ""


def test_grey_images_give_no_verdict(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(12):
        cv2.imwrite(str(tmp_path / "a" / f"{number}.png"), np.full((112, 112, 3), 90 + number, np.uint8))
    assert check_skin_colour(ImageFolder(tmp_path)) == ""


def test_mated_pairs_determine_the_channel_order(tmp_path: Path) -> None:
    source = ImageFolder(faces(tmp_path, (120, 120, 120)))
    report = check_colour_order(source, embed_red, SPEC)
    assert report.verdict == "true"
    as_given, swapped_mean = means(report.sentence)
    assert as_given == pytest.approx(1)
    assert swapped_mean < 0.9
    assert report.num_pairs == 30
    swapped = check_colour_order(
        ImageFolder(tmp_path, swap_color_channel=True), embed_red, SPEC, num_pairs=20
    )
    assert swapped.verdict == "swapped"
    assert swapped.num_pairs == 20
    assert swapped.is_swapped
    assert not replace(swapped, num_pairs=9).is_swapped
    assert not report.is_swapped
    assert "--swap_color_channel" in swapped.sentence


def test_faces_that_all_look_alike_when_swapped_are_no_mated_pairs(tmp_path: Path) -> None:
    def embed(images: np.ndarray) -> np.ndarray:
        # Told apart, if roughly, in true colours; a single point in swapped ones.
        seen = images[..., 0].mean(axis=(1, 2)) > images[..., 2].mean(axis=(1, 2))
        angle = np.where(
            seen, images[..., 0].mean(axis=(1, 2)) / 3 + images[..., 2].mean(axis=(1, 2)) / 40, 0
        )
        return np.stack((np.cos(angle), np.sin(angle)), axis=1)

    report = check_colour_order(ImageFolder(faces(tmp_path, (190, 140, 110))), embed, SPEC)
    as_given, swapped_mean = means(report.sentence)
    assert swapped_mean > as_given
    assert report.verdict == "undecided"


def test_embedding_without_colours_gives_no_verdict(tmp_path: Path) -> None:
    def embed_green(images: np.ndarray) -> np.ndarray:
        return embed_red(np.roll(images, -1, axis=-1))

    source = ImageFolder(faces(tmp_path, (120, 120, 120)))
    assert check_colour_order(source, embed_green, SPEC).verdict == "undecided"


def test_subjects_of_one_image_give_no_verdict(tmp_path: Path) -> None:
    for subject in "ab":
        (tmp_path / subject).mkdir()
        cv2.imwrite(str(tmp_path / subject / "1.png"), np.zeros((112, 112, 3), np.uint8))
    report = check_colour_order(ImageFolder(tmp_path), embed_red, SPEC)
    assert (report.verdict, report.num_pairs) == ("undecided", 0)


@pytest.mark.slow
def test_real_backbone_determines_the_channel_order_of_real_faces(shared: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(shared / "faces" / "mobilefacenet.onnx"))
    spec = BACKBONES["mobilefacenet"]

    def embed(images: np.ndarray) -> np.ndarray:
        pixels = (spec.from_rgb(images).astype(np.float32) - spec.mean) / np.float32(spec.std)
        blocks = [session.run(None, {"data": pixels[i : i + 32]})[0] for i in range(0, len(pixels), 32)]
        embeddings = np.concatenate(blocks)
        return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)

    with tarfile.open(shared / "faces" / "lfw_dev112.tar") as archive:
        members = archive.getmembers()[:1500]
        archive.extractall(tmp_path, members)
    roots = [path for path in tmp_path.rglob("*") if path.is_dir() and any(path.glob("*.jpg"))]
    for swap, verdict in ((False, "true"), (True, "swapped")):
        source = ImageFolder(roots[0].parent, swap_color_channel=swap)
        assert bool(check_skin_colour(source)) == swap
        report = check_colour_order(source, embed, spec, num_pairs=100)
        assert report.verdict == verdict, report.sentence

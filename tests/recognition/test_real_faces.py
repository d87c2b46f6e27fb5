"""Inference on real faces: mated sets, ONNX backbones, sets of several identities."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

import inference
from recognition.model import embed_images, embed_set, load_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_mated_sets_are_most_similar_with_a_third_of_images_degraded(shared: Path, tmp_path: Path) -> None:
    with tarfile.open(shared / "faces" / "lfw_dev112.tar") as archive:
        archive.extractall(tmp_path / "lfw", filter="data")
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "speed" / "inference.py"),
        "--faces",
        str(tmp_path / "lfw"),
    ]
    command += [
        "--weights",
        str(shared / "faces" / "mobilefacenet.safetensors"),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=True)
    found = re.search(r"for (\d+) of 40 subjects", done.stdout)
    assert found is not None, done.stdout
    assert int(found[1]) >= 39
    assert (tmp_path / "out" / "report.html").stat().st_size > 100_000


def test_onnx_backbone_gives_the_descriptors_of_the_torch_one(shared: Path) -> None:
    pytest.importorskip("onnxruntime")
    with np.load(shared / "faces" / "mobilefacenet_io.npz", allow_pickle=False) as stored:
        images = np.moveaxis(stored["images_rgb_uint8"], 1, -1)
        expected = stored["embedding"]
    by_torch = load_model(shared / "faces" / "mobilefacenet.safetensors", device="cpu")
    # Whether a graph's norm measures quality is unknown, so the pooling is requested.
    by_onnx = load_model(
        shared / "faces" / "mobilefacenet.onnx",
        aggregator="norm_weighted",
        arch="mobilefacenet",
        device="cpu",
    )
    for model in (by_torch, by_onnx):
        features, norms = embed_images(model, images)
        assert np.abs(features * norms[:, None] - expected).max() < 1e-3
    one, other = embed_set(by_torch, images), embed_set(by_onnx, images)
    assert one.embedding @ other.embedding > 0.99999
    # Descriptors of another runtime agree only up to rounding, so they have another fingerprint.
    assert by_torch.fingerprint != by_onnx.fingerprint


@pytest.mark.parametrize("aggregator", [[], ["--aggregator_weights", "pretrained/mobilefacenet.safetensors"]])
def test_folder_of_three_identities_is_not_enrolled(
    aggregator: list[str], shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message groups the nine photos by identity."""
    faces = shared / "faces"
    with tarfile.open(faces / "raw_sample.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    people = [sorted(folder.glob("*.jpg"))[:3] for folder in sorted(tmp_path.iterdir()) if folder.is_dir()]
    people = [files for files in people if len(files) == 3][:3]
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number in range(3):
        for files in people:
            files[number].rename(mixed / files[number].name)
    gallery = tmp_path / "people.db"
    command = ["enroll", str(mixed), "--gallery", str(gallery)]
    command += ["--weights", str(faces / "mobilefacenet.safetensors")]
    command += ["--detector", str(faces / "face_detection_yunet_2023mar.onnx"), "--device", "cpu"]
    if aggregator:
        aggregator = [aggregator[0], str(ROOT / aggregator[1])]
    assert inference.main([*command, *aggregator]) == 2
    said = capsys.readouterr().err
    for files in people:
        assert ", ".join(file.name for file in files) in said
    assert "3 identities" in said
    assert not gallery.exists()

"""The figures of benchmarks/face_sets.py on real faces, and weights of other kinds through the same door."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from recognition.model import embed_images, embed_set, load_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_sets_of_one_subject_are_most_alike_though_a_third_of_the_images_is_degraded(
    shared: Path, tmp_path: Path
) -> None:
    with tarfile.open(shared / "faces" / "lfw_dev112.tar") as archive:
        archive.extractall(tmp_path / "lfw", filter="data")
    command = [sys.executable, str(ROOT / "benchmarks" / "face_sets.py"), "--faces", str(tmp_path / "lfw")]
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


def test_an_onnx_backbone_describes_sets_as_the_torch_one(shared: Path) -> None:
    pytest.importorskip("onnxruntime")
    with np.load(shared / "faces" / "mobilefacenet_io.npz", allow_pickle=False) as stored:
        images = np.moveaxis(stored["images_rgb_uint8"], 1, -1)
        expected = stored["embedding"]
    by_torch = load_model(shared / "faces" / "mobilefacenet.safetensors", device="cpu")
    by_onnx = load_model(shared / "faces" / "mobilefacenet.onnx", arch="mobilefacenet", device="cpu")
    for model in (by_torch, by_onnx):
        features, norms = embed_images(model, images)
        assert np.abs(features * norms[:, None] - expected).max() < 1e-3
    one, other = embed_set(by_torch, images), embed_set(by_onnx, images)
    assert one.embedding @ other.embedding > 0.99999
    assert "norm_weighted" in by_onnx.about
    # Another file, another runtime: descriptors agree to rounding alone, so that they are not mixed.
    assert by_torch.fingerprint != by_onnx.fingerprint

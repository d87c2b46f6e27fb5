"""Faces -> features on the disk: equal to the backbone's own, continued, sharded, never stale."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data.sources.face_loader import FaceBatch
from features import devices
from features import extract as embedding
from features import store as feature_store
from features.extract import embed_faces, extract, fused_for_inference
from features.flips import FLIP_RULES, NO_FLIP, fuse_flips
from features.options import EmbedOptions
from features.store import is_complete
from net import Backbone, build_backbone
from runtime.errors import InputError
from weights import weights_digest

ROOT = Path(__file__).resolve().parents[2]
IMAGES = {"faces": "drawn"}
CPU = EmbedOptions(batch_size=7)


@dataclass
class DrawnFaces:
    """Random images; `asked` counts how often each was wanted."""

    count: int
    broken: tuple[int, ...] = ()
    seed: int = 0
    asked: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return self.count

    def image(self, number: int) -> np.ndarray:
        self.asked.append(number)
        if number in self.broken:
            raise InputError(f"{number}.jpg: cannot be decoded.")
        return np.random.default_rng([self.seed, number]).integers(0, 256, (112, 112, 3), dtype=np.uint8)


def with_statistics(backbone: Backbone) -> Backbone:
    """Batch norms that do something, and no two alike."""
    generator = torch.Generator().manual_seed(3)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(0, 0.2, generator=generator)
    return backbone.eval()


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return with_statistics(build_backbone("ir_tiny"))


@torch.no_grad()
def by_hand(backbone: Backbone, faces: DrawnFaces, flip: str) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.from_numpy(backbone.spec.from_rgb(np.stack([faces.image(n) for n in range(len(faces))])))
    first, first_norm = backbone(backbone.spec.normalise(pixels))
    if flip == NO_FLIP:
        return first, first_norm[:, 0]
    second, second_norm = backbone(backbone.spec.normalise(pixels.flip(3)))
    return fuse_flips(first, second, first_norm[:, 0], second_norm[:, 0], flip)


@pytest.mark.parametrize("flip", [NO_FLIP, *FLIP_RULES])
def test_stored_features_equal_those_of_the_backbone(backbone: Backbone, tmp_path: Path, flip: str) -> None:
    faces = DrawnFaces(40)
    store = embed_faces(backbone, faces, IMAGES, tmp_path, EmbedOptions(flip=flip, batch_size=7))
    assert store is not None
    features, norms = by_hand(backbone, faces, flip)
    np.testing.assert_allclose(store.features, features.numpy(), atol=2e-5)
    np.testing.assert_allclose(store.norms, norms.numpy(), rtol=2e-4)
    assert store.identity["flip"] == flip
    assert store.identity["colour_order"] == "BGR"


@pytest.mark.parametrize("name", ["ir_18", "ir_se_50", "mobilefacenet", "ir_152"])
@pytest.mark.slow
def test_folding_batch_norms_keeps_the_features(name: str) -> None:
    torch.manual_seed(0)
    # In float64: random weights as deep as these blow the rounding of float32 up.
    backbone = with_statistics(build_backbone(name)).double()
    images = torch.randn(2, 3, 112, 112)
    fused = fused_for_inference(backbone)
    with torch.no_grad():
        wanted, wanted_norm = backbone(images)
        found, norm = fused(images)
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)
    torch.testing.assert_close(norm, wanted_norm, rtol=1e-9, atol=0)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in fused.modules())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert norms < convolutions
    assert sum(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()) > norms


def test_complete_store_is_not_computed_again(backbone: Backbone, tmp_path: Path) -> None:
    first = embed_faces(backbone, DrawnFaces(40), IMAGES, tmp_path, CPU)
    faces = DrawnFaces(40)
    again = embed_faces(backbone, faces, IMAGES, tmp_path, CPU)
    assert faces.asked == []
    np.testing.assert_array_equal(first.features, again.features)
    embed_faces(backbone, faces, IMAGES, tmp_path, EmbedOptions(batch_size=3, num_workers=1))
    assert faces.asked == []


@pytest.mark.parametrize("change", ["weights", "spec", "flip", "images", "precision"])
def test_different_options_have_different_stores(backbone: Backbone, tmp_path: Path, change: str) -> None:
    embed_faces(backbone, DrawnFaces(40), IMAGES, tmp_path, CPU)
    faces, images, options = DrawnFaces(40), IMAGES, CPU
    if change == "weights":
        with torch.no_grad():
            next(backbone.parameters()).view(-1)[0] += 1e-3
    if change == "spec":
        backbone.spec = type(backbone.spec)(**backbone.spec.to_dict() | {"channel_order": "RGB"})
    if change == "flip":
        options = EmbedOptions(flip="average")
    if change == "images":
        images = {"faces": "others"}
    if change == "precision":
        options = EmbedOptions(precision="bf16-mixed")
    embed_faces(backbone, faces, images, tmp_path, options)
    assert sorted(faces.asked) == list(range(40))
    assert len(list(tmp_path.iterdir())) == 2


def test_only_changed_images_are_embedded_again(backbone: Backbone, tmp_path: Path) -> None:
    stamps = np.arange(200, dtype=np.uint64)
    before = embed_faces(backbone, DrawnFaces(200), IMAGES, tmp_path, CPU, stamps=stamps)
    kept = np.array(before.features)
    stamps[70] = 999
    faces = DrawnFaces(200, seed=1)
    after = embed_faces(backbone, faces, IMAGES, tmp_path, CPU, stamps=stamps)
    assert sorted(faces.asked) == list(range(64, 96))
    assert after.columns[embedding.STAMP][70] == 999
    np.testing.assert_array_equal(after.features[:64], kept[:64])
    assert np.abs(after.features[70] - kept[70]).max() > 1e-3
    assert len(list(tmp_path.iterdir())) == 1


def test_unreadable_images_are_reported_and_the_others_kept(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"12 images cannot be used") as fault:
        embed_faces(backbone, DrawnFaces(200, tuple(range(40, 52))), IMAGES, tmp_path, CPU)
    assert "40.jpg" in str(fault.value)
    assert "49.jpg" in str(fault.value)
    assert "50.jpg" not in str(fault.value)
    assert "2 more" in str(fault.value)
    mended = DrawnFaces(200)
    assert embed_faces(backbone, mended, IMAGES, tmp_path, CPU) is not None
    assert sorted(mended.asked) == list(range(32, 64))


def test_features_that_overflow_are_refused(backbone: Backbone, tmp_path: Path) -> None:
    with torch.no_grad():
        backbone.output_layer[3].bias.fill_(torch.inf)
    with pytest.raises(InputError, match=r"not finite.*precision 32"):
        embed_faces(backbone, DrawnFaces(40), IMAGES, tmp_path, CPU)


def test_worker_processes_do_not_change_features(backbone: Backbone, tmp_path: Path) -> None:
    one = embed_faces(backbone, DrawnFaces(70), IMAGES, tmp_path / "a", CPU)
    two = embed_faces(
        backbone, DrawnFaces(70), IMAGES, tmp_path / "b", EmbedOptions(batch_size=7, num_workers=2)
    )
    np.testing.assert_array_equal(one.features, two.features)


def test_digest_depends_on_weights_alone(backbone: Backbone) -> None:
    before = weights_digest(backbone)
    backbone.input_layer[1].num_batches_tracked += 1
    assert weights_digest(backbone) == before
    backbone.input_layer[1].running_mean[0] += 1e-4
    assert weights_digest(backbone) != before


def test_batch_moves_to_a_device() -> None:
    batch = FaceBatch(np.arange(2), torch.zeros(2, 3, 4, 4, dtype=torch.uint8), {1: "broken"})
    moved = batch.to("meta")
    assert moved.images.device.type == "meta"
    assert moved.faults == {1: "broken"}


_SCRIPT = """
import sys
sys.path.insert(0, {root!r})
sys.path.insert(0, {root!r} + "/tests")
import time
from pathlib import Path
import numpy as np
import torch
from features.extract import embed_faces
from features.options import EmbedOptions
from net import (build_backbone)

class Faces:
    asked = 0
    def __len__(self): return {count}
    def image(self, number):
        Faces.asked += 1
        time.sleep({pause})
        return np.random.default_rng([0, number]).integers(0, 256, (112, 112, 3), dtype=np.uint8)

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = build_backbone("ir_tiny").eval()
    options = EmbedOptions(batch_size=8, devices={devices})
    store = embed_faces(backbone, Faces(), {{"faces": "drawn"}}, Path({cache!r}), options)
    print("STORE", None if store is None else float(np.abs(store.features).sum()))
    print("ASKED", Faces.asked)
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., list[str]]:
    def make(devices: int = 1, count: int = 400, pause: float = 0.0, cache: str = "cache") -> list[str]:
        path = tmp_path / f"embed_{devices}_{pause}.py"
        path.write_text(
            _SCRIPT.format(
                root=str(ROOT), count=count, pause=pause, devices=devices, cache=str(tmp_path / cache)
            )
        )
        return [sys.executable, str(path)]

    return make


@pytest.mark.slow
def test_embedding_resumes_after_a_kill(script: Callable[..., list[str]], tmp_path: Path) -> None:
    process = subprocess.Popen(script(pause=0.02), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("cache/*/parts/[0-9]*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = tmp_path.glob("cache/*")
    assert not is_complete(folder)
    finished = subprocess.run(script(pause=0.001), capture_output=True, text=True, check=True)
    assert is_complete(folder)
    fresh = subprocess.run(script(cache="other"), capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[0] == fresh.stdout.splitlines()[0]
    assert int(finished.stdout.split()[-1]) < int(fresh.stdout.split()[-1]) == 400


def embedded_here(count: int, folder: Path) -> float:
    """What the script says of its store, by this process."""
    torch.manual_seed(0)
    store = embed_faces(
        build_backbone("ir_tiny").eval(), DrawnFaces(count), IMAGES, folder, EmbedOptions(batch_size=8)
    )
    assert store is not None
    return float(np.abs(store.features).sum())


@pytest.mark.slow
@pytest.mark.parametrize("count", [400, 20])
def test_two_processes_give_the_same_store_as_one(
    script: Callable[..., list[str]], count: int, tmp_path: Path
) -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    both = subprocess.run(
        script(2, count, cache="two"), capture_output=True, text=True, check=True, env=environment
    )
    lines = sorted(line for line in both.stdout.splitlines() if line.startswith("STORE"))
    assert lines == sorted(["STORE None", f"STORE {embedded_here(count, tmp_path / 'one')}"])
    asked = sorted(int(line.split()[1]) for line in both.stdout.splitlines() if line.startswith("ASKED"))
    assert sum(asked) == count
    assert asked[0] == (192 if count == 400 else 0)


def test_store_that_nodes_do_not_share_is_refused(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "MANIFEST", "elsewhere.json")
    with pytest.raises(InputError, match="nodes"):
        embed_faces(backbone, DrawnFaces(40), IMAGES, tmp_path, CPU)


def test_full_disk_is_reported_before_embedding(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, needed: int) -> None:
        raise InputError(f"{folder}: needs {needed}")

    monkeypatch.setattr(feature_store, "require_free_space", full)
    faces = DrawnFaces(40)
    with pytest.raises(InputError, match="needs"):
        embed_faces(backbone, faces, IMAGES, tmp_path, CPU)
    assert faces.asked == []


def test_failing_views_of_one_image_count_once() -> None:
    faults = {number: f"{number // 16}.jpg: is damaged" for number in range(960)}
    told = embedding._sentence_of_faults(faults, Path("store")).splitlines()
    assert told[0].startswith("60 images")
    assert [line.split(":")[0] for line in told[1:3]] == ["0.jpg", "1.jpg"]
    assert "50 more" in told[-1]


def test_the_loader_does_not_warn_of_its_workers() -> None:
    """--num_workers has a default for any machine; a warning came twice for every pair set."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with devices._quiet_lightning():
            torch.utils.data.DataLoader([0], num_workers=4096)


@pytest.mark.parametrize("flip", [NO_FLIP, *FLIP_RULES])
def test_in_memory_features_equal_those_of_the_backbone(backbone: Backbone, flip: str) -> None:
    faces = DrawnFaces(20)
    images = np.stack([faces.image(number) for number in range(20)])
    wanted, wanted_norms = by_hand(backbone, faces, flip)
    features, norms = extract(images, backbone, flip=flip, batch_size=7)
    np.testing.assert_allclose(features, wanted.numpy(), atol=2e-5)
    np.testing.assert_allclose(norms, wanted_norms.numpy(), rtol=2e-4)
    parts, part_norms = extract(iter([images[:7], images[7:]]), backbone, flip=flip, batch_size=7)
    assert np.array_equal(parts, features)
    assert np.array_equal(part_norms, norms)


def test_half_precision_is_close_and_unknown_precision_is_refused(backbone: Backbone) -> None:
    images = DrawnFaces(1).image(0)[None]
    full, half = (extract(images, backbone, precision=name)[0] for name in ("32", "bf16-mixed"))
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(half, full, atol=0.05)
    with pytest.raises(InputError, match="8-true"):
        extract(images, backbone, precision="8-true")


def test_features_that_are_not_finite_are_refused(backbone: Backbone) -> None:
    backbone.output_layer[3].bias.data.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        extract(DrawnFaces(1).image(0)[None], backbone)

"""A stream gives what a batch gives: exactly where it can, closely where it cannot; its memory is bounded."""

from __future__ import annotations

import inspect
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from coreset import AGGREGATORS, FaceSets, SetDescriptor, build_aggregator
from coreset.streaming import TemplateStream
from runtime.errors import InputError

D = 16
FACES = tuple[Tensor, Tensor]


def build(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    if "embedding_size" in inspect.signature(AGGREGATORS[name]).parameters:
        options = {"embedding_size": D} | options
    return build_aggregator(name, options).eval()


def random_faces(count: int, seed: int = 0, size: int = D) -> FACES:
    generator = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(count, size, generator=generator), dim=1)
    return features, 5 + 30 * torch.rand(count, generator=generator)


def video_faces(count: int, seed: int, size: int = 64) -> FACES:
    """Clips of one subject, each with its own quality and bias."""
    generator = torch.Generator().manual_seed(seed)

    def noise(rows: int) -> Tensor:
        return torch.randn(rows, size, generator=generator) / size**0.5

    subject, features, norms = F.normalize(noise(1)), [], []
    while sum(map(len, norms)) < count:
        frames = int(torch.randint(5, 80, (), generator=generator))
        quality = (
            3.5 + 6 * torch.rand(1, generator=generator) + 0.4 * torch.randn(frames, generator=generator)
        )
        quality = quality.clamp_min(1)
        features.append(F.normalize(subject * quality[:, None] / 6 + noise(1) + 0.35 * noise(frames)))
        norms.append(quality)
    return torch.cat(features)[:count], torch.cat(norms)[:count]


def streamed(aggregator: nn.Module, faces: FACES, portion: int, **options: int) -> SetDescriptor:
    stream = TemplateStream(aggregator, **options)
    for start in range(0, len(faces[1]), portion):
        stream.update(*(part[start : start + portion] for part in faces))
    return stream.descriptor()


def batch(aggregator: nn.Module, faces: FACES, media: Tensor | None = None) -> SetDescriptor:
    found: SetDescriptor = aggregator(FaceSets(*faces, torch.tensor([0, len(faces[1])]), media=media))
    return found


def assert_same(found: SetDescriptor, wanted: SetDescriptor, tolerance: float = 1e-6) -> None:
    assert torch.equal(found.picks, wanted.picks)
    torch.testing.assert_close(found.embedding, wanted.embedding, rtol=0, atol=tolerance)
    torch.testing.assert_close(found.norm, wanted.norm, rtol=1e-5, atol=0)
    assert found.weights is None


@pytest.mark.parametrize("name", ["mean", "norm_weighted", "best_norm", "top_k", "random_k"])
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 1000))
def test_streamed_poolings_equal_a_batch(name: str, count: int, portion: int, seed: int) -> None:
    faces = random_faces(count, seed)
    assert_same(streamed(build(name), faces, portion, capacity=8), batch(build(name), faces))


def test_ties_of_top_k_go_to_the_first() -> None:
    features, norms = random_faces(40)
    faces = features, norms.round(decimals=-1)
    assert_same(streamed(build("top_k"), faces, 7), batch(build("top_k"), faces))


@pytest.mark.parametrize("portion", [1, 4, 90])
def test_streamed_media_mean_equals_a_batch(portion: int) -> None:
    features, norms = random_faces(90)
    media = torch.arange(90) // 7
    stream = TemplateStream(build("media_mean"), capacity=8)
    for start in range(0, 90, portion):
        rows = slice(start, start + portion)
        stream.update(features[rows], norms[rows], media[rows])
    assert_same(stream.descriptor(), batch(build("media_mean"), (features, norms), media))


def test_decreasing_or_missing_media_are_rejected() -> None:
    features, norms = random_faces(3)
    stream = TemplateStream(build("media_mean"))
    stream.update(features, norms, torch.tensor([4, 4, 5]))
    before = stream.descriptor()
    with pytest.raises(InputError, match="media_mean"):
        stream.update(features, norms, torch.tensor([5, 6, 4]))
    with pytest.raises(InputError, match="no media"):
        stream.update(features, norms)
    assert stream.num_faces == 3
    assert_same(stream.descriptor(), before)


@pytest.mark.parametrize("name", sorted(set(AGGREGATORS) - {"media_mean"}))
@pytest.mark.parametrize("count", [1, 2, 31, 64])
def test_stream_equals_a_batch_up_to_the_capacity(name: str, count: int) -> None:
    faces = random_faces(count)
    aggregator = build(name)
    for portion in (1, 5, 64):
        assert_same(streamed(aggregator, faces, portion, capacity=64), batch(aggregator, faces))


@pytest.mark.parametrize("name", ["coreset", "fps_mean"])
def test_copies_beyond_the_capacity_do_not_matter(name: str) -> None:
    """Merging is exact for what is equal: picks are the first copies, attention counts all of them."""
    features, norms = random_faces(30)
    rows = torch.randint(30, (1000,), generator=torch.Generator().manual_seed(1))
    faces = features[rows], norms[rows]
    aggregator = build(name)
    assert_same(streamed(aggregator, faces, 13, capacity=64), batch(aggregator, faces), 1e-5)


@pytest.mark.parametrize("name", ["coreset", "fps_mean"])
def test_first_pick_is_exact(name: str) -> None:
    for seed in range(8):
        faces = random_faces(500, seed)
        found = streamed(build(name), faces, 11, capacity=16)
        assert found.picks[0, 0] == faces[1].argmax()


def test_videos_beyond_the_capacity_are_close() -> None:
    """At four times the capacity."""
    aggregator = build("coreset", embedding_size=64, coreset_size=4)
    agreed, cosines = gaps(aggregator, [video_faces(2048, seed) for seed in range(6)], 512)
    assert np.mean(agreed) > 0.95
    assert np.mean(cosines) > 0.998
    # Attention by itself, on the faces that were kept alone, would be further off.
    assert np.min(cosines) > 0.98


def gaps(aggregator: nn.Module, sets: list[FACES], capacity: int) -> tuple[list[float], list[float]]:
    """Of each set the share of the batch's picks that the stream picks, and the descriptors' cosine."""
    agreed, cosines = [], []
    for faces in sets:
        wanted, found = batch(aggregator, faces), streamed(aggregator, faces, 64, capacity=capacity)
        agreed.append(float(torch.isin(wanted.picks, found.picks).float().mean()))
        cosines.append(float((wanted.embedding * found.embedding).detach().sum()))
    return agreed, cosines


@pytest.mark.slow
def test_real_faces_beyond_the_capacity_are_close(shared: Path, tmp_path: Path) -> None:
    """Templates of LFWS with more faces than the capacity; `fps_mean`, as its weights need no training."""
    onnxruntime = pytest.importorskip("onnxruntime")
    import cv2

    with tarfile.open(shared / "faces" / "lfws_dev.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "LFWS"
    templates = np.loadtxt(folder / "meta" / "lfws_face_tid_mid.txt", dtype=str)[:, :2]
    rows = [[f for f, t in templates if t == name] for name in np.unique(templates[:, 1])]
    network = onnxruntime.InferenceSession(shared / "faces" / "mobilefacenet.onnx")
    sets = []
    for names in [names for names in rows if len(names) >= 30][:12]:
        images = np.stack([cv2.imread(str(folder / "loose_crop" / name))[:, :, ::-1] for name in names])
        images = np.stack([cv2.resize(image, (112, 112)) for image in images])
        pixels = (images.transpose(0, 3, 1, 2).astype(np.float32) - 127.5) * 0.0078125
        vectors = torch.from_numpy(network.run(None, {"data": pixels})[0])
        sets.append((F.normalize(vectors), vectors.norm(dim=1)))
    agreed, cosines = gaps(build("fps_mean"), sets, 20)
    assert np.mean(agreed) > 0.8
    assert np.mean(cosines) > 0.95


def test_a_hundred_thousand_faces_in_linear_time_and_constant_memory() -> None:
    """Of a stream nothing grows: what its state holds is as large after 100,000 faces as after 2,000."""
    aggregator = build("coreset")
    stream = TemplateStream(aggregator, capacity=128)
    generator = torch.Generator().manual_seed(0)
    held, seconds = [], []
    for _ in range(5):
        begin = time.process_time()
        for _ in range(20):
            features = F.normalize(torch.randn(1000, D, generator=generator), dim=1)
            stream.update(features, 5 + torch.rand(1000, generator=generator))
        seconds.append(time.process_time() - begin)
        held.append(bytes_held(stream))
    assert stream.num_faces == 100_000
    assert not stream.is_exact
    assert held[-1] <= 1.1 * held[0] < 1 << 20
    assert seconds[-1] < 3 * min(seconds)
    assert stream.descriptor().embedding.isfinite().all()


def bytes_held(root: object) -> int:
    """Of all tensors and containers that can be reached, aggregator excepted."""
    seen: set[int] = set()

    def below(thing: object) -> Iterator[int]:
        if id(thing) in seen or isinstance(thing, (nn.Module, type)):
            return
        seen.add(id(thing))
        yield thing.untyped_storage().nbytes() if isinstance(thing, Tensor) else sys.getsizeof(thing)
        parts = list(thing) if isinstance(thing, (list, tuple, set)) else []
        parts += list(thing.values()) if isinstance(thing, dict) else []
        parts += list(vars(thing).values()) if hasattr(thing, "__dict__") else []
        for part in parts:
            yield from below(part)

    return sum(below(root))


class Unknown(nn.Module):
    """An aggregator without a streaming state: the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build("mean")

    def forward(self, sets: FaceSets) -> SetDescriptor:
        found: SetDescriptor = self.inner(sets)
        return found


def test_other_aggregators_get_a_uniform_sample() -> None:
    faces = video_faces(4000, 3)
    stream = TemplateStream(Unknown().eval(), capacity=400)
    stream.update(*(part[:400] for part in faces))
    assert stream.is_exact
    before = faces[0].clone()
    stream.update(*(part[400:] for part in faces))
    assert torch.equal(faces[0], before)
    assert not stream.is_exact
    cosine = (stream.descriptor().embedding * batch(Unknown(), faces).embedding).sum()
    assert cosine > 0.995
    # Whatever the portions, the same faces are drawn.
    again = streamed(Unknown().eval(), faces, 37, capacity=400)
    torch.testing.assert_close(again.embedding, stream.descriptor().embedding)


@pytest.mark.parametrize(
    ("name", "options"),
    [("weighted_coreset", {"embedding_size": D + 3, "auxiliary_size": 3}), ("coreset", {})],
)
def test_auxiliary_features_can_be_streamed(name: str, options: dict[str, object]) -> None:
    features, norms = random_faces(40)
    auxiliary = torch.randn(40, 3, generator=torch.Generator().manual_seed(7))
    aggregator = build(name, **options)
    for parameter in aggregator.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(8))
    stream = TemplateStream(aggregator, capacity=40)
    for start in range(0, 40, 15):
        rows = slice(start, start + 15)
        stream.update(features[rows], norms[rows], auxiliary=auxiliary[rows])
    whole = FaceSets(features, norms, torch.tensor([0, 40]), auxiliary)
    assert_same(stream.descriptor(), aggregator(whole))
    if options:
        with pytest.raises(InputError, match=r"3 .*found 16 and 0"):
            stream.update(features, norms)


@pytest.mark.parametrize(
    ("name", "quality"),
    [
        *[(name, "detector") for name in ("coreset", "fps_mean", "norm_weighted", "top_k", "best_norm")],
        *[("coreset", "learned"), ("coreset", "none"), ("norm_weighted", "none"), ("fps_mean", "none")],
    ],
)
def test_qualities_can_be_streamed(name: str, quality: str) -> None:
    features, norms = random_faces(200)
    scores = torch.rand(200, generator=torch.Generator().manual_seed(5))
    aggregator = build(name, quality=quality)
    stream = TemplateStream(aggregator, capacity=200)
    for start in range(0, 200, 30):
        rows = slice(start, start + 30)
        stream.update(features[rows], norms[rows], detector_scores=scores[rows])
    whole = torch.tensor([0, 200])
    assert_same(stream.descriptor(), aggregator(FaceSets(features, norms, whole, detector_scores=scores)))
    if quality == "detector":
        with pytest.raises(InputError, match="detector"):
            stream.update(features, norms)


def test_descriptor_is_available_at_any_time() -> None:
    features, norms = random_faces(150)
    aggregator = build("coreset")
    asked, quiet = TemplateStream(aggregator, capacity=64), TemplateStream(aggregator, capacity=64)
    for row in range(150):
        asked.update(features[row : row + 1], norms[row : row + 1])
        quiet.update(features[row : row + 1], norms[row : row + 1])
        asked.descriptor()
    assert_same(asked.descriptor(), quiet.descriptor(), 0.0)


def test_invalid_faces_are_rejected_and_leave_the_stream_unchanged() -> None:
    features, norms = random_faces(5)
    stream = TemplateStream(build("coreset"))
    with pytest.raises(InputError, match="empty set"):
        stream.descriptor()
    stream.update(features[:0], norms[:0])
    stream.update(features, norms)
    broken = norms.clone()
    broken[3] = torch.nan
    with pytest.raises(InputError, match="face 8 holds NaN"):
        stream.update(features, broken)
    with pytest.raises(InputError, match=r"16 .*found 8"):
        stream.update(features[:, :8], norms)
    with pytest.raises(InputError, match=r"FaceSets\.norms"):
        stream.update(features, norms[:, None])
    assert stream.num_faces == 5
    assert_same(stream.descriptor(), batch(build("coreset"), (features, norms)), 0.0)


def test_invalid_streams_are_rejected() -> None:
    with pytest.raises(InputError) as fault:
        TemplateStream(build("coreset").train(), capacity=5)
    assert "capacity 5 must be at least 6" in str(fault.value)
    assert "training mode" in str(fault.value)

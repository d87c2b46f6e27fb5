from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coreset.pooling import BestNorm, FpsMean, Mean, MediaMean, NormWeighted, Pooling, RandomK, TopK
from coreset.sets import FaceSets
from runtime.errors import InputError


def random_sets(sizes: list[int], seed: int = 0) -> FaceSets:
    generator = torch.Generator().manual_seed(seed)
    N = sum(sizes)
    features = F.normalize(torch.randn(N, 6, generator=generator, dtype=torch.float64), dim=1)
    norms = 5 + 30 * torch.rand(N, generator=generator, dtype=torch.float64)
    media = torch.randint(-2, 3, (N,), generator=generator) * 1000
    return FaceSets(features, norms, torch.tensor([0, *sizes]).cumsum(0), media=media)


def slow_vector(name: str, f: Tensor, r: Tensor, media: Tensor) -> Tensor:
    """Each definition on one set."""
    x = f * r[:, None]
    best = r.argsort(descending=True)
    if name == "Mean":
        return f.mean(0)
    if name == "NormWeighted":
        return x.mean(0)
    if name == "MediaMean":
        return torch.stack([x[media == medium].mean(0) for medium in media.unique()]).sum(0)
    if name == "BestNorm":
        return x[best[0]]
    return f[best[:3]].mean(0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 99))
@pytest.mark.parametrize("kind", [Mean, NormWeighted, MediaMean, BestNorm, TopK])
def test_poolings_equal_their_definitions(kind: type[Pooling], sizes: list[int], seed: int) -> None:
    sets = random_sets(sizes, seed)
    found = kind()(sets)
    assert sets.media is not None
    for b, (start, stop) in enumerate(zip(sets.offsets[:-1], sets.offsets[1:], strict=True)):
        rows = slice(int(start), int(stop))
        expected = slow_vector(kind.__name__, sets.features[rows], sets.norms[rows], sets.media[rows])
        torch.testing.assert_close(found.embedding[b] * found.norm[b], expected)


def test_fps_mean_equals_the_published_code(golden: Path) -> None:
    with np.load(golden / "aggregator_d64.npz") as archive:
        cases = dict(archive)
    for K in (3, 5):
        for gamma in ("0.0", "0.01", "0.5", "1.0"):
            prefixes = [f"k{K}_g{gamma}_t{T}_" for T in (1, 2, 3, 7, 20, 64)]
            sets = FaceSets.from_list(
                [(torch.tensor(cases[p + "features"]), torch.tensor(cases[p + "norms"])) for p in prefixes]
            )
            found = FpsMean(coreset_size=K, gamma=float(gamma))(sets)
            for b, prefix in enumerate(prefixes):
                picks = cases[prefix + "picks"].tolist()
                assert found.picks[b].tolist() == picks + [-1] * (K - len(picks))
                # The data hold the direction of the mean, its length left out.
                np.testing.assert_allclose(found.embedding[b], cases[prefix + "fps_mean"], rtol=0, atol=1e-6)
                x = cases[prefix + "features"] * cases[prefix + "norms"][:, None]
                length = np.linalg.norm(x[picks].mean(axis=0))
                np.testing.assert_allclose(found.norm[b], length, rtol=1e-5)


def test_picks_and_weights_match_the_faces_used() -> None:
    norms = torch.tensor([1.0, 4.0, 2.0, 4.0, 3.0])
    sets = FaceSets(F.normalize(torch.randn(5, 6), dim=1), norms, torch.tensor([0, 4, 5]))
    best = BestNorm()(sets)
    assert best.picks.tolist() == [[1], [0]]
    assert best.norm.tolist() == pytest.approx([4.0, 3.0])
    assert best.weights.tolist() == [0, 1, 0, 0, 1]
    top = TopK(coreset_size=3)(sets)
    assert top.picks.tolist() == [[1, 3, 2], [0, -1, -1]]
    assert top.weights.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 1])
    weighted = NormWeighted()(sets)
    assert weighted.picks.shape == (2, 0)
    assert weighted.weights.tolist() == pytest.approx([1 / 11, 4 / 11, 2 / 11, 4 / 11, 1])


def test_media_mean_weights_media_equally() -> None:
    """A clip of four equal frames weighs as much as one still, and a number is its own medium in each set."""
    features = F.normalize(torch.randn(3, 6), dim=1)
    order, media = [0, 1, 1, 1, 1, 2, 0], torch.tensor([7, 8, 8, 8, 8, 7, 7])
    sets = FaceSets(features[order], torch.ones(7), torch.tensor([0, 5, 7]), media=media)
    found = MediaMean()(sets)
    expected = torch.stack([features[0] + features[1], (features[2] + features[0]) / 2])
    torch.testing.assert_close(found.embedding * found.norm[:, None], expected)


def test_media_mean_requires_media_indices() -> None:
    sets = FaceSets.dense(torch.ones(1, 2, 4), torch.ones(1, 2))
    with pytest.raises(InputError, match="use norm_weighted"):
        MediaMean()(sets)


def test_random_k_is_uniform_and_depends_on_the_seed() -> None:
    sets = random_sets([10] * 600)
    picks = RandomK(coreset_size=3, seed=1)(sets).picks
    assert torch.equal(picks, RandomK(coreset_size=3, seed=1)(sets).picks)
    assert not torch.equal(picks, RandomK(coreset_size=3, seed=2)(sets).picks)
    shares = torch.bincount(picks.flatten(), minlength=10) / picks.numel()
    torch.testing.assert_close(shares, torch.full((10,), 0.1), atol=0.03, rtol=0)
    assert all(len(set(row)) == 3 for row in picks.tolist())


def test_random_k_is_the_mean_of_its_picks() -> None:
    sets = random_sets([8, 2])
    found = RandomK(coreset_size=3)(sets)
    x = sets.features * sets.norms[:, None]
    torch.testing.assert_close(found.embedding[0] * found.norm[0], x[:8][found.picks[0]].mean(0))
    torch.testing.assert_close(found.embedding[1] * found.norm[1], x[8:].mean(0))


@pytest.mark.parametrize("kind", [Mean, NormWeighted, MediaMean, TopK, FpsMean, RandomK])
def test_faces_that_cancel_out_give_zero_without_nan(kind: type[Pooling]) -> None:
    face = F.normalize(torch.ones(6), dim=0)
    features = torch.stack([face, -face, face]).requires_grad_()
    norms = torch.tensor([9.0, 9.0, 0.0], requires_grad=True)
    sets = FaceSets(features, norms, torch.tensor([0, 2, 3]), media=torch.arange(3))
    found = kind()(sets)
    assert found.embedding[0].tolist() == [0] * 6
    assert found.norm[0] == 0
    (found.embedding.sum() + found.norm.sum()).backward()
    for value in (found.embedding, found.norm, found.weights, features.grad):
        assert value.isfinite().all()
    torch.testing.assert_close(torch.zeros(2).index_add(0, sets.set_of_face, found.weights), torch.ones(2))


# Not RandomK: its hash looks at the values, so that the smallest change draws other faces.
@pytest.mark.parametrize("kind", [Mean, NormWeighted, MediaMean, BestNorm, TopK, FpsMean])
def test_gradients_equal_those_of_the_formula(kind: type[Pooling]) -> None:
    sets = random_sets([4, 1, 7])
    pooling = kind()

    def descriptor(features: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        found = pooling(FaceSets(features, norms, sets.offsets, media=sets.media))
        return found.embedding, found.norm

    inputs = (sets.features.requires_grad_(), sets.norms.requires_grad_())
    assert torch.autograd.gradcheck(descriptor, inputs)


def test_options_out_of_range_are_rejected() -> None:
    for kind in (TopK, FpsMean, RandomK):
        with pytest.raises(InputError, match="coreset_size 0 must be at least 1"):
            kind(coreset_size=0)
    with pytest.raises(InputError, match=r"gamma -1\.0"):
        FpsMean(gamma=-1.0)

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from coreset.selection import LARGEST_GAMMA, Sampling, pick_agreement, quality_weight, select_faces

QUIET = Sampling(gumbel_noise=False)


def random_sets(
    B: int, T: int, D: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(B, T, D, generator=generator, dtype=dtype), dim=-1)
    return features, 5 + 30 * torch.rand(B, T, generator=generator, dtype=dtype)


def slow_picks(features: Tensor, norms: Tensor, coreset_size: int, gamma: float) -> list[int]:
    """The definition, face by face, in Python's floats."""
    rows = [
        [norm * value for value in row] for row, norm in zip(features.tolist(), norms.tolist(), strict=True)
    ]

    def cosine(a: list[float], b: list[float]) -> float:
        return math.fsum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    scores = norms.tolist()
    nearest = [math.inf] * len(rows)
    picks: list[int] = []
    for _ in range(min(coreset_size, len(rows))):
        pick = max((i for i in range(len(rows)) if i not in picks), key=lambda i: (scores[i], -i))
        picks.append(pick)
        distances = [
            norm**gamma * (1 - cosine(row, rows[pick])) / 2
            for row, norm in zip(rows, norms.tolist(), strict=True)
        ]
        scores = nearest = [min(pair) for pair in zip(nearest, distances, strict=True)]
    return picks


def slow_training(
    features: Tensor, norms: Tensor, mask: Tensor, coreset_size: int, gamma: Tensor, sampling: Sampling
) -> tuple[list[int], Tensor]:
    """The definition for one set, with the one-hot written out and every cosine left to PyTorch."""
    features, norms = features[mask], norms[mask]
    faces = features * norms[:, None]
    scores, nearest, taken = norms, None, torch.zeros(len(norms), dtype=torch.bool)
    picks, core = [], []
    for _ in range(min(coreset_size, len(norms))):
        soft = (scores / sampling.temperature).masked_fill(taken, -torch.inf).softmax(0)
        pick = int(soft.argmax())
        one_hot = F.one_hot(torch.tensor(pick), len(norms)) + soft - soft.detach()
        picks.append(pick)
        core.append(one_hot @ faces)
        taken = taken.clone()
        taken[pick] = sampling.mask_picked
        distance = norms**gamma * (1 - F.cosine_similarity(faces, core[-1][None], dim=1)) / 2
        nearest = distance if nearest is None else torch.minimum(nearest, distance)
        scores = nearest
    return picks, torch.stack(core)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 25),
    st.integers(2, 40),
    st.integers(1, 7),
    st.sampled_from([0.0, 0.01, 0.5, 1.0, 4.0]),
    st.integers(0, 99),
)
def test_evaluation_picks_equal_the_definition(T: int, D: int, K: int, gamma: float, seed: int) -> None:
    features, norms = random_sets(2, T, D, seed, torch.float64)
    picks, core, present = select_faces(features, norms, coreset_size=K, gamma=gamma)
    for b in range(2):
        expected = slow_picks(features[b], norms[b], K, gamma)
        count = len(expected)
        assert picks[b].tolist() == expected + [-1] * (K - count)
        assert present[b].tolist() == [True] * count + [False] * (K - count)
        torch.testing.assert_close(core[b, :count], (features * norms[..., None])[b, expected])
        assert core[b, count:].abs().sum() == 0


@pytest.mark.parametrize("mask_picked", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.2, 5.0])
def test_training_values_and_gradients_equal_the_definition(mask_picked: bool, temperature: float) -> None:
    features, norms = random_sets(3, 6, 5, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([[6], [2], [4]])
    leaves = [
        features,
        norms,
        torch.tensor(0.3, dtype=torch.float64),
        torch.tensor(temperature, dtype=torch.float64),
    ]
    sampling_of = lambda t: Sampling(t, gumbel_noise=False, mask_picked=mask_picked)  # noqa: E731
    target = torch.randn(3, 4, 5, dtype=torch.float64)

    def gradients(cores: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
        loss = sum((core * target[b, : len(core)]).sum() for b, core in enumerate(cores))
        return list(torch.autograd.grad(loss, inputs))

    ours = [leaf.clone().requires_grad_() for leaf in leaves]
    picks, core, present = select_faces(
        ours[0], ours[1], mask, coreset_size=4, gamma=ours[2], sampling=sampling_of(ours[3])
    )
    slow = [leaf.clone().requires_grad_() for leaf in leaves]
    expected = [
        slow_training(slow[0][b], slow[1][b], mask[b], 4, slow[2], sampling_of(slow[3])) for b in range(3)
    ]
    assert [row[valid].tolist() for row, valid in zip(picks, present, strict=True)] == [
        e[0] for e in expected
    ]
    mine = gradients([row[valid] for row, valid in zip(core, present, strict=True)], ours)
    theirs = gradients([e[1] for e in expected], slow)
    for gradient, wanted in zip(mine, theirs, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-9 * float(wanted.abs().max()))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.booleans(), st.integers(0, 99))
@example(1, 3, True, 0)
def test_no_face_is_picked_twice(T: int, K: int, noise: bool, seed: int) -> None:
    features, norms = random_sets(3, T, 4, seed)
    features[1] = features[1, :1]
    torch.manual_seed(seed)
    for sampling in (None, Sampling(gumbel_noise=noise)):
        picks = select_faces(features, norms, coreset_size=K, gamma=0.01, sampling=sampling).picks
        for row in picks.tolist():
            valid = [pick for pick in row if pick >= 0]
            assert len(set(valid)) == len(valid) == min(K, T)


def test_published_training_may_repeat_a_face() -> None:
    features, norms = random_sets(1, 2, 4)
    sampling = Sampling(mask_picked=False)
    rows = [
        select_faces(features, norms, coreset_size=2, gamma=0.01, sampling=sampling).picks[0]
        for _ in range(40)
    ]
    assert any(row[0] == row[1] for row in rows)


@pytest.mark.parametrize("D", [1, 3, 7, 64, 100, 512])
@pytest.mark.parametrize("threads", [1, 2])
def test_picks_are_independent_of_batch_and_padding(D: int, threads: int) -> None:
    """Even where scores differ by one rounding: faces of a clip, their norms equal."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        generator = torch.Generator().manual_seed(D)
        one = F.normalize(torch.randn(D, generator=generator), dim=0)
        T = 37
        features = F.normalize(one + 1e-7 * torch.randn(T, D, generator=generator), dim=-1)
        features[T // 2 :] = F.normalize(torch.randn(T - T // 2, D, generator=generator), dim=-1)
        norms = torch.full((T,), 20.123)
        alone = select_faces(features[None], norms[None], coreset_size=20, gamma=0.37).picks[0]
        for B, longer in ((1, 1), (1, 200), (3, 5), (40, 0), (40, 91)):
            padded, lengths = (
                torch.full((B, T + longer, D), torch.nan),
                torch.full((B, T + longer), torch.nan),
            )
            others = F.normalize(torch.randn(B, T, D, generator=generator), dim=-1)
            padded[:, :T], lengths[:, :T] = others, 20
            padded[B // 2, :T], lengths[B // 2, :T] = features, norms
            mask = (torch.arange(T + longer) < T).expand(B, -1)
            picks = select_faces(padded, lengths, mask, coreset_size=20, gamma=0.37).picks
            assert torch.equal(picks[B // 2], alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("T", [9, 16, 61, 200])
@pytest.mark.parametrize("gamma", [0.0, 0.013, 1.0])
def test_ties_between_equal_faces_go_to_the_first(T: int, gamma: float) -> None:
    features, norms = random_sets(4, 4, 33, seed=T)
    order = torch.arange(T) % 4
    picks = select_faces(features[:, order], norms[:, order], coreset_size=8, gamma=gamma).picks
    # Four different faces, each the first of its copies; then the copies, all at distance zero, in order.
    assert picks[:, :4].sort(1).values.tolist() == [[0, 1, 2, 3]] * 4
    assert picks[:, 4:].tolist() == [[4, 5, 6, 7]] * 4


def test_equal_faces_tie_in_training_too() -> None:
    features, norms = random_sets(2, 4, 33)
    order = torch.arange(40) % 4
    picks = select_faces(features[:, order], norms[:, order], coreset_size=4, gamma=0.5, sampling=QUIET).picks
    assert picks.sort(1).values.tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize("sampling", [None, QUIET, Sampling()])
def test_nan_padding_affects_neither_values_nor_gradients(sampling: Sampling | None) -> None:
    features, norms = random_sets(3, 6, 8)
    mask = torch.arange(6) < torch.tensor([[6], [1], [3]])
    results = []
    for filler in (0.0, torch.nan, torch.inf):
        torch.manual_seed(5)
        f = features.masked_fill(~mask[..., None], filler).requires_grad_()
        r = norms.masked_fill(~mask, filler).requires_grad_()
        gamma = torch.tensor(0.5, requires_grad=True)
        picks, core, _ = select_faces(f, r, mask, coreset_size=3, gamma=gamma, sampling=sampling)
        core.square().sum().backward()
        gradients = [f.grad, r.grad] + ([gamma.grad] if sampling else [])
        results.append([picks, core, *gradients])
    for other in results[1:]:
        for value, wanted in zip(other, results[0], strict=True):
            assert value.isfinite().all()
            assert torch.equal(value, wanted)
    assert results[0][2][~mask].abs().sum() == 0


@pytest.mark.parametrize("gamma", [-0.5, 0.0, 0.01, 1.0, 50.0])
@pytest.mark.parametrize("sampling", [None, QUIET, Sampling(mask_picked=False)])
@pytest.mark.parametrize("zeros", ["one", "all"])
def test_zero_norms_and_extreme_gammas_stay_finite(
    gamma: float, sampling: Sampling | None, zeros: str
) -> None:
    features, norms = random_sets(2, 5, 8)
    norms[:, 2 if zeros == "one" else slice(None)] = 0
    leaves = [features.requires_grad_(), norms.requires_grad_(), torch.tensor(gamma, requires_grad=True)]
    _, core, _ = select_faces(leaves[0], leaves[1], coreset_size=4, gamma=leaves[2], sampling=sampling)
    assert core.isfinite().all()
    core.pow(2).sum().backward()
    for leaf in leaves[: 2 if sampling is None else 3]:
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


def test_quality_weight_is_a_clamped_power() -> None:
    norms = torch.tensor([0.0, 1e-8, 0.5, 20.0])
    assert quality_weight(norms, 0.0).tolist() == [1.0] * 4
    assert quality_weight(norms, -3.0).tolist() == [1.0] * 4
    torch.testing.assert_close(quality_weight(norms, 1.0), torch.tensor([1e-6, 1e-6, 0.5, 20.0]))
    assert torch.equal(quality_weight(norms, 99.0), quality_weight(norms, LARGEST_GAMMA))


def test_gamma_outside_its_range_has_a_gradient() -> None:
    gamma = torch.tensor(-0.1, requires_grad=True)
    quality_weight(torch.tensor([20.0]), gamma).sum().backward()
    assert gamma.grad is not None
    assert gamma.grad > 0


def test_equal_norms_have_equal_weights_at_any_position() -> None:
    for count in range(1, 70):
        weights = quality_weight(torch.full((count,), 23.45), 0.0123)
        assert (weights == weights[0]).all()


def test_more_gamma_prefers_quality() -> None:
    features = F.normalize(torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.8, 0.6]]]), dim=-1)
    norms = torch.tensor([[30.0, 2.0, 29.0]])
    assert select_faces(features, norms, coreset_size=2, gamma=0.0).picks.tolist() == [[0, 1]]
    assert select_faces(features, norms, coreset_size=2, gamma=4.0).picks.tolist() == [[0, 2]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_neither_values_nor_gradients(dtype: torch.dtype) -> None:
    found = []
    for enabled in (False, True):
        features, norms = (leaf.requires_grad_() for leaf in random_sets(3, 30, 64))
        gamma = torch.tensor(0.3, requires_grad=True)
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            picks, core, _ = select_faces(features, norms, coreset_size=5, gamma=gamma, sampling=QUIET)
        core.sin().sum().backward()
        found.append((picks, core, features.grad, norms.grad, gamma.grad))
    for plain, cast in zip(*found, strict=True):
        assert torch.equal(plain, cast)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_and_float64_is_kept(dtype: torch.dtype) -> None:
    features, norms = random_sets(2, 5, 8)
    half = select_faces(features.to(dtype), norms.to(dtype), coreset_size=3, gamma=0.3)
    wide = select_faces(features.to(dtype).float(), norms.to(dtype).float(), coreset_size=3, gamma=0.3)
    assert half.core.dtype == torch.float32
    assert torch.equal(half.core, wide.core)
    assert (
        select_faces(features.double(), norms.double(), coreset_size=3, gamma=0.3).core.dtype == torch.float64
    )


def test_training_picks_approach_evaluation_at_low_temperature() -> None:
    features, norms = random_sets(40, 12, 16)
    wanted = select_faces(features, norms, coreset_size=3, gamma=0.01).picks
    agreement = []
    for temperature in (1.0, 0.05, 1e-6):
        sampling = Sampling(torch.tensor(temperature))
        picks = select_faces(features, norms, coreset_size=3, gamma=0.01, sampling=sampling).picks
        agreement.append(float(pick_agreement(picks, wanted)))
    assert agreement[0] < agreement[1] < agreement[2]
    assert agreement[2] > 0.99


def test_noise_draws_from_the_softmax_of_the_scores() -> None:
    norms = torch.tensor([[1.0, 2.0, 3.0]]).expand(4000, -1)
    features = F.normalize(torch.ones(4000, 3, 2), dim=-1)
    picks = select_faces(features, norms, coreset_size=1, gamma=0.0, sampling=Sampling(2.0)).picks
    shares = torch.bincount(picks[:, 0], minlength=3) / 4000
    torch.testing.assert_close(shares, (norms[0] / 2).softmax(0), atol=0.03, rtol=0)


def test_pick_agreement_is_a_fraction_of_training_picks() -> None:
    training = torch.tensor([[0, 1, 2], [4, -1, -1], [3, 3, 5], [7, 8, -1]])
    evaluation = torch.tensor([[2, 9, 0], [4, -1, -1], [3, 6, 7], [1, 2, -1]])
    torch.testing.assert_close(
        pick_agreement(training, evaluation), torch.tensor((2 / 3 + 1 + 2 / 3 + 0) / 4)
    )


def test_memory_stays_linear_in_the_number_of_faces() -> None:
    """T x T float32 would need 1.6 GB at 20,000 faces; this must not even come near."""
    features, norms = random_sets(1, 20_000, 16)
    picks = select_faces(features, norms, coreset_size=4, gamma=0.1).picks
    assert picks[0].tolist() == slow_picks(features[0].double(), norms[0].double(), 4, 0.1)

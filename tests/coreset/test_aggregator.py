from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreset import set_attention as attention_module
from coreset.aggregator import CoresetAggregator
from coreset.layers import norm_code
from coreset.selection import pick_agreement
from coreset.set_attention import SetAttention, folding_pays
from coreset.sets import FaceSets
from runtime.errors import InputError


def random_sets(sizes: list[int], D: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32) -> FaceSets:
    generator = torch.Generator().manual_seed(seed)
    N = sum(sizes)
    features = F.normalize(torch.randn(N, D, generator=generator, dtype=dtype), dim=1)
    norms = 5 + 30 * torch.rand(N, generator=generator, dtype=dtype)
    return FaceSets(features, norms, torch.tensor([0, *sizes]).cumsum(0))


def lively(aggregator: CoresetAggregator) -> CoresetAggregator:
    """Biases and scales away from 0 and 1, so that forgetting one shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in aggregator.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
            elif name == "gamma":
                parameter.fill_(0.2)
    return aggregator


def test_norm_code_equals_its_formula() -> None:
    norms, D = torch.tensor([0.0, 0.7, 23.4567], dtype=torch.float64), 7
    code = norm_code(norms, D)
    for r, row in zip(norms.tolist(), code.tolist(), strict=True):
        for j, value in enumerate(row):
            angle = r * 2 * math.pi / 10000 ** (2 * (j // 2) / D)
            assert value == pytest.approx(math.sin(angle) if j % 2 == 0 else math.cos(angle), abs=1e-12)


def attention_inputs(B: int, K: int, T: int, D: int) -> Iterator[Tensor]:
    for shape in ((B, K, D), (B, T, D), (B, T, D)):
        yield torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("folded", [True, False])
def test_attention_equals_torch_multihead_attention(folded: bool) -> None:
    layer = SetAttention(16, 4, 0.0).double()
    reference = nn.MultiheadAttention(16, 4, batch_first=True).double()
    nn.init.normal_(layer.in_proj_bias)
    nn.init.normal_(layer.out_proj.bias)
    reference.load_state_dict(layer.state_dict())
    queries, keys, values = attention_inputs(3, 2, 5, 16)
    mask = torch.arange(5) < torch.tensor([[5], [1], [3]])
    output, weights = layer(queries, keys, values, mask, folded=folded)
    expected, shares = reference(queries, keys, values, key_padding_mask=~mask, average_attn_weights=False)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(weights, shares)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_folded_attention_equals_unfolded_with_gradients(dropout: float) -> None:
    layer = SetAttention(16, 4, dropout).double()
    nn.init.normal_(layer.in_proj_bias)
    inputs = list(attention_inputs(3, 2, 9, 16))
    mask = torch.arange(9) < torch.tensor([[9], [1], [4]])
    found = []
    for folded in (True, False):
        torch.manual_seed(3)
        output, _ = layer(*inputs, mask, folded=folded)
        gradients = torch.autograd.grad(output.sin().sum(), [*inputs, *layer.parameters()])
        found.append((output, *gradients))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_folding_is_chosen_by_set_size() -> None:
    assert not folding_pays(3, 3, 8, 512)
    assert folding_pays(64, 3, 8, 512)
    assert not folding_pays(10**6, 64, 8, 512)
    # A set attending to itself has nothing to gain.
    assert not folding_pays(5, 5, 8, 512)


@pytest.mark.parametrize("folded", [True, False])
def test_folded_and_unfolded_descriptors_agree(monkeypatch: pytest.MonkeyPatch, folded: bool) -> None:
    aggregator = lively(CoresetAggregator(embedding_size=16)).eval()
    sets = random_sets([1, 4, 30, 2])
    expected = aggregator(sets)
    monkeypatch.setattr(attention_module, "folding_pays", lambda *_: folded)
    found = aggregator(sets)
    torch.testing.assert_close(found.embedding, expected.embedding)
    torch.testing.assert_close(found.weights, expected.weights)


def slow_descriptor(
    aggregator: CoresetAggregator, features: Tensor, norms: Tensor, picks: list[int]
) -> Tensor:
    """The published computation for one set in plain steps, with attention by PyTorch."""
    D, heads = features.shape[1], aggregator.self_attention.num_heads
    layers = []
    for layer in (aggregator.self_attention, aggregator.cross_attention):
        reference = nn.MultiheadAttention(D, heads, batch_first=True).to(features.dtype).eval()
        reference.load_state_dict(layer.state_dict())
        layers.append(reference)

    def code(r: Tensor) -> Tensor:
        return aggregator.norm_code_scale(norm_code(r, D))

    faces = features * norms[:, None]
    core = faces[picks]
    start = core + code(norms[picks])
    queries = aggregator.self_norm(start + layers[0](start, start, start)[0])
    delta = aggregator.cross_norm(core + layers[1](queries, faces + code(norms), faces)[0])
    return (core + delta).mean(0)


def test_ragged_batch_equals_reference_implementation() -> None:
    aggregator = lively(CoresetAggregator(embedding_size=16, coreset_size=4)).double().eval()
    sizes = [1, 9, 3, 40, 2]
    sets = random_sets(sizes, dtype=torch.float64)
    found = aggregator(sets)
    for b, (features, norms) in enumerate(
        zip(sets.features.split(sizes), sets.norms.split(sizes), strict=True)
    ):
        picks = [pick for pick in found.picks[b].tolist() if pick >= 0]
        expected = slow_descriptor(aggregator, features, norms, picks)
        torch.testing.assert_close(found.embedding[b] * found.norm[b], expected)


def test_gradients_equal_finite_differences() -> None:
    aggregator = lively(CoresetAggregator(embedding_size=8, num_heads=2)).double().eval()
    sets = random_sets([4, 1, 6], D=8, dtype=torch.float64)

    def descriptor(features: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        found = aggregator(FaceSets(features, norms, sets.offsets))
        return found.embedding, found.norm

    inputs = (sets.features.requires_grad_(), sets.norms.requires_grad_())
    assert torch.autograd.gradcheck(descriptor, inputs)


def test_noise_is_drawn_in_training_only() -> None:
    aggregator = CoresetAggregator(embedding_size=16, dropout=0.0)
    sets = random_sets([20] * 30)
    first, second = aggregator(sets), aggregator(sets)
    assert not torch.equal(first.picks, second.picks)
    assert first.weights is None
    aggregator.gumbel_noise = False
    assert torch.equal(aggregator(sets).picks, aggregator.evaluation_picks(sets))
    aggregator.eval()
    assert torch.equal(aggregator(sets).embedding, aggregator(sets).embedding)


def test_attention_weights_have_dropout_in_training() -> None:
    layer = SetAttention(16, 4, 0.5)
    inputs = [value.float() for value in attention_inputs(2, 3, 20, 16)]
    for folded in (True, False):
        layer.train()
        assert not torch.equal(layer(*inputs, folded=folded)[0], layer(*inputs, folded=folded)[0])
        layer.eval()
        assert torch.equal(layer(*inputs, folded=folded)[0], layer(*inputs, folded=folded)[0])


def test_residual_branches_have_dropout_in_training() -> None:
    """With a branch dropped whole, its LayerNorm sees the start of the branch alone."""
    aggregator = CoresetAggregator(embedding_size=16, gumbel_noise=False)
    aggregator.dropout.p = 1.0
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> None:
        def keep_first(_layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            seen.setdefault(name, (inputs[0], output))

        getattr(aggregator, name).register_forward_hook(keep_first)

    for name in ("norm_code_scale", "self_norm", "cross_norm"):
        watch(name)
    sets = random_sets([7])
    picks = aggregator(sets).picks[0]
    core = (sets.features * sets.norms[:, None])[picks]
    torch.testing.assert_close(seen["self_norm"][0][0], core + seen["norm_code_scale"][1][0])
    torch.testing.assert_close(seen["cross_norm"][0][0], core)


def test_evaluation_picks_are_in_the_order_of_the_sets() -> None:
    """Sizes so different that the sets are worked through in several chunks, out of order."""
    aggregator = CoresetAggregator(embedding_size=16)
    sets = random_sets([3, 900, 1, 2, 700, 4, 2000])
    assert len(sets.chunks()) > 2
    picks = aggregator.evaluation_picks(sets)
    assert torch.equal(picks, aggregator.eval()(sets).picks)
    for b, (start, stop) in enumerate(zip(sets.offsets[:-1], sets.offsets[1:], strict=True)):
        alone = FaceSets.from_list([(sets.features[start:stop], sets.norms[start:stop])])
        assert torch.equal(aggregator.evaluation_picks(alone)[0], picks[b])


def test_dropout_is_off_in_evaluation() -> None:
    aggregator = CoresetAggregator(embedding_size=16, gumbel_noise=False, dropout=0.5)
    sets = random_sets([5, 9])
    assert not torch.equal(aggregator(sets).embedding, aggregator(sets).embedding)
    aggregator.eval()
    assert torch.equal(aggregator(sets).embedding, aggregator(sets).embedding)


def test_temperature_is_scheduled_and_saved() -> None:
    aggregator = CoresetAggregator(embedding_size=16, selection_temperature=2.0)
    assert float(aggregator.temperature) == pytest.approx(2.0)
    aggregator.set_temperature(1e-4)
    sets = random_sets([12] * 20)
    assert float(pick_agreement(aggregator(sets).picks, aggregator.evaluation_picks(sets))) > 0.95
    other = CoresetAggregator(embedding_size=16)
    other.load_state_dict(aggregator.state_dict())
    assert float(other.temperature) == pytest.approx(1e-4)
    assert "log_temperature" not in dict(aggregator.named_parameters())


def test_temperature_and_gamma_can_be_learned() -> None:
    sets = random_sets([6, 9, 3])
    for learned in (True, False):
        aggregator = CoresetAggregator(embedding_size=16, learn_temperature=learned, learn_gamma=learned)
        aggregator(sets).embedding.square().sin().sum().backward()
        for name in ("gamma", "log_temperature"):
            parameter = dict(aggregator.named_parameters()).get(name)
            assert (parameter is not None) is learned
            if parameter is not None:
                assert parameter.grad is not None
                assert parameter.grad.abs() > 0


def test_large_set_among_small_ones_is_independent() -> None:
    aggregator = lively(CoresetAggregator(embedding_size=64)).eval()
    sizes = [5] * 100 + [20_000] + [5] * 100
    sets = random_sets(sizes, D=64)
    with torch.no_grad():
        together = aggregator(sets)
        alone = aggregator(FaceSets.from_list([(sets.features[500:20_500], sets.norms[500:20_500])]))
    assert torch.equal(together.picks[100], alone.picks[0])
    torch.testing.assert_close(together.embedding[100], alone.embedding[0])
    assert together.embedding.isfinite().all()


def test_nan_padding_affects_neither_values_nor_gradients() -> None:
    aggregator = lively(CoresetAggregator(embedding_size=16, dropout=0.0))
    mask = torch.arange(6) < torch.tensor([[6], [1], [3]])
    plain = random_sets([6] * 3)
    for training in (True, False):
        aggregator.train(training)
        found = []
        for filler in (0.0, torch.nan):
            torch.manual_seed(2)
            features = plain.features.view(3, 6, 16).masked_fill(~mask[..., None], filler).requires_grad_()
            norms = plain.norms.view(3, 6).masked_fill(~mask, filler).requires_grad_()
            vectors, _, _ = aggregator.aggregate_padded(features, norms, mask)
            gradients = torch.autograd.grad(
                vectors.square().sum(), [features, norms, *aggregator.parameters()], allow_unused=not training
            )
            found.append([vectors, *[gradient for gradient in gradients if gradient is not None]])
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other)


def test_weights_are_attention_shares() -> None:
    aggregator = lively(CoresetAggregator(embedding_size=16)).eval()
    sets = random_sets([1, 7, 2])
    weights = aggregator(sets).weights
    assert weights is not None
    torch.testing.assert_close(torch.zeros(3).index_add(0, sets.set_of_face, weights), torch.ones(3))
    captured = []
    aggregator.cross_attention.register_forward_hook(lambda *args: captured.append(args[2][1]))
    alone = FaceSets.from_list([(sets.features[1:8], sets.norms[1:8])])
    aggregator(alone)
    torch.testing.assert_close(captured[0][0].mean((0, 1)), weights[1:8])


def test_options_out_of_range_are_reported_together() -> None:
    with pytest.raises(InputError) as error:
        CoresetAggregator(embedding_size=30, coreset_size=0, gamma=-1.0, dropout=1.0)
    for words in ("multiple of num_heads 8", "coreset_size 0", "gamma -1.0", "dropout 1.0"):
        assert words in str(error.value)
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="above 0"):
            CoresetAggregator(embedding_size=16, selection_temperature=temperature)
        with pytest.raises(InputError, match="above 0"):
            CoresetAggregator(embedding_size=16).set_temperature(temperature)


def test_features_of_another_size_are_rejected() -> None:
    aggregator = CoresetAggregator(embedding_size=16)
    for call in (aggregator, aggregator.evaluation_picks):
        with pytest.raises(InputError, match="features of 16 values, found 8"):
            call(random_sets([3], D=8))

"""What every aggregator promises, over the whole registry: a new name is tested by being there."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from coreset import AGGREGATORS, FaceSets, SetDescriptor, build_aggregator
from coreset import sets as sets_module
from coreset.quality import quality_module
from runtime.errors import InputError

D = 16
OPTIONS: dict[str, dict[str, object]] = {
    name: {"embedding_size": D}
    for name, kind in AGGREGATORS.items()
    if "embedding_size" in inspect.signature(kind).parameters
}
HAS_PICKS = {
    **{"coreset": 3, "best_norm": 1, "top_k": 3, "fps_mean": 3, "random_k": 3},
    "weighted_coreset": 4,
}
# As its paper has it: the faces gain on the centres that they attend to together with.
COUNTS_COPIES = {"caface"}

# Whatever faces are weighed by, the promises are the same.
QUALITIES = (
    *("coreset/learned", "coreset/none", "coreset/detector", "norm_weighted/none", "media_mean/detector"),
    *("fps_mean/none", "top_k/detector", "best_norm/detector", "weighted_coreset/learned"),
)
# All faces tie for the first pick, which goes to the first face.
TIED_QUALITIES = {"coreset/none", "fps_mean/none"}

every_name = pytest.mark.parametrize("name", [*AGGREGATORS, *QUALITIES])


@pytest.fixture(autouse=True, scope="module")
def _chunks_of_a_few_faces() -> Iterator[None]:
    """So that even the small batches here are worked through in several padded chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets_module, "MAX_CHUNK_POSITIONS", 40)
        patch.setattr(sets_module, "FREE_PADDING", 6)
        yield


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    built = built_by(name)
    if name.endswith("/learned"):
        # At its start it finds all faces equal.
        head = quality_module(built)
        assert head is not None
        nn.init.normal_(head.get_parameter("head.weight"))
    if name != "coreset":
        # What starts at zero would leave most of an aggregator untested.
        for parameter in built.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.3)
    return built.eval()


def built_by(name: str) -> nn.Module:
    name, _, quality = name.partition("/")
    return build_aggregator(name, OPTIONS.get(name, {}) | ({"quality": quality} if quality else {}))


def random_sets(sizes: list[int], seed: int = 0) -> FaceSets:
    generator = torch.Generator().manual_seed(seed)
    N = sum(sizes)
    features = F.normalize(torch.randn(N, D, generator=generator), dim=1)
    norms = 5 + 30 * torch.rand(N, generator=generator)
    scores = torch.rand(N, generator=generator)
    return FaceSets(
        features,
        norms,
        torch.tensor([0, *sizes]).cumsum(0),
        media=torch.arange(N) // 2,
        detector_scores=scores,
    )


def reordered(sets: FaceSets, rows: Tensor) -> FaceSets:
    assert sets.media is not None
    assert sets.detector_scores is not None
    return FaceSets(
        sets.features[rows],
        sets.norms[rows],
        sets.offsets,
        media=sets.media[rows],
        detector_scores=sets.detector_scores[rows],
    )


def assert_same(found: SetDescriptor, wanted: SetDescriptor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found.embedding, wanted.embedding, rtol=0, atol=tolerance)
    torch.testing.assert_close(found.norm, wanted.norm, rtol=tolerance, atol=0)


@every_name
def test_shapes_dtypes_and_unit_rows(name: str) -> None:
    sizes = [1, 2, 9, 1, 30]
    found = build(name)(random_sets(sizes))
    K = HAS_PICKS.get(name.partition("/")[0], 0)
    assert found.embedding.shape == (5, D)
    assert found.embedding.dtype == found.norm.dtype == torch.float32
    assert found.norm.shape == (5,)
    assert found.picks.shape == (5, K)
    assert found.picks.dtype == torch.int64
    torch.testing.assert_close(found.embedding.norm(dim=1), torch.ones(5))
    for T, row in zip(sizes, found.picks.tolist(), strict=True):
        count = min(K, T)
        assert all(0 <= pick < T for pick in row[:count])
        assert row[count:] == [-1] * (K - count)
        assert len(set(row[:count])) == count


@every_name
def test_weights_are_shares_of_each_set(name: str) -> None:
    sets = random_sets([1, 2, 9, 1, 30])
    sets.features.requires_grad_()
    sets.norms.requires_grad_()
    weights = build(name)(sets).weights
    assert weights.shape == (43,)
    assert not weights.requires_grad
    assert (weights >= 0).all()
    torch.testing.assert_close(torch.zeros(5).index_add(0, sets.set_of_face, weights), torch.ones(5))


@every_name
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 1000))
def test_output_is_invariant_to_the_order_of_faces(name: str, sizes: list[int], seed: int) -> None:
    if name in TIED_QUALITIES:
        pytest.skip("ties go to the first face")
    aggregator = build(name)
    sets = random_sets(sizes, seed)
    order = torch.randperm(sets.num_faces, generator=torch.Generator().manual_seed(seed))
    rows = order[sets.set_of_face[order].argsort(stable=True)]
    moved = aggregator(reordered(sets, rows))
    found = aggregator(sets)
    assert_same(moved, found)
    places = rows - sets.offsets[:-1][sets.set_of_face]
    for b, (start, stop) in enumerate(zip(sets.offsets[:-1], sets.offsets[1:], strict=True)):
        valid = found.picks[b] >= 0
        assert torch.equal(places[start:stop][moved.picks[b][valid]], found.picks[b][valid])
    torch.testing.assert_close(moved.weights, found.weights[rows])


@every_name
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=8), st.integers(0, 1000))
def test_output_is_independent_of_other_sets(name: str, sizes: list[int], seed: int) -> None:
    aggregator = build(name)
    sets = random_sets(sizes, seed)
    assert sets.media is not None
    together = aggregator(sets)
    for b in range(len(sizes)):
        rows = slice(int(sets.offsets[b]), int(sets.offsets[b + 1]))
        offsets = torch.tensor([0, sizes[b]])
        assert sets.detector_scores is not None
        scores = sets.detector_scores[rows]
        one = FaceSets(
            sets.features[rows], sets.norms[rows], offsets, media=sets.media[rows], detector_scores=scores
        )
        alone = aggregator(one)
        assert torch.equal(alone.picks[0], together.picks[b])
        torch.testing.assert_close(alone.embedding[0], together.embedding[b], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.norm[0], together.norm[b], rtol=1e-5, atol=0)


@every_name
def test_ragged_equals_dense(name: str) -> None:
    aggregator = build(name)
    ragged = random_sets([6] * 4)
    assert ragged.media is not None
    dense = FaceSets.dense(ragged.features.view(4, 6, D), ragged.norms.view(4, 6), ragged.media.view(4, 6))
    dense = replace(dense, detector_scores=ragged.detector_scores)
    assert_same(aggregator(dense), aggregator(ragged), 0.0)


@every_name
def test_auxiliary_features_are_ignored_by_aggregators_that_read_none(name: str) -> None:
    aggregator, sets = build(name), random_sets([3, 1, 20])
    found = aggregator(replace(sets, auxiliary=torch.randn(24, 5)))
    wanted = aggregator(sets)
    assert torch.equal(found.embedding, wanted.embedding)
    assert torch.equal(found.picks, wanted.picks)


@every_name
@pytest.mark.parametrize("T", [1, 2, 5, 64])
def test_set_of_equal_faces_equals_one_face(name: str, T: int) -> None:
    """Picks stay distinct, and one face or many copies of it have the same direction."""
    aggregator = build(name)
    one = random_sets([1])
    assert one.detector_scores is not None
    copies = FaceSets(
        one.features.expand(T, D),
        one.norms.expand(T),
        torch.tensor([0, T]),
        media=torch.zeros(T).long(),
        detector_scores=one.detector_scores.expand(T),
    )
    found, wanted = aggregator(copies), aggregator(one)
    if name not in COUNTS_COPIES:
        torch.testing.assert_close(found.embedding, wanted.embedding, rtol=0, atol=1e-5)
    picks = [pick for pick in found.picks[0].tolist() if pick >= 0]
    assert picks == list(range(len(picks)))


# The others pick by quality or chance alone, where copies count as faces.
@pytest.mark.parametrize(
    "name",
    ["coreset", "fps_mean", "weighted_coreset", "coreset/none", "coreset/learned", "fps_mean/none"],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_copies_of_a_face_do_not_change_the_picks(
    name: str, threads: int, request: pytest.FixtureRequest
) -> None:
    """While there are other faces to pick, a copy is never preferred to them, and the first copy is meant."""
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(threads)
    aggregator = build(name)
    sets = random_sets([6])
    order = torch.tensor([0, 1, 2, 2, 2, 3, 4, 5, 5, 0])
    copies = FaceSets(sets.features[order], sets.norms[order], torch.tensor([0, 10]))
    assert order[aggregator(copies).picks].tolist() == aggregator(sets).picks.tolist()
    assert all(pick not in (3, 4, 8, 9) for pick in aggregator(copies).picks[0].tolist())


@every_name
@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_the_features_and_are_finite(name: str, training: bool) -> None:
    aggregator = build(name).train(training)
    plain = random_sets([1, 2, 12, 7])
    features, norms = plain.features.requires_grad_(), plain.norms.requires_grad_()
    found = aggregator(replace(plain, features=features, norms=norms))
    ((found.embedding * torch.randn(4, D)).sum() + found.norm.sum()).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert (torch.zeros(4).index_add(0, plain.set_of_face, features.grad.abs().sum(1)) > 0).all()
    for parameter in aggregator.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()
    if training:
        assert all(parameter.grad is not None for parameter in aggregator.parameters())


@every_name
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_autocast_output_is_float32_and_close(name: str, dtype: torch.dtype, training: bool) -> None:
    aggregator = build(name).train(training)
    for module in aggregator.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    sets = random_sets([1, 2, 12, 30])
    torch.manual_seed(4)
    plain = aggregator(sets)
    torch.manual_seed(4)
    with torch.autocast("cpu", dtype=dtype):
        cast = aggregator(sets)
    assert cast.embedding.dtype == cast.norm.dtype == torch.float32
    assert torch.equal(cast.picks, plain.picks)
    assert_same(cast, plain, 0.02)


@every_name
def test_half_precision_features_are_accepted(name: str) -> None:
    sets = random_sets([1, 2, 12])
    half = replace(sets, features=sets.features.half(), norms=sets.norms.half())
    found = build(name)(half)
    assert found.embedding.dtype == torch.float32
    torch.testing.assert_close(found.embedding.norm(dim=1), torch.ones(3))


@every_name
def test_copy_and_loaded_state_dict_agree(name: str) -> None:
    aggregator = build(name)
    sets = random_sets([3, 8])
    wanted = aggregator(sets)
    assert_same(copy.deepcopy(aggregator)(sets), wanted, 0.0)
    torch.manual_seed(9)
    other = built_by(name).eval()
    other.load_state_dict(aggregator.state_dict())
    assert_same(other(sets), wanted, 0.0)


class Rectangle(nn.Module):
    """An aggregator's maths behind plain tensors."""

    def __init__(self, aggregator: nn.Module) -> None:
        super().__init__()
        self.aggregator = aggregator

    def forward(self, features: Tensor, norms: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        vectors, picks, _ = self.aggregator.aggregate_padded(features, norms, mask)
        return vectors, picks


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("masked", [True, False])
def test_trained_aggregators_export(name: str, masked: bool) -> None:
    aggregator = build(name)
    sets = random_sets([20] * 2)
    inputs: tuple[Tensor, ...] = (sets.features.view(2, 20, D), sets.norms.view(2, 20))
    if masked:
        inputs += (torch.arange(20) < torch.tensor([[20], [2]]),)
    exported = torch.export.export(Rectangle(aggregator), inputs).module()
    vectors, picks = exported(*inputs)
    expected, expected_picks, _ = aggregator.aggregate_padded(*inputs)
    assert torch.equal(picks, expected_picks)
    torch.testing.assert_close(vectors, expected)


def test_unknown_name_reports_valid_and_nearest_names() -> None:
    with pytest.raises(InputError) as error:
        build_aggregator("norm-weighted", {})
    assert "Valid are coreset, mean, norm_weighted" in str(error.value)
    assert "Did you mean 'norm_weighted'?" in str(error.value)


def test_invalid_options_are_reported_together() -> None:
    with pytest.raises(InputError) as error:
        build_aggregator("coreset", {"coresetsize": 3, "dropout": "high", "num_heads": 2.0, "learn_gamma": 1})
    message = str(error.value)
    assert "no option 'coresetsize'" in message
    assert "Did you mean 'coreset_size'?" in message
    assert "'dropout': expected float, found 'high'" in message
    assert "'num_heads': expected int, found 2.0" in message
    assert "'learn_gamma': expected bool, found 1" in message
    assert "needs the option 'embedding_size'" in message
    with pytest.raises(InputError, match=r"no option 'gamma'.*none"):
        build_aggregator("mean", {"gamma": 1.0})
    with pytest.raises(InputError, match="expected float, found True"):
        build_aggregator("fps_mean", {"gamma": True})
    with pytest.raises(InputError, match="'exponent': expected finite float, found nan"):
        build_aggregator("learned_map", {"embedding_size": D, "exponent": float("nan")})
    with pytest.raises(InputError, match="no option 1"):
        build_aggregator("coreset", {"embedding_size": D, 1: 2})  # type: ignore[dict-item]
    # A whole number where a float is expected.
    build_aggregator("weighted_coreset", {"embedding_size": D, "gate_start": 0})


def test_options_reach_the_constructor() -> None:
    aggregator = build_aggregator("coreset", {"embedding_size": D, "coreset_size": 5, "gamma": 1})
    assert aggregator.coreset_size == 5
    assert aggregator.gamma.item() == 1.0
    assert aggregator.gamma.dtype == torch.float32
    assert build_aggregator("fps_mean", {"coreset_size": 2}).coreset_size == 2


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("coreset", "weighted_coreset") else pytest.param(name, marks=pytest.mark.slow)
        for name, kind in AGGREGATORS.items()
        if hasattr(kind, "compile_padded")
    ],
)
def test_compiled_aggregator_is_equal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the eager backend: what the compiler's own code generation makes of a graph takes a minute here."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, compiled = build(name), build(name)
    compiled.compile_padded()  # type: ignore[operator]
    for sizes in ([3, 7, 1, 12], [5, 5, 2]):
        sets = random_sets(sizes, seed=len(sizes))
        expected, found = plain(sets), compiled(sets)
        torch.testing.assert_close(found.embedding, expected.embedding)
        assert torch.equal(found.picks, expected.picks)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert_gradients_match(plain, compiled, random_sets([4, 6, 9]))


@pytest.mark.parametrize("name", ["coreset", "weighted_coreset"])
def test_copy_of_a_compiled_aggregator_has_its_own_weights(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A function, as the compiler gives: a bound method would be bound anew by a copy.
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *given: function(*given))
    plain, compiled = build(name), build(name)
    compiled.compile_padded()  # type: ignore[operator]
    sets = random_sets([3, 8])
    copied = copy.deepcopy(compiled)
    for module in (copied, plain):
        for parameter in module.parameters():
            parameter.data.zero_()
    assert_same(copied(sets), plain(sets), 0.0)
    assert not torch.equal(copied(sets).embedding, compiled(sets).embedding)
    copied.compile_padded()
    assert_same(copied(sets), plain(sets), 0.0)


def assert_gradients_match(plain: nn.Module, compiled: nn.Module, sets: FaceSets) -> None:
    for module in (plain, compiled):
        module(sets).embedding[:, 0].sum().backward()
    pairs = zip(plain.named_parameters(), compiled.named_parameters(), strict=True)
    for (name, first), (_, second) in pairs:
        torch.testing.assert_close(second.grad, first.grad, msg=name)


def test_poolings_have_nothing_to_compile() -> None:
    assert {name for name, kind in AGGREGATORS.items() if hasattr(kind, "compile_padded")} == {
        name
        for name in AGGREGATORS
        if any(True for _ in build_aggregator(name, OPTIONS.get(name, {})).parameters())
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("weighted_coreset", {"embedding_size": 512, "num_layers": 1_000_000}),
        ("weighted_coreset", {"embedding_size": 512, "width": 60_000}),
        ("weighted_coreset", {"embedding_size": 10**9}),
        ("coreset", {"embedding_size": 60_000, "num_heads": 8}),
        ("set_transformer", {"embedding_size": 512, "width": 60_000}),
        ("fps_mean", {"coreset_size": 10**12}),
    ],
    ids=str,
)
def test_options_with_too_many_parameters_are_rejected(name: str, options: dict[str, object]) -> None:
    """Options may come from a file; nothing is allocated for these."""
    with pytest.raises(InputError, match=name):
        build_aggregator(name, options)

"""Baselines and WeightedCoreset against reference implementations: one set at a time, face by face.

What all aggregators promise is tested over the registry in test_contract.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from backbones.auxiliary import append_auxiliary
from coreset import AGGREGATORS, FaceSets, build_aggregator
from coreset.base import LearnedAggregator
from runtime.errors import InputError

D = 16
SIZES = [1, 2, 30, 5, 9, 1]
Twin = Callable[[nn.Module, Tensor, Tensor], Tensor]


def build(name: str, **options: object) -> nn.Module:
    """In float64, with every parameter drawn, so that nothing is at its start."""
    torch.manual_seed(0)
    module = build_aggregator(name, {"embedding_size": D} | options).double().eval()
    for parameter in module.parameters():
        if parameter.ndim < 2:
            nn.init.normal_(parameter, 1.0, 0.3)
        else:
            nn.init.normal_(parameter, 0.0, 1.5 / math.sqrt(parameter.shape[-1]))
    return module


def random_sets(sizes: list[int], seed: int = 0, module: nn.Module | None = None) -> FaceSets:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(sum(sizes), D, generator=generator, dtype=torch.float64)
    norms = 5 + 30 * torch.rand(sum(sizes), generator=generator, dtype=torch.float64)
    auxiliary_size = getattr(module, "auxiliary_size", 0)
    own = D - auxiliary_size
    joined = append_auxiliary(F.normalize(features[:, :own], dim=1), features[:, own:])
    return FaceSets.from_rows(joined, norms, torch.tensor([0, *sizes]).cumsum(0), auxiliary_size)


def rows_of(sets: FaceSets) -> Tensor:
    return sets.features if sets.auxiliary is None else append_auxiliary(sets.features, sets.auxiliary)


def with_rows(rows: Tensor, norms: Tensor, offsets: Tensor, module: nn.Module) -> FaceSets:
    return FaceSets.from_rows(rows, norms, offsets, getattr(module, "auxiliary_size", 0))


def reference_nan(module: nn.Module, f: Tensor, r: Tensor) -> Tensor:
    def attend(q: Tensor) -> Tensor:
        e = torch.stack([(q @ face).exp() for face in f])
        return e / e.sum()

    first = sum(a * face for a, face in zip(attend(module.query), f, strict=True))
    second = torch.tanh(module.transfer.weight @ first + module.transfer.bias)
    return scaled(attend(second), f, r)


def reference_context_attention(module: nn.Module, f: Tensor, r: Tensor) -> Tensor:
    mean, variance = f.mean(dim=0), f.var(dim=0, unbiased=False)
    context = module.context(torch.cat([mean * math.sqrt(D), variance * D]))
    e = torch.stack([(context @ face).exp() for face in f])
    return scaled(e / e.sum(), f, r)


def reference_inverse_variance(module: nn.Module, f: Tensor, r: Tensor) -> Tensor:
    inputs = [torch.cat([face * math.sqrt(D), norm.log().view(1)]) for face, norm in zip(f, r, strict=True)]
    variance = torch.stack([module.log_variance(each).exp() for each in inputs])
    total = (1 / variance).sum(dim=0)
    fused = (f / variance).sum(dim=0) / total
    return fused * (((1 / variance) / total).mean(dim=1) @ r)


def reference_proxy_fusion(module: nn.Module, f: Tensor, r: Tensor) -> Tensor:
    x = f * r[:, None]
    cosines = torch.stack(
        [
            torch.stack([F.cosine_similarity(module.transform(a), module.transform(p), dim=0) for a in x])
            for p in module.proxies
        ]
    ).mean(dim=1)
    chosen = cosines.argsort(descending=True)[: module.num_chosen].tolist()
    parts = []
    for p in chosen:
        hidden = torch.cat([x.mean(dim=0), x.var(dim=0, unbiased=False), module.proxies[p]])
        for layer in (*module.experts, module.contexts):
            hidden = F.leaky_relu(hidden @ layer.weight[p] + layer.bias[p])
        parts.append((x @ hidden).softmax(dim=0))
    shares = cosines[chosen].softmax(dim=0) @ torch.stack(parts)
    return scaled(shares, f, r)


def reference_caface(module: nn.Module, f: Tensor, r: Tensor) -> Tensor:
    T, M = len(f), len(module.centres)
    logs = r.log()
    by_norm = r / r.sum()
    rows = []
    for face, log in zip(f, logs, strict=True):
        to_all = torch.stack([face @ other for other in f])
        statistics = torch.stack([to_all.mean(), to_all @ by_norm, log - logs.mean()])
        code = []
        for j in range(64):
            angle = log * 2 * math.pi / 10000 ** (2 * (j // 2) / 64)
            code.append(angle.sin() if j % 2 == 0 else angle.cos())
        style = module.style(torch.cat([face * math.sqrt(D), statistics]))
        rows.append(torch.cat([style, torch.stack(code)]))
    tokens = torch.cat([torch.stack(rows), module.centres])
    for block in module.blocks:
        tokens = reference_block(block, tokens)
    faces = module.face_norm(tokens[:T])
    keys = [module.keys(face) for face in faces]
    queries = [module.queries(module.centre_norm(centre)) for centre in module.centres]
    logits = torch.stack([torch.stack([q @ k / math.sqrt(128) for k in keys]) for q in queries])
    assigned = logits.exp() / logits.exp().sum(dim=0)
    assigned = assigned / assigned.sum(dim=1, keepdim=True)
    mixed = torch.cat([module.centres, assigned @ faces], dim=1)
    for mixer in module.mixers:
        mixed = mixed + mixer.over_tokens(mixer.before_tokens(mixed).T).T
        mixed = torch.stack([row + mixer.over_channels(mixer.before_channels(row)) for row in mixed])
    weights = torch.stack([module.confidence(row) for row in mixed]).softmax(dim=0)
    vector = sum(weights[m] * (assigned[m] @ f) for m in range(M))
    return vector * (weights.mean(dim=1) @ assigned @ r)


def reference_set_transformer(module: nn.Module, f: Tensor, r: Tensor) -> Tensor:
    f, auxiliary = reference_split(module, f)
    size = math.sqrt(f.shape[1])
    inputs = [
        torch.cat([face * size, norm.log().view(1), values])
        for face, norm, values in zip(f, r, auxiliary, strict=True)
    ]
    tokens = torch.stack([module.token(each) for each in inputs])

    def mab(block: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        h = block.after_attention(x + reference_attention(block.attention, x, y))
        return block.after_hidden(h + block.hidden(h))

    for block in module.blocks:
        if hasattr(block, "points"):
            tokens = mab(block.spread, tokens, mab(block.gather, block.points, tokens))
        else:
            tokens = mab(block.block, tokens, tokens)
    keys, values = module.keys(tokens), module.values(tokens)
    size = keys.shape[1] // module.num_heads
    shares, pooled = [], []
    for head in range(module.num_heads):
        part = slice(head * size, (head + 1) * size)
        a = (keys[:, part] @ module.seed[part] / math.sqrt(size)).softmax(dim=0)
        shares.append(a)
        pooled.append(a @ values[:, part])
    share = torch.stack(shares).mean(dim=0)
    vector = share @ f + module.output(module.after_seed(module.seed + torch.cat(pooled)))
    return vector * (share @ r)


def reference_learned_map(module: nn.Module, f: Tensor, r: Tensor) -> Tensor:
    weight = r ** module.exponent()
    mean = (weight[:, None] * f).sum(dim=0) / weight.sum()
    unit = mean / mean.norm()
    return (unit + module.map(unit * math.sqrt(D))) * mean.norm() * (weight @ r) / weight.sum()


def reference_gate(gate: nn.Module, agreement: Tensor, logs: Tensor, inverse: list[float]) -> Tensor:
    """Probabilities (T,); `agreement` (T, 3): with both centres, and the similarity to anchors."""
    curves, hidden = [], []
    for (first, second, similarity), log in zip(agreement, logs, strict=True):
        curve = 20 * gate.steepness * (similarity - gate.middle)
        seen = torch.stack([4 * similarity, 4 * first, 4 * second, log, 2 * curve.sigmoid()])
        curves.append(curve)
        hidden.append(torch.nn.functional.gelu(gate.face(seen)))
    count = sum(inverse)
    whole = sum(share * row for share, row in zip(inverse, hidden, strict=True)) / count
    size = logs.new_tensor([math.log(count)])
    bent = torch.stack([gate.rest(torch.cat([row, whole, size])).squeeze() for row in hidden])
    return (torch.stack(curves) + 4 * bent).sigmoid()


def reference_weighted_coreset(module: nn.Module, f: Tensor, r: Tensor) -> Tensor:
    T = len(f)
    f, auxiliary = reference_split(module, f)
    root = math.sqrt(f.shape[1])
    cosines = f @ f.T
    near = cosines.detach().tolist()

    anchors = reference_farthest(near, r, 16, module.gamma)
    similarity = torch.stack(
        [
            torch.stack([f.new_zeros(()), *(cosines[i, k] for k in anchors if near[i][k] < 0.999)]).max()
            for i in range(T)
        ]
    )
    copies = {k: [i for i in range(T) if near[i][k] >= 0.999] for k in anchors}
    inverse = [min([1.0, *(1 / len(those) for those in copies.values() if i in those)]) for i in range(T)]
    first = sum(inverse[i] * r[i] ** 2 * f[i] for i in range(T))
    first = first / first.norm()
    second = sum(inverse[i] * r[i] ** 2 * (5 * (f[i] @ first)).exp() * f[i] for i in range(T))
    second = second / second.norm()
    agreement = torch.stack([f @ first, f @ second, similarity], dim=1)
    inlier = reference_gate(module.belief, agreement, r.log(), inverse)
    picks = reference_farthest(near, r * inlier, module.coreset_size, module.gamma)
    parts: list[list[int]] = [[] for _ in picks]
    for i in range(T):
        parts[max(range(len(picks)), key=lambda k: near[i][picks[k]])].append(i)
    whole = f.mean(dim=0) / f.mean(dim=0).norm()
    tokens, means, norms = [], [], []
    for pick, part in zip(picks, parts, strict=True):
        seen = [torch.cat([f[i] * root, auxiliary[i], r[i].log().reshape(1), agreement[i]]) for i in part]
        learned = torch.stack([module.quality(row).exp().squeeze() for row in seen])
        w = r[part] ** module.exponent() * learned * inlier[part]
        w = w / w.sum()
        mean = w @ f[part]
        unit = mean / mean.norm()
        logs = r[part].log()
        share = torch.tensor(len(part) / T, dtype=f.dtype)
        values = [share, w @ logs, logs.max(), unit @ whole, mean.norm(), w @ similarity[part]]
        statistics = torch.stack([*values, w @ inlier[part].log().clamp_min(-20) / 4])
        shown = [unit * root, w @ auxiliary[part], f[pick] * root, auxiliary[pick], statistics]
        tokens.append(module.token(torch.cat(shown)))
        means.append(unit)
        norms.append(w @ r[part])
    rows = torch.stack(tokens)
    for layer in module.layers:
        rows = reference_block(layer, rows)
    output = module.output(module.output_norm(rows))
    weights = output[:, 0].softmax(dim=0)
    vector = weights @ (torch.stack(means) + output[:, 1:])
    return vector * (weights @ torch.stack(norms))


def reference_farthest(near: list[list[float]], worth_of: Tensor, count: int, gamma: float) -> list[int]:
    T = len(near)
    picks = [int(worth_of.argmax())]
    while len(picks) < min(count, T):
        worth = [
            -1.0
            if i in picks
            else max(float(worth_of[i].detach()), 1e-6) ** gamma * min((1 - near[i][j]) / 2 for j in picks)
            for i in range(T)
        ]
        picks.append(max(range(T), key=worth.__getitem__))
    return picks


def reference_split(module: nn.Module, f: Tensor) -> tuple[Tensor, Tensor]:
    own = f[:, : D - module.auxiliary_size]
    length = torch.stack([face.square().sum().sqrt() for face in own])[:, None]
    return (own / length if module.auxiliary_size else own), f[:, own.shape[1] :] / length / 0.005


def scaled(shares: Tensor, f: Tensor, r: Tensor) -> Tensor:
    return (shares @ f) * (shares @ r)


def reference_attention(attention: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    queries, keys, values = attention.queries(x), attention.keys(y), attention.values(y)
    size = x.shape[1] // attention.num_heads
    heads = []
    for head in range(attention.num_heads):
        part = slice(head * size, (head + 1) * size)
        logits = queries[:, part] @ keys[:, part].T / math.sqrt(size)
        heads.append(logits.softmax(dim=1) @ values[:, part])
    return attention.output(torch.cat(heads, dim=1))


def reference_block(block: nn.Module, tokens: Tensor) -> Tensor:
    seen = block.before_attention(tokens)
    tokens = tokens + reference_attention(block.attention, seen, seen)
    return tokens + block.hidden(tokens)


REFERENCES: dict[str, tuple[str, dict[str, object], Twin]] = {
    "nan": ("nan", {}, reference_nan),
    "context_attention": ("context_attention", {}, reference_context_attention),
    "inverse_variance": ("inverse_variance", {}, reference_inverse_variance),
    "proxy_fusion": ("proxy_fusion", {}, reference_proxy_fusion),
    "caface": ("caface", {}, reference_caface),
    "set_transformer": ("set_transformer", {"inducing_points": 3}, reference_set_transformer),
    "set_transformer, SAB": ("set_transformer", {"inducing_points": 0}, reference_set_transformer),
    "learned_map": ("learned_map", {}, reference_learned_map),
    "weighted_coreset": ("weighted_coreset", {}, reference_weighted_coreset),
    "set_transformer, auxiliary": ("set_transformer", {"auxiliary_size": 4}, reference_set_transformer),
    "weighted_coreset, auxiliary": ("weighted_coreset", {"auxiliary_size": 4}, reference_weighted_coreset),
}
reference_every = pytest.mark.parametrize("case", REFERENCES)


def test_every_baseline_has_a_reference_implementation() -> None:
    learned = {name for name, kind in AGGREGATORS.items() if issubclass(kind, LearnedAggregator)}
    assert {name for name, _, _ in REFERENCES.values()} == learned


@reference_every
@pytest.mark.parametrize("seed", [0, 1])
def test_output_equals_reference_implementation(case: str, seed: int) -> None:
    name, options, reference = REFERENCES[case]
    module = build(name, **options)
    sets = random_sets(SIZES, seed, module)
    with torch.no_grad():
        found = module(sets)
        for b in range(sets.num_sets):
            rows = slice(int(sets.offsets[b]), int(sets.offsets[b + 1]))
            wanted = reference(module, rows_of(sets)[rows], sets.norms[rows])
            torch.testing.assert_close(found.embedding[b] * found.norm[b], wanted, rtol=1e-6, atol=1e-7)


@reference_every
def test_gradients_equal_reference_implementation(case: str) -> None:
    name, options, reference = REFERENCES[case]
    module = build(name, **options)
    sets = random_sets([7, 2, 12], module=module)
    direction = torch.randn(D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    features = rows_of(sets).clone().requires_grad_()
    found = module(with_rows(features, sets.norms, sets.offsets, module))
    direction = direction[: found.embedding.shape[1]]
    ((found.embedding * found.norm[:, None]) @ direction).sum().backward()
    ours = {key: p.grad for key, p in module.named_parameters()}
    module.zero_grad()
    inputs = rows_of(sets).clone().requires_grad_()
    for a, b in zip(sets.offsets[:-1], sets.offsets[1:], strict=True):
        (reference(module, inputs[a:b], sets.norms[a:b]) @ direction).backward()
    torch.testing.assert_close(features.grad, inputs.grad, rtol=1e-6, atol=1e-7)
    for key, parameter in module.named_parameters():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(ours[key], wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["weighted_coreset", "set_transformer"])
def test_descriptors_have_no_auxiliary_features_but_depend_on_them(name: str) -> None:
    module = build(name, auxiliary_size=4)
    sets = random_sets([3, 1], module=module)
    for training in (True, False):
        torch.manual_seed(0)
        found = module.train(training)(sets)
        assert found.embedding.shape == (2, D - 4)
    assert sets.auxiliary is not None
    other = module(replace(sets, auxiliary=sets.auxiliary + 1))
    assert not torch.allclose(other.embedding, found.embedding)
    for wrong in (None, sets.auxiliary[:, :3]):
        with pytest.raises(InputError, match=r"12 .*\b4\b"):
            module(replace(sets, auxiliary=wrong))


@reference_every
def test_padding_values_do_not_matter(case: str) -> None:
    name, options, _ = REFERENCES[case]
    module = build(name, **options)
    sets = random_sets([9] * 3)
    features, norms = sets.features.view(3, 9, D).clone(), sets.norms.view(3, 9).clone()
    mask = torch.arange(9) < torch.tensor([[9], [4], [1]])
    features[~mask], norms[~mask] = torch.nan, torch.nan
    vectors, picks, shares = module.aggregate_padded(features, norms, mask)
    ragged = with_rows(features[mask], norms[mask], torch.tensor([0, 9, 13, 14]), module)
    wanted = module(ragged)
    torch.testing.assert_close(vectors, wanted.embedding * wanted.norm[:, None])
    assert torch.equal(picks, wanted.picks)
    torch.testing.assert_close(shares[mask].float(), wanted.weights)
    assert not shares[~mask].any()


@reference_every
@pytest.mark.parametrize("norm", [0.0, 1e-30, 1e6])
def test_norms_of_any_size_stay_finite(case: str, norm: float) -> None:
    name, options, _ = REFERENCES[case]
    module = build(name, **options).float().train()
    sets = random_sets([1, 6])
    norms = sets.norms.float().clone()
    norms[:4] = norm
    features = sets.features.float().requires_grad_()
    found = module(with_rows(features, norms.requires_grad_(), sets.offsets, module))
    assert found.embedding.isfinite().all()
    found.embedding.sum().backward()
    assert features.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_zero_initialised_aggregators_start_as_poolings() -> None:
    sets = random_sets([1, 4, 20])
    mean = build_aggregator("mean", {})(sets).embedding
    weighted = build_aggregator("norm_weighted", {})(sets).embedding
    for name, wanted in (("nan", mean), ("learned_map", weighted)):
        found = build_aggregator(name, {"embedding_size": D}).double().eval()(sets)
        torch.testing.assert_close(found.embedding, wanted)


def test_copies_of_picks_belong_to_the_first_one() -> None:
    """Copies of picks go to the first of them: no pick stands for nothing."""
    module = build("weighted_coreset")
    sets = random_sets([3])
    rows = torch.tensor([0, 1, 1, 2, 2, 2])
    copies = FaceSets(sets.features[rows], sets.norms[rows], torch.tensor([0, 6]))
    found = module(copies)
    assert sorted(rows[found.picks[0, :3]].tolist()) == [0, 1, 2]
    once = module(sets)
    assert found.weights[[0, 1, 3]].gt(0).all()
    assert once.picks[0, 3] == -1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nan", {"embedding_size": 0}, "embedding_size 0 must be at least 1"),
        ("context_attention", {"hidden_size": 0}, "context_attention: hidden_size 0 must be at least 1"),
        ("caface", {"num_centres": 0}, "num_centres 0"),
        ("proxy_fusion", {"num_chosen": 12}, "num_chosen 12 of num_proxies 11"),
        ("proxy_fusion", {"dropout": 1.0}, "dropout 1.0 must be"),
        ("set_transformer", {"inducing_points": -1}, "inducing_points -1"),
        ("set_transformer", {"num_heads": 3}, "width 128 must be a positive multiple of num_heads 3"),
        ("weighted_coreset", {"auxiliary_size": 16}, "auxiliary_size 16 must be in 0..15"),
        ("weighted_coreset", {"gamma": -1.0}, "gamma -1.0 must be in 0..8"),
        ("weighted_coreset", {"coreset_size": 0}, "coreset_size 0"),
    ],
)
def test_options_out_of_range_are_rejected(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_aggregator(name, {"embedding_size": D} | options)


def test_features_of_another_size_are_rejected() -> None:
    with pytest.raises(InputError, match="features of 8 values, found 16"):
        build_aggregator("nan", {"embedding_size": 8})(random_sets([2]))


def products_of(name: str, options: dict[str, object], num_faces: int) -> int:
    """Multiplications in products of matrices for one set, attention spelled out."""
    module = build_aggregator(name, {"embedding_size": D} | options).eval().requires_grad_(False)
    sets = random_sets([num_faces])
    single = with_rows(sets.features.float(), sets.norms.float(), sets.offsets, module)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(single)
    return int(counter.get_total_flops())


@reference_every
def test_cost_is_linear_except_where_the_paper_is_quadratic(case: str) -> None:
    """Counted and not timed: four times the faces cost at most four times the products."""
    name, options, _ = REFERENCES[case]
    quadratic = case in ("caface", "set_transformer, SAB")
    ratio = products_of(name, options, 800) / products_of(name, options, 200)
    assert (ratio > 4.5) == quadratic


def test_gated_picks_depend_neither_on_batch_nor_order() -> None:
    module = build("weighted_coreset")
    sets = random_sets(SIZES)
    together = module(sets).picks
    for b in range(sets.num_sets):
        rows = torch.arange(int(sets.offsets[b]), int(sets.offsets[b + 1]))
        order = torch.randperm(len(rows))
        alone = FaceSets(sets.features[rows[order]], sets.norms[rows[order]], torch.tensor([0, len(rows)]))
        picks = module(alone).picks[0]
        assert torch.equal(order[picks[picks >= 0]], together[b][together[b] >= 0])


def faces_like(person: Tensor, count: int) -> Tensor:
    return torch.nn.functional.normalize(person + 0.2 * torch.randn(count, D, dtype=torch.float64), dim=1)


def picked(faces: list[Tensor], norms: list[float], *, gated: bool = True) -> list[int]:
    """Three picks of an untrained aggregator, with or without the gate."""
    options = {"embedding_size": D, "coreset_size": 3}
    module = build_aggregator("weighted_coreset", options).double().eval()
    if not gated:
        torch.nn.init.zeros_(module.get_parameter("belief.steepness"))
    sets = FaceSets(torch.cat(faces), torch.tensor(norms, dtype=torch.float64), torch.tensor([0, len(norms)]))
    return module(sets).picks[0].tolist()


def test_gate_rejects_an_impostor_face() -> None:
    torch.manual_seed(0)
    person, impostor = torch.eye(2, D, dtype=torch.float64)
    # The sharpest face of all is somebody else's.
    faces, norms = [faces_like(person, 9), impostor[None]], [10.0] * 9 + [12.0]
    assert 9 in picked(faces, norms, gated=False)
    assert 9 not in picked(faces, norms)
    # Nor does it help to show the same picture again and again.
    faces, norms = [faces[0], impostor.expand(30, D)], norms[:9] + [12.0] * 30
    assert not set(range(9, 39)) & set(picked(faces, norms))


def test_gate_accepts_another_medium() -> None:
    torch.manual_seed(1)
    one, other = torch.eye(2, D, dtype=torch.float64)
    faces = [faces_like(one, 9), faces_like(other, 4)]
    assert set(picked(faces, [10.0] * 13)) & {9, 10, 11, 12}


def test_gate_is_learned() -> None:
    module = build("weighted_coreset").train()
    module(random_sets(SIZES)).embedding.sum().backward()
    for name, parameter in module.named_parameters():
        if name.startswith("belief."):
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0, name


def test_copies_of_an_anchor_count_once() -> None:
    """Also in what is read of the whole set, its size and its centres."""
    module = build("weighted_coreset")
    found: list[Tensor] = []
    module.get_submodule("belief").register_forward_hook(lambda *call: found.append(call[-1][0]))
    sets = random_sets([9])
    again = FaceSets(
        torch.cat([sets.features, sets.features[:1].expand(200, D)]),
        torch.cat([sets.norms, sets.norms[:1].expand(200)]),
        torch.tensor([0, 209]),
    )
    module(sets)
    module(again)
    assert torch.allclose(found[0], found[1][:9], atol=1e-9)
    reference = reference_weighted_coreset(module, again.features, again.norms)
    described = module(again)
    assert torch.allclose(described.embedding[0] * described.norm[0], reference, atol=1e-9)

"""What faces are weighed by; the promises that hold for every kind are in test_contract."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from coreset import AGGREGATORS, FaceSets, build_aggregator, requires_training
from coreset.catalogue import QUALITIES
from coreset.quality import quality_module, quality_of
from runtime.errors import InputError

D = 16
WITH_QUALITY = ("coreset", "norm_weighted", "media_mean", "best_norm", "top_k", "fps_mean")


def some_sets(scores: bool = True) -> FaceSets:
    generator = torch.Generator().manual_seed(1)
    features = F.normalize(torch.randn(12, D, generator=generator), dim=1)
    norms = 5 + 30 * torch.rand(12, generator=generator)
    detector = torch.rand(12, generator=generator) if scores else None
    return FaceSets(
        features, norms, torch.tensor([0, 5, 12]), media=torch.arange(12), detector_scores=detector
    )


def build(name: str, quality: str) -> torch.nn.Module:
    torch.manual_seed(0)
    options: dict[str, object] = {"embedding_size": D} if name == "coreset" else {}
    return build_aggregator(name, options | {"quality": quality}).eval()


@pytest.mark.parametrize("name", WITH_QUALITY)
def test_norm_is_the_default_quality(name: str) -> None:
    torch.manual_seed(0)
    plain = build_aggregator(name, {"embedding_size": D} if name == "coreset" else {}).eval()
    assert quality_of(plain) == "norm"
    assert plain.state_dict().keys() == build(name, "norm").state_dict().keys()
    assert not any("quality" in key for key in plain.state_dict())
    found, wanted = build(name, "norm")(some_sets()), plain(some_sets(scores=False))
    assert torch.equal(found.embedding, wanted.embedding)
    assert torch.equal(found.norm, wanted.norm)


@pytest.mark.parametrize("name", WITH_QUALITY)
def test_detector_scores_replace_norms(name: str) -> None:
    sets = some_sets()
    assert sets.detector_scores is not None
    found = build(name, "detector")(sets)
    wanted = build(name, "norm")(replace(sets, norms=20 * sets.detector_scores))
    assert torch.equal(found.embedding, wanted.embedding)
    assert torch.equal(found.picks, wanted.picks)
    with pytest.raises(InputError, match=rf"{name}: quality 'detector' needs a detector score"):
        build(name, "detector")(some_sets(scores=False))


@pytest.mark.parametrize("quality", ["learned", "none", "detector"])
@pytest.mark.parametrize("name", [name for name in AGGREGATORS if requires_training(name)])
def test_trained_aggregators_accept_every_quality(name: str, quality: str) -> None:
    options = {"embedding_size": D, "quality": quality}
    torch.manual_seed(0)
    aggregator = build_aggregator(name, options)
    assert quality_of(aggregator.eval()) == quality
    aggregator.train()
    sets = some_sets()
    module = quality_module(aggregator)
    assert module is not None
    found = aggregator(sets)
    # Learned and none begin with the same quality for all, whatever the norms are.
    other = aggregator.eval()(replace(sets, norms=sets.norms.flip(0)))
    torch.testing.assert_close(aggregator(sets).norm, other.norm)
    plain = build_aggregator(name, {"embedding_size": D}).eval()
    plain.load_state_dict({k: v for k, v in aggregator.state_dict().items() if "head" not in k}, strict=False)
    wanted = plain(replace(sets, norms=module.replace_norms(sets).norms))
    torch.testing.assert_close(other.embedding, wanted.embedding)
    if quality == "learned":
        loss = found.norm.sum() + found.embedding[:, 0].sum()
        loss.backward()
        assert module.get_parameter("head.bias").grad is not None


@pytest.mark.parametrize("name", ["norm_weighted", "media_mean"])
def test_quality_none_weights_faces_equally(name: str) -> None:
    found = build(name, "none")(some_sets())
    wanted = build_aggregator("mean", {})(some_sets())
    torch.testing.assert_close(found.embedding, wanted.embedding)


def test_quality_none_ignores_norms_in_the_selection() -> None:
    sets = some_sets()
    aggregator = build("coreset", "none")
    found, other = aggregator(sets), aggregator(replace(sets, norms=sets.norms.flip(0)))
    assert torch.equal(found.embedding, other.embedding)
    assert torch.equal(found.picks, other.picks)
    assert not torch.equal(found.picks, build("coreset", "norm")(sets).picks)


def test_learned_quality_can_be_trained() -> None:
    """Faces along one direction are wrong; the head finds out, since only it can tell them apart."""
    aggregator = build("coreset", "learned").train()
    assert quality_of(aggregator) == "learned"
    head = aggregator.get_parameter("quality.head.weight")
    bias = aggregator.get_parameter("quality.head.bias")
    bad = F.one_hot(torch.tensor(0), D).float()
    optimiser = torch.optim.Adam([head, bias], lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        person = F.normalize(torch.randn(8, 1, D, generator=generator) * (1 - bad), dim=2)
        is_bad = torch.rand(8, 6, 1, generator=generator) < 0.5
        faces = torch.where(is_bad, bad, person + 0.1 * torch.randn(8, 6, D, generator=generator))
        quality = aggregator.quality(F.normalize(faces, dim=2), torch.ones(8, 6))
        mean = F.normalize((quality.unsqueeze(2) * F.normalize(faces, dim=2)).sum(1), dim=1)
        loss = -(mean * person.squeeze(1)).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    quality = aggregator.quality(torch.stack([bad, person[0, 0]]), torch.ones(2))
    assert quality[0] < quality[1] / 2
    assert 0 < quality[0] < quality[1] < 40


def test_learned_quality_starts_constant_and_is_saved() -> None:
    fresh = build("coreset", "learned")
    assert torch.equal(fresh.quality(torch.eye(D), torch.rand(D)), torch.full((D,), 20.0))
    with torch.no_grad():
        fresh.get_parameter("quality.head.weight").normal_()
    other = build("coreset", "learned")
    other.load_state_dict(fresh.state_dict())
    assert torch.equal(other(some_sets()).embedding, fresh(some_sets()).embedding)


def test_padded_output_equals_forward() -> None:
    aggregator = build("coreset", "learned")
    with torch.no_grad():
        aggregator.get_parameter("quality.head.weight").normal_()
    sets = some_sets()
    dense = FaceSets.dense(sets.features.view(2, 6, D), sets.norms.view(2, 6))
    vectors, picks, _ = aggregator.aggregate_padded(sets.features.view(2, 6, D), sets.norms.view(2, 6))
    assert torch.equal(picks, aggregator(dense).picks)
    torch.testing.assert_close(F.normalize(vectors, dim=1), aggregator(dense).embedding)


def test_invalid_qualities_are_rejected() -> None:
    with pytest.raises(InputError, match="quality 'best' must be one of norm, detector, learned, none"):
        build("norm_weighted", "best")
    for name in set(WITH_QUALITY) - {"coreset"}:
        with pytest.raises(InputError, match="'learned' has to be trained"):
            build(name, "learned")
    for name in ("best_norm", "top_k"):
        with pytest.raises(InputError, match="by quality"):
            build(name, "none")
    assert set(WITH_QUALITY) <= set(AGGREGATORS)
    assert QUALITIES == ("norm", "detector", "learned", "none")


def test_detector_scores_are_validated() -> None:
    sets = some_sets()
    assert sets.to("cpu").detector_scores is not None
    with pytest.raises(InputError, match=r"detector_scores: expected \(12,\) floating, found \(3,\)"):
        replace(sets, detector_scores=torch.rand(3))
    with pytest.raises(InputError, match=r"found \(12,\) int64"):
        replace(sets, detector_scores=torch.ones(12, dtype=torch.int64))

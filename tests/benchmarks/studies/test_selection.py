"""benchmarks/studies/selection.py: each variant differs from the published form in what its name says."""

from __future__ import annotations

import pytest
import torch

from benchmarks.studies.selection import VARIANTS, CoresetVariant, EqualisedSampling
from coreset import FaceSets, build_aggregator
from coreset.aggregator import CoresetAggregator
from coreset.selection import Sampling, select_faces
from runtime.errors import InputError

D = 16


@pytest.fixture
def sets() -> FaceSets:
    generator = torch.Generator().manual_seed(3)
    features = torch.nn.functional.normalize(torch.randn(13, D, generator=generator), dim=1)
    norms = torch.rand(13, generator=generator) * 10 + 5
    return FaceSets(features, norms, torch.tensor([0, 1, 7, 13]))


def variant(**options: object) -> CoresetVariant:
    torch.manual_seed(0)
    return CoresetVariant(embedding_size=D, **options).eval()  # type: ignore[arg-type]


def test_without_a_difference_it_is_the_package_s(sets: FaceSets) -> None:
    torch.manual_seed(0)
    ours = CoresetAggregator(embedding_size=D).eval()
    torch.testing.assert_close(variant()(sets).embedding, ours(sets).embedding)


def test_top_and_random_choices_fill_what_there_is(sets: FaceSets) -> None:
    top = variant(choice="largest_norm")(sets).picks
    for number in range(3):
        first, last = sets.offsets[number : number + 2].tolist()
        best = sets.norms[first:last].argsort(descending=True)[:3].tolist()
        assert top[number, : len(best)].tolist() == best
    assert top[0].tolist() == [0, -1, -1]
    assert torch.equal(variant(choice="largest_norm").evaluation_picks(sets), top)
    by_chance = variant(choice="random")
    assert torch.equal(by_chance(sets).picks, by_chance(sets).picks)
    assert not torch.equal(by_chance(sets).picks, top)
    with pytest.raises(InputError, match="choice 'best': expected farthest, largest_norm, random"):
        variant(choice="best")


def test_without_attention_it_is_the_mean_of_the_picks(sets: FaceSets) -> None:
    found = variant(attends=False)(sets)
    expected = build_aggregator("fps_mean", {"coreset_size": 3, "gamma": 0.01})(sets)
    assert torch.equal(found.picks, expected.picks)
    torch.testing.assert_close(found.embedding, expected.embedding)


def test_the_smooth_code_is_smooth() -> None:
    """Neighbouring norms get neighbouring codes; the sinusoid's first pair wraps every 1.0 of norm."""
    norms = torch.tensor([20.0, 20.5])
    smooth, published = variant(smooth_code=True)._norm_code(norms), variant()._norm_code(norms)
    assert (smooth[0] - smooth[1]).abs().max() < 0.2
    assert (published[0] - published[1]).abs().max() > 1


def test_equal_scores_mean_the_same_at_every_pick() -> None:
    """Without them the first pick at temperature 1 is all but an argmax, and the later ones chance."""
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(400, 8, D), dim=2)
    norms = torch.rand(400, 8) * 20 + 10
    best = norms.argmax(dim=1)

    def share_of_best(equal: bool) -> float:
        sampling = (EqualisedSampling if equal else Sampling)(1.0)
        picks = select_faces(features, norms, coreset_size=1, gamma=1.0, sampling=sampling).picks[:, 0]
        return float((picks == best).float().mean())

    assert share_of_best(False) > 0.5
    assert 0.2 < share_of_best(True) < 0.5
    # A template of equal faces has nothing to equalise, and stays finite.
    same = torch.ones(1, 4, requires_grad=True)
    sampling = EqualisedSampling(1.0)
    core = select_faces(features[:1, :4], same, coreset_size=2, gamma=1.0, sampling=sampling).core
    core.sum().backward()
    assert same.grad is not None
    assert same.grad.isfinite().all()


def test_every_variant_can_be_built() -> None:
    for baseline in VARIANTS.values():
        if baseline.aggregator == "coreset_variant":
            variant(**baseline.options)
        else:
            build_aggregator(baseline.aggregator, {"embedding_size": D} | baseline.options)

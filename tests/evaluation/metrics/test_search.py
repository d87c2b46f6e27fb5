"""1:N search in blocks, against similarities that are all there, in float64."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.metrics import search as search_module
from evaluation.metrics.search import (
    exact_products,
    published_helper_rates,
    rounding_of_products,
    search,
    search_similarity,
)
from runtime.errors import InputError


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def exact_similarity(probes: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    rows, columns = np.indices((len(probes), len(gallery))).reshape(2, -1)
    return exact_products(probes, gallery, rows, columns).reshape(len(probes), len(gallery))


@st.composite
def descriptors(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Probes and gallery of a few subjects, in float32 or float64: copies give ties, and rows that differ
    by less than float32 can tell give an order that only float64 knows.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    P, G, D = draw(st.integers(1, 40)), draw(st.integers(1, 20)), draw(st.sampled_from([2, 8, 33]))
    centres = unit(rng.normal(size=(4, D)))
    gallery_subjects, probe_subjects = rng.integers(0, 9, G), rng.integers(0, 9, P)
    spread = draw(st.sampled_from([0.0, 1e-5, 1e-4, 0.3]))
    gallery = unit(centres[gallery_subjects % 4] + spread * rng.normal(size=(G, D)))
    probes = unit(centres[probe_subjects % 4] + spread * rng.normal(size=(P, D)))
    kind = draw(st.sampled_from([np.float32, np.float64]))
    return probes.astype(kind), gallery.astype(kind), probe_subjects, gallery_subjects


@settings(max_examples=150, deadline=None)
@given(descriptors(), st.sampled_from([1, 7, 512]))
def test_blocks_in_float32_answer_as_float64_does(
    case: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], block: int
) -> None:
    probes, gallery, *subjects = case
    expected = search_similarity(exact_similarity(probes, gallery), *subjects)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "_BLOCK_PROBES", block)
        found = search(probes, gallery, *subjects)
    assert found.rank.tolist() == expected.rank.tolist()
    assert found.own.tolist() == expected.own.tolist()
    assert found.other.tolist() == expected.other.tolist()
    assert found.is_mated.tolist() == np.isin(subjects[0], subjects[1]).tolist()


@settings(max_examples=40, deadline=None)
@given(descriptors())
def test_of_two_people_the_best_score_counts(
    case: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    probes, gallery, *subjects = case
    both = [np.stack([rows, rows[::-1]], axis=1) for rows in (probes, gallery)]
    best = np.array(
        [[(probe.astype(float) @ entry.T.astype(float)).max() for entry in both[1]] for probe in both[0]]
    )
    found, expected = search(*both, *subjects), search_similarity(best, *subjects)
    assert found.is_mated.tolist() == expected.is_mated.tolist()
    np.testing.assert_allclose(found.own, expected.own, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.other, expected.other, rtol=0, atol=1e-12)


def test_a_lead_that_float32_cannot_see_decides() -> None:
    # Both entries have the same float32 score; the stranger's is larger by 1e-12.
    probe = np.array([[1.0, 0.0]])
    gallery = np.array([[0.6, 0.8], [0.6 + 1e-12, 0.8]])
    assert search(probe, gallery, np.array([0]), np.array([0, 1])).rank.tolist() == [2]
    assert search(probe, gallery, np.array([1]), np.array([0, 1])).rank.tolist() == [1]


def test_the_bound_on_rounding_holds_and_is_small() -> None:
    rng = np.random.default_rng(0)
    left, right = unit(rng.normal(size=(200, 512))), unit(rng.normal(size=(300, 512)))
    rounded = left.astype(np.float32) @ right.astype(np.float32).T
    wrong = np.abs(rounded - left @ right.T).max()
    assert wrong < rounding_of_products(left, right) < 1e-4


def test_the_order_of_probes_and_entries_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    probes, gallery = unit(rng.normal(size=(30, 8))), unit(rng.normal(size=(12, 8)))
    probe_subjects, gallery_subjects = rng.integers(0, 9, 30), rng.integers(0, 9, 12)
    turned, moved = rng.permutation(30), rng.permutation(12)
    straight = search(probes, gallery, probe_subjects, gallery_subjects)
    shuffled = search(probes[turned], gallery[moved], probe_subjects[turned], gallery_subjects[moved])
    assert shuffled.rank.tolist() == straight.rank[turned].tolist()
    assert shuffled.other.tolist() == straight.other[turned].tolist()


def published_helper(
    similarity: np.ndarray, probes: np.ndarray, gallery: np.ndarray, ranks: list[int], fars: list[float]
) -> tuple[list[float], list[float]]:
    """The published helper, re-created: joined galleries, all impostor scores in one heap."""
    mates = [next(i for i, subject in enumerate(gallery) if subject == wanted) for wanted in probes]
    top = np.argsort(-similarity, axis=1)
    hits = [float(np.mean([m in row[:rank] for m, row in zip(mates, top, strict=True)])) for rank in ranks]
    own = similarity[np.arange(len(probes)), mates]
    rest = similarity.copy()
    rest[np.arange(len(probes)), mates] = -2.0
    places = [math.ceil(len(probes) * far) for far in fars]
    falling = heapq.nlargest(max(places), rest[rest > -2.0])
    return hits, [float(np.sum(own > falling[place - 1]) / len(probes)) for place in places]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block", [3, 512])
@pytest.mark.parametrize("spread", [0.0, 1e-5, 0.5])
def test_the_published_helpers_rule_is_its_own(
    seed: int, block: int, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "_BLOCK_PROBES", block)
    rng = np.random.default_rng(seed)
    gallery_subjects, probe_subjects = rng.permutation(15), rng.integers(0, 15, 60)
    # Without spread a stranger looks like the mate: scores at the threshold are equal, and not accepted.
    centres = rng.normal(size=(5, 6))
    gallery = unit(centres[gallery_subjects % 5] + spread * rng.normal(size=(15, 6)))
    probes = unit(centres[probe_subjects % 5] + spread * rng.normal(size=(60, 6)))
    ranks, fars = [1, 5, 10], [0.01, 0.1, 0.5]
    rates = published_helper_rates(probes, gallery, probe_subjects, gallery_subjects, ranks=ranks, fars=fars)
    similarity = exact_similarity(probes, gallery)
    rank_rates, accepted = published_helper(similarity, probe_subjects, gallery_subjects, ranks, fars)
    assert rates.accepted_at == dict(zip(["0.01", "0.1", "0.5"], accepted, strict=True))
    if spread:
        # Where scores are equal the helper takes any order, we the one against us.
        assert rates.rank_rates == dict(zip(["1", "5", "10"], rank_rates, strict=True))


def test_the_published_helper_needs_every_probe_mated_once() -> None:
    rows = np.eye(3)
    for gallery_subjects in (np.array([0, 1, 3]), np.array([2, 1, 1])):
        with pytest.raises(InputError, match="exactly once"):
            published_helper_rates(rows, rows, np.array([0, 1, 2]), gallery_subjects, ranks=[1], fars=[0.5])
    with pytest.raises(InputError, match="impostor scores"):
        published_helper_rates(rows, rows, np.arange(3), np.arange(3), ranks=[1], fars=[0.0])


@pytest.mark.parametrize(
    ("probes", "gallery", "said"),
    [
        (np.eye(3), np.eye(2, 4), "3 values a row"),
        (np.eye(3), np.empty((0, 3)), "gallery: descriptors"),
        (np.full((3, 3), np.nan), np.eye(3), "probes: descriptor 0 is not finite"),
    ],
)
def test_descriptors_that_cannot_be_compared_are_refused(
    probes: np.ndarray, gallery: np.ndarray, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        search(probes, gallery, np.arange(len(probes)), np.arange(len(gallery)))

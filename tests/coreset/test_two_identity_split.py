"""Two-identity split: which sets are split, and which faces each descriptor is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coreset import FaceSets, build_aggregator
from coreset import sets as sets_module
from coreset.two_identity_split import TwoIdentitySplit, in_second_cluster

D = 16


def subject_sets(parts: list[list[tuple[int, int, float]]], seed: int = 0, spread: float = 0.1) -> FaceSets:
    """Each set is a list of (subject, faces, largest norm); subjects are unit axes, faces are noisy
    copies."""
    generator = torch.Generator().manual_seed(seed)
    features, norms, sizes = [], [], []
    for each in parts:
        sizes.append(sum(count for _, count, _ in each))
        for subject, count, largest in each:
            faces = torch.eye(D)[subject] + spread * torch.randn(count, D, generator=generator)
            features.append(F.normalize(faces, dim=1))
            norms.append(largest * (0.7 + 0.3 * torch.rand(count, generator=generator)))
    N = sum(sizes)
    scores = torch.rand(N, generator=generator)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    return FaceSets(
        torch.cat(features), torch.cat(norms), offsets, media=torch.arange(N) // 2, detector_scores=scores
    )


SETS = [
    [(0, 3, 20.0), (1, 1, 18.0)],
    [(2, 5, 20.0)],
    [(3, 1, 20.0)],
    [(4, 1, 15.0), (5, 30, 20.0)],
    # Not split: the second part is of too low quality.
    [(6, 2, 20.0), (7, 4, 5.0)],
]


def faces_of(sets: FaceSets, number: int, subject: int | None = None) -> FaceSets:
    """One set alone, or its faces of one subject."""
    place = slice(int(sets.offsets[number]), int(sets.offsets[number + 1]))
    kept = torch.zeros(sets.num_faces, dtype=torch.bool)
    kept[place] = True if subject is None else sets.features[place, subject] > 0.5
    return sets.subset(kept)


@pytest.mark.parametrize(
    "name", ["mean", "media_mean", "norm_weighted/detector", "weighted_coreset", "coreset"]
)
def test_two_identities_get_separate_descriptors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets_module, "MAX_CHUNK_POSITIONS", 40)
    torch.manual_seed(0)
    name, _, quality = name.partition("/")
    options = {"embedding_size": D} if "coreset" in name else {"quality": quality} if quality else {}
    aggregator = build_aggregator(name, options).eval()
    sets = subject_sets(SETS)
    found = TwoIdentitySplit(aggregator)(sets)
    plain = aggregator(sets)
    assert found.embedding.shape == (5, 2, D)
    for field in ("norm", "picks", "weights"):
        torch.testing.assert_close(getattr(found, field), getattr(plain, field))
    for number, subjects in ((0, (0, 1)), (3, (5, 4))):
        for place, subject in enumerate(subjects):
            wanted = aggregator(faces_of(sets, number, subject)).embedding[0]
            torch.testing.assert_close(found.embedding[number, place], wanted, rtol=0, atol=1e-5)
    for number in (1, 2, 4):
        for place in (0, 1):
            assert torch.equal(found.embedding[number, place], plain.embedding[number])


def test_split_requires_a_cosine_below_the_limit() -> None:
    angle = 1.2  # A cosine of 0.36.
    pair = torch.stack([torch.eye(D)[0], np.cos(angle) * torch.eye(D)[0] + np.sin(angle) * torch.eye(D)[1]])
    sets = FaceSets.dense(pair.unsqueeze(0), torch.full((1, 2), 20.0))
    for limit, apart in ((-1.0, False), (0.36, False), (0.37, True)):
        found = TwoIdentitySplit(build_aggregator("mean", {}), limit)(sets).embedding[0]
        assert torch.equal(found[0], found[1]) is not apart


def test_incoherent_and_zero_norm_parts_are_not_split() -> None:
    aggregator = build_aggregator("mean", {})
    one = subject_sets([[(0, 6, 20.0)]], spread=0.02)
    # Eight faces with something in common, and something of their own.
    for own, apart in ((0.5, True), (1.0, False)):
        others = F.normalize(torch.eye(D)[1] + own * torch.eye(D)[2:10], dim=1)
        norms = torch.cat([one.norms, torch.full((8,), 19.0)])
        sets = FaceSets(torch.cat([one.features, others]), norms, torch.tensor([0, 14]))
        assert in_second_cluster(sets).tolist() == [False] * 6 + [True] * 8
        found = TwoIdentitySplit(aggregator)(sets).embedding[0]
        assert torch.equal(found[0], found[1]) is not apart
    pair = FaceSets.dense(torch.eye(D)[:2].unsqueeze(0), torch.zeros(1, 2))
    found = TwoIdentitySplit(aggregator)(pair).embedding
    assert torch.equal(found[0, 0], found[0, 1])


def test_split_is_invariant_to_order_and_copies() -> None:
    sets = subject_sets(SETS[:1] + SETS[3:4], seed=3, spread=0.3)
    found = in_second_cluster(sets)
    order = torch.tensor([2, 0, 3, 1, *range(sets.num_faces - 1, 3, -1)])
    moved = FaceSets(sets.features[order], sets.norms[order], sets.offsets)
    assert torch.equal(in_second_cluster(moved), found[order])
    copies = torch.full((7, D), D**-0.5)
    same = FaceSets(copies, torch.full((7,), 9.0), torch.tensor([0, 7]))
    described = TwoIdentitySplit(build_aggregator("mean", {}))(same).embedding[0]
    torch.testing.assert_close(described, copies[:2])


def slow_parts(features: Tensor, norms: Tensor) -> list[bool]:
    """The same in float64, a face after the other."""
    faces, weights = features.double().numpy(), norms.double().numpy()
    first = int(weights.argmax())
    second = int((weights * (1 - faces @ faces[first]) / 2).argmax())
    centres = [faces[first], faces[second]]
    for _ in range(3):
        is_second = [bool(face @ centres[1] > face @ centres[0]) for face in faces]
        sums = [
            sum(
                (w**2 * face for face, w, s in zip(faces, weights, is_second, strict=True) if s is part),
                0.0 * faces[0],
            )
            for part in (False, True)
        ]
        centres = [total / (np.linalg.norm(total) or 1) for total in sums]
    return is_second


def test_parts_equal_reference_implementation() -> None:
    generator = torch.Generator().manual_seed(5)
    sizes = torch.randint(1, 25, (40,), generator=generator)
    N = int(sizes.sum())
    features = F.normalize(torch.randn(N, D, generator=generator) + 0.5, dim=1)
    norms = 5 + 20 * torch.rand(N, generator=generator)
    sets = FaceSets(features, norms, F.pad(sizes.cumsum(0), (1, 0)))
    found = in_second_cluster(sets)
    for number in range(40):
        place = slice(int(sets.offsets[number]), int(sets.offsets[number + 1]))
        if sizes[number] > 1:
            assert found[place].tolist() == slow_parts(features[place], norms[place])
        else:
            assert not found[place].any()

"""Virtual subjects: whose identity is exchanged, how much of it, and what stays."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from coreset.sets import FaceSets
from head import build_head
from training.identity_mixup import mix_identities

D, S = 16, 6


def batch(pairs: int = 40) -> tuple[FaceSets, torch.Tensor, torch.Tensor]:
    """Pairs of templates of one to four faces, each a blend of its subject's mean and of something else."""
    torch.manual_seed(0)
    means = F.normalize(torch.randn(S, D), dim=1)
    labels = torch.randint(S, (pairs,)).repeat_interleave(2)
    sizes = torch.randint(1, 5, (2 * pairs,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    own = means[labels.repeat_interleave(sizes)]
    features = F.normalize(own + 0.3 * torch.randn(len(own), D), dim=1)
    return FaceSets(features, torch.rand(len(own)) + 1, offsets), labels, means


def test_features_equal_the_loop_over_faces() -> None:
    sets, labels, means = batch()
    moved, renamed, people = mix_identities(sets, labels, means, 0.5, seed=0)
    assert 10 < len(people) < 30
    torch.testing.assert_close(people.norm(dim=1), torch.ones(len(people)))
    for b in range(len(labels)):
        for i in range(int(sets.offsets[b]), int(sets.offsets[b + 1])):
            f = sets.features[i]
            if renamed[b] >= S:
                mean, person = means[labels[b]], people[renamed[b] - S]
                f = f + max(0.0, float(f @ mean)) * (person - mean)
                f = f / f.norm()
            torch.testing.assert_close(moved.features[i], f)


def test_auxiliary_features_are_unchanged() -> None:
    sets, labels, means = batch()
    auxiliary = torch.randn(sets.num_faces, 5) + 2
    plain, renamed, people = mix_identities(sets, labels, means, 0.5, seed=0)
    moved, renamed_too, directions = mix_identities(
        replace(sets, auxiliary=auxiliary), labels, means, 0.5, seed=0
    )
    assert torch.equal(renamed, renamed_too)
    assert torch.equal(moved.features, plain.features)
    assert moved.auxiliary is auxiliary
    assert torch.equal(directions, people)


def test_autocast_changes_nothing() -> None:
    sets, labels, means = batch()
    plain = mix_identities(sets, labels, means, 0.5, seed=0)
    sets, labels, means = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = mix_identities(sets, labels, means, 0.5, seed=0)
    assert torch.equal(half[2], plain[2])
    assert torch.equal(half[0].features, plain[0].features)


def test_pairs_share_a_synthetic_identity_of_their_own() -> None:
    sets, labels, means = batch()
    moved, renamed, people = mix_identities(sets, labels, means, 0.5, seed=0)
    assert torch.equal(renamed[0::2], renamed[1::2])
    new = renamed[0::2][renamed[0::2] >= S]
    assert new.tolist() == list(range(S, S + len(people)))
    assert torch.equal(renamed[renamed < S], labels[renamed < S])
    assert moved.norms is sets.norms
    assert torch.equal(moved.offsets, sets.offsets)


def test_probability_zero_and_one() -> None:
    sets, labels, means = batch()
    same, unnamed, nobody = mix_identities(sets, labels, means, 0.0, seed=0)
    assert torch.equal(same.features, sets.features)
    assert torch.equal(unnamed, labels)
    assert nobody.shape == (0, D)
    assert bool((mix_identities(sets, labels, means, 1.0, seed=0)[1] >= S).all())


def test_face_orthogonal_to_its_class_mean_is_unchanged() -> None:
    means = torch.eye(2, 4)
    sets = FaceSets(torch.tensor([[0.0, 0, 1, 0], [-1.0, 0, 0, 0]]), torch.ones(2), torch.tensor([0, 1, 2]))
    moved, renamed, _ = mix_identities(sets, torch.tensor([0, 0]), means, 1.0, seed=0)
    assert renamed.tolist() == [2, 2]
    torch.testing.assert_close(moved.features, sets.features)


def test_synthetic_classes_follow_the_learned_ones() -> None:
    torch.manual_seed(0)
    head = build_head("cosface", D, S, m=0.25, s=32.0)
    people = F.normalize(torch.randn(3, D), dim=1)
    embedding = F.normalize(torch.randn(4, D), dim=1)
    label = torch.tensor([0, S, S + 2, 1])
    logits = head(embedding, torch.ones(4, 1), label, people)
    columns = torch.cat([F.normalize(head.get_parameter("kernel").T, dim=1), people])
    expected = embedding @ columns.T
    expected[torch.arange(4), label] -= 0.25
    torch.testing.assert_close(logits, expected * 32)
    logits.sum().backward()
    assert bool(head.get_parameter("kernel").grad.isfinite().all())  # type: ignore[union-attr]

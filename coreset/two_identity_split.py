"""Sets that may show two people, each described for itself by any aggregator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coreset.catalogue import DEFAULT_SPLIT_LIMIT
from coreset.selection import select_faces
from coreset.sets import FaceSets, SetDescriptor, unit_and_norm

# These and DEFAULT_SPLIT_LIMIT were chosen with MobileFaceNet on sets of 150 subjects of LFW, contaminated
# and clean ones.
# The best norm of the poorer part over that of the better one: an unreadable face is no person, and such
# faces are like each other in all sets.
_LEAST_QUALITY = 0.6
# Length of a part's mean by squared norms: faces of several strangers are no person either.
_LEAST_COHERENCE = 0.8
_ROUNDS = 3


class TwoIdentitySplit(nn.Module):
    """Describes a set by an aggregator, and twice where it may show two people.

    One still of each of two people: nothing in the set says which of them is meant, and one descriptor of
    both is like neither. So a set is parted in two: a face goes to the nearer of two centres, at first the
    first two picks of farthest-point sampling (METHOD 5, gamma 1), then the parts' means by squared norms.
    Where both parts have a face of some quality and faces that are like each other, and their descriptors, by
    the same aggregator, have a cosine below `limit`, each stands for itself, and whoever compares takes the
    best score. O(T D) beside the aggregator, which sees a face at most twice.

    The price: a set that shows two people is like sets of either. That is so of them, but where a benchmark
    means one, the other's sets count as false accepts.

    Args:
        aggregator: of `coreset.AGGREGATORS`; its weights are used as they are.
        limit: -1: no set shows two people.
    """

    def __init__(self, aggregator: nn.Module, limit: float = DEFAULT_SPLIT_LIMIT) -> None:
        super().__init__()
        self.aggregator = aggregator
        self.limit = limit

    def forward(self, sets: FaceSets) -> SetDescriptor:
        """The aggregator's answer, but with an embedding (B, 2, D): a set of one person has its descriptor
        twice, and of two people the one comes first whose centre began at the face of the largest norm.
        """
        whole: SetDescriptor = self.aggregator(sets)
        embedding = whole.embedding.unsqueeze(1).repeat(1, 2, 1)
        shows_two, _, people = self.people(sets)
        if shows_two.any():
            embedding[shows_two] = people
        return SetDescriptor(embedding, whole.norm, whole.picks, whole.weights)

    def people(self, sets: FaceSets) -> tuple[Tensor, Tensor, Tensor]:
        """(B,) bool: sets that may show two people; (N,) bool: the faces of the second of them in those sets;
        (B', 2, D) descriptors of both, for these sets alone.
        """
        is_second = second_part(sets)
        shows_two = _may_be_people(sets, ~is_second, is_second)
        people = sets.features.new_zeros(0, 2, sets.embedding_size)
        if shows_two.any():
            kept = shows_two[sets.set_of_face]
            parts = [self.aggregator(sets.only(kept & mask)).embedding for mask in (~is_second, is_second)]
            apart = (parts[0] * parts[1]).sum(dim=1) < self.limit
            people = torch.stack(parts, dim=1)[apart]
            shows_two = shows_two.masked_scatter(shows_two, apart)
        return shows_two, is_second & shows_two[sets.set_of_face], people


def second_part(sets: FaceSets) -> Tensor:
    """(N,) bool: the faces of each set that belong to the second of its two centres; see
    `TwoIdentitySplit`.
    """
    found = torch.zeros(sets.num_faces, dtype=torch.bool, device=sets.features.device)
    for chunk in sets.chunks():
        mask = chunk.mask
        if mask is None:
            mask = torch.ones_like(chunk.rows, dtype=torch.bool)
        features, norms = chunk.take(sets.features).float(), chunk.take(sets.norms).float()
        found[chunk.rows[mask]] = _second_part(features, norms, mask)[mask]
    return found


def _second_part(features: Tensor, norms: Tensor, mask: Tensor) -> Tensor:
    found = select_faces(features, norms, mask, coreset_size=2, gamma=1.0, hides_nothing=True)
    centres, _ = unit_and_norm(found.core)
    weights = norms.masked_fill(~mask, 0).square()
    for _ in range(_ROUNDS):
        cosines = torch.bmm(features, centres.transpose(1, 2))
        is_second = cosines[..., 1] > cosines[..., 0]
        shares = torch.stack([weights.masked_fill(is_second, 0), weights.masked_fill(~is_second, 0)], dim=1)
        centres, _ = unit_and_norm(torch.bmm(shares, features))
    return is_second & mask


def _may_be_people(sets: FaceSets, *parts: Tensor) -> Tensor:
    """(B,) bool: each of two parts, masks (N,), has faces, of some quality and like each other."""
    best, coherence = [], []
    for mask in parts:
        norms = sets.norms.float().masked_fill(~mask, 0)
        best.append(norms.new_zeros(sets.num_sets).scatter_reduce(0, sets.set_of_face, norms, "amax"))
        weights = norms.square()
        sums = sets.sum_by_set(sets.features.float() * weights.unsqueeze(1))
        # A part without faces, or of zero norms, has no mean: 0 / 0, which is no coherence.
        mean_lengths = torch.linalg.vector_norm(sums, dim=1) / sets.sum_by_set(weights)
        coherence.append(mean_lengths.nan_to_num(0))
    poorer, better = torch.minimum(*best), torch.maximum(*best)
    return (poorer >= _LEAST_QUALITY * better) & (torch.minimum(*coherence) >= _LEAST_COHERENCE)

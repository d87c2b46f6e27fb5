"""Sets that may show two people, each described for itself by any aggregator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coreset.selection import select_faces
from coreset.sets import FaceSets, SetDescriptor, unit_and_norm

# Cosine of two parts' descriptors below which they are of two people.
DEFAULT_LIMIT = 0.15
# The best norm of the poorer part over that of the better one: an unreadable face is no person, and such
# faces are like each other in all sets.
_LEAST_QUALITY = 0.6
_ROUNDS = 3


class TwoPeople(nn.Module):
    """Describes a set by an aggregator, and twice where it may show two people.

    One still of each of two people: nothing in the set says which of them is meant, and one descriptor of
    both is like neither. So a set is parted in two: a face goes to the nearer of two centres, at first the
    first two picks of farthest-point sampling (METHOD 5, gamma 1), then the parts' means by squared norms.
    Where both parts have a face of some quality and their descriptors, by the same aggregator, have a cosine
    below `limit`, each stands for itself, and whoever compares takes the best score. O(T D) beside the
    aggregator, which sees a set at most twice.

    The price: a set that shows two people is like sets of either. That is so of them, but where a benchmark
    means one, the other's sets count as false accepts.

    Args:
        aggregator: of `coreset.AGGREGATORS`; its weights are used as they are.
        limit: -1: no set shows two people.
    """

    def __init__(self, aggregator: nn.Module, limit: float = DEFAULT_LIMIT) -> None:
        super().__init__()
        self.aggregator = aggregator
        self.limit = limit

    def forward(self, sets: FaceSets) -> SetDescriptor:
        """The aggregator's answer, but with an embedding (B, 2, D): a set of one person has its descriptor
        twice, and of two people the one with the face of the largest norm comes first.
        """
        whole: SetDescriptor = self.aggregator(sets)
        embedding = whole.embedding.unsqueeze(1).repeat(1, 2, 1)
        is_second = second_part(sets)
        counts = _by_set(sets, is_second.to(sets.norms.dtype), "sum")
        best = [_by_set(sets, sets.norms.masked_fill(mask, 0), "amax") for mask in (is_second, ~is_second)]
        poorer, better = torch.minimum(*best), torch.maximum(*best)
        parted = (counts > 0) & (counts < sets.sizes) & (poorer >= _LEAST_QUALITY * better)
        if not parted.any():
            return SetDescriptor(embedding, whole.norm, whole.picks, whole.weights)
        kept = parted[sets.set_of_face]
        parts = [self.aggregator(sets.only(kept & mask)).embedding for mask in (~is_second, is_second)]
        apart = (parts[0] * parts[1]).sum(dim=1) < self.limit
        embedding[parted.nonzero().squeeze(1)[apart]] = torch.stack(parts, dim=1)[apart]
        return SetDescriptor(embedding, whole.norm, whole.picks, whole.weights)


def second_part(sets: FaceSets) -> Tensor:
    """(N,) bool: the faces of each set that belong to the second of its two centres; see `TwoPeople`."""
    found = torch.zeros(sets.num_faces, dtype=torch.bool, device=sets.features.device)
    for chunk in sets.chunks():
        mask = chunk.mask
        if mask is None:
            mask = torch.ones_like(chunk.rows, dtype=torch.bool)
        features, norms = chunk.take(sets.features).float(), chunk.take(sets.norms).float()
        found[chunk.rows[mask]] = _second_part(features, norms, mask)[mask]
    return found


def _second_part(features: Tensor, norms: Tensor, mask: Tensor) -> Tensor:
    D = features.shape[2]
    picks = select_faces(features, norms, mask, coreset_size=2, gamma=1.0, hides_nothing=True).picks
    centres = features.gather(1, picks.clamp_min(0).unsqueeze(2).expand(-1, -1, D))
    weights = norms.masked_fill(~mask, 0).square()
    for _ in range(_ROUNDS):
        cosines = torch.bmm(features, centres.transpose(1, 2))
        is_second = cosines[..., 1] > cosines[..., 0]
        shares = torch.stack([weights.masked_fill(is_second, 0), weights.masked_fill(~is_second, 0)], dim=1)
        centres, _ = unit_and_norm(torch.bmm(shares, features))
    return is_second & mask


def _by_set(sets: FaceSets, values: Tensor, reduce: str) -> Tensor:
    start = torch.zeros(sets.num_sets, dtype=values.dtype, device=values.device)
    return start.scatter_reduce(0, sets.set_of_face, values, reduce)

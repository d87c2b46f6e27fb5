"""Two-identity split: separate descriptors for a set that may contain faces of two subjects."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coreset.catalogue import DEFAULT_SPLIT_LIMIT
from coreset.selection import select_faces
from coreset.sets import FaceSets, SetDescriptor, unit_and_norm

# Chosen, like DEFAULT_SPLIT_LIMIT, with MobileFaceNet on contaminated and clean sets of 150 subjects of LFW.
# Minimum ratio of the best norms of both parts: unreadable faces of different subjects are similar.
_MIN_QUALITY_RATIO = 0.6
# Minimum length of a part's mean, weighted by squared norms: single faces of several subjects form no part.
_MIN_COHERENCE = 0.8
_ITERATIONS = 3


class TwoIdentitySplit(nn.Module):
    """Describe a set by an aggregator, and in two parts where it may show two subjects.

    A set with one face of each of two subjects does not determine which subject it represents, and one
    descriptor of both is similar to neither. Each set is therefore clustered into two parts: the initial
    centres are the first two faces of farthest-point sampling with gamma 1, and are replaced three times by
    the parts' means weighted by squared norms. If both parts have faces of some quality that are similar to
    each other, and the cosine between their descriptors is below `limit`, both descriptors are kept, and a
    comparison takes the larger score. Time is O(T D) besides the aggregator, which processes each face at
    most twice.

    A set of two subjects then matches sets of either, so that a benchmark that assigns one subject to each
    set counts matches with the other as false.

    Args:
        aggregator: of `coreset.AGGREGATORS`.
        limit: cosine; -1 disables the split.
    """

    def __init__(self, aggregator: nn.Module, limit: float = DEFAULT_SPLIT_LIMIT) -> None:
        super().__init__()
        self.aggregator = aggregator
        self.limit = limit

    def forward(self, sets: FaceSets) -> SetDescriptor:
        """The aggregator's output, with an embedding (B, 2, D).

        Both rows are equal where a set is not split; else the part that contains the face of largest norm
        comes first.
        """
        whole: SetDescriptor = self.aggregator(sets)
        embedding = whole.embedding.unsqueeze(1).repeat(1, 2, 1)
        second = in_second_cluster(sets)
        is_split = _may_be_two(sets, ~second, second)
        if is_split.any():
            kept = is_split[sets.set_of_face]
            first, other = (self.aggregator(sets.subset(kept & part)).embedding for part in (~second, second))
            differ = (first * other).sum(dim=1) < self.limit
            is_split = is_split.masked_scatter(is_split, differ)
            embedding[is_split] = torch.stack([first, other], dim=1)[differ]
        return SetDescriptor(embedding, whole.norm, whole.picks, whole.weights)


def in_second_cluster(sets: FaceSets) -> Tensor:
    """(N,) bool: faces in the second cluster of their set; see `TwoIdentitySplit`."""
    _, second = sets.map_padded(_in_second_cluster)
    if second is None:
        raise RuntimeError("a batch has at least one set")
    return second


def _in_second_cluster(features: Tensor, norms: Tensor, mask: Tensor | None) -> tuple[tuple[()], Tensor]:
    features, norms = features.float(), norms.float()
    mask = torch.ones_like(norms, dtype=torch.bool) if mask is None else mask
    found = select_faces(features, norms, mask, coreset_size=2, gamma=1.0, padding_is_finite=True)
    centres, _ = unit_and_norm(found.core)
    weights = norms.masked_fill(~mask, 0).square()
    for _ in range(_ITERATIONS):
        cosines = torch.bmm(features, centres.transpose(1, 2))
        is_second = cosines[..., 1] > cosines[..., 0]
        shares = torch.stack([weights.masked_fill(is_second, 0), weights.masked_fill(~is_second, 0)], dim=1)
        centres, _ = unit_and_norm(torch.bmm(shares, features))
    return (), is_second & mask


def _may_be_two(sets: FaceSets, *parts: Tensor) -> Tensor:
    """(B,) bool: both parts, masks (N,), have faces of some quality that are similar to each other."""
    best, coherence = [], []
    for mask in parts:
        norms = sets.norms.float().masked_fill(~mask, 0)
        best.append(norms.new_zeros(sets.num_sets).scatter_reduce(0, sets.set_of_face, norms, "amax"))
        weights = norms.square()
        sums = sets.sum_by_set(sets.features.float() * weights.unsqueeze(1))
        # An empty part, or one of zero norms, has no mean: 0 / 0.
        lengths = torch.linalg.vector_norm(sums, dim=1) / sets.sum_by_set(weights)
        coherence.append(lengths.nan_to_num(0))
    poorer, better = torch.minimum(*best), torch.maximum(*best)
    return (poorer >= _MIN_QUALITY_RATIO * better) & (torch.minimum(*coherence) >= _MIN_COHERENCE)

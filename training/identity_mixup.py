"""Virtual subjects: templates given the identity of people who do not exist, so that few subjects go further.

An augmentation of features within a batch; what is lost on descriptors is the affair of `head`, `contrast`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from coreset.precision import at_least_float32, without_autocast
from coreset.sets import FaceSets, unit_and_norm
from runtime.distributed import place


def mix_identities(
    sets: FaceSets, labels: Tensor, means: Tensor, share: float, *, seed: int
) -> tuple[FaceSets, Tensor, Tensor]:
    """Turns a share of the pairs of templates into pairs of new people.

    A face f of subject a becomes the direction of f + max(0, f m_a) (v - m_a): as much of the person as it
    shows is exchanged for v, and what a poor picture made of it stays. v is the direction of a random
    combination of all means, so that new people are spread as real ones are. Faces of others in the set stay
    nearly as they are, norms and the norm's meaning too. Only the first D values of a feature, its identity,
    are changed; auxiliary values behind them describe the picture and are kept bit for bit. Ours; no source.

    In distributed training chance is drawn for the pairs of all processes, of which this one's come at its
    rank: so what is drawn for a pair does not depend on how many processes there are, and each process has
    the new people of all, which are classes of one numbering.

    Args:
        sets: B templates of features of D values and A auxiliary ones; 2p and 2p + 1 are of one subject.
        labels: (B,) int64 in 0..S-1.
        means: (S, D) unit rows, the subjects' clean means, without auxiliary values.
        share: of the pairs.
        seed: all chance follows from it; the same on all processes, another for each batch.

    Returns:
        The templates; labels, of which those of new people are S, S + 1, ...; directions of all processes'
        new people (V, D + A), unit rows, whose auxiliary values are zero.
    """
    of_pair = labels[0::2]
    P, (S, D) = len(of_pair), means.shape
    rank, processes = place()
    generator = torch.Generator(means.device).manual_seed(seed)
    all_chosen = torch.rand(P * processes, device=means.device, generator=generator) < share
    blend = torch.randn(P * processes, S, device=means.device, generator=generator)
    with without_autocast(means):
        all_people = F.normalize(blend @ means, dim=1)
    here = slice(rank * P, (rank + 1) * P)
    chosen, people, number = all_chosen[here], all_people[here], (all_chosen.cumsum(0) - 1)[here]
    pair = torch.arange(len(labels), device=labels.device).repeat_interleave(sets.sizes) // 2
    own = means[of_pair]
    features = at_least_float32(sets.features)
    identity, auxiliary = features[:, :D], features[:, D:]
    direction, length = unit_and_norm(identity)
    shown = (direction * own[pair]).sum(dim=1, keepdim=True).clamp_min(0)
    moved, _ = unit_and_norm(direction + shown * (people - own)[pair])
    # The length stays that of the identity's values, so that a row that had unit length still has it.
    identity = torch.where(chosen[pair].unsqueeze(1), moved * length.unsqueeze(1), identity)
    renamed = torch.where(chosen, S + number, of_pair).repeat_interleave(2)
    directions = F.pad(all_people[all_chosen], (0, auxiliary.shape[1]))
    return replace(sets, features=torch.cat([identity, auxiliary], dim=1)), renamed, directions

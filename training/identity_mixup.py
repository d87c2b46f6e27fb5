"""Identity mixup: template pairs with synthetic identities, an augmentation for few training subjects."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from coreset.precision import at_least_float32, without_autocast
from coreset.sets import FaceSets, unit_and_norm
from runtime.distributed import rank_and_world_size


def mix_identities(
    sets: FaceSets, labels: Tensor, class_means: Tensor, prob: float, *, seed: int
) -> tuple[FaceSets, Tensor, Tensor]:
    """Replace the identity of random template pairs by a synthetic one.

    The component of each feature f along its class mean m_a is moved to a direction v:
    f' = normalize(f + max(0, f·m_a)(v - m_a)), where v is a normalised random combination of all class means.
    Deviations of single images are kept, and impostor faces in a set hardly change. Norms and auxiliary
    features do not change.

    Random numbers are drawn for the pairs of all processes, so that they do not depend on the number of
    processes, and all processes have the synthetic identities of all in one numbering.

    Args:
        sets: B templates; 2p and 2p + 1 are of one subject.
        labels: (B,) int64 in 0..S-1.
        class_means: (S, D) unit rows.
        prob: of each pair.
        seed: the same on all processes, another for each batch.

    Returns:
        The templates; labels, where synthetic identities are S, S + 1, ...; unit directions (V, D) of the
        synthetic identities of all processes.
    """
    of_pair = labels[0::2]
    P, S = len(of_pair), len(class_means)
    rank, processes = rank_and_world_size()
    generator = torch.Generator(class_means.device).manual_seed(seed)
    all_chosen = torch.rand(P * processes, device=class_means.device, generator=generator) < prob
    blend = torch.randn(P * processes, S, device=class_means.device, generator=generator)
    with without_autocast(class_means):
        all_directions = F.normalize(blend @ class_means, dim=1)
    here = slice(rank * P, (rank + 1) * P)
    chosen, number = all_chosen[here], (all_chosen.cumsum(0) - 1)[here]
    pair = torch.arange(len(labels), device=labels.device).repeat_interleave(sets.sizes) // 2
    own = class_means[of_pair]
    features = at_least_float32(sets.features)
    direction, length = unit_and_norm(features)
    shown = (direction * own[pair]).sum(dim=1, keepdim=True).clamp_min(0)
    moved, _ = unit_and_norm(direction + shown * (all_directions[here] - own)[pair])
    features = torch.where(chosen[pair].unsqueeze(1), moved * length.unsqueeze(1), features)
    renamed = torch.where(chosen, S + number, of_pair).repeat_interleave(2)
    return replace(sets, features=features), renamed, all_directions[all_chosen]

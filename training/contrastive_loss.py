"""Contrastive loss between the two templates of a subject and all other templates of the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from coreset.precision import at_least_float32, without_autocast
from runtime.distributed import gather_rows, rank_and_world_size
from runtime.errors import InputError

# A cosine that is larger by 0.1 has eleven times the weight.
CONTRAST_SCALE = 24.0


def pair_contrast(embedding: Tensor, labels: Tensor, scale: float = CONTRAST_SCALE) -> Tensor:
    """InfoNCE loss: cross entropy of selecting each template's partner by scaled cosine.

    Negatives are the templates of other subjects, of all processes. The mean is over this process's
    templates; the mean over the processes is the loss of the whole batch.

    Args:
        embedding: (B, D) unit rows; rows 2p and 2p + 1 are partners, of one subject. All processes have B.
        labels: (B,) int64 subjects, one numbering on all processes. Further templates of the same subject
            are ignored.
        scale: inverse temperature of the cosines.

    Raises:
        InputError: an odd number of templates.
    """
    B = len(labels)
    if B % 2:
        raise InputError(f"contrastive loss: expected pairs of templates, found {B} templates in the batch.")
    with without_autocast(embedding):
        embedding = at_least_float32(embedding)
        cosine = embedding @ gather_rows(embedding).T * scale
        rank, _ = rank_and_world_size()
        number = torch.arange(B, device=labels.device)
        partner = (rank * B + number) ^ 1
        hidden = labels[:, None] == gather_rows(labels)
        hidden[number, partner] = False
        return F.cross_entropy(cosine.masked_fill(hidden, -torch.inf), partner)

"""The contrast of training: two templates of a subject find each other among all templates of the batch.

A loss on descriptors beside the margin head of `head`; which templates make a batch is the sampler's affair.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.distributed import gathered_rows, place
from runtime.errors import InputError

# At 24 a cosine that is 0.1 above the others weighs eleven times as much.
CONTRAST_SCALE = 24.0


def pair_contrast(embedding: Tensor, labels: Tensor, scale: float = CONTRAST_SCALE) -> Tensor:
    """Mean cross entropy of choosing each template's partner by scaled cosine, against all other subjects.

    In distributed training partners and opponents are those of all processes, and the mean is over this
    process's templates; the mean of the processes' losses is the loss of the whole batch.

    Args:
        embedding: (B, D) unit rows; rows 2p and 2p + 1 are partners, of one subject. All processes have B.
        labels: (B,) int64 subjects, one numbering on all processes. Further templates of the same subject
            are neither partner nor opponent.
        scale: of the cosines.

    Raises:
        InputError: an odd number of templates.
    """
    B = len(labels)
    if B % 2:
        raise InputError(f"contrast: expected pairs of templates, found {B} templates in the batch.")
    with torch.autocast(embedding.device.type, enabled=False):
        embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
        cosine = embedding @ gathered_rows(embedding).T * scale
        rank, _ = place()
        number = torch.arange(B, device=labels.device)
        partner = (rank * B + number) ^ 1
        hidden = labels[:, None] == gathered_rows(labels)
        hidden[number, partner] = False
        return F.cross_entropy(cosine.masked_fill(hidden, -torch.inf), partner)

"""The contrast of pairs equals a slow twin, and overlooks further templates of the same subject."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from runtime.errors import InputError
from training.contrastive_loss import pair_contrast


def twin(embedding: torch.Tensor, labels: torch.Tensor, scale: float) -> torch.Tensor:
    losses = []
    for i in range(len(labels)):
        partner = i + 1 if i % 2 == 0 else i - 1
        others = [j for j in range(len(labels)) if labels[j] != labels[i]]
        scores = torch.stack([embedding[i] @ embedding[j] * scale for j in [partner, *others]])
        losses.append(scores.logsumexp(0) - scores[0])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("subjects", [[0, 1, 2], [0, 1, 0]])
def test_loss_and_gradient_equal_the_loop(dtype: torch.dtype, subjects: list[int]) -> None:
    embedding = F.normalize(torch.randn(6, 8, dtype=dtype), dim=1).requires_grad_()
    labels = torch.tensor(subjects).repeat_interleave(2)
    loss = pair_contrast(embedding, labels, 24.0)
    (gradient,) = torch.autograd.grad(loss, embedding)
    expected = twin(embedding, labels, 24.0)
    (wanted,) = torch.autograd.grad(expected, embedding)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, wanted)


def test_identical_pairs_far_from_others_have_no_loss() -> None:
    embedding = torch.eye(4).repeat_interleave(2, dim=0)
    labels = torch.arange(4).repeat_interleave(2)
    assert pair_contrast(embedding, labels) < 1e-8
    assert pair_contrast(embedding.roll(1, 0), labels) > 20


def test_half_precision_is_computed_in_float32() -> None:
    embedding = F.normalize(torch.randn(8, 16), dim=1)
    labels = torch.arange(4).repeat_interleave(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pair_contrast(embedding, labels), pair_contrast(embedding.clone(), labels))
        assert pair_contrast(embedding, labels).dtype == torch.float32


def test_an_odd_batch_is_refused() -> None:
    with pytest.raises(InputError, match="found 3 templates"):
        pair_contrast(torch.eye(3), torch.arange(3))

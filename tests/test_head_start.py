"""Where a head's columns start, and the cosines whose gradient is in closed form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from head import HEADS, _cosines, build_head, init_class_weights
from runtime.errors import InputError


@pytest.mark.parametrize("name", HEADS)
def test_class_weights_start_at_directions_of_any_length(name: str) -> None:
    head = build_head(name, 6, 4)
    directions = torch.randn(4, 6) * torch.tensor([[1.0], [5.0], [0.1], [2.0]])
    init_class_weights(head, directions)
    torch.testing.assert_close(head.kernel.detach().T, F.normalize(directions, dim=1))
    assert head.kernel.requires_grad


@pytest.mark.parametrize("directions", [torch.ones(6, 4), torch.full((4, 6), torch.nan)])
def test_directions_of_another_shape_are_rejected(directions: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"expected finite directions \(4, 6\)"):
        init_class_weights(build_head("cosface", 6, 4), directions)


@pytest.mark.parametrize("rows", [8, 70])
def test_cosines_have_the_gradient_of_the_plain_formula(rows: int) -> None:
    embedding = F.normalize(torch.randn(5, rows, dtype=torch.float64), dim=1).requires_grad_()
    kernel = (torch.randn(rows, 7, dtype=torch.float64) * 3).requires_grad_()
    weight = torch.randn(5, 7, dtype=torch.float64)
    ours, plain = _cosines(embedding, kernel), embedding @ F.normalize(kernel, dim=0)
    torch.testing.assert_close(ours, plain)
    found = torch.autograd.grad((ours * weight).sum(), (embedding, kernel))
    wanted = torch.autograd.grad((plain * weight).sum(), (embedding, kernel))
    torch.testing.assert_close(found, wanted)
    assert torch.autograd.gradcheck(_cosines, (embedding, kernel))

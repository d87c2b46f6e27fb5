"""Margin heads AdaFace, ArcFace and CosFace: unit embeddings and labels to scaled logits.

Always computed in float32 or wider, whatever autocast says.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from runtime.distributed import all_reduce_sum
from runtime.errors import InputError, valid_names
from runtime.matmul_precision import EXACT, matmul_precision

_MIN_LENGTH = 1e-12


class _MarginHead(nn.Module, ABC):
    """Cosines to the class weights, with a margin on the target class.

    State: `kernel` (D, C), whose columns are normalised at each use.

    Args:
        embedding_size: D.
        num_classes: C.
        m: margin; None for the default of the head.
        s: scale of the logits.

    Raises:
        InputError: a value out of range.
    """

    # Keeps cosines and angles inside their range, where the gradient of the arc cosine is finite.
    _eps = 1e-4
    _default_margin = 0.4

    def __init__(
        self, embedding_size: int, num_classes: int, *, m: float | None = None, s: float = 64.0
    ) -> None:
        super().__init__()
        m = self._default_margin if m is None else m
        faults = [
            f"head: {name} must be at least 1, found {value}."
            for name, value in (("embedding_size", embedding_size), ("num_classes", num_classes))
            if value < 1
        ]
        if not (math.isfinite(m) and m >= 0):
            faults.append(f"head: the margin m must be finite and not negative, found {m}.")
        if not (math.isfinite(s) and s > 0):
            faults.append(f"head: the scale s must be finite and positive, found {s}.")
        if faults:
            raise InputError.from_faults(faults)
        self.m, self.s = m, s
        kernel = torch.empty(embedding_size, num_classes).uniform_(-1, 1)
        self.kernel = nn.Parameter(F.normalize(kernel, dim=0))

    def forward(
        self, embedding: Tensor, norm: Tensor, label: Tensor, extra_weights: Tensor | None = None
    ) -> Tensor:
        """Logits for cross entropy.

        Args:
            embedding: (B, D) unit rows.
            norm: (B, 1) of each feature before normalisation; detached.
            label: (B,) int64 target classes.
            extra_weights: (V, D) unit weights of classes C..C+V-1, which are not learned.

        Returns:
            (B, C + V) scaled by s, float32, or float64 if embedding or kernel are.
        """
        kernel = self.kernel if extra_weights is None else torch.cat([self.kernel, extra_weights.T], dim=1)
        with torch.autocast(embedding.device.type, enabled=False):
            dtype = torch.promote_types(embedding.dtype, self.kernel.dtype)
            dtype = torch.promote_types(dtype, torch.float32)
            cosine = _cosines(embedding.to(dtype), kernel.to(dtype))
            cosine = cosine.clamp(-1 + self._eps, 1 - self._eps)
            column = label.unsqueeze(1)
            target = self._with_margin(cosine.gather(1, column), norm.detach().to(dtype))
            return cosine.scatter(1, column, target) * self.s

    @abstractmethod
    def _with_margin(self, cosine: Tensor, norm: Tensor) -> Tensor:
        """Target cosine with the margin; all (B, 1)."""

    def _add_angle(self, cosine: Tensor, margin: Tensor | float) -> Tensor:
        return (cosine.acos() + margin).clamp(self._eps, math.pi - self._eps).cos()


class ArcFace(_MarginHead):
    """Additive angular margin, cos(theta + m) (arXiv 1801.07698)."""

    _default_margin = 0.5

    def _with_margin(self, cosine: Tensor, norm: Tensor) -> Tensor:
        return self._add_angle(cosine, self.m)


class CosFace(_MarginHead):
    """Additive cosine margin, cos(theta) - m (arXiv 1801.09414)."""

    def _with_margin(self, cosine: Tensor, norm: Tensor) -> Tensor:
        return cosine - self.m


class AdaFace(_MarginHead):
    """Margin adapted to the feature norm (arXiv 2204.00964, Eq. 12-15).

    State besides the kernel, each of shape (1,): `batch_mean`, `batch_std`, and `t`, which is unused and
    exists so that published heads load strictly.

    Args:
        embedding_size: D.
        num_classes: C.
        m: margin; None for 0.4.
        h: concentration of the normalised norm.
        s: scale of the logits.
        t_alpha: weight of the current batch in the running mean and standard deviation of the norms.
    """

    _eps = 1e-3
    t: Tensor
    batch_mean: Tensor
    batch_std: Tensor

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        *,
        m: float | None = None,
        h: float = 0.333,
        s: float = 64.0,
        t_alpha: float = 0.01,
    ) -> None:
        super().__init__(embedding_size, num_classes, m=m, s=s)
        faults = []
        if not (math.isfinite(h) and h >= 0):
            faults.append(f"head: h must be finite and not negative, found {h}.")
        if not 0 < t_alpha <= 1:
            faults.append(f"head: t_alpha must be above 0 and at most 1, found {t_alpha}.")
        if faults:
            raise InputError.from_faults(faults)
        self.h, self.t_alpha = h, t_alpha
        self.register_buffer("t", torch.zeros(1))
        self.register_buffer("batch_mean", torch.full((1,), 20.0))
        self.register_buffer("batch_std", torch.full((1,), 100.0))

    def _with_margin(self, cosine: Tensor, norm: Tensor) -> Tensor:
        clipped = norm.clamp(1e-3, 100)
        if self.training:
            self._update_statistics(clipped, norm.isfinite())
        quality = (self.h * (clipped - self.batch_mean) / (self.batch_std + self._eps)).clamp(-1, 1)
        return self._add_angle(cosine, -self.m * quality) - (self.m + self.m * quality)

    @torch.no_grad()
    def _update_statistics(self, norms: Tensor, finite: Tensor) -> None:
        """Update the running statistics with the finite norms (B, 1) of the global batch, over all ranks."""
        count = all_reduce_sum(finite.sum(0).to(norms.dtype))
        mean = all_reduce_sum(norms.where(finite, 0).sum(0)) / count.clamp_min(1)
        # Two passes, since E[x^2] - E[x]^2 loses the deviation of nearly equal norms to rounding.
        deviations = all_reduce_sum((norms - mean).square().where(finite, 0).sum(0))
        std = (deviations / (count - 1).clamp_min(1)).sqrt()
        # The unbiased deviation of one face is 0/0, which in the published code makes the average NaN for
        # good. Here one face updates only the mean, and none nothing.
        for average, current, known in (
            (self.batch_mean, mean, count >= 1),
            (self.batch_std, std, count >= 2),
        ):
            moved = self.t_alpha * current + (1 - self.t_alpha) * average
            average.copy_(torch.where(known, moved.to(average.dtype), average))


class _Cosines(torch.autograd.Function):
    """Product (B, C) of unit rows (B, D) and normalised columns of (D, C).

    Dividing the products instead of the columns, with a gradient in closed form, saves a dozen passes over
    the kernel, which at B 20, D 512, C 10,000 dominates a training step from cached features.
    """

    @staticmethod
    def forward(ctx: Any, embedding: Tensor, kernel: Tensor) -> Tensor:
        length = _column_lengths(kernel).clamp_min_(_MIN_LENGTH)
        with matmul_precision(EXACT):
            cosine: Tensor = embedding @ kernel / length
        ctx.save_for_backward(embedding, kernel, length, cosine)
        return cosine

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        embedding, kernel, length, cosine = ctx.saved_tensors
        scaled = gradient / length
        with matmul_precision(EXACT):
            for_embedding = scaled @ kernel.T if ctx.needs_input_grad[0] else None
            if not ctx.needs_input_grad[1]:
                return for_embedding, None
            # Without the component along the column, which only changes its length.
            along = (scaled * cosine).sum(dim=0) / length
            return for_embedding, (embedding.T @ scaled).addcmul_(kernel, along, value=-1)


def _column_lengths(kernel: Tensor) -> Tensor:
    if kernel.device.type != "cpu":
        lengths: Tensor = torch.linalg.vector_norm(kernel, dim=0)
        return lengths
    # Blocks of rows fit the cache: 2 ms instead of 7 for 512 x 10,000 on one core.
    squares = torch.zeros_like(kernel[0])
    for rows in torch.split(kernel, 32):
        squares.add_(rows.square().sum(dim=0))
    return squares.sqrt_()


def _cosines(embedding: Tensor, kernel: Tensor) -> Tensor:
    cosine: Tensor = _Cosines.apply(embedding, kernel)
    return cosine


HEADS: dict[str, type[_MarginHead]] = {"adaface": AdaFace, "arcface": ArcFace, "cosface": CosFace}


def build_head(
    name: str,
    embedding_size: int,
    num_classes: int,
    *,
    m: float | None = None,
    h: float = 0.333,
    s: float = 64.0,
    t_alpha: float = 0.01,
) -> nn.Module:
    """Build a head.

    Args:
        name: a key of `HEADS`.
        embedding_size: D.
        num_classes: C.
        m: margin; None for the head's default.
        h: of AdaFace, ignored by others.
        s: scale of the logits.
        t_alpha: of AdaFace, ignored by others.

    Raises:
        InputError: an unknown name, or a value out of range.
    """
    if name not in HEADS:
        raise InputError(f"There is no head {name!r}. {valid_names(name, HEADS)}")
    own = {"h": h, "t_alpha": t_alpha} if name == "adaface" else {}
    return HEADS[name](embedding_size, num_classes, m=m, s=s, **own)


@torch.no_grad()
def init_class_weights(head: nn.Module, directions: Tensor) -> None:
    """Set the class weights of a head to `directions` (C, D), of any positive length.

    With the mean clean feature of each class, training of an aggregator starts close to its optimum.

    Raises:
        InputError: another shape than the head's, or directions that are not finite.
    """
    kernel = head.get_parameter("kernel")
    if directions.T.shape != kernel.shape or not bool(directions.isfinite().all()):
        raise InputError(
            f"head: expected finite directions {tuple(kernel.T.shape)}, one row per class, found "
            f"{tuple(directions.shape)}."
        )
    kernel.copy_(F.normalize(directions.T.to(kernel.dtype), dim=0))

"""The published training step, re-created in plain code from arXiv 2308.14075; nothing is copied.

One template size per batch, PyTorch's attention, a kernel normalised at each use, angles of all classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COUNT, HEADS = 3, 8


class PublishedModel(nn.Module):
    """Selection by hard Gumbel-Softmax and two attentions, in training."""

    def __init__(self, embedding_size: int) -> None:
        super().__init__()
        self.size = embedding_size
        self.gamma = nn.Parameter(torch.tensor(0.01))
        self.among_picks = nn.MultiheadAttention(embedding_size, HEADS, 0.1, batch_first=True)
        self.over_set = nn.MultiheadAttention(embedding_size, HEADS, 0.1, batch_first=True)
        self.code_scale = nn.LayerNorm(embedding_size)
        self.first_scale = nn.LayerNorm(embedding_size)
        self.second_scale = nn.LayerNorm(embedding_size)
        self.dropout = nn.Dropout(0.1)

    def forward(self, features: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, T, D), norms (B, T, 1) -> unit descriptors (B, D), their norms (B, 1)."""
        faces = features * norms.expand_as(features)
        core = self._core(faces, norms)
        start = core + self._code(core.norm(dim=2, keepdim=True))
        attended = self.among_picks(start, start, start, need_weights=False)[0]
        queries = self.first_scale(start + self.dropout(attended))
        attended = self.over_set(queries, faces + self._code(norms), faces, need_weights=False)[0]
        mean = (core + self.second_scale(core + self.dropout(attended))).mean(dim=1)
        length = mean.norm(dim=1, keepdim=True)
        return mean / length, length

    def _core(self, faces: Tensor, norms: Tensor) -> Tensor:
        scores, core = norms, []
        for number in range(COUNT):
            choice = F.gumbel_softmax(scores, tau=1.0, hard=True, dim=1)
            core.append(choice.transpose(1, 2) @ faces)
            cosine = F.normalize(faces, dim=2) @ F.normalize(core[-1], dim=2).transpose(1, 2)
            distance = norms**self.gamma * (1 - cosine) / 2
            scores = distance if number == 0 else torch.minimum(scores, distance)
        return torch.cat(core, dim=1)

    def _code(self, norms: Tensor) -> Tensor:
        place = torch.arange(self.size)
        angles = norms * 2 * math.pi / 10000 ** (2 * (place // 2) / self.size)
        code: Tensor = self.code_scale(torch.where(place % 2 == 0, angles.sin(), angles.cos()))
        return code


class PublishedHead(nn.Module):
    """AdaFace as published: the angular margin goes through the angles of all classes."""

    mean: Tensor
    spread: Tensor

    def __init__(self, embedding_size: int, classes: int) -> None:
        super().__init__()
        self.m, self.h, self.s, self.share = 0.8, 0.333, 48.0, 0.01
        self.kernel = nn.Parameter(F.normalize(torch.rand(embedding_size, classes) * 2 - 1, dim=0))
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("spread", torch.tensor(100.0))

    def forward(self, embedding: Tensor, norm: Tensor, label: Tensor) -> Tensor:
        """Logits (B, C)."""
        eps = 1e-3
        cosine = (embedding @ F.normalize(self.kernel, dim=0)).clamp(-1 + eps, 1 - eps)
        norm = norm.detach().clamp(1e-3, 100)
        with torch.no_grad():
            self.mean.lerp_(norm.mean(), self.share)
            self.spread.lerp_(norm.std(), self.share)
        quality = (self.h * (norm - self.mean) / (self.spread + eps)).clamp(-1, 1)
        target = F.one_hot(label, cosine.shape[1]).to(cosine.dtype)
        angle = (cosine.acos() - target * self.m * quality).clamp(eps, math.pi - eps)
        return self.s * (angle.cos() - target * (self.m + self.m * quality))

"""ProxyFusion: experts chosen by learned proxies weight the faces; linear in the set size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreset.base import AggregatorOutput, LearnedAggregator
from coreset.layers import check_options, masked_softmax, mean_and_variance, weighted_sum
from runtime.errors import InputError


class ProxyFusion(LearnedAggregator):
    """After ProxyFusion: Face Feature Aggregation Through Sparse Experts (NeurIPS 2024).

    The `num_chosen` proxies of largest mean cosine to the faces, in a space of `proxy_space` values, are
    chosen. The expert network of each computes a context vector c from the proxy and the faces' mean and
    variance; unit features are weighted by softmax(c · x_i). Sizes are those of the published code.

    Differences: one set of proxies for probes and gallery; the descriptors of the chosen experts are averaged
    to one, weighted by the softmax of their cosines, which replaces the paper's loss on proxies; experts are
    initialised as linear layers are, with dropout 0.1 instead of 0.7. All experts are computed, since
    gathering the weights of the chosen ones is slower at these sizes.
    """

    def __init__(
        self,
        *,
        embedding_size: int,
        num_proxies: int = 11,
        num_chosen: int = 4,
        proxy_space: int = 10,
        dropout: float = 0.1,
        quality: str = "norm",
    ) -> None:
        super().__init__(embedding_size, quality=quality)
        check_options(
            "proxy_fusion",
            num_proxies=num_proxies,
            num_chosen=num_chosen,
            proxy_space=proxy_space,
            dropout=dropout,
        )
        if num_chosen > num_proxies:
            raise InputError(f"proxy_fusion: num_chosen {num_chosen} of num_proxies {num_proxies} proxies.")
        D = embedding_size
        self.num_chosen = num_chosen
        self.transform = nn.Linear(D, proxy_space)
        self.proxies = nn.Parameter(torch.empty(num_proxies, D))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")
        self.experts = nn.ModuleList(
            _PerProxy(num_proxies, inputs, outputs) for inputs, outputs in ((3 * D, 2 * D), (2 * D, 2 * D))
        )
        self.contexts = _PerProxy(num_proxies, 2 * D, D)
        self.dropout = nn.Dropout(dropout)

    def aggregate(self, features: Tensor, norms: Tensor, mask: Tensor, auxiliary: Tensor) -> AggregatorOutput:
        """See the base class."""
        faces = features * norms.unsqueeze(2)
        relevance, chosen = self._relevance(faces, mask).topk(self.num_chosen, dim=1)
        mean, variance = mean_and_variance(faces, mask)
        B, P = faces.shape[0], self.proxies.shape[0]
        hidden = torch.cat(
            [torch.cat([mean, variance], dim=1).unsqueeze(1).expand(B, P, -1), self.proxies.expand(B, P, -1)],
            dim=2,
        )
        for layer in self.experts:
            hidden = self.dropout(F.leaky_relu(layer(hidden)))
        contexts = F.leaky_relu(self.dropout(self.contexts(hidden)))
        contexts = contexts.gather(1, chosen.unsqueeze(2).expand(-1, -1, contexts.shape[2]))
        weights = masked_softmax(contexts @ faces.transpose(1, 2), mask.unsqueeze(1))
        shares = torch.bmm(relevance.softmax(dim=1).unsqueeze(1), weights).squeeze(1)
        return AggregatorOutput(weighted_sum(shares, features), shares)

    def _relevance(self, faces: Tensor, mask: Tensor) -> Tensor:
        """(B, P) mean cosine of the faces to each proxy, in the proxies' space."""
        rows = F.normalize(self.transform(faces), dim=2)
        cosines = rows @ F.normalize(self.transform(self.proxies), dim=1).T
        return weighted_sum(mask.to(cosines.dtype) / mask.sum(dim=1, keepdim=True), cosines)


class _PerProxy(nn.Module):
    """One linear layer for each of P experts: (B, P, inputs) to (B, P, outputs)."""

    def __init__(self, count: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(count, outputs))
        nn.init.uniform_(self.weight, -(inputs**-0.5), inputs**-0.5)

    def forward(self, rows: Tensor) -> Tensor:
        return torch.bmm(rows.transpose(0, 1), self.weight).transpose(0, 1) + self.bias

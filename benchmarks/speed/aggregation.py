"""Aggregation against a plain re-creation of the published code, and folded against unfolded attention.

Random sets with sizes like those of IJB-C (half of them a few faces, some hundreds). The published code
aggregates one set at a time, projects every key and value, and draws noise that evaluation does not need.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from coreset.aggregator import CoresetAggregator
from coreset.layers import norm_code
from coreset.set_attention import SetAttention, folding_pays
from coreset.sets import FaceSets

HEADS = 8


class OneSetAtATime(nn.Module):
    """The published evaluation (arXiv 2308.14075) with PyTorch's attention and our weights."""

    def __init__(self, ours: CoresetAggregator) -> None:
        super().__init__()
        self.ours = ours
        # At random directions near ties are frequent, and noise decides them: off for comparing descriptors.
        self.noise = True
        self.attentions = nn.ModuleList(
            _torch_attention(layer) for layer in (ours.self_attention, ours.cross_attention)
        )

    def forward(self, features: Tensor, norms: Tensor) -> Tensor:
        """Features (T, D), norms (T,) -> descriptor (D,), not normalised."""
        faces = features * norms[:, None]
        core = self._core(faces, norms)[None]
        faces = faces[None]
        start = core + self._code(core.norm(dim=-1))
        queries = self.ours.self_norm(start + self.attentions[0](start, start, start)[0])
        keys = faces + self._code(norms[None])
        refined = self.ours.cross_norm(core + self.attentions[1](queries, keys, faces)[0])
        mean: Tensor = (core + refined).mean(dim=1)[0]
        return mean

    def _core(self, faces: Tensor, norms: Tensor) -> Tensor:
        scores, nearest, core = norms, torch.full_like(norms, torch.inf), []
        for _ in range(min(self.ours.coreset_size, len(norms))):
            if self.noise:
                pick = F.gumbel_softmax(scores * 1e4, tau=1e-10, hard=True, dim=0)
            else:
                pick = F.one_hot(scores.argmax(), len(scores)).to(scores.dtype)
            core.append(pick @ faces)
            distance = norms**self.ours.gamma * (1 - F.cosine_similarity(faces, core[-1][None], dim=1)) / 2
            scores = nearest = torch.minimum(nearest, distance)
        return torch.stack(core)

    def _code(self, norms: Tensor) -> Tensor:
        code: Tensor = self.ours.norm_code_scale(norm_code(norms, self.ours.embedding_size))
        return code


def compare_ways(args: argparse.Namespace) -> None:
    """Print seconds of both ways and their ratio, rounds interleaved."""
    sizes = torch.empty(args.sets).log_normal_(1.6, 1.5).long().clamp(1, 500)
    offsets = F.pad(sizes.cumsum(0), (1, 0))
    N = int(offsets[-1])
    features = F.normalize(torch.randn(N, args.embedding_size), dim=1)
    sets = FaceSets(features, 20 + 7 * torch.randn(N).clamp(-2, 3), offsets)
    aggregator = CoresetAggregator(
        embedding_size=args.embedding_size, coreset_size=args.coreset_size, num_heads=HEADS
    ).eval()
    published = OneSetAtATime(aggregator).eval()
    counts = sizes.tolist()
    single = list(zip(torch.split(features, counts), torch.split(sets.norms, counts), strict=True))

    def one_at_a_time() -> Tensor:
        return torch.stack([published(*faces) for faces in single])

    ours, theirs = time_both(lambda: aggregator(sets), one_at_a_time, args.rounds)
    published.noise = False
    result = aggregator(sets)
    difference = (result.embedding - F.normalize(one_at_a_time(), dim=1)).abs().amax(dim=1)
    print(
        f"{args.sets} sets, {N} faces (median {sizes.median()}, largest {sizes.max()}), D {features.shape[1]}"
    )
    print(f"published way, one set at a time: {theirs:.3f} s, {args.sets / theirs:.0f} sets/s")
    print(f"ours, ragged batch:               {ours:.3f} s, {args.sets / ours:.0f} sets/s")
    print(f"ratio {theirs / ours:.1f}; largest difference of a descriptor's value {difference.max():.1e}")


def print_crossover(args: argparse.Namespace) -> None:
    """Print the time of unfolded over that of folded cross-attention, and what the code would choose."""
    faces = (1, 2, 3, 5, 8, 16, 64, 512)
    print("\nunfolded / folded time of cross-attention (above 1: folding pays; * where the code folds)")
    print("   D   K " + "".join(f"{f'T={T}':>9}" for T in faces))
    for D in (64, 128, 512):
        for K in (1, 3, 8, 24):
            ratios = [_folding_ratio(D, K, T, args.rounds) for T in faces]
            stars = ["*" if folding_pays(T, K, HEADS, D) else " " for T in faces]
            cells = [f"{ratio:.2f}{star}" for ratio, star in zip(ratios, stars, strict=True)]
            print(f"{D:4d} {K:3d} " + "".join(f"{cell:>9}" for cell in cells))


def time_both(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of each, taken by turns so that a busy machine touches both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    first(), second()
    for _ in range(rounds):
        for call, kept in zip((first, second), seconds, strict=True):
            start = time.perf_counter()
            call()
            kept.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--sets", type=int, default=400, help="number of random sets")
    parser.add_argument("--embedding_size", type=int, default=512, help="values a face, a multiple of 8")
    parser.add_argument("--coreset_size", type=int, default=3, help="faces chosen from a set")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of which the median is printed")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random sets")
    return parser


def main() -> None:
    """Run both comparisons."""
    args = build_parser().parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"torch {torch.__version__}, {args.threads} thread(s) of {os.cpu_count()} CPUs; machine load {load}"
    )
    with torch.no_grad():
        compare_ways(args)
        print_crossover(args)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"machine load at the end {load}")


def _folding_ratio(D: int, K: int, T: int, rounds: int) -> float:
    layer = SetAttention(D, HEADS, 0.0).eval()
    B = max(1, 1_024 // T)
    queries, keys, values = torch.randn(B, K, D), torch.randn(B, T, D), torch.randn(B, T, D)
    folded, unfolded = time_both(
        lambda: layer(queries, keys, values, folded=True),
        lambda: layer(queries, keys, values, folded=False),
        rounds,
    )
    return unfolded / folded


def _torch_attention(layer: SetAttention) -> nn.MultiheadAttention:
    twin = nn.MultiheadAttention(layer.out_proj.in_features, HEADS, batch_first=True)
    twin.load_state_dict(layer.state_dict())
    return twin.eval()


if __name__ == "__main__":
    main()

"""Sensitivity of the selection to rounding: how often a pick changes, and how far the descriptor moves.

python benchmarks/studies/pick_stability.py --data_root ROOT --dataset_name LFWS --features FEATURES \
    --aggregator_weights pretrained/mobilefacenet.safetensors --out benchmarks/results/pick_stability.md
    FEATURES: features of its faces, as validation_mixed stores them (<out>/features/...), made by the
    backbone of the aggregator

Each template is aggregated twice: unchanged, and with every feature moved by --size of its length in a
random direction and every norm by the same fraction. A second row has each face four times, moved by 1e-3,
like neighbouring video frames.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.studies.evaluator import read_evaluation_set
from coreset import FaceSets
from coreset.sets import SetDescriptor
from runtime.command import build_parser, run_command
from runtime.errors import InputError
from runtime.files import atomic_write
from weights import load_aggregator

COPIES, JITTER = 4, 1e-3


def main() -> int:
    """Run the benchmark."""
    parser = build_parser(__doc__)
    parser.add_argument("--data_root", type=Path, required=True)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--aggregator_weights", required=True)
    parser.add_argument("--size", type=float, nargs="+", default=[1e-6, 1e-5, 1e-4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("pick_stability.md"))
    args = parser.parse_args()
    return run_command(lambda: compare(args))


def compare(args: argparse.Namespace) -> None:
    """Flags to a table in --out.

    Raises:
        InputError: data or weights that cannot be used.
    """
    aggregator = load_aggregator(args.aggregator_weights)
    if aggregator is None:
        raise InputError(f"--aggregator_weights {args.aggregator_weights}: there is no aggregator in it.")
    evaluation_set = read_evaluation_set(args.data_root, args.dataset_name, args.features)
    rows = torch.from_numpy(evaluation_set.groups.rows)
    whole = FaceSets.from_rows(
        torch.from_numpy(evaluation_set.features)[rows].float(),
        torch.from_numpy(evaluation_set.norms)[rows].float(),
        torch.from_numpy(evaluation_set.groups.offsets),
        evaluation_set.auxiliary_size,
    )
    generator = torch.Generator().manual_seed(args.seed)
    repeated = FaceSets(
        whole.features.repeat_interleave(COPIES, dim=0),
        whole.norms.repeat_interleave(COPIES),
        whole.offsets * COPIES,
        None if whole.auxiliary is None else whole.auxiliary.repeat_interleave(COPIES, dim=0),
    )
    lines = [
        f"{args.dataset_name}: {whole.num_sets:,} templates, {whole.num_faces:,} faces, {args.repeats} "
        f"times; `{Path(args.aggregator_weights).name}`. Moved: 1 - cosine of the two descriptors.",
        "",
        "| sets | change | a pick differs, % | moved, all: largest | moved, pick differs: median | largest |",
        "|---|---|---|---|---|---|",
    ]
    for name, sets in (
        ("templates", whole),
        (f"{COPIES} near-copies a face", moved(repeated, JITTER, generator)),
    ):
        lines += [
            f"| {name} | {size:g} | " + measured(aggregator, sets, size, args.repeats, generator)
            for size in args.size
        ]
    atomic_write(args.out, "\n".join(lines) + "\n")
    print("\n".join(lines))


def moved(sets: FaceSets, size: float, generator: torch.Generator) -> FaceSets:
    """Each feature moved by `size` of its length, each norm by as much of itself at most."""
    change = torch.randn(sets.features.shape, generator=generator)
    features = F.normalize(sets.features + size * F.normalize(change, dim=1), dim=1)
    norms = sets.norms * (1 + size * (2 * torch.rand(sets.norms.shape, generator=generator) - 1))
    return FaceSets(features, norms, sets.offsets, sets.auxiliary)


def measured(
    aggregator: nn.Module, sets: FaceSets, size: float, repeats: int, generator: torch.Generator
) -> str:
    """A row of the table."""
    with torch.inference_mode():
        first: SetDescriptor = aggregator(sets)
        differ, distances = [], []
        for _ in range(repeats):
            second: SetDescriptor = aggregator(moved(sets, size, generator))
            differ.append((first.picks != second.picks).any(dim=1))
            distances.append(1 - (first.embedding.double() * second.embedding.double()).sum(dim=1))
    changed, distance = torch.cat(differ), torch.cat(distances)
    of_changed = distance[changed]
    cells = [f"{100 * changed.double().mean():.2f}", _shown(distance.max())]
    cells += [_shown(of_changed.median()), _shown(of_changed.max())] if len(of_changed) else ["-", "-"]
    return " | ".join(cells) + " |"


def _shown(value: Tensor) -> str:
    return f"{max(0.0, float(value)):.1e}"


if __name__ == "__main__":
    sys.exit(main())

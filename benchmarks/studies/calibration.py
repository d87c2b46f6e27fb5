"""Validity of calibrated thresholds and their intervals on subjects that did not calibrate them.

python benchmarks/studies/calibration.py --data_root ROOT --dataset_name NAME --features FEATURES
    ROOT/NAME: a benchmark in the IJB layout, such as convert.py --build_set_benchmark writes; FEATURES:
    features of its faces, as validation_mixed stores them (<out>/features/...)

The subjects are halved by the seed. Thresholds are calibrated on the templates of one half, as inference.py
calibrate does, and evaluated on the other, both ways.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.studies.evaluator import read_evaluation_set
from coreset import build_aggregator
from evaluation.metrics.calibration import calibrate
from evaluation.metrics.set_pairs import InnerProducts, SetPairs, all_pairs
from evaluation.metrics.thresholds import at_or_above
from runtime.command import build_parser, run_command
from runtime.errors import InputError

RATES = (1e-1, 1e-2, 1e-3)


def main() -> int:
    """Run the check."""
    parser = build_parser(__doc__)
    parser.add_argument("--data_root", type=Path, required=True)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--features", type=Path, required=True, help="of all its faces, in its order")
    parser.add_argument("--aggregator", default="norm_weighted", help="a pooling (default: %(default)s)")
    parser.add_argument("--splits", type=int, default=5, help="number of halvings, from seed 0 on")
    args = parser.parse_args()
    return run_command(lambda: check(args))


def check(args: argparse.Namespace) -> None:
    """Print for each halving, direction and rate what was predicted and what was found.

    Raises:
        InputError: data that cannot be read, features of other faces, or too few subjects.
    """
    if args.splits < 1:
        raise InputError(f"--splits {args.splits}: expected 1 or more.")
    aggregator = build_aggregator(args.aggregator, {})
    evaluation_set = read_evaluation_set(args.data_root, args.dataset_name, args.features)
    groups, subject_of = evaluation_set.groups, evaluation_set.protocol.subjects
    descriptors = evaluation_set.describe(aggregator)
    subjects = np.unique(subject_of)
    print(f"{args.dataset_name}, {args.aggregator}: {len(subjects)} subjects, {len(groups)} templates")
    print(
        f"{'split':<7}{'FMR':<7}{'threshold':<11}{'predicted (95 %)':<22}{'found':<9}{'inside':<9}"
        f"{'FNMR predicted (95 %)':<22}{'found':<9}inside"
    )
    inside: list[tuple[bool, bool]] = []
    for seed in range(args.splits):
        shuffled = np.random.default_rng(seed).permutation(subjects)
        halves = np.array_split(shuffled, 2)
        for turn in (0, 1):
            here, there = (
                _pairs(descriptors, subject_of, groups.sizes, halves[part]) for part in (turn, 1 - turn)
            )
            inside += _lines(here, there, f"{seed}{'ab'[turn]}", seed)
    fmr, fnmr = np.mean(inside, axis=0)
    print(f"inside the interval: FMR {fmr:.0%}, FNMR {fnmr:.0%} of {len(inside)} (95 % is the promise)")


def _pairs(embeddings: np.ndarray, subjects: np.ndarray, sizes: np.ndarray, half: np.ndarray) -> SetPairs:
    rows = np.flatnonzero(np.isin(subjects, half))
    numbers = np.unique(subjects[rows], return_inverse=True)[1]
    return all_pairs(InnerProducts(embeddings[rows], embeddings[rows]), numbers, sizes[rows])


def _lines(here: SetPairs, there: SetPairs, name: str, seed: int) -> list[tuple[bool, bool]]:
    everything, _ = calibrate(here, RATES, seed=seed)
    for key in everything.refused:
        print(f"{name:<7}{key:<7}refused: so few people support no threshold")
    found = []
    for key, each in everything.rates.items():
        accepted = at_or_above(there.scores, each.threshold)
        fmr = float(accepted[~there.is_mated].mean())
        fnmr = float(1 - accepted[there.is_mated].mean())
        low, high = each.fmr_interval95
        fewest, most = each.fnmr_interval95 or (0.0, 1.0)
        hits = (low <= fmr <= high, fewest <= fnmr <= most)
        words = ["yes" if hit else "NO" for hit in hits]
        missed = f"{100 * fewest:.1f} to {100 * most:.1f} %"
        print(
            f"{name:<7}{key:<7}{each.threshold:<11.4f}{f'{low:.1e} to {high:.1e}':<22}{fmr:<9.1e}"
            f"{words[0]:<9}{missed:<22}{f'{100 * fnmr:.1f} %':<9}{words[1]}"
        )
        found.append(hits)
    return found


if __name__ == "__main__":
    sys.exit(main())

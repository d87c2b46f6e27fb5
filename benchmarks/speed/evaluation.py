"""Evaluation at the size of IJB-C against a plain re-creation of the published code.

python benchmarks/speed/evaluation.py DATA/IJBC
    DATA: a data set in the IJB layout without images: features.npy (one row per image) and the meta files.
    The size of IJB-C takes 8 minutes on two cores, a twentieth of it half a minute

Each phase runs in its own process. Ratios need a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.speed.evaluation_phases import PHASES, Data
from benchmarks.speed.usage import BUSY, Usage, hand_over, in_process_of_its_own

# What is compared: the plain phases, ours, and the least ratio that the project asks for at full size.
COMPARISONS = (
    ("pair file", ("pairs",), "our_pairs", 1.0),
    ("aggregation", ("aggregation",), "our_aggregation", 19.0),
    ("media mean", ("media_mean",), "our_media_mean", 9.0),
    ("scores and six TAR@FAR", ("scores", "rates"), "our_scores", 40.0),
    ("... against InsightFace's way", ("insightface_scores", "rates"), "our_scores", 20.0),
    ("identification, from files", ("lists", "media_mean", "identification"), "our_identification", 8.0),
    (
        "... against InsightFace's way",
        ("lists", "media_mean", "insightface_identification"),
        "our_identification",
        3.0,
    ),
    (
        "the whole command, two aggregators",
        # Scores and identification of each aggregator; what is read is read once.
        (
            *("lists", "pairs", "aggregation", "media_mean"),
            *("scores", "rates", "identification") * 2,
        ),
        "our_command",
        15.0,
    ),
)


def main() -> int:
    """Run all phases and print the ratios; 1 where a phase failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with features.npy and the meta files")
    parser.add_argument("--rounds", type=int, default=1, help="of all phases; the median is printed")
    parser.add_argument("--worker", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.data / "features.npy").is_file():
        parser.error(
            f"{args.data}: there is no features.npy. Expected a data set in the IJB layout with one row of "
            "features per image."
        )
    if args.worker:
        hand_over(PHASES[args.worker](Data(args.data.resolve(), args.work)))
        return 0
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, data {args.data.name}\n")
    print("| phase | wall s | CPU s | peak MiB | extra MiB | cores of others | remark |")
    print("|---|---:|---:|---:|---:|---:|---|", flush=True)
    rounds: dict[str, list[Usage]] = {name: [] for name in PHASES}
    with tempfile.TemporaryDirectory() as work:
        for _ in range(args.rounds):
            for name in PHASES:
                usage = in_process_of_its_own(__file__, [str(args.data), "--worker", name, "--work", work])
                rounds[name].append(usage)
                print(
                    f"| {name} | {usage.wall:.3f} | {usage.cpu:.2f} | {usage.peak_mib:.0f} | "
                    f"{usage.extra_mib:.0f} | {usage.others:.2f} | {usage.remark} |",
                    flush=True,
                )
    _compare(
        {name: sorted(found, key=lambda usage: usage.wall)[len(found) // 2] for name, found in rounds.items()}
    )
    busy = [name for name, found in rounds.items() if max(usage.others for usage in found) > BUSY]
    if busy:
        print(f"\nOther processes worked during {', '.join(busy)}: measure again on a quiet machine.")
    return 0


def _median(found: list[Usage]) -> Usage:
    return sorted(found, key=lambda usage: usage.wall)[len(found) // 2]


def _compare(usage: dict[str, Usage]) -> None:
    print("\n| what | plain s | ours s | ratio | CPU ratio | asked at full size |")
    print("|---|---:|---:|---:|---:|---:|")
    for what, plain, ours, asked in COMPARISONS:
        wall, cpu = (sum(getattr(usage[name], kind) for name in plain) for kind in ("wall", "cpu"))
        own = usage[ours]
        print(
            f"| {what} | {wall:.2f} | {own.wall:.3f} | {wall / own.wall:.1f} | "
            f"{cpu / max(own.cpu, 1e-3):.1f} | {asked:g} |"
        )


if __name__ == "__main__":
    sys.exit(main())

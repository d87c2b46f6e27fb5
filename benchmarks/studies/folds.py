"""Baselines over several folds of subjects: each fold is evaluated with aggregators trained without its
subjects.

python benchmarks/studies/folds.py --fold A/ours A/others --fold B/ours B/others
    each --fold: --out folders of benchmarks/studies/baselines.py that were evaluated on one benchmark; rows
    of the first folder keep their names, rows of the others get the name of their folder. Writes
    <out>/folds.md

Rates and differences are means over the folds; intervals are bootstrap intervals over the subjects of each
fold.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.studies.tables import (
    COMPARED,
    FARS,
    Row,
    difference,
    pooled_difference,
    score_normalisation_of,
)
from evaluation.metrics.verification import rate_key
from evaluation.reporting.report import markdown_table
from runtime.command import build_parser, run_command
from runtime.errors import InputError
from runtime.files import atomic_write

Fold = Mapping[str, Sequence[Row]]


def main() -> int:
    """Run the command; return its exit code."""
    parser = build_parser(__doc__)
    parser.add_argument("--fold", type=Path, nargs="+", action="append", required=True, metavar="OUT")
    parser.add_argument("--reference", default="weighted_coreset", help="differences are to this row")
    parser.add_argument("--out", type=Path, default=Path("experiments/baselines"))
    args = parser.parse_args()
    return run_command(lambda: compare(args))


def compare(args: argparse.Namespace) -> None:
    """Flags to the table.

    Raises:
        InputError: folders without rows, or folds that were not made alike.
    """
    found = [read_fold(folders) for folders in args.fold]
    folds, sizes = [rows for rows, _ in found], [size for _, size in found]
    if any(_seeds(fold) != _seeds(folds[0]) for fold in folds):
        raise InputError(f"--fold: aggregators and seeds differ: {'; '.join(map(str, map(_seeds, folds)))}.")
    if args.reference not in folds[0]:
        raise InputError(f"--reference {args.reference}: rows are {', '.join(folds[0])}.")
    text = f"{table(folds, args.reference)}\n\n"
    text += "Per cent; each fold's mean over seeds, then the mean over folds. Differences: points, with the "
    text += "95 % interval of a paired bootstrap over the subjects of each fold.\n\n"
    text += "".join(f"- fold {number}: {size}\n" for number, size in enumerate(sizes, 1))
    commands = {name: rows[-1].command for name, rows in folds[0].items()}
    text += "".join(f"- {name}: `{command}`\n" for name, command in commands.items() if command)
    atomic_write(args.out / "folds.md", text)
    print(text)


def read_fold(folders: Sequence[Path]) -> tuple[Fold, str]:
    """Rows of one fold by name, and the benchmark of its evaluation."""
    rows: dict[str, list[Row]] = {}
    evaluations = set()
    for place, folder in enumerate(folders):
        paths = sorted((folder / "rows").glob("*.json"))
        if not paths:
            raise InputError(
                f"--fold {folder}: holds no rows. Give the --out of benchmarks/studies/baselines.py."
            )
        for path in paths:
            content = json.loads(path.read_text())
            made = content.pop("made_with")
            evaluations.add(
                json.dumps(
                    [made["evaluation"], made["replicates"], made["steps"], score_normalisation_of(made)],
                    sort_keys=True,
                )
            )
            name = content["name"] if place == 0 else f"{content['name']}, {folder.name}"
            rows.setdefault(name, []).append(Row(**content))
    if len(evaluations) > 1:
        raise InputError(f"--fold {' '.join(map(str, folders))}: rows were evaluated or trained differently.")
    evaluator = json.loads(evaluations.pop())[0]
    return rows, ", ".join(f"{key} {value}" for key, value in evaluator.items())


def table(folds: Sequence[Fold], reference: str) -> str:
    """A line an aggregator, the reference first, then by TAR at the first FAR that is compared."""
    key = rate_key(COMPARED[0])

    def mean_tar(name: str) -> float:
        return float(np.mean([row.tar[key] for fold in folds for row in fold[name]]))

    others = sorted((name for name in folds[0] if name != reference), key=mean_tar, reverse=True)
    names = [reference, *others]
    lines = []
    for name in names:
        cells = [name, str(len(folds[0][name]))]
        cells += [
            _percent([[row.tar[rate_key(far)] for row in fold[name]] for fold in folds]) for far in FARS
        ]
        cells += [_percent([[row.rank1 for row in fold[name]] for fold in folds])]
        cells += [_percent([[row.tpir for row in fold[name]] for fold in folds])]
        for far in COMPARED:
            if name == reference:
                cells.append("reference")
                continue
            each = [difference(fold[name], fold[reference], far) for fold in folds]
            whole = pooled_difference([(fold[name], fold[reference]) for fold in folds], far)
            alone = ", ".join(f"{100 * one.mean:+.1f}" for one in each)
            cells.append(f"{whole} ({alone})")
        lines.append(cells)
    heads = ["aggregator", "seeds", *(f"TAR@FAR {rate_key(far)}" for far in FARS), "rank-1", "TPIR@FPIR 0.1"]
    heads += [f"less {reference}, {rate_key(far)} (each fold)" for far in COMPARED]
    return markdown_table(heads, lines)


def _seeds(fold: Fold) -> dict[str, int]:
    return {name: len(rows) for name, rows in fold.items()}


def _percent(rates: Sequence[Sequence[float | None]]) -> str:
    known = [[rate for rate in fold if rate is not None] for fold in rates]
    if not all(known):
        return "-"
    return f"{100 * np.mean([np.mean(fold) for fold in known]):.1f}"


if __name__ == "__main__":
    sys.exit(main())

"""All aggregators in one table: the same recipe, features, budget and seeds, evaluated on one benchmark.

python benchmarks/studies/baselines.py --features STORE --data_root DATA --dataset_name LFWS \
    --evaluation_features FEATURES --evaluated_subjects SUBJECTS.txt
    trains each with one seed or more, evaluates them and the poolings, writes baselines.md and baselines.csv
python benchmarks/studies/baselines.py ... --aggregators nan weighted_coreset --seeds 0 --steps 100
    some of them, with few steps
python benchmarks/studies/baselines.py --features OTHER ... --aggregators weighted_coreset --beside OUT
    aggregators trained from other features of the same faces, and all rows of OUT, in one table

Rows in <out>/rows are kept, so that an interrupted run continues with the missing ones. Training is main.py
with cached features; each row has its command, <out>/logs its output.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from benchmarks.studies.evaluator import Evaluator, add_cohort_flags, cohort_method, read_evaluation_set
from benchmarks.studies.tables import Row, score_normalisation_of, write_tables
from coreset import build_aggregator
from data.sources.subject_names import normal, read_names
from features.bank import read_feature_bank
from runtime.command import build_parser, run_command
from runtime.errors import InputError
from runtime.files import atomic_write
from weights import load_aggregator

ROOT = Path(__file__).resolve().parents[2]
_BATCH = 96


@dataclass(frozen=True)
class Baseline:
    """A line of the table: an aggregator, the preset that trains it (None: nothing to train), its options,
    and more flags of main.py (None: one without a value).
    """

    aggregator: str
    preset: str | None = "good"
    options: dict[str, Any] = field(default_factory=dict)
    flags: dict[str, Any] = field(default_factory=dict)


_CONTAMINATED = {"impostor_face_prob": 0.1}
BASELINES = {
    "coreset": Baseline("coreset"),
    "coreset_published": Baseline("coreset", "published"),
    "weighted_coreset": Baseline("weighted_coreset"),
    "weighted_coreset_contaminated_10": Baseline("weighted_coreset", flags=_CONTAMINATED),
    # As --preset good itself has it.
    "weighted_coreset_contaminated_20": Baseline("weighted_coreset", flags={"impostor_face_prob": 0.2}),
    "weighted_coreset_contaminated_40": Baseline("weighted_coreset", flags={"impostor_face_prob": 0.4}),
    "learned_map": Baseline("learned_map"),
    "nan": Baseline("nan"),
    "context_attention": Baseline("context_attention"),
    "inverse_variance": Baseline("inverse_variance"),
    "proxy_fusion": Baseline("proxy_fusion"),
    "caface": Baseline("caface"),
    "set_transformer": Baseline("set_transformer"),
    "set_transformer_contaminated_10": Baseline("set_transformer", flags=_CONTAMINATED),
    "set_transformer_sab": Baseline("set_transformer", options={"inducing_points": 0}),
    **{
        name: Baseline(name, None)
        for name in ("mean", "norm_weighted", "media_mean", "top_k", "fps_mean", "best_norm", "random_k")
    },
}


def main() -> int:
    """Run the command; return its exit code."""
    args = flags(__doc__, BASELINES, "coreset").parse_args()
    return run_command(lambda: compare(args, BASELINES))


def flags(
    description: str | None, baselines: Mapping[str, Baseline], reference: str
) -> argparse.ArgumentParser:
    """The flags of a comparison."""
    parser = build_parser(description)
    parser.add_argument(
        "--features", type=Path, required=True, help="store of --cache_features to train from"
    )
    parser.add_argument("--data_root", type=Path, required=True, help="folder that holds the benchmark's")
    parser.add_argument("--dataset_name", required=True, help="the benchmark, of the IJB layout")
    parser.add_argument(
        "--evaluation_features",
        type=Path,
        required=True,
        help="its features, as validate_ijb.py --features takes",
    )
    parser.add_argument(
        "--evaluated_subjects",
        type=Path,
        required=True,
        help="names of its subjects, one per line: excluded from training",
    )
    add_cohort_flags(parser)
    parser.add_argument("--aggregators", nargs="+", choices=baselines, default=list(baselines), help="rows")
    parser.add_argument(
        "--reference", choices=baselines, default=reference, help="differences are to this row"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of each that is trained")
    parser.add_argument("--steps", type=int, default=2000, help="of training, at 96 templates")
    parser.add_argument("--epochs", type=int, default=10, help="the steps are divided into; validations")
    parser.add_argument("--replicates", type=int, default=400, help="draws of subjects for the intervals")
    parser.add_argument("--batch_size", type=int, default=_BATCH, help="templates of a step")
    parser.add_argument(
        "--trained_in",
        type=Path,
        metavar="OUT",
        help="evaluate what an earlier run trained, train nothing",
    )
    parser.add_argument(
        "--beside",
        type=Path,
        metavar="OUT",
        help="rows of an earlier comparison on this benchmark, from other features, stand in the table too",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("experiments/baselines"), help="folder of all results"
    )
    return parser


def compare(
    args: argparse.Namespace,
    baselines: Mapping[str, Baseline],
    program: Sequence[str] = ("main.py",),
    title: str = "baselines",
) -> None:
    """Make the rows that are missing, then the tables, whose files `title` names.

    `program`: what python is given to train.

    Raises:
        InputError: flags or data that cannot be used, or rows in <out> that were made with others.
    """
    _check(args)
    names = list(dict.fromkeys([args.reference, *args.aggregators]))
    evaluation_set = read_evaluation_set(
        args.data_root,
        args.dataset_name,
        args.evaluation_features,
        args.cohort,
        args.evaluated_subjects,
        cohort_method(args),
    )
    evaluator = Evaluator.of(evaluation_set, args.replicates)
    rows: list[Row] = []
    made_with = _identity(args, evaluator)
    for name in names:
        for seed in args.seeds if baselines[name].preset else [0]:
            path = args.out / "rows" / f"{_file_name(name)}-seed{seed}.json"
            if not path.is_file():
                made = _made(args, evaluator, name, baselines[name], seed, program)
                content = made | {"made_with": made_with}
                atomic_write(path, json.dumps(content) + "\n")
            rows.append(_read(path, made_with))
            print(f"{name}, seed {seed}: {rows[-1].summary()}", flush=True)
    rows += _rows_beside(args.beside, made_with) if args.beside else []
    cohort = None if evaluator.cohort is None else f"{evaluator.cohort.name}, {evaluator.cohort.method}"
    print(write_tables(args.out, rows, args.reference, title, cohort))


def _check(args: argparse.Namespace) -> None:
    faults = [
        f"--{name} {getattr(args, name)}: expected 1 or more."
        for name in ("steps", "epochs", "replicates", "batch_size")
        if getattr(args, name) < 1
    ]
    if not faults and args.steps % args.epochs:
        faults.append(f"--steps {args.steps}: expected a multiple of --epochs {args.epochs}.")
    if args.batch_size % 2:
        faults.append(f"--batch_size {args.batch_size}: expected an even number, templates come in pairs.")
    if not args.evaluated_subjects.is_file():
        faults.append(f"--evaluated_subjects {args.evaluated_subjects}: no such file.")
    if faults:
        raise InputError.from_faults(faults)


def _made_with(args: argparse.Namespace) -> dict[str, Any]:
    """What all trainings of a table have in common."""
    return {
        "features": read_feature_bank(args.features).digest,
        "steps": args.steps,
        "epochs": args.epochs,
        "batch_size": args.batch_size,
    }


def _identity(args: argparse.Namespace, evaluator: Evaluator) -> dict[str, Any]:
    """What all rows of a table have in common."""
    return _made_with(args) | {
        "evaluation": {"name": evaluator.protocol.name, **evaluator.protocol.sizes},
        "evaluation_norms": float(np.asarray(evaluator.norms, np.float64).sum().round(3)),
        "replicates": args.replicates,
        **(
            {}
            if evaluator.cohort is None
            else {"cohort": evaluator.cohort.name, "score_normalisation": evaluator.cohort.method}
        ),
    }


def _rows_beside(out: Path, made_with: dict[str, Any]) -> list[Row]:
    """Rows of another run with the same evaluation, named after its folder."""
    alike = {key: made_with[key] for key in ("evaluation", "replicates")}
    paths = sorted((out / "rows").glob("*.json"))
    if not paths:
        raise InputError(f"--beside {out}: holds no rows. Give the --out of an earlier comparison.")
    contents = [json.loads(path.read_text()) for path in paths]
    methods = {score_normalisation_of(each) for each in [made_with, *(c["made_with"] for c in contents)]}
    if len(methods) > 1:
        raise InputError(
            f"--beside {out}: give --cohort to both comparisons or to none, and the same "
            "--score_normalisation."
        )
    rows = [_row(path, content, alike) for path, content in zip(paths, contents, strict=True)]
    return [replace(row, name=f"{row.name}, {out.name}") for row in rows]


def _read(path: Path, made_with: dict[str, Any]) -> Row:
    return _row(path, json.loads(path.read_text()), made_with)


def _row(path: Path, content: dict[str, Any], made_with: dict[str, Any]) -> Row:
    stored = content["made_with"] | {"score_normalisation": score_normalisation_of(content["made_with"])}
    if differing := [key for key, value in made_with.items() if stored.get(key) != value]:
        raise InputError(
            f"{path}: was made with other {', '.join(differing)}, and does not belong into this table. Use "
            "another --out, or remove it."
        )
    del content["made_with"]
    return Row(**content)


def _made(
    args: argparse.Namespace,
    evaluator: Evaluator,
    name: str,
    baseline: Baseline,
    seed: int,
    program: Sequence[str],
) -> dict[str, Any]:
    """Trains, where there is something to train, and evaluations."""
    row: dict[str, Any] = {"name": name, "seed": seed, "options": baseline.options, "preset": baseline.preset}
    if baseline.preset is None:
        module = build_aggregator(baseline.aggregator, baseline.options)
        row |= {"train_seconds": 0.0, "train_cpu_seconds": 0.0, "command": ""}
    else:
        file_name = _file_name(name)
        trained = (
            _trained_before(args, file_name, seed)
            if args.trained_in
            else _trained(args, baseline, file_name, seed, program)
        )
        found = load_aggregator(trained["checkpoint"])
        if found is None:
            raise RuntimeError(f"{trained['checkpoint']}: holds no aggregator")
        module = found
        del trained["checkpoint"]
        row |= trained
    return row | evaluator.figures(name, module)


def _trained(
    args: argparse.Namespace, baseline: Baseline, name: str, seed: int, program: Sequence[str]
) -> dict[str, Any]:
    """One training as a process of its own: its command, its time and its last checkpoint.

    The last and not the best: a baseline's luck on held-out subjects is no part of the comparison, and every
    recipe ends where it means to end.
    """
    runs = args.out / "runs" / f"{name}-seed{seed}"
    command = [*program, *training_flags(args, baseline, seed, runs)]
    log = args.out / "logs" / f"{name}-seed{seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    before, start = _cpu_of_children(), time.perf_counter()
    with log.open("w") as words:
        code = subprocess.run(
            [sys.executable, *command], cwd=ROOT, stdout=words, stderr=words, env=os.environ, check=False
        ).returncode
    if code:
        raise InputError(f"training of {name} ended with code {code}; its words are in {log}.")
    checkpoint = _last_checkpoint(runs)
    if checkpoint is None:
        raise InputError(f"training of {name} left no last.ckpt below {runs}; its words are in {log}.")
    return {
        "train_seconds": time.perf_counter() - start,
        "train_cpu_seconds": _cpu_of_children() - before,
        "command": shlex.join(["python", *command]),
        "checkpoint": checkpoint,
    }


def _last_checkpoint(runs: Path) -> Path | None:
    """Of the newest run: those before are of trainings that were stopped, and were left there."""
    return max(
        runs.glob("*/last.ckpt"), key=lambda path: int(path.parent.name.rpartition("_")[2]), default=None
    )


def _trained_before(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """As `_trained`, of a training that is there."""
    row = args.trained_in / "rows" / f"{name}-seed{seed}.json"
    found = _last_checkpoint(args.trained_in / "runs" / f"{name}-seed{seed}")
    if not row.is_file() or found is None:
        raise InputError(
            f"--trained_in {args.trained_in}: there is no finished training of {name} with seed {seed}."
        )
    content = json.loads(row.read_text())
    same = ("features", "steps", "epochs", "batch_size")
    made_with = _made_with(args)
    if differing := [key for key in same if content["made_with"][key] != made_with[key]]:
        raise InputError(f"{row}: was made with other {', '.join(differing)} than are asked for here.")
    kept = ("train_seconds", "train_cpu_seconds", "command")
    return {key: content[key] for key in kept} | {"checkpoint": found}


def training_flags(args: argparse.Namespace, baseline: Baseline, seed: int, out: Path) -> list[str]:
    """Flags of main.py for one training, with the same number of steps and templates per step for all.

    Rows of the preset 'good' draw their templates alike, without single faces of other people unless a row's
    own flags say so: the sets of the benchmarks hold none. Rows of 'published' are the paper's recipe, its
    template sampling included (1 to 20 faces in clips of up to three frames of an image, images drawn and not
    subjects). They differ from it in the steps, the templates per step (the paper: 20) and in that faces are
    cached views of the images; the paper's fall of the rate after two epochs of the data is not reached.
    """
    flags_of = {
        "features": args.features.resolve(),
        **({"exclude_subjects": args.evaluated_subjects.resolve()} if _holds_test_subjects(args) else {}),
        "preset": baseline.preset,
        "aggregator": baseline.aggregator,
        "seed": seed,
        "batch_size": args.batch_size,
        "epochs": args.epochs,
        "epoch_items": args.steps // args.epochs * args.batch_size,
        "out": out.resolve(),
    }
    if baseline.preset == "good":
        flags_of["impostor_face_prob"] = 0
    command = []
    for flag, value in (flags_of | baseline.flags).items():
        command += [f"--{flag}", *([] if value is None else [str(value)])]
    if baseline.options:
        command += ["--aggregator_options", *(f"{k}={json.dumps(v)}" for k, v in baseline.options.items())]
    return command


def _holds_test_subjects(args: argparse.Namespace) -> bool:
    """Whether the list names subjects of the training features; main.py refuses one that names none."""
    listed = read_names(args.evaluated_subjects)
    return any(normal(subject) in listed for subject in read_feature_bank(args.features).subjects)


def _file_name(name: str) -> str:
    return re.sub(r"[^a-z0-9._]+", "_", name.lower())


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    sys.exit(main())

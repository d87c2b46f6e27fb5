"""Ten-fold verification accuracy on pair sets."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from data.sources.pair_files import find_pair_sets, read_pair_set
from evaluation.metrics.verification import few_scores_warnings
from evaluation.protocols.pair_sets import (
    FIVE_SETS,
    FacePairs,
    PairFigures,
    accuracy_table,
    details_table,
    mean_accuracy,
    pair_figures,
    pairs_of_bin,
    read_pair_list,
    size_notes,
)
from evaluation.reporting.published import Reference, compare, find_reference
from evaluation.reporting.report import Result
from runtime.command import build_parser, run_command
from runtime.errors import Faults, InputError
from validation.frame import (
    Model,
    Seconds,
    add_model,
    add_output,
    check_output,
    embed,
    heading,
    leave,
    open_model,
    parsed,
    result_frame,
)

PROTOCOL = "pair_sets"
HOW_TO_GET = (
    "The five sets lie in the training packs of InsightFace's data zoo, such as MS1MV2 (faces_emore): "
    "https://github.com/deepinsight/insightface/tree/master/recognition/_datasets_"
)


def main(description: str | None = None) -> int:
    """Run the command and return its exit code; `description` is shown by --help."""
    args = parsed(flags(description), "data_root", "sets", "pairs")
    return run_command(lambda: validate(args))


def flags(description: str | None = None) -> argparse.ArgumentParser:
    """The command's flags."""
    parser = build_parser(description)
    parser.argument_default = argparse.SUPPRESS
    group = parser.add_argument_group("data")
    group.add_argument("--data_root", type=Path, metavar="FOLDER", help="holds pair sets (lfw.bin, ...)")
    group.add_argument("--sets", nargs="+", metavar="NAME", help="these of them alone (default: all)")
    group.add_argument(
        "--pairs", nargs=2, type=Path, metavar=("FOLDER", "LIST"), help="aligned faces and a list of pairs"
    )
    add_model(parser, flip="pre_norm_vector_add")
    add_output(parser, PROTOCOL)
    return parser


def validate(args: argparse.Namespace) -> None:
    """Flags to files.

    Raises:
        InputError: flags, weights or data that cannot be used, all in one message.
    """
    faults, seconds = Faults(), Seconds()
    faults.of(lambda: check_output(args.out, args.cache))
    model = open_model(args, faults)
    pairs = faults.of(lambda: find_pairs(args.data_root, args.sets, args.pairs))
    reference = None
    if args.compare:
        reference = faults.of(lambda: find_reference(args.compare, PROTOCOL))
    faults.raise_if_any()
    if model is None or pairs is None:
        return
    figures = evaluate(model, pairs, args.cache or args.out / "features", seconds)
    if figures is not None:
        result = result_of(figures, model, seconds)
        leave(args.out, result, paragraphs(figures, result, model, reference))


def find_pairs(
    data_root: Path | None, names: Sequence[str] | None, pairs: Sequence[Path] | None
) -> dict[str, FacePairs]:
    """The pair sets of the flags by name: the five in the order of tables, then others.

    Raises:
        InputError: no set, one that was asked for is missing, or one that cannot be read.
    """
    if data_root is not None and pairs is None:
        return _sets_of_folder(data_root, names)
    if pairs is None or data_root is not None:
        files = ", ".join(f"{name}.bin" for name in FIVE_SETS)
        raise InputError(
            f"expected either --data_root, a folder of pair sets ({files}), or --pairs FOLDER LIST. "
            f"{HOW_TO_GET}"
        )
    if names:
        raise InputError("--sets chooses among the pair sets of --data_root; with --pairs leave it out.")
    listed = read_pair_list(*pairs)
    return {listed.name: listed}


def _sets_of_folder(data_root: Path, names: Sequence[str] | None) -> dict[str, FacePairs]:
    if not data_root.is_dir():
        raise InputError(f"--data_root {data_root}: there is no such folder. {HOW_TO_GET}")
    on_disk = {path.stem: path for path in find_pair_sets(data_root)}
    present = [name for name in FIVE_SETS if name in on_disk]
    wanted = list(dict.fromkeys(names or [*present, *(name for name in on_disk if name not in FIVE_SETS)]))
    missing = [f"{name}.bin" for name in wanted or FIVE_SETS if name not in on_disk]
    if missing:
        there = ", ".join(path.name for path in on_disk.values()) or "no .bin file"
        raise InputError(f"{data_root}: looked for {', '.join(missing)}; there is {there}. {HOW_TO_GET}")
    faults = Faults()
    found = {name: faults.of(partial(_read_set, on_disk[name])) for name in wanted}
    faults.raise_if_any()
    return {name: pairs for name, pairs in found.items() if pairs is not None}


def _read_set(path: Path) -> FacePairs:
    return pairs_of_bin(read_pair_set(path))


def evaluate(
    model: Model, pairs: Mapping[str, FacePairs], cache: Path, seconds: Seconds
) -> dict[str, PairFigures] | None:
    """Model and files to figures, by set; None in all processes but the first."""
    figures = {}
    for name, each in pairs.items():
        with seconds.of("embed"):
            store = embed(model, each.faces, cache, name=FIVE_SETS.get(name, name))
        if store is not None:
            with seconds.of("score"):
                figures[name] = pair_figures(store.features, each)
    return figures or None


def result_of(figures: Mapping[str, PairFigures], model: Model, seconds: Seconds) -> Result:
    """The result.json of all sets together; 'mean accuracy' alone stands for the mean of the five."""
    result = result_frame(PROTOCOL, {"distance": "squared Euclidean"}, model, "none", seconds)
    of_five = list(figures) == list(FIVE_SETS)
    mean = "mean accuracy" if of_five else f"mean accuracy of {', '.join(figures)}"
    result["data"] = {
        "images": sum(each.images for each in figures.values()),
        "pairs": sum(each.pairs for each in figures.values()),
        "genuine": sum(each.mated for each in figures.values()),
    }
    result["pair_sets"] = {name: each.to_dict() for name, each in figures.items()}
    result["figures"] = {f"{name} accuracy": each.accuracy.accuracy for name, each in figures.items()}
    result["figures"][mean] = mean_accuracy(figures)
    return result


def paragraphs(
    figures: Mapping[str, PairFigures], result: Result, model: Model, reference: Reference | None
) -> list[str]:
    """The report: the table like the seed's, the details of each set, and what a reader must know."""
    rows: dict[str, Mapping[str, float]] = {
        model.name: {name: each.accuracy.accuracy for name, each in figures.items()}
    }
    if reference is not None:
        known = {name: reference.figures.get(f"{name} accuracy") for name in figures}
        mean = reference.figures.get("mean accuracy")
        row = {name: value for name, value in {**known, "mean": mean}.items() if value is not None}
        rows[reference.name] = row
    head = f"{heading(result, model)}\n\nTen-fold accuracy, per cent:"
    notes = [
        f"{name}: {text}" for name, each in figures.items() for text in few_scores_warnings(each.tar_at_far)
    ]
    notes += size_notes(figures)
    absent = [f"{name}.bin" for name in FIVE_SETS if name not in figures]
    if absent and len(absent) < len(FIVE_SETS):
        notes.append(f"Of the five published sets {', '.join(absent)} are not there. {HOW_TO_GET}")
    parts = [head, accuracy_table(rows), details_table(figures)]
    parts += ["\n".join(notes)] if notes else []
    return parts + ([compare(result, reference)] if reference is not None else [])

"""Closed- and open-set identification on IJB-S."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from evaluation.protocols.ijb_s import (
    FPIRS,
    HOW_TO_GET,
    LAYOUT,
    PROTOCOLS,
    PUBLISHED_PROTOCOLS,
    IjbS,
    IjbSFigures,
    evaluate_ijb_s,
    ijb_s_table,
    read_ijb_s,
    sections,
    table_row,
)
from evaluation.reporting.published import Reference, compare, find_reference
from evaluation.reporting.report import Result
from runtime.command import build_parser, run_command
from runtime.errors import Faults
from validation.frame import (
    Model,
    Seconds,
    add_model,
    add_output,
    add_sets,
    check_output,
    embed,
    heading,
    leave,
    open_model_of_sets,
    parsed,
    result_frame,
)

NAME = "IJB-S"
# What the published figures were made with, as far as our names go.
DEFAULT_AGGREGATOR = "norm_weighted"
# Aggregator -> protocol -> figures.
Figures = dict[str, dict[str, IjbSFigures]]


def main(description: str | None = None) -> int:
    """Run the command and return its exit code; `description` is shown by --help."""
    args = parsed(flags(description), "data_root", "protocol_root", "aggregator", "aggregator_weights")
    return run_command(lambda: validate(args))


def flags(description: str | None = None) -> argparse.ArgumentParser:
    """The command's flags."""
    parser = build_parser(description)
    parser.argument_default = argparse.SUPPRESS
    group = parser.add_argument_group("data")
    group.add_argument("--data_root", type=Path, metavar="FOLDER", help="folder of the subjects' folders")
    group.add_argument(
        "--protocol_root", type=Path, metavar="FOLDER", help="csv files (default: DATA_ROOT/protocols)"
    )
    group.add_argument(
        "--protocol",
        nargs="+",
        choices=PROTOCOLS,
        default=list(PUBLISHED_PROTOCOLS),
        help="one or more; the default are the three of the published tables",
    )
    # The published evaluation of IJB-S takes no mirror images.
    add_model(parser, flip="none")
    add_sets(parser, DEFAULT_AGGREGATOR)
    add_output(parser, NAME)
    return parser


def validate(args: argparse.Namespace) -> None:
    """Flags to files.

    Raises:
        InputError: flags, weights or data that cannot be used, all in one message.
    """
    faults, seconds = Faults(), Seconds()
    faults.of(lambda: check_output(args.out, args.cache))
    model, aggregators = open_model_of_sets(args, DEFAULT_AGGREGATOR, faults)
    data = None
    if args.data_root is None:
        faults.sentences.append(f"--data_root is missing: the folder of IJB-S. {LAYOUT} {HOW_TO_GET}")
    else:
        protocol_root = args.protocol_root or args.data_root / "protocols"
        with seconds.of("read"):
            data = faults.of(lambda: read_ijb_s(args.data_root, protocol_root, args.protocol))
    references = faults.of(lambda: find_references(args.compare, args.protocol)) if args.compare else {}
    faults.raise_if_any()
    if model is None or data is None or references is None:
        return
    figures = evaluate(model, data, aggregators, args.cache or args.out / "features", seconds)
    if figures is not None:
        result = result_of(figures, data, model, seconds)
        leave(args.out, result, paragraphs(figures, result, data, model, references))


def find_references(wanted: str, protocols: Sequence[str]) -> dict[str, Reference]:
    """What --compare names: an earlier result as a whole, or published figures by protocol.

    Raises:
        InputError: no such file or row, or a row with figures of none of the protocols.
    """
    if Path(wanted).exists():
        return {NAME: find_reference(wanted, NAME)}
    found, faults = {}, Faults()
    for protocol in protocols:
        reference = faults.of(lambda protocol=protocol: find_reference(wanted, protocol))  # type: ignore[misc]
        if reference is not None:
            found[protocol] = reference
    if not found:
        faults.raise_if_any()
    return found


def evaluate(
    model: Model, data: IjbS, aggregators: Mapping[str, nn.Module], cache: Path, seconds: Seconds
) -> Figures | None:
    """Model and files to figures; None in all processes but the first."""
    with seconds.of("embed"):
        store = embed(model, data.faces, cache, name=NAME)
    if store is None:
        return None
    with seconds.of("aggregate and identify"):
        return evaluate_ijb_s(data, store.features, store.norms, aggregators, model.device)


def result_of(figures: Figures, data: IjbS, model: Model, seconds: Seconds) -> Result:
    """The result.json: the first aggregator's figures, and those of all where there are several."""
    first = next(iter(figures))
    rules = {
        "sets": "per subject and video",
        "closed set": "both galleries joined",
        "open set": "mean of both",
    }
    result = result_frame(NAME, rules, model, first, seconds)
    result["data"] = {"images": len(data.faces), "templates": len(data.subjects)}
    result |= sections(figures[first])
    result["notes"] = list(data.notes)
    if len(figures) > 1:
        result["aggregators"] = {name: sections(each) for name, each in figures.items()}
    return result


def paragraphs(
    figures: Figures, result: Result, data: IjbS, model: Model, references: Mapping[str, Reference]
) -> list[str]:
    """The report: a table like the seed's, what a reader must know, and the comparison of the first."""
    rows = {name: table_row(each) for name, each in figures.items()}
    for name, reference in references.items():
        wanted = ("rank 1", "rank 5", f"TPIR@FPIR {FPIRS[0]:g}")
        if name in PROTOCOLS:
            known = [reference.figures.get(figure, float("nan")) for figure in wanted]
            rows.setdefault(reference.name, {})[name] = (known[0], known[1], known[2])
    head = f"{heading(result, model)}\n\nClosed set in both galleries together, open set the mean; per cent:"
    parts = [head, ijb_s_table(rows)]
    parts += ["\n".join(data.notes)] if data.notes else []
    first = next(iter(figures))
    for name, reference in references.items():
        if name == NAME:
            parts.append(compare(result, reference))
            continue
        ours = {**result, **figures[first][name].to_result()}
        ours["protocol"] = {**result["protocol"], "name": name}
        parts.append(f"## {PROTOCOLS[name].title}\n\n{compare(ours, reference)}")
    return parts

"""Closed-set identification on TinyFace."""

from __future__ import annotations

import argparse
from pathlib import Path

from evaluation.protocols.tinyface import (
    ALIGNED_FOLDERS,
    HOW_TO_GET,
    RANKS,
    TinyFace,
    TinyFaceFigures,
    read_tinyface,
    tinyface_figures,
)
from evaluation.reporting.published import Reference, compare, find_reference
from evaluation.reporting.report import Result, markdown_table, percent
from runtime.command import build_parser, run_command
from runtime.errors import Faults
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

PROTOCOL = "TinyFace"


def main(description: str | None = None) -> int:
    """Run the command and return its exit code; `description` is shown by --help."""
    args = parsed(flags(description), "data_root", "images")
    return run_command(lambda: validate(args))


def flags(description: str | None = None) -> argparse.ArgumentParser:
    """The command's flags."""
    parser = build_parser(description)
    parser.argument_default = argparse.SUPPRESS
    group = parser.add_argument_group("data")
    group.add_argument("--data_root", type=Path, metavar="FOLDER", help="folder with tinyface/Testing_Set")
    group.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help=f"aligned faces (default: {', '.join(ALIGNED_FOLDERS)} in the data root, else Testing_Set)",
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
    protocol = None
    if args.data_root is None:
        faults.sentences.append(f"--data_root is missing: the folder of TinyFace. {HOW_TO_GET}")
    else:
        protocol = faults.of(lambda: read_tinyface(args.data_root, args.images))
    reference = faults.of(lambda: find_reference(args.compare, PROTOCOL)) if args.compare else None
    faults.raise_if_any()
    if model is None or protocol is None:
        return
    figures = evaluate(model, protocol, args.cache or args.out / "features", seconds)
    if figures is not None:
        result = result_of(figures, model, seconds)
        leave(args.out, result, paragraphs(figures, result, model, protocol, reference))


def evaluate(model: Model, protocol: TinyFace, cache: Path, seconds: Seconds) -> TinyFaceFigures | None:
    """Model and files to figures; None in all processes but the first."""
    with seconds.of("embed"):
        store = embed(model, protocol.faces, cache, name=PROTOCOL)
    if store is None:
        return None
    with seconds.of("identify"):
        return tinyface_figures(store.features, protocol)


def result_of(figures: TinyFaceFigures, model: Model, seconds: Seconds) -> Result:
    """The result.json."""
    frame = result_frame(PROTOCOL, {"gallery": "with distractors"}, model, "none", seconds)
    return frame | figures.to_result()


def paragraphs(
    figures: TinyFaceFigures, result: Result, model: Model, protocol: TinyFace, reference: Reference | None
) -> list[str]:
    """The report: the table, what a reader must know, and the comparison."""
    names = [f"rank {rank}" for rank in RANKS]
    rows = [[model.name, *(percent(result["figures"][name]) for name in names)]]
    if reference is not None:
        known = [reference.figures.get(name) for name in names]
        rows.append([reference.name, *("-" if rate is None else percent(rate) for rate in known)])
    head = (
        f"{heading(result, model)}\n\n{figures.probes:,} probes searched among {figures.gallery:,} "
        f"gallery images and {figures.distractors:,} distractors of {protocol.faces.root}; per cent:"
    )
    parts = [head, markdown_table(["model", *names], rows)]
    parts += ["\n".join(protocol.notes)] if protocol.notes else []
    return parts + ([compare(result, reference)] if reference is not None else [])

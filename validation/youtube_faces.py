"""Ten-fold verification accuracy on YouTube Faces."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from evaluation.metrics.verification import few_scores_warnings
from evaluation.protocols.youtube_faces import (
    HOW_TO_GET,
    VideoFigures,
    VideoPairs,
    evaluate_video_pairs,
    frames_are_aligned,
    read_video_pairs,
    video_table,
)
from evaluation.reporting.published import Reference, compare, find_reference
from evaluation.reporting.report import Result
from photos.detection import find_detector
from runtime.command import build_parser, run_command
from runtime.errors import Faults, InputError
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

NAME = "YouTube Faces"
DEFAULT_AGGREGATOR = "norm_weighted"


def main(description: str | None = None) -> int:
    """Run the command and return its exit code; `description` is shown by --help."""
    args = parsed(flags(description), "data_root", "splits", "detector", "aggregator", "aggregator_weights")
    return run_command(lambda: validate(args))


def flags(description: str | None = None) -> argparse.ArgumentParser:
    """The command's flags."""
    parser = build_parser(description)
    parser.argument_default = argparse.SUPPRESS
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data_root", type=Path, metavar="FOLDER", help="holds aligned_images_DB and splits.txt"
    )
    group.add_argument(
        "--splits", type=Path, metavar="FILE", help="the pairs (default: DATA_ROOT/splits.txt)"
    )
    group.add_argument("--frames", type=int, default=0, help="of each video, evenly spaced; 0: all")
    group.add_argument(
        "--detector", type=Path, metavar="FILE", help="YuNet, for frames that are not aligned faces"
    )
    add_model(parser, flip="pre_norm_vector_add")
    add_sets(parser, DEFAULT_AGGREGATOR)
    add_output(parser, "ytf")
    return parser


def validate(args: argparse.Namespace) -> None:
    """Flags to files.

    Raises:
        InputError: flags, weights or data that cannot be used, all in one message.
    """
    faults, seconds = Faults(), Seconds()
    faults.of(lambda: check_output(args.out, args.cache))
    model, aggregators = open_model_of_sets(args, DEFAULT_AGGREGATOR, faults)
    with seconds.of("read"):
        pairs = faults.of(lambda: find_videos(args.data_root, args.splits, args.frames, args.detector))
    reference = faults.of(lambda: find_reference(args.compare, NAME)) if args.compare else None
    faults.raise_if_any()
    if model is None or pairs is None:
        return
    figures = evaluate(model, pairs, aggregators, args.cache or args.out / "features", seconds)
    if figures is not None:
        result = result_of(figures, pairs, model, seconds)
        leave(args.out, result, paragraphs(figures, result, pairs, model, reference))


def find_videos(
    data_root: Path | None, splits: Path | None, most_frames: int, detector: Path | None
) -> VideoPairs:
    """The pairs of the flags, and the detector where frames are not aligned.

    Raises:
        InputError: data that cannot be used, or a detector that has no effect.
    """
    if most_frames < 0:
        raise InputError(f"--frames {most_frames}: expected 0 or more.")
    if data_root is None:
        raise InputError(f"--data_root is missing: the folder of YouTube Faces. {HOW_TO_GET}")
    pairs = read_video_pairs(data_root, splits, most_frames)
    if frames_are_aligned(pairs):
        if detector is not None:
            raise InputError(
                "--detector has no effect: the frames are aligned faces of 112 x 112. Leave it out."
            )
        return pairs
    return replace(pairs, frames=replace(pairs.frames, detector=find_detector(detector)))


def evaluate(
    model: Model, pairs: VideoPairs, aggregators: Mapping[str, nn.Module], cache: Path, seconds: Seconds
) -> dict[str, VideoFigures] | None:
    """Model and files to figures; None in all processes but the first."""
    with seconds.of("embed"):
        store = embed(model, pairs.frames, cache, name=NAME, alignment=pairs.frames.alignment)
    if store is None:
        return None
    with seconds.of("aggregate and score"):
        return evaluate_video_pairs(pairs, store.features, store.norms, aggregators, model.device)


def result_of(
    figures: Mapping[str, VideoFigures], pairs: VideoPairs, model: Model, seconds: Seconds
) -> Result:
    """The result.json: the first aggregator's figures, and those of all where there are several."""
    first = next(iter(figures))
    rules = {"sets": "all frames of a video", "distance": "squared Euclidean"}
    result = result_frame(NAME, rules, model, first, seconds, alignment=pairs.frames.alignment)
    result["data"] = {
        "images": len(pairs.frames),
        "templates": len(pairs.videos),
        "pairs": len(pairs),
        "genuine": int(pairs.is_mated.sum()),
    }
    result |= figures[first].to_result()
    result["figures"] = {f"{name} accuracy": each.accuracy.accuracy for name, each in figures.items()}
    result["notes"] = list(pairs.notes)
    if len(figures) > 1:
        result["aggregators"] = {name: each.to_result() for name, each in figures.items()}
    return result


def paragraphs(
    figures: Mapping[str, VideoFigures],
    result: Result,
    pairs: VideoPairs,
    model: Model,
    reference: Reference | None,
) -> list[str]:
    """The report: the table, what a reader must know, and the comparison of the first aggregator."""
    folds = len(set(pairs.folds.tolist()))
    parts = [f"{heading(result, model)}\n\nAccuracy over {folds} folds, per cent:", video_table(figures)]
    notes = [*few_scores_warnings(next(iter(figures.values())).tar_at_far), *pairs.notes]
    parts += ["\n".join(notes)] if notes else []
    return parts + ([compare(result, reference)] if reference is not None else [])

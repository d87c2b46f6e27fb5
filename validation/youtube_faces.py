"""Ten-fold verification accuracy on YouTube Faces: 5,000 pairs of videos, each a set of frames."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.metrics.verification import few_scores_warnings
from evaluation.reporting.published import Reference
from runtime.errors import InputError
from validation.frame import Report, Run, Validation, heading, result_of_run

if TYPE_CHECKING:
    from evaluation.protocols.pair_sets import PairFigures
    from evaluation.protocols.youtube_faces import VideoPairs


class YouTubeFaces(Validation["VideoPairs", "dict[str, PairFigures]"]):
    """The command validation_hq/validate_ytf.py."""

    name, out = "YouTube Faces", "ytf"
    flip = "pre_norm_vector_add"
    default_aggregator = "norm_weighted"

    def add_data(self, group: argparse._ActionsContainer) -> None:
        group.add_argument(
            "--data_root", type=Path, metavar="FOLDER", help="holds aligned_images_DB and splits.txt"
        )
        group.add_argument(
            "--splits", type=Path, metavar="FILE", help="the pairs (default: DATA_ROOT/splits.txt)"
        )
        group.add_argument(
            "--frames", type=int, default=0, help="frames per video, evenly spaced; 0 uses all"
        )
        group.add_argument(
            "--detector", type=Path, metavar="FILE", help="YuNet, for frames that are not aligned faces"
        )

    def read(self, args: argparse.Namespace) -> VideoPairs:
        from evaluation.protocols.youtube_faces import HOW_TO_GET, frames_are_aligned, read_video_pairs
        from photos.detection import find_detector

        if args.frames < 0:
            raise InputError(f"--frames {args.frames}: expected 0 or more.")
        if args.data_root is None:
            raise InputError(f"--data_root is missing: the folder of YouTube Faces. {HOW_TO_GET}")
        pairs = read_video_pairs(args.data_root, args.splits, args.frames)
        if frames_are_aligned(pairs):
            if args.detector is not None:
                raise InputError(
                    "--detector has no effect: the frames are aligned faces of 112 x 112. Remove it."
                )
            return pairs
        return replace(pairs, frames=replace(pairs.frames, detector=find_detector(args.detector)))

    def evaluate(self, run: Run, data: VideoPairs) -> dict[str, PairFigures] | None:
        from evaluation.protocols.youtube_faces import evaluate_video_pairs

        store = run.embed(data.frames, name=self.name, alignment=data.frames.alignment)
        if store is None:
            return None
        with run.seconds.of("aggregate and score"):
            return evaluate_video_pairs(
                *(data, store.features, store.norms, run.aggregators, run.loaded.device),
                auxiliary_size=run.loaded.auxiliary_size,
            )

    def report(
        self, run: Run, data: VideoPairs, figures: dict[str, PairFigures], reference: Reference | None
    ) -> Report:
        from evaluation.protocols.youtube_faces import video_table

        first = next(iter(figures))
        rules = {"sets": "all frames of a video", "distance": "squared Euclidean"}
        counts = {
            "images": len(data.frames),
            "templates": len(data.videos),
            "pairs": len(data),
            "genuine": int(data.is_mated.sum()),
        }
        result = result_of_run(run, self.name, rules, first, counts, data.frames.alignment)
        result |= figures[first].to_result()
        result["figures"] = {f"{name} accuracy": each.accuracy.accuracy for name, each in figures.items()}
        result["notes"] = list(data.notes)
        if len(figures) > 1:
            result["aggregators"] = {name: each.to_result() for name, each in figures.items()}
        folds = len(set(data.folds.tolist()))
        model = f"{run.loaded.name}, {run.loaded.backbone.spec.name}"
        head = f"{heading(result, model)}\n\nAccuracy over {folds} folds, per cent:"
        notes = [*few_scores_warnings(figures[first].tar_at_far), *data.notes]
        return Report(result, [head, video_table(figures)], notes)


PROTOCOL = YouTubeFaces()

"""The command `inference.py` on sets: flags to report.html, similarity.csv and the descriptors."""

from __future__ import annotations

import argparse
from pathlib import Path

from photos.detection import find_detector
from recognition.aggregation import aggregate_sets
from recognition.calibration.decisions import decide_sets, decisions_text, write_decisions
from recognition.calibration.thresholds import Calibration, read_calibration
from recognition.enrolment.checks import check_sets
from recognition.enrolment.quality_feedback import feedback_text, quality_feedback
from recognition.enrolment.rejections import rejection_reasons, rejection_text
from recognition.face_reading import PhotoOptions
from recognition.flags import calibration_flags, enrolment_limits, open_model, photo_options, set_sources
from recognition.model import FaceModel
from recognition.preprocessing import preprocessing_of
from recognition.report.page import write_page
from recognition.report.summary import InferenceReport, write_summary
from recognition.report.tables import (
    check_text,
    matrix_text,
    similarities,
    write_descriptors,
    write_similarity,
)
from recognition.sources import SetSource
from runtime.errors import Faults, InputError
from runtime.output_checks import require_output_folder
from synthetic.datasets import write_example_sets

_WRITTEN = ("report.html", "similarity.csv", "descriptors.npz", "descriptors.json", "decisions.csv")


def report_sets(args: argparse.Namespace, demo_weights: Path) -> None:
    """Aggregate, compare and check the sets of the flags, and write the report.

    Args:
        args: parsed flags.
        demo_weights: checkpoint for the example sets, which are used if no set is given.

    Raises:
        InputError: flags, weights or sets that cannot be used, all in one message.
    """
    if not args.sets and "images_root" not in args:
        _use_example(args, demo_weights)
    faults = Faults()
    limits = faults.of(lambda: enrolment_limits(args))
    options = faults.of(lambda: photo_options(args))
    faults.of(lambda: require_output_folder(args.out, "--out", files=_WRITTEN))
    sources = faults.of(lambda: set_sources(args))
    model = faults.of(lambda: open_model(args))
    if options is not None and not options.aligned:
        faults.of(lambda: find_detector(options.detector))
    known = None if options is None or model is None or sources is None else (model, options, sources)
    calibration = faults.of(lambda: _calibration(args, known))
    faults.raise_if_any()
    if limits is None or options is None or sources is None or model is None:
        return
    print(model.about)
    sets, empty = aggregate_sets(model, sources, options)
    print(rejection_text(sets, empty, all_in="descriptors.json"), end="")
    if not sets:
        raise InputError(f"nothing was written, as no file of the sets is usable: {rejection_reasons(empty)}")
    matrix = similarities(sets)
    checks = check_sets(model, sets, limits)
    feedback = [quality_feedback(each, check) for each, check in zip(sets, checks, strict=True)]
    decisions = None if calibration is None else decide_sets(calibration, sets, matrix)
    # Printed before the files are written, which fails on a full disk.
    print(f"\n{matrix_text(sets, matrix, decisions)}\n\n{check_text(sets, checks)}")
    print(f"\n{feedback_text(sets, feedback)}")
    if decisions is not None:
        print(f"\n{decisions_text(sets, decisions)}")
        write_decisions(args.out / "decisions.csv", sets, matrix, decisions)
    write_similarity(args.out / "similarity.csv", sets, matrix)
    write_descriptors(args.out / "descriptors.npz", sets, model)
    report = InferenceReport(model, sets, empty, matrix, checks, feedback, decisions)
    write_summary(args.out / "descriptors.json", report)
    write_page(args.out / "report.html", report)
    written = _WRITTEN[: None if decisions is not None else -1]
    print(f"\nwrote {', '.join(written)} to {args.out}")


def _calibration(
    args: argparse.Namespace, known: tuple[FaceModel, PhotoOptions, list[SetSource]] | None
) -> Calibration | None:
    calibration, fmr = calibration_flags(args)
    if calibration is None or known is None:
        return None
    return read_calibration(calibration, known[0].fingerprint, fmr, reading=preprocessing_of(*known))


def _use_example(args: argparse.Namespace, demo_weights: Path) -> None:
    """Set the flags to the example sets, and to the demo's network if no weights are given."""
    usage = (
        "For your own photos: python inference.py --weights WEIGHTS SET_A SET_B ..., where each SET is a "
        "folder of photos, an image or a video; python inference.py --help shows all flags."
    )
    if vars(args).get("weights") is None:
        if not demo_weights.is_file():
            raise InputError(
                "no sets were given, and the example of synthetic faces needs weights: looked for "
                f"{demo_weights}, which 'bash demo.sh' trains in a few minutes; or give others by --weights "
                f"(python convert.py --list-weights). {usage}"
            )
        args.weights = str(demo_weights)
    require_output_folder(args.out, "--out")
    print(f"No sets were given: using three example sets of synthetic faces. {usage}\n")
    args.sets = [str(path) for path in write_example_sets(args.out / "example_sets")]
    args.aligned = True

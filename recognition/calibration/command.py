"""`inference.py calibrate`: flags and labelled sets to a calibration file."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from data.sources.subject_names import same_names
from evaluation.metrics.score_normalisation import (
    DEFAULT_METHOD,
    METHODS,
    METHODS_HELP,
    MIN_COHORT,
    NEEDS_COHORT,
)
from evaluation.metrics.verification import rate_key
from recognition.calibration.measurement import RATES, cohort_normalisation, measure
from recognition.flags import add_model_flags, add_photo_flags, open_model, photo_options
from recognition.gallery.commands import Command
from recognition.preprocessing import preprocessing_of
from runtime.errors import Faults, InputWarning
from runtime.files import atomic_write
from runtime.json_files import json_text
from runtime.output_checks import require_output_file
from runtime.text import first_lines, listed

_MIN_REPLICATES = 40
_NOTES_SHOWN = 5


def run_calibrate(args: argparse.Namespace) -> None:
    """Measure thresholds on the labelled sets of the flags and write calibration.json.

    Raises:
        InputError: flags, weights or photos that cannot be used, all in one message; nothing is written then.
    """
    from recognition.calibration.labelled_sets import aggregate_labelled, find_labelled
    from recognition.calibration.tables import measurement_text

    faults = Faults()
    if args.out.suffix != ".json":
        faults.sentences.append(f"--out {args.out}: expected a name that ends in .json.")
    faults.of(lambda: require_output_file(args.out, "--out"))
    if args.faces == "all":
        faults.sentences.append("--faces all: the other faces in a photo are not its subject. Remove it.")
    if args.replicates < _MIN_REPLICATES:
        faults.sentences.append(f"--replicates {args.replicates}: expected {_MIN_REPLICATES} or more.")
    if args.seed < 0:
        faults.sentences.append(f"--seed {args.seed}: expected 0 or more.")
    root, cohort_root = args.images_root, vars(args).get("cohort")
    if "score_normalisation" in vars(args) and cohort_root is None:
        faults.sentences.append(NEEDS_COHORT)
    sources = faults.of(lambda: find_labelled(root, "--images_root"))
    others = faults.of(
        lambda: [] if cohort_root is None else find_labelled(cohort_root, "--cohort", MIN_COHORT)
    )
    if sources and others:
        both = same_names({each.subject for each in others}, {each.subject for each in sources})
        if both:
            faults.sentences.append(
                f"--cohort {cohort_root}: {listed(both, _NOTES_SHOWN)} are in --images_root too; the "
                "subjects of a cohort must be others."
            )
    options = faults.of(lambda: photo_options(args))
    model = faults.of(lambda: open_model(args))
    reading = None
    if options is not None and model is not None and sources is not None and others is not None:
        read = [each.source for each in (*sources, *others)]
        reading = faults.of(lambda: preprocessing_of(model, options, read))
    faults.raise_if_any()
    if sources is None or others is None or options is None or model is None or reading is None:
        raise RuntimeError("a step without a value left no fault")
    print(model.about)
    labelled = aggregate_labelled(model, sources, options, seed=args.seed)
    normalisation, notes = None, labelled.notes
    if others:
        cohort = aggregate_labelled(model, others, options, seed=args.seed)
        print(cohort.rejected, end="")
        normalisation = cohort_normalisation(cohort, vars(args).get("score_normalisation", DEFAULT_METHOD))
        notes = [*notes, *(f"--cohort: {note}" for note in cohort.notes)]
    print(labelled.rejected, end="")
    if why := model.spec.unmeasured_warning(labelled.descriptors, labelled.subjects):
        warnings.warn(f"{why}, and calibrate with them.", InputWarning, stacklevel=2)
    for note in first_lines(notes, _NOTES_SHOWN, "and {} more"):
        print(f"left out: {note}")
    measured = measure(labelled, normalisation, replicates=args.replicates, seed=args.seed)
    atomic_write(args.out, json_text(measured.content(model.fingerprint, reading)))
    print(f"\n{measurement_text(measured)}\n")
    if measured.everything.rates:
        print(f"{args.out}: use it as --calibration {args.out} --fmr RATE")
    else:
        print(f"{args.out}: contains no threshold, as no rate is supported. Calibrate with more subjects.")


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, metavar="FILE", default=Path("calibration.json"), help="the file to write"
    )
    group = parser.add_argument_group("photos")
    group.add_argument(
        "--images_root",
        type=Path,
        required=True,
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="every subfolder is a subject; its subfolders are sets, loose photos are split into sets",
    )
    group.add_argument(
        "--cohort",
        type=Path,
        metavar="DIR",
        default=argparse.SUPPRESS,
        help=f"normalise scores with these other subjects, {MIN_COHORT} or more, each a subfolder",
    )
    group.add_argument(
        "--score_normalisation",
        choices=METHODS,
        default=argparse.SUPPRESS,
        help=f"method, with --cohort; {METHODS_HELP} (default: {DEFAULT_METHOD})",
    )
    add_photo_flags(group)
    group = parser.add_argument_group("measurement")
    group.add_argument("--replicates", type=int, default=200, help="draws of subjects for the intervals")
    group.add_argument("--seed", type=int, default=0, help="of the draws and of the split into sets")
    add_model_flags(parser)


COMMANDS = {
    "calibrate": Command(
        "Measure similarity thresholds on photos of labelled subjects, for false match rates of "
        f"{', '.join(rate_key(rate) for rate in RATES)}, by the sizes of the two sets, with intervals.",
        _flags,
        run_calibrate,
    )
}

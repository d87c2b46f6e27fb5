"""The gallery commands of `inference.py`: flags -> files and text.

What a gallery is stands in `gallery`, how it is searched in `search`.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.sources.subject_names import same_names
from evaluation.metrics.enrolment_failures import EnrolmentFailures
from evaluation.metrics.verification import RULE_OF_30
from recognition.aggregation import aggregate_sets
from recognition.calibration.decisions import Decisions, decide
from recognition.calibration.thresholds import Calibration, read_calibration
from recognition.enrolment.checks import EnrolmentCheck, check_sets
from recognition.enrolment.quality_feedback import (
    CONTAMINATION,
    Feedback,
    contamination_text,
    face_choice_text,
    feedback_text,
    quality_feedback,
)
from recognition.enrolment.rejections import rejection_reasons, rejection_text
from recognition.face_reading import PhotoOptions
from recognition.flags import (
    add_check_flags,
    add_model_flags,
    add_set_flags,
    enrolment_limits,
    open_model,
    photo_options,
    set_sources,
)
from recognition.gallery.search import (
    Matches,
    OpenSetThreshold,
    check_strangers,
    search,
    threshold_from_gallery,
    threshold_from_strangers,
)
from recognition.gallery.store import SUFFIX, Gallery, enroll, open_gallery, remove
from recognition.model import FaceModel
from recognition.preprocessing import preprocessing_of, preprocessing_text
from recognition.records import AggregatedSet, EmptySet
from recognition.sources import SetSource, find_sets
from runtime.errors import Faults, InputError, InputWarning
from runtime.escaping import escaped
from runtime.output_checks import require_free_space, require_output_file

_NAMES_SHOWN = 5
_SETS_SHOWN = 20
# A descriptor and the names of its files.
_BYTES_OF_PERSON = 4096


class GalleryCommand:
    """One command: what it is for, its flags, and what it does."""

    def __init__(
        self,
        text: str,
        add_flags: Callable[[argparse.ArgumentParser], None],
        run: Callable[[argparse.Namespace], None],
    ) -> None:
        self.help = text
        # What `build_parser` shows.
        self.__doc__ = text
        self.add_flags = add_flags
        self.run = run


def enroll_sets(args: argparse.Namespace) -> None:
    """Sets of the flags into the gallery, all in one writing.

    Raises:
        InputError: flags, sets, weights or a gallery that cannot be used, or without --force a set that may
            show more than one person; nothing was changed then, for no set.
    """
    faults = Faults()
    limits = faults.of(lambda: enrolment_limits(args))
    opened = faults.of(lambda: _opened(args, may_be_missing=True))
    faults.raise_if_any()
    if limits is None or opened is None:
        return
    sources, options, model, reading, gallery = opened
    if gallery is not None and not args.replace:
        # Hours before the photos are embedded, not after.
        there = same_names((source.name for source in sources), gallery.names)
        if there:
            raise InputError(
                f"{args.gallery}: already enrolled: {', '.join(there[:_NAMES_SHOWN])}. Nothing was changed. "
                "Add --replace to replace them, 'remove' them before, or rename the folders."
            )
    sets, empty = aggregate_sets(model, sources, options)
    print(rejection_text(sets, empty), end="")
    if not sets:
        raise InputError(
            f"the gallery is as it was, as no file of the sets can be used: {rejection_reasons(empty)}"
        )
    others = None if gallery is None else gallery.descriptors
    checks = check_sets(model, sets, limits, others=others, leave_out=False)
    advice = [quality_feedback(each, check) for each, check in zip(sets, checks, strict=True)]
    if not args.force:
        _refuse_contaminated(sets, checks, advice)
    people = Gallery(
        tuple(each.name for each in sets),
        _descriptors(sets),
        np.array([each.norm for each in sets], np.float32),
        tuple(tuple(each.files) for each in sets),
        model.fingerprint,
        reading,
    )
    after = enroll(args.gallery, people, replace=args.replace)
    if empty:
        print(_failures(sets, empty).text())
    for each in sets:
        faces = "1 face" if len(each.faces) == 1 else f"{len(each.faces):,} faces"
        print(f"enrolled {each.name}: {faces}, norm {each.norm:.2f}")
    if any(advice):
        print(feedback_text(sets, advice, all_in="inference.py on the same sets"))
    print(f"{args.gallery}: {_people(len(after))}")


def search_sets(args: argparse.Namespace) -> None:
    """Says who the sets of the flags are most like, and with --fpir whether they are anybody who is enrolled.

    Raises:
        InputError: flags, sets, weights or a gallery that cannot be used.
    """
    faults = Faults()
    if args.top < 1:
        faults.sentences.append(f"--top {args.top}: expected 1 or more.")
    fpir, root = vars(args).get("fpir"), vars(args).get("non_mated")
    if root is not None and fpir is None:
        faults.sentences.append("--non_mated has an effect with --fpir alone. Leave it out, or give --fpir.")
    strangers = faults.of(lambda: [] if root is None else find_sets([], Path(root)))
    if root is not None and fpir is not None and strangers is not None:
        count = len(strangers)
        faults.of(lambda: check_strangers(count, fpir))
    calibration, fmr = vars(args).get("calibration"), vars(args).get("fmr")
    if fmr is not None and calibration is None:
        faults.sentences.append("--fmr chooses a threshold of --calibration FILE, which is missing.")
    opened = faults.of(lambda: _opened(args, may_be_missing=False))
    faults.raise_if_any()
    if opened is None:
        return
    sources, options, model, reading, gallery = opened
    calibrated = None
    if calibration is not None:
        calibrated = read_calibration(calibration, model.fingerprint, fmr, reading=reading)
    if gallery is None or not len(gallery):
        raise InputError(f"{args.gallery}: nobody is enrolled.")
    threshold = None
    if fpir is not None and not strangers:
        # Before the photos are embedded: a small gallery does not support every FPIR.
        threshold = threshold_from_gallery(gallery.descriptors, fpir)
    elif fpir is not None:
        others, empty = aggregate_sets(model, strangers or [], options)
        print(rejection_text(others, empty), end="")
        if empty:
            # One set a person; a search without a face is no false positive.
            print(f"{_failures(others, empty).text()} FPIR leaves them out.")
        threshold = threshold_from_strangers(_descriptors(others), gallery.descriptors, fpir)
    sets, empty = aggregate_sets(model, sources, options)
    print(rejection_text(sets, empty), end="")
    if not sets:
        raise InputError(f"no file of the sets can be used: {rejection_reasons(empty)}")
    print(face_choice_text(sets), end="")
    if why := model.spec.unmeasured_warning(gallery.descriptors, np.arange(len(gallery))):
        warnings.warn(f"{args.gallery}: {why}, and enrol anew.", InputWarning, stacklevel=2)
    else:
        mixed = [f"{each.name}: {text}\n" for each in sets if (text := contamination_text(model, each))]
        more = f"... and {len(mixed) - _SETS_SHOWN:,} more.\n" if len(mixed) > _SETS_SHOWN else ""
        print("".join(mixed[:_SETS_SHOWN]) + more, end="")
    found = search(_descriptors(sets), gallery.descriptors, args.top)
    decisions = None if calibrated is None else decide_matches(calibrated, sets, gallery, found)
    print(matches_text(sets, gallery, found, threshold, decisions))
    if threshold is not None:
        print(f"\n{threshold_text(threshold, gallery)}")
    if decisions is not None:
        print(f"\n{decisions_note(decisions, gallery)}")


def remove_people(args: argparse.Namespace) -> None:
    """Takes people out of the gallery."""
    names = list(dict.fromkeys(map(escaped, args.names)))
    after = remove(args.gallery, names)
    print(f"removed {', '.join(names)}\n{args.gallery}: {_people(len(after))}")


def _people(count: int) -> str:
    return "1 person" if count == 1 else f"{count:,} people"


def list_people(args: argparse.Namespace) -> None:
    """Shows who is enrolled."""
    gallery = open_gallery(args.gallery)
    width = max((len(name) for name in gallery.names), default=0)
    for name, norm, files in zip(gallery.names, gallery.norms, gallery.files, strict=True):
        print(f"{name:{width}}  {len(files):6,} faces  norm {norm:6.2f}")
    print(
        f"{args.gallery}: {_people(len(gallery))}, {gallery.descriptors.shape[1]} values each, "
        f"made with the model {gallery.fingerprint[:12]}; {preprocessing_text(gallery.reading)}"
    )


def matches_text(
    sets: Sequence[AggregatedSet],
    gallery: Gallery,
    found: Matches,
    threshold: OpenSetThreshold | None,
    decisions: Decisions | None = None,
) -> str:
    """The best matches of each set, with a threshold who it is, and with (P, k) decisions what they say."""
    lines = []
    for probe, (each, rows, scores) in enumerate(zip(sets, found.rows, found.scores, strict=True)):
        answer = ""
        if threshold is not None:
            known = scores[0] >= threshold.threshold
            answer = f": {gallery.names[rows[0]]}" if known else ": nobody who is enrolled"
        lines.append(f"{each.name}{answer}")
        lines += [
            f"  {rank}. {score:7.4f}  {gallery.names[row]}{_decided(decisions, (probe, rank - 1))}"
            for rank, (row, score) in enumerate(zip(rows, scores, strict=True), 1)
        ]
    return "\n".join(lines)


def decide_matches(
    calibration: Calibration, sets: Sequence[AggregatedSet], gallery: Gallery, found: Matches
) -> Decisions:
    """Decisions (P, k) on the matches of P sets, each as if the two had been compared alone."""
    cosines = found.scores.astype(np.float64)
    if calibration.normalisation is not None:
        rows = [gallery.descriptors[best] for best in found.rows]
        embeddings = _descriptors(sets)
        cosines = np.concatenate(
            [
                calibration.compared(found.scores[place : place + 1], embeddings[place : place + 1], others)
                for place, others in enumerate(rows)
            ]
        )
    first = np.array([len(each.faces) for each in sets])
    second = np.array([len(files) for files in gallery.files])[found.rows]
    return decide(calibration, cosines, first[:, None], second)


def decisions_note(decisions: Decisions, gallery: Gallery) -> str:
    """What the decisions rest on, and what a search makes of their rate."""
    alarms = len(gallery) * float(decisions.fmr)
    return (
        f"one person or two: at a false match rate of {decisions.fmr}, for each comparison. A search makes "
        f"{len(gallery):,}, so that of people who are not there {min(alarms, 1.0):.1e} or less are taken for "
        "somebody: --fpir sets that rate itself."
    )


def _decided(decisions: Decisions | None, place: tuple[int, int]) -> str:
    if decisions is None:
        return ""
    score = f"normalised {decisions.scores[place]:.4f}, " if decisions.normalisation else ""
    return (
        f"  {decisions.verdict(place)} ({score}threshold {decisions.threshold_text(place)} for "
        f"{decisions.sizes_text(place)}; flips at FMR {decisions.flip_text(place)})"
    )


def threshold_text(threshold: OpenSetThreshold, gallery: Gallery) -> str:
    """What the threshold is and what it rests on."""
    low, high = threshold.interval95
    text = (
        f"threshold {threshold.threshold:.4f} for FPIR {threshold.fpir:g}: {threshold.alarms:,} of "
        f"{threshold.comparisons:,} searches of people who were not there reach it (95 % interval of the "
        f"rate {low:.2g} to {high:.2g})."
    )
    if threshold.alarms < RULE_OF_30:
        needed = RULE_OF_30 / threshold.fpir
        text += f" The rule of 30 asks for {RULE_OF_30} that reach it, hence for {needed:,.0f} searches."
    if threshold.closest is None:
        return text
    first, second = (gallery.names[row] for row in threshold.closest)
    return (
        f"{text}\nThey are the enrolled themselves, each searched among all others; probes poorer than what "
        "was enrolled are found less often. The two most alike among these: "
        f"{first} and {second}; are they one person?"
    )


def _opened(
    args: argparse.Namespace, *, may_be_missing: bool
) -> tuple[list[SetSource], PhotoOptions, FaceModel, dict[str, str], Gallery | None]:
    """Sets, how to read them, the model, the record of both, and the gallery; all faults in one message."""
    faults = Faults()
    missing = may_be_missing and not args.gallery.exists()
    if may_be_missing and args.gallery.suffix != SUFFIX:
        faults.sentences.append(f"--gallery {args.gallery}: expected a name that ends in {SUFFIX}.")
    if may_be_missing:
        faults.of(lambda: require_output_file(args.gallery, "--gallery"))
    gallery = None if missing else faults.of(lambda: open_gallery(args.gallery))
    sources = faults.of(lambda: set_sources(args))
    if may_be_missing and sources is not None:
        # The file of before stays until the new one is whole.
        before = 0 if missing else args.gallery.stat().st_size
        needed = before + len(sources) * _BYTES_OF_PERSON
        faults.of(lambda: require_free_space(args.gallery.parent, needed))
    options = faults.of(lambda: photo_options(args))
    model = faults.of(lambda: open_model(args))
    if gallery is not None and model is not None:
        faults.of(lambda: gallery.check_model(model.fingerprint))
    reading: dict[str, str] | None = None
    if sources is not None and options is not None and model is not None:
        reading = faults.of(lambda: preprocessing_of(model, options, sources))
    if gallery is not None and reading is not None:
        faults.of(lambda: gallery.check_reading(reading))
    faults.raise_if_any()
    if sources is None or options is None or model is None or reading is None:
        raise RuntimeError("what is None has left a fault")
    return sources, options, model, reading, gallery


def _refuse_contaminated(
    sets: Sequence[AggregatedSet], checks: Sequence[EnrolmentCheck], advice: Sequence[Sequence[Feedback]]
) -> None:
    """Raises InputError with all sets that may show more than one person."""
    faults = [
        f"  {each.name}: {one.text}"
        for each, check, found in zip(sets, checks, advice, strict=True)
        for one in found
        if check.is_contaminated and one.topic in CONTAMINATION
    ]
    if faults:
        raise InputError.from_faults(
            [
                f"{len(faults):,} of {len(sets):,} sets may show more than one person. Nothing was enrolled. "
                "Correct these sets, or enroll them as they are with --force:",
                *faults,
            ]
        )


def _descriptors(sets: Sequence[AggregatedSet]) -> NDArray[np.float32]:
    return np.stack([each.embedding for each in sets]).astype(np.float32) if sets else np.empty((0, 0), "f4")


def _failures(sets: Sequence[AggregatedSet], empty: Sequence[EmptySet]) -> EnrolmentFailures:
    """Each set is a person."""
    attempts = len(sets) + len(empty)
    return EnrolmentFailures(attempts, len(empty), attempts, len(empty))


def _gallery_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gallery",
        type=Path,
        required=True,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help=f"the gallery, {SUFFIX}",
    )


def _enroll_flags(parser: argparse.ArgumentParser) -> None:
    _gallery_flag(parser)
    add_set_flags(parser)
    add_model_flags(parser)
    add_check_flags(parser)
    parser.add_argument("--replace", action="store_true", help="replace people of the same names")
    parser.add_argument(
        "--force", action="store_true", help="enroll sets that may show more than one person too"
    )


def _search_flags(parser: argparse.ArgumentParser) -> None:
    _gallery_flag(parser)
    add_set_flags(parser)
    add_model_flags(parser)
    group = parser.add_argument_group("search")
    group.add_argument("--top", type=int, default=5, help="matches shown of each set")
    group.add_argument(
        "--fpir",
        type=float,
        default=argparse.SUPPRESS,
        metavar="RATE",
        help="say who it is, so that this share of people who are not enrolled is taken for somebody",
    )
    group.add_argument(
        "--non_mated",
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="find the threshold of --fpir with these: every subfolder a person who is not enrolled "
        "(default: with the enrolled, each searched among the others)",
    )
    group.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="say of each match whether it is one person, by the thresholds of 'calibrate'",
    )
    group.add_argument(
        "--fmr",
        metavar="RATE",
        default=argparse.SUPPRESS,
        help="false match rate of a comparison (default: the lowest in --calibration)",
    )


def _remove_flags(parser: argparse.ArgumentParser) -> None:
    _gallery_flag(parser)
    parser.add_argument("names", nargs="+", metavar="NAME", help="who goes")


COMMANDS = {
    "enroll": GalleryCommand(
        "Adds sets of photos to a gallery, each a person under the name of its folder or file.",
        _enroll_flags,
        enroll_sets,
    ),
    "search": GalleryCommand("Says who in a gallery each set is most like.", _search_flags, search_sets),
    "remove": GalleryCommand("Takes people out of a gallery.", _remove_flags, remove_people),
    "list": GalleryCommand("Shows who is in a gallery.", _gallery_flag, list_people),
}

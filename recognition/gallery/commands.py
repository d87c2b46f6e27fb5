"""The gallery commands of `inference.py`: flags to files and text."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recognition.gallery.contents import GalleryInfo
from recognition.gallery.database import SUFFIX, check_suffix
from recognition.gallery.exchange import export_gallery, import_galleries
from recognition.gallery.store import (
    already_enrolled,
    enrolled_names,
    gallery_info,
    list_subjects,
    open_gallery,
    remove,
    rename,
)
from recognition.preprocessing import preprocessing_text
from runtime.errors import InputError
from runtime.escaping import escaped
from runtime.output_checks import require_free_space, require_output_file
from runtime.text import first_lines

# `list`, `remove`, `rename`, `export` and `import` need no model: what imports PyTorch or OpenCV is imported
# by the functions that need it.
if TYPE_CHECKING:
    from evaluation.metrics.enrolment_failures import EnrolmentFailures
    from recognition.face_reading import PhotoOptions
    from recognition.model import FaceModel
    from recognition.records import AggregatedSet, EmptySet
    from recognition.sources import SetSource
    from runtime.errors import Faults

_SETS_SHOWN = 20
# A descriptor and the names of its files.
_BYTES_PER_SUBJECT = 4096


@dataclass(frozen=True)
class Command:
    """A command of `inference.py`: its description, its flags, and what it does."""

    description: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def run_enroll(args: argparse.Namespace) -> None:
    """Enroll the sets of the flags, all in one transaction.

    Raises:
        InputError: flags, sets, weights or a gallery that cannot be used, or without --force a set that may
            show more than one person; nothing was changed then.
    """
    from recognition.aggregation import aggregate_sets
    from recognition.enrolment.quality_feedback import feedback_text
    from recognition.enrolment.rejections import rejection_reasons, rejection_text
    from recognition.flags import enrolment_limits
    from recognition.gallery.enrol import enroll_sets
    from runtime.errors import Faults

    faults = Faults()
    limits = faults.of(lambda: enrolment_limits(args))
    gallery = args.gallery
    faults.of(lambda: check_suffix(gallery))
    faults.of(lambda: require_output_file(gallery, "--gallery"))
    sources, options, model, reading, info = _opened(args, faults, may_be_missing=True)
    require_free_space(gallery.parent, _BYTES_PER_SUBJECT * len(sources))
    if info is not None and not args.replace:
        # Before the photos are read, which may take hours.
        there = enrolled_names(gallery, [source.name for source in sources])
        if there:
            raise already_enrolled(gallery, there)
    sets, empty = aggregate_sets(model, sources, options)
    print(rejection_text(sets, empty), end="")
    if not sets:
        raise InputError(
            f"nothing was enrolled, as no file of the sets can be used: {rejection_reasons(empty)}"
        )
    advice, count = enroll_sets(gallery, model, sets, reading, limits, replace=args.replace, force=args.force)
    if empty:
        print(_failures(sets, empty).text())
    for each in sets:
        faces = "1 face" if len(each.faces) == 1 else f"{len(each.faces):,} faces"
        print(f"enrolled {each.name}: {faces}, norm {each.norm:.2f}")
    if any(advice):
        print(feedback_text(sets, advice, all_in="inference.py on the same sets"))
    print(f"{gallery}: {_subjects(count)}")


def run_search(args: argparse.Namespace) -> None:
    """Print the enrolled subjects most like each set, and with --fpir whether it is one of them.

    Raises:
        InputError: flags, sets, weights or a gallery that cannot be used.
    """
    from recognition.aggregation import aggregate_sets
    from recognition.calibration.thresholds import read_calibration
    from recognition.enrolment.quality_feedback import contamination_text, face_choice_text
    from recognition.enrolment.rejections import rejection_reasons, rejection_text
    from recognition.flags import calibration_flags
    from recognition.gallery.enrol import descriptors_of
    from recognition.gallery.identify import identify
    from recognition.gallery.open_set import (
        check_num_nonmated,
        num_needed,
        threshold_from_gallery,
        threshold_from_nonmated,
    )
    from recognition.sources import find_sets
    from runtime.errors import Faults

    faults = Faults()
    if args.top < 1:
        faults.sentences.append(f"--top {args.top}: expected 1 or more.")
    fpir, root = vars(args).get("fpir"), vars(args).get("non_mated")
    if root is not None and fpir is None:
        faults.sentences.append("--non_mated has no effect without --fpir. Remove it, or give --fpir.")
    nonmated = faults.of(lambda: [] if root is None else find_sets([], Path(root)))
    if fpir is not None and root is None:
        faults.of(lambda: num_needed(fpir))
    elif fpir is not None and nonmated is not None:
        count = len(nonmated)
        faults.of(lambda: check_num_nonmated(count, fpir))
    calibration_file, fmr = faults.of(lambda: calibration_flags(args)) or (None, None)
    sources, options, model, reading, info = _opened(args, faults, may_be_missing=False)
    calibration = None
    if calibration_file is not None:
        calibration = read_calibration(calibration_file, model.fingerprint, fmr, reading=reading)
    if info is None or not info.count:
        raise InputError(f"{args.gallery}: no subject is enrolled. Add subjects with 'inference.py enroll'.")
    gallery = open_gallery(args.gallery)
    threshold = None
    if fpir is not None and not nonmated:
        # Before the photos are read: a small gallery does not support every FPIR.
        threshold = threshold_from_gallery(gallery.descriptors, fpir)
    elif fpir is not None:
        others, empty = aggregate_sets(model, nonmated or [], options)
        print(rejection_text(others, empty), end="")
        if empty:
            print(f"{_failures(others, empty).text()} FPIR does not count them.")
        threshold = threshold_from_nonmated(descriptors_of(others), gallery.descriptors, fpir)
    sets, empty = aggregate_sets(model, sources, options)
    print(rejection_text(sets, empty), end="")
    if not sets:
        raise InputError(f"no file of the sets can be used: {rejection_reasons(empty)}")
    print(face_choice_text(sets), end="")
    found = identify(model, sets, gallery, top=args.top, threshold=threshold, calibration=calibration)
    if found.is_trusted:
        mixed = [f"{each.name}: {text}" for each in sets if (text := contamination_text(model, each))]
        for line in first_lines(mixed, _SETS_SHOWN):
            print(line)
    print(found.text())


def run_remove(args: argparse.Namespace) -> None:
    """Remove subjects."""
    names = list(dict.fromkeys(map(escaped, args.names)))
    count = remove(args.gallery, names)
    print(f"removed {', '.join(names)}\n{args.gallery}: {_subjects(count)}")


def run_rename(args: argparse.Namespace) -> None:
    """Rename a subject."""
    rename(args.gallery, args.old, args.new)
    print(f"{args.gallery}: renamed {escaped(args.old)} to {escaped(args.new)}")


def run_list(args: argparse.Namespace) -> None:
    """Print the enrolled subjects."""
    info, subjects = list_subjects(args.gallery)
    width = max((len(subject.name) for subject in subjects), default=0)
    for name, norm, files in subjects:
        print(f"{name:{width}}  {len(files):6,} faces  norm {norm:6.2f}")
    text = f"{args.gallery}: {_subjects(info.count)}"
    if subjects:
        text += f", {info.dimension} values each, made with the model {info.fingerprint[:12]}; "
        text += preprocessing_text(info.reading)
    print(text)


def run_export(args: argparse.Namespace) -> None:
    """Write the gallery as .npz or .csv."""
    require_output_file(args.out, "--out", inputs=[args.gallery])
    print(f"{args.out}: {_subjects(export_gallery(args.gallery, args.out))} of {args.gallery}")


def run_import(args: argparse.Namespace) -> None:
    """Add the subjects of exported galleries."""
    count = import_galleries(args.files, args.gallery, replace=args.replace)
    print(f"imported {', '.join(map(str, args.files))}\n{args.gallery}: {_subjects(count)}")


def _opened(
    args: argparse.Namespace, faults: Faults, *, may_be_missing: bool
) -> tuple[list[SetSource], PhotoOptions, FaceModel, dict[str, str], GalleryInfo | None]:
    """Sets, how to read them, the model, the record of both, and the gallery; all faults in one message."""
    from recognition.flags import open_model, photo_options, set_sources
    from recognition.preprocessing import preprocessing_of

    path = args.gallery
    is_missing = may_be_missing and not path.exists()
    info = None if is_missing else faults.of(lambda: gallery_info(path))
    sources = faults.of(lambda: set_sources(args))
    options = faults.of(lambda: photo_options(args))
    model = faults.of(lambda: open_model(args))
    if info is not None and model is not None:
        faults.of(lambda: info.check_model(path, model.fingerprint))
    reading: dict[str, str] | None = None
    if sources is not None and options is not None and model is not None:
        reading = faults.of(lambda: preprocessing_of(model, options, sources))
    if info is not None and reading is not None:
        faults.of(lambda: info.check_reading(path, reading))
    faults.raise_if_any()
    if sources is None or options is None or model is None or reading is None:
        raise RuntimeError("a step without a value left no fault")
    return sources, options, model, reading, info


def _failures(sets: Sequence[AggregatedSet], empty: Sequence[EmptySet]) -> EnrolmentFailures:
    """Failures to enrol, where each set is a subject."""
    from evaluation.metrics.enrolment_failures import EnrolmentFailures

    attempts = len(sets) + len(empty)
    return EnrolmentFailures(attempts, len(empty), attempts, len(empty))


def _subjects(count: int) -> str:
    return "1 subject" if count == 1 else f"{count:,} subjects"


# ---------------------------------------------------------------------------------------------- flags


def _gallery_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gallery",
        type=Path,
        required=True,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help=f"the gallery, a file that ends in {SUFFIX}",
    )


def _enroll_flags(parser: argparse.ArgumentParser) -> None:
    from recognition.flags import add_check_flags, add_model_flags, add_set_flags

    _gallery_flag(parser)
    add_set_flags(parser)
    add_model_flags(parser)
    add_check_flags(parser)
    parser.add_argument("--replace", action="store_true", help="replace subjects of the same names")
    parser.add_argument(
        "--force", action="store_true", help="enroll sets that may show more than one person too"
    )


def _search_flags(parser: argparse.ArgumentParser) -> None:
    from recognition.flags import add_calibration_flags, add_model_flags, add_set_flags

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
        help="answer with a name or 'not enrolled', at this false positive identification rate: the share of "
        "searches of subjects who are not enrolled that return a name",
    )
    group.add_argument(
        "--non_mated",
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="find the threshold of --fpir with these: every subfolder a subject who is not enrolled "
        "(default: with the enrolled, each searched among the others)",
    )
    add_calibration_flags(
        group,
        purpose="say of each match whether it is one person, by the thresholds of 'calibrate'",
        rate="a comparison",
    )


def _remove_flags(parser: argparse.ArgumentParser) -> None:
    _gallery_flag(parser)
    parser.add_argument("names", nargs="+", metavar="NAME", help="subjects to remove")


def _rename_flags(parser: argparse.ArgumentParser) -> None:
    _gallery_flag(parser)
    parser.add_argument("old", metavar="NAME", help="name of an enrolled subject")
    parser.add_argument("new", metavar="NEW_NAME", help="its new name")


def _export_flags(parser: argparse.ArgumentParser) -> None:
    _gallery_flag(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="file to write, .npz or .csv",
    )


def _import_flags(parser: argparse.ArgumentParser) -> None:
    _gallery_flag(parser)
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="exported galleries (.npz, .csv), or older ones"
    )
    parser.add_argument("--replace", action="store_true", help="replace subjects of the same names")


COMMANDS = {
    "enroll": Command(
        "Add sets of photos to a gallery, each a subject under the name of its folder or file.",
        _enroll_flags,
        run_enroll,
    ),
    "search": Command("Find the enrolled subjects most like each set.", _search_flags, run_search),
    "remove": Command("Remove subjects from a gallery.", _remove_flags, run_remove),
    "rename": Command("Rename a subject of a gallery.", _rename_flags, run_rename),
    "list": Command("List the subjects of a gallery.", _gallery_flag, run_list),
    "export": Command("Write a gallery as .npz or .csv.", _export_flags, run_export),
    "import": Command("Add the subjects of an exported gallery to a gallery.", _import_flags, run_import),
}

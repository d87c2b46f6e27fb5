"""Photos of people -> one descriptor a set, how alike the sets are, and why.

python inference.py --weights WEIGHTS anna_holiday/ anna_passport.jpg visitor.mp4
    each SET is a folder of photos and videos, one photo, or one video
python inference.py --weights WEIGHTS --images_root people/
    every subfolder is a set
python inference.py
    example sets of drawn faces
python inference.py enroll|search|remove|list --help
    a gallery of enrolled sets
python inference.py calibrate --help
    thresholds from photos of people whose names are known, for --calibration

Prints the similarity matrix and what to look at before enrolling a set; writes report.html (open it in a
browser), similarity.csv, descriptors.npz and descriptors.json into --out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import cv2

from data.sources.decoding import Image
from photos.detection import find_detector
from recognition.aggregation import aggregate_sets
from recognition.calibration.decisions import decide_sets, decisions_text, write_decisions
from recognition.calibration.thresholds import Calibration, read_calibration
from recognition.enrolment.checks import check_sets
from recognition.enrolment.quality_feedback import feedback_text, quality_feedback
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
from recognition.model import FaceModel, embed_images, embed_set, load_model
from recognition.preprocessing import preprocessing_of
from recognition.report.page import Report, write_page
from recognition.report.summary import write_summary
from recognition.report.tables import (
    check_text,
    matrix_text,
    similarities,
    write_descriptors,
    write_similarity,
)
from recognition.sources import SetSource
from runtime.command import build_parser, run_command
from runtime.errors import InputError
from runtime.files import atomic_write, require_output_folder
from synthetic.faces import draw_faces, draw_portrait

__all__ = ["embed_images", "embed_set", "load_model"]

ROOT = Path(__file__).resolve().parent
EXPERIMENTS = ROOT / "experiments"
DEMO_WEIGHTS = ROOT / "demo" / "coreset_0" / "best.ckpt"
GALLERY_COMMANDS = ("enroll", "search", "remove", "list")
CALIBRATE = "calibrate"
_WRITTEN = ("report.html", "similarity.csv", "descriptors.npz", "descriptors.json", "decisions.csv")
# Subjects that the demo's network has not seen: it learns from those of seed 0.
_EXAMPLE_SEED, _EXAMPLE_SUBJECT, _EXAMPLE_FACES = 1, 2, 9
_Value = TypeVar("_Value")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; gives its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in (*GALLERY_COMMANDS, CALIBRATE):
        return _command(given[0], given[1:])
    args = flags().parse_args(given)
    return run_command(lambda: infer(args))


def flags() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = build_parser(__doc__)
    add_set_flags(parser)
    add_model_flags(parser)
    add_check_flags(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=EXPERIMENTS / "inference",
        help="folder of all that is written",
    )
    group.add_argument(
        "--calibration", type=Path, metavar="FILE", default=argparse.SUPPRESS, help="thresholds of this model"
    )
    group.add_argument(
        "--fmr",
        metavar="RATE",
        default=argparse.SUPPRESS,
        help="false match rate whose threshold decides (default: the lowest in --calibration)",
    )
    return parser


def infer(args: argparse.Namespace) -> None:
    """Flags to files.

    Raises:
        InputError: flags, weights or sets that cannot be used, all in one message.
    """
    if not args.sets and "images_root" not in args:
        _use_example(args)
    faults: list[str] = []
    limits = _tried(faults, lambda: enrolment_limits(args))
    options = _tried(faults, lambda: photo_options(args))
    _tried(faults, lambda: require_output_folder(args.out, "--out", files=_WRITTEN))
    sources = _tried(faults, lambda: set_sources(args))
    model = _tried(faults, lambda: open_model(args))
    if options is not None and not options.aligned:
        _tried(faults, lambda: find_detector(options.detector))
    known = None if options is None or model is None or sources is None else (model, options, sources)
    calibration = _tried(faults, lambda: _calibration(args, known))
    if limits is None or options is None or sources is None or model is None or faults:
        raise InputError.from_faults(faults)
    print(model.about)
    sets, empty = aggregate_sets(model, sources, options)
    print(rejection_text(sets, empty, all_in="descriptors.json"), end="")
    if not sets:
        raise InputError(f"nothing was written, as no file of the sets is usable: {rejection_reasons(empty)}")
    matrix = similarities(sets)
    checks = check_sets(model, sets, limits)
    advice = [quality_feedback(each, check) for each, check in zip(sets, checks, strict=True)]
    decisions = None if calibration is None else decide_sets(calibration, sets, matrix)
    # Before the files, of which a full disk may take none.
    print(f"\n{matrix_text(sets, matrix, decisions)}\n\n{check_text(sets, checks)}")
    print(f"\n{feedback_text(sets, advice)}")
    if decisions is not None:
        print(f"\n{decisions_text(sets, decisions)}")
        write_decisions(args.out / "decisions.csv", sets, matrix, decisions)
    write_similarity(args.out / "similarity.csv", sets, matrix)
    write_descriptors(args.out / "descriptors.npz", sets, model)
    write_summary(args.out / "descriptors.json", model, sets, empty, checks, advice)
    write_page(args.out / "report.html", Report(model, sets, empty, matrix, checks, decisions))
    written = _WRITTEN[: None if decisions is not None else -1]
    print(f"\neverything is in {args.out}: {', '.join(written)}")


def draw_example(folder: Path) -> list[Path]:
    """Writes three sets of drawn faces: two of one subject, and one of another with a face of the first.

    Raises:
        InputError: the folder holds anything else, which is neither shown nor removed.
    """

    def png(face: Image) -> bytes:
        return bytes(cv2.imencode(".png", cv2.cvtColor(face, cv2.COLOR_RGB2BGR))[1])

    subjects: list[list[bytes]] = [[], []]
    drawn = draw_faces(num_subjects=len(subjects), seed=_EXAMPLE_SEED, first_subject=_EXAMPLE_SUBJECT)
    for face in drawn:
        subjects[face.subject - _EXAMPLE_SUBJECT].append(png(face.image))
    first, second = subjects
    # The last ones of a subject are clips.
    sets = {
        "alex_album": first[:_EXAMPLE_FACES],
        "alex_camera": first[-_EXAMPLE_FACES:],
        "robin_album": [*second[:_EXAMPLE_FACES], png(draw_portrait(_EXAMPLE_SUBJECT, seed=_EXAMPLE_SEED))],
    }
    files = {
        folder / name / f"{number:02}.png": encoded
        for name, faces in sets.items()
        for number, encoded in enumerate(faces)
    }
    there = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
    if others := [path for path in there if path not in files or path.read_bytes() != files[path]]:
        raise InputError(
            f"{folder}: holds files that are not of the example, such as {others[0]}. Choose another --out, "
            "or move them away."
        )
    for path, encoded in files.items():
        atomic_write(path, encoded)
    return [folder / name for name in sets]


def _tried(faults: list[str], step: Callable[[], _Value]) -> _Value | None:
    """What `step` gives; its InputError is added to `faults`, so that all are told at once."""
    try:
        return step()
    except InputError as fault:
        faults.append(str(fault))
        return None


def _calibration(
    args: argparse.Namespace, known: tuple[FaceModel, PhotoOptions, list[SetSource]] | None
) -> Calibration | None:
    calibration, fmr = vars(args).get("calibration"), vars(args).get("fmr")
    if calibration is None and fmr is not None:
        raise InputError("--fmr chooses a threshold of --calibration FILE, which is missing.")
    if calibration is None or known is None:
        return None
    return read_calibration(calibration, known[0].fingerprint, fmr, reading=preprocessing_of(*known))


def _use_example(args: argparse.Namespace) -> None:
    """Without sets: drawn ones, and the demo's network where no weights are given."""
    how = (
        "To see your own: python inference.py --weights WEIGHTS SET_A SET_B ..., each SET a folder of "
        "photos, an image or a video; python inference.py --help shows all flags."
    )
    if vars(args).get("weights") is None:
        if not DEMO_WEIGHTS.is_file():
            raise InputError(
                "no sets were given, and the example of drawn faces needs weights: looked for "
                f"{DEMO_WEIGHTS}, which 'bash demo.sh' trains in a few minutes; or name some by --weights "
                f"(python convert.py --list-weights). {how}"
            )
        args.weights = str(DEMO_WEIGHTS)
    require_output_folder(args.out, "--out")
    print(f"No sets were given: three sets of drawn faces are shown. {how}\n")
    args.sets = [str(path) for path in draw_example(args.out / "example_sets")]
    args.aligned = True


def _command(name: str, arguments: Sequence[str]) -> int:
    from recognition.calibration import command as calibrate_command
    from recognition.gallery import commands as gallery_commands

    command = (gallery_commands.COMMANDS | calibrate_command.COMMANDS)[name]
    parser = build_parser(command.__doc__)
    parser.prog = f"{parser.prog} {name}"
    command.add_flags(parser)
    args = parser.parse_args(arguments)
    return run_command(lambda: command.run(args))


if __name__ == "__main__":
    sys.exit(main())

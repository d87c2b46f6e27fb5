"""Flags that `inference.py` and its subcommands share, and the objects built from them.

Imports neither PyTorch nor OpenCV until an object is built.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from backbones.catalogue import BACKBONES
from coreset.catalogue import AGGREGATOR_NAMES, MAIN_AGGREGATORS
from features.flips import FLIP_CHOICES
from photos import FACES
from recognition.enrolment.limits import NEAR_DUPLICATE, POOR, EnrolmentLimits
from runtime.command import add_device
from runtime.errors import InputError
from weights.overrides import Overrides, add_override_flags

if TYPE_CHECKING:
    from recognition.face_reading import PhotoOptions
    from recognition.model import FaceModel
    from recognition.sources import SetSource

# Flags without a default are absent from the parsed flags, so that --help shows no 'None'.
_ABSENT = argparse.SUPPRESS


def add_calibration_flags(group: argparse._ActionsContainer, *, purpose: str, rate: str) -> None:
    """Add --calibration and --fmr; `purpose` and `rate` complete their help."""
    group.add_argument("--calibration", type=Path, metavar="FILE", default=_ABSENT, help=purpose)
    group.add_argument(
        "--fmr",
        metavar="RATE",
        default=_ABSENT,
        help=f"false match rate of {rate} (default: the lowest in --calibration)",
    )


def calibration_flags(args: argparse.Namespace) -> tuple[Path | None, str | None]:
    """--calibration and --fmr, None where absent.

    Raises:
        InputError: --fmr without --calibration.
    """
    calibration, fmr = vars(args).get("calibration"), vars(args).get("fmr")
    if calibration is None and fmr is not None:
        raise InputError("--fmr has no effect without --calibration. Remove it, or give --calibration.")
    return calibration, fmr


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `open_model` reads."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--weights",
        default=_ABSENT,
        metavar="WEIGHTS",
        help="backbone, or checkpoint with an aggregator: a file, or a name of convert.py --list-weights",
    )
    group.add_argument(
        "--arch",
        choices=BACKBONES,
        default=_ABSENT,
        metavar="NAME",
        help="architecture, if the weights do not state it",
    )
    group.add_argument(
        "--aggregator",
        choices=AGGREGATOR_NAMES,
        default=_ABSENT,
        metavar="NAME",
        help=f"how a set is aggregated: {', '.join(MAIN_AGGREGATORS)} or a baseline of main.py "
        "--list_aggregators (default: the aggregator of the weights; for a backbone norm_weighted)",
    )
    group.add_argument(
        "--aggregator_weights",
        default=_ABSENT,
        metavar="CHECKPOINT",
        help="checkpoint with a trained aggregator",
    )
    add_override_flags(group)
    group.add_argument(
        "--flip", choices=FLIP_CHOICES, default="none", help="fuse the features of image and horizontal flip"
    )
    group.add_argument("--batch_size", type=int, default=_ABSENT, help="faces per batch (default: by device)")
    add_device(group)


def add_set_flags(parser: argparse.ArgumentParser) -> None:
    """Add the sets and the flags that `set_sources` and `photo_options` read."""
    parser.add_argument(
        "sets",
        nargs="*",
        default=[],
        metavar="SET",
        help="photos of one person: a folder, an image or a video",
    )
    group = parser.add_argument_group("photos")
    group.add_argument("--images_root", default=_ABSENT, metavar="DIR", help="every subfolder is a set")
    add_photo_flags(group)


def add_photo_flags(group: argparse._ActionsContainer) -> None:
    """Add the flags that `photo_options` reads."""
    group.add_argument(
        "--faces", choices=FACES, default=FACES[0], help="which faces to use if a photo shows several"
    )
    group.add_argument(
        "--aligned", action="store_true", help="images are aligned 112 x 112 faces; nothing is detected"
    )
    group.add_argument("--fps", type=float, default=2.0, help="frames per second read from videos")
    group.add_argument(
        "--detector",
        default=_ABSENT,
        metavar="FILE",
        help="YuNet's model file (default: downloaded once to the cache folder)",
    )


def add_check_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `enrolment_limits` reads."""
    group = parser.add_argument_group("enrolment check")
    group.add_argument(
        "--duplicate",
        type=float,
        default=_ABSENT,
        help=f"cosine from which faces are near-duplicates (default: {NEAR_DUPLICATE:g} for MobileFaceNet, "
        "mapped by the cosine statistics of other weights)",
    )
    group.add_argument(
        "--outlier",
        type=float,
        default=EnrolmentLimits().outlier,
        help="probability of showing a different person from which a photo or video is reported",
    )
    group.add_argument(
        "--poor",
        type=float,
        default=_ABSENT,
        help="norm, as a fraction of the norm of the set's good faces, below which a face is of low quality "
        f"(default: {POOR:g} for MobileFaceNet, mapped for other weights)",
    )


def enrolment_limits(args: argparse.Namespace) -> EnrolmentLimits:
    """The limits of the flags. Raises InputError with all that are out of range."""
    return EnrolmentLimits(vars(args).get("duplicate"), args.outlier, vars(args).get("poor"))


def open_model(args: argparse.Namespace) -> FaceModel:
    """The model of the flags. Raises InputError if it is missing or cannot be used."""
    from recognition.model import load_model

    given = vars(args)
    if given.get("weights") is None:
        raise InputError(
            "--weights is missing: a checkpoint of FaceCoresetNet, or the weights of a backbone such as "
            "AdaFace's published ones."
        )
    return load_model(
        given["weights"],
        given.get("aggregator_weights"),
        given.get("aggregator"),
        arch=given.get("arch"),
        flip=args.flip,
        device=args.device,
        batch_size=given.get("batch_size"),
        overrides=Overrides.of(given),
    )


def set_sources(args: argparse.Namespace) -> list[SetSource]:
    """The sets of the flags. Raises InputError with all paths that are not sets."""
    from recognition.sources import find_sets

    root = vars(args).get("images_root")
    return find_sets([Path(text) for text in args.sets], None if root is None else Path(root))


def photo_options(args: argparse.Namespace) -> PhotoOptions:
    """How photos are read. Raises InputError with all flags that are invalid or have no effect."""
    from recognition.face_reading import PhotoOptions

    detector = vars(args).get("detector")
    faults = []
    if not (math.isfinite(args.fps) and args.fps > 0):
        faults.append(f"--fps {args.fps:g}: expected more than 0.")
    if args.aligned and detector is not None:
        faults.append("--detector has no effect with --aligned. Remove one of the two.")
    if args.aligned and args.faces != FACES[0]:
        faults.append(f"--faces {args.faces} has no effect with --aligned. Remove it.")
    if faults:
        raise InputError.from_faults(faults)
    return PhotoOptions(args.faces, args.aligned, args.fps, None if detector is None else Path(detector))

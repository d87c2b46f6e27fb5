"""Flags that `inference.py` and its gallery commands share, and what they stand for.

What the flags name is opened in `recognition.model` and `recognition.sources`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from coreset import AGGREGATORS
from features.flips import FLIP_CHOICES
from net import BACKBONES
from photos.detection import FACES
from recognition.enrolment.limits import NEAR_DUPLICATE, POOR, EnrolmentLimits
from recognition.face_reading import PhotoOptions
from recognition.model import FaceModel, load_model
from recognition.sources import SetSource, find_sets
from runtime.command import add_device
from runtime.errors import InputError
from weights.overrides import Overrides, add_override_flags

# A flag without a default is absent from the parsed flags, so that --help shows no 'None'.
_ABSENT = argparse.SUPPRESS


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `open_model` reads."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--weights",
        default=_ABSENT,
        metavar="WEIGHTS",
        help="a backbone, or a checkpoint with its aggregator: a file, or a name that weights.py knows",
    )
    group.add_argument("--arch", choices=BACKBONES, default=_ABSENT, help="if the weights do not say it")
    group.add_argument(
        "--aggregator",
        choices=AGGREGATORS,
        default=_ABSENT,
        help="how the faces of a set become one descriptor (default: the one that was trained with the "
        "weights; for a bare backbone norm_weighted)",
    )
    group.add_argument(
        "--aggregator_weights", default=_ABSENT, metavar="CHECKPOINT", help="of a trained aggregator"
    )
    add_override_flags(group)
    group.add_argument(
        "--flip", choices=FLIP_CHOICES, default="none", help="fuses the features of image and horizontal flip"
    )
    group.add_argument("--batch_size", type=int, default=_ABSENT, help="faces at once (default: by device)")
    add_device(group)


def add_set_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sets themselves and the flags that `set_sources` and `photo_options` read."""
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
    """Adds the flags that `photo_options` reads."""
    group.add_argument("--faces", choices=FACES, default=FACES[0], help="of a photo that shows several")
    group.add_argument(
        "--aligned", action="store_true", help="the images are aligned 112 x 112 faces; nothing is detected"
    )
    group.add_argument(
        "--fps", type=float, default=2.0, help="frames of a video that are looked at, a second"
    )
    group.add_argument(
        "--detector",
        default=_ABSENT,
        metavar="FILE",
        help="YuNet's model file (default: the cache folder's, which is filled by one download)",
    )


def add_check_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `enrolment_limits` reads."""
    group = parser.add_argument_group("enrolment check")
    group.add_argument(
        "--duplicate",
        type=float,
        default=_ABSENT,
        help=f"cosine from which on faces repeat each other (default: {NEAR_DUPLICATE:g}, or what is "
        "that for weights that were measured)",
    )
    group.add_argument(
        "--outlier",
        type=float,
        default=EnrolmentLimits().outlier,
        help="probability of showing someone else from which on a photo or video is named",
    )
    group.add_argument(
        "--poor",
        type=float,
        default=_ABSENT,
        help=f"share of the good faces' norm below which one is poor (default: {POOR:g}, or what is that)",
    )


def enrolment_limits(args: argparse.Namespace) -> EnrolmentLimits:
    """The limits of the flags. Raises InputError with all that are out of range."""
    return EnrolmentLimits(vars(args).get("duplicate"), args.outlier, vars(args).get("poor"))


def open_model(args: argparse.Namespace) -> FaceModel:
    """The model of the flags. Raises InputError where there is none, or it cannot be used."""
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
    """The sets of the flags, by name. Raises InputError with all that cannot be sets."""
    root = vars(args).get("images_root")
    return find_sets([Path(text) for text in args.sets], None if root is None else Path(root))


def photo_options(args: argparse.Namespace) -> PhotoOptions:
    """How sets are read. Raises InputError with all flags that make no sense."""
    detector = vars(args).get("detector")
    faults = []
    if not (math.isfinite(args.fps) and args.fps > 0):
        faults.append(f"--fps {args.fps:g}: expected more than 0.")
    if args.aligned and detector is not None:
        faults.append("--detector: with --aligned nothing is detected. Leave out one of the two.")
    if args.aligned and args.faces != FACES[0]:
        faults.append(f"--faces {args.faces}: with --aligned an image is one face. Leave it out.")
    if faults:
        raise InputError.from_faults(faults)
    return PhotoOptions(args.faces, args.aligned, args.fps, None if detector is None else Path(detector))

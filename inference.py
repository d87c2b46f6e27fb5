"""Photos and videos to one descriptor per set, their similarities, and checks before enrolment.

python inference.py --weights WEIGHTS anna_holiday/ anna_passport.jpg visitor.mp4
    each SET is a folder of photos and videos, one photo, or one video
python inference.py --weights WEIGHTS --images_root people/
    every subfolder is a set
python inference.py
    example sets of synthetic faces
python inference.py enroll|search|remove|rename|list|export|import --help
    a gallery of enrolled sets
python inference.py calibrate --help
    thresholds for --calibration, from photos of known subjects

Prints the similarity matrix and quality feedback on each set; writes report.html (open it in a browser),
similarity.csv, descriptors.npz and descriptors.json to --out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from recognition.flags import add_calibration_flags, add_check_flags, add_model_flags, add_set_flags
from runtime.command import build_parser, run_command
from runtime.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from recognition.model import embed_images, embed_set, load_model

__all__ = ["embed_images", "embed_set", "load_model"]

ROOT = Path(__file__).resolve().parent
EXPERIMENTS = ROOT / "experiments"
DEMO_WEIGHTS = ROOT / "demo" / "coreset_0" / "best.ckpt"
GALLERY_COMMANDS = ("enroll", "search", "remove", "rename", "list", "export", "import")
CALIBRATE = "calibrate"


def __getattr__(name: str) -> object:
    # Imported on first use: `--help` and `list` do not need PyTorch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from recognition import model

    return getattr(model, name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in (*GALLERY_COMMANDS, CALIBRATE):
        return _subcommand(given[0], given[1:])
    hint = did_you_mean(given[0], (*GALLERY_COMMANDS, CALIBRATE), cutoff=0.7) if given else ""
    if hint and not Path(given[0]).exists():
        # Otherwise the flags of the command are reported as unknown.
        return run_command(lambda: _refuse(f"{given[0]}: no such command, folder, image or video.{hint}"))
    args = flags().parse_args(given)

    def run() -> None:
        from recognition.report.command import report_sets

        report_sets(args, DEMO_WEIGHTS)

    return run_command(run)


def flags() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = build_parser(__doc__)
    add_set_flags(parser)
    add_model_flags(parser)
    add_check_flags(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out", type=Path, metavar="DIR", default=EXPERIMENTS / "inference", help="output folder"
    )
    add_calibration_flags(
        group, purpose="thresholds for this model, written by calibrate", rate="the threshold to use"
    )
    return parser


def _refuse(reason: str) -> NoReturn:
    raise InputError(reason)


def _subcommand(name: str, arguments: Sequence[str]) -> int:
    if name == CALIBRATE:
        from recognition.calibration.command import COMMANDS
    else:
        from recognition.gallery.commands import COMMANDS
    command = COMMANDS[name]
    parser = build_parser(command.description)
    parser.prog = f"{parser.prog} {name}"
    command.add_flags(parser)
    args = parser.parse_args(arguments)
    return run_command(lambda: command.run(args))


if __name__ == "__main__":
    sys.exit(main())

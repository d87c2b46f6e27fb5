"""Brings data into the form that training reads, and back.

python convert.py --rec_path DATA/faces_emore --num_workers 8
    unpacks train.rec and the pair sets (*.bin) beside it, with the original bytes
python convert.py --pack FOLDER --out DIR
    packs a folder of <subject>/<image>
python convert.py --draw_faces DIR --subjects 200
    draws synthetic faces: a pack and a pair set, for the demo and for tests
"""

from __future__ import annotations

import sys
from argparse import SUPPRESS, ArgumentParser
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data.pairs import find_pair_sets, read_pair_set
from data.recordio import REC_NAME
from data.unpacking import FORMATS, IMAGES, Unpacked, pack_folder, unpack_pack, unpack_pairs
from errors import InputError

_SHOWN = 5
# Flags of each mode, with their defaults; None: needed.
_MODES: dict[str, dict[str, Any]] = {
    "rec_path": {"out": "", "num_workers": 0, "image_format": "original", "quality": 95},
    "pack": {"out": None},
    "draw_faces": {"subjects": 200, "seed": 0},
}


def main() -> int:
    """Runs the command; gives its exit code."""
    # Here, since each worker process imports this file: `command` brings PyTorch, which takes seconds.
    from command import run_command

    given = vars(flags().parse_args())
    return run_command(lambda: convert(given))


def flags() -> ArgumentParser:
    """The command's flags; what is not given is absent from the namespace."""
    from command import build_parser

    parser = build_parser(__doc__)
    parser.argument_default = SUPPRESS
    modes = parser.add_argument_group("what to do").add_mutually_exclusive_group(required=True)
    modes.add_argument(
        "--rec_path", metavar="DIR", help="unpack train.rec of this folder to imgs/<subject>/<key>"
    )
    modes.add_argument("--pack", metavar="DIR", help="pack this folder of <subject>/<image>")
    modes.add_argument("--draw_faces", metavar="DIR", help="draw faces into a pack and a pair set")
    how = parser.add_argument_group("how")
    how.add_argument("--out", metavar="DIR", help="where to (default: --rec_path's folder; --pack needs it)")
    how.add_argument("--num_workers", type=int, help="--rec_path: processes (default: 0, this one)")
    how.add_argument(
        "--image_format", choices=FORMATS, help="--rec_path: of the files (default: original, the bytes)"
    )
    how.add_argument("--quality", type=int, help="--rec_path: of JPEG, with --image_format jpg (default: 95)")
    how.add_argument("--subjects", type=int, help="--draw_faces: how many (default: 200)")
    how.add_argument("--seed", type=int, help="--draw_faces: the same seed draws the same faces (default: 0)")
    return parser


def convert(given: Mapping[str, Any]) -> None:
    """Does what the flags say.

    Raises:
        InputError: flags that do not belong to the mode, or data that cannot be used.
    """
    mode = next(name for name in _MODES if name in given)
    allowed = _MODES[mode]
    faults = [
        f"--{name} has no effect with --{mode}. Leave it away."
        for name in given
        if name not in (mode, *allowed)
    ]
    faults += [
        f"--{mode} needs --{name}."
        for name, default in allowed.items()
        if default is None and name not in given
    ]
    values = allowed | dict(given)
    for name, least in (("num_workers", 0), ("subjects", 2), ("seed", 0), ("quality", 1)):
        if name in values and values[name] < least:
            faults.append(f"--{name} {values[name]}: expected {least} or more.")
    if values.get("quality", 0) > 100:
        faults.append(f"--quality {values['quality']}: expected at most 100.")
    if "quality" in given and values.get("image_format") != "jpg":
        faults.append("--quality has an effect with --image_format jpg alone. Leave it away.")
    if faults:
        raise InputError.from_faults(faults)
    work: dict[str, Callable[[Mapping[str, Any]], None]] = {
        "rec_path": _unpack,
        "pack": _pack,
        "draw_faces": _draw,
    }
    work[mode](values)


def _unpack(values: Mapping[str, Any]) -> None:
    folder = Path(values["rec_path"])
    out = Path(values["out"] or folder)
    pair_sets = find_pair_sets(folder)
    if not (folder / REC_NAME).is_file() and not pair_sets:
        raise InputError(
            f"{folder}: holds neither {REC_NAME} nor pair sets (*.bin). Expected the folder of an "
            "InsightFace data set, such as faces_emore."
        )
    # Before the long work: hours later is late to hear of a pair set that cannot be read.
    faults = [fault for path in pair_sets if (fault := _fault_of(path))]
    if faults:
        raise InputError.from_faults(faults)
    if (folder / REC_NAME).is_file():
        done = unpack_pack(
            folder,
            out,
            num_workers=values["num_workers"],
            image_format=values["image_format"],
            quality=values["quality"],
        )
        _tell(done, out / IMAGES)
    for path in pair_sets:
        pairs = read_pair_set(path)
        count = unpack_pairs(pairs, out / path.stem)
        print(f"{out / path.stem}: {count:,} pairs of {path.name}, with pairs.csv")
        if count < len(pairs):
            print(f"  {len(pairs) - count:,} pairs are left out: an image of theirs cannot be decoded")


def _fault_of(pair_set: Path) -> str | None:
    if pair_set.stem == IMAGES:
        return f"{pair_set}: would be unpacked among the images of {REC_NAME}. Give it another name."
    try:
        read_pair_set(pair_set)
    except InputError as fault:
        return str(fault)
    return None


def _tell(done: Unpacked, images: Path) -> None:
    print(
        f"{images}: {done.subjects:,} subjects, {done.written:,} images written, {done.there:,} were there, "
        f"{len(done.skipped):,} records skipped"
    )
    for key, why in sorted(done.skipped)[:_SHOWN]:
        print(f"  record {key}: {why}")
    if len(done.skipped) > _SHOWN:
        kinds = Counter(why for _, why in done.skipped)
        print(f"  and {len(done.skipped) - _SHOWN:,} more; {len(kinds):,} different reasons")
    if done.of_other_size:
        print(
            f"  {done.of_other_size:,} images are not 112 x 112, which training refuses: align them first",
            file=sys.stderr,
        )


def _pack(values: Mapping[str, Any]) -> None:
    out = Path(values["out"])
    subjects, images = pack_folder(Path(values["pack"]), out)
    print(f"{out / REC_NAME}: {images:,} images of {subjects:,} subjects, whose names are in subjects.txt")


def _draw(values: Mapping[str, Any]) -> None:
    from data.drawn_packs import draw_pack

    out = Path(values["draw_faces"])
    subjects, images, pairs = draw_pack(out, num_subjects=values["subjects"], seed=values["seed"])
    print(
        f"{out / REC_NAME}: {images:,} drawn images of {subjects:,} subjects; {out / 'synthetic.bin'}: "
        f"{pairs:,} pairs of other subjects"
    )


if __name__ == "__main__":
    sys.exit(main())

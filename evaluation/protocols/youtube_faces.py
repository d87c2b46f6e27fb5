"""YouTube Faces, ten folds of video pairs: read and check the files and compute the accuracy.

`<root>/aligned_images_DB/<NAME>/<VIDEO>/<frame>.jpg` and `<root>/splits.txt`, with lines
'fold, pair, NAME/VIDEO, NAME/VIDEO, 0|1' below a header. Each video is a set of frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from data.sources.decoding import Image
from evaluation.protocols.face_files import FaceFiles, image_names
from evaluation.protocols.pair_sets import PairFigures, accuracy_cells, compared_rows
from evaluation.protocols.templates import FaceGroups, aggregate_templates, group_faces
from evaluation.reporting.report import markdown_table, percent
from photos.alignment import AS_STORED
from photos.video_frames import FRAME_ALIGNMENT, aligned_frame, is_aligned
from runtime.errors import InputError
from runtime.input_files import check_inside, sha256_of
from runtime.text import first_lines, listed

FARS = (1e-2, 1e-3)
PUBLISHED_PAIRS, PUBLISHED_FOLDS = 5000, 10
FRAME_FOLDERS = ("aligned_images_DB", "frame_images_DB")
HOW_TO_GET = (
    "YouTube Faces is available from Tel Aviv University (cs.tau.ac.il/~wolf/ytfaces): the folder "
    "aligned_images_DB, and splits.txt beside it."
)


@dataclass(frozen=True)
class FrameFiles:
    """The frames of all videos; `detector`: where they are not aligned."""

    files: FaceFiles
    detector: Path | None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def alignment(self) -> str:
        """What is done to a frame."""
        return AS_STORED if self.detector is None else FRAME_ALIGNMENT

    def image(self, number: int) -> Image:
        """(112, 112, 3) RGB."""
        path = self.files.path(number)
        try:
            encoded = path.read_bytes()
        except OSError as fault:
            raise InputError(f"{path}: cannot be read ({fault.strerror}).") from None
        return aligned_frame(encoded, str(path), self.detector)

    def digest(self) -> str:
        """SHA-256 over folder, names and detector."""
        detector = None if self.detector is None else sha256_of(self.detector)
        return hashlib.sha256(f"{self.files.digest()} {detector}".encode()).hexdigest()

    def stamps(self) -> NDArray[np.uint64]:
        """(N,) another stamp is another image."""
        return self.files.stamps()


@dataclass(frozen=True)
class VideoPairs:
    """Pairs of videos.

    `videos`: M names; `frames`: N faces; `video_of_frame` (N,) 0..M-1, rising; `first`, `second` (n,) int64
    videos of each pair; `is_mated` (n,) bool; `folds` (n,) int64; `notes`: what a reader must know.
    """

    videos: list[str]
    frames: FrameFiles
    video_of_frame: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    is_mated: NDArray[np.bool_]
    folds: NDArray[np.int64]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.is_mated)

    @property
    def groups(self) -> FaceGroups:
        """Each video is a template of one medium."""
        return group_faces(self.video_of_frame, np.zeros_like(self.video_of_frame), len(self.videos))


# ------------------------------------------------------------------------------------------- figures


def evaluate_video_pairs(
    pairs: VideoPairs,
    features: NDArray[np.floating[Any]],
    norms: NDArray[np.floating[Any]],
    aggregators: Mapping[str, nn.Module],
    device: torch.device | str = "cpu",
    *,
    auxiliary_size: int = 0,
) -> dict[str, PairFigures]:
    """Features of all frames -> figures by aggregator.

    Args:
        pairs: N frames.
        features: (N, D) unit rows.
        norms: (N,).
        aggregators: by name.
        device: where they work.
        auxiliary_size: number of auxiliary features at the end of each row.

    Raises:
        InputError: another number of features, or too few folds or pairs for a figure.
    """
    if features.ndim != 2 or not len(features) == len(norms) == len(pairs.video_of_frame):
        raise InputError(f"{len(pairs.video_of_frame):,} frames, but features {features.shape}.")
    found, groups = {}, pairs.groups
    for name, aggregator in aggregators.items():
        faces = features, norms, groups, device
        embedding = aggregate_templates(aggregator, *faces, auxiliary_size=auxiliary_size).embedding
        found[name] = compared_rows(embedding, pairs.first, pairs.second, pairs.is_mated, pairs.folds, FARS)
    return found


def video_table(figures: Mapping[str, PairFigures]) -> str:
    """Markdown: a row an aggregator; rates in per cent, accuracy with its 95 % interval."""
    cells = {name: accuracy_cells(each) | {"AUC": percent(each.auc)} for name, each in figures.items()}
    head = ["aggregator", *next(iter(cells.values()))]
    return markdown_table(head, [[name, *row.values()] for name, row in cells.items()])


# ------------------------------------------------------------------------------------------- reading


def read_video_pairs(data_root: Path, splits: Path | None, most_frames: int) -> VideoPairs:
    """Read the splits and list the frames of the videos that they name, in the order of their numbers.

    Args:
        data_root: holds one of `FRAME_FOLDERS`, or the subjects' folders themselves.
        splits: the list of pairs; None is splits.txt of `data_root`.
        most_frames: of each video, evenly spaced; 0 for all.

    Raises:
        InputError: a file or folder is missing, a line is broken, or videos have no frames (first ten).
    """
    folder = next((data_root / name for name in FRAME_FOLDERS if (data_root / name).is_dir()), data_root)
    path = splits or data_root / "splits.txt"
    faults = [] if folder.is_dir() else [f"{folder}: no such folder. {HOW_TO_GET}"]
    if not path.is_file():
        faults.append(f"{path}: no such file. {HOW_TO_GET}")
    if faults:
        raise InputError.from_faults(faults)
    lines = _read_splits(path)
    videos = sorted({video for _, *both, _ in lines for video in both})
    check_inside(videos, f"{path}: videos of {folder}")
    frames = {video: _frames_of(folder / video) for video in videos}
    if missing := [video for video, names in frames.items() if not names]:
        raise InputError(
            f"{folder}: {len(missing):,} of {len(videos):,} videos of {path.name} have no frames there: "
            f"{listed(missing, 10)}. Expected {folder}/<NAME>/<VIDEO>/<frame>.jpg."
        )
    number = {video: place for place, video in enumerate(videos)}
    kept = {video: _evenly(names, most_frames) for video, names in frames.items()}
    names = [f"{video}/{name}" for video in videos for name in kept[video]]
    mated = np.array([label for *_, label in lines], np.bool_)
    folds = np.array([fold for fold, *_ in lines], np.int64)
    notes = []
    if len(lines) != PUBLISHED_PAIRS or len(np.unique(folds)) != PUBLISHED_FOLDS:
        notes.append(
            f"{path.name}: {len(lines):,} pairs in {len(np.unique(folds))} folds, the published splits are "
            f"{PUBLISHED_PAIRS:,} in {PUBLISHED_FOLDS}: do not compare with published figures."
        )
    return VideoPairs(
        videos=videos,
        frames=FrameFiles(FaceFiles.of(folder, names), None),
        video_of_frame=np.repeat(np.arange(len(videos)), [len(kept[video]) for video in videos]),
        first=np.array([number[first] for _, first, _, _ in lines], np.int64),
        second=np.array([number[second] for _, _, second, _ in lines], np.int64),
        is_mated=mated,
        folds=folds,
        notes=tuple(notes),
    )


def frames_are_aligned(pairs: VideoPairs) -> bool:
    """Whether the first frame of every video is 112 x 112."""
    first = np.flatnonzero(np.diff(pairs.video_of_frame, prepend=-1))
    return all(is_aligned(pairs.frames.files.path(int(number)).read_bytes()) for number in first)


def _read_splits(path: Path) -> list[tuple[int, str, str, bool]]:
    """Fold, two videos, and whether they show one subject, of each line.

    The corrected list of the authors has a sixth column; the last one is the label in both.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as fault:
        raise InputError(f"{path}: cannot be read as text ({fault}). {HOW_TO_GET}") from None
    found: list[tuple[int, str, str, bool]] = []
    faults: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        cells = [cell.strip() for cell in line.split(",")]
        if not line.strip() or (number == 1 and not cells[0].isdecimal()):
            continue
        if not _is_pair(cells):
            faults.append(
                f"{path}, line {number}: expected 'FOLD, PAIR, NAME/VIDEO, NAME/VIDEO, 0|1', found "
                f"'{line.strip()}'."
            )
            continue
        found.append((int(cells[0]), cells[2], cells[3], cells[-1] == "1"))
    if faults:
        raise InputError.from_faults(first_lines(faults, 10, "... and {} more such lines."))
    kinds = {mated for *_, mated in found}
    if len({fold for fold, *_ in found}) < 2 or len(kinds) < 2:
        raise InputError(
            f"{path}: {len(found):,} pairs; expected mated and non-mated ones in two folds or more. "
            f"{HOW_TO_GET}"
        )
    return found


def _is_pair(cells: Sequence[str]) -> bool:
    if len(cells) not in (5, 6) or not (cells[0].isdecimal() and cells[1].isdecimal()):
        return False
    parts = [cell.split("/") for cell in cells[2:4]]
    named = all(len(part) == 2 and all(part) and ".." not in part for part in parts)
    return named and all(label in ("0", "1") for label in cells[4:])


def _frames_of(folder: Path) -> list[str]:
    """Names of a video's frames by their numbers: 'aligned_detect_0.9.jpg' before '...0.10.jpg'."""
    try:
        return sorted(image_names(folder), key=_numbers)
    except OSError:
        return []


def _numbers(name: str) -> tuple[list[int], str]:
    digits = "".join(character if character.isdecimal() else " " for character in name)
    return [int(part) for part in digits.split()], name


def _evenly(names: list[str], most: int) -> list[str]:
    if not most or len(names) <= most:
        return names
    return [names[place] for place in np.linspace(0, len(names) - 1, most).round().astype(int).tolist()]

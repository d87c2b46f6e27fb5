"""Pairs of faces (LFW, CFP-FP, CPLFW, CALFW, AgeDB-30, others): features -> figures, and how pairs are read.

A pair set is a `.bin` file, or a folder of aligned faces with a list in LFW's or a simple layout. No network
is known here. Source: LFW's README for `pairs.txt`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.sources.decoding import Image
from data.sources.pair_files import NUM_FOLDS, PairSet, check_pairs
from evaluation.metrics.verification import FoldAccuracy, TarAtFar, fold_accuracy, roc_curve, tar_at_far
from evaluation.protocols.face_files import FaceFiles, ListedFaces
from evaluation.reporting.report import Result, markdown_table, percent, verification_section
from runtime.errors import InputError
from runtime.input_files import check_inside
from runtime.text import first_lines, listed

# File name -> what tables call it, in the order of the published tables.
FIVE_SETS = {
    "lfw": "LFW",
    "cfp_fp": "CFP-FP",
    "cplfw": "CPLFW",
    "calfw": "CALFW",
    "agedb_30": "AgeDB-30",
}
# Pairs of the published sets.
PUBLISHED_SIZES = {"lfw": 6000, "cfp_fp": 7000, "cplfw": 6000, "calfw": 6000, "agedb_30": 6000}
FARS = (1e-3,)
_LIST_SUFFIXES = (".jpg", ".png", ".jpeg", ".bmp", ".webp", ".ppm")


@dataclass(frozen=True)
class FacePairs:
    """Pairs of faces.

    `faces`: N different images; `first`, `second`: (n,) int64 the images of each pair; `is_mated`: (n,) bool;
    `folds`: (n,) int64.
    """

    name: str
    faces: ListedFaces
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    is_mated: NDArray[np.bool_]
    folds: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.is_mated)


@dataclass(frozen=True)
class PairFigures:
    """Figures of one list of pairs, of faces or of videos; fractions.

    `accuracy`: over the folds, its threshold a squared distance; `tar_at_far`: by `rate_key`, thresholds are
    cosines; `auc`: area under the whole ROC.
    """

    accuracy: FoldAccuracy
    tar_at_far: dict[str, TarAtFar]
    auc: float

    def to_result(self) -> Result:
        """'accuracy' and 'verification' of a result.json."""
        return {
            "accuracy": asdict(self.accuracy),
            "verification": verification_section(self.tar_at_far, self.auc),
        }


# ------------------------------------------------------------------------------------------- figures


def pair_figures(features: NDArray[np.floating[Any]], pairs: FacePairs) -> PairFigures:
    """`figures_of_pairs` of features (N, D), checked against the faces.

    Raises:
        InputError: another number of rows, a row that is not finite or of another length than 1.
    """
    if features.ndim != 2 or len(features) != len(pairs.faces):
        raise InputError(f"{pairs.name}: features {features.shape} of {len(pairs.faces)} images.")
    _check_unit_rows(features, pairs.name)
    return compared_rows(features, pairs.first, pairs.second, pairs.is_mated, pairs.folds, FARS)


def compared_rows(
    rows: NDArray[np.floating[Any]],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    is_mated: NDArray[np.bool_],
    folds: NDArray[np.int64],
    fars: Sequence[float],
) -> PairFigures:
    """The figures of n pairs of unit rows (N, D); the other arrays are (n,)."""
    squared = np.empty(len(is_mated))
    for start in range(0, len(squared), 1024):
        part = slice(start, start + 1024)
        difference = rows[first[part]].astype(np.float64) - rows[second[part]]
        squared[part] = np.einsum("nd,nd->n", difference, difference)
    # |a - b|^2 = 2 - 2 cos: the same order, and so the same rates, as the cosine's.
    cosines = 1 - squared / 2
    return PairFigures(
        accuracy=fold_accuracy(squared, is_mated, folds),
        tar_at_far=tar_at_far(cosines, is_mated, fars),
        auc=roc_curve(cosines, is_mated).auc,
    )


def mean_accuracy(figures: Mapping[str, PairFigures]) -> float:
    """Mean ten-fold accuracy over sets, a fraction."""
    return float(np.mean([each.accuracy.accuracy for each in figures.values()]))


def accuracy_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown table as the published command prints it: a row per model, a column per set, the mean; in %.

    Args:
        rows: name of the model -> file name of the set -> accuracy, a fraction. 'mean' may be among the
            sets of a row without figures of single sets.
    """
    names = [name for name in FIVE_SETS if any(name in row for row in rows.values())]
    names += sorted({name for row in rows.values() for name in row} - set(names) - {"mean"})
    head = ["model", *(FIVE_SETS.get(name, name) for name in names), "mean"]

    def cells(row: Mapping[str, float]) -> list[str]:
        single = [row[name] for name in names if name in row]
        mean = row.get("mean", float(np.mean(single)) if len(single) == len(names) else np.nan)
        return [percent(row.get(name)) for name in names] + [percent(mean)]

    return markdown_table(head, [[model, *cells(row)] for model, row in rows.items()])


def details_table(figures: Mapping[str, PairFigures], sets: Mapping[str, FacePairs]) -> str:
    """Markdown: pairs, accuracy [95 % interval], standard error, threshold, TAR@FAR of each set; per cent."""
    cells = {name: accuracy_cells(each) for name, each in figures.items()}
    head = ["pair set", "pairs", *next(iter(cells.values()))]
    rows = [[FIVE_SETS.get(name, name), f"{len(sets[name]):,}", *row.values()] for name, row in cells.items()]
    return markdown_table(head, rows)


def accuracy_cells(figures: PairFigures) -> dict[str, str]:
    """Cells of a table by the heads of their columns; rates in per cent, the accuracy with its interval."""
    return {
        "accuracy": percent(figures.accuracy.accuracy, figures.accuracy.interval95),
        "standard error": percent(figures.accuracy.standard_error),
        "threshold (squared distance)": f"{figures.accuracy.threshold:.3f}",
        **{f"TAR@FAR {far}": percent(rate.strict) for far, rate in figures.tar_at_far.items()},
    }


def size_notes(sets: Mapping[str, FacePairs]) -> list[str]:
    """A sentence for each set that carries a published name but not the published number of pairs."""
    return [
        f"{name}: {len(pairs):,} pairs, the published set has {PUBLISHED_SIZES[name]:,}: do not compare it "
        "with published figures."
        for name, pairs in sets.items()
        if PUBLISHED_SIZES.get(name, len(pairs)) != len(pairs)
    ]


def _check_unit_rows(features: NDArray[np.floating[Any]], name: str) -> None:
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))
    wrong = np.flatnonzero(~(np.abs(lengths - 1) < 1e-3))
    if len(wrong):
        raise InputError(
            f"{name}: the feature of image {wrong[0]} has length {lengths[wrong[0]]:.4g}, expected 1 "
            f"({len(wrong):,} such images). The image or the weights may be broken."
        )


# ------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _EncodedFaces:
    """The different images of a `.bin` file; `places`: (N,) where each occurs first."""

    pairs: PairSet
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def image(self, number: int) -> Image:
        return self.pairs.image(int(self.places[number]))

    def digest(self) -> str:
        """SHA-256 over the images."""
        digest = hashlib.sha256()
        for place in self.places:
            digest.update(hashlib.sha256(self.pairs.images[place]).digest())
        return digest.hexdigest()

    def stamps(self) -> NDArray[np.uint64]:
        """The digest says all."""
        return np.zeros(len(self), np.uint64)


def pairs_of_bin(pairs: PairSet) -> FacePairs:
    """Pairs of a `.bin` file, folds in the order of the file.

    Equal images are embedded once: LFW's 6,000 pairs are made of 7,701 images.

    Raises:
        InputError: as `check_pairs`.
    """
    check_pairs(pairs.name, pairs.is_mated)
    number_of: dict[bytes, int] = {}
    numbers = np.array([number_of.setdefault(image, len(number_of)) for image in pairs.images])
    places = np.unique(numbers, return_index=True)[1].astype(np.int64)
    return FacePairs(
        pairs.name,
        _EncodedFaces(pairs, places),
        numbers[0::2],
        numbers[1::2],
        pairs.is_mated,
        pairs.folds(NUM_FOLDS),
    )


def read_pair_list(folder: Path, list_file: Path) -> FacePairs:
    """Pairs of a folder of aligned faces and a list file.

    The list is in LFW's layout (first line 'FOLDS PAIRS' or 'PAIRS'; then lines 'NAME N1 N2' and
    'NAME1 N1 NAME2 N2'; image n of a subject is NAME/NAME_000n), whose folds are kept, or has lines
    'FILE1 FILE2 0|1', files relative to the folder, 1 for mated. Columns are separated by tabs where a line
    has one, else by white space. Where the list has no folds, the mated and the non-mated pairs are each cut
    in ten, in their order.

    Raises:
        InputError: a file or folder that is missing, a line of another form, or missing images (first ten and
            the count).
    """
    lines = _lines(folder, list_file)
    reader = _read_lfw_lines if _is_lfw_header(lines[0][1]) else _read_simple_lines
    files, is_mated, folds = reader(list_file, lines)
    names = list(dict.fromkeys(name for pair in files for name in pair))
    check_inside(names, f"{list_file}: images of {folder}")
    found = {name: _find(folder, name) for name in names}
    missing = [name for name, file in found.items() if file is None]
    if missing:
        raise InputError(
            f"{folder}: {len(missing):,} of {len(names):,} images of {list_file} are missing: "
            f"{listed(missing, 10)}. Expected aligned faces in the layout of the list."
        )
    number_of = {name: number for number, name in enumerate(names)}
    first, second = (np.array([number_of[pair[side]] for pair in files]) for side in (0, 1))
    mated = np.array(is_mated, np.bool_)
    check_pairs(str(list_file), mated, NUM_FOLDS if folds is None else len(set(folds)))
    return FacePairs(
        list_file.stem,
        FaceFiles.of(folder, (str(file) for file in found.values())),
        first,
        second,
        mated,
        _folds_by_kind(mated, list_file) if folds is None else np.array(folds),
    )


_Lines = list[tuple[int, list[str]]]
_Read = tuple[list[tuple[str, str]], list[bool], "list[int] | None"]


def _lines(folder: Path, list_file: Path) -> _Lines:
    """Numbers (from 1) and columns of the lines that are not empty."""
    faults = [] if folder.is_dir() else [f"{folder}: no such folder. Expected one of aligned faces."]
    text = ""
    try:
        text = list_file.read_text(encoding="utf-8-sig")
    except OSError as fault:
        faults.append(f"{list_file}: cannot be read ({fault.strerror}). Expected a list of pairs.")
    except UnicodeDecodeError:
        faults.append(f"{list_file}: is no text file. Expected a list of pairs.")
    lines = [
        (number, [c.strip() for c in line.split("\t")] if "\t" in line.strip() else line.split())
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip()
    ]
    if not lines and not faults:
        faults.append(f"{list_file}: is empty. Expected a list of pairs.")
    if faults:
        raise InputError.from_faults(faults)
    return lines


def _is_lfw_header(columns: Sequence[str]) -> bool:
    return len(columns) <= 2 and all(column.isdecimal() for column in columns)


def _read_lfw_lines(list_file: Path, lines: _Lines) -> _Read:
    """LFW's pairs.txt: for each fold so many mated pairs, then as many non-mated ones."""
    header = [int(column) for column in lines[0][1]]
    num_folds, per_kind = header if len(header) == 2 else (1, header[0])
    expected = 2 * num_folds * per_kind
    if expected != len(lines) - 1 or not expected:
        raise InputError(
            f"{list_file}, line {lines[0][0]}: '{' '.join(lines[0][1])}' promises {expected:,} pairs, but "
            f"{len(lines) - 1:,} lines follow. The file may be cut short."
        )
    files: list[tuple[str, str]] = []
    is_mated, faults = [], []
    for place, (number, columns) in enumerate(lines[1:]):
        mated = place // per_kind % 2 == 0
        form = "NAME N1 N2" if mated else "NAME1 N1 NAME2 N2"
        digits = columns[1:] if mated else columns[1::2]
        if len(columns) != (3 if mated else 4) or not all(digit.isdecimal() for digit in digits):
            kind = "mated" if mated else "non-mated"
            faults.append(_unexpected(list_file, number, columns, f"'{form}' (a {kind} pair)"))
            continue
        names = (columns[0], columns[0]) if mated else (columns[0], columns[2])
        first, second = (f"{n}/{n}_{int(d):04d}" for n, d in zip(names, digits, strict=True))
        files.append((first, second))
        is_mated.append(mated)
    _raise_faults(faults)
    folds = None if num_folds == 1 else np.repeat(np.arange(num_folds), 2 * per_kind).tolist()
    return files, is_mated, folds


def _read_simple_lines(list_file: Path, lines: _Lines) -> _Read:
    faults = [
        _unexpected(list_file, number, columns, "'FILE1 FILE2 0|1', or LFW's layout with its header")
        for number, columns in lines
        if len(columns) != 3 or columns[2] not in ("0", "1")
    ]
    _raise_faults(faults)
    return [(c[0], c[1]) for _, c in lines], [c[2] == "1" for _, c in lines], None


def _unexpected(list_file: Path, number: int, columns: Sequence[str], form: str) -> str:
    return f"{list_file}, line {number}: expected {form}, found '{' '.join(columns)}'."


def _raise_faults(faults: Sequence[str]) -> None:
    if faults:
        raise InputError.from_faults(first_lines(faults, 10, "... and {} more such lines."))


def _find(folder: Path, name: str) -> str | None:
    """The file of an image, relative to the folder; a list may omit the suffix."""
    if (folder / name).is_file():
        return name
    return next((name + suffix for suffix in _LIST_SUFFIXES if (folder / (name + suffix)).is_file()), None)


def _folds_by_kind(is_mated: NDArray[np.bool_], list_file: Path) -> NDArray[np.int64]:
    """Ten folds, each with its share of mated and of non-mated pairs, however the list is sorted."""
    folds = np.empty(len(is_mated), np.int64)
    for kind in (is_mated, ~is_mated):
        places = np.flatnonzero(kind)
        if len(places) < NUM_FOLDS:
            raise InputError(
                f"{list_file}: {int(is_mated.sum())} mated and {int((~is_mated).sum())} non-mated pairs, "
                f"expected {NUM_FOLDS} or more of each: one per fold."
            )
        for fold, part in enumerate(np.array_split(places, NUM_FOLDS)):
            folds[part] = fold
    return folds

"""Report label noise: label_check.csv, and contact sheets whose rows have the numbers of the list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.checks.contact_sheets import contact_sheet
from data.checks.label_noise import LabelFindings, SimilarPair
from data.sources.decoding import Image
from runtime.escaping import csv_text
from runtime.files import atomic_write, private_folder

# The published name of the list of the label audit.
CSV = "label_check.csv"
_MAX_ROWS = 40
_OF_EACH = 4
_HEAD = ("kind", "number", "first", "second", "similarity", "similarity_to_own")


@dataclass(frozen=True, eq=False)
class CheckedFaces:
    """The checked faces.

    `features` (N, D) float32 unit rows; `labels` (N,); `subjects`: S names; `name`: returns the name of an
    image; `image`: returns (112, 112, 3) RGB, None if there are only features.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    subjects: Sequence[str]
    name: Callable[[int], str]
    image: Callable[[int], Image] | None


def write_report(folder: Path, faces: CheckedFaces, findings: LabelFindings) -> list[str]:
    """Write the list and, if there are images, the contact sheets; returns the names of the files."""
    private_folder(folder)
    atomic_write(folder / CSV, _csv(faces, findings))
    written = [CSV]
    for name, rows in _sheets(faces, findings):
        path = folder / f"{name}.png"
        if rows and faces.image is not None:
            contact_sheet([[[*map(faces.image, group)] for group in row] for row in rows], path)
            written.append(path.name)
        else:
            # Remove the sheet of an earlier check.
            path.unlink(missing_ok=True)
    return written


def findings_text(findings: LabelFindings, subjects: int, images: int) -> str:
    """Counts of the findings as text."""
    across = findings.duplicates_across
    lines = [
        f"labels   {images:,} images of {subjects:,} subjects were compared:",
        f"  {len(findings.mislabelled):>6,} images are nearer to another subject than to their own",
        f"  {len(findings.split_identities):>6,} pairs of subjects may be split identities",
        f"  {len(findings.duplicates):>6,} pairs of images of one subject are near-duplicates",
        "         near-duplicates across subjects were not searched: too many images"
        if across is None
        else f"  {len(across):>6,} pairs of images of different subjects are near-duplicates",
    ]
    if findings.single:
        lines.append(f"  {len(findings.single):>6,} subjects have one image and cannot be checked")
    return "\n".join(lines)


def _csv(faces: CheckedFaces, findings: LabelFindings) -> str:
    rows: list[Sequence[object]] = [_HEAD]
    for number, each in enumerate(findings.mislabelled, start=1):
        first, other = faces.name(each.image), faces.subjects[each.other]
        rows.append(["mislabelled", number, first, other, f"{each.to_other:.4f}", f"{each.to_own:.4f}"])
    for kind, pairs, name in (
        ("same_person", findings.split_identities, lambda subject: faces.subjects[subject]),
        ("duplicate", findings.duplicates, faces.name),
        ("duplicate_under_two_names", findings.duplicates_across or [], faces.name),
    ):
        rows += [
            [kind, number, name(pair.first), name(pair.second), f"{pair.similarity:.4f}", ""]
            for number, pair in enumerate(pairs, start=1)
        ]
    return csv_text(rows)


def _sheets(faces: CheckedFaces, findings: LabelFindings) -> list[tuple[str, list[list[list[int]]]]]:
    """Names of the sheets, and the groups of images of each row."""
    order = np.argsort(faces.labels, kind="stable")
    bounds = np.searchsorted(faces.labels[order], np.arange(len(faces.subjects) + 1))

    def some(subject: int, without: int = -1) -> list[int]:
        rows = order[bounds[subject] : bounds[subject + 1]]
        return [int(row) for row in rows if row != without][:_OF_EACH]

    def pairs(found: Sequence[SimilarPair]) -> list[list[list[int]]]:
        return [[[pair.first], [pair.second]] for pair in found[:_MAX_ROWS]]

    return [
        (
            "mislabelled",
            [
                [[each.image], some(int(faces.labels[each.image]), each.image), some(each.other)]
                for each in findings.mislabelled[:_MAX_ROWS]
            ],
        ),
        (
            "same_person",
            [[some(pair.first), some(pair.second)] for pair in findings.split_identities[:_MAX_ROWS]],
        ),
        ("duplicates", pairs(findings.duplicates)),
        ("duplicates_under_two_names", pairs(findings.duplicates_across or [])),
    ]

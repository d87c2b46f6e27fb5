"""similarity.csv, descriptors.npz, and the tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recognition.calibration.decisions import Decisions, about_threshold
from recognition.enrolment.checks import EnrolmentCheck
from recognition.model import FaceModel
from recognition.records import AggregatedSet
from runtime.escaping import csv_text
from runtime.files import atomic_path, atomic_write
from runtime.text import shortened

_LONGEST_NAME = 28
# More do not fit a terminal.
_MOST_COLUMNS = 12


def similarities(sets: Sequence[AggregatedSet]) -> NDArray[np.float32]:
    """(B, B) cosines of the descriptors."""
    embeddings = np.stack([each.embedding for each in sets])
    return np.asarray(np.clip(embeddings @ embeddings.T, -1, 1), np.float32)


def write_similarity(path: Path, sets: Sequence[AggregatedSet], matrix: NDArray[np.float32]) -> None:
    """Write the similarity matrix with names as CSV."""
    head = ["", *(each.name for each in sets)]
    rows = ([each.name, *(f"{value:.6f}" for value in row)] for each, row in zip(sets, matrix, strict=True))
    atomic_write(path, csv_text(chain([head], rows)))


def write_descriptors(path: Path, sets: Sequence[AggregatedSet], model: FaceModel) -> None:
    """Write the descriptors as plain arrays, without pickled objects.

    `name` (B,), `descriptor` (B, D), `norm` (B,), `picks` (B, K) padded with -1; the faces of set b are
    the rows `offsets[b]:offsets[b+1]` of `face_name`, `face_norm` and `weight` (NaN if the aggregator has
    no weights); `fingerprint` of the model.
    """
    most = max(len(each.picks) for each in sets)
    picks = [np.pad(each.picks, (0, most - len(each.picks)), constant_values=-1) for each in sets]
    weights = [
        np.full(len(each.faces), np.nan, np.float32) if each.weights is None else each.weights
        for each in sets
    ]
    with atomic_path(path) as temporary:
        np.savez_compressed(
            temporary,
            name=np.array([each.name for each in sets]),
            descriptor=np.stack([each.embedding for each in sets]),
            norm=np.array([each.norm for each in sets], np.float32),
            picks=np.stack(picks),
            offsets=np.cumsum([0, *(len(each.faces) for each in sets)]),
            face_name=np.array([file for each in sets for file in each.files]),
            face_norm=np.concatenate([each.norms for each in sets]),
            weight=np.concatenate(weights),
            fingerprint=np.array(model.fingerprint),
        )


def matrix_text(
    sets: Sequence[AggregatedSet], matrix: NDArray[np.float32], decisions: Decisions | None
) -> str:
    """The similarity matrix with names; '*' marks sets that are decided to show the same person."""
    names = [_short(each.name) for each in sets]
    width = max(map(len, names))
    shown = min(len(sets), _MOST_COLUMNS)
    digits = len(str(len(sets)))
    lines = [" " * (width + digits + 2) + "".join(f"{column + 1:>9}" for column in range(shown))]
    is_same = np.zeros(matrix.shape, np.bool_)
    if decisions is not None:
        is_same = decisions.is_same & ~np.eye(len(sets), dtype=bool)
    for row, name in enumerate(names):
        cells = (
            f"{matrix[row, column]:8.4f}{'*' if is_same[row, column] else ' '}" for column in range(shown)
        )
        lines.append(f"{row + 1:>{digits}}  {name:<{width}}" + "".join(cells))
    if shown < len(sets):
        lines.append(f"... and {len(sets) - shown} more columns; see similarity.csv.")
    if decisions is not None and len(sets) > 1:
        lines.append(f"{about_threshold(decisions)} (* = same person)")
    return "\n".join(lines)


def check_text(sets: Sequence[AggregatedSet], checks: Sequence[EnrolmentCheck]) -> str:
    """One line per set: number of faces, and of those reported by the enrolment check."""
    rows: list[Sequence[object]] = [
        ("set", "faces", "rejected", "duplicates", "identities", "outliers", "poor", "largest effect")
    ]
    for each, check in zip(sets, checks, strict=True):
        # All but one face of each group of near-duplicates.
        duplicates = int((check.group >= 0).sum()) - check.num_groups
        counts = (duplicates, check.num_identities, int(check.outlier.sum()), int(check.poor.sum()))
        faces = (len(each.faces), len(each.rejected))
        rows.append((_short(each.name), *faces, *counts, _largest_effect(each, check)))
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{row[0]:<{widths[0]}}"
        + "".join(f"  {cell!s:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def _largest_effect(aggregated: AggregatedSet, check: EnrolmentCheck) -> str:
    if np.isnan(check.shift).all():
        return "-"
    face = int(np.nanargmax(check.shift))
    return f"{check.shift[face]:.3f} {_short(aggregated.faces[face].name)}"


def _short(name: str) -> str:
    return shortened(name, _LONGEST_NAME, 6)

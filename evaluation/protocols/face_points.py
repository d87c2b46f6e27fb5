"""Landmarks and detector scores of the IJB layout: read, and checked for plausibility.

Each check returns warnings, or raises InputError where figures would be meaningless.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.sources.decoding import image_size
from evaluation.protocols.ijb_layout import SetProtocol
from evaluation.protocols.text_tables import line_of_row, read_table
from photos.alignment import TEMPLATE, similarity_transforms
from runtime.errors import InputError

Floats = NDArray[np.float32]
Integers = NDArray[np.integer[Any]]

POINTS = "name_5pts_score.txt"
_POINTS = [f"{axis}{number}" for number in range(1, 6) for axis in "xy"]
# Distance of five points from the template after the best similarity transform (root mean square, of the
# template's distance of the eyes). Measured: 6,718 faces of LFWS, many poor, median 0.10, 99 % below 0.19,
# largest 0.34; 120 detections on photos of LFW median 0.08, largest 0.20. In another order, right eye first,
# y x, mouth corners exchanged, nose first or last, all x before all y: median 0.51 or more, 99 % above 0.42.
# A profile, in which the eyes come together, is between.
FARTHEST = 0.4
# Template pixels for a pixel of the face: LFWS 0.5 to 1.5. In points of 0..1 64 or more; here a face of 112
# pixels was 2.
LARGEST_SCALE = 50.0
# Of the faces of a file: above the first share the file is refused, above the second there is a warning.
_REFUSED_SHARE, _WARNED_SHARE = 0.5, 0.05
# So many images are opened to see whether the points lie in them.
_IMAGES_OPENED = 200


@dataclass(frozen=True, eq=False)
class FacePoints:
    """`landmarks` (N, 5, 2) float32: x, y of both eyes, the nose and both corners of the mouth; `scores`
    (N,) float32 of the detector.
    """

    landmarks: NDArray[np.float32]
    scores: NDArray[np.float32]


def read_points(protocol: SetProtocol) -> FacePoints:
    """Read landmarks and detector scores of all faces.

    Raises:
        InputError: the file is missing or broken (with its line), or names other images.
    """
    path = protocol.meta(POINTS)
    table = read_table(path, {"FILE": str, **dict.fromkeys(_POINTS, np.float32), "SCORE": np.float32})
    names = protocol.image_names
    if len(table) != len(names):
        raise InputError(
            f"{path}: {len(table):,} images, but {protocol.meta('face_tid_mid.txt').name} has "
            f"{len(names):,}. One of them may be cut short; compare their sizes with the originals."
        )
    differ = np.flatnonzero(table["FILE"].to_numpy() != np.array(names, dtype=object))
    if len(differ):
        row = int(differ[0])
        raise InputError(
            f"{path}, line {line_of_row(path, row)}: expected image '{names[row]}', as in the same place of "
            f"{protocol.meta('face_tid_mid.txt').name}, found '{table['FILE'].iloc[row]}'."
        )
    landmarks = table[_POINTS].to_numpy(np.float32).reshape(-1, 5, 2)
    # The five points span the transform; in one place they have no size to scale to.
    flat = np.flatnonzero(np.ptp(landmarks, axis=1).max(axis=1) <= 0)
    if len(flat):
        raise InputError(
            f"{path}, line {line_of_row(path, int(flat[0]))}: expected five different points, found the same "
            f"one five times ({len(flat):,} such lines)."
        )
    return FacePoints(landmarks, table["SCORE"].to_numpy())


def faces_digest(protocol: SetProtocol, points: FacePoints) -> str:
    """Which faces the features are of, in what order and cut by which points: SHA-256."""
    digest = hashlib.sha256("\0".join(protocol.image_names).encode())
    digest.update(points.landmarks.astype("<f4").tobytes())
    return digest.hexdigest()


def check_landmarks(landmarks: Floats, path: Path) -> list[str]:
    """Compare points (N, 5, 2) with the template that faces are aligned to.

    Raises:
        InputError: more than half of the faces have points in another order, or in another unit.
    """
    scales, distances = _fit(landmarks)
    small, odd = scales > LARGEST_SCALE, distances > FARTHEST
    if (share := float(small.mean())) > _REFUSED_SHARE:
        row = int(np.argmax(small))
        raise InputError(
            f"{path}, line {line_of_row(path, row)}: expected pixels of the image, found five points within "
            f"{np.ptp(landmarks[row], axis=0).max():.3g} of each other; so have {share:.0%} of them. Are "
            "they shares of the image's size? Multiply them by it."
        )
    if (share := float(odd.mean())) > _REFUSED_SHARE:
        row = int(np.argmax(odd))
        found = " ".join(f"{value:.1f}" for value in landmarks[row].ravel())
        raise InputError(
            f"{path}, line {line_of_row(path, row)}: expected x y of the left eye, the right eye (as in the "
            f"image), the nose, the left and the right corner of the mouth, found {found}, which no rotation "
            f"and scale brings near to a face; so have {share:.0%} of all faces. Write the points in that "
            "order, x before y."
        )
    wrong = small | odd
    share = float(wrong.mean())
    if share <= _WARNED_SHARE:
        return []
    return [
        f"{path.name}: the five points of {np.count_nonzero(wrong):,} of {len(wrong):,} faces are unlike a "
        f"face's (line {line_of_row(path, int(np.argmax(wrong)))} is the first). Are they in another order, "
        "or of another detector?"
    ]


def check_points_in_images(landmarks: Floats, names: Sequence[str], folder: Path, path: Path) -> list[str]:
    """Whether the middle of the five points (N, 5, 2) lies in the image, looked at for 200 of them.

    Raises:
        InputError: for more than half it does not.
    """
    rows = np.unique(np.linspace(0, len(names) - 1, _IMAGES_OPENED).astype(np.int64)).tolist()
    sizes = {row: size for row in rows if (size := image_size(folder / names[row])) is not None}
    if not sizes:
        return []
    seen = np.array(list(sizes))
    middles = landmarks[seen].mean(axis=1)
    outside = ((middles < 0) | (middles >= np.array(list(sizes.values())))).any(axis=1)
    share = float(outside.mean())
    if share <= _WARNED_SHARE:
        return []
    row = int(seen[np.argmax(outside)])
    (x, y), (width, height) = middles[np.argmax(outside)], sizes[row]
    said = (
        f"line {line_of_row(path, row)}: the points lie around {x:.1f} {y:.1f}, and {names[row]} is "
        f"{width} x {height} pixels; so it is for {share:.0%} of {len(seen)} faces looked at. Are the points "
        f"of larger images than those in {folder.name}?"
    )
    if share > _REFUSED_SHARE:
        raise InputError(f"{path}, {said}")
    return [f"{path.name}, {said}"]


def check_detector_scores(
    scores: Floats, template_of_face: Integers, template_ids: Integers, path: Path
) -> list[str]:
    """Look at detector scores (N,) that faces are to be weighted by.

    Raises:
        InputError: a score below 0, most of them above 1, or a template whose scores are all 0.
    """
    faults = []
    if (low := scores < 0).any():
        row = int(np.argmax(low))
        faults.append(
            f"{path}, line {line_of_row(path, row)}: a detector score of {scores[row]:g}, expected 0 to 1 "
            f"({np.count_nonzero(low):,} are below 0). Are they logits, or marks of what was not detected?"
        )
    high = scores > 1
    if high.mean() > _REFUSED_SHARE:
        row = int(np.argmax(high))
        faults.append(
            f"{path}, line {line_of_row(path, row)}: a detector score of {scores[row]:g}, expected 0 to 1 "
            f"({high.mean():.0%} are above 1). Divide per cents by 100; map logits to probabilities."
        )
    weights = np.bincount(template_of_face, weights=np.maximum(scores, 0), minlength=len(template_ids))
    if len(empty := np.flatnonzero(weights == 0)) and not faults:
        row = int(np.argmax(template_of_face == empty[0]))
        faults.append(
            f"{path}, line {line_of_row(path, row)}: all detector scores of template "
            f"{template_ids[empty[0]]} are 0, so that it has no descriptor ({len(empty):,} of "
            f"{len(template_ids):,} templates). Evaluate without detector scores, or correct them."
        )
    if faults:
        raise InputError.from_faults(faults)
    warnings = []
    if high.any():
        warnings.append(
            f"{path.name}: {np.count_nonzero(high):,} detector scores are above 1, up to {scores.max():g}: "
            "those faces count more than others."
        )
    if len(scores) > 1 and scores.min() == scores.max():
        warnings.append(f"{path.name}: all detector scores are {scores[0]:g}, so that they change nothing.")
    elif zeros := np.count_nonzero(scores == 0):
        warnings.append(f"{path.name}: {zeros:,} detector scores are 0: those faces do not count.")
    return warnings


def _fit(landmarks: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,) scales of the transforms to the template, and (N,) distances from it, of the eyes' distance."""
    transforms = similarity_transforms(landmarks)
    scales = np.hypot(transforms[:, 0, 0], transforms[:, 1, 0])
    squares = np.zeros(len(landmarks))
    # Axis by axis: a product of small matrices for each face takes three times as long.
    for axis in (0, 1):
        to_x, to_y, shift = transforms[:, axis].T[:, :, None]
        squares += (
            (landmarks[..., 0] * to_x + landmarks[..., 1] * to_y + shift - TEMPLATE[:, axis]) ** 2
        ).mean(axis=1)
    return scales, np.sqrt(squares) / np.linalg.norm(TEMPLATE[1] - TEMPLATE[0])

"""Meta files of the IJB layout checked for sense: landmarks, detector scores, galleries against pairs.

Their form is checked in `evaluation.protocols.ijb_layout`. Each check gives warnings, or raises InputError
where figures would mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.sources.decoding import image_size
from evaluation.protocols.text_tables import line_of_row
from photos.alignment import TEMPLATE, similarity_transforms
from runtime.errors import InputError

Floats = NDArray[np.float32]
Integers = NDArray[np.integer[Any]]

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
# Of all mated pairs: so many may contradict the 1:N lists in data sets of published size, none in others.
_MOST_MATED_CONTRADICTIONS = 0.01
# Non-mated pairs of one subject, to the number of mated pairs: fewer cost the intervals alone.
_MOST_NON_MATED_CONTRADICTIONS = 0.5
# Id of the templates that stand in no 1:N list.
UNKNOWN = np.iinfo(np.int64).min


def check_landmarks(landmarks: Floats, path: Path) -> list[str]:
    """Compares points (N, 5, 2) with the template that faces are aligned to.

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
    """Looks at detector scores (N,) that faces are to be weighted by.

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


def check_one_to_many(
    mated: tuple[Integers, Integers],
    non_mated_alike: Integers,
    known_subject: Integers,
    component: Integers,
    template_ids: Integers,
    *,
    published: bool,
    folder: Path,
) -> list[str]:
    """Compares what pairs and 1:N lists say of who is whom.

    Args:
        mated: rows of templates of all mated pairs (P,), (P,).
        non_mated_alike: (Q, 2) rows of non-mated pairs whose templates are of one subject by all else.
        known_subject: (M,) id of the 1:N lists, `UNKNOWN` where a template is in none.
        component: (M,) number of the templates that mated pairs join.
        template_ids: (M,).
        published: a data set of known size, in which a few contradictions give a warning only.
        folder: of the data set.

    Raises:
        InputError: they contradict each other.
    """
    known = np.flatnonzero(known_subject != UNKNOWN)
    order = known[np.lexsort((known_subject[known], component[known]))]
    same_component = component[order[1:]] == component[order[:-1]]
    places = np.flatnonzero(same_component & (known_subject[order[1:]] != known_subject[order[:-1]]))
    said = []
    contradicted = 0
    if len(places):
        first, second = order[places[0]], order[places[0] + 1]
        torn = np.unique(component[order[places]])
        contradicted = int(np.isin(component[mated[0]], torn).sum())
        said.append(
            f"templates {template_ids[first]} and {template_ids[second]} are joined by mated pairs, but are "
            f"of subjects {known_subject[first]} and {known_subject[second]} in the 1:N lists (so are "
            f"{len(torn):,} groups of templates, with {contradicted:,} of {len(mated[0]):,} mated pairs)"
        )
    if len(non_mated_alike):
        first, second = non_mated_alike[0]
        said.append(
            f"templates {template_ids[first]} and {template_ids[second]} are a non-mated pair, but of one "
            f"subject by the 1:N lists or by other pairs (so are {len(non_mated_alike):,} pairs)"
        )
    if not said:
        return []
    text = f"{folder / 'meta'}: " + "; ".join(said) + ". Do the files belong together?"
    most = _MOST_MATED_CONTRADICTIONS * len(mated[0]) if published else 0
    if contradicted > most or len(non_mated_alike) > _MOST_NON_MATED_CONTRADICTIONS * len(mated[0]):
        raise InputError(text)
    return [text]


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

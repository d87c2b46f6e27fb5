"""Choice of the face that belongs to a set, among several faces of similar size in one photo."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.rows import unit_rows

# Cosine of a face with the mean of the rest of its set from which they show one subject, for the reference
# backbone (`BackboneSpec.cosine_limit`).
AGREEMENT = 0.25
# Faces that initialise the search; of more, those of the largest norms.
_MAX_SEEDS = 64
_ROUNDS = 10

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def choose_faces(
    features: Floats, norms: Floats, photos: Ints, limit: float = AGREEMENT
) -> tuple[Ints, NDArray[np.bool_]]:
    """Choose one face of each photo so that the chosen faces are similar.

    Each seed face (of photos with a single face, if there are any) selects the most similar face of every
    photo. The selection with the largest sum of cosines is refined iteratively against the norm-weighted
    mean of the other photos' faces. A photo without a face that reaches `limit` keeps its first one.

    Args:
        features: (T, D) unit rows; the default face of a photo comes first.
        norms: (T,).
        photos: (T,) number of the photo or frame of each face, ascending.
        limit: cosine with the mean of the others from which a face agrees with them.

    Returns:
        (P,) row of the face chosen for each of P photos; (P,) bool, whether it agrees with the others.
    """
    starts = np.flatnonzero(np.diff(photos, prepend=-1))
    counts = np.diff(np.append(starts, len(photos)))
    if len(starts) == 1:
        return starts, np.zeros(1, np.bool_)
    single = starts[counts == 1]
    seeds = single if len(single) else np.arange(len(photos))
    seeds = seeds[np.argsort(-norms[seeds], kind="stable")[:_MAX_SEEDS]]
    cosines = features[seeds] @ features.T
    best = int(np.maximum.reduceat(cosines, starts, axis=1).sum(axis=1).argmax())
    rows = _largest_of_each(cosines[best], starts)
    vectors = features.astype(np.float64) * norms.astype(np.float64)[:, None]
    photo_of = np.repeat(np.arange(len(starts)), counts)
    for _ in range(_ROUNDS):
        rest = unit_rows(vectors[rows].sum(axis=0) - vectors[rows])
        agreement = np.einsum("td,td->t", features, rest[photo_of])
        chosen = _largest_of_each(agreement, starts)
        if (chosen == rows).all():
            break
        rows = chosen
    agrees = agreement[rows] >= limit
    return np.where(agrees, rows, starts), agrees


def _largest_of_each(values: NDArray[np.floating], starts: Ints) -> Ints:
    """(P,) row of the largest value of each segment; the first on ties."""
    parts = np.split(values, starts[1:])
    return starts + np.array([int(part.argmax()) for part in parts], np.int64)

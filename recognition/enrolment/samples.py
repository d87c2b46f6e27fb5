"""Independent samples of a set: near-duplicates and faces of one photo or video count once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recognition.records import AggregatedSet
from runtime.rows import joined_rows, row_slices

# Cosines in one block of the search for near-duplicates; a pair takes up to 64 bytes.
_PAIRS_PER_BLOCK = 262_144

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def duplicate_groups(features: NDArray[np.float32], limit: float) -> Ints:
    """Group faces connected by cosines of `limit` or more.

    Args:
        features: (T, D) unit rows.
        limit: cosine.

    Returns:
        (T,) group of each face, numbered by first face; -1 for a face without near-duplicates.
    """
    count = len(features)
    roots = np.arange(count)
    for block in row_slices(count, count, _PAIRS_PER_BLOCK):
        start = block.start
        near = features[block] @ features[start:].T >= limit
        rows, columns = np.nonzero(np.triu(near, 1))
        # The edge from each face to the first face of its group carries over the pairs of earlier blocks.
        first, second = np.append(rows + start, roots), np.append(columns + start, np.arange(count))
        _, leader, inverse = np.unique(
            joined_rows(count, first, second), return_index=True, return_inverse=True
        )
        roots = leader[inverse]
    _, first, inverse, sizes = np.unique(roots, return_index=True, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(sizes > 1)
    numbers = np.full(len(sizes), -1)
    numbers[shared[np.argsort(first[shared])]] = np.arange(len(shared))
    return np.asarray(numbers[inverse.reshape(-1)], np.int64)


def known_media(aggregated: AggregatedSet) -> Ints:
    """(T,) numbers of photos and videos; faces of a photo or frame with several used faces get their own."""
    media = aggregated.media
    crowded = np.unique(media[[not face.alone for face in aggregated.faces]])
    apart = np.isin(media, crowded)
    media[apart] = media.max() + 1 + np.arange(int(apart.sum()))
    return media


def independent_samples(media: Ints, groups: Ints) -> Ints:
    """(T,) sample 0..U-1 of each face: faces of one medium or one group of near-duplicates share a sample.

    Args:
        media: (T,) photo or video of each face.
        groups: (T,) group of near-duplicates, -1 for none.
    """
    _, medium = np.unique(media, return_inverse=True)
    grouped = groups >= 0
    _, first, group = np.unique(groups[grouped], return_index=True, return_inverse=True)
    members = medium[grouped]
    return joined_rows(int(medium.max(initial=-1)) + 1, members, members[first[group]])[medium]


def pool_samples(
    features: NDArray[np.float32], norms: NDArray[np.float32], samples: Ints
) -> tuple[Floats, Floats]:
    """Mean un-normalised feature of each sample, as unit rows (U, D) and lengths (U,).

    Args:
        features: (T, D) unit rows.
        norms: (T,).
        samples: (T,) 0..U-1, each at least once.
    """
    counts = np.bincount(samples)
    sums = np.zeros((len(counts), features.shape[1]))
    np.add.at(sums, samples, features.astype(np.float64) * norms.astype(np.float64)[:, None])
    means = sums / counts[:, None]
    lengths = np.linalg.norm(means, axis=1)
    return means / lengths.clip(1e-12)[:, None], lengths

"""Each face of a set against the others: similarity to them, and effect on the descriptor."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from coreset import FaceSets
from recognition.model import FaceModel, aggregate_batch
from recognition.records import AggregatedSet

# Leaving out each face aggregates T sets of T - 1 faces. In larger sets only the selected faces and those of
# the largest weights are left out, as no other face can move the descriptor.
_LARGEST_SET = 128
_HEAVIEST = 32
# Faces in one batch of sets: 64 MB at 512 values.
_FACES_PER_BATCH = 32_768


def similarity_to_rest(features: NDArray[np.float32], norms: NDArray[np.float32]) -> NDArray[np.float64]:
    """(T,) cosine of each face with the norm-weighted mean of the others; NaN for a single face."""
    if len(norms) < 2:
        return np.full(len(norms), np.nan)
    vectors = features.astype(np.float64) * norms.astype(np.float64)[:, None]
    rest = vectors.sum(axis=0) - vectors
    lengths = np.linalg.norm(rest, axis=1)
    cosines: NDArray[np.float64] = np.divide(
        (features * rest).sum(axis=1), lengths, out=np.full(len(norms), np.nan), where=lengths > 0
    )
    return cosines


def descriptor_shifts(model: FaceModel, aggregated: AggregatedSet) -> NDArray[np.float64]:
    """(T,) 1 - cosine of the descriptor with and without each face; NaN where it was not measured."""
    count = len(aggregated.faces)
    shifts = np.full(count, np.nan)
    if count < 2:
        return shifts
    wanted = np.arange(count)
    if count > _LARGEST_SET:
        weights = aggregated.norms if aggregated.weights is None else aggregated.weights
        heaviest = np.argsort(-weights, kind="stable")[:_HEAVIEST]
        wanted = np.unique(np.concatenate([aggregated.picks, heaviest]))
    sets_per_batch = max(1, _FACES_PER_BATCH // count)
    for start in range(0, len(wanted), sets_per_batch):
        left_out = wanted[start : start + sets_per_batch]
        without = aggregate_batch(model, _sets_without(aggregated, left_out))
        cosines = np.stack([each.embedding for each in without]) @ aggregated.embedding
        shifts[left_out] = np.maximum(0, 1 - cosines)
    return shifts


def _sets_without(aggregated: AggregatedSet, left_out: NDArray[np.int64]) -> FaceSets:
    count, media = len(aggregated.faces), aggregated.media
    rows = np.concatenate([np.delete(np.arange(count), face) for face in left_out])
    # Media of different sets are different media.
    offset = np.repeat(np.arange(len(left_out)), count - 1) * (int(media.max()) + 1)
    return FaceSets(
        torch.from_numpy(aggregated.features[rows]),
        torch.from_numpy(aggregated.norms[rows]),
        torch.arange(len(left_out) + 1) * (count - 1),
        torch.from_numpy(media[rows] + offset),
    )

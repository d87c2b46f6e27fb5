"""Aggregation of face features into media and template descriptors.

Templates are aggregated in ragged batches by any aggregator of `coreset`, within bounded memory, so that the
features may stay on disk.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from coreset.pooling import Mean, MediaMean, NormWeighted
from coreset.quality import quality_of
from coreset.sets import FaceSets, SetDescriptor, unit_and_norm
from runtime.errors import InputError

Floats = NDArray[np.floating[Any]]

# Work handed to an aggregator at once; a larger template is alone. Faces cost one each, and a template as
# much as three, for what is done with its chosen ones. At most 16 MiB of float32 at 512 values, a thread.
_WORK_AT_ONCE = 8_192
_WORK_OF_TEMPLATE = 3


@dataclass(frozen=True, eq=False)
class FaceGroups:
    """Which faces make which template; used by every aggregator.

    `rows` (R,) int64: rows of the features, those of template m at `offsets[m]:offsets[m+1]`, no template
    without any; `media` (R,) int64: number of the medium of each, equal only within one template.
    """

    rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    media: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(M,) faces of each template."""
        return np.diff(self.offsets)


@dataclass(frozen=True, eq=False)
class TemplateDescriptors:
    """`embedding` (M, D) float32, unit rows (zeros where faces cancel out); `norm` (M,) float32.

    By `coreset.two_identity_split` the embedding is (M, 2, D).
    """

    embedding: NDArray[np.float32]
    norm: NDArray[np.float32]


def group_faces(
    template_of_face: NDArray[np.integer[Any]], media: NDArray[np.integer[Any]], num_templates: int
) -> FaceGroups:
    """Sort faces by template; within one they keep their order.

    Args:
        template_of_face: (N,) 0..M-1.
        media: (N,) ids, which may come again in other templates and are then other media.
        num_templates: M.

    Raises:
        InputError: shapes differ, or a template has no face.
    """
    if template_of_face.shape != media.shape or template_of_face.ndim != 1:
        raise InputError(f"faces of templates {template_of_face.shape}, media {media.shape}: expected (N,).")
    sizes = np.bincount(template_of_face, minlength=num_templates)
    if len(sizes) != num_templates or not sizes.all():
        raise InputError(
            f"template {int(sizes.argmin())} of {num_templates:,} has no face. Leave out what has none."
        )
    rows = np.argsort(template_of_face, kind="stable")
    templates = template_of_face[rows].astype(np.int64)
    names, medium = np.unique(media[rows], return_inverse=True)
    numbers = np.unique(templates * len(names) + medium, return_inverse=True)[1]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return FaceGroups(rows.astype(np.int64), offsets, numbers.astype(np.int64))


def average_media(
    features: Floats, norms: Floats, groups: FaceGroups
) -> tuple[NDArray[np.float32], NDArray[np.float32], FaceGroups]:
    """Replace the faces of each medium by one: the mean of their un-normalised features.

    Returns:
        Unit features (R, D), norms (R,), one row per medium, and the templates made of these.
    """
    order = np.argsort(groups.media, kind="stable")
    counts = np.bincount(groups.media)
    weights = norms[groups.rows[order]] / counts[groups.media[order]]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    means = _weighted_sums(features, groups.rows[order], weights, offsets)
    template = np.repeat(np.arange(len(groups)), groups.sizes)[order][offsets[:-1]]
    media = np.arange(len(counts))
    return means.embedding, means.norm, group_faces(template, media, len(groups))


@torch.inference_mode()
def aggregate_templates(
    aggregator: nn.Module,
    features: Floats,
    norms: Floats,
    groups: FaceGroups,
    device: torch.device | str = "cpu",
    *,
    auxiliary_size: int = 0,
    detector_scores: Floats | None = None,
) -> TemplateDescriptors:
    """One descriptor a template.

    Templates of like size go together, so that the aggregator pads little. Beside features and result it
    needs about 0.2 GiB at 512 values a face, whatever their number.

    Args:
        aggregator: of `coreset.AGGREGATORS`, or a `TwoIdentitySplit`; put on `device` and into evaluation
            mode.
        features: (N, D) unit rows, any floating type; may be memory-mapped.
        norms: (N,).
        groups: rows of these features.
        device: where the aggregator works.
        auxiliary_size: number of auxiliary features at the end of each row.
        detector_scores: (N,), for aggregators whose quality they are.

    Raises:
        InputError: shapes differ, or the aggregator refuses the features.
    """
    if features.ndim != 2 or norms.shape != features.shape[:1] or groups.rows.max() >= len(features):
        raise InputError(
            f"features {features.shape}, norms {norms.shape}, rows up to {groups.rows.max()}: expected "
            "(N, D), (N,) and rows below N."
        )
    device = torch.device(device)
    weights = _POOLING_WEIGHTS.get(type(aggregator)) if quality_of(aggregator) == "norm" else None
    if weights is not None and device.type == "cpu":
        coefficients = weights(norms[groups.rows], groups)
        if auxiliary_size:
            coefficients = coefficients / _identity_lengths(features, auxiliary_size)[groups.rows]
        return _weighted_sums(features, groups.rows, coefficients, groups.offsets, auxiliary_size)
    aggregator = aggregator.to(device).eval()
    if not len(groups):
        raise InputError("there are no templates.")
    batches = _batches(np.argsort(-groups.sizes, kind="stable"), groups.sizes)

    def describe(templates: NDArray[np.int64]) -> TemplateDescriptors:
        with torch.inference_mode():
            sets = _sets_of(templates, features, norms, groups, auxiliary_size, detector_scores).to(device)
            descriptor: SetDescriptor = aggregator(sets).checked()
            return TemplateDescriptors(
                descriptor.embedding.float().cpu().numpy(), descriptor.norm.float().cpu().numpy()
            )

    parts = _by_threads(describe, batches) if device.type == "cpu" else list(map(describe, batches))
    place = np.argsort(np.concatenate(batches))
    return TemplateDescriptors(
        np.concatenate([part.embedding for part in parts])[place],
        np.concatenate([part.norm for part in parts])[place],
    )


def _by_threads(
    work: Callable[[NDArray[np.int64]], TemplateDescriptors], batches: list[NDArray[np.int64]]
) -> list[TemplateDescriptors]:
    """One batch a thread: two threads that share one batch wait for each other at every step of it.

    23,124 templates of IJB-C's sizes, two cores: 3.9 s in place of 5.0 s.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(batches) == 1:
        return list(map(work, batches))
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, batches))
    finally:
        # Part of what the threads set for themselves holds for the whole process.
        torch.set_num_threads(threads)


def _batches(order: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cut templates in the given order into batches of at most `_WORK_AT_ONCE`, one template at least."""
    work = np.cumsum(sizes[order] + _WORK_OF_TEMPLATE)
    batches, first, before = [], 0, 0
    while first < len(order):
        last = max(first + 1, int(np.searchsorted(work, before + _WORK_AT_ONCE, side="right")))
        batches.append(order[first:last])
        first, before = last, int(work[last - 1])
    return batches


def _sets_of(
    templates: NDArray[np.int64],
    features: Floats,
    norms: Floats,
    groups: FaceGroups,
    auxiliary_size: int,
    detector_scores: Floats | None,
) -> FaceSets:
    sizes = groups.sizes[templates]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    places = np.arange(offsets[-1]) + np.repeat(groups.offsets[templates] - offsets[:-1], sizes)
    rows = groups.rows[places]
    scores = None if detector_scores is None else torch.from_numpy(detector_scores[rows].astype(np.float32))
    return FaceSets.from_rows(
        torch.from_numpy(features[rows].astype(np.float32, copy=False)),
        torch.from_numpy(norms[rows].astype(np.float32, copy=False)),
        torch.from_numpy(offsets),
        auxiliary_size,
        media=torch.from_numpy(groups.media[places]),
        detector_scores=scores,
    )


def _identity_lengths(features: Floats, auxiliary_size: int) -> NDArray[np.float32]:
    """(N,) length of each row without its auxiliary features, read in parts."""
    parts = (features[start : start + 8_192, :-auxiliary_size] for start in range(0, len(features), 8_192))
    return np.concatenate([np.linalg.norm(part.astype(np.float32), axis=1) for part in parts])


@torch.inference_mode()
def _weighted_sums(
    features: Floats,
    rows: NDArray[np.int64],
    weights: Floats,
    offsets: NDArray[np.int64],
    auxiliary_size: int = 0,
) -> TemplateDescriptors:
    """Sums of weighted rows, without their last values: one pass over the features where they lie, without a
    copy of any.
    """
    sums = []
    # Half precision is widened by parts; float32 is summed where it is, in one go.
    step = len(offsets) - 1 if features.dtype == np.float32 else 1_024
    for first in range(0, len(offsets) - 1, step):
        bounds = offsets[first : first + step + 1]
        part = slice(bounds[0], bounds[-1])
        if features.dtype == np.float32:
            table, index = features, rows[part]
        else:
            table, index = features[rows[part]].astype(np.float32), np.arange(part.stop - part.start)
        sums.append(
            F.embedding_bag(
                torch.from_numpy(index),
                _shared_tensor(table),
                torch.from_numpy(bounds[:-1] - bounds[0]),
                mode="sum",
                per_sample_weights=torch.from_numpy(weights[part].astype(np.float32, copy=False)),
            )
        )
    vectors = torch.cat(sums)
    embedding, norm = unit_and_norm(vectors[:, : vectors.shape[1] - auxiliary_size])
    return TemplateDescriptors(embedding.numpy(), norm.numpy())


def _shared_tensor(array: NDArray[np.float32]) -> Tensor:
    """The same memory as a tensor. A file that is mapped for reading only serves too: nothing is written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def _mean_weights(norms: Floats, groups: FaceGroups) -> Floats:
    return np.repeat(1 / groups.sizes, groups.sizes)


def _norm_weights(norms: Floats, groups: FaceGroups) -> Floats:
    return norms / np.repeat(groups.sizes, groups.sizes)


def _media_weights(norms: Floats, groups: FaceGroups) -> Floats:
    return norms / np.bincount(groups.media)[groups.media]


# The poolings whose weights need no look at the features; `coreset.pooling` says the same for any batch.
_POOLING_WEIGHTS: dict[type[nn.Module], Callable[[Floats, FaceGroups], Floats]] = {
    Mean: _mean_weights,
    NormWeighted: _norm_weights,
    MediaMean: _media_weights,
}

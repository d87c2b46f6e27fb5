"""TemplateStream: the descriptor of a growing set of faces, in bounded memory; for video and cameras."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from coreset.aggregator import CoresetAggregator
from coreset.candidates import Candidates, StreamedFaces
from coreset.pooling import BestNorm, FpsMean, Mean, MediaMean, NormWeighted, RandomK, TopK
from coreset.quality import FaceQuality, quality_module, quality_of
from coreset.sets import FaceSets, SetDescriptor
from runtime.errors import InputError

# 6 MiB at D = 512, three rows per candidate.
DEFAULT_CAPACITY = 1024


class TemplateStream:
    """Descriptor of a set whose faces arrive in batches.

    How it compares to the aggregator applied to all faces at once:

    * `mean`, `norm_weighted`, `media_mean`: equal up to rounding. `media_mean` needs increasing media
      indices.
    * `best_norm`, `top_k`, `random_k`: equal, picks included.
    * `coreset` and `fps_mean`: equal, picks included, up to `capacity` faces. Farthest-point sampling cannot
      be streamed exactly, since a better first face changes the distances of faces that are gone. Beyond the
      capacity, candidates are halved by a similar selection (`Candidates`), so that the first pick is always
      exact, and attention sees the mean key and mean value of the faces merged into each candidate, weighted
      by their number. Merging copies changes nothing.
    * other aggregators: equal up to `capacity` faces; beyond, applied to a uniform random sample of that
      size.

    Time is linear in the number of faces. Not differentiable.

    Args:
        aggregator: in evaluation mode.
        capacity: maximum number of faces kept; at least twice the coreset size.
        seed: of the random sample.

    Raises:
        InputError: the aggregator is in training mode, or the capacity is too small.
    """

    def __init__(self, aggregator: nn.Module, *, capacity: int = DEFAULT_CAPACITY, seed: int = 0) -> None:
        least = 2 * max(2, int(getattr(aggregator, "coreset_size", 1)))
        faults = []
        if capacity < least:
            faults.append(f"TemplateStream: capacity {capacity} must be at least {least}, two coresets.")
        if aggregator.training:
            faults.append("TemplateStream: the aggregator is in training mode. Call eval() first.")
        if faults:
            raise InputError.from_faults(faults)
        self.num_faces = 0
        self._quality = quality_module(aggregator)
        self._state = _state_for(_with_norm_quality(aggregator), capacity, seed)
        self._auxiliary_size: int = getattr(aggregator, "auxiliary_size", 0)
        size: int = getattr(aggregator, "embedding_size", 0) - self._auxiliary_size
        self._sizes: tuple[int, int] | None = (size, self._auxiliary_size) if size else None

    @torch.no_grad()
    def update(
        self,
        features: Tensor,
        norms: Tensor,
        media: Tensor | None = None,
        detector_scores: Tensor | None = None,
        auxiliary: Tensor | None = None,
    ) -> None:
        """Add faces, possibly none.

        Args:
            features: (T, D) floating, unit rows, without auxiliary features.
            norms: (T,) floating.
            media: (T,) int64, increasing over the stream; required by `media_mean` only.
            detector_scores: (T,) floating; required by the quality 'detector' only.
            auxiliary: (T, A) floating; required by aggregators that read auxiliary features.

        Raises:
            InputError: inconsistent shapes or values that are not finite; no face is added then.
        """
        if len(features) == 0:
            return
        whole = torch.tensor([0, len(features)], device=features.device)
        faces = FaceSets(features, norms, whole, auxiliary, media, detector_scores)
        if auxiliary is not None and not self._auxiliary_size:
            faces, auxiliary = replace(faces, auxiliary=None), None
        sizes = faces.embedding_size, 0 if auxiliary is None else auxiliary.shape[1]
        if self._sizes not in (None, sizes):
            raise InputError(
                "TemplateStream: expected features and auxiliary features of {} and {} values, found {} and "
                "{}. All faces of a stream must come from one backbone.".format(*self._sizes or (), *sizes)
            )
        if self._quality is not None:
            faces = self._quality.replace_norms(faces)
        finite = faces.norms.isfinite() & features.isfinite().all(dim=1)
        if auxiliary is not None:
            finite &= auxiliary.isfinite().all(dim=1)
        if not bool(finite.all()):
            raise InputError(
                f"TemplateStream: face {self.num_faces + int(finite.int().argmin())} holds NaN or infinite "
                "values. Remove it; a stream cannot remove it later."
            )
        self._state.update(faces, self.num_faces)
        self._sizes = sizes
        self.num_faces += faces.num_faces

    @torch.no_grad()
    def descriptor(self) -> SetDescriptor:
        """Descriptor of all faces so far, as a batch of one set.

        Picks are indices in the stream; `weights` is None, since its size would grow.

        Raises:
            InputError: no face was added yet.
        """
        if not self.num_faces:
            raise InputError("TemplateStream: an empty set has no descriptor. Call update first.")
        return self._state.descriptor()

    @property
    def is_exact(self) -> bool:
        """Whether the descriptor equals the aggregator's for all faces, see the class."""
        return self._state.is_exact


def _with_norm_quality(aggregator: nn.Module) -> nn.Module:
    """The aggregator for faces whose norms were already replaced by qualities."""
    if quality_of(aggregator) == "norm":
        return aggregator
    copied = copy.deepcopy(aggregator)
    name = "face_quality" if hasattr(copied, "face_quality") else "quality"
    setattr(copied, name, FaceQuality("norm", "TemplateStream"))
    return copied


def _state_for(
    aggregator: nn.Module, capacity: int, seed: int
) -> _RunningMean | _RunningPicks | Candidates | _Sample:
    if isinstance(aggregator, (Mean, NormWeighted, MediaMean)):
        return _RunningMean(aggregator)
    if isinstance(aggregator, (BestNorm, TopK, RandomK)):
        return _RunningPicks(aggregator)
    if isinstance(aggregator, (CoresetAggregator, FpsMean)):
        return Candidates(aggregator, capacity)
    return _Sample(aggregator, capacity, seed)


class _RunningMean:
    """Mean over faces; for `media_mean` the sum over media of their means, the last medium being open."""

    is_exact = True

    def __init__(self, aggregator: nn.Module) -> None:
        self._by_media = isinstance(aggregator, MediaMean)
        self._aggregator = NormWeighted() if self._by_media else aggregator
        self._complete: Tensor | float = 0.0
        self._sum: Tensor | float = 0.0
        self._count = 0
        self._medium: int | None = None

    def update(self, faces: FaceSets, first: int) -> None:
        start = 0
        for medium, size in self._portions(faces):
            if self._medium is not None and medium != self._medium:
                self._complete = self._complete + torch.as_tensor(self._sum) / self._count
                self._sum, self._count = 0.0, 0
            rows = slice(start, start + size)
            offsets = faces.offsets.new_tensor([0, size])
            part = self._aggregator(FaceSets(faces.features[rows], faces.norms[rows], offsets))
            # In float64: a float32 sum of 100,000 faces loses three digits.
            self._sum = self._sum + (part.embedding.double() * part.norm.double()[:, None]) * size
            self._count += size
            self._medium = medium
            start += size

    def _portions(self, faces: FaceSets) -> list[tuple[int, int]]:
        """Medium and number of faces, one after another."""
        if not self._by_media:
            return [(0, faces.num_faces)]
        if faces.media is None:
            raise InputError(
                "media_mean: the faces have no media indices. Pass media to TemplateStream.update, or use "
                "norm_weighted, which needs none."
            )
        media, sizes = (each.tolist() for each in torch.unique_consecutive(faces.media, return_counts=True))
        order = [*([] if self._medium is None else [self._medium]), *media]
        if order != sorted(order):
            raise InputError(
                "media_mean: media indices must increase over a stream. Number the media in order of arrival."
            )
        return list(zip(media, sizes, strict=True))

    def descriptor(self) -> SetDescriptor:
        vectors = (self._complete + torch.as_tensor(self._sum) / self._count).float()
        picks = torch.empty((1, 0), dtype=torch.int64, device=vectors.device)
        return SetDescriptor.from_vectors(vectors, picks)


class _RunningPicks:
    """Poolings of the first faces by a key: the first of all faces are first in any portion."""

    is_exact = True

    def __init__(self, aggregator: nn.Module) -> None:
        self._aggregator = aggregator
        self._kept: StreamedFaces | None = None

    def update(self, faces: FaceSets, first: int) -> None:
        new = StreamedFaces.of(faces, first)
        known = new if self._kept is None else self._kept.extended(new)
        picks = known.aggregate(self._aggregator).picks[0]
        # In order of arrival, so that ties are resolved as in one batch.
        self._kept = known.subset(torch.isin(known.numbers, picks))

    def descriptor(self) -> SetDescriptor:
        return _not_empty(self._kept).aggregate(self._aggregator)


class _Sample:
    """A uniform random sample of the faces (reservoir sampling), for other aggregators.

    It depends on the number of faces and the seed only, not on the portions.
    """

    is_exact = True

    def __init__(self, aggregator: nn.Module, capacity: int, seed: int) -> None:
        self._aggregator, self._capacity = aggregator, capacity
        self._draws = torch.Generator().manual_seed(seed)
        self._kept: StreamedFaces | None = None

    def update(self, faces: FaceSets, first: int) -> None:
        new = StreamedFaces.of(faces, first)
        free = max(0, self._capacity - first)
        start = new.subset(torch.arange(min(free, len(new)), device=new.numbers.device))
        self._kept = start if self._kept is None else self._kept.extended(start) if len(start) else self._kept
        # One draw per face, whatever the portions.
        for row in range(free, len(new)):
            place = int(torch.randint(first + row + 1, (), generator=self._draws))
            if place < self._capacity:
                self._kept.put(slice(place, place + 1), new.subset(slice(row, row + 1)))
            self.is_exact = False

    def descriptor(self) -> SetDescriptor:
        kept = _not_empty(self._kept)
        return kept.subset(kept.numbers.argsort()).aggregate(self._aggregator)


def _not_empty(faces: StreamedFaces | None) -> StreamedFaces:
    if faces is None:
        raise RuntimeError("no faces")
    return faces

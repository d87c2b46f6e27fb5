"""TemplateStream: a set's descriptor from faces that arrive one after another, in memory that does not grow.

For video and cameras. Up to `capacity` faces the result is the aggregator's own; what happens beyond is said
by `TemplateStream` and, for each kind of aggregator, by the small classes below, which hold its state.
"""

from __future__ import annotations

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from coreset.aggregator import CoresetAggregator
from coreset.candidates import Candidates, StreamedFaces
from coreset.pooling import BestNorm, FpsMean, Mean, MediaMean, NormWeighted, RandomK, TopK
from coreset.quality import FaceQuality, quality_module, quality_of
from coreset.sets import FaceSets, SetDescriptor
from runtime.errors import InputError

# Candidates that a stream keeps: 6 MiB at 512 values a face, three rows each.
DEFAULT_CAPACITY = 1024


class TemplateStream:
    """The faces of one set, handed over in any portions; the descriptor of all so far at any time.

    How close it is to the aggregator on all faces at once:

    * `mean`, `norm_weighted`, `media_mean`: equal but for rounding. `media_mean` takes media in rising order,
      as frames come: a medium that is left is closed.
    * `best_norm`, `top_k`, `random_k`: equal, picks included.
    * `coreset` and `fps_mean`: equal, picks included, up to `capacity` faces. Greedy farthest-point sampling
      cannot be streamed: a better first face changes the distances of faces long gone, and what attention
      looks for is known at the end alone. Beyond, the `capacity` candidates are halved, again and again, by
      the same sampling: its first picks survive, so that the first pick is always the true one. Each
      candidate stands for those merged into it: attention sees their mean key and mean value, counted. Copies
      merged into their original change nothing, picks and descriptor stay equal.
    * any other aggregator: equal up to `capacity` faces; beyond, it is given a uniform random sample of that
      size.

    Time is linear in the faces; memory is bounded by `capacity`. Not differentiable.

    Args:
        aggregator: in evaluation mode.
        capacity: faces kept at most; at least twice the coreset size.
        seed: of the random sample.

    Raises:
        InputError: the aggregator is in training mode, or the capacity too small.
    """

    def __init__(self, aggregator: nn.Module, *, capacity: int = DEFAULT_CAPACITY, seed: int = 0) -> None:
        least = 2 * max(2, int(getattr(aggregator, "coreset_size", 1)))
        faults = []
        if capacity < least:
            faults.append(f"TemplateStream: capacity {capacity} must be at least {least}, two coresets.")
        if aggregator.training:
            faults.append("TemplateStream: the aggregator is in training mode. Call its eval() before.")
        if faults:
            raise InputError.from_faults(faults)
        self.num_faces = 0
        self._quality = quality_module(aggregator)
        self._state = _state_for(_weighing_by_norm(aggregator), capacity, seed)
        self._embedding_size: int | None = getattr(aggregator, "embedding_size", None)

    @torch.no_grad()
    def update(
        self,
        features: Tensor,
        norms: Tensor,
        media: Tensor | None = None,
        detector_scores: Tensor | None = None,
    ) -> None:
        """Takes more faces; none at all is fine too.

        Args:
            features: (T, D) floating, unit rows.
            norms: (T,) floating.
            media: (T,) int64; only `media_mean` needs it, rising over the whole stream.
            detector_scores: (T,) floating; only the quality 'detector' needs them.

        Raises:
            InputError: shapes do not fit each other or the faces before, or a value is not finite; nothing is
                taken then.
        """
        if len(features) == 0:
            return
        whole = torch.tensor([0, len(features)], device=features.device)
        faces = FaceSets(features, norms, whole, media, detector_scores)
        if self._embedding_size not in (None, faces.embedding_size):
            raise InputError(
                f"TemplateStream: expected features of {self._embedding_size} values, found "
                f"{faces.embedding_size}. One stream takes the faces of one backbone."
            )
        if self._quality is not None:
            faces = self._quality.applied(faces)
        finite = faces.norms.isfinite() & features.isfinite().all(dim=1)
        if not bool(finite.all()):
            raise InputError(
                f"TemplateStream: face {self.num_faces + int(finite.int().argmin())} holds NaN or infinite "
                "values. Leave it out; a stream cannot forget it later."
            )
        self._state.update(faces, self.num_faces)
        self._embedding_size = faces.embedding_size
        self.num_faces += faces.num_faces

    @torch.no_grad()
    def descriptor(self) -> SetDescriptor:
        """Descriptor of all faces so far, as a batch of one set.

        Picks count all faces of the stream from 0; `weights` are None, as they would grow with it.

        Raises:
            InputError: there was no face yet.
        """
        if not self.num_faces:
            raise InputError("TemplateStream: no face has come yet, and a set of none has no descriptor.")
        return self._state.descriptor()

    @property
    def is_exact(self) -> bool:
        """Whether the descriptor is still that of the aggregator on all faces (see the class)."""
        return self._state.is_exact


class _State(Protocol):
    """What is kept of the faces so far."""

    is_exact: bool

    def update(self, faces: FaceSets, first: int) -> None:
        """Takes the faces of one set, of which the first has the number `first`."""

    def descriptor(self) -> SetDescriptor:
        """Of all faces so far, at least one."""


def _weighing_by_norm(aggregator: nn.Module) -> nn.Module:
    """The aggregator for faces whose quality stands in place of their norm: it is measured as they come."""
    if quality_of(aggregator) == "norm":
        return aggregator
    twin = copy.deepcopy(aggregator)
    name = "face_quality" if hasattr(twin, "face_quality") else "quality"
    setattr(twin, name, FaceQuality("norm", "a stream", "spread"))
    return twin


def _state_for(aggregator: nn.Module, capacity: int, seed: int) -> _State:
    if isinstance(aggregator, (Mean, NormWeighted)):
        return _RunningMean(aggregator)
    if isinstance(aggregator, MediaMean):
        return _RunningMedia()
    if isinstance(aggregator, (BestNorm, TopK, RandomK)):
        return _RunningPicks(aggregator)
    if isinstance(aggregator, (CoresetAggregator, FpsMean)):
        return Candidates(aggregator, capacity)
    return _Sample(aggregator, capacity, seed)


class _RunningMean:
    """Poolings that are a mean: the mean of two parts is that of their means, by their sizes."""

    is_exact = True

    def __init__(self, aggregator: nn.Module) -> None:
        self._aggregator = aggregator
        self._sum: Tensor | float = 0.0
        self._count = 0

    def update(self, faces: FaceSets, first: int) -> None:
        part = self._aggregator(faces)
        # In double: a float32 sum of 100,000 faces loses three digits.
        self._sum = self._sum + (part.embedding.double() * part.norm.double()[:, None]) * faces.num_faces
        self._count += faces.num_faces

    def mean(self) -> Tensor:
        return torch.as_tensor(self._sum) / self._count

    def descriptor(self) -> SetDescriptor:
        vectors = self.mean().float()
        picks = torch.empty((1, 0), dtype=torch.int64, device=vectors.device)
        return SetDescriptor.from_vectors(vectors, picks)


class _RunningMedia:
    """Sum over the media of their mean un-normalised feature: closed ones as a sum, the last as a mean."""

    is_exact = True

    def __init__(self) -> None:
        self._closed: Tensor | float = 0.0
        self._open = _RunningMean(NormWeighted())
        self._medium: int | None = None

    def update(self, faces: FaceSets, first: int) -> None:
        if faces.media is None:
            raise InputError(
                "media_mean: the faces carry no media numbers. Give TemplateStream.update media, or use "
                "norm_weighted, which needs none."
            )
        numbers, sizes = torch.unique_consecutive(faces.media, return_counts=True)
        order = [*([] if self._medium is None else [self._medium]), *numbers.tolist()]
        if order != sorted(order):
            raise InputError(
                "media_mean: media numbers must rise over a stream, as a medium that is left is closed. "
                "Number the media in the order in which they come."
            )
        start = 0
        for medium, size in zip(numbers.tolist(), sizes.tolist(), strict=True):
            if self._medium is not None and medium != self._medium:
                self._closed = self._closed + self._open.mean()
                self._open = _RunningMean(NormWeighted())
            rows = slice(start, start + size)
            offsets = faces.offsets.new_tensor([0, size])
            self._open.update(FaceSets(faces.features[rows], faces.norms[rows], offsets), first + start)
            self._medium = medium
            start += size

    def descriptor(self) -> SetDescriptor:
        vectors = (self._closed + self._open.mean()).float()
        picks = torch.empty((1, 0), dtype=torch.int64, device=vectors.device)
        return SetDescriptor.from_vectors(vectors, picks)


class _RunningPicks:
    """Poolings of the faces that come first by a key of their own: the first of all are first in any part."""

    is_exact = True

    def __init__(self, aggregator: nn.Module) -> None:
        self._aggregator = aggregator
        self._kept: StreamedFaces | None = None

    def update(self, faces: FaceSets, first: int) -> None:
        new = StreamedFaces.of(faces, first)
        known = new if self._kept is None else self._kept.joined(new)
        picks = known.described_by(self._aggregator).picks[0]
        # In the order in which they came, so that ties go on as in one batch.
        self._kept = known.take(torch.isin(known.numbers, picks))

    def descriptor(self) -> SetDescriptor:
        return _kept(self._kept).described_by(self._aggregator)


class _Sample:
    """A uniform random sample of the faces (Vitter's reservoir), for an aggregator that nothing is known of.

    The draw depends on the numbers of the faces and the seed alone, not on how they were portioned.
    """

    is_exact = True

    def __init__(self, aggregator: nn.Module, capacity: int, seed: int) -> None:
        self._aggregator, self._capacity = aggregator, capacity
        self._draws = torch.Generator().manual_seed(seed)
        self._kept: StreamedFaces | None = None

    def update(self, faces: FaceSets, first: int) -> None:
        new = StreamedFaces.of(faces, first)
        room = max(0, self._capacity - first)
        start = new.take(torch.arange(min(room, len(new)), device=new.numbers.device))
        self._kept = start if self._kept is None else self._kept.joined(start) if len(start) else self._kept
        # One draw a face, whatever the portions.
        for row in range(room, len(new)):
            place = int(torch.randint(first + row + 1, (), generator=self._draws))
            if place < self._capacity:
                self._kept.features[place] = new.features[row]
                self._kept.norms[place] = new.norms[row]
                self._kept.numbers[place] = new.numbers[row]
            self.is_exact = False

    def descriptor(self) -> SetDescriptor:
        kept = _kept(self._kept)
        return kept.take(kept.numbers.argsort()).described_by(self._aggregator)


def _kept(faces: StreamedFaces | None) -> StreamedFaces:
    if faces is None:
        raise RuntimeError("a stream without faces is refused before")
    return faces

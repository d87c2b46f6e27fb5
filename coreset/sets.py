"""Input and output of aggregators: a ragged batch of face sets, and one descriptor for each set.

Shapes and dtypes are checked when a batch is made. Padding is planned here, too (`FaceSets.chunks`): sets of
similar size are padded together, so that one set of 20,000 faces does not pad many sets of five.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.auxiliary import split_auxiliary
from runtime.errors import InputError

# Positions (faces and padding) in one chunk: 2 MiB per float32 copy at D = 512, which stays in the
# processor's cache from one step to the next. A larger set is a chunk of its own. 6,000 sets of IJB-C's
# sizes on two cores: 1.1 s, against 1.4 s with four times as many positions and 1.5 s with half.
MAX_CHUNK_POSITIONS = 1_024
# Padding that is cheaper than another chunk: a published training batch (20 sets of up to 30 faces) stays
# whole.
FREE_PADDING = 320
# On a GPU the number of kernel launches matters, not cache or padding. A training step with 512 ragged
# templates on an H200: 12 ms as one chunk with seven positions per face, 63 ms as six chunks with 1.4.
MAX_GPU_CHUNK_POSITIONS = 65_536

# Maps padded features (b, T, D), norms (b, T), a mask (b, T), None without padding, and further values of the
# faces (b, T, ...) to results for each set (b, ...) and for each face (b, T).
PaddedFunction: TypeAlias = Callable[..., tuple[tuple[Tensor, ...], Tensor | None]]


@dataclass(frozen=True, eq=False)
class FaceSets:
    """A ragged batch of face sets: the faces of set b are the rows offsets[b]:offsets[b+1].

    Attributes:
        features: (N, D) floating, unit rows.
        norms: (N,) floating, length of each feature before normalisation.
        offsets: (B+1,) int64, increasing from 0 to N; no set is empty.
        auxiliary: (N, A) floating, values of the backbone that describe the image and not the identity; read
            by aggregators with `auxiliary_size` A, ignored by all others.
        media: (N,) int64, index of the photo or video of each face; required by `media_mean` only.
        detector_scores: (N,) floating in 0..1; required by the quality 'detector' only.

    Raises:
        InputError: shapes, dtypes or offsets are inconsistent; all faults in one message.
    """

    features: Tensor
    norms: Tensor
    offsets: Tensor
    auxiliary: Tensor | None = None
    media: Tensor | None = None
    detector_scores: Tensor | None = None

    def __post_init__(self) -> None:
        faults = _faults_of_tensors(self) or _faults_of_offsets(self.offsets, self.features.shape[0])
        if faults:
            raise InputError.from_faults(faults)

    @classmethod
    def dense(cls, features: Tensor, norms: Tensor, media: Tensor | None = None) -> FaceSets:
        """Sets of equal size: features (B, T, D), norms (B, T), media (B, T)."""
        if features.ndim != 3 or norms.shape != features.shape[:2]:
            raise InputError(
                f"FaceSets.dense: expected features (B, T, D) and norms (B, T), found "
                f"{tuple(features.shape)} and {tuple(norms.shape)}. Pass one norm per face, without a last "
                "dimension of one."
            )
        B, T, _ = features.shape
        offsets = torch.arange(B + 1, device=features.device) * T
        flat_media = None if media is None else media.flatten()
        return cls(features.flatten(0, 1), norms.flatten(), offsets, media=flat_media)

    @classmethod
    def from_rows(
        cls,
        rows: Tensor,
        norms: Tensor,
        offsets: Tensor,
        auxiliary_size: int,
        *,
        media: Tensor | None = None,
        detector_scores: Tensor | None = None,
    ) -> FaceSets:
        """Sets of rows (N, D + A) as backbones and feature stores have them, with A auxiliary features."""
        auxiliary = None
        if auxiliary_size:
            rows, auxiliary = split_auxiliary(rows, auxiliary_size)
        return cls(rows, norms, offsets, auxiliary, media, detector_scores)

    @classmethod
    def from_list(cls, sets: Sequence[tuple[Tensor, Tensor]]) -> FaceSets:
        """Concatenate single sets, each features (T, D) and norms (T,)."""
        if not sets:
            raise InputError("FaceSets.from_list: expected at least one set, found an empty list.")
        D = sets[0][0].shape[-1]
        for number, (features, norms) in enumerate(sets):
            if features.shape != (*norms.shape, D) or norms.ndim != 1:
                raise InputError(
                    f"FaceSets.from_list, set {number}: expected features (T, {D}) and norms (T,), found "
                    f"{tuple(features.shape)} and {tuple(norms.shape)}."
                )
        sizes = torch.tensor([0, *(len(norms) for _, norms in sets)])
        features = torch.cat([features for features, _ in sets])
        return cls(features, torch.cat([norms for _, norms in sets]), sizes.cumsum(0).to(features.device))

    @property
    def num_sets(self) -> int:
        """B."""
        return self.offsets.shape[0] - 1

    @property
    def num_faces(self) -> int:
        """N, over all sets."""
        return self.features.shape[0]

    @property
    def embedding_size(self) -> int:
        """D."""
        return self.features.shape[1]

    @property
    def sizes(self) -> Tensor:
        """(B,) int64 faces in each set, at least one."""
        return self.offsets.diff()

    @property
    def set_of_face(self) -> Tensor:
        """(N,) int64 index of the set that each face belongs to."""
        numbers = torch.arange(self.num_sets, device=self.offsets.device)
        return numbers.repeat_interleave(self.sizes, output_size=self.num_faces)

    def sum_by_set(self, values: Tensor) -> Tensor:
        """Sum values of faces (N, ...) over each set, (B, ...)."""
        return values.new_zeros(self.num_sets, *values.shape[1:]).index_add(0, self.set_of_face, values)

    def subset(self, kept: Tensor) -> FaceSets:
        """The faces where `kept` (N,) bool is True; sets without any are dropped."""
        sizes = self.sum_by_set(kept.to(torch.int64))
        offsets = F.pad(sizes[sizes > 0].cumsum(0), (1, 0))
        return replace(self, offsets=offsets, **self._of_faces(lambda values: values[kept]))

    def to(self, device: torch.device | str) -> FaceSets:
        """The same sets on another device."""
        offsets = self.offsets.to(device)
        return replace(self, offsets=offsets, **self._of_faces(lambda values: values.to(device)))

    def _of_faces(self, function: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """A function of all tensors with one row per face, by field."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "offsets"}
        return {name: function(value) for name, value in values.items() if value is not None}

    def chunks(self) -> list[PaddedChunk]:
        """Plan padded chunks of sets of similar size.

        A chunk has at most `MAX_CHUNK_POSITIONS` positions, unless it is a single larger set, and at most a
        quarter of them (or `FREE_PADDING`) is padding. On a GPU chunks are as few as
        `MAX_GPU_CHUNK_POSITIONS` allows. Sizes are read on the host: one synchronisation per batch.
        """
        sizes: list[int] = self.sizes.tolist()
        on_cpu = self.features.device.type == "cpu"
        most = MAX_CHUNK_POSITIONS if on_cpu else MAX_GPU_CHUNK_POSITIONS
        free = FREE_PADDING if on_cpu else most
        order = sorted(range(len(sizes)), key=lambda number: -sizes[number])
        chunks: list[PaddedChunk] = []
        first, faces = 0, 0
        for rank, number in enumerate(order):
            padded = (rank - first + 1) * sizes[order[first]]
            padding = padded - faces - sizes[number]
            if rank > first and (padded > most or padding > max(free, padded // 4)):
                chunks.append(self._pad(order[first:rank], sizes[order[first]], faces))
                first, faces = rank, 0
            faces += sizes[number]
        chunks.append(self._pad(order[first:], sizes[order[first]], faces))
        return chunks

    def map_padded(self, function: PaddedFunction, *more: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Apply a function of padded sets to all chunks; `more`: further values of the faces (N, ...).

        Returns:
            The results for each set (B, ...), in the order of the sets, and those for each face (N,).
        """
        chunks = self.chunks()
        outputs: list[tuple[Tensor, ...]] = []
        of_faces: Tensor | None = None
        for chunk in chunks:
            padded = (chunk.take(values) for values in more)
            results, values = function(chunk.take(self.features), chunk.take(self.norms), chunk.mask, *padded)
            outputs.append(results)
            if values is not None:
                of_faces = values.new_zeros(self.num_faces) if of_faces is None else of_faces
                valid = ... if chunk.mask is None else chunk.mask
                of_faces[chunk.rows[valid]] = values[valid]
        order = torch.cat([chunk.sets for chunk in chunks]).argsort()
        return [torch.cat(parts)[order] for parts in zip(*outputs, strict=True)], of_faces

    def _pad(self, numbers: list[int], length: int, faces: int) -> PaddedChunk:
        sets = torch.tensor(numbers, device=self.offsets.device)
        position = torch.arange(length, device=self.offsets.device)
        rows = self.offsets[sets, None] + position
        if faces == len(numbers) * length:
            adjacent = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            return PaddedChunk(sets, rows, None, int(self.offsets[numbers[0]]) if adjacent else None)
        mask = position < self.sizes[sets, None]
        # Padding repeats the first face of the set, so that all values are finite.
        return PaddedChunk(sets, torch.where(mask, rows, self.offsets[sets, None]), mask)


@dataclass(frozen=True, eq=False)
class PaddedChunk:
    """Some sets of a FaceSets, padded to the same size.

    Attributes:
        sets: (b,) int64 indices of the sets.
        rows: (b, T) int64 rows of their faces; the set's first row where there is padding.
        mask: (b, T) bool, True where there is a face; None without padding.
        first_row: of a contiguous range of rows; None where they are not contiguous.
    """

    sets: Tensor
    rows: Tensor
    mask: Tensor | None
    first_row: int | None = None

    def take(self, values: Tensor) -> Tensor:
        """Gather values of faces (N, ...) as (b, T, ...); a view where the rows are contiguous."""
        if self.first_row is not None:
            rows = values.narrow(0, self.first_row, self.rows.numel())
        else:
            rows = values.index_select(0, self.rows.flatten())
        return rows.view(*self.rows.shape, *values.shape[1:])


@dataclass(frozen=True, eq=False)
class SetDescriptor:
    """Descriptors of sets, as every aggregator returns them.

    Attributes:
        embedding: (B, D) unit rows; zero where the faces of a set cancel out.
        norm: (B,) length before normalisation: the quality of the set in the aggregator's own scale.
        picks: (B, K) int64 selected faces, as indices within their set, in order of selection; -1 where none.
        weights: (N,) share of each face in the descriptor, summing to 1 over each set; detached; None if not
            computed.
    """

    embedding: Tensor
    norm: Tensor
    picks: Tensor
    weights: Tensor | None = None

    @classmethod
    def from_vectors(cls, vectors: Tensor, picks: Tensor, weights: Tensor | None = None) -> SetDescriptor:
        """Split vectors (B, D) into direction and length; zero vectors stay zero."""
        embedding, norm = unit_and_norm(vectors)
        return cls(embedding, norm, picks, weights)

    def checked(self) -> SetDescriptor:
        """Return itself, if all values are finite.

        Raises:
            InputError: NaN or infinite values, which damaged weights produce.
        """
        finite = self.embedding.isfinite().flatten(1).all(dim=1) & self.norm.isfinite()
        if not bool(finite.all()):
            raise InputError(
                f"the descriptors of {int((~finite).sum())} of {len(finite)} sets hold NaN or infinite "
                "values. The weights of the aggregator or the backbone are damaged; use another copy."
            )
        return self


def unit_and_norm(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (..., D) and lengths (...); zero vectors stay zero, with zero gradient."""
    norm = torch.linalg.vector_norm(vectors, dim=-1)
    # Divided by infinity, not by a small number, so that the gradient is zero and not 1e12.
    divisor = norm.masked_fill(norm <= torch.finfo(norm.dtype).tiny ** 0.5, torch.inf)
    return vectors / divisor.unsqueeze(-1), norm


def _faults_of_tensors(sets: FaceSets) -> list[str]:
    features, norms, offsets, auxiliary, media, scores = (getattr(sets, field.name) for field in fields(sets))
    N = len(features)
    if features.ndim != 2 or not features.is_floating_point():
        return [f"FaceSets.features: expected (N, D) floating, found {_form(features)}."]
    faults = []
    if norms.shape != (N,) or not norms.is_floating_point():
        faults.append(
            f"FaceSets.norms: expected ({N},) floating, found {_form(norms)}. A backbone returns norms as "
            "(N, 1): squeeze the last dimension."
        )
    if offsets.ndim != 1 or offsets.dtype != torch.int64 or len(offsets) < 2:
        faults.append(f"FaceSets.offsets: expected (B+1,) int64 with B at least 1, found {_form(offsets)}.")
    if auxiliary is not None and (
        auxiliary.ndim != 2 or len(auxiliary) != N or not auxiliary.is_floating_point()
    ):
        faults.append(f"FaceSets.auxiliary: expected ({N}, A) floating, found {_form(auxiliary)}.")
    if media is not None and (media.shape != (N,) or media.dtype != torch.int64):
        faults.append(f"FaceSets.media: expected ({N},) int64, found {_form(media)}.")
    if scores is not None and (scores.shape != (N,) or not scores.is_floating_point()):
        faults.append(f"FaceSets.detector_scores: expected ({N},) floating, found {_form(scores)}.")
    others = [tensor for tensor in (norms, offsets, auxiliary, media, scores) if tensor is not None]
    if any(tensor.device != features.device for tensor in others):
        faults.append(
            f"FaceSets: expected all tensors on {features.device}, the device of the features; use "
            "FaceSets.to."
        )
    return faults


def _faults_of_offsets(offsets: Tensor, num_faces: int) -> list[str]:
    values: list[int] = offsets.tolist()
    if values[0] != 0 or values[-1] != num_faces:
        return [
            f"FaceSets.offsets: expected to run from 0 to the number of faces, {num_faces}; found "
            f"{values[0]} to {values[-1]}."
        ]
    for number, (start, stop) in enumerate(pairwise(values)):
        if stop <= start:
            fault = "is empty" if stop == start else f"ends at row {stop}, before its start at {start}"
            return [f"FaceSets.offsets: set {number} {fault}. Remove sets without faces from the batch."]
    return []


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"

"""Poolings: weighted sums of unit features without trained parameters.

Sums run over the packed rows, without padding or a loop over sets. On a GPU they add in no fixed order, so
last bits vary between runs (torch.use_deterministic_algorithms prevents it).
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from coreset.layers import check_options
from coreset.precision import at_least_float32, without_autocast
from coreset.quality import FaceQuality
from coreset.selection import select_faces
from coreset.sets import FaceSets, SetDescriptor
from runtime.errors import InputError

# The norm and this many values of a feature identify a face; hashing more only costs time.
_HASHED_VALUES = 15


class Pooling(nn.Module):
    """Sum of a set's unit features with coefficients, the same in training and evaluation.

    Args:
        quality: what replaces the norms, see `coreset.quality`; not for poolings that ignore them.
    """

    # Annotated only: a class attribute would hide the module of an instance.
    quality: FaceQuality

    @abstractmethod
    def _coefficients(self, sets: FaceSets, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients (N,) of the unit features, at least 0, and picks (B, K), -1 where none; K may be 0.

        `norms` are those of the sets, in float32 or wider.
        """

    def forward(self, sets: FaceSets) -> SetDescriptor:
        """Descriptors of all sets; `weights` are normalised coefficients, equal where all are zero."""
        with without_autocast(sets.features):
            if "quality" in self._modules:
                sets = self.quality.replace_norms(sets)
            features, norms = at_least_float32(sets.features), at_least_float32(sets.norms)
            coefficients, picks = self._coefficients(sets, norms)
            vectors = sets.sum_by_set(features * coefficients.unsqueeze(1))
            total = sets.sum_by_set(coefficients.detach())[sets.set_of_face]
            weights = torch.where(total > 0, coefficients.detach() / total, 1 / _sizes_per_face(sets))
            return SetDescriptor.from_vectors(vectors, picks, weights)


class Mean(Pooling):
    """Mean of the unit features."""

    def _coefficients(self, sets: FaceSets, norms: Tensor) -> tuple[Tensor, Tensor]:
        return 1 / _sizes_per_face(sets).to(norms.dtype), _no_picks(sets)


class NormWeighted(Pooling):
    """Mean of the un-normalised features: each face is weighted by its norm."""

    def __init__(self, *, quality: str = "norm") -> None:
        super().__init__()
        self.quality = FaceQuality(quality, "norm_weighted")

    def _coefficients(self, sets: FaceSets, norms: Tensor) -> tuple[Tensor, Tensor]:
        return norms / _sizes_per_face(sets), _no_picks(sets)


class MediaMean(Pooling):
    """Mean of the un-normalised features of each photo or video, then their sum, as in the IJB protocols.

    Raises:
        InputError: the sets have no media indices.
    """

    def __init__(self, *, quality: str = "norm") -> None:
        super().__init__()
        self.quality = FaceQuality(quality, "media_mean")

    def _coefficients(self, sets: FaceSets, norms: Tensor) -> tuple[Tensor, Tensor]:
        if sets.media is None:
            raise InputError(
                "media_mean: the face sets have no media indices, the photo or video of each face. Set "
                "FaceSets.media, or use norm_weighted, which needs none."
            )
        names, medium = torch.unique(sets.media, return_inverse=True)
        pairs = sets.set_of_face * len(names) + medium
        _, group, sizes = torch.unique(pairs, return_inverse=True, return_counts=True)
        return norms / sizes[group], _no_picks(sets)


class TopK(Pooling):
    """Mean of the unit features of the `coreset_size` faces of largest norm."""

    def __init__(self, *, coreset_size: int = 3, quality: str = "norm") -> None:
        super().__init__()
        check_options("top_k", coreset_size=coreset_size)
        self.coreset_size = coreset_size
        self.quality = _ranking_quality(quality, "top_k")

    def _coefficients(self, sets: FaceSets, norms: Tensor) -> tuple[Tensor, Tensor]:
        picks = _first_by(-norms, sets, self.coreset_size)
        return _picked_share(picks, sets, norms), picks


class BestNorm(Pooling):
    """The un-normalised feature of largest norm."""

    def __init__(self, *, quality: str = "norm") -> None:
        super().__init__()
        self.quality = _ranking_quality(quality, "best_norm")

    def _coefficients(self, sets: FaceSets, norms: Tensor) -> tuple[Tensor, Tensor]:
        picks = _first_by(-norms, sets, 1)
        return norms * _picked_share(picks, sets, norms), picks


class FpsMean(Pooling):
    """Mean of the un-normalised features selected by quality-weighted farthest-point sampling."""

    def __init__(self, *, coreset_size: int = 3, gamma: float = 1.0, quality: str = "norm") -> None:
        super().__init__()
        check_options("fps_mean", coreset_size=coreset_size, gamma=gamma)
        self.coreset_size = coreset_size
        self.gamma = gamma
        self.quality = FaceQuality(quality, "fps_mean")

    def _coefficients(self, sets: FaceSets, norms: Tensor) -> tuple[Tensor, Tensor]:
        def select(features: Tensor, norms: Tensor, mask: Tensor | None) -> tuple[tuple[Tensor], None]:
            found = select_faces(features, norms, mask, coreset_size=self.coreset_size, gamma=self.gamma)
            return (found.picks,), None

        with torch.no_grad():
            (picks,), _ = sets.map_padded(select)
        return norms * _picked_share(picks, sets, norms), picks


class RandomK(Pooling):
    """Mean of the un-normalised features of `coreset_size` random faces.

    Faces are ordered by a hash of their values and `seed`, so that the draw depends neither on the order of
    the faces nor on the rest of the batch nor on the device.
    """

    def __init__(self, *, coreset_size: int = 3, seed: int = 0) -> None:
        super().__init__()
        check_options("random_k", coreset_size=coreset_size)
        self.coreset_size = coreset_size
        self.seed = seed

    def _coefficients(self, sets: FaceSets, norms: Tensor) -> tuple[Tensor, Tensor]:
        picks = _first_by(_hash_of_faces(sets.features, norms, self.seed), sets, self.coreset_size)
        return norms * _picked_share(picks, sets, norms), picks


def _sizes_per_face(sets: FaceSets) -> Tensor:
    return sets.sizes[sets.set_of_face]


def _no_picks(sets: FaceSets) -> Tensor:
    return sets.offsets.new_empty((sets.num_sets, 0))


def _first_by(keys: Tensor, sets: FaceSets, count: int) -> Tensor:
    """Indices (B, count) of each set's smallest keys (N,), ties to the first; -1 beyond its size."""
    order = keys.detach().argsort(stable=True)
    order = order[sets.set_of_face[order].argsort(stable=True)]
    ranks = torch.arange(count, device=keys.device)
    start = sets.offsets[:-1, None]
    rows = (start + ranks).clamp_max(sets.num_faces - 1)
    return torch.where(ranks < sets.sizes[:, None], order[rows] - start, -1)


def _picked_share(picks: Tensor, sets: FaceSets, norms: Tensor) -> Tensor:
    """(N,) one over the number of picks of the set at each pick, else zero."""
    valid = picks >= 0
    rows = (picks + sets.offsets[:-1, None])[valid]
    share = (valid / valid.sum(dim=1, keepdim=True)).to(norms.dtype)[valid]
    return torch.zeros_like(norms).index_put((rows,), share)


def _hash_of_faces(features: Tensor, norms: Tensor, seed: int) -> Tensor:
    """(N,) int64 pseudo-random numbers from the bits of each face; integer overflow wraps around."""
    values = torch.cat([norms.unsqueeze(1), features[:, :_HASHED_VALUES]], dim=1).detach()
    bits = values.float().contiguous().view(torch.int32).long()
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randint(-(2**62), 2**62, (bits.shape[1],), generator=generator) * 2 + 1
    return (bits * factors.to(bits.device)).sum(dim=1)


def _ranking_quality(quality: str, owner: str) -> FaceQuality:
    if quality == "none":
        raise InputError(f"{owner}: selects faces by quality, so that 'none' has no effect. Use mean.")
    return FaceQuality(quality, owner)

"""The simple ways from a set to a descriptor, with the aggregator's call: what any aggregator has to beat.

Each is a weighted sum of the unit features; a pooling says the coefficients and which faces it picked. Sums
run over the packed rows, without padding and without a loop over sets. Source: METHOD 5, last paragraph. On a
GPU the sums add in no fixed order, so last bits may vary between runs there
(torch.use_deterministic_algorithms settles it).
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from coreset.quality import FaceQuality
from coreset.selection import LARGEST_GAMMA, at_least_float32, select_faces, without_autocast
from coreset.sets import FaceSets, SetDescriptor
from runtime.errors import InputError

# The norm and so many values of a face tell it from all others; hashing more only costs time.
_HASHED_VALUES = 15


class Pooling(nn.Module):
    """Sums the unit features of each set with coefficients; the same in training and evaluation.

    Those that weigh faces take `quality`: by what; see `coreset.quality`.
    """

    # Annotated alone: a value in the class would hide the module of an instance.
    quality: FaceQuality

    @abstractmethod
    def _coefficients(self, sets: FaceSets, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients (N,) of the unit features, at least 0, and picks (B, K), -1 where none; K may be 0.

        `norms` are those of the sets, in float32 or wider.
        """

    def forward(self, sets: FaceSets) -> SetDescriptor:
        """Descriptors of all sets; `weights` are the coefficients as shares, equal where all are zero."""
        with without_autocast(sets.features):
            if "quality" in self._modules:
                sets = self.quality.applied(sets)
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
    """Mean of the un-normalised features: a face counts as much as its norm."""

    def __init__(self, *, quality: str = "norm") -> None:
        super().__init__()
        self.quality = FaceQuality(quality, "norm_weighted", "weigh")

    def _coefficients(self, sets: FaceSets, norms: Tensor) -> tuple[Tensor, Tensor]:
        return norms / _sizes_per_face(sets), _no_picks(sets)


class MediaMean(Pooling):
    """Mean of the un-normalised features of each photo or video, then their sum, as IJB protocols do.

    Raises:
        InputError: the sets carry no media numbers.
    """

    def __init__(self, *, quality: str = "norm") -> None:
        super().__init__()
        self.quality = FaceQuality(quality, "media_mean", "weigh")

    def _coefficients(self, sets: FaceSets, norms: Tensor) -> tuple[Tensor, Tensor]:
        if sets.media is None:
            raise InputError(
                "media_mean: the face sets carry no media numbers, which say what faces come from one photo "
                "or video. Give FaceSets.media, or use norm_weighted, which needs none."
            )
        names, medium = torch.unique(sets.media, return_inverse=True)
        pairs = sets.set_of_face * len(names) + medium
        _, group, sizes = torch.unique(pairs, return_inverse=True, return_counts=True)
        return norms / sizes[group], _no_picks(sets)


class TopK(Pooling):
    """Mean of the unit features of the `coreset_size` faces of largest norm."""

    def __init__(self, *, coreset_size: int = 3, quality: str = "norm") -> None:
        super().__init__()
        self.coreset_size = _checked_size("top_k", coreset_size)
        self.quality = FaceQuality(quality, "top_k", "choose")

    def _coefficients(self, sets: FaceSets, norms: Tensor) -> tuple[Tensor, Tensor]:
        picks = _first_by(-norms, sets, self.coreset_size)
        return _picked_share(picks, sets, norms), picks


class BestNorm(Pooling):
    """The un-normalised feature of largest norm alone, so that the descriptor's norm is that face's."""

    def __init__(self, *, quality: str = "norm") -> None:
        super().__init__()
        self.quality = FaceQuality(quality, "best_norm", "choose")

    def _coefficients(self, sets: FaceSets, norms: Tensor) -> tuple[Tensor, Tensor]:
        picks = _first_by(-norms, sets, 1)
        return norms * _picked_share(picks, sets, norms), picks


class FpsMean(Pooling):
    """Mean of the un-normalised features that quality-weighted farthest-point sampling picks."""

    def __init__(self, *, coreset_size: int = 3, gamma: float = 1.0, quality: str = "norm") -> None:
        super().__init__()
        self.coreset_size = _checked_size("fps_mean", coreset_size)
        self.quality = FaceQuality(quality, "fps_mean", "spread")
        if not 0 <= gamma <= LARGEST_GAMMA:
            raise InputError(f"fps_mean: gamma {gamma} must be in 0..{LARGEST_GAMMA:g}; 0 is pure diversity.")
        self.gamma = gamma

    def _coefficients(self, sets: FaceSets, norms: Tensor) -> tuple[Tensor, Tensor]:
        picks = torch.empty((sets.num_sets, self.coreset_size), dtype=torch.int64, device=norms.device)
        with torch.no_grad():
            for chunk in sets.chunks():
                faces, lengths = chunk.take(sets.features), chunk.take(norms)
                picks[chunk.sets] = select_faces(
                    faces, lengths, chunk.mask, coreset_size=self.coreset_size, gamma=self.gamma
                ).picks
        return norms * _picked_share(picks, sets, norms), picks


class RandomK(Pooling):
    """Mean of the un-normalised features of `coreset_size` faces drawn at random: `fps_mean` less the choice.

    The draw is a hash of a face's values and `seed`, so it depends neither on the order of the faces nor on
    the rest of the batch nor on the device; equal faces are drawn one after another.
    """

    def __init__(self, *, coreset_size: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.coreset_size = _checked_size("random_k", coreset_size)
        self.seed = seed

    def _coefficients(self, sets: FaceSets, norms: Tensor) -> tuple[Tensor, Tensor]:
        picks = _first_by(_hash_of_faces(sets.features, norms, self.seed), sets, self.coreset_size)
        return norms * _picked_share(picks, sets, norms), picks


def _sizes_per_face(sets: FaceSets) -> Tensor:
    return sets.sizes[sets.set_of_face]


def _no_picks(sets: FaceSets) -> Tensor:
    return sets.offsets.new_empty((sets.num_sets, 0))


def _first_by(keys: Tensor, sets: FaceSets, count: int) -> Tensor:
    """(B, count) places of each set's smallest keys (N,), ties to the lowest place; -1 beyond its size."""
    order = keys.detach().argsort(stable=True)
    order = order[sets.set_of_face[order].argsort(stable=True)]
    places = torch.arange(count, device=keys.device)
    start = sets.offsets[:-1, None]
    rows = (start + places).clamp_max(sets.num_faces - 1)
    return torch.where(places < sets.sizes[:, None], order[rows] - start, -1)


def _picked_share(picks: Tensor, sets: FaceSets, norms: Tensor) -> Tensor:
    """(N,) one over the number of picks of its set at each picked face, else zero."""
    valid = picks >= 0
    rows = (picks + sets.offsets[:-1, None])[valid]
    share = (valid / valid.sum(dim=1, keepdim=True)).to(norms.dtype)[valid]
    return torch.zeros_like(norms).index_put((rows,), share)


def _hash_of_faces(features: Tensor, norms: Tensor, seed: int) -> Tensor:
    """(N,) int64 that looks random, from the bits of each face; overflow wraps round and is meant to."""
    values = torch.cat([norms.unsqueeze(1), features[:, :_HASHED_VALUES]], dim=1).detach()
    bits = values.float().contiguous().view(torch.int32).long()
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randint(-(2**62), 2**62, (bits.shape[1],), generator=generator) * 2 + 1
    return (bits * factors.to(bits.device)).sum(dim=1)


def _checked_size(name: str, value: int) -> int:
    if value < 1:
        raise InputError(f"{name}: coreset_size {value} must be at least 1.")
    return value

"""Which photos of a set show somebody else: each one's features against all others, with doubt for poor ones.

A poor face is like nobody, least of all like its own person. So similarity alone accuses poor photos; here
it is read beside what the others of the same set reach, how well the rest agrees with itself, and how much
weaker the photo's feature is than theirs. Arrays in, arrays out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backbones.spec import BackboneSpec

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Of fewer, nobody can say which one is the stranger.
FEWEST_UNITS = 3


@dataclass(frozen=True)
class StrangerRule:
    """Log-odds that a photo shows somebody else: `bias` plus weight times evidence.

    The defaults were fitted with MobileFaceNet's features of 1,101 subjects of LFW, degraded by the views of
    `data.sampling.views`, one foreign photo in every second set (`benchmarks/studies/impostor_media.py
    --fit` prints them). All evidence is free of the norms' scale.

    Attributes:
        bias: where all evidence is 0.
        similarity: of the cosine with the others.
        weakness: of the logarithm of its feature's length over the others' mean length.
        agreement: of how far the others agree with each other, about 0 to 1.
        lowest_other: of the lowest similarity among the others: someone else may be the stranger.
        interaction: of similarity times weakness.
    """

    bias: float = -0.12
    similarity: float = -11.83
    weakness: float = 1.96
    agreement: float = 0.28
    lowest_other: float = 3.79
    interaction: float = -7.18

    @property
    def weights(self) -> Floats:
        """In the order of `evidence`."""
        values = (self.similarity, self.weakness, self.agreement, self.lowest_other, self.interaction)
        return np.array(values, np.float64)


DEFAULT_RULE = StrangerRule()


def pooled(features: NDArray[np.float32], norms: NDArray[np.float32], units: Ints) -> tuple[Floats, Floats]:
    """Mean un-normalised features of units, as unit rows (U, D) and lengths (U,).

    Args:
        features: (T, D) unit rows.
        norms: (T,).
        units: (T,) 0..U-1, each at least once.
    """
    counts = np.bincount(units)
    sums = np.zeros((len(counts), features.shape[1]))
    np.add.at(sums, units, features.astype(np.float64) * norms.astype(np.float64)[:, None])
    means = sums / counts[:, None]
    lengths = np.linalg.norm(means, axis=1)
    return means / lengths.clip(1e-12)[:, None], lengths


def evidence(directions: Floats, lengths: Floats, spec: BackboneSpec | None = None) -> Floats:
    """(U, 5) what speaks for and against each of U >= 3 units: see `StrangerRule`.

    Args:
        directions: (U, D) unit rows.
        lengths: (U,) above 0.
        spec: of the backbone, whose cosines count as the reference's; None: they are the reference's.
    """
    vectors = directions * lengths[:, None]
    rest = vectors.sum(axis=0) - vectors
    reach = np.linalg.norm(rest, axis=1)
    similarity = (directions * rest).sum(axis=1) / reach.clip(1e-12)
    total, squares = lengths.sum() - lengths, (lengths**2).sum() - lengths**2
    # The mean cosine of two others, weighted by the product of their lengths.
    agreement = (reach**2 - squares) / (total**2 - squares).clip(1e-12)
    if spec is not None:
        similarity, agreement = spec.in_reference(similarity), spec.in_reference(agreement)
    weakness = np.log(lengths.clip(1e-12) / (total / (len(lengths) - 1)).clip(1e-12))
    return np.stack(
        [similarity, weakness, agreement, _lowest_other(similarity), similarity * weakness], axis=1
    )


def stranger_odds(
    features: NDArray[np.float32],
    norms: NDArray[np.float32],
    units: Ints,
    rule: StrangerRule = DEFAULT_RULE,
    spec: BackboneSpec | None = None,
) -> Floats:
    """(T,) log-odds that a face shows somebody else than the rest of its set; equal within a unit.

    By the norms of the faces, unless the `spec` says that they are no measure of quality.

    NaN for all where there are fewer than `FEWEST_UNITS`.
    """
    count = int(units.max(initial=-1)) + 1
    if count < FEWEST_UNITS:
        return np.full(len(units), np.nan)
    directions, lengths = pooled(features, norms, units)
    if spec is not None and not spec.norm_is_quality:
        lengths = np.ones_like(lengths)
    odds: Floats = rule.bias + evidence(directions, lengths, spec) @ rule.weights
    return odds[units]


def face_units(media: Ints, groups: Ints) -> Ints:
    """(T,) 0..U-1: faces of one medium, or of one group of near-duplicates, count once.

    Args:
        media: (T,) photo or video of each face.
        groups: (T,) of near-duplicates, -1 for none.
    """
    parent = np.unique(media, return_inverse=True)[1].reshape(-1)
    for group in np.unique(groups[groups >= 0]):
        joined = np.unique(parent[groups == group])
        parent[np.isin(parent, joined)] = joined[0]
    return np.asarray(np.unique(parent, return_inverse=True)[1].reshape(-1), np.int64)


def _lowest_other(values: Floats) -> Floats:
    """(U,) the lowest of all but each one."""
    order = np.argsort(values, kind="stable")
    lowest = np.full(len(values), values[order[0]])
    lowest[order[0]] = values[order[1]]
    return lowest

"""Identities in a set and the photos that show each of them.

Photos and videos are clustered by average linkage. A cluster of low-quality faces is no identity, as
low-quality faces are similar to each other or to no face.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from backbones.spec import BackboneSpec
from recognition.enrolment.outliers import MIN_SAMPLES
from recognition.enrolment.samples import independent_samples, pool_samples
from runtime.rows import unit_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Linkage keeps all pairwise distances: of larger sets the samples of the highest quality are clustered, and
# the others join the nearest cluster.
_MOST_CLUSTERED = 2000


@dataclass(frozen=True)
class IdentityLimits:
    """When clusters of photos show different identities; the defaults are for the reference backbone.

    Chosen on one half of LFW's subjects, measured on the other (`benchmarks/studies/identities.py`). The two
    quality limits of clusters leave 1 in 120 templates of degraded photos of one subject (LFWS) split;
    0.6 for the best photo alone splits 1 in 33.

    Attributes:
        same: mean cosine between two clusters from which they show one identity.
        pair: the same for the only two photos of a set.
        another: cosine of a single photo with the mean of each identity of its set below which it shows a
            different one.
        min_quality: norm of a cluster's best photo, as a fraction of the set's best norm, below which the
            cluster is no identity.
        min_second_quality: the same for its second-best photo.
        min_single_quality: norm of a single photo, as a fraction of the set's best norm, below which it is
            not considered an outlier.
    """

    same: float = 0.23
    pair: float = 0.15
    another: float = 0.2
    min_quality: float = 0.7
    min_second_quality: float = 0.55
    min_single_quality: float = 0.75

    @classmethod
    def of(cls, spec: BackboneSpec) -> IdentityLimits:
        """The limits for a backbone; those of quality are 0 if its norm does not measure quality."""
        same, pair, another, *qualities = astuple(cls())
        cosines = (spec.cosine_limit(limit) for limit in (same, pair, another))
        return cls(
            *cosines, *(spec.norm_share(share) if spec.norm_is_quality else 0.0 for share in qualities)
        )


def find_identities(directions: Floats, qualities: Floats, limits: IdentityLimits) -> Ints:
    """Group the photos and videos of a set by identity.

    An identity is a cluster of at least two photos of sufficient quality. If no two photos match, each photo
    of sufficient quality is an identity.

    Args:
        directions: (U, D) unit rows, one for each independent sample.
        qualities: (U,) norms.
        limits: in the scale of these directions.

    Returns:
        (U,) identity of each sample, 0 the one with the most samples; -1 if it belongs to none.
    """
    count = len(directions)
    if count == 1:
        return np.zeros(1, np.int64)
    order = np.argsort(-qualities, kind="stable")[:_MOST_CLUSTERED]
    clusters = np.full(count, -1, np.int64)
    clusters[order] = _clustered(directions[order], limits.pair if count == 2 else limits.same)
    if count > len(order):
        _join_nearest(directions, clusters, limits.same)
    sizes = np.bincount(clusters[clusters >= 0])
    members = [np.flatnonzero(clusters == cluster) for cluster in range(len(sizes))]
    shares = [np.sort(qualities[each])[::-1] / max(qualities.max(), 1e-12) for each in members]
    is_identity = np.array(
        [each[0] >= limits.min_quality and each[:2][-1] >= limits.min_second_quality for each in shares]
    )
    if (sizes[is_identity] > 1).any():
        # Whether a photo that matches no other is an outlier is decided by `enrolment.outliers`.
        is_identity &= sizes > 1
    if not is_identity.any():
        is_identity[sizes.argmax()] = True
    ordered = sorted(np.flatnonzero(is_identity), key=lambda cluster: (-sizes[cluster], members[cluster][0]))
    numbers = np.full(len(sizes) + 1, -1, np.int64)
    numbers[ordered] = np.arange(len(ordered))
    return numbers[clusters]


def unmatched_samples(
    directions: Floats, qualities: Floats, identities: Ints, limits: IdentityLimits
) -> NDArray[np.bool_]:
    """(U,) samples of sufficient quality that match no identity of their set; all False in sets of two.

    Other arguments are those of `find_identities`; `identities`: (U,) as it returns them.
    """
    outside = identities < 0
    if len(identities) < MIN_SAMPLES:
        return np.zeros(len(identities), np.bool_)
    sums = np.zeros((int(identities.max()) + 1, directions.shape[1]))
    np.add.at(sums, identities[~outside], (directions * qualities[:, None])[~outside])
    means = unit_rows(sums)
    is_good = qualities >= limits.min_single_quality * qualities.max()
    return np.asarray(outside & is_good & ((directions @ means.T).max(axis=1) < limits.another))


def split_videos(
    media: Ints,
    group: Ints,
    features: NDArray[np.float32],
    norms: NDArray[np.float32],
    spec: BackboneSpec,
) -> Ints:
    """(T,) `media`, where a video that shows several identities becomes one medium per identity.

    With MobileFaceNet, none of 546 degraded clips of one subject (LFWS, 4 to 40 frames) was split, and 4 of
    2,730 pairs of their frames; two frames of each of two LFW subjects were split in 497 of 500 draws.

    Args:
        media: (T,) from `known_media`.
        group: (T,) group of near-duplicates, -1 for none.
        features: (T, D) unit rows.
        norms: (T,).
        spec: of the backbone.
    """
    limits = IdentityLimits.of(spec)
    # Frames of one video are more similar than photos of different days.
    limits = replace(limits, pair=limits.same)
    split = media.copy()
    for medium in np.flatnonzero(np.bincount(media) > 1):
        rows = np.flatnonzero(media == medium)
        samples = independent_samples(np.arange(len(rows)), group[rows])
        directions, lengths = pool_samples(features[rows], norms[rows], samples)
        identities = find_identities(directions, lengths, limits)
        unmatched = unmatched_samples(directions, lengths, identities, limits)
        identities = np.where(unmatched, identities.max() + 1, identities.clip(0))
        if identities.max() > 0:
            split[rows] = split.max() + 1 + identities[samples]
    return np.asarray(split, np.int64)


def _clustered(directions: Floats, limit: float) -> Ints:
    """(U,) cluster of each row, from 0."""
    distances = np.clip(1 - directions @ directions.T, 0, 2)
    tree = linkage(squareform(distances, checks=False), "average")
    return np.asarray(fcluster(tree, 1 - limit, "distance"), np.int64) - 1


def _join_nearest(directions: Floats, clusters: Ints, limit: float) -> None:
    """Assign rows of cluster -1 to the cluster of the largest mean cosine if it reaches the limit."""
    left = np.flatnonzero(clusters < 0)
    counts = np.bincount(clusters[clusters >= 0])
    means = np.zeros((len(counts), directions.shape[1]))
    np.add.at(means, clusters[clusters >= 0], directions[clusters >= 0])
    cosines = directions[left] @ (means / counts[:, None]).T
    nearest = cosines.argmax(axis=1)
    clusters[left] = np.where(cosines.max(axis=1) >= limit, nearest, -1)

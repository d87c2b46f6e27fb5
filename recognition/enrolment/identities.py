"""How many people a set shows, and which of its photos belong together.

Photos and videos are clustered by average linkage. Quality counts: unreadable faces resemble each other or
nobody, so that a group of them is no person. Arrays in, arrays out.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from backbones.spec import BackboneSpec
from recognition.enrolment.outliers import FEWEST_UNITS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Beyond, the photos and videos of the best quality are clustered and the others join the nearest group: the
# distances of all pairs are kept.
_MOST_CLUSTERED = 2000


@dataclass(frozen=True)
class IdentityLimits:
    """When groups of photos show different people; the defaults are for the reference backbone.

    Chosen on one half of LFW's subjects and measured on the other (`benchmarks/studies/identities.py`). By
    the two qualities 1 in 120 templates of degraded photos of one person (LFWS) is taken for several people;
    with 0.6 for the best photo alone it would be 1 in 33.

    Attributes:
        same: mean cosine of the photos of two groups from which on they show one person.
        pair: the same for the only two photos of a set, which nothing else supports.
        another: cosine of a single photo with the mean of each person of its set below which it shows
            someone else.
        least_quality: norm of a group's best photo over the set's best one, below which the group is no
            person.
        least_second: the same for its second-best photo.
        quality_of_another: norm of a single photo over the set's best one, below which it says nothing.
    """

    same: float = 0.23
    pair: float = 0.15
    another: float = 0.2
    least_quality: float = 0.7
    least_second: float = 0.55
    quality_of_another: float = 0.75

    @classmethod
    def of(cls, spec: BackboneSpec) -> IdentityLimits:
        """The limits for the features of a backbone."""
        same, pair, another, *qualities = astuple(cls())
        cosines = (spec.cosine_limit(limit) for limit in (same, pair, another))
        return cls(*cosines, *(spec.norm_share(share) for share in qualities))


def find_identities(
    directions: Floats, qualities: Floats, limits: IdentityLimits, *, norm_is_quality: bool = True
) -> Ints:
    """Group the photos and videos of a set by person.

    A person is a group of two photos or more of some quality. Where no two photos agree, each photo of some
    quality is a person of its own.

    Args:
        directions: (U, D) unit rows, one for each photo or video.
        qualities: (U,) norms.
        limits: cosines in the scale of these directions.
        norm_is_quality: False: all photos count as good.

    Returns:
        (U,) number of the person, 0 the one with the most photos; -1 where a photo belongs to none.
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
    is_person = np.ones(len(sizes), np.bool_)
    if norm_is_quality:
        shares = [np.sort(qualities[each])[::-1] / max(qualities.max(), 1e-12) for each in members]
        is_person = np.array(
            [each[0] >= limits.least_quality and each[:2][-1] >= limits.least_second for each in shares]
        )
    if (sizes[is_person] > 1).any():
        # Whether a photo that agrees with no other shows another person is for `strangers` to say.
        is_person &= sizes > 1
    if not is_person.any():
        is_person[sizes.argmax()] = True
    people = sorted(np.flatnonzero(is_person), key=lambda cluster: (-sizes[cluster], members[cluster][0]))
    numbers = np.full(len(sizes) + 1, -1, np.int64)
    numbers[people] = np.arange(len(people))
    return numbers[clusters]


def shows_another(
    directions: Floats,
    qualities: Floats,
    identities: Ints,
    limits: IdentityLimits,
    *,
    norm_is_quality: bool = True,
) -> NDArray[np.bool_]:
    """(U,) photos of some quality that agree with no person of their set; nowhere in sets of two.

    Other arguments as of `find_identities`; `identities`: (U,) as it returns them.
    """
    people = int(identities.max()) + 1
    outside = identities < 0
    if len(identities) < FEWEST_UNITS:
        return np.zeros(len(identities), np.bool_)
    sums = np.zeros((people, directions.shape[1]))
    np.add.at(sums, identities[~outside], (directions * qualities[:, None])[~outside])
    means = sums / np.linalg.norm(sums, axis=1, keepdims=True).clip(1e-12)
    is_good = qualities >= (limits.quality_of_another * qualities.max() if norm_is_quality else 0)
    return np.asarray(outside & is_good & ((directions @ means.T).max(axis=1) < limits.another))


def _clustered(directions: Floats, limit: float) -> Ints:
    """(U,) cluster of each row, from 0."""
    distances = np.clip(1 - directions @ directions.T, 0, 2)
    tree = linkage(squareform(distances, checks=False), "average")
    return np.asarray(fcluster(tree, 1 - limit, "distance"), np.int64) - 1


def _join_nearest(directions: Floats, clusters: Ints, limit: float) -> None:
    """Puts the rows of cluster -1 into the one of the largest mean cosine, where it reaches the limit."""
    left = np.flatnonzero(clusters < 0)
    counts = np.bincount(clusters[clusters >= 0])
    means = np.zeros((len(counts), directions.shape[1]))
    np.add.at(means, clusters[clusters >= 0], directions[clusters >= 0])
    cosines = directions[left] @ (means / counts[:, None]).T
    nearest = cosines.argmax(axis=1)
    clusters[left] = np.where(cosines.max(axis=1) >= limit, nearest, -1)

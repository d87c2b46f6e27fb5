"""1:N search of probes in a gallery, without storing the similarity matrix.

Products run in float32 over blocks that fit the processor's cache. Every comparison that rounding could
decide differently is repeated in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.thresholds import Floats, Integers
from runtime.errors import InputError

# Scores of (row, column) pairs in float64.
Exact = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]

# Largest score and columns: 512 x 1,772 float32 (IJB-C) stay in a cache of 4 MiB.
_BLOCK_PROBES = 512
_EXACT_ROWS = 256


@dataclass(frozen=True)
class Search:
    """What the figures need of the search of P probes in one gallery.

    `rank` (P,): 1 + the gallery entries of other subjects at or above the best entry of the probe's own
    subject, so ties count against us; 0 where the gallery lacks the subject (a non-mated probe).
    `own` (P,): score of that best entry, -inf where non-mated. `other` (P,): best score of all other entries.
    """

    rank: NDArray[np.int64]
    own: NDArray[np.float64]
    other: NDArray[np.float64]

    @property
    def is_mated(self) -> NDArray[np.bool_]:
        """(P,) whether the gallery holds the probe's subject."""
        return self.rank > 0


def search(probes: Floats, gallery: Floats, probe_subjects: Integers, gallery_subjects: Integers) -> Search:
    """Search every probe in one gallery by inner product.

    Args:
        probes: (P, D) descriptors, float32 or float64; unit rows where cosine is meant. Or (P, 2, D), if the
            gallery is (G, 2, D): sets of up to two identities (`coreset.two_identity_split`), the best score
            counts.
        gallery: (G, D).
        probe_subjects: (P,).
        gallery_subjects: (G,); a subject may have several entries.

    Raises:
        InputError: shapes differ, a value is not finite, the gallery is empty.
    """
    if probes.ndim == gallery.ndim == 3:
        return search_similarity(_best_of_identities(probes, gallery), probe_subjects, gallery_subjects)
    _check(probes, gallery, probe_subjects, gallery_subjects)
    own_columns = columns_of_subjects(probe_subjects, gallery_subjects)
    margin = rounding_of_products(probes, gallery)
    parts = [
        _search_block(block, own_columns[rows], margin, _exact_scores(probes[rows], gallery))
        for rows, block in _products(probes, gallery)
    ]
    return _joined(parts)


def search_similarity(similarity: Floats, probe_subjects: Integers, gallery_subjects: Integers) -> Search:
    """The same of similarities (P, G) that are there already, taken as exact.

    Raises:
        InputError: shapes differ, a similarity is not finite, the gallery is empty.
    """
    P, G = len(probe_subjects), len(gallery_subjects)
    if similarity.shape != (P, G) or not P or not G:
        raise InputError(
            f"similarity {similarity.shape}: expected {P} probes x {G} gallery entries, one or more of each."
        )
    if not np.isfinite(similarity).all():
        raise InputError(
            "a similarity is not finite; a descriptor may be of zero norm or the features broken."
        )
    own_columns = columns_of_subjects(probe_subjects, gallery_subjects)
    parts = []
    for start in range(0, P, _BLOCK_PROBES):
        block = similarity[start : start + _BLOCK_PROBES]
        lookup = _lookup(block)
        parts.append(_search_block(block.copy(), own_columns[start : start + _BLOCK_PROBES], 0.0, lookup))
    return _joined(parts)


def _best_of_identities(probes: Floats, gallery: Floats) -> NDArray[np.float64]:
    """(P, G) float64, one pair of identities at a time, so that at most two such arrays exist."""
    best = np.full((len(probes), len(gallery)), -np.inf)
    for entry in np.moveaxis(gallery.astype(np.float64, copy=False), 1, 0):
        for probe in np.moveaxis(probes.astype(np.float64, copy=False), 1, 0):
            np.maximum(best, probe @ entry.T, out=best)
    return best


@dataclass(frozen=True)
class PublishedHelperRates:
    """What the published 1:N helper prints, fractions. Not FPIR: it has no non-mated probes.

    `rank_rates` are over all probes. `accepted_at` names the helper's 'FAR': the share of probes whose own
    entry scores above the impostor score number ceil(FAR x probes), whatever their rank.
    """

    rank_rates: dict[str, float]
    accepted_at: dict[str, float]


def published_helper_rates(
    probes: Floats,
    gallery: Floats,
    probe_subjects: Integers,
    gallery_subjects: Integers,
    *,
    ranks: Sequence[int],
    fars: Sequence[float],
) -> PublishedHelperRates:
    """The published helper's own rule, for comparing with figures that were made by it.

    Both galleries of a protocol have to be joined in `gallery`; then every probe is mated.

    Raises:
        InputError: as `search`; a probe's subject is missing or occurs twice; too few impostor scores.
    """
    _check(probes, gallery, probe_subjects, gallery_subjects)
    own_columns = columns_of_subjects(probe_subjects, gallery_subjects)
    if own_columns.shape[1] != 1 or (own_columns < 0).any():
        raise InputError(
            "the published helper needs every probe's subject exactly once in the joined gallery."
        )
    places = [int(np.ceil(len(probes) * far)) for far in fars]
    if min(places, default=1) < 1 or max(places, default=1) > len(probes) * (len(gallery) - 1):
        raise InputError(f"FARs {list(fars)}: expected to point at one of the impostor scores.")
    margin = rounding_of_products(probes, gallery)
    top = _Top(max(places, default=1), margin)
    parts = []
    for rows, block in _products(probes, gallery):
        exact = _exact_scores(probes[rows], gallery)
        parts.append(_search_block(block, own_columns[rows], margin, exact))
        top.add(block, exact)
    found, impostors = _joined(parts), top.sorted()
    return PublishedHelperRates(
        {str(rank): float(np.mean(found.rank <= rank)) for rank in ranks},
        {
            f"{far:g}": float(np.mean(found.own > impostors[place - 1]))
            for far, place in zip(fars, places, strict=True)
        },
    )


def rounding_of_products(left: Floats, right: Floats) -> float:
    """How far a float32 inner product of rows of `left` and `right` can be from the exact one.

    The classical bound D x 2^-24 x |a| x |b| for sums in any order, plus roundings of inputs and bounds.
    """
    longest = [float(np.sqrt(np.einsum("ij,ij->i", side, side).max(initial=0.0))) for side in (left, right)]
    return float((left.shape[1] + 8) * 2.0**-24 * longest[0] * longest[1])


def exact_products(
    left: Floats, right: Floats, left_rows: Integers, right_rows: Integers
) -> NDArray[np.float64]:
    """Inner products (n,) of the named rows in float64; equal pairs of rows give equal scores."""
    scores = np.empty(len(left_rows))
    for start in range(0, len(scores), _EXACT_ROWS):
        part = slice(start, start + _EXACT_ROWS)
        first = left[left_rows[part]].astype(np.float64, copy=False)
        second = right[right_rows[part]].astype(np.float64, copy=False)
        scores[part] = np.einsum("ij,ij->i", first, second)
    return scores


def columns_of_subjects(probe_subjects: Integers, gallery_subjects: Integers) -> NDArray[np.int64]:
    """(P, E) gallery columns of each probe's own subject, -1 where there are fewer than E (1 or more)."""
    order = np.argsort(gallery_subjects, kind="stable")
    rising = gallery_subjects[order]
    start = np.searchsorted(rising, probe_subjects, side="left")
    stop = np.searchsorted(rising, probe_subjects, side="right")
    place = start[:, None] + np.arange(max(1, int((stop - start).max(initial=0))))
    return np.where(place < stop[:, None], order[np.minimum(place, len(order) - 1)], -1)


class _Top:
    """The largest `count` values among all that are added, in float64."""

    def __init__(self, count: int, margin: float) -> None:
        self.count, self.margin = count, margin
        self.rough = np.empty(0, np.float32)
        self.exact = np.empty(0, np.float64)

    def add(self, block: Floats, exact: Exact) -> None:
        """Add all values of a block (rows, columns); -inf counts as absent."""
        lowest = -np.inf
        if len(self.rough) >= self.count:
            lowest = np.partition(self.rough, -self.count)[-self.count] - 2 * self.margin
        elif block.size > self.count:
            lowest = np.partition(block, block.size - self.count, axis=None)[-self.count] - 2 * self.margin
        rows, columns = np.divmod(np.flatnonzero((block >= lowest) & (block > -np.inf)), block.shape[1])
        self.rough = np.concatenate([self.rough, block[rows, columns]])
        self.exact = np.concatenate([self.exact, exact(rows, columns)])

    def sorted(self) -> NDArray[np.float64]:
        """The values, falling."""
        falling: NDArray[np.float64] = np.sort(self.exact)[::-1][: self.count]
        return falling


def _check(probes: Floats, gallery: Floats, probe_subjects: Integers, gallery_subjects: Integers) -> None:
    for name, rows, subjects in (("probes", probes, probe_subjects), ("gallery", gallery, gallery_subjects)):
        if rows.ndim != 2 or subjects.shape != rows.shape[:1] or not len(rows):
            raise InputError(
                f"{name}: descriptors {rows.shape} and subjects {subjects.shape}; expected (n, D) and (n,)."
            )
        if not np.isfinite(rows).all():
            broken = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise InputError(f"{name}: descriptor {broken} is not finite; its features may be broken.")
    if probes.shape[1] != gallery.shape[1]:
        raise InputError(f"probes have {probes.shape[1]} values a row, the gallery {gallery.shape[1]}.")


def _products(probes: Floats, gallery: Floats) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Similarities of blocks of probes with all of the gallery; each block overwrites the one before."""
    columns = np.ascontiguousarray(gallery.T, dtype=np.float32)
    buffer = np.empty((_BLOCK_PROBES, len(gallery)), np.float32)
    for start in range(0, len(probes), _BLOCK_PROBES):
        rows = slice(start, min(start + _BLOCK_PROBES, len(probes)))
        block = probes[rows].astype(np.float32, copy=False)
        yield rows, np.matmul(block, columns, out=buffer[: len(block)])


def _exact_scores(probes: Floats, gallery: Floats) -> Exact:
    return lambda rows, columns: exact_products(probes, gallery, rows, columns)


def _lookup(block: Floats) -> Exact:
    return lambda rows, columns: block[rows, columns].astype(np.float64)


def _search_block(
    block: Floats, own_columns: NDArray[np.int64], margin: float, exact: Exact
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Rank, own and other of `Search` for similarities (rows, G) within `margin`; own entries become -inf."""
    own = np.full(len(block), -np.inf)
    rows, entries = np.nonzero(own_columns >= 0)
    columns = own_columns[rows, entries]
    np.maximum.at(own, rows, exact(rows, columns))
    block[rows, columns] = -np.inf

    highest = block.max(axis=1)
    other = np.full(len(block), -np.inf)
    candidates = np.flatnonzero(block >= (highest - 2 * margin)[:, None])
    rows, columns = np.divmod(candidates, block.shape[1])
    there = highest[rows] > -np.inf
    rows, columns = rows[there], columns[there]
    np.maximum.at(other, rows, exact(rows, columns))

    # Entries surely above, and those that only float64 can tell. Bounds in the block's own type compare fast.
    lower, upper = ((own + side)[:, None].astype(block.dtype) for side in (-margin, margin))
    surely = _count_by_row(block > upper)
    rank = 1 + surely
    unsure = np.flatnonzero((_count_by_row(block >= lower) > surely) & (own > -np.inf))
    near = block[unsure]
    at, columns = np.nonzero((near >= lower[unsure]) & (near <= upper[unsure]))
    rows = unsure[at]
    np.add.at(rank, rows, exact(rows, columns) >= own[rows])
    return np.where(own > -np.inf, rank, 0), own, other


def _count_by_row(condition: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The number of True in each row; twice as fast as np.count_nonzero along an axis."""
    counts: NDArray[np.int64] = condition.view(np.uint8).sum(axis=1, dtype=np.int32).astype(np.int64)
    return counts


def _joined(parts: list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]]) -> Search:
    rank, own, other = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Search(rank, own, other)

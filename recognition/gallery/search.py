"""Who in a gallery is most like a face set, exactly; and from which similarity on an answer is to be trusted.

Similarity is the cosine. Arrays in, arrays out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.binomial import threshold_rate_interval95
from evaluation.metrics.thresholds import threshold_at
from evaluation.metrics.verification import RULE_OF_30
from runtime.errors import InputError

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

# 64 MiB of float32 scores at a time.
_SCORES_AT_ONCE = 1 << 24
_MOST_PROBES_AT_ONCE = 1024
# A float32 product of unit rows is within this of the true cosine: its last bits depend on the shapes of the
# product, so that what comes that close to the k-th place is looked at again (512 values err by about 3e-7).
_PRODUCT_ERROR = 4e-6
# Products looked at again at a time: 32 MiB of float64 rows at 512 values.
_AGAIN_AT_ONCE = 8192
# What FAISS is asked for beyond the k best, for those that its own rounding puts in another order.
_FAISS_MORE = 16
# A threshold stands on so many false positive identifications at least, and is sought with those of the rule
# of 30 where the gallery has them.
FEWEST_ALARMS, ENOUGH_ALARMS = 5, RULE_OF_30


@dataclass(frozen=True, eq=False)
class Matches:
    """The most similar descriptors of each probe, best first; of equal ones the lowest row first.

    Attributes:
        rows: (P, k) int64 rows of the gallery, k = min(top, what there is); -1 where nothing is left.
        scores: (P, k) float32 cosines, the same whatever the blocks and whoever computes them.
    """

    rows: Integers
    scores: Floats


def faiss_is_installed() -> bool:
    """Whether `search` can leave the products to FAISS."""
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    return True


def search(
    probes: Floats,
    descriptors: Floats,
    top: int,
    *,
    leave_out: Integers | None = None,
    use_faiss: bool | None = None,
    block_rows: int | None = None,
) -> Matches:
    """Exact search by cosine; memory is that of one block of products, about 100 MiB.

    Args:
        probes: (P, D) float32, unit rows.
        descriptors: (N, D) float32, unit rows.
        top: how many of each probe, at least 1.
        leave_out: (P,) a row of `descriptors` that each probe is not compared with: itself.
        use_faiss: None takes FAISS where it is installed and nothing is left out; the answers are the same.
        block_rows: descriptors at a time; None decides by the number of probes.

    Raises:
        InputError: shapes or dtypes that do not fit, top below 1, FAISS asked for but not installed.
    """
    _check_arrays(probes, descriptors, top)
    if use_faiss and not faiss_is_installed():
        raise InputError("search: FAISS is not installed. Install faiss-cpu, or search without it.")
    k = min(top, len(descriptors))
    faiss = leave_out is None and (faiss_is_installed() if use_faiss is None else use_faiss)
    parts = []
    for start in range(0, len(probes), _MOST_PROBES_AT_ONCE):
        part = slice(start, start + _MOST_PROBES_AT_ONCE)
        away = None if leave_out is None else leave_out[part]
        if faiss and k:
            parts.append(_with_faiss(probes[part], descriptors, k))
        else:
            parts.append(_in_blocks(probes[part], descriptors, k, away, block_rows))
    rows = np.concatenate([np.empty((0, k), np.int64), *(part[0] for part in parts)])
    scores = np.concatenate([np.empty((0, k), np.float32), *(part[1] for part in parts)])
    return Matches(rows, scores)


@dataclass(frozen=True)
class OpenSetThreshold:
    """The similarity from which on the best match is taken for the person.

    Attributes:
        threshold: a best match at or above it is an answer, one below it is nobody.
        fpir: that was asked for: the share of people who are not enrolled and yet get an answer.
        comparisons: searches of people who are not there that it rests on.
        alarms: how many of them it lets pass.
        interval95: of the true rate, if coming probes are like those searches
            (`evaluation.metrics.binomial.threshold_rate_interval95`). Two people who are each other's best
            match are one event, not two.
        closest: rows of the two enrolled people most like each other among the searches; None where the
            searches were of others.
    """

    threshold: float
    fpir: float
    comparisons: int
    alarms: int
    interval95: tuple[float, float]
    closest: tuple[int, int] | None = None


def threshold_from_gallery(descriptors: Floats, fpir: float) -> OpenSetThreshold:
    """From the gallery itself: each enrolled person searches all others, where they are not (leave one out).

    It needs nobody else's photos, but holds for probes as good as what was enrolled. Poorer probes are less
    like anybody, so that they pass less often than said, and their owners are also missed more often. A
    person enrolled twice under two names raises it: see `closest`. Of large galleries a part does, evenly
    spread: 30 / FPIR people.

    Raises:
        InputError: an FPIR outside (0, 1), or one that too few people support: 5 / FPIR are needed.
    """
    needed = _needed(fpir)
    if len(descriptors) < needed:
        raise InputError(
            f"FPIR {fpir:g}: needs {needed:,} people in the gallery, who search for each other, so that "
            f"{FEWEST_ALARMS} of them may pass; there are {len(descriptors):,}, which support "
            f"{_supported(len(descriptors))}. Ask for that, enroll more, or give sets of {needed:,} people "
            "who are not enrolled (--non_mated)."
        )
    count = min(len(descriptors), math.ceil(ENOUGH_ALARMS / fpir))
    rows = np.linspace(0, len(descriptors) - 1, count).round().astype(np.int64)
    best = search(descriptors[rows], descriptors, 1, leave_out=rows)
    at = int(best.scores[:, 0].argmax())
    # The place among the searches of each one's best match, -1 where that did not search.
    place = np.full(len(descriptors), -1, np.int64)
    place[rows] = np.arange(count)
    closest = int(rows[at]), int(best.rows[at, 0])
    return _threshold(best.scores[:, 0], fpir, place[best.rows[:, 0]], closest)


def threshold_from_strangers(strangers: Floats, descriptors: Floats, fpir: float) -> OpenSetThreshold:
    """From sets of people who are known not to be enrolled, as like the coming probes as can be had.

    Args:
        strangers: (S, D) float32, unit rows, one a person.
        descriptors: (N, D) the gallery.
        fpir: the share of strangers that may get an answer.

    Raises:
        InputError: as `threshold_from_gallery`; or an empty gallery.
    """
    check_strangers(len(strangers), fpir)
    if not len(descriptors):
        raise InputError("gallery: nobody is enrolled, so that there is nothing to be mistaken for.")
    return _threshold(search(strangers, descriptors, 1).scores[:, 0], fpir, np.full(len(strangers), -1))


def check_strangers(count: int, fpir: float) -> None:
    """Raises InputError unless so many people who are not enrolled support that FPIR."""
    needed = _needed(fpir)
    if count < needed:
        raise InputError(
            f"FPIR {fpir:g}: needs {needed:,} people who are not enrolled, so that {FEWEST_ALARMS} of them "
            f"may pass; there are {count:,}, which support {_supported(count)}."
        )


def _threshold(
    best: Floats, fpir: float, partners: Integers, closest: tuple[int, int] | None = None
) -> OpenSetThreshold:
    """The threshold that the best matches (n,) of people who are not there give.

    `partners`: (n,) the search by each one's best match, -1 where there is none.
    """
    n = len(best)
    threshold = threshold_at(best, fpir)
    passes = best >= np.float32(threshold)
    alarms = int(passes.sum())
    # Two who are each other's best match pass together: their two alarms are one event. Weighted so, alarms
    # and searches count as Kish's effective numbers, sum of sizes squared over sum of squared sizes.
    mutual = passes & (partners >= 0) & passes[partners] & (partners[partners] == np.arange(n))
    per_event = 1 + int(mutual.sum()) / max(alarms, 1)
    interval = threshold_rate_interval95(alarms / per_event, n / per_event)
    return OpenSetThreshold(threshold, fpir, n, alarms, interval, closest)


def _needed(fpir: float) -> int:
    if not 0 < fpir < 1:
        raise InputError(f"FPIR {fpir:g}: expected a share above 0 and below 1, such as 0.01.")
    return math.ceil(round(FEWEST_ALARMS / fpir, 6))


def _supported(count: int) -> str:
    return f"{FEWEST_ALARMS / count:.2g} and above" if count > FEWEST_ALARMS else "none"


def _in_blocks(
    probes: Floats, descriptors: Floats, k: int, leave_out: Integers | None, block_rows: int | None
) -> tuple[Integers, Floats]:
    """(rows, scores), each (P, k)."""
    P, N = len(probes), len(descriptors)
    best_rows, best_scores = np.full((P, k), -1, np.int64), np.full((P, k), -np.inf, np.float32)
    block = block_rows or max(_SCORES_AT_ONCE // max(P, 1), 256)
    for start in range(0, N if k else 0, block):
        part = descriptors[start : start + block]
        products = probes @ part.T
        if leave_out is not None:
            inside = np.flatnonzero((leave_out >= start) & (leave_out < start + len(part)))
            products[inside, leave_out[inside] - start] = -np.inf
        floor = best_scores[:, -1]
        if len(part) > k and np.isneginf(floor).any():
            # Before there are k, every product would be a candidate.
            floor = np.maximum(floor, np.partition(products, -k, axis=1)[:, -k])
        probe, column = np.nonzero(products >= np.maximum(floor - _PRODUCT_ERROR, np.float32(-2))[:, None])
        if len(probe):
            scores = _cosines(probes, probe, part, column)
            _take_best(best_rows, best_scores, probe, column + start, scores)
    return best_rows, best_scores


def _with_faiss(probes: Floats, descriptors: Floats, k: int) -> tuple[Integers, Floats]:
    import faiss

    more = min(k + _FAISS_MORE, len(descriptors))
    products, rows = faiss.knn(
        np.ascontiguousarray(probes), descriptors, more, metric=faiss.METRIC_INNER_PRODUCT
    )
    best_rows = np.full((len(probes), k), -1, np.int64)
    best_scores = np.full((len(probes), k), -np.inf, np.float32)
    probe = np.repeat(np.arange(len(probes)), more)
    scores = _cosines(probes, probe, descriptors, rows.ravel())
    _take_best(best_rows, best_scores, probe, rows.ravel().astype(np.int64), scores)
    # Where even the last that FAISS tells may be among the k best, others may be too: copies, as a rule.
    unsure = np.flatnonzero(products[:, -1] >= best_scores[:, -1] - _PRODUCT_ERROR)
    if more < len(descriptors) and len(unsure):
        best_rows[unsure], best_scores[unsure] = _in_blocks(probes[unsure], descriptors, k, None, None)
    return best_rows, best_scores


def _cosines(probes: Floats, probe: Integers, descriptors: Floats, row: Integers) -> Floats:
    """Of pairs, in double and then rounded, so that equal rows have equal scores wherever they stand."""
    found = np.empty(len(probe), np.float32)
    for start in range(0, len(probe), _AGAIN_AT_ONCE):
        part = slice(start, start + _AGAIN_AT_ONCE)
        left, right = probes[probe[part]].astype(np.float64), descriptors[row[part]].astype(np.float64)
        found[part] = np.einsum("nd,nd->n", left, right)
    return found


def _take_best(
    best_rows: Integers, best_scores: Floats, probe: Integers, row: Integers, scores: Floats
) -> None:
    """Puts candidates among the k best of their probes, in place."""
    k = best_rows.shape[1]
    probes = np.unique(probe)
    old = np.repeat(probes, k)
    everyone = np.concatenate([old, probe])
    rows = np.concatenate([best_rows[probes].ravel(), row])
    values = np.concatenate([best_scores[probes].ravel(), scores])
    order = np.lexsort((rows, -values, everyone))
    everyone = everyone[order]
    place = np.arange(len(order)) - np.searchsorted(everyone, everyone)
    kept = place < k
    best_rows[everyone[kept], place[kept]] = rows[order][kept]
    best_scores[everyone[kept], place[kept]] = values[order][kept]


def _check_arrays(probes: Floats, descriptors: Floats, top: int) -> None:
    faults = [f"search: top {top} must be at least 1."] if top < 1 else []
    forms: list[NDArray[Any]] = [probes, descriptors]
    if any(array.ndim != 2 or array.dtype != np.float32 for array in forms) or (
        probes.shape[1] != descriptors.shape[1]
    ):
        faults.append(
            f"search: expected float32 probes (P, D) and descriptors (N, D); found {probes.shape} "
            f"{probes.dtype} and {descriptors.shape} {descriptors.dtype}."
        )
    if faults:
        raise InputError.from_faults(faults)

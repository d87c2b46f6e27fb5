"""Similarity threshold for a false positive identification rate (FPIR) in open-set search.

Arrays in, figures out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.binomial import threshold_rate_interval95
from evaluation.metrics.thresholds import at_or_above, threshold_at
from evaluation.metrics.verification import RULE_OF_30
from recognition.gallery.search import search
from runtime.errors import InputError

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

# False positive identifications that a threshold rests on, at least; with those of the rule of 30 where the
# gallery has them.
MIN_FALSE_POSITIVES = 5


@dataclass(frozen=True)
class OpenSetThreshold:
    """The similarity from which on the best match of a search is the answer.

    Attributes:
        threshold: a best match at or above it is an answer; below it the subject is not enrolled.
        fpir: target: the share of searches of subjects who are not enrolled that get an answer.
        comparisons: non-mated searches that it was found with.
        false_positives: how many of these reach the threshold.
        interval95: of the true rate for probes like those searches
            (`evaluation.metrics.binomial.threshold_rate_interval95`). Two subjects who are each other's best
            match are one event.
        closest: rows of the two enrolled subjects most like each other among the searches; None where other
            subjects searched.
    """

    threshold: float
    fpir: float
    comparisons: int
    false_positives: int
    interval95: tuple[float, float]
    closest: tuple[int, int] | None = None


def threshold_from_gallery(descriptors: Floats, fpir: float) -> OpenSetThreshold:
    """Threshold from the gallery itself: each enrolled subject is searched among all others (leave one out).

    No other photos are needed, but the threshold holds for probes of the quality of the gallery. Probes of
    lower quality are less similar to all subjects: their false positive rate is lower, and their own subject
    is missed more often. A subject enrolled under two names raises the threshold: see `closest`. Of a large
    gallery 30 / FPIR subjects are searched, evenly spread.

    Raises:
        InputError: an FPIR outside (0, 1), or fewer than 5 / FPIR subjects.
    """
    needed = num_needed(fpir)
    if len(descriptors) < needed:
        raise InputError(
            f"FPIR {fpir:g}: needs {needed:,} subjects in the gallery, for {MIN_FALSE_POSITIVES} false "
            f"positives; there are {len(descriptors):,}, which support {_supported(len(descriptors))}. "
            f"Choose another FPIR, enroll more, or give sets of {needed:,} subjects who are not enrolled "
            "(--non_mated)."
        )
    count = min(len(descriptors), math.ceil(RULE_OF_30 / fpir))
    rows = np.linspace(0, len(descriptors) - 1, count).round().astype(np.int64)
    best = search(descriptors[rows], descriptors, 1, excluded=rows)
    at = int(best.scores[:, 0].argmax())
    # The search of each one's best match, -1 where that was not searched.
    place = np.full(len(descriptors), -1, np.int64)
    place[rows] = np.arange(count)
    closest = int(rows[at]), int(best.rows[at, 0])
    return _threshold(best.scores[:, 0], fpir, place[best.rows[:, 0]], closest)


def threshold_from_nonmated(probes: Floats, descriptors: Floats, fpir: float) -> OpenSetThreshold:
    """Threshold from sets of subjects who are known not to be enrolled, best ones like the probes to come.

    Args:
        probes: (S, D) float32, unit rows, one per subject.
        descriptors: (N, D) the gallery.
        fpir: the share of these probes that may get an answer.

    Raises:
        InputError: as `threshold_from_gallery`; or an empty gallery.
    """
    check_num_nonmated(len(probes), fpir)
    if not len(descriptors):
        raise InputError("gallery: no subject is enrolled, so no search can return a false positive.")
    return _threshold(search(probes, descriptors, 1).scores[:, 0], fpir, np.full(len(probes), -1))


def num_needed(fpir: float) -> int:
    """How many non-mated searches an FPIR needs. Raises InputError unless it is in (0, 1)."""
    if not 0 < fpir < 1:
        raise InputError(f"FPIR {fpir:g}: expected a rate above 0 and below 1, such as 0.01.")
    return math.ceil(round(MIN_FALSE_POSITIVES / fpir, 6))


def check_num_nonmated(count: int, fpir: float) -> None:
    """Raise InputError if the number of non-mated subjects is too small for the FPIR."""
    needed = num_needed(fpir)
    if count < needed:
        raise InputError(
            f"FPIR {fpir:g}: needs {needed:,} subjects who are not enrolled, for {MIN_FALSE_POSITIVES} false "
            f"positives; there are {count:,}, which support {_supported(count)}."
        )


def threshold_text(threshold: OpenSetThreshold, names: Sequence[str]) -> str:
    """Describe a threshold and what it was found with; `names`: of the enrolled subjects."""
    low, high = threshold.interval95
    text = (
        f"threshold {threshold.threshold:.4f} for FPIR {threshold.fpir:g}: {threshold.false_positives:,} of "
        f"{threshold.comparisons:,} searches of subjects who are not enrolled reach it (95 % interval of the "
        f"rate {low:.2g} to {high:.2g})."
    )
    if threshold.false_positives < RULE_OF_30:
        needed = RULE_OF_30 / threshold.fpir
        text += f" The rule of 30 asks for {RULE_OF_30} false positives, hence for {needed:,.0f} searches."
    if threshold.closest is None:
        return text
    first, second = (names[row] for row in threshold.closest)
    return (
        f"{text}\nEach enrolled subject was searched among all others; probes of lower quality are found "
        f"less often. The two most alike are {first} and {second}: are they one person?"
    )


def _threshold(
    best: Floats, fpir: float, partners: Integers, closest: tuple[int, int] | None = None
) -> OpenSetThreshold:
    """The threshold that the best scores (n,) of non-mated searches give.

    `partners`: (n,) the search by each one's best match, -1 where there is none.
    """
    n = len(best)
    threshold = threshold_at(best, fpir)
    accepted = at_or_above(best, threshold)
    false_positives = int(accepted.sum())
    # Two subjects who are each other's best match are accepted together: one event. Weighted so, false
    # positives and searches count as Kish's effective numbers, sum of sizes squared over sum of squared
    # sizes.
    mutual = accepted & (partners >= 0) & accepted[partners] & (partners[partners] == np.arange(n))
    per_event = 1 + int(mutual.sum()) / max(false_positives, 1)
    interval = threshold_rate_interval95(false_positives / per_event, n / per_event)
    return OpenSetThreshold(threshold, fpir, n, false_positives, interval, closest)


def _supported(count: int) -> str:
    return f"{MIN_FALSE_POSITIVES / count:.2g} and above" if count > MIN_FALSE_POSITIVES else "none"

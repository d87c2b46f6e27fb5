"""1:N identification figures of a search: CMC, and TPIR at an FPIR (ISO/IEC 19795-1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.search import Search
from evaluation.metrics.thresholds import Floats, threshold_at
from evaluation.metrics.verification import check_rates
from runtime.errors import InputError

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True)
class TpirAtFpir:
    """The largest true positive identification rate with FPIR at most the target; a fraction.

    `nonmated_above` is the number of non-mated probes with a candidate at or above `threshold`.
    """

    tpir: float
    threshold: float
    nonmated_above: int


def cmc(search: Search, ranks: Sequence[int]) -> dict[str, float]:
    """Fraction of mated probes with an entry of their subject up to each rank (1 or more), by rank.

    Ties count as errors.

    Raises:
        InputError: no probe is mated.
    """
    found = mated_only(search, search.rank)
    return {str(rank): float(np.mean(found <= rank)) for rank in ranks}


def tpir_at_fpir(search: Search, fpirs: Sequence[float]) -> dict[str, TpirAtFpir]:
    """Open-set identification: TPIR at each FPIR, by FPIR as '0.01'.

    The threshold comes from the best candidate of each non-mated probe. A mated probe counts as identified
    when its subject is at rank 1 (ties count as errors) and at or above the threshold.

    Raises:
        InputError: an FPIR outside [0, 1], no mated or no non-mated probe.
    """
    check_rates(fpirs, "FPIR")
    identified, nonmated = identification_scores(search)
    # A probe that is not at rank 1 is never accepted, whatever the threshold.
    accepted = identified[np.isfinite(identified)]
    lowest = float(min(nonmated.min(), accepted.min(initial=np.inf)))
    rates = {}
    for fpir in fpirs:
        threshold = max(threshold_at(nonmated, fpir), lowest)
        rates[f"{fpir:g}"] = TpirAtFpir(
            tpir=float(np.count_nonzero(accepted >= threshold) / len(identified)),
            threshold=threshold,
            nonmated_above=int(np.count_nonzero(nonmated >= threshold)),
        )
    return rates


def tpir_curve(search: Search, *, points: int = 200) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log-spaced FPIRs (C,), from one accepted non-mated probe to all, and the TPIR (C,) at each; for plots.

    Raises:
        InputError: no mated or no non-mated probe.
    """
    identified, scores = identification_scores(search)
    allowed = np.unique(np.geomspace(1, len(scores), points).round())
    rising = np.sort(scores)
    above = len(rising) - np.searchsorted(rising, identified, side="left")
    above = np.sort(np.where(np.isfinite(identified), above, len(rising) + 1))
    return allowed / len(scores), np.searchsorted(above, allowed, side="right") / len(identified)


def identification_scores(search: Search) -> tuple[Floats, Floats]:
    """Scores that a threshold is applied to: of mated probes (-inf unless at rank 1), best of non-mated ones.

    Raises:
        InputError: no mated or no non-mated probe.
    """
    own, rank = mated_only(search, search.own), mated_only(search, search.rank)
    nonmated = search.other[~search.is_mated]
    if not len(nonmated):
        raise InputError(
            "every probe's subject is in the gallery: open-set identification needs probes of other "
            "subjects. With two galleries, search each separately."
        )
    return np.where(rank == 1, own, -np.inf), nonmated


def mated_only(search: Search, values: NDArray[_Number]) -> NDArray[_Number]:
    """The values (P,) of mated probes; InputError when there is none."""
    mated = values[search.is_mated]
    if not len(mated):
        raise InputError("no probe's subject is in the gallery: check that both use the same subject ids.")
    return mated

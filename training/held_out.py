"""Figures of validation during training: held-out subjects, one gallery and two probe templates each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.identification import cmc
from evaluation.metrics.search import search_similarity
from evaluation.metrics.verification import rate_key, tar_at_far
from evaluation.reporting.report import markdown_table

FARS = (1e-3, 1e-2, 1e-1)
# FAR of the monitored value; at 1e-03 a small held-out set depends on a handful of scores.
MONITORED_FAR = 1e-2


@dataclass(frozen=True)
class HeldOutFigures:
    """Strict TAR by key of the FAR, and rank-1 rate over all probes; fractions."""

    tar: dict[str, float]
    rank1: float

    def named(self) -> dict[str, float]:
        """The figures by the names under which they are logged."""
        return {f"tar_at_far_{key}": value for key, value in self.tar.items()} | {"rank1": self.rank1}


def held_out_figures(
    embeddings: NDArray[np.floating], subjects: NDArray[np.int64], is_gallery: NDArray[np.bool_]
) -> HeldOutFigures:
    """Compare every probe with every gallery template.

    Args:
        embeddings: (M, D) unit rows.
        subjects: (M,) subject of each template.
        is_gallery: (M,) one of each subject's templates.

    Raises:
        InputError: there is no mated or no non-mated pair.
    """
    similarity = embeddings[~is_gallery].astype(np.float64) @ embeddings[is_gallery].astype(np.float64).T
    probes, gallery = subjects[~is_gallery], subjects[is_gallery]
    mated = probes[:, None] == gallery[None, :]
    rates = tar_at_far(similarity.ravel(), mated.ravel(), FARS)
    rank1 = cmc(search_similarity(similarity, probes, gallery), [1])["1"]
    return HeldOutFigures({key: rate.strict for key, rate in rates.items()}, rank1)


def held_out_table(figures: dict[str, HeldOutFigures]) -> str:
    """Markdown table with one row per aggregator, per cent."""
    head = ["aggregator", *(f"TAR@FAR {rate_key(far)}" for far in FARS), "rank 1"]
    rows = [
        [name, *(f"{100 * f.tar[rate_key(far)]:.2f}" for far in FARS), f"{100 * f.rank1:.2f}"]
        for name, f in figures.items()
    ]
    return markdown_table(head, rows)

"""IJB-S: descriptors of surveillance videos and gallery sets -> closed- and open-set identification.

Knows no files and no network: the protocol comes from `ijb_s_lists`. Source: METHOD 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from evaluation.metrics.identification import Search, search
from evaluation.metrics.rates import TpirAtFpir, cmc_of, tpir_at_fpir_of
from evaluation.protocols.ijb_s_lists import PROTOCOLS, IjbS, SearchLists
from evaluation.protocols.templates import describe_templates
from evaluation.reporting.report import closed_section, markdown_table, open_section
from runtime.errors import InputError

RANKS = (1, 5, 10)
FPIRS = (0.01, 0.1)
# A template that could not be enrolled is found at no rank.
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class IjbSFigures:
    """Figures of one protocol, fractions.

    `closed`: CMC by gallery ('gallery1', 'gallery2', and 'joint', the published rule); `open`: TPIR@FPIR of
    each gallery by itself; `mean_tpir`: their mean, as published. Probes without faces are never found.
    """

    probes: int
    probes_without_faces: int
    gallery: tuple[int, int]
    gallery_without_faces: int
    closed: dict[str, dict[str, float]]
    open: dict[str, dict[str, TpirAtFpir]]
    mean_tpir: dict[str, float]

    def to_result(self) -> dict[str, Any]:
        """The protocol's parts of result.json; 'figures' are those that are published."""
        return {
            "data": {
                "probes": self.probes,
                "probes without faces": self.probes_without_faces,
                "gallery1": self.gallery[0],
                "gallery2": self.gallery[1],
                "gallery without faces": self.gallery_without_faces,
            },
            "identification": {
                "closed": {name: closed_section(cmc) for name, cmc in self.closed.items()},
                "open": {name: open_section(rates) for name, rates in self.open.items()},
            },
            "figures": {
                **{f"rank {rank}": rate for rank, rate in self.closed["joint"].items()},
                **{f"TPIR@FPIR {fpir}": rate for fpir, rate in self.mean_tpir.items()},
            },
        }


def ijb_s_figures(descriptors: NDArray[np.floating[Any]], data: IjbS) -> dict[str, IjbSFigures]:
    """Arrays to figures, by protocol; ties count against us.

    Args:
        descriptors: one unit row for each template that has faces, in the order of `data.groups`.
        data: the protocols.

    Raises:
        InputError: another number of rows, one that is not finite, no mated or no non-mated probe.
    """
    if descriptors.ndim != 2 or len(descriptors) != len(data.groups):
        raise InputError(f"IJB-S: descriptors {descriptors.shape} of {len(data.groups):,} templates.")
    return {name: _figures_of(descriptors, data, lists) for name, lists in data.protocols.items()}


def evaluate_ijb_s(
    data: IjbS,
    features: NDArray[np.floating[Any]],
    norms: NDArray[np.floating[Any]],
    aggregators: Mapping[str, nn.Module],
    device: torch.device | str = "cpu",
) -> dict[str, dict[str, IjbSFigures]]:
    """Features of faces to figures: name of the aggregator -> protocol -> figures.

    Args:
        data: N faces and the protocols.
        features: (N, D) unit rows, in the order of `data.faces`.
        norms: (N,).
        aggregators: of `coreset.AGGREGATORS`.
        device: where aggregators work.

    Raises:
        InputError: another number of features, or as `ijb_s_figures`.
    """
    if features.ndim != 2 or not len(features) == len(norms) == len(data.faces):
        raise InputError(
            f"IJB-S: features {features.shape} and norms {norms.shape} of {len(data.faces):,} faces."
        )
    return {
        name: ijb_s_figures(
            describe_templates(aggregator, features, norms, data.groups, device).embedding, data
        )
        for name, aggregator in aggregators.items()
    }


def ijb_s_table(rows: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Markdown like the seed's: rank 1, rank 5 and TPIR at FPIR 1e-02 of each protocol; per cent.

    Args:
        rows: name of the model -> protocol -> these three, fractions.
    """
    names = [name for name in PROTOCOLS if any(name in row for row in rows.values())]
    head = ["model"]
    for name in names:
        title = PROTOCOLS[name].title
        head += [f"{title} rank 1", "rank 5", "TPIR@FPIR 0.01"]
    none = (np.nan, np.nan, np.nan)
    body = [
        [model, *("-" if np.isnan(v) else f"{100 * v:.2f}" for name in names for v in row.get(name, none))]
        for model, row in rows.items()
    ]
    return markdown_table(head, body)


def table_row(figures: Mapping[str, IjbSFigures]) -> dict[str, tuple[float, float, float]]:
    """What `ijb_s_table` shows of figures: closed set by the published rule, open set as the mean of both."""
    return {
        name: (each.closed["joint"]["1"], each.closed["joint"]["5"], each.mean_tpir[f"{FPIRS[0]:g}"])
        for name, each in figures.items()
    }


def sections(figures: Mapping[str, IjbSFigures]) -> dict[str, Any]:
    """'identification' and 'figures' of a result.json of several protocols, and the counts of each.

    Galleries are called 'surveillance_to_single gallery1', figures 'surveillance_to_single rank 1'.
    """
    parts = {name: each.to_result() for name, each in figures.items()}

    def joined(*keys: str) -> dict[str, Any]:
        return {
            f"{name} {key}": value
            for name, part in parts.items()
            for key, value in (part[keys[0]] if len(keys) == 1 else part[keys[0]][keys[1]]).items()
        }

    return {
        "identification": {
            "closed": joined("identification", "closed"),
            "open": joined("identification", "open"),
        },
        "figures": joined("figures"),
        "protocols": {name: part["data"] for name, part in parts.items()},
    }


def _figures_of(descriptors: NDArray[np.floating[Any]], data: IjbS, lists: SearchLists) -> IjbSFigures:
    galleries = {f"gallery{number}": gallery for number, gallery in enumerate(lists.galleries, 1)}
    found = {name: _search(descriptors, data, lists.probes, gallery) for name, gallery in galleries.items()}
    joint = _search(descriptors, data, lists.probes, np.concatenate(lists.galleries))
    tpir = {name: tpir_at_fpir_of(each, FPIRS) for name, each in found.items()}
    return IjbSFigures(
        probes=len(lists.probes),
        probes_without_faces=int((data.row[lists.probes] < 0).sum()),
        gallery=(len(lists.galleries[0]), len(lists.galleries[1])),
        gallery_without_faces=int((data.row[np.concatenate(lists.galleries)] < 0).sum()),
        closed={name: cmc_of(each, RANKS) for name, each in {**found, "joint": joint}.items()},
        open=tpir,
        mean_tpir={
            key: float(np.mean([rates[key].tpir for rates in tpir.values()])) for key in tpir["gallery1"]
        },
    )


def _search(
    descriptors: NDArray[np.floating[Any]], data: IjbS, probes: NDArray[np.int64], gallery: NDArray[np.int64]
) -> Search:
    """Searches the probes that have faces in the entries that have; the others are never found.

    A mated probe without faces, or whose mate has none, is a miss at every rank; a non-mated one without
    faces raises no alarm. (Public codes give such templates a descriptor of zeros, which may be found.)
    """
    with_faces, entries = np.flatnonzero(data.row[probes] >= 0), gallery[data.row[gallery] >= 0]
    part = search(
        descriptors[data.row[probes[with_faces]]],
        descriptors[data.row[entries]],
        data.subjects[probes[with_faces]],
        data.subjects[entries],
    )
    rank = np.where(np.isin(data.subjects[probes], data.subjects[gallery]), _NEVER, 0)
    rank[with_faces] = np.where(part.rank > 0, part.rank, rank[with_faces])
    own, other = np.full((2, len(probes)), -np.inf)
    own[with_faces], other[with_faces] = part.own, part.other
    return Search(rank, own, other)

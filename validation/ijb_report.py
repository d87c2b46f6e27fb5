"""Result, Markdown report and plots of an evaluation on a set benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from backbones.preprocessing import PREPROCESSING_KEYS
from evaluation.metrics.identification import cmc, tpir_curve
from evaluation.protocols.ijb import AggregatorFigures, Cohort, IjbFigures, Rules
from evaluation.protocols.ijb_layout import SetProtocol
from evaluation.protocols.subgroups import subgroup_table
from evaluation.reporting.plots import plot_cmc, plot_det, plot_identification, plot_roc
from evaluation.reporting.published import NOT_USED, sizes_in_results
from evaluation.reporting.report import (
    Result,
    identification_table,
    markdown_table,
    percent,
    verification_table,
)
from features.precomputed import PrecomputedFeatures
from validation.frame import heading, result_frame

_CMC_RANKS = tuple(range(1, 51))
_UNKNOWN = "unknown"
_NO_COHORT = "none: scores are cosines"


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation.

    Attributes:
        protocol: the benchmark.
        rules: what was done to faces.
        paper: name of the rules.
        cohort: of score normalisation.
        two_identity_split: cosine below which a template has two descriptors.
        features: of the faces.
        figures: of the aggregators.
        hashes: SHA-256 of trained aggregators' files.
    """

    protocol: SetProtocol
    rules: Rules
    paper: str
    cohort: Cohort | None
    two_identity_split: float | None
    features: PrecomputedFeatures
    figures: IjbFigures
    hashes: Mapping[str, str]


def result_of(done: Evaluated) -> Result:
    """The result.json: figures of the first aggregator, and of all where there are several."""
    names = list(done.figures.aggregators)
    result = _result(done, names[0])
    if len(names) > 1:
        result["aggregators"] = {n: figures.sections() for n, figures in done.figures.aggregators.items()}
        result["differences"] = [asdict(each) for each in done.figures.differences]
    return result


def _result(done: Evaluated, name: str) -> Result:
    sizes = sizes_in_results(done.protocol.sizes)
    frame = result_frame(done.protocol.name, _rules(done), _model(done, name), sizes, done.figures.seconds)
    return frame | done.figures.aggregators[name].sections() | {"warnings": done.figures.warnings}


def _rules(done: Evaluated) -> dict[str, str]:
    """The rules, and all else that makes figures differ."""
    made = done.features.identity
    return {
        "paper": done.paper,
        **asdict(done.rules),
        "cohort": _NO_COHORT if done.cohort is None else done.cohort.name,
        "score_normalisation": NOT_USED if done.cohort is None else done.cohort.method,
        "descriptors": "one a template"
        if done.two_identity_split is None
        else f"two a template whose parts have a cosine below {done.two_identity_split:g}; the best score "
        "counts",
        **{
            name: made.get(name, _UNKNOWN)
            for name in (*PREPROCESSING_KEYS, "interpolation")
            if name != "flip"
        },
        **{name: made[name] for name in ("centre",) if name in made},
        "features": ", ".join(
            f"{key} {value}" for key, value in done.features.about.items() if "sha" not in key
        )
        or _UNKNOWN,
    }


def _model(done: Evaluated, name: str) -> dict[str, str]:
    made, about = done.features.identity, done.features.about
    model = {
        "backbone": made.get("backbone", _UNKNOWN),
        "aggregator": name,
        "weights_sha256": about.get("weights_sha256", _UNKNOWN),
        "backbone_sha256": made.get("backbone_sha256", _UNKNOWN),
    }
    return model | ({"aggregator_sha256": done.hashes[name]} if name in done.hashes else {})


def paragraphs(done: Evaluated) -> list[str]:
    """The report: rules, tables, warnings and times."""
    results = {name: _result(done, name) for name in done.figures.aggregators}
    first = next(iter(results.values()))
    model = ", ".join(f"{key} {value}" for key, value in first["model"].items() if key != "aggregator")
    parts = [heading(first, model), verification_table(results)]
    if done.figures.differences:
        parts.append(_difference_table(done.figures))
    if "identification" in first:
        parts.append(identification_table(results))
    parts += _helper_table(done.figures.aggregators)
    if done.two_identity_split is not None:
        rates = [(name, each.split_rate) for name, each in done.figures.aggregators.items()]
        split = ", ".join(f"{name} {percent(rate)} %" for name, rate in rates if rate is not None)
        parts.append(f"Templates split into two identities: {split}.")
    if (table := subgroup_table(results)) is not None:
        parts.append(
            f"{table}\n\nEach subgroup at its own threshold; '-': too few non-mated pairs for the FAR."
        )
    if any(figures.tar_intervals for figures in done.figures.aggregators.values()):
        parts.append(
            "Brackets: 95 % intervals, bootstrap over subjects; for a rate observed as 0 or 100, the exact "
            "binomial interval of the number of subjects."
        )
    parts += [f"warning: {warning}" for warning in done.figures.warnings]
    spent = ", ".join(f"{phase} {value:.2f}" for phase, value in done.figures.seconds.items())
    peak = first["peak_rss_mib"]
    parts.append(f"seconds: {spent}" + ("" if peak is None else f"; peak memory {peak:,} MiB"))
    return parts


def _difference_table(figures: IjbFigures) -> str:
    first = figures.differences[0]
    rows = [
        [each.name, *(_points(each.tar[key], each.intervals[key]) for key in each.tar)]
        for each in figures.differences
    ]
    return markdown_table([f"strict TAR minus that of {first.reference}, points", *first.tar], rows)


def _points(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:+.2f} [{100 * interval[0]:+.2f}, {100 * interval[1]:+.2f}]"


def _helper_table(aggregators: Mapping[str, AggregatorFigures]) -> list[str]:
    helpers = {name: each.published_helper for name, each in aggregators.items() if each.published_helper}
    rows = [
        [name, *map(percent, (*helper.rank_rates.values(), *helper.accepted_at.values()))]
        for name, helper in helpers.items()
    ]
    for helper in helpers.values():
        head = [
            "published helper's 1:N rule, %",
            *(f"rank {rank}" for rank in helper.rank_rates),
            *(f"accepted at {far}" for far in helper.accepted_at),
        ]
        note = "That rule joins the galleries and has no non-mated probes: its rates are not FPIR."
        return [markdown_table(head, rows), note]
    return []


def plot(done: Evaluated, folder: Path) -> None:
    """Write ROC, DET, CMC and identification plots into a folder."""
    title = f"{done.protocol.name}, rules of {done.paper}"
    curves = {name: figures.curve for name, figures in done.figures.aggregators.items()}
    plot_roc(folder / "roc.png", curves, title=title)
    plot_det(folder / "det.png", curves, title=title)
    ranks: dict[str, Mapping[str, float]] = {}
    rates: dict[str, Any] = {}
    for name, figures in done.figures.aggregators.items():
        for gallery, found in figures.galleries.items():
            ranks[f"{name}, {gallery}"] = cmc(found.search, _CMC_RANKS)
            if found.tpir:
                rates[f"{name}, {gallery}"] = tpir_curve(found.search)
    if ranks:
        plot_cmc(folder / "cmc.png", ranks, title=title)
    if rates:
        plot_identification(folder / "identification.png", rates, title=title)

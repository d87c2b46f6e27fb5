"""What an evaluation on a set benchmark leaves: result.json, a Markdown report, plots, and the last words."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from backbones.preprocessing import PREPROCESSING_KEYS
from evaluation.metrics.identification import cmc, tpir_curve
from evaluation.protocols.ijb import NOT_USED, AggregatorFigures, Cohort, IjbFigures, Rules
from evaluation.protocols.ijb_layout import SetProtocol
from evaluation.protocols.subgroups import strata_table
from evaluation.reporting.plots import plot_cmc, plot_det, plot_identification, plot_roc
from evaluation.reporting.published import Reference, compare
from evaluation.reporting.report import (
    SCHEMA,
    Result,
    identification_table,
    markdown_table,
    percent,
    protocol_text,
    verification_table,
    versions,
    write_result,
)
from features.precomputed import PrecomputedFeatures
from runtime.files import atomic_write
from runtime.machine import peak_resident_mib

_CMC_RANKS = tuple(range(1, 51))
_UNKNOWN = "unknown"
_NO_COHORT = "none: scores are cosines"


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation; `paper`: the rules' name; `cohort`: scores are normalised with it;
    `two_identity_split`: cosine below which parts of a set are of two; `hashes`: SHA-256 of trained
    aggregators' files.
    """

    protocol: SetProtocol
    rules: Rules
    paper: str
    cohort: Cohort | None
    two_identity_split: float | None
    features: PrecomputedFeatures
    figures: IjbFigures
    hashes: Mapping[str, str]


def report(done: Evaluated, out: Path, reference: Reference | None) -> None:
    """Prints the tables and writes everything into `out`."""
    results = {name: _result(done, name) for name in done.figures.aggregators}
    main = next(iter(results))
    sections = {name: figures.sections() for name, figures in done.figures.aggregators.items()}
    several = {"aggregators": sections, "differences": [asdict(d) for d in done.figures.differences]}
    text = _text(done, results, compare(results[main], reference) if reference else None)
    # Before the files, of which a full disk may take none.
    print(text)
    write_result(out, results[main] | (several if len(sections) > 1 else {}))
    atomic_write(out / "report.md", text + "\n")
    _plots(done, out)
    print(f"\neverything is in {out}: result.json, report.md, plots/, features/ (for --features)")


def _result(done: Evaluated, name: str) -> Result:
    sizes = dict(done.protocol.sizes)
    sizes["genuine"] = sizes.pop("mated pairs")
    return {
        "schema": SCHEMA,
        "protocol": {"name": done.protocol.name, "rules": _rules(done)},
        "model": _model(done, name),
        "data": sizes,
        **done.figures.aggregators[name].sections(),
        "seconds": {phase: round(value, 3) for phase, value in done.figures.seconds.items()},
        "peak_rss_mib": peak_resident_mib(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": versions(),
        "warnings": done.figures.warnings,
    }


def _rules(done: Evaluated) -> dict[str, str]:
    """The switches, and all else that makes figures differ."""
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


def _text(done: Evaluated, results: Mapping[str, Result], comparison: str | None) -> str:
    """The report: what was done, tables, what a reader must know."""
    main = next(iter(results.values()))
    model = ", ".join(f"{key} {value}" for key, value in main["model"].items() if key != "aggregator")
    parts = [
        f"# {done.protocol.name}",
        protocol_text(main) + f"\n- model: {model}",
        verification_table(results),
    ]
    if done.figures.differences:
        parts.append(_difference_table(done.figures))
    if done.figures.aggregators and "identification" in main:
        parts.append(identification_table(results))
    parts += _helper_table(done.figures.aggregators)
    if done.two_identity_split is not None:
        shares = [(name, each.of_two_people) for name, each in done.figures.aggregators.items()]
        told = ", ".join(f"{name} {percent(share)} %" for name, share in shares if share is not None)
        parts.append(f"Templates described as two people: {told}.")
    if (strata := strata_table(results)) is not None:
        parts.append(
            f"{strata}\n\nEach stratum at its own threshold; '-': too few non-mated pairs for the FAR."
        )
    if any(figures.tar_intervals for figures in done.figures.aggregators.values()):
        parts.append(
            "Brackets: 95 % intervals, bootstrap over subjects; of a rate observed as 0 or 100, the exact "
            "binomial one of so many subjects."
        )
    parts += [f"warning: {warning}" for warning in done.figures.warnings]
    parts += [comparison] if comparison else []
    spent = ", ".join(f"{phase} {value:.2f}" for phase, value in done.figures.seconds.items())
    peak = main["peak_rss_mib"]
    parts.append(f"seconds: {spent}" + ("" if peak is None else f"; peak memory {peak:,} MiB"))
    return "\n\n".join(parts)


def _difference_table(figures: IjbFigures) -> str:
    first = figures.differences[0]
    rows = [
        [each.name, *(_points(each.tar[key], each.intervals[key]) for key in each.tar)]
        for each in figures.differences
    ]
    return markdown_table([f"strict TAR less that of {first.reference}, points", *first.tar], rows)


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
        note = "That rule joins the galleries and has no non-mated probes: what it accepts is not FPIR."
        return [markdown_table(head, rows), note]
    return []


def _plots(done: Evaluated, out: Path) -> None:
    folder, title = out / "plots", f"{done.protocol.name}, rules of {done.paper}"
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

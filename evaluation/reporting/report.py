"""Figures as a person reads them, Markdown tables, and as programs read them, result.json.

Rates are fractions everywhere but in tables, which say per cent. Plots are in `evaluation.reporting.plots`.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.metrics.identification import TpirAtFpir
from evaluation.metrics.verification import TarAtFar
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.json_files import json_text, read_json
from runtime.machine import versions_of

Interval = tuple[float, float]
Result = dict[str, Any]

SCHEMA = 1
_PLAIN_VALUES = ("schema", "peak_rss_mib", "command")
# Objects that every result has, with their keys.
_OBJECTS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("protocol",): ("name",),
    ("protocol", "rules"): (),
    ("model",): ("backbone", "aggregator", "weights_sha256"),
    ("data",): ("images",),
    ("seconds",): (),
    ("versions",): (),
}
_TAR_KEYS = ("strict", "nearest", "threshold", "interval95", "nonmated_above")
_TPIR_KEYS = ("tpir", "threshold", "interval95", "nonmated_above")


# ------------------------------------------------------------------------------------------ result.json


def verification_section(
    rates: Mapping[str, TarAtFar], auc: float, intervals: Mapping[str, Interval] | None = None
) -> Result:
    """The 'verification' of a result: rates and 95 % intervals of the strict ones, by `rate_key`."""
    return {
        "tar_at_far": {
            key: {
                "strict": rate.strict,
                "nearest": rate.nearest,
                "threshold": rate.threshold,
                "interval95": list(intervals[key]) if intervals else None,
                "nonmated_above": rate.nonmated_above,
            }
            for key, rate in rates.items()
        },
        "auc": auc,
    }


def closed_section(rates: Mapping[str, float], intervals: Mapping[str, Interval] | None = None) -> Result:
    """One gallery's entry of 'closed' in 'identification': a rate and its interval by rank."""
    return {
        "cmc": dict(rates),
        "interval95": {key: list(intervals[key]) for key in rates} if intervals else None,
    }


def open_section(rates: Mapping[str, TpirAtFpir], intervals: Mapping[str, Interval] | None = None) -> Result:
    """One gallery's entry of 'open' in 'identification', by FPIR."""
    return {
        "tpir_at_fpir": {
            key: {
                "tpir": rate.tpir,
                "threshold": rate.threshold,
                "interval95": list(intervals[key]) if intervals else None,
                "nonmated_above": rate.nonmated_above,
            }
            for key, rate in rates.items()
        }
    }


def write_result(out: Path, result: Result) -> Path:
    """Writes `<out>/result.json` whole or not at all, and returns its path.

    Raises:
        InputError: the result is not in the schema of ARCHITECTURE, see `check_result`.
    """
    path = out / "result.json"
    check_result(result, str(path))
    atomic_write(path, json_text(result))
    return path


def read_result(path: Path) -> Result:
    """Reads a result.json, or that of a folder.

    Raises:
        InputError: there is none, or it is not one.
    """
    path = path / "result.json" if path.is_dir() else path
    result, _ = read_json(path, dict[str, Any], "a result.json of an evaluation")
    check_result(result, str(path))
    found: Result = result
    return found


def check_result(result: object, where: str) -> None:
    """Looks for everything that the schema asks for; `where` begins the message.

    Raises:
        InputError: names every key that is missing or of another kind, and every rate that is no fraction.
    """
    if not isinstance(result, dict):
        raise InputError(f"{where}: expected an object, a result.json of an evaluation.")
    faults = _Faults(where)
    faults.need(result, (), _PLAIN_VALUES)
    for place, keys in _OBJECTS.items():
        faults.need(faults.look_for(result, place), place, keys)
    if result.get("schema", SCHEMA) != SCHEMA:
        faults.add(f"schema is {result['schema']!r}; this version reads and writes schema {SCHEMA}")
    if not {"verification", "identification", "figures"} & set(result):
        faults.add("verification or identification is missing")
    if "verification" in result:
        _check_verification(result, faults)
    if "identification" in result:
        _check_identification(result, faults)
    if "strata" in result:
        _check_strata(result, faults)
    if "figures" in result:
        figures = faults.look_for(result, ("figures",))
        faults.check_rates("", figures, tuple(figures))
    if faults.sentences:
        raise InputError.from_faults(faults.sentences)


def _check_verification(result: Result, faults: _Faults) -> None:
    place: tuple[str, ...] = ("verification", "tar_at_far")
    faults.need(faults.look_for(result, place[:1]), place[:1], ("auc",))
    for key in faults.look_for(result, place):
        rate = faults.look_for(result, (*place, key))
        faults.need(rate, (*place, key), _TAR_KEYS)
        faults.check_rates(f"TAR@FAR {key} ", rate, ("strict", "nearest"))


def _check_identification(result: Result, faults: _Faults) -> None:
    for gallery in faults.look_for(result, ("identification", "closed")):
        rates = faults.look_for(result, ("identification", "closed", gallery, "cmc"))
        faults.check_rates(f"{gallery} rank ", rates, tuple(rates))
    if "open" not in faults.look_for(result, ("identification",)):
        return
    for gallery in faults.look_for(result, ("identification", "open")):
        place = ("identification", "open", gallery, "tpir_at_fpir")
        for key in faults.look_for(result, place):
            rate = faults.look_for(result, (*place, key))
            faults.need(rate, (*place, key), _TPIR_KEYS)
            faults.check_rates(f"{gallery} TPIR@FPIR {key} ", rate, ("tpir",))


def _check_strata(result: Result, faults: _Faults) -> None:
    for title in faults.look_for(result, ("strata",)):
        for name in faults.look_for(result, ("strata", title)):
            place = ("strata", title, name)
            faults.need(faults.look_for(result, place), place, ("pairs", "mated"))
            for key in faults.look_for(result, (*place, "tar_at_far")):
                rate = faults.look_for(result, (*place, "tar_at_far", key))
                faults.check_rates(f"{title} {name} TAR@FAR {key} ", rate, ("strict",))


# Stands for an object that is not there.
_NOTHING: Result = {}


class _Faults:
    """All that is wrong with a result, as sentences. What is looked for may be of any kind, or not there."""

    def __init__(self, where: str) -> None:
        self.where, self.sentences = where, list[str]()

    def add(self, fault: str) -> None:
        """Adds a fault once."""
        if (sentence := f"{self.where}: {fault}") not in self.sentences:
            self.sentences.append(sentence)

    def look_for(self, part: Any, place: Sequence[str]) -> Result:
        """The object at a place; `_NOTHING` where there is none."""
        for depth, key in enumerate(place, 1):
            if key not in part:
                self.add(f"{'.'.join(place[:depth])} is missing")
                return _NOTHING
            part = part[key]
            if not isinstance(part, dict):
                self.add(f"{'.'.join(place[:depth])} is {part!r}; expected an object")
                return _NOTHING
        return part if isinstance(part, dict) else _NOTHING

    def need(self, part: Result, place: Sequence[str], keys: Sequence[str]) -> None:
        """The object at the place must hold the keys, unless it was found missing before."""
        for key in keys:
            if part is not _NOTHING and key not in part:
                self.add(f"{'.'.join([*place, key])} is missing")

    def check_rates(self, before: str, rates: Mapping[str, Any], names: Sequence[str]) -> None:
        """Every named rate that is there must be a fraction."""
        for name in names:
            rate = rates.get(name, 0)
            if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1:
                self.add(f"{before}{name} is {rate!r}; expected a fraction between 0 and 1")


# ---------------------------------------------------------------------------------------------- tables


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns stand in line in a terminal too; all but the first are right-aligned."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        return f"| {' | '.join(cells)} |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return "\n".join([line(head), f"|{rule}|", *map(line, rows)])


def percent(rate: float, interval: Sequence[float] | None = None) -> str:
    """A fraction in per cent with two decimals, and its interval: '92.42 [91.92, 92.82]'."""
    if interval is None:
        return f"{100 * rate:.2f}"
    return f"{100 * rate:.2f} [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"


def verification_table(results: Mapping[str, Result]) -> str:
    """TAR at each FAR, per cent, of results by name; intervals are those of the strict rates."""
    keys = list(dict.fromkeys(key for r in results.values() for key in r["verification"]["tar_at_far"]))
    rows = []
    for name, result in results.items():
        rates = result["verification"]["tar_at_far"]
        for rule in ("strict", "nearest"):
            cells = [
                percent(rates[key][rule], rates[key]["interval95"] if rule == "strict" else None)
                if key in rates
                else "-"
                for key in keys
            ]
            auc = percent(result["verification"]["auc"]) if rule == "strict" else ""
            rows.append([name if rule == "strict" else "", rule, *cells, auc])
    return markdown_table(["TAR@FAR, %", "rule", *keys, "AUC"], rows)


def identification_table(results: Mapping[str, Result]) -> str:
    """Ranks and TPIR at each FPIR, per cent, of results by name; a row a gallery, and their mean."""
    sections = {name: result["identification"] for name, result in results.items()}
    galleries = [(name, gallery) for name, section in sections.items() for gallery in section["closed"]]
    closed = {(n, g): sections[n]["closed"][g] for n, g in galleries}
    opened = {(n, g): sections[n].get("open", {}).get(g, {}).get("tpir_at_fpir", {}) for n, g in galleries}
    ranks = list(dict.fromkeys(rank for part in closed.values() for rank in part["cmc"]))
    fpirs = list(dict.fromkeys(fpir for part in opened.values() for fpir in part))
    rows = []
    for name, section in sections.items():
        mine = [(name, gallery) for gallery in section["closed"]]
        for place in mine:
            intervals = closed[place].get("interval95") or {}
            cells = [_cell(closed[place]["cmc"].get(rank), intervals.get(rank)) for rank in ranks]
            for fpir in fpirs:
                rate = opened[place].get(fpir, {})
                cells.append(_cell(rate.get("tpir"), rate.get("interval95")))
            rows.append([name if place == mine[0] else "", place[1], *cells])
        if len(mine) > 1:
            means = [_mean([closed[place]["cmc"].get(rank) for place in mine]) for rank in ranks]
            means += [_mean([opened[place].get(fpir, {}).get("tpir") for place in mine]) for fpir in fpirs]
            rows.append(["", "mean", *map(_cell, means)])
    head = ["1:N, %", "gallery", *(f"rank {rank}" for rank in ranks), *(f"TPIR@FPIR {f}" for f in fpirs)]
    return markdown_table(head, rows)


def protocol_text(result: Result) -> str:
    """What has to stand above a table: all that makes figures differ, one line a rule."""
    rules = result["protocol"]["rules"].items()
    lines = [f"Protocol {result['protocol']['name']}:", *(f"- {name}: {value}" for name, value in rules)]
    counts = ", ".join(f"{value:,} {name}" for name, value in result["data"].items())
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    return "\n".join([*lines, f"- data: {counts}", f"- versions: {versions}"])


def _cell(rate: float | None, interval: Sequence[float] | None = None) -> str:
    return "-" if rate is None else percent(rate, interval)


def _mean(rates: Sequence[float | None]) -> float | None:
    there = [rate for rate in rates if rate is not None]
    return sum(there) / len(there) if len(there) == len(rates) else None


def versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    packages = versions_of("torch", "pytorch-lightning", "numpy", "opencv")
    return {"python": platform.python_version()} | packages

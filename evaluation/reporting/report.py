"""Markdown tables of figures, and result.json.

Rates are fractions everywhere but in tables, which say per cent. Plots are in `evaluation.reporting.plots`.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict, cast

from evaluation.metrics.identification import TpirAtFpir
from evaluation.metrics.verification import TarAtFar
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.json_files import check_type, json_text, read_json
from runtime.machine import versions_of

Interval = tuple[float, float]
Result = dict[str, Any]

SCHEMA = 1


class _Rules(TypedDict):
    name: str
    rules: dict[str, str]


class _Model(TypedDict):
    backbone: str
    aggregator: str
    weights_sha256: str


class _Tar(TypedDict):
    strict: float
    nearest: float
    threshold: float
    interval95: list[float] | None
    nonmated_above: int


class _Tpir(TypedDict):
    tpir: float
    threshold: float
    interval95: list[float] | None
    nonmated_above: int


class _Verification(TypedDict):
    auc: float
    tar_at_far: dict[str, _Tar]


class _Closed(TypedDict):
    cmc: dict[str, float]


class _Open(TypedDict):
    tpir_at_fpir: dict[str, _Tpir]


class _OpenSet(TypedDict, total=False):
    open: dict[str, _Open]


class _Identification(_OpenSet):
    closed: dict[str, _Closed]


class _SubgroupTar(TypedDict):
    strict: float


class _Subgroup(TypedDict):
    pairs: int
    mated: int
    tar_at_far: dict[str, _SubgroupTar]


class _Sections(TypedDict, total=False):
    verification: _Verification
    identification: _Identification
    strata: dict[str, dict[str, _Subgroup]]
    figures: dict[str, float]


class _Result(_Sections):
    schema: int
    protocol: _Rules
    model: _Model
    data: dict[str, int]
    seconds: dict[str, float]
    peak_rss_mib: int | None
    command: str
    versions: dict[str, str]


# ------------------------------------------------------------------------------------------ result.json


def verification_section(
    rates: Mapping[str, TarAtFar], auc: float, intervals: Mapping[str, Interval] | None = None
) -> Result:
    """The 'verification' of a result: rates and 95 % intervals of the strict ones, by `rate_key`."""
    return {"tar_at_far": _with_intervals(rates, intervals), "auc": auc}


def closed_section(rates: Mapping[str, float], intervals: Mapping[str, Interval] | None = None) -> Result:
    """One gallery's entry of 'closed' in 'identification': a rate and its interval by rank."""
    return {
        "cmc": dict(rates),
        "interval95": {key: list(intervals[key]) for key in rates} if intervals else None,
    }


def open_section(rates: Mapping[str, TpirAtFpir], intervals: Mapping[str, Interval] | None = None) -> Result:
    """One gallery's entry of 'open' in 'identification', by FPIR."""
    return {"tpir_at_fpir": _with_intervals(rates, intervals)}


def _with_intervals(
    rates: Mapping[str, TarAtFar] | Mapping[str, TpirAtFpir], intervals: Mapping[str, Interval] | None
) -> Result:
    return {
        key: {**asdict(rate), "interval95": list(intervals[key]) if intervals else None}
        for key, rate in rates.items()
    }


def write_result(out: Path, result: Result) -> Path:
    """Write `<out>/result.json` whole or not at all, and return its path.

    Raises:
        InputError: the result is not in the schema `_Result`, see `check_result`.
    """
    path = out / "result.json"
    check_result(result, str(path))
    atomic_write(path, json_text(result))
    return path


def read_result(path: Path) -> Result:
    """Read a result.json, or that of a folder.

    Raises:
        InputError: there is none, or it is not one.
    """
    path = path / "result.json" if path.is_dir() else path
    result, _ = read_json(path, dict[str, Any], "a result.json of an evaluation")
    check_result(result, str(path))
    found: Result = result
    return found


def check_result(result: object, where: str) -> None:
    """Check a result against the schema; `where` begins the message.

    Raises:
        InputError: names the first key that is missing or of another type, or the first rate that is not a
            fraction.
    """
    check_type(result, _Result, where)
    found = cast(_Result, result)
    if found["schema"] != SCHEMA:
        raise InputError(
            f"{where}: schema is {found['schema']!r}; this version reads and writes schema {SCHEMA}."
        )
    if not {"verification", "identification", "figures"} & set(found):
        raise InputError(f"{where}: verification or identification is missing.")
    for name, rate in {**figures_of(found), **_subgroup_rates(found)}.items():
        if not 0 <= rate <= 1:
            raise InputError(f"{where}: {name} is {rate!r}; expected a fraction between 0 and 1.")


def figures_of(result: Mapping[str, Any]) -> dict[str, float]:
    """All rates of a result by name, as 'TAR@FAR 1e-04, nearest' and 'gallery1 rank 1'."""
    figures: dict[str, float] = {}
    for key, rate in result.get("verification", {}).get("tar_at_far", {}).items():
        figures |= {f"TAR@FAR {key}, {rule}": float(rate[rule]) for rule in ("strict", "nearest")}
    identification = result.get("identification", {})
    for gallery, part in identification.get("closed", {}).items():
        figures |= {f"{gallery} rank {rank}": float(rate) for rank, rate in part["cmc"].items()}
    for gallery, part in identification.get("open", {}).items():
        rates = part["tpir_at_fpir"].items()
        figures |= {f"{gallery} TPIR@FPIR {key}": float(rate["tpir"]) for key, rate in rates}
    # Protocols with figures of their own (IJB-S, TinyFace, pair sets) give them under their published names.
    return figures | {name: float(rate) for name, rate in result.get("figures", {}).items()}


def _subgroup_rates(result: _Result) -> dict[str, float]:
    return {
        f"{title} {name} TAR@FAR {key}": rate["strict"]
        for title, groups in result.get("strata", {}).items()
        for name, group in groups.items()
        for key, rate in group["tar_at_far"].items()
    }


class Seconds(dict[str, float]):
    """Wall time of phases by name."""

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        """Add the time of a block."""
        start = time.perf_counter()
        yield
        self[phase] = self.get(phase, 0.0) + time.perf_counter() - start


# ---------------------------------------------------------------------------------------------- tables


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned for terminals too; all columns but the first are right-aligned."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        return f"| {' | '.join(cells)} |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return "\n".join([line(head), f"|{rule}|", *map(line, rows)])


def percent(rate: float | None, interval: Sequence[float] | None = None) -> str:
    """A fraction in per cent with two decimals, and its interval: '92.42 [91.92, 92.82]'; '-' for no rate.

    No rate is None or NaN.
    """
    if rate is None or math.isnan(rate):
        return "-"
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
            cells = []
            for key in keys:
                rate = rates.get(key, {})
                cells.append(percent(rate.get(rule), rate.get("interval95") if rule == "strict" else None))
            auc = percent(result["verification"]["auc"]) if rule == "strict" else ""
            rows.append([name if rule == "strict" else "", rule, *cells, auc])
    return markdown_table(["TAR@FAR, %", "rule", *keys, "AUC"], rows)


def identification_table(results: Mapping[str, Result]) -> str:
    """Ranks and TPIR at each FPIR, per cent, of results by name; a row per gallery, and their mean."""
    found: dict[tuple[str, str], dict[str, tuple[float, Sequence[float] | None]]] = {}
    for name, result in results.items():
        section = result["identification"]
        for gallery, closed in section["closed"].items():
            spans = closed.get("interval95") or {}
            opened = section.get("open", {}).get(gallery, {}).get("tpir_at_fpir", {})
            found[name, gallery] = {
                **{f"rank {rank}": (rate, spans.get(rank)) for rank, rate in closed["cmc"].items()},
                **{f"TPIR@FPIR {f}": (rate["tpir"], rate.get("interval95")) for f, rate in opened.items()},
            }
    columns = list(dict.fromkeys(column for row in found.values() for column in row))
    columns.sort(key=lambda column: column.startswith("TPIR"))
    rows = []
    for name in results:
        mine = {gallery: row for (owner, gallery), row in found.items() if owner == name}
        for place, (gallery, row) in enumerate(mine.items()):
            cells = (percent(*row.get(column, (None,))) for column in columns)
            rows.append(["" if place else name, gallery, *cells])
        if len(mine) > 1:
            rates = [[row[column][0] for row in mine.values() if column in row] for column in columns]
            means = (sum(part) / len(mine) if len(part) == len(mine) else None for part in rates)
            rows.append(["", "mean", *map(percent, means)])
    return markdown_table(["1:N, %", "gallery", *columns], rows)


def protocol_text(result: Result) -> str:
    """What precedes a table: all that makes figures differ, one line per rule."""
    rules = result["protocol"]["rules"].items()
    lines = [f"Protocol {result['protocol']['name']}:", *(f"- {name}: {value}" for name, value in rules)]
    counts = ", ".join(f"{value:,} {name}" for name, value in result["data"].items())
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    return "\n".join([*lines, f"- data: {counts}", f"- versions: {versions}"])


def versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    packages = versions_of("torch", "pytorch-lightning", "numpy", "opencv")
    return {"python": platform.python_version()} | packages

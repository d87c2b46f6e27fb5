"""The catalogue of published models, read from catalogue.json, where a model is one entry."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from runtime.files import cache_folder

_FILE = Path(__file__).with_name("catalogue.json")
_WIDTH = 108


@dataclass(frozen=True)
class Entry:
    """One published model.

    Attributes:
        name: that commands accept.
        architecture: of `net.BACKBONES`.
        training_data: name of the dataset; its terms are `data_terms`.
        figures: published ones, per cent, by what they measure.
        source: hf://owner/repo[/file], or the address of a file.
        page: web page of the model.
        code_licence: of the training code.
        weights_licence: of the weights themselves, if stated.
        commercial_use: what is stated about it.
        sha256: of the file, if known.
        size: of the file in bytes, if known.
    """

    name: str
    architecture: str
    training_data: str
    data_terms: str
    source: str
    page: str
    code_licence: str
    weights_licence: str
    commercial_use: str
    figures: dict[str, float] = field(default_factory=dict)
    sha256: str | None = None
    size: int | None = None
    note: str = ""


def _read_catalogue() -> dict[str, Entry]:
    """All entries by name, in the file's order. Missing fields come from the kind of an entry."""
    stored = json.loads(_FILE.read_text(encoding="utf-8"))
    entries = {}
    for values in stored["models"]:
        joined = stored["kinds"].get(values.pop("kind", ""), {}) | values
        terms = stored["data_terms"][joined["training_data"]]
        entries[joined["name"]] = Entry(data_terms=terms, **joined)
    return entries


def fetched_path(entry: Entry) -> Path:
    """The file in the cache of an entry that is not on the hub; it need not exist."""
    suffix = Path(entry.source.partition("?")[0]).suffix or ".ckpt"
    return cache_folder() / "weights" / f"{entry.name}{suffix}"


def catalogue_text(entries: Iterable[Entry], there: Iterable[str]) -> str:
    """The catalogue as text: a table, then licences and terms. `there`: names of downloaded entries."""
    entries, there = list(entries), set(there)
    names = list(dict.fromkeys(name for entry in entries for name in entry.figures))
    rows = [["name", "network", "trained on", *names, "here"]]
    rows += [
        [entry.name, entry.architecture, entry.training_data]
        + [f"{entry.figures[name]:.2f}" if name in entry.figures else "-" for name in names]
        + ["yes" if entry.name in there else "no"]
        for entry in entries
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    paragraphs = ["\n".join(line.rstrip() for line in table)]
    paragraphs.append("Published figures, per cent. IJB: TAR at FAR 1e-04. Five sets: mean accuracy.")
    for title, text in (("code", "code_licence"), ("weights", "weights_licence")):
        paragraphs.append(_grouped(f"licence of the {title}", entries, text))
    paragraphs.append(_grouped("commercial use", entries, "commercial_use"))
    data = {entry.training_data: entry.data_terms for entry in entries}
    paragraphs += [_wrapped(f"terms of {name}: {terms}") for name, terms in data.items()]
    paragraphs.append("\n".join(f"{entry.name}: {entry.page}" for entry in entries))
    return "\n\n".join(paragraphs)


def _grouped(title: str, entries: list[Entry], attribute: str) -> str:
    groups: dict[str, list[str]] = {}
    for entry in entries:
        groups.setdefault(getattr(entry, attribute), []).append(entry.name)
    return "\n".join(_wrapped(f"{title}: {text} ({', '.join(names)})") for text, names in groups.items())


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent="    ", break_on_hyphens=False)


CATALOGUE = _read_catalogue()

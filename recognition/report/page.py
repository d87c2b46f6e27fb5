"""report.html: one file that shows what a descriptor is made of, and needs no network.

Numbers come from `sets`, `enrolment` and `results`; how the page looks and behaves stands in page.html.
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np
from numpy.typing import NDArray

from recognition.calibration.decisions import Decisions, about_threshold, nearest_pairs
from recognition.enrolment.checks import EnrolmentCheck
from recognition.enrolment.quality_feedback import choice_text, quality_feedback
from recognition.model import FaceModel
from recognition.records import AggregatedSet, EmptySet, FaceRecord, Rejection
from runtime.escaping import escaped
from runtime.files import atomic_write

_TEMPLATE = Path(__file__).with_name("page.html")
# More cells than a person reads: beyond, the nearest sets of each are named.
_LARGEST_MATRIX = 60
_NEAREST = 5
# Of the matrix side by side on a sheet of paper.
_COLUMNS_IN_PRINT = 20
# Shown at once; the other faces of a set are unfolded.
_FACES_SHOWN = 120
# Of a face; the ends of file names tell them apart.
_LONGEST_NAME = 15
# From this share of the accent colour on, text is the colour made for it.
_HOT = 60


@dataclass(frozen=True, eq=False)
class Report:
    """What a page shows; `matrix`: (B, B) cosines of the B sets; `checks`: one a set."""

    model: FaceModel
    sets: Sequence[AggregatedSet]
    empty: Sequence[EmptySet]
    matrix: NDArray[np.float32]
    checks: Sequence[EnrolmentCheck]
    decisions: Decisions | None = None
    title: str = "From faces to one descriptor"


def write_page(path: Path, report: Report) -> None:
    """Writes the page, whole or not at all."""
    atomic_write(path, page(report))


def page(report: Report) -> str:
    """The page as HTML."""
    number = 0
    data: list[dict[str, object]] = []
    sections = []
    for place, (described, check) in enumerate(zip(report.sets, report.checks, strict=True)):
        sections.append(_set_section(place, described, check, number))
        data += [_face_data(described, check, face) for face in range(len(described.faces))]
        number += len(described.faces)
    faces = sum(len(each.faces) for each in report.sets)
    rejected = sum(len(each.rejected) for each in report.sets)
    rejected += sum(len(each.rejected) for each in report.empty)
    totals = (
        f"{_count(len(report.sets), 'set')}, {_count(faces, 'face')}, {rejected:,} without a usable face."
    )
    model = report.model
    about = (
        f"{model.about} Backbone: {model.spec.name}, mirror image: {model.flip}. "
        f"Fingerprint of the model: {model.fingerprint[:12]}."
    )
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=_text(report.title),
        totals=totals,
        about=_text(about),
        matrix=_matrix_section(report),
        decisions=_decisions_section(report),
        sets="\n".join(sections),
        empty=_empty_section(report.empty),
        # '<' would end the script element early.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )


# -------------------------------------------------------------------------------------------- matrix


def _matrix_section(report: Report) -> str:
    if len(report.sets) < 2:
        return ""
    wide = len(report.sets) > _LARGEST_MATRIX
    body = _nearest_table(report) if wide else _heat_map(report)
    note = (
        f"The {_NEAREST} nearest sets of each; similarity.csv has all"
        if wide
        else 'Cosine of the descriptors: 0 <span class="scale" aria-hidden="true"></span> 1'
    )
    if report.decisions is not None:
        note += f". Framed: one person, by the {_text(about_threshold(report.decisions))}."
    return (
        f'<section aria-labelledby="similarity"><h2 id="similarity">Similarity</h2><p class="soft">{note}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="similarity">{body}</div></section>'
    )


def _heat_map(report: Report) -> str:
    """One table; where it is wider than paper, for print also in parts of some columns."""
    count = len(report.sets)
    if count <= _COLUMNS_IN_PRINT:
        return _heat_table(report, range(count))
    parts = np.array_split(np.arange(count), math.ceil(count / _COLUMNS_IN_PRINT))
    in_print = "".join(_heat_table(report, part.tolist(), "print") for part in parts)
    return _heat_table(report, range(count), "screen") + in_print


def _heat_table(report: Report, columns: Sequence[int], kind: str = "") -> str:
    names = [_text(each.name) for each in report.sets]
    heads = "".join(
        f'<th scope="col"><abbr title="{names[column]}">{column + 1}</abbr></th>' for column in columns
    )
    rows = []
    for row, name in enumerate(names):
        cells = "".join(_cell(report, row, column) for column in columns)
        rows.append(f"<tr>{_row_head(row, name)}{cells}</tr>")
    return (
        f'<table class="{kind}"><thead><tr><td class="self"></td>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _cell(report: Report, row: int, column: int) -> str:
    value = float(report.matrix[row, column])
    if row == column:
        return '<td class="self">1</td>'
    heat = round(100 * min(max(value, 0.0), 1.0))
    kinds = ["hot"] if heat >= _HOT else []
    if report.decisions is not None and report.decisions.is_same[row, column]:
        kinds.append("match")
    return f'<td class="{" ".join(kinds)}" style="--heat:{heat}">{_cosine(value)}</td>'


def _nearest_table(report: Report) -> str:
    rows = []
    for row, each in enumerate(report.sets):
        others = np.argsort(-report.matrix[row], kind="stable")
        cells = []
        for column in [int(other) for other in others if other != row][:_NEAREST]:
            value = float(report.matrix[row, column])
            heat = round(100 * min(max(value, 0.0), 1.0))
            kinds = ["hot"] if heat >= _HOT else []
            if report.decisions is not None and report.decisions.is_same[row, column]:
                kinds.append("match")
            name = _text(report.sets[column].name)
            cells.append(
                f'<td class="{" ".join(kinds)}" style="--heat:{heat}"><a href="#set-{column}">{name}</a> '
                f"{_cosine(value)}</td>"
            )
        rows.append(f"<tr>{_row_head(row, _text(each.name))}{''.join(cells)}</tr>")
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def _row_head(row: int, name: str) -> str:
    return f'<th scope="row" title="{name}"><span>{row + 1}</span><a href="#set-{row}">{name}</a></th>'


def _decisions_section(report: Report) -> str:
    decisions = report.decisions
    if decisions is None or len(report.sets) < 2:
        return ""
    heads = ("", "Score", "Says", "Threshold (95 %)", "Of sizes", "Flips at FMR")
    rows = []
    for place in nearest_pairs(decisions):
        names = " and ".join(f'<a href="#set-{each}">{_text(report.sets[each].name)}</a>' for each in place)
        cells = (
            f"{decisions.scores[place]:.4f}",
            decisions.verdict(place),
            decisions.threshold_text(place),
            decisions.sizes_text(place),
            decisions.flip_text(place),
        )
        rows.append(
            f'<tr><th scope="row">{names}</th>' + "".join(f"<td>{_text(c)}</td>" for c in cells) + "</tr>"
        )
    method = decisions.normalisation
    kind = f"scores are normalised with a cohort ({method})" if method else "scores are cosines"
    head = "".join(f'<th scope="col">{each}</th>' for each in heads)
    return (
        '<section aria-labelledby="decisions"><h2 id="decisions">One person or two?</h2><p class="soft">The '
        f"pairs nearest to their threshold for a false match rate (FMR) of {_text(decisions.fmr)}; {kind}. "
        "The last column is the rate from which on it would say one person; decisions.csv has all pairs.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-labelledby="decisions"><table class="plain">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


# ---------------------------------------------------------------------------------------------- sets


def _set_section(place: int, described: AggregatedSet, check: EnrolmentCheck, first: int) -> str:
    picks = {int(face): order for order, face in enumerate(described.picks, start=1)}
    units = ordered_samples(described, check)
    if check.num_identities > 1:
        parts = [
            (f"Person {number + 1}?" if number >= 0 else "None of them", number)
            for number in [*range(check.num_identities), -1]
        ]
        lists = "".join(
            f"<h3>{title}</h3>{_face_list(described, check, own, picks, first)}"
            for title, number in parts
            if (own := [unit for unit in units if check.identity[unit[0]] == number])
        )
    else:
        lists = _face_list(described, check, units, picks, first)
    chosen = f", {_count(len(picks), 'face')} chosen" if picks else ""
    findings = "".join(f"<li>{_text(each)}</li>" for each in feedback_sentences(described, check))
    return (
        f'<section id="set-{place}" aria-labelledby="name-{place}"><div class="head">'
        f'<h2 id="name-{place}">{place + 1}. {_text(described.name)}</h2>'
        f'<span class="soft">{_count(len(described.faces), "face")}{chosen}, norm of the descriptor '
        f"{described.norm:.2f}</span></div>"
        + (f'<ul class="findings">{findings}</ul>' if findings else "")
        + f'<div data-set="{place}">{lists}</div>'
        + _rejected(described.rejected)
        + "</section>"
    )


def _face_list(
    described: AggregatedSet, check: EnrolmentCheck, units: list[list[int]], picks: dict[int, int], first: int
) -> str:
    """The faces of a set, or of one person in it; beyond `_FACES_SHOWN` they are folded."""
    shown: list[str] = []
    hidden: list[str] = []
    count = 0
    for unit in units:
        (shown if count < _FACES_SHOWN else hidden).append(_unit(described, check, unit, picks, first))
        count += len(unit)
    more = ""
    if hidden:
        left = count - sum(len(unit) for unit in units[: len(shown)])
        more = (
            f"<details><summary>{_count(left, 'more face')}</summary>"
            f'<ul class="faces">{"".join(hidden)}</ul></details>'
        )
    return f'<ul class="faces">{"".join(shown)}</ul>{more}'


def ordered_samples(described: AggregatedSet, check: EnrolmentCheck) -> list[list[int]]:
    """Faces in the order of the page: near-duplicates together, by pick, then by weight."""
    heavy = described.norms if described.weights is None else described.weights
    order = {int(face): number for number, face in enumerate(described.picks)}
    faces = sorted(
        range(len(described.faces)), key=lambda face: (order.get(face, len(order)), -heavy[face], face)
    )
    units: list[list[int]] = []
    of_group: dict[int, list[int]] = {}
    for face in faces:
        group = int(check.group[face])
        if group in of_group:
            of_group[group].append(face)
            continue
        units.append([face])
        if group >= 0:
            of_group[group] = units[-1]
    return units


def feedback_sentences(described: AggregatedSet, check: EnrolmentCheck) -> list[str]:
    """What a person should look at before enrolling the set, in sentences."""
    return [each.text[:1].upper() + each.text[1:] for each in quality_feedback(described, check)]


def _unit(
    described: AggregatedSet, check: EnrolmentCheck, unit: list[int], picks: dict[int, int], first: int
) -> str:
    faces = "".join(_face(described, check, face, picks.get(face), first + face) for face in unit)
    if len(unit) == 1:
        return faces
    return f'<li class="group"><span>{len(unit)} near-duplicates</span><ul class="faces">{faces}</ul></li>'


def _face(described: AggregatedSet, check: EnrolmentCheck, face: int, pick: int | None, number: int) -> str:
    whole = described.faces[face].name
    name, short = _text(whole), _text(whole if len(whole) <= _LONGEST_NAME else f"{whole[:4]}…{whole[-10:]}")
    order = f'<span class="order" title="chosen as number {pick}">{pick}</span>' if pick else ""
    weight = ""
    if described.weights is not None:
        share = float(described.weights[face])
        full = share / max(float(described.weights.max()), 1e-12)
        bar = f'<span class="bar"><i style="width:{100 * full:.0f}%"></i></span>'
        weight = f'<span class="weight">{bar}{_text(_percent(share))}</span>'
    marks = (
        ("someone else?", check.outlier[face]),
        (f"person {check.identity[face] + 1}?", check.num_identities > 1 and check.identity[face] >= 0),
        ("poor", check.poor[face]),
    )
    flags = [text for text, on in marks if on]
    flag = f'<span class="flag">{", ".join(flags)}</span>' if flags else ""
    return (
        f'<li><button class="face{" chosen" if pick else ""}" data-face="{number}"><img alt="" width="96" '
        f'height="96">{order}<span class="name" title="{name}">{short}</span><span class="norm">norm '
        f"{described.norms[face]:.1f}</span>{weight}{flag}</button></li>"
    )


def _face_data(described: AggregatedSet, check: EnrolmentCheck, face: int) -> dict[str, object]:
    """What the card of a face shows."""
    record = described.faces[face]
    order = [number for number, pick in enumerate(described.picks, start=1) if pick == face]
    facts = [("Chosen", f"as number {order[0]}" if order else "no")] if len(described.picks) else []
    if described.weights is not None:
        facts.append(("Weight", f"{_percent(float(described.weights[face]))} of the descriptor"))
    facts.append(("Norm (quality)", f"{described.norms[face]:.2f}" + (", poor" if check.poor[face] else "")))
    if not math.isnan(check.similarity[face]):
        facts.append(("Similarity to the rest", f"{check.similarity[face]:.2f}"))
    if not math.isnan(check.outlier_prob[face]):
        facts.append(("Someone else?", f"probability {check.outlier_prob[face]:.2f}"))
    if not math.isnan(check.shift[face]):
        facts.append(("If left out", f"the descriptor moves by {check.shift[face]:.4f} (1 - cosine)"))
    if check.num_identities > 1:
        who = f"{check.identity[face] + 1} of {check.num_identities}" if check.identity[face] >= 0 else "none"
        facts.append(("Person", who))
    if record.choice is not None:
        reason = "it agrees with the rest" if record.choice.agrees else "it is the largest"
        facts.append(("Several faces", f"{choice_text(record)} was taken: {reason}"))
    if check.group[face] >= 0:
        others = int((check.group == check.group[face]).sum()) - 1
        facts.append(("Near-duplicates", f"{others} more"))
    if record.size is not None and record.score is not None:
        facts.append(("In the photo", f"{record.size:.0f} pixels high, detector's score {record.score:.2f}"))
    if record.turned:
        facts.append(("Turned", f"by {record.turned} degrees clockwise; the photo is not upright"))
    facts += _measured(record)
    return {"image": base64.b64encode(record.thumbnail).decode(), "name": record.name, "facts": facts}


def _measured(record: FaceRecord) -> list[tuple[str, str]]:
    measures = record.measures
    if measures is None:
        return []
    facts = []
    if not math.isnan(measures.yaw):
        side = "left" if measures.yaw < 0 else "right"
        height = "down" if measures.pitch < 0 else "up"
        looks = f"{abs(measures.yaw):.0f} degrees to the {side}, {abs(measures.pitch):.0f} {height}"
        facts.append(("Looks", looks))
    light = f"{measures.brightness:.0f} of 255, contrast {measures.contrast:.0f}"
    return [*facts, ("Sharpness", f"{measures.sharpness:.2f}"), ("Light", light)]


# ------------------------------------------------------------------------------------------ rejected


def _rejected(rejected: Sequence[Rejection]) -> str:
    if not rejected:
        return ""
    items = "".join(f"<li><b>{_text(each.name)}</b>: {_text(each.reason)}</li>" for each in rejected)
    return (
        f'<details class="rejected"><summary>{_count(len(rejected), "file")} or frames without a usable face'
        f"</summary><ul>{items}</ul></details>"
    )


def _empty_section(empty: Sequence[EmptySet]) -> str:
    if not empty:
        return ""
    parts = "".join(f"<h3>{_text(each.name)}</h3>{_rejected(each.rejected)}" for each in empty)
    return f"<section><h2>Sets without any face</h2>{parts}</section>"


def _cosine(value: float) -> str:
    # Not -0.00.
    return f"{round(value, 2) + 0.0:.2f}"


def _percent(share: float) -> str:
    if 0 < share < 0.001:
        return "<0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _text(text: str) -> str:
    return html.escape(escaped(text), quote=True)

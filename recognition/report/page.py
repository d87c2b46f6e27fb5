"""report.html: one self-contained file that shows what each descriptor is made of.

The values are computed here; layout and behaviour are in the template page.html.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from recognition.calibration.decisions import Decisions, about_threshold, nearest_pairs
from recognition.enrolment.checks import EnrolmentCheck
from recognition.enrolment.quality_feedback import Feedback, choice_text
from recognition.records import AggregatedSet, EmptySet, FaceRecord
from recognition.report.summary import InferenceReport
from runtime.escaping import escaped
from runtime.files import atomic_write

# Of more sets only the most similar ones of each are shown.
_LARGEST_MATRIX = 60
_NEAREST = 5
# Columns of the matrix that fit on paper.
_COLUMNS_IN_PRINT = 20
# The other faces of a set are folded.
_FACES_SHOWN = 120
# Characters; longer names keep their end, which differs most between files.
_LONGEST_NAME = 12
# Percentage of the accent colour from which the text takes the colour for dark backgrounds.
_HOT = 60


def write_page(path: Path, report: InferenceReport) -> None:
    """Write the page atomically."""
    atomic_write(path, page(report))


def page(report: InferenceReport) -> str:
    """The page as HTML."""
    model, decisions = report.model, report.decisions if len(report.sets) > 1 else None
    offsets = np.cumsum([0, *(len(each.faces) for each in report.sets)]).tolist()
    every: list[AggregatedSet | EmptySet] = [*report.sets, *report.empty]
    num_rejected = sum(len(each.rejected) for each in every)
    values = zip(report.sets, report.checks, report.feedback, offsets[:-1], strict=True)
    return _template().render(
        totals=f"{_counted(len(report.sets), 'set')}, {_counted(offsets[-1], 'face')}, {num_rejected:,} "
        "without a usable face.",
        about=f"{model.about} Backbone: {model.spec.name}, horizontal flip: {model.flip}. Model fingerprint: "
        f"{model.fingerprint[:12]}.",
        names=[each.name for each in report.sets],
        matrix=_matrix(report) if len(report.sets) > 1 else None,
        threshold=None if decisions is None else about_threshold(decisions),
        decisions=None if decisions is None else _decisions(decisions),
        sets=[_set(*each) for each in values],
        empty=report.empty,
        data=[
            _details(each, check, face)
            for each, check in zip(report.sets, report.checks, strict=True)
            for face in range(len(each.faces))
        ],
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Control characters in names are written as escapes.
        finalize=lambda value: escaped(value) if type(value) is str else value,
    )
    environment.filters["counted"] = _counted
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment.get_template("page.html")


# -------------------------------------------------------------------------------- matrix and decisions


class _Cell(NamedTuple):
    column: int
    text: str
    heat: int
    style: str


def _matrix(report: InferenceReport) -> dict[str, Any]:
    """Rows of cells; of many sets only the nearest ones of each, otherwise in parts that fit on paper."""
    count = len(report.sets)
    if count <= _LARGEST_MATRIX:
        rows = [[_cell(report, row, column) for column in range(count)] for row in range(count)]
        parts = np.array_split(np.arange(count), math.ceil(count / _COLUMNS_IN_PRINT))
        return {"nearest": 0, "rows": rows, "print_columns": [part.tolist() for part in parts]}
    rows = []
    for row in range(count):
        order = np.argsort(-report.matrix[row], kind="stable")
        rows.append([_cell(report, row, int(column)) for column in order[order != row][:_NEAREST]])
    return {"nearest": _NEAREST, "rows": rows}


def _cell(report: InferenceReport, row: int, column: int) -> _Cell:
    value = float(report.matrix[row, column])
    heat = round(100 * min(max(value, 0.0), 1.0))
    is_match = report.decisions is not None and report.decisions.is_same[row, column]
    style = " ".join(["hot"] * (heat >= _HOT) + ["match"] * bool(is_match))
    # Not -0.00.
    return _Cell(column, f"{round(value, 2) + 0.0:.2f}", heat, style)


def _decisions(decisions: Decisions) -> dict[str, Any]:
    method = decisions.normalisation
    return {
        "fmr": decisions.fmr,
        "scores": f"normalised with a cohort ({method})" if method else "cosines",
        "rows": [
            (
                pair,
                (
                    f"{decisions.scores[pair]:.4f}",
                    decisions.verdict(pair),
                    decisions.threshold_text(pair),
                    decisions.sizes_text(pair),
                    decisions.fmr_text(pair),
                ),
            )
            for pair in nearest_pairs(decisions)
        ],
    }


# ----------------------------------------------------------------------------------------------- sets


class _Face(NamedTuple):
    """A face in the list of its set; `pick`: its number among the selected faces, 0 if it is not."""

    number: int
    name: str
    short: str
    pick: int
    norm: str
    weight: str
    bar: int
    flags: list[str]


def _set(
    aggregated: AggregatedSet, check: EnrolmentCheck, feedback: Sequence[Feedback], offset: int
) -> dict[str, Any]:
    """A set's section; `offset`: number of its first face on the page."""
    samples = ordered_samples(aggregated, check)
    parts = [("", samples)]
    if check.num_identities > 1:
        numbers = [*range(check.num_identities), -1]
        titles = [*(f"Identity {number + 1}?" for number in numbers[:-1]), "None of them"]
        parts = [
            (title, [sample for sample in samples if check.identity[sample[0]] == number])
            for title, number in zip(titles, numbers, strict=True)
        ]
    return {
        "name": aggregated.name,
        "num_faces": len(aggregated.faces),
        "num_picks": len(aggregated.picks),
        "norm": f"{aggregated.norm:.2f}",
        "feedback": [each.text[:1].upper() + each.text[1:] for each in feedback],
        "parts": [
            (title, *_folded([[_face(aggregated, check, face, offset) for face in each] for each in own]))
            for title, own in parts
            if own
        ],
        "rejected": aggregated.rejected,
    }


def _folded(samples: list[list[_Face]]) -> tuple[list[list[_Face]], list[list[_Face]]]:
    """Samples that are shown and samples that are folded, beyond `_FACES_SHOWN` faces."""
    before = np.cumsum([0, *map(len, samples)])
    shown = int(np.searchsorted(before[:-1], _FACES_SHOWN))
    return samples[:shown], samples[shown:]


def ordered_samples(aggregated: AggregatedSet, check: EnrolmentCheck) -> list[list[int]]:
    """Faces in the order of the page: near-duplicates together, by selection, then by weight."""
    weights = aggregated.norms if aggregated.weights is None else aggregated.weights
    order = {int(face): number for number, face in enumerate(aggregated.picks)}
    faces = sorted(
        range(len(aggregated.faces)), key=lambda face: (order.get(face, len(order)), -weights[face], face)
    )
    samples: dict[tuple[str, int], list[int]] = {}
    for face in faces:
        group = int(check.group[face])
        samples.setdefault(("group", group) if group >= 0 else ("face", face), []).append(face)
    return list(samples.values())


def _face(aggregated: AggregatedSet, check: EnrolmentCheck, face: int, offset: int) -> _Face:
    name = aggregated.faces[face].name
    weight, bar = "", 0
    if aggregated.weights is not None:
        share = float(aggregated.weights[face])
        weight, bar = _percent(share), round(100 * share / max(float(aggregated.weights.max()), 1e-12))
    flags = (
        ("different person?", check.outlier[face]),
        (f"identity {check.identity[face] + 1}?", check.num_identities > 1 and check.identity[face] >= 0),
        ("low quality", check.poor[face]),
    )
    return _Face(
        number=offset + face,
        name=name,
        short=name if len(name) <= _LONGEST_NAME else f"{name[:2]}…{name[-9:]}",
        pick=_pick(aggregated, face),
        norm=f"{aggregated.norms[face]:.1f}",
        weight=weight,
        bar=bar,
        flags=[text for text, is_set in flags if is_set],
    )


def _pick(aggregated: AggregatedSet, face: int) -> int:
    """The number of a face among the selected ones, from 1; 0 if it was not selected."""
    return next((number for number, pick in enumerate(aggregated.picks, start=1) if pick == face), 0)


def _details(aggregated: AggregatedSet, check: EnrolmentCheck, face: int) -> dict[str, object]:
    """Content of the dialog of a face."""
    record = aggregated.faces[face]
    return {
        "image": base64.b64encode(record.thumbnail).decode(),
        "name": record.name,
        "facts": [*_check_facts(aggregated, check, face), *_photo_facts(record)],
    }


def _check_facts(aggregated: AggregatedSet, check: EnrolmentCheck, face: int) -> Iterator[tuple[str, str]]:
    if len(aggregated.picks):
        pick = _pick(aggregated, face)
        yield "Selected", f"as number {pick}" if pick else "no"
    if aggregated.weights is not None:
        yield "Weight", f"{_percent(float(aggregated.weights[face]))} of the descriptor"
    yield "Norm (quality)", f"{aggregated.norms[face]:.2f}" + (", low" if check.poor[face] else "")
    if not math.isnan(check.similarity[face]):
        yield "Similarity to the rest", f"{check.similarity[face]:.2f}"
    if not math.isnan(check.outlier_prob[face]):
        yield "Outlier probability", f"{check.outlier_prob[face]:.2f}"
    if not math.isnan(check.shift[face]):
        yield "Effect", f"without it the descriptor moves by {check.shift[face]:.4f} (1 - cosine)"
    if check.num_identities > 1:
        identity = check.identity[face]
        yield "Identity", f"{identity + 1} of {check.num_identities}" if identity >= 0 else "none"
    if check.group[face] >= 0:
        yield "Near-duplicates", f"{int((check.group == check.group[face]).sum()) - 1} more"


def _photo_facts(record: FaceRecord) -> Iterator[tuple[str, str]]:
    if record.choice is not None:
        reason = "it agrees with the rest" if record.choice.agrees else "it is the largest"
        yield "Several faces", f"{choice_text(record)} was used: {reason}"
    if record.size is not None and record.score is not None:
        yield "In the photo", f"{record.size:.0f} pixels high, detection score {record.score:.2f}"
    if record.rotation:
        yield "Rotated", f"by {record.rotation} degrees clockwise; the photo is not upright"
    measures = record.measures
    if measures is None:
        return
    if not math.isnan(measures.yaw):
        side = "left" if measures.yaw < 0 else "right"
        height = "down" if measures.pitch < 0 else "up"
        yield "Pose", f"{abs(measures.yaw):.0f} degrees to the {side}, {abs(measures.pitch):.0f} {height}"
    yield "Sharpness", f"{measures.sharpness:.2f}"
    yield "Brightness", f"{measures.brightness:.0f} of 255, contrast {measures.contrast:.0f}"


def _percent(share: float) -> str:
    if 0 < share < 0.001:
        return "<0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")

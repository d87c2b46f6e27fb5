"""descriptors.json and the terminal's advice: what is known of each set and face, for people and programs.

The numbers of the descriptors themselves stand in descriptors.npz, in the same order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from recognition.enrolment.checks import EnrolmentCheck
from recognition.enrolment.quality_feedback import Advice, num_units
from recognition.model import FaceModel
from recognition.sets import DescribedSet, EmptySet
from runtime.files import atomic_write

SCHEMA = 2
# A person reads so many sets in a terminal; the files have all.
_SETS_SHOWN = 20
_DIGITS = 4


def write_summary(
    path: Path,
    model: FaceModel,
    sets: Sequence[DescribedSet],
    empty: Sequence[EmptySet],
    checks: Sequence[EnrolmentCheck],
    advice: Sequence[Sequence[Advice]],
) -> None:
    """Writes descriptors.json.

    {"schema": 2, "fingerprint": ..., "about": ..., "empty": [...], "sets": [{"name", "faces": T, "units",
    "norm", "picks", "identities": [[...], ...], "advice": [{"topic", "text", "faces": [...]}],
    "details": [{"name", "norm", "weight", "identity", "doubt", "choice", "size", "yaw", ...}, ...],
    "rejected": [{"name", "reason"}]}, ...]}. Faces and identities are numbered from 0; "identities" holds the
    faces of each person that the set may show; a number that is not known is null.

    Args:
        path: of the file.
        model: that described the sets.
        sets: B of them.
        empty: without any face.
        checks: one a set.
        advice: one list a set.
    """
    content = {
        "schema": SCHEMA,
        "fingerprint": model.fingerprint,
        "about": model.about,
        "sets": [_set(*each) for each in zip(sets, checks, advice, strict=True)],
        "empty": [{"name": each.name, "rejected": _rejected(each)} for each in empty],
    }
    atomic_write(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def advice_text(
    sets: Sequence[DescribedSet], advice: Sequence[Sequence[Advice]], *, all_in: str = "report.html"
) -> str:
    """What would help each set most, for the terminal; `all_in`: what shows the sets that are left out."""
    told = [(each.name, found) for each, found in zip(sets, advice, strict=True) if found]
    if not told:
        return "advice: none, the sets are ready to be enrolled."
    lines = ["what would help most:"]
    for name, found in told[:_SETS_SHOWN]:
        lines.append(f"  {name}")
        lines += [f"    - {each.text}" for each in found]
    if len(told) > _SETS_SHOWN:
        lines.append(f"  ... and {len(told) - _SETS_SHOWN:,} more sets, which {all_in} shows.")
    return "\n".join(lines)


def _set(described: DescribedSet, check: EnrolmentCheck, advice: Sequence[Advice]) -> dict[str, Any]:
    return {
        "name": described.name,
        "faces": len(described.faces),
        "units": num_units(described, check),
        "norm": _number(described.norm),
        "picks": described.picks.tolist(),
        "identities": [
            np.flatnonzero(check.identity == number).tolist() for number in range(check.num_identities)
        ],
        "advice": [
            {"topic": each.topic.value, "text": each.text, "faces": list(each.faces)} for each in advice
        ],
        "details": [_face(described, check, face) for face in range(len(described.faces))],
        "rejected": _rejected(described),
    }


def _face(described: DescribedSet, check: EnrolmentCheck, face: int) -> dict[str, Any]:
    record = described.faces[face]
    measures = record.measures
    numbers = {
        "norm": described.norms[face],
        "weight": None if described.weights is None else described.weights[face],
        "similarity": check.similarity[face],
        "doubt": check.doubt[face],
        "shift": check.shift[face],
        "size": record.size,
        "score": record.score,
        "yaw": None if measures is None else measures.yaw,
        "pitch": None if measures is None else measures.pitch,
        "sharpness": None if measures is None else measures.sharpness,
        "brightness": None if measures is None else measures.brightness,
        "contrast": None if measures is None else measures.contrast,
        "side_light": None if measures is None else measures.side_light,
    }
    return {
        "name": record.name,
        "medium": record.medium,
        "turned": record.turned,
        "group": int(check.group[face]) if check.group[face] >= 0 else None,
        "stranger": bool(check.stranger[face]),
        "identity": int(check.identity[face]) if check.identity[face] >= 0 else None,
        "poor": bool(check.poor[face]),
        "choice": None if record.choice is None else asdict(record.choice),
        **{name: _number(value) for name, value in numbers.items()},
    }


def _rejected(each: DescribedSet | EmptySet) -> list[dict[str, str]]:
    return [{"name": one.name, "reason": one.reason} for one in each.rejected]


def _number(value: float | None) -> float | None:
    """Rounded; None for what is not known, as JSON has no NaN."""
    return None if value is None or not math.isfinite(value) else round(float(value), _DIGITS)

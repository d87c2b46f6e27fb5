"""Findings of a run on each set and face, and their file descriptors.json.

The descriptors themselves are in descriptors.npz, in the same order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recognition.calibration.decisions import Decisions
from recognition.enrolment.checks import EnrolmentCheck
from recognition.enrolment.quality_feedback import Feedback, num_samples
from recognition.model import FaceModel
from recognition.records import AggregatedSet, EmptySet
from runtime.files import atomic_write

SCHEMA = 3
_DIGITS = 4
_MEASURES = ("yaw", "pitch", "sharpness", "brightness", "contrast", "side_light")


@dataclass(frozen=True, eq=False)
class InferenceReport:
    """The sets of a run, with one check and one list of feedback per set.

    Attributes:
        model: that aggregated the sets.
        sets: B sets.
        empty: sets without a usable face.
        matrix: (B, B) cosines.
        checks: B checks.
        feedback: B lists.
        decisions: (B, B), with a calibration.
    """

    model: FaceModel
    sets: Sequence[AggregatedSet]
    empty: Sequence[EmptySet]
    matrix: NDArray[np.float32]
    checks: Sequence[EnrolmentCheck]
    feedback: Sequence[Sequence[Feedback]]
    decisions: Decisions | None = None


def write_summary(path: Path, report: InferenceReport) -> None:
    """Write descriptors.json.

    {"schema": 3, "fingerprint": ..., "about": ..., "empty": [...], "sets": [{"name", "faces": T, "samples",
    "norm", "picks", "identities": [[...], ...], "feedback": [{"topic", "text", "faces": [...]}],
    "details": [{"name", "norm", "weight", "identity", "outlier_prob", "choice", "size", "yaw", ...}, ...],
    "rejected": [{"name", "reason"}]}, ...]}. Faces and identities are numbered from 0; "identities" lists the
    faces of each identity that the set may show; unknown numbers are null.
    """
    content = {
        "schema": SCHEMA,
        "fingerprint": report.model.fingerprint,
        "about": report.model.about,
        "sets": [_set(*each) for each in zip(report.sets, report.checks, report.feedback, strict=True)],
        "empty": [{"name": each.name, "rejected": _rejected(each)} for each in report.empty],
    }
    atomic_write(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def _set(aggregated: AggregatedSet, check: EnrolmentCheck, feedback: Sequence[Feedback]) -> dict[str, Any]:
    return {
        "name": aggregated.name,
        "faces": len(aggregated.faces),
        "samples": num_samples(aggregated, check),
        "norm": _number(aggregated.norm),
        "picks": aggregated.picks.tolist(),
        "identities": [
            np.flatnonzero(check.identity == number).tolist() for number in range(check.num_identities)
        ],
        "feedback": [
            {"topic": each.topic.value, "text": each.text, "faces": list(each.faces)} for each in feedback
        ],
        "details": [_face(aggregated, check, face) for face in range(len(aggregated.faces))],
        "rejected": _rejected(aggregated),
    }


def _face(aggregated: AggregatedSet, check: EnrolmentCheck, face: int) -> dict[str, Any]:
    record = aggregated.faces[face]
    numbers = {
        "norm": aggregated.norms[face],
        "weight": None if aggregated.weights is None else aggregated.weights[face],
        "similarity": check.similarity[face],
        "outlier_prob": check.outlier_prob[face],
        "shift": check.shift[face],
        "size": record.size,
        "score": record.score,
        **{name: None if record.measures is None else getattr(record.measures, name) for name in _MEASURES},
    }
    return {
        "name": record.name,
        "medium": record.medium,
        "rotation": record.rotation,
        "group": int(check.group[face]) if check.group[face] >= 0 else None,
        "outlier": bool(check.outlier[face]),
        "identity": int(check.identity[face]) if check.identity[face] >= 0 else None,
        "poor": bool(check.poor[face]),
        "choice": None if record.choice is None else asdict(record.choice),
        **{name: _number(value) for name, value in numbers.items()},
    }


def _rejected(each: AggregatedSet | EmptySet) -> list[dict[str, str]]:
    return [{"name": one.name, "reason": one.reason} for one in each.rejected]


def _number(value: float | None) -> float | None:
    """Rounded; None if not known, as JSON has no NaN."""
    return None if value is None or not math.isfinite(value) else round(float(value), _DIGITS)

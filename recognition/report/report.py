"""Content of a report on B sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recognition.calibration.decisions import Decisions
from recognition.enrolment.checks import EnrolmentCheck
from recognition.enrolment.quality_feedback import Feedback
from recognition.model import FaceModel
from recognition.records import AggregatedSet, EmptySet


@dataclass(frozen=True, eq=False)
class Report:
    """The sets of a run, with one check and one list of feedback per set.

    Attributes:
        model: that aggregated the sets.
        sets: B sets.
        empty: sets without a usable face.
        matrix: (B, B) cosines.
        checks: B checks.
        feedback: B lists.
        decisions: (B, B), with a calibration.
        title: of the page.
    """

    model: FaceModel
    sets: Sequence[AggregatedSet]
    empty: Sequence[EmptySet]
    matrix: NDArray[np.float32]
    checks: Sequence[EnrolmentCheck]
    feedback: Sequence[Sequence[Feedback]]
    decisions: Decisions | None = None
    title: str = "From faces to one descriptor"

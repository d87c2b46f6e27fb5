"""Enrolment of described sets in a gallery, after a check that each set shows one person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recognition.enrolment.checks import EnrolmentCheck, check_sets
from recognition.enrolment.limits import EnrolmentLimits
from recognition.enrolment.quality_feedback import CONTAMINATION, Feedback, quality_feedback
from recognition.gallery.contents import Gallery
from recognition.gallery.store import enroll, open_gallery
from recognition.model import FaceModel
from recognition.records import AggregatedSet
from runtime.errors import InputError


def enroll_sets(
    path: Path,
    model: FaceModel,
    sets: Sequence[AggregatedSet],
    reading: Mapping[str, str],
    limits: EnrolmentLimits | None = None,
    *,
    replace: bool = False,
    force: bool = False,
) -> tuple[list[list[Feedback]], int]:
    """Check sets and add them to a gallery in one transaction, each as a subject under its name.

    Args:
        path: of the gallery, which is created if needed.
        model: that described the sets.
        sets: one or more.
        reading: from `recognition.preprocessing.preprocessing_of`.
        limits: of the checks.
        replace: whether subjects of the same names are replaced.
        force: whether sets that may show more than one person are enrolled too.

    Returns:
        The quality feedback on each set, and how many subjects the gallery holds then.

    Raises:
        InputError: sets that may show more than one person, or as `recognition.gallery.store.enroll`; no set
            was enrolled then.
    """
    # The enrolled are looked at where the weights are not measured alone (`BackboneSpec.unmeasured_warning`).
    others = None
    if path.exists() and not model.spec.is_measured:
        enrolled = open_gallery(path)
        enrolled.info.check_model(path, model.fingerprint)
        others = enrolled.descriptors if len(enrolled) else None
    checks = check_sets(model, sets, limits or EnrolmentLimits(), others=others, leave_out=False)
    advice = [quality_feedback(each, check) for each, check in zip(sets, checks, strict=True)]
    if not force:
        _refuse_contaminated(sets, checks, advice)
    subjects = Gallery(
        tuple(each.name for each in sets),
        descriptors_of(sets),
        np.array([each.norm for each in sets], np.float32),
        tuple(tuple(each.files) for each in sets),
        model.fingerprint,
        reading,
    )
    return advice, enroll(path, subjects, replace=replace)


def descriptors_of(sets: Sequence[AggregatedSet]) -> NDArray[np.float32]:
    """(B, D) descriptors of B sets."""
    return np.stack([each.embedding for each in sets]).astype(np.float32) if sets else np.empty((0, 0), "f4")


def _refuse_contaminated(
    sets: Sequence[AggregatedSet], checks: Sequence[EnrolmentCheck], advice: Sequence[Sequence[Feedback]]
) -> None:
    """Raise InputError with all sets that may show more than one person."""
    faults = [
        f"  {each.name}: {one.text}"
        for each, check, found in zip(sets, checks, advice, strict=True)
        for one in found
        if check.is_contaminated and one.topic in CONTAMINATION
    ]
    if faults:
        raise InputError.from_faults(
            [
                f"{len(faults):,} of {len(sets):,} sets may show more than one person. Nothing was enrolled. "
                "Correct these sets, or enroll them as they are with --force:",
                *faults,
            ]
        )

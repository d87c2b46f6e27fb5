"""main.py --dry_run: the labels that a run would be trained with, checked by the features it starts from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.checks.label_noise import LabelLimits, check_labels
from data.checks.label_noise_report import CheckedFaces, findings_text, write_report
from data.sources.face_source import FaceSource
from features.bank import FeatureBank
from runs.components import Run

FOLDER = "label_check"


def faces_of_bank(bank: FeatureBank, source: FaceSource | None) -> CheckedFaces:
    """The images of a bank by their plain view, or by the mean of their rows where there are no views.

    `source`: of the same images, in the bank's order; None where only features are there.
    """
    rows = bank.values(bank.starts).float().numpy()
    if bank.plan is None:
        rows = np.stack(
            [
                bank.values(np.arange(start, start + length)).float().mean(dim=0).numpy()
                for start, length in zip(bank.starts.tolist(), bank.lengths.tolist(), strict=True)
            ]
        )
    rows /= np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-6)

    def name(image: int) -> str:
        if source is not None:
            return source.describe(image)
        return f"image {image} of subject {bank.subjects[int(bank.labels[image])]}"

    return CheckedFaces(rows, bank.labels, bank.subjects, name, None if source is None else source.image)


def checked_labels(run: Run, out: Path) -> str:
    """Checks what the run would be trained on, writes the findings below `out`, and says them in words."""
    if run.faces is None:
        return (
            "labels   are not checked: that takes the weights of a backbone. Give some by "
            "--start_from_model_statedict."
        )
    faces = run.faces()
    spec = run.module.model.spec
    if why := spec.unmeasured_warning(faces.features, faces.labels):
        return f"labels   are not checked: {why}."
    findings = check_labels(faces.features, faces.labels, LabelLimits.of(spec))
    written = write_report(out / FOLDER, faces, findings)
    text = findings_text(findings, len(faces.subjects), len(faces.labels))
    return f"{text}\nthe lists are in {out / FOLDER}: {', '.join(written)}"

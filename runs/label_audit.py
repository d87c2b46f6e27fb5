"""Label audit of main.py --dry_run: training labels checked by features of the backbone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.checks.label_noise import LabelLimits, check_labels
from data.checks.label_noise_report import CheckedFaces, findings_text, write_report
from data.sources.face_source import FaceSource
from features.bank import FeatureBank
from runs.components import Run
from runtime.rows import unit_rows

FOLDER = "label_check"


def faces_of_bank(bank: FeatureBank, source: FaceSource | None) -> CheckedFaces:
    """The images of a bank: features of the plain view, or the mean of their rows where there are no views.

    `source`: the same images in the bank's order; None where there are only features.
    """
    rows = bank.values(bank.starts).float().numpy()
    if bank.plan is None:
        rows = np.stack(
            [
                bank.values(np.arange(start, start + length)).float().mean(dim=0).numpy()
                for start, length in zip(bank.starts.tolist(), bank.lengths.tolist(), strict=True)
            ]
        )
    rows = unit_rows(rows, 1e-6)

    def name(image: int) -> str:
        if source is not None:
            return source.describe(image)
        return f"image {image} of subject {bank.subjects[int(bank.labels[image])]}"

    return CheckedFaces(rows, bank.labels, bank.subjects, name, None if source is None else source.image)


def audit_labels(run: Run, out: Path) -> str:
    """Check the labels of a run, write the findings below `out`, and return them as text."""
    if run.faces is None:
        return (
            "labels   are not checked: this needs the weights of a backbone. Give them with "
            "--start_from_model_statedict."
        )
    faces = run.faces()
    spec = run.module.model.spec
    if why := spec.unmeasured_warning(faces.features, faces.labels):
        return f"labels   are not checked: {why}."
    findings = check_labels(faces.features, faces.labels, LabelLimits.of(spec))
    written = write_report(out / FOLDER, faces, findings)
    text = findings_text(findings, len(faces.subjects), len(faces.labels))
    return f"{text}\nlists are in {out / FOLDER}: {', '.join(written)}"

from __future__ import annotations

import numpy as np
import pytest

from backbones.spec import BackboneSpec
from benchmarks.studies import identities


def test_mixes_are_found_and_sets_of_one_person_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of 24 subjects with cosine 0.5 within, about 0 between; the degraded ones are short noise."""
    for name, value in {"MIXES": 8, "CLEAN_SETS": 8, "LARGEST_CLEAN_SET": 6, "PHOTOS": (2, 3, 4)}.items():
        monkeypatch.setattr(identities, name, value)
    rng = np.random.default_rng(0)
    subject = np.repeat(np.arange(24), 6)
    rows = rng.normal(size=(24, 128))[subject] + rng.normal(size=(144, 128))
    features = np.stack([rows, rng.normal(size=(144, 128))])
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    norms = np.stack([np.full(144, 10.0), np.full(144, 3.0)])
    spec = BackboneSpec("test", 128, "RGB", 127.5, 128.0, norm_is_quality=True)
    faces = identities.Faces(features.astype(np.float32), norms.astype(np.float32), subject, spec)
    lines = identities.measure(faces, "Tested.").splitlines()
    table = [line for line in lines if line.startswith(("| 2 ", "| 3 ", "| 4 ", "| 5 ", "| 6 "))]
    assert len(table) == 5
    assert all(line.count("100.0 (100.0)") == 3 for line in table)
    clean = [line.split("|")[3].strip() for line in lines if "photos | 8 |" in line]
    assert clean == ["0.00"] * 3

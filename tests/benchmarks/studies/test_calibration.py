"""Thresholds of one half of a benchmark's subjects, looked at on the other."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies import calibration as calibration_check
from evaluation.metrics.thresholds import threshold_at
from runtime.errors import InputError
from tests.ijb_layout import Dataset, write_dataset

D = 16


@pytest.fixture
def args(tmp_path: Path) -> Namespace:
    data: Dataset = write_dataset(tmp_path / "sets", subjects=60, images=False)
    rng = np.random.default_rng(0)
    of_subject = {subject: rng.standard_normal(D) for subject in sorted(set(data.subject_of.values()))}
    faces = np.stack([of_subject[data.subject_of[template]] for _, template, _ in data.faces])
    faces += 1.2 * rng.standard_normal(faces.shape)
    folder = tmp_path / "features"
    folder.mkdir()
    np.save(
        folder / "features.npy", (faces / np.linalg.norm(faces, axis=1, keepdims=True)).astype(np.float32)
    )
    np.save(folder / "norms.npy", rng.uniform(5, 20, len(faces)).astype(np.float32))
    return Namespace(
        data_root=data.root, dataset_name=data.name, features=folder, aggregator="norm_weighted", splits=2
    )


def test_every_halving_is_looked_at_both_ways_round(
    args: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    calibration_check.check(args)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "TINY, norm_weighted: 60 subjects, 240 templates"
    assert [line.split()[0] for line in lines if " 1e-01 " in line] == ["0a", "0b", "1a", "1b"]
    assert sum("refused" in line for line in lines if " 1e-03 " in line) == 4
    assert lines[-1].startswith("inside the interval: FMR ")


def test_rates_are_those_of_the_other_people() -> None:
    rng = np.random.default_rng(1)
    subjects = np.repeat(np.arange(40), 3)
    rows = rng.standard_normal((40, D))[subjects] + rng.standard_normal((120, D))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    here, there = (
        calibration_check._pairs(rows, subjects, np.ones(120, np.int64), half)
        for half in (np.arange(20), np.arange(20, 40))
    )
    assert len(here.scores) == len(there.scores) == 60 * 59 // 2
    threshold = threshold_at(here.scores[~here.is_mated], 0.1)
    false = [
        rows[one] @ rows[two] >= threshold
        for one in range(60, 120)
        for two in range(one + 1, 120)
        if subjects[one] != subjects[two]
    ]
    assert (there.scores[~there.is_mated] >= threshold).mean() == pytest.approx(np.mean(false))


def test_features_of_other_faces_are_refused(args: Namespace) -> None:
    norms = np.load(args.features / "norms.npy")
    np.save(args.features / "norms.npy", norms[:-1])
    np.save(args.features / "features.npy", np.load(args.features / "features.npy")[:-1])
    with pytest.raises(InputError, match="images, and TINY has"):
        calibration_check.check(args)
    with pytest.raises(InputError, match="--splits 0"):
        calibration_check.check(Namespace(**vars(args) | {"splits": 0}))

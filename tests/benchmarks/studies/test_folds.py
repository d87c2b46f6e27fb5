"""Several folds of subjects in one table: means, intervals of independent draws, and what does not belong."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.studies import folds as fold_study
from benchmarks.studies.tables import FARS, pooled_difference
from evaluation.metrics.verification import rate_key
from runtime.errors import InputError

REPLICATES = 400


def write_row(out: Path, name: str, seed: int, tar: float, noise: np.ndarray, **made: Any) -> None:
    """One as benchmarks/studies/baselines.py leaves it; its draws are its rate and some noise."""
    row = {
        **{"name": name, "seed": seed, "options": {}, "preset": "good", "train_seconds": 1.0},
        **{"train_cpu_seconds": 1.0, "command": f"train {name}", "rank1": tar, "tpir": None, "parameters": 1},
        "tar": {rate_key(far): tar for far in FARS},
        "drawn": [[tar + each] * len(FARS) for each in noise.tolist()],
        "templates_per_second": 1.0,
        "made_with": {"evaluation": {"name": out.parent.name}, "replicates": REPLICATES, "steps": 10} | made,
    }
    (out / "rows").mkdir(parents=True, exist_ok=True)
    (out / "rows" / f"{name}-seed{seed}.json").write_text(json.dumps(row))


def folds(root: Path) -> list[list[Path]]:
    """Four folds: ours 0.80 and 0.82, the baseline 0.78, with a noise of its own of one point in each."""
    found = []
    for number in range(4):
        ours, others = root / f"{number}" / "ours", root / f"{number}" / "others"
        # One seed for all, as the draws of subjects have.
        common, own = np.random.default_rng(0).normal(0, 0.01, (2, REPLICATES))
        write_row(ours, "weighted_coreset", 0, 0.80, common)
        write_row(ours, "weighted_coreset", 1, 0.82, common)
        write_row(others, "baseline", 0, 0.78, common + own)
        write_row(others, "baseline", 1, 0.78, common + own)
        found.append([ours, others])
    return found


def test_means_over_folds_and_narrower_intervals(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = folds(tmp_path)
    fold_study.compare(Namespace(fold=found, reference="weighted_coreset", out=tmp_path / "out"))
    text = (tmp_path / "out" / "folds.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    baseline = next(line for line in text.splitlines() if line.startswith("| baseline, others"))
    cells = [cell.strip() for cell in baseline.split("|")][1:-1]
    assert cells[1:7] == ["2", "78.0", "78.0", "78.0", "78.0", "-"]
    assert cells[7].startswith("-3.0 [")
    assert cells[7].endswith("(-3.0, -3.0, -3.0, -3.0)")
    assert "- fold 3: name 2" in text
    assert "- baseline, others: `train baseline`" in text
    widths = []
    for used in (found[:1], found):
        rows = [fold_study.read_fold(each)[0] for each in used]
        pairs = [(each["baseline, others"], each["weighted_coreset"]) for each in rows]
        difference = pooled_difference(pairs, 1e-2)
        widths.append(difference.high - difference.low)
    # Four independent folds halve the interval; draws that go together would leave it as it is.
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.2)


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    found = folds(tmp_path)
    write_row(found[1][1], "another", 0, 0.5, np.zeros(REPLICATES))
    flags = {"reference": "weighted_coreset", "out": tmp_path / "out"}
    with pytest.raises(InputError, match="aggregators and seeds differ"):
        fold_study.compare(Namespace(fold=found, **flags))
    with pytest.raises(InputError, match="holds no rows"):
        fold_study.compare(Namespace(fold=[[tmp_path / "nowhere"]], **flags))
    with pytest.raises(InputError, match="--reference coreset: rows are weighted_coreset"):
        fold_study.compare(Namespace(fold=found[:1], **(flags | {"reference": "coreset"})))
    write_row(found[0][0], "late", 0, 0.5, np.zeros(REPLICATES), steps=20)
    with pytest.raises(InputError, match="--fold"):
        fold_study.compare(Namespace(fold=found, **flags))

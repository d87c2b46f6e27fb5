from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from evaluation.metrics.score_normalisation import METHODS
from recognition.calibration.thresholds import encoded, read_calibration
from runtime.errors import InputError, InputWarning
from runtime.json_files import json_text

MINE = "a" * 64
NORMALISATION: dict[str, object] = {"method": "local_scaling", "people": 4, "values": 2, "top": 2}
NORMALISATION["descriptors"] = encoded(np.eye(4, 2, dtype=np.float32) + 1)


def written(folder: Path, **changes: object) -> Path:
    content: dict[str, object] = {
        "schema": 1,
        "fingerprint": MINE,
        "thresholds": {"1e-02": {"threshold": 0.3, "interval95": [0.2, 0.4]}, "1e-03": {"threshold": 0.4}},
        "made_by": "a later tool",
    }
    path = folder / "calibration.json"
    path.write_text(json.dumps(content | changes))
    return path


def test_a_rate_is_found_in_any_notation(tmp_path: Path) -> None:
    path = written(tmp_path)
    for text in ("1e-02", "0.01", "1e-2"):
        assert read_calibration(path, MINE, text).fmr == "1e-02"
    found = read_calibration(path, MINE)
    assert found.fmr == "1e-03"
    assert {rate: each.value for rate, each in found.everything.thresholds.items()} == {
        "1e-02": 0.3,
        "1e-03": 0.4,
    }


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another model"):
        read_calibration(written(tmp_path), "b" * 64, "1e-02")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": 2}, "schema"),
        ({"thresholds": {}}, "no thresholds"),
        ({"thresholds": {"often": {"threshold": 0.1}}}, "often"),
        ({"thresholds": {"1e-02": 0.1}}, "1e-02"),
        ({"thresholds": {"1e-02": {"threshold": "high"}}}, "1e-02"),
        ({"thresholds": {"1e-02": {"threshold": float("nan")}}}, "NaN"),
    ],
)
def test_invalid_files_name_the_fault(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read_calibration(written(tmp_path, **changes), MINE)


def test_a_missing_rate_lists_the_available_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are 1e-02, 1e-03"):
        read_calibration(written(tmp_path), MINE, "1e-06")
    with pytest.raises(InputError, match="seldom"):
        read_calibration(written(tmp_path), MINE, "seldom")


def test_missing_files_and_other_formats_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.json"):
        read_calibration(tmp_path / "gone.json", MINE)
    (tmp_path / "c.json").write_text("threshold: 0.3")
    with pytest.raises(InputError, match="JSON"):
        read_calibration(tmp_path / "c.json", MINE)


def stored_cohort(**changes: object) -> dict[str, object]:
    rows = np.random.default_rng(0).normal(size=(24, 8)).astype(np.float32)
    return {"top": 12, "people": 24, "values": 8, "descriptors": encoded(rows)} | changes


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_normalised_by_the_method_of_the_file(tmp_path: Path, method: str) -> None:
    found = read_calibration(written(tmp_path, normalisation=stored_cohort(method=method)), MINE)
    assert found.normalisation is not None
    assert (found.normalisation.method, found.normalisation.top) == (method, 12)
    rows = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    first, second = found.normalisation.sides(rows.astype(np.float64))
    assert np.array_equal(found.compared(rows @ rows.T, rows, rows), first @ second.T)


@pytest.mark.parametrize("stored", [{"method": "z_norm"}, {}, {"method": "as_norm", "top": 1}])
def test_another_method_or_a_damaged_cohort_is_refused(tmp_path: Path, stored: dict[str, object]) -> None:
    path = written(tmp_path, normalisation=stored_cohort(**stored))
    with pytest.raises(InputError, match="normalisation"):
        read_calibration(path, MINE)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"curve": {"fmr": [10**400], "score": [0.1]}}, "digits"),
        ({"thresholds": {"1e-02": {"threshold": 0.3, "interval95": [10**400, 1]}}}, "digits"),
        ({"normalisation": []}, "normalisation"),
        ({"normalisation": {"method": "local_scaling"}}, "normalisation"),
        *(
            ({"normalisation": NORMALISATION | change}, "normalisation")
            for change in (
                {"people": -1},
                {"people": "4"},
                {"values": 3},
                {"top": 5},
                {"top": 1.5},
                {"descriptors": "@"},
                {"descriptors": encoded(np.zeros((4, 2), np.float32))},
                {"descriptors": encoded(np.full((4, 2), np.nan, np.float32))},
                {"method": "other"},
            )
        ),
    ],
    ids=str,
)
def test_invalid_values_are_reported(tmp_path: Path, changes: dict[str, object], place: str) -> None:
    with pytest.raises(InputError, match=f"{place}"):
        read_calibration(written(tmp_path, **changes), MINE)


def test_a_changed_calibration_is_reported(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.warns(InputWarning, match="checksum"):
        read_calibration(path, MINE)
    path.write_text(json_text(json.loads(path.read_text())))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_calibration(path, MINE, "1e-02").fmr == "1e-02"
    path.write_text(path.read_text().replace("0.3", "0.2"))
    with pytest.raises(InputError, match=r"calibration\.json.*checksum"):
        read_calibration(path, MINE)

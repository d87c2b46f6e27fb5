"""result.json, tables and plots of evaluations."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from evaluation.metrics.identification import TpirAtFpir, cmc, tpir_curve
from evaluation.metrics.search import search_similarity
from evaluation.metrics.verification import RocCurve, TarAtFar, roc_curve
from evaluation.reporting import plots
from evaluation.reporting.plots import plot_cmc, plot_det, plot_identification, plot_roc
from evaluation.reporting.report import (
    check_result,
    closed_section,
    identification_table,
    open_section,
    percent,
    protocol_text,
    read_result,
    verification_section,
    verification_table,
    write_result,
)
from runtime import files
from runtime.errors import InputError

pytestmark = pytest.mark.plots


@pytest.fixture
def result() -> dict[str, Any]:
    rates = {"1e-04": TarAtFar(0.92417, 0.92422, 0.28, 1563), "1e-01": TarAtFar(0.99617, 1.0, 0.1, 156_000)}
    tpir = {"0.01": TpirAtFpir(0.875, 0.3, 97)}
    return {
        "schema": 1,
        "protocol": {"name": "IJBC", "rules": {"flip": "not used", "media": "mean"}},
        "model": {"backbone": "ir_101", "aggregator": "coreset", "weights_sha256": "ab"},
        "data": {"images": 469_375, "templates": 23_124, "pairs": 15_658_489, "genuine": 19_557},
        "verification": verification_section(rates, 0.99838, {"1e-04": (0.919, 0.9282), "1e-01": (0.99, 1)}),
        "identification": {
            "closed": {
                "gallery1": closed_section({"1": 0.94, "5": 0.97}, {"1": (0.93, 0.95), "5": (0.96, 0.98)}),
                "gallery2": closed_section({"1": 0.96, "5": 0.98}),
            },
            "open": {"gallery1": open_section(tpir, {"0.01": (0.86, 0.89)}), "gallery2": open_section(tpir)},
        },
        "seconds": {"score": 1.5},
        "peak_rss_mib": 900,
        "command": "validate_ijb.py",
        "versions": {"numpy": "2.4"},
    }


def test_a_result_is_read_as_it_was_written(result: dict[str, Any], tmp_path: Path) -> None:
    path = write_result(tmp_path / "out", result)
    assert path == tmp_path / "out" / "result.json"
    assert read_result(path) == read_result(path.parent) == result
    assert json.loads(path.read_text())["verification"]["tar_at_far"]["1e-04"] == {
        "strict": 0.92417,
        "nearest": 0.92422,
        "threshold": 0.28,
        "interval95": [0.919, 0.9282],
        "nonmated_above": 1563,
    }


@pytest.mark.parametrize(
    "place",
    [
        ("schema",),
        ("protocol",),
        ("protocol", "rules"),
        ("model", "weights_sha256"),
        ("seconds",),
        ("versions",),
        ("verification", "auc"),
        ("verification", "tar_at_far", "1e-04", "nonmated_above"),
        ("identification", "closed"),
        ("identification", "closed", "gallery2", "cmc"),
        ("identification", "open", "gallery1", "tpir_at_fpir"),
        ("identification", "open", "gallery1", "tpir_at_fpir", "0.01", "tpir"),
    ],
)
def test_a_missing_key_is_named(result: dict[str, Any], place: tuple[str, ...], tmp_path: Path) -> None:
    part = result
    for key in place[:-1]:
        part = part[key]
    del part[place[-1]]
    with pytest.raises(InputError, match=rf"{re.escape('.'.join(place))}: "):
        write_result(tmp_path, result)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    "place",
    [
        ("protocol",),
        ("protocol", "rules"),
        ("model",),
        ("data",),
        ("versions",),
        ("verification",),
        ("verification", "tar_at_far"),
        ("verification", "tar_at_far", "1e-04"),
        ("identification",),
        ("identification", "closed", "gallery2"),
        ("identification", "closed", "gallery2", "cmc"),
        ("identification", "open"),
        ("identification", "open", "gallery1", "tpir_at_fpir", "0.01"),
    ],
)
@pytest.mark.parametrize("value", ["text", 3, None, []])
def test_a_plain_value_in_place_of_an_object_is_named(
    result: dict[str, Any], place: tuple[str, ...], value: object
) -> None:
    part = result
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    with pytest.raises(InputError, match=rf"here: {re.escape('.'.join(place))}: "):
        check_result(result, "here")


def test_what_json_cannot_say_is_not_written(result: dict[str, Any], tmp_path: Path) -> None:
    result["seconds"]["score"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write_result(tmp_path, result)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_object_lacks_its_keys(result: dict[str, Any]) -> None:
    result["model"] = {}
    with pytest.raises(InputError, match=r"model\."):
        check_result(result, "here")


@pytest.mark.parametrize("rate", [92.4, -0.1, float("nan"), None, "0.9"])
def test_a_rate_that_is_no_fraction_is_refused(result: dict[str, Any], rate: object) -> None:
    for change in (
        lambda r: r["verification"]["tar_at_far"]["1e-04"].update(nearest=rate),
        lambda r: r["identification"]["closed"]["gallery1"]["cmc"].update({"1": rate}),
        lambda r: r["identification"]["open"]["gallery1"]["tpir_at_fpir"]["0.01"].update(tpir=rate),
        lambda r: r.update(figures={"rank 1": rate}),
    ):
        broken = copy.deepcopy(result)
        change(broken)
        with pytest.raises(InputError, match="here: "):
            check_result(broken, "here")


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"schema": 2}', '{"verification": 3, "model": []}', "\x00"]
)
def test_a_file_that_is_no_result_is_refused_with_its_name(content: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"result\.json"):
        read_result(path)
    with pytest.raises(InputError, match="no such file"):
        read_result(tmp_path / "elsewhere.json")


def test_a_failed_write_leaves_the_old_result(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_result(tmp_path, result).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_result(tmp_path, result | {"command": "another"})
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert (tmp_path / "result.json").read_bytes() == before


def test_the_verification_table_says_strict_with_its_interval_and_nearest(result: dict[str, Any]) -> None:
    other = copy.deepcopy(result)
    del other["verification"]["tar_at_far"]["1e-01"]
    for rate in other["verification"]["tar_at_far"].values():
        rate["interval95"] = None
    lines = verification_table({"coreset": result, "mean": other}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["TAR@FAR, %", "rule", "1e-04", "1e-01", "AUC"]
    assert cells[2] == ["coreset", "strict", "92.42 [91.90, 92.82]", "99.62 [99.00, 100.00]", "99.84"]
    assert cells[3] == ["", "nearest", "92.42", "100.00", ""]
    assert cells[4] == ["mean", "strict", "92.42", "-", "99.84"]
    assert len({len(line) for line in lines}) == 1


def test_the_identification_table_has_each_gallery_and_the_mean(result: dict[str, Any]) -> None:
    lines = identification_table({"coreset": result}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["1:N, %", "gallery", "rank 1", "rank 5", "TPIR@FPIR 0.01"]
    assert cells[2] == [
        "coreset",
        "gallery1",
        "94.00 [93.00, 95.00]",
        "97.00 [96.00, 98.00]",
        "87.50 [86.00, 89.00]",
    ]
    assert cells[3] == ["", "gallery2", "96.00", "98.00", "87.50"]
    assert cells[4] == ["", "mean", "95.00", "97.50", "87.50"]


def test_closed_set_alone_makes_a_table(result: dict[str, Any]) -> None:
    result["identification"] = {"closed": {"gallery": closed_section({"1": 0.5})}}
    del result["verification"]
    check_result(result, "here")
    assert identification_table({"mean": result}).splitlines()[-1].split() == [
        "|",
        "mean",
        "|",
        "gallery",
        "|",
        "50.00",
        "|",
    ]


def test_rates_are_rounded_to_two_decimals() -> None:
    assert percent(0.123456) == "12.35"
    assert percent(1) == "100.00"
    assert percent(0.5, (0.4, 0.6)) == "50.00 [40.00, 60.00]"


def test_every_rule_stands_above_the_tables(result: dict[str, Any]) -> None:
    text = protocol_text(result)
    for said in ("IJBC", "- flip: not used", "- media: mean", "469,375 images", "numpy 2.4"):
        assert said in text


# ------------------------------------------------------------------------------------------------ plots


def curves() -> dict[str, RocCurve]:
    rng = np.random.default_rng(0)
    is_mated = rng.random(20_000) < 0.1
    noise = rng.normal(size=20_000)
    return {
        name: roc_curve(noise + gain * is_mated, is_mated) for name, gain in (("coreset", 3.5), ("mean", 2))
    }


def searched(gain: float) -> Any:
    rng = np.random.default_rng(0)
    probes, gallery = rng.integers(0, 60, 300), np.arange(30)
    similarity = rng.normal(size=(300, 30)) + gain * (probes[:, None] == gallery)
    return search_similarity(similarity, probes, gallery)


PLOTS = {
    "roc": lambda path: plot_roc(path, curves(), title="IJBC"),
    "det": lambda path: plot_det(path, curves(), title="IJBC"),
    "cmc": lambda path: plot_cmc(path, {"mean": cmc(searched(2), range(1, 21))}, title="IJBC"),
    "one rank": lambda path: plot_cmc(path, {"mean": {"1": 1.0}}, title="IJBC"),
    "identification": lambda path: plot_identification(path, {"mean": tpir_curve(searched(2))}, title="IJBC"),
    "perfect": lambda path: plot_det(
        path, {"mean": RocCurve(np.array([0.1, 1]), np.ones(2), 1.0)}, title="I"
    ),
    "perfect roc": lambda path: plot_roc(
        path, {"mean": RocCurve(np.array([0.1, 1]), np.ones(2), 1.0)}, title="I"
    ),
}


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.filterwarnings("error")
def test_plots_are_pictures_and_leave_pyplot_alone(name: str, tmp_path: Path) -> None:
    PLOTS[name](tmp_path / "plots" / "picture.png")
    image = cv2.imread(str(tmp_path / "plots" / "picture.png"))
    assert image.shape[1] > image.shape[0] > 400
    assert image.std() > 5
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["picture.png"]


def test_axes_say_false_accept_rates_as_files_do_and_each_line_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(plots, "Figure", lambda **options: drawn.append(_figure(**options)) or drawn[-1])
    plot_roc(tmp_path / "roc.png", curves(), title="IJBC 1:1")
    axes = drawn[0].axes[0]
    drawn[0].canvas.draw()
    assert {"1e-04", "1e-02"} <= {label.get_text() for label in axes.get_xticklabels()}
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["coreset", "mean"]
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}) == 2
    assert axes.get_title() == "IJBC 1:1"
    assert "FAR" in axes.get_xlabel()
    assert "%" in axes.get_ylabel()


_figure = plots.Figure

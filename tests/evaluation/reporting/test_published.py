"""A run beside a published row or another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evaluation.metrics.verification import TarAtFar
from evaluation.reporting.published import (
    PAPER_RULES,
    compare,
    differences,
    find_reference,
    published_names,
    settings_of,
)
from evaluation.reporting.report import verification_section, write_result
from net import BACKBONES
from runtime.errors import InputError


@pytest.fixture
def result() -> dict[str, Any]:
    rates = {"1e-04": TarAtFar(0.97, 0.9719, 0.3, 1563)}
    return {
        "schema": 1,
        "protocol": {"name": "IJBC", "rules": PAPER_RULES["adaface"] | {"colour_order": "BGR"}},
        "model": {"backbone": "ir_101", "aggregator": "media_mean", "weights_sha256": "ab"},
        "data": {"images": 469_375, "templates": 23_124, "pairs": 15_658_489, "genuine": 19_557},
        "verification": verification_section(rates, 0.999),
        "seconds": {},
        "peak_rss_mib": 900,
        "command": "validate_ijb.py",
        "versions": {"numpy": "2.4"},
    }


def test_figures_stand_side_by_side_with_their_difference(result: dict[str, Any]) -> None:
    text = compare(result, find_reference("adaface_ir_101_webface4m", "IJBC"))
    row = next(line for line in text.splitlines() if "TAR@FAR 1e-04, nearest" in line)
    assert [cell.strip() for cell in row.strip("|").split("|")][1:] == ["97.19", "97.39", "-0.20"]
    assert "No setting differs that both state." in text
    assert "Not known of the reference: weights_sha256, version of numpy." in text


def test_causes_come_in_the_order_of_how_likely_they_are(result: dict[str, Any]) -> None:
    result["protocol"]["rules"] |= {"flip": "concat", "colour_order": "RGB", "media": "not used"}
    result["model"]["backbone"] = "ir_50"
    result["data"]["images"] = 469_374
    text = compare(result, find_reference("adaface_ir_101_webface4m", "IJBC"))
    numbered = [line.split(":")[0] for line in text.splitlines() if line[:1].isdigit()]
    assert numbered == ["1. images", "2. backbone", "3. colour_order", "4. media", "5. flip"]
    assert "RGB here, BGR there (a wrong order of colours" in text


def test_two_runs_differ_in_versions_last(result: dict[str, Any], tmp_path: Path) -> None:
    write_result(tmp_path, result)
    result["versions"]["numpy"] = "1.26"
    result["protocol"]["rules"] |= {"norm": "not used", "own rule": "x"}
    found = differences(settings_of(result), find_reference(str(tmp_path), "IJBC").settings)
    assert [each.setting for each in found] == ["norm", "version of numpy"]
    assert "strict" in compare(result, find_reference(str(tmp_path / "result.json"), "IJBC"))


@pytest.mark.parametrize("name", published_names())
def test_every_row_has_fractions_a_known_backbone_and_the_mean_of_the_pair_sets(name: str) -> None:
    reference = find_reference(name, "pair_sets")
    assert 0.9 < reference.figures["mean accuracy"] < 1
    assert reference.settings["backbone"] in BACKBONES


@pytest.mark.parametrize(
    ("protocol", "figures"),
    [
        ("IJBB", {"TAR@FAR 1e-04, nearest": 0.9603}),
        ("TinyFace", {"rank 1": 0.7202, "rank 5": 0.7452}),
        ("surveillance_to_surveillance", {"rank 1": 0.3505, "rank 5": 0.4822, "TPIR@FPIR 0.01": 0.0496}),
    ],
)
def test_rows_have_the_figures_of_each_protocol(protocol: str, figures: dict[str, float]) -> None:
    assert find_reference("adaface_ir_101_webface4m", protocol).figures == pytest.approx(figures)


def test_figures_that_protocols_name_themselves_are_compared(result: dict[str, Any]) -> None:
    del result["verification"]
    result["figures"] = {"rank 1": 0.7}
    text = compare(result, find_reference("adaface_ir_101_webface4m", "TinyFace"))
    assert "-2.02" in text
    assert "This run does not give: rank 5." in text


def test_an_unknown_row_lists_all_and_the_nearest() -> None:
    with pytest.raises(InputError, match=r"adaface_ir_18.* Did you mean 'adaface_ir_101_webface4m'"):
        find_reference("adaface_ir101_webface4m", "IJBC")


def test_a_row_without_a_figure_of_the_protocol_says_so() -> None:
    with pytest.raises(InputError, match="adaface_ir_18_casia has no published figure of IJBC"):
        find_reference("adaface_ir_18_casia", "IJBC")
    with pytest.raises(InputError, match="no published figure of TinyFace"):
        find_reference("adaface_ir_50_webface4m", "TinyFace")

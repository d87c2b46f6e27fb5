"""Strata: each pair in the right one, rates equal to a slow twin, and notes that do not belong refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.protocols.ijb_layout import SetProtocol, TemplateList, TemplatePairs
from evaluation.protocols.subgroups import (
    FACES,
    IMPOSTORS,
    MEDIA,
    find_subgroups,
    subgroup_figures,
    subgroup_section,
    subgroup_table,
)
from evaluation.reporting.report import check_result
from runtime.errors import InputError

# Faces, media and foreign faces of each template; the first two are galleries.
TEMPLATES = [(1, 1, 0), (2, 2, 0), (1, 1, 0), (4, 2, 1), (5, 3, 2), (16, 4, 8), (17, 5, 16), (40, 1, 0)]


def made(folder: Path, *, noted: bool = True) -> SetProtocol:
    """Both galleries against all probes, the probe on either side."""
    template, media, foreign = [], [], []
    for number, (faces, of_media, strangers) in enumerate(TEMPLATES):
        template += [number] * faces
        media += [100 * number + face % of_media for face in range(faces)]
        foreign += [face < strangers for face in range(faces)]
    pairs = [(g, p) if p % 2 else (p, g) for g in (0, 1) for p in range(2, len(TEMPLATES))]
    if noted:
        (folder / "meta").mkdir(parents=True)
        lines = [f"{10 + t},{m},{int(f)},x" for t, m, f in zip(template, media, foreign, strict=True)]
        path = folder / "meta" / f"{folder.name.lower()}_face_notes.csv"
        path.write_text("TEMPLATE_ID,MEDIA_ID,FOREIGN,SOURCE\n" + "\n".join(lines) + "\n")
    return SetProtocol(
        name=folder.name,
        folder=folder,
        image_names=[str(n) for n in range(len(template))],
        template_ids=np.arange(10, 10 + len(TEMPLATES)),
        template_of_face=np.array(template),
        media=np.array(media),
        pairs=TemplatePairs(
            np.array([a for a, _ in pairs], np.int32),
            np.array([b for _, b in pairs], np.int32),
            np.array([n % 3 == 0 for n in range(len(pairs))]),
        ),
        galleries=(
            TemplateList("S1", np.array([0]), np.array([0])),
            TemplateList("S2", np.array([1]), np.array([1])),
        ),
        probes=TemplateList("probe_mixed", np.arange(2, len(TEMPLATES)), np.zeros(6, np.int64)),
        subjects=np.zeros(len(TEMPLATES), np.int64),
    )


def test_each_pair_is_in_the_stratum_of_its_probe(tmp_path: Path) -> None:
    strata = {each.title: each for each in find_subgroups(made(tmp_path / "SET"))}
    by_probe = {
        FACES: ["1", "2-4", "5-16", "5-16", "17 or more", "17 or more"],
        MEDIA: ["1", "2", "3-4", "3-4", "5 or more", "1"],
        IMPOSTORS: ["none", "0.25 to 0.5", "0.25 to 0.5", "0.5 or more", "0.5 or more", "none"],
    }
    assert set(strata) == set(by_probe)
    for title, names in by_probe.items():
        assert [strata[title].names[code] for code in strata[title].codes] == names * 2


def test_data_without_notes_has_no_foreign_faces(tmp_path: Path) -> None:
    strata = find_subgroups(made(tmp_path / "SET", noted=False))
    assert [each.title for each in strata] == [FACES, MEDIA]


def test_templates_all_alike_have_no_strata(tmp_path: Path) -> None:
    protocol = made(tmp_path / "SET", noted=False)
    M = len(TEMPLATES)
    alike = replace(protocol, template_of_face=np.arange(M), media=np.arange(M), image_names=["x"] * M)
    assert find_subgroups(alike) == []


def test_notes_of_other_faces_are_refused(tmp_path: Path) -> None:
    protocol = made(tmp_path / "SET")
    path = tmp_path / "SET" / "meta" / "set_face_notes.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(InputError, match=r"face_notes\.csv.* 85 .* 86"):
        find_subgroups(protocol)
    path.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    with pytest.raises(InputError, match="face_notes"):
        find_subgroups(protocol)


def test_rates_equal_those_of_each_strata_s_pairs_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    protocol = made(tmp_path / "SET")
    times = 400
    mated = rng.random(12 * times) < 0.3
    many = replace(
        protocol,
        pairs=TemplatePairs(
            np.tile(protocol.pairs.first, times), np.tile(protocol.pairs.second, times), mated
        ),
    )
    scores = (rng.normal(size=len(mated)) + 2 * mated).astype(np.float32)
    strata = find_subgroups(many)
    figures = subgroup_figures(strata, scores, mated)
    for each in strata:
        own = [f for f in figures if f.title == each.title]
        assert sum(f.pairs for f in own) == len(mated)
        for found in own:
            here = np.array([each.names[code] == found.name for code in each.codes])
            assert found.mated == (here & mated).sum()
            nonmated = scores[here & ~mated]
            for key, far in (("1e-02", 1e-2), ("1e-03", 1e-3)):
                if len(nonmated) * far < 1:
                    assert key not in found.rates
                    continue
                thresholds = [t for t in scores[here] if np.mean(nonmated >= t) <= far]
                strict = np.mean(scores[here & mated] >= min(thresholds))
                assert found.rates[key].strict == pytest.approx(strict)
    section = subgroup_section(figures)
    table = subgroup_table({"mean": {"strata": section}, "max": {"strata": section}})
    assert table is not None
    assert f"| {FACES}" in table
    assert " / -" in table
    assert subgroup_table({"mean": {}}) is None


def test_the_result_file_may_hold_strata_and_its_rates_are_checked() -> None:
    result = {
        "schema": 1,
        "protocol": {"name": "X", "rules": {}},
        "model": {"backbone": "b", "aggregator": "a", "weights_sha256": "0"},
        "data": {"images": 1},
        "figures": {"x": 0.5},
        "seconds": {},
        "peak_rss_mib": 1,
        "command": "",
        "versions": {},
        "strata": {FACES: {"1": {"pairs": 1, "mated": 1, "tar_at_far": {"1e-02": {"strict": 0.5}}}}},
    }
    check_result(result, "x")
    result["strata"][FACES]["1"]["tar_at_far"]["1e-02"]["strict"] = 50  # type: ignore[index]
    with pytest.raises(InputError, match=r"faces of the probe 1 TAR@FAR 1e-02.* 50"):
        check_result(result, "x")
    result["strata"] = {FACES: {"1": {"pairs": 1, "tar_at_far": {}}}}
    with pytest.raises(InputError, match=r"strata\.faces of the probe\.1\.mated"):
        check_result(result, "x")

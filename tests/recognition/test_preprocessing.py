"""Galleries and calibrations keep how faces were preprocessed, and refuse other preprocessing."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import inference
import recognition.aggregation
from backbones.preprocessing import PREPROCESSING_KEYS
from features.extract import identity_of
from features.options import EmbedOptions
from recognition.calibration.thresholds import read_calibration
from recognition.face_reading import PhotoOptions
from recognition.gallery.contents import Gallery
from recognition.gallery.exchange import members_of, read_gallery
from recognition.gallery.store import enroll, gallery_info, open_gallery
from recognition.model import FaceModel, load_model
from recognition.preprocessing import check_same_preprocessing, preprocessing_of
from recognition.sources import SetSource
from runtime.errors import InputError, InputWarning
from validation.frame import Model, Run, Seconds, result_of_run


@pytest.fixture
def sources(tmp_path: Path) -> list[SetSource]:
    folder = tmp_path / "anna"
    folder.mkdir()
    (folder / "a.jpg").touch()
    return [SetSource("anna", folder)]


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    (tmp_path / "yunet.onnx").write_bytes(b"one")
    return tmp_path / "yunet.onnx"


def people(reading: dict[str, str], fingerprint: str = "f") -> Gallery:
    rows = np.eye(2, 4, dtype=np.float32)
    return Gallery(("Ann", "Bob"), rows, np.ones(2, np.float32), ((), ()), fingerprint, reading)


def test_different_preprocessing_is_refused(
    bare_model: FaceModel, sources: list[SetSource], detector: Path, tmp_path: Path
) -> None:
    found = PhotoOptions(detector=detector)
    before = preprocessing_of(bare_model, found, sources)
    other = tmp_path / "other.onnx"
    other.write_bytes(b"two")
    path = tmp_path / "c.json"

    def refused(options: PhotoOptions, model: FaceModel = bare_model) -> list[str]:
        here = preprocessing_of(model, options, sources)
        path.write_text(
            json.dumps(
                {
                    "schema": 1,
                    "fingerprint": "f",
                    "reading": before,
                    "thresholds": {"1e-03": {"threshold": 0.4}},
                }
            )
        )
        told = []
        for check in (
            lambda: check_same_preprocessing("x", before, here, "y"),
            lambda: people(before).info.check_reading(path, here),
            lambda: read_calibration(path, "f", reading=here),
        ):
            try:
                check()
            except InputError as fault:  # noqa: PERF203 - three checks
                told.append([line.split(":")[0].strip() for line in str(fault).splitlines()[1:]])
        # Galleries and calibrations apply the same rule.
        assert len(told) in (0, 3)
        assert all(each == told[0] for each in told)
        return told[0] if told else []

    assert refused(found) == []
    assert refused(PhotoOptions(aligned=True)) == ["alignment"]
    assert refused(PhotoOptions(detector=other)) == ["detector"]
    assert refused(found, replace(bare_model, flip="average")) == ["flip"]
    # Frames per second matter only if both have videos.
    assert refused(replace(found, fps=5.0)) == []
    (sources[0].path / "b.mp4").write_bytes(b"\x00\x00\x00\x18ftypisom")
    assert refused(replace(found, fps=5.0)) == []
    before = preprocessing_of(bare_model, found, sources)
    assert refused(replace(found, fps=5.0)) == ["fps"]
    assert refused(found) == []


def test_gallery_of_aligned_faces_is_not_searched_with_detected_ones(
    bare_weights: Path,
    face_folder: Callable[..., Path],
    detector: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, gallery = face_folder(2, 2), tmp_path / "g.db"

    def run(name: str, person: str, *how: object) -> int:
        flags = (
            name,
            root / person,
            *how,
            "--gallery",
            gallery,
            "--weights",
            bare_weights,
            "--device",
            "cpu",
        )
        return inference.main(list(map(str, flags)))

    assert run("enroll", "s000", "--aligned") == 0
    before = gallery.read_bytes()
    with monkeypatch.context() as patch:
        # Before any photo is read.
        patch.setattr(recognition.aggregation, "aggregate_sets", None)
        for name in ("search", "enroll"):
            capsys.readouterr()
            assert run(name, "s001", "--detector", detector) == 2
            said = capsys.readouterr().err
            assert "--aligned" in said
            assert "alignment: as stored there" in said
    assert gallery.read_bytes() == before
    assert run("enroll", "s001", "--aligned") == 0
    assert open_gallery(gallery).reading["alignment"] == "as stored"
    assert inference.main(["list", "--gallery", str(gallery)]) == 0
    assert "alignment as stored" in capsys.readouterr().out


def test_missing_preprocessing_record_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    enroll(path, people({}))
    here = {"alignment": "as stored"}
    with pytest.warns(InputWarning, match="does not say"):
        gallery_info(path).check_reading(path, here)
    # Unknown for some subjects is unknown for all.
    joined = Gallery(("Cem",), np.eye(1, 4, dtype=np.float32), np.ones(1, np.float32), ((),), "f", here)
    with pytest.warns(InputWarning, match="does not say"):
        enroll(path, joined)
    assert gallery_info(path).reading == {}
    # As in files of earlier versions.
    values = {name: array for name, array in members_of(joined).items() if name != "reading"}
    np.savez(tmp_path / "g.npz", **values | {"schema": np.array(1)})
    with pytest.raises(InputError, match="form 1"):
        read_gallery(tmp_path / "g.npz")
    content = {"schema": 1, "fingerprint": "f", "thresholds": {"1e-03": {"threshold": 0.4}}}
    calibration = tmp_path / "c.json"
    calibration.write_text(json.dumps(content))
    with pytest.warns(InputWarning, match="does not say"):
        read_calibration(calibration, "f", reading=here)


def test_stores_results_and_galleries_have_the_same_preprocessing_record(
    bare_weights: Path, sources: list[SetSource]
) -> None:
    """With values that are all different from the defaults."""
    model = load_model(bare_weights, flip="average", device="cpu")
    spec = replace(model.spec, normalises_illumination=True, mean=127.00001, channel_order="RGB")
    backbone, model = model.backbone, replace(model, spec=spec)
    backbone.spec = spec
    options = EmbedOptions(flip="average")
    gallery = preprocessing_of(model, PhotoOptions(aligned=True), sources)
    store = identity_of(backbone, {"alignment": "as stored"}, options)
    embedded = Model(backbone, str(bare_weights), options)
    run = Run(Namespace(), embedded, {}, [], Path(), Path(), Seconds())
    rules = result_of_run(run, "x", {}, "mean", {})["protocol"]["rules"]
    for name in PREPROCESSING_KEYS:
        assert gallery[name] == store[name] == rules[name], name
    assert rules["illumination_normalisation"] != "none"
    assert "127.00001" in rules["pixel_scale"]

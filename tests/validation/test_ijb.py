"""The IJB command: from images to result.json on small sets of the true layout, and all that it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coreset import FaceSets, build_aggregator
from coreset.two_identity_split import TwoIdentitySplit
from evaluation.protocols import ijb
from evaluation.protocols.ijb import NOT_USED, Rules, evaluate_ijb
from evaluation.protocols.ijb_layout import read_protocol
from evaluation.reporting.report import read_result
from features.precomputed import read_features
from features.store import is_complete
from net import build_backbone
from runtime.errors import InputError
from tests.ijb_layout import Dataset, write_dataset
from validation import ijb as validate_ijb
from weights import save_weights

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "validation_mixed"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path / "sets")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    save_weights(tmp_path / "tiny.safetensors", build_backbone("ir_tiny"))
    return tmp_path / "tiny.safetensors"


def checkpoint(path: Path, backbone: bool = True, seed: int = 1) -> Path:
    """As train_val writes it: an aggregator, over the backbone of `weights` where the seed is 1."""
    torch.manual_seed(seed)
    model = build_backbone("ir_tiny")
    options = {"embedding_size": 64, "coreset_size": 2}
    aggregator = build_aggregator("coreset", options)
    state = {f"aggregator.{key}": value for key, value in aggregator.state_dict().items()}
    if backbone:
        state |= {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save(
        {
            "state_dict": state,
            "backbone_spec": model.spec.to_dict(),
            "aggregator_name": "coreset",
            "aggregator_options": options,
        },
        path,
    )
    return path


def run(data: Dataset, out: Path, **flags: Any) -> dict[str, Any]:
    """The command within this process; its result.json."""
    given = {"data_root": str(data.root), "dataset_name": data.name, "out": str(out), "gpus": 0} | flags
    if "features" not in flags:
        given |= {"num_workers": 0}
    validate_ijb.PROTOCOL.validate({key: value for key, value in given.items() if value is not None})
    return read_result(out)


def features_of(out: Path) -> Path:
    (folder,) = (out / "features").iterdir()
    return folder


def brute_force_tar(scores: np.ndarray, mated: np.ndarray, far: float) -> tuple[float, float]:
    """Strict TAR, and the lowest threshold that gives it."""
    allowed = min(t for t in [*np.nextafter(scores, np.inf)] if np.mean(scores[~mated] >= t) <= far)
    return float(np.mean(scores[mated] >= allowed)), float(allowed)


@pytest.mark.plots
def test_images_to_figures(
    data: Dataset, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    result = run(data, out, weights=str(weights), aggregator=["mean", "media_mean", "top_k"])
    text = capsys.readouterr().out
    assert (out / "report.md").read_text().strip() in text
    assert {path.name for path in (out / "plots").iterdir()} == {
        "roc.png",
        "det.png",
        "cmc.png",
        "identification.png",
    }
    found = result["aggregators"]["mean"]
    intervals = [each["interval95"] for each in found["verification"]["tar_at_far"].values()]
    for gallery in found["identification"]["closed"].values():
        intervals += gallery["interval95"].values()
    # Few people: no rate is certain, none and all included.
    assert all(high - low > 0.01 for low, high in intervals)
    protocol = read_protocol(data.root, data.name)
    store = read_features(features_of(out), NOT_USED)
    assert result["data"] == {
        "images": len(data.faces),
        "templates": 32,
        "pairs": len(data.pairs),
        "genuine": sum(label for *_, label in data.pairs),
    }
    # Slow oracles: one template at a time, all pairs, all probes.
    means = []
    for template in range(32):
        mean = store.features[protocol.template_of_face == template].mean(axis=0, dtype=np.float64)
        means.append(mean / np.linalg.norm(mean))
    descriptors = np.array(means)
    pairs = protocol.pairs
    scores = np.einsum("nd,nd->n", descriptors[pairs.first], descriptors[pairs.second])
    for far in ijb.FARS:
        wanted, _ = brute_force_tar(scores, pairs.is_mated, far)
        assert result["verification"]["tar_at_far"][f"{far:.0e}"]["strict"] == pytest.approx(wanted)
    for number, gallery in enumerate(protocol.galleries, 1):
        similarity = descriptors[protocol.probes.templates] @ descriptors[gallery.templates].T
        found = []
        for row, subject in zip(similarity, protocol.probes.subjects, strict=True):
            if subject in gallery.subjects:
                found.append(gallery.subjects[row.argmax()] == subject)
        rank1 = result["identification"]["closed"][f"gallery{number}"]["cmc"]["1"]
        assert rank1 == pytest.approx(np.mean(found))
    assert set(result["aggregators"]) == {"mean", "media_mean", "top_k"}
    assert [each["name"] for each in result["differences"]] == ["media_mean", "top_k"]
    assert result["protocol"]["rules"] == {
        "paper": "facecoresetnet",
        "flip": "not used",
        "media": "not used",
        "detector_score": "not used",
        "norm": "multiplied",
        "cohort": "none: scores are cosines",
        "score_normalisation": "not used",
        "descriptors": "one a template",
        "alignment": "112 x 112, five points of ArcFace, similarity, least squares (Umeyama)",
        "interpolation": "bilinear, black border",
        "image_size": "112",
        "colour_order": "BGR",
        "illumination_normalisation": "none",
        "pixel_scale": "(value - 127.5) / 127.5",
        "auxiliary_size": "0",
        "precision": "32",
        "features": result["protocol"]["rules"]["features"],
    }
    for value in (*result["protocol"]["rules"].values(), *result["versions"].values()):
        assert value in text


def test_features_alone_give_the_same(data: Dataset, weights: Path, tmp_path: Path) -> None:
    first = run(data, tmp_path / "a", weights=str(weights), aggregator=["norm_weighted"])
    shutil.rmtree(data.folder / "loose_crop")
    again = run(data, tmp_path / "b", features=str(features_of(tmp_path / "a")), aggregator=["norm_weighted"])
    for key in ("verification", "identification", "model", "data"):
        assert again[key] == first[key]
    assert again["protocol"] == first["protocol"]
    assert not (tmp_path / "b" / "features").exists()


def test_two_people_are_compared_by_their_best(
    data: Dataset, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """An untrained network finds all faces alike, so a limit of 0.999 parts some templates and some not."""
    run(data, tmp_path / "a", weights=str(weights), aggregator=["mean"])
    folder = features_of(tmp_path / "a")
    capsys.readouterr()
    result = run(data, tmp_path / "b", features=str(folder), aggregator=["mean"], two_identity_split=0.999)
    protocol, store = read_protocol(data.root, data.name), read_features(folder, NOT_USED)
    people = []
    for template in range(32):
        rows = np.flatnonzero(protocol.template_of_face == template)
        faces = FaceSets.dense(
            torch.from_numpy(store.features[None, rows]), torch.from_numpy(store.norms[None, rows])
        )
        people.append(
            TwoIdentitySplit(build_aggregator("mean", {}), 0.999)(faces).embedding[0].double().numpy()
        )
    described = np.array(people)
    share = np.mean((described[:, 0] != described[:, 1]).any(axis=1))
    assert 0 < share < 1
    assert result["share_of_two_people"] == pytest.approx(share)
    assert f"two identities: mean {100 * share:.2f} %" in capsys.readouterr().out
    assert result["protocol"]["rules"]["descriptors"].startswith(
        "two a template whose parts have a cosine below 0.999"
    )
    pairs = protocol.pairs
    scores = np.einsum("npd,nqd->npq", described[pairs.first], described[pairs.second]).max(axis=(1, 2))
    for far in (1e-2, 1e-1):
        wanted, _ = brute_force_tar(scores, pairs.is_mated, far)
        assert result["verification"]["tar_at_far"][f"{far:.0e}"]["strict"] == pytest.approx(wanted)


def test_the_papers_ways_are_what_they_say(data: Dataset, weights: Path, tmp_path: Path) -> None:
    """By hand: flip sum, norms, media means and their sum; InsightFace's with detector scores too."""
    adaface = run(data, tmp_path / "a", weights=str(weights), protocol="adaface")
    assert adaface["model"]["aggregator"] == "media_mean"
    store = read_features(features_of(tmp_path / "a"), "pre_norm_vector_add")
    protocol = read_protocol(data.root, data.name)
    detector = [float(line.split()[-1]) for line in data.meta("name_5pts_score.txt").read_text().splitlines()]
    for paper, weight in (("adaface", store.norms), ("insightface", store.norms * np.array(detector))):
        rows = []
        vectors = store.features * weight[:, None]
        for template in range(32):
            mine = protocol.template_of_face == template
            media = protocol.media[mine]
            rows.append(sum(vectors[mine][media == m].mean(axis=0) for m in np.unique(media)))
        rows = np.array(rows, np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        scores = np.einsum("nd,nd->n", rows[protocol.pairs.first], rows[protocol.pairs.second])
        result = run(
            data, tmp_path / paper, features=str(features_of(tmp_path / "a")), protocol=paper, replicates=0
        )
        for far in (1e-3, 1e-2, 1e-1):
            wanted, threshold = brute_force_tar(scores, protocol.pairs.is_mated, far)
            found = result["verification"]["tar_at_far"][f"{far:.0e}"]
            assert found["strict"] == pytest.approx(wanted)
            assert found["threshold"] == pytest.approx(threshold, abs=1e-6)
            assert found["interval95"] is None


def test_under_adafaces_rules_every_aggregator_sees_media(
    data: Dataset, weights: Path, tmp_path: Path
) -> None:
    run(data, tmp_path / "a", weights=str(weights), protocol="adaface")
    thresholds = {}
    for media in ("mean", "none"):
        result = run(
            data,
            tmp_path / media,
            features=str(features_of(tmp_path / "a")),
            protocol="adaface",
            media=media,
            aggregator=["media_mean", "norm_weighted"],
            replicates=0,
        )
        for name, figures in result["aggregators"].items():
            rates = figures["verification"]["tar_at_far"].values()
            thresholds[media, name] = [rate["threshold"] for rate in rates]
    told = pytest.approx(thresholds["none", "media_mean"], abs=1e-6)
    assert thresholds["mean", "media_mean"] == told
    assert thresholds["mean", "norm_weighted"] == told
    assert thresholds["none", "norm_weighted"] != told


def test_single_switches_override_the_paper(data: Dataset, weights: Path, tmp_path: Path) -> None:
    result = run(
        data,
        tmp_path / "a",
        weights=str(weights),
        protocol="insightface",
        flip="none",
        media="none",
        norm="off",
    )
    rules = result["protocol"]["rules"]
    assert (rules["flip"], rules["media"], rules["norm"]) == (NOT_USED, NOT_USED, NOT_USED)
    assert rules["detector_score"] == "multiplied"
    # Without norms and scores norm_weighted is mean.
    options = {
        "norm": "off",
        "features": str(features_of(tmp_path / "a")),
        "aggregator": ["norm_weighted", "mean"],
    }
    both = run(data, tmp_path / "b", **options)["aggregators"]
    assert both["norm_weighted"]["verification"] == both["mean"]["verification"]


def test_insightfaces_npz_is_joined_by_the_flip_rule(data: Dataset, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    embs, embs_f = rng.standard_normal((2, len(data.faces), 16)).astype(np.float32)
    np.savez(tmp_path / "embs.npz", embs=embs, embs_f=embs_f)
    summed = embs + embs_f
    norms = np.linalg.norm(summed, axis=1)
    (tmp_path / "plain").mkdir()
    np.save(tmp_path / "plain" / "features.npy", summed / norms[:, None])
    np.save(tmp_path / "plain" / "norms.npy", norms)
    found = [
        run(data, tmp_path / name, features=str(tmp_path / path), protocol="insightface")["verification"]
        for name, path in (("a", "embs.npz"), ("b", "plain"))
    ]
    for key, rate in found[0]["tar_at_far"].items():
        for rule in ("strict", "nearest", "threshold"):
            assert rate[rule] == pytest.approx(found[1]["tar_at_far"][key][rule], abs=1e-6)
    plain = read_features(tmp_path / "embs.npz", NOT_USED)
    np.testing.assert_allclose(plain.features * plain.norms[:, None], embs, rtol=1e-5)


# ------------------------------------------------------------------------------------ trained aggregators


@pytest.mark.parametrize("separate", [True, False])
def test_a_trained_aggregator_comes_from_its_checkpoint(
    data: Dataset, weights: Path, tmp_path: Path, separate: bool
) -> None:
    file = checkpoint(tmp_path / "best.ckpt")
    flags = (
        {"weights": str(weights), "aggregator_weights": [str(file)]} if separate else {"weights": str(file)}
    )
    result = run(data, tmp_path / "out", **flags)
    assert result["model"]["aggregator"] == "coreset"
    assert len(result["model"]["aggregator_sha256"]) == 64
    names = run(data, tmp_path / "out", aggregator=["mean", "coreset"], **flags)
    assert list(names["aggregators"]) == ["mean", "coreset"]
    assert names["aggregators"]["coreset"]["verification"] == result["verification"]


def test_the_cache_serves_every_checkpoint_over_the_same_backbone(
    data: Dataset, weights: Path, tmp_path: Path
) -> None:
    run(data, tmp_path / "out", weights=str(weights))
    run(data, tmp_path / "out", weights=str(checkpoint(tmp_path / "last.ckpt")))
    assert features_of(tmp_path / "out")


def test_an_aggregator_over_another_backbone_is_refused(data: Dataset, weights: Path, tmp_path: Path) -> None:
    other = str(checkpoint(tmp_path / "other.ckpt", seed=2))
    with pytest.raises(InputError, match="another backbone"):
        run(data, tmp_path / "out", weights=str(weights), aggregator_weights=[other])
    assert not (tmp_path / "out" / "features").exists()
    run(data, tmp_path / "out", weights=str(weights))
    features = str(features_of(tmp_path / "out"))
    with pytest.raises(InputError, match="another backbone"):
        run(data, tmp_path / "b", features=features, aggregator_weights=[other])
    with pytest.raises(InputError, match="made by another backbone than --weights"):
        run(data, tmp_path / "b", features=features, weights=other)
    bare = str(checkpoint(tmp_path / "bare.ckpt", backbone=False))
    assert run(data, tmp_path / "b", features=features, aggregator_weights=[bare])


def test_a_flip_rule_that_doubles_norms_is_told_where_a_network_reads_them(
    data: Dataset, weights: Path, tmp_path: Path
) -> None:
    trained = str(checkpoint(tmp_path / "best.ckpt"))
    with pytest.warns(UserWarning, match="coreset.*--flip norm_weighted_avg"):
        run(data, tmp_path / "a", weights=trained, flip="pre_norm_vector_add")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(data, tmp_path / "b", weights=trained, flip="norm_weighted_avg")
        run(data, tmp_path / "c", weights=str(weights), flip="pre_norm_vector_add", aggregator=["mean"])


def test_doubled_features_are_refused_before_they_are_made(data: Dataset, tmp_path: Path) -> None:
    file = str(checkpoint(tmp_path / "a.ckpt"))
    with pytest.raises(InputError, match=r"64 values.*128"):
        run(data, tmp_path / "out", weights=file, flip="concat")
    assert not (tmp_path / "out").exists()


def test_an_untrained_aggregator_is_refused(data: Dataset, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has to be trained") as fault:
        run(data, tmp_path / "out", weights=str(weights), aggregator=["coreset"])
    assert "media_mean" in str(fault.value)
    with pytest.raises(InputError, match="contains no aggregator"):
        run(data, tmp_path / "out", weights=str(weights), aggregator_weights=[str(weights)])
    file = str(checkpoint(tmp_path / "a.ckpt"))
    with pytest.raises(InputError, match="both contain a coreset"):
        run(data, tmp_path / "out", weights=str(weights), aggregator_weights=[file, file])
    with pytest.raises(InputError, match="Add 'coreset' to --aggregator"):
        run(data, tmp_path / "out", weights=str(weights), aggregator_weights=[file], aggregator=["mean"])


# ------------------------------------------------------------------------------------ stale and broken


def test_other_weights_never_meet_old_features(data: Dataset, weights: Path, tmp_path: Path) -> None:
    first = run(data, tmp_path / "out", weights=str(weights))
    torch.manual_seed(5)
    save_weights(weights, build_backbone("ir_tiny"))
    second = run(data, tmp_path / "out", weights=str(weights))
    assert len(list((tmp_path / "out" / "features").iterdir())) == 2
    assert second["verification"] != first["verification"]
    assert second["model"]["weights_sha256"] != first["model"]["weights_sha256"]


def test_a_replaced_image_is_embedded_again(data: Dataset, weights: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "out", weights=str(weights))
    before = np.array(read_features(features_of(tmp_path / "out"), NOT_USED).features)
    crops = data.folder / "loose_crop"
    shutil.copy(crops / "9.jpg", crops / "2.jpg")
    run(data, tmp_path / "out", weights=str(weights))
    after = read_features(features_of(tmp_path / "out"), NOT_USED).features
    changed = np.abs(after - before).max(axis=1) > 1e-5
    assert np.flatnonzero(changed).tolist() == [1]


def test_other_landmarks_never_meet_old_features(data: Dataset, weights: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "out", weights=str(weights))
    path = data.meta("name_5pts_score.txt")
    lines = path.read_text().splitlines()
    name, x, *rest = lines[3].split()
    lines[3] = " ".join([name, str(float(x) + 8), *rest])
    path.write_text("\n".join(lines) + "\n")
    run(data, tmp_path / "out", weights=str(weights))
    first, second = (np.load(path) for path in (tmp_path / "out" / "features").glob("*/features.npy"))
    assert np.flatnonzero(np.abs(first - second).max(axis=1) > 1e-5).tolist() == [3]


def test_missing_images_stop_it_before_anything_is_embedded(
    data: Dataset, weights: Path, tmp_path: Path
) -> None:
    (data.folder / "loose_crop" / "5.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of \d+ images are missing or empty: 5.jpg"):
        run(data, tmp_path / "out", weights=str(weights))
    assert not (tmp_path / "out").exists()


def test_an_image_that_is_none_is_named(data: Dataset, weights: Path, tmp_path: Path) -> None:
    (data.folder / "loose_crop" / "5.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1 images cannot be used.*\n.*5.jpg: 8 bytes"):
        run(data, tmp_path / "out", weights=str(weights))


def test_features_of_another_set_or_flip_rule_are_refused(
    data: Dataset, weights: Path, tmp_path: Path
) -> None:
    run(data, tmp_path / "out", weights=str(weights))
    features = str(features_of(tmp_path / "out"))
    with pytest.raises(InputError, match=r"--flip none.*--flip pre_norm_vector_add"):
        run(data, tmp_path / "b", features=features, protocol="adaface")
    other = write_dataset(tmp_path / "others", "OTHER", subjects=5)
    with pytest.raises(InputError, match="belong to another data set"):
        run(other, tmp_path / "b", features=features)


@pytest.mark.parametrize(
    ("content", "flip", "message"),
    [
        ({"a": np.zeros(3)}, NOT_USED, "has no 'embs'"),
        ({"embs": np.zeros(3)}, NOT_USED, "expected .N, D."),
        ({"embs": np.ones((3, 2))}, "average", "Pass --flip none"),
        ({"embs": np.full((3, 2), np.nan)}, NOT_USED, "not finite"),
        (None, NOT_USED, "cannot be read as an npz"),
    ],
)
def test_an_npz_of_something_else_is_refused(tmp_path: Path, content: Any, flip: str, message: str) -> None:
    path = tmp_path / "a.npz"
    if content is None:
        path.write_bytes(b"PK nothing")
    else:
        np.savez(path, **content)
    with pytest.raises(InputError, match=message):
        read_features(path, flip)


def test_arrays_that_are_no_features_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no features"):
        read_features(tmp_path, NOT_USED)
    np.save(tmp_path / "features.npy", np.ones((3, 2), np.float32))
    np.save(tmp_path / "norms.npy", np.ones(3, np.float32))
    with pytest.raises(InputError, match="expected features that are unit rows"):
        read_features(tmp_path, NOT_USED)
    np.save(tmp_path / "norms.npy", np.ones(4, np.float32))
    with pytest.raises(InputError, match=r"norms \(4,\)"):
        read_features(tmp_path, NOT_USED)
    (tmp_path / "norms.npy").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read"):
        read_features(tmp_path, NOT_USED)


# ------------------------------------------------------------------------------------ what figures need


def test_without_lists_there_is_no_identification(data: Dataset, weights: Path, tmp_path: Path) -> None:
    for path in data.folder.glob("meta/*1N*"):
        path.unlink()
    result = run(data, tmp_path / "out", weights=str(weights))
    assert "identification" not in result
    assert not (tmp_path / "out" / "plots" / "cmc.png").exists()


def test_with_one_gallery_of_all_there_is_no_open_set(data: Dataset, weights: Path, tmp_path: Path) -> None:
    lines = data.meta("1N_gallery_S2.csv").read_text().splitlines()[1:]
    with data.meta("1N_gallery_S1.csv").open("a") as stream:
        stream.write("\n".join(lines) + "\n")
    data.meta("1N_gallery_S2.csv").unlink()
    result = run(data, tmp_path / "out", weights=str(weights), published_identification=True)
    assert result["identification"]["open"] == {}
    assert any("no open-set identification" in warning for warning in result["warnings"])
    helper = result["published_helper_not_fpir"]
    assert helper["rank"]["1"] == result["identification"]["closed"]["gallery1"]["cmc"]["1"]
    assert "not FPIR" in (tmp_path / "out" / "report.md").read_text()


def test_labels_that_subjects_contradict_cost_the_intervals_alone(
    data: Dataset, weights: Path, tmp_path: Path
) -> None:
    lines = data.meta("template_pair_label.txt").read_text().splitlines()
    lines += [f"{g} {p} 0" for g, p, mated in data.pairs[:40] if mated]
    data.meta("template_pair_label.txt").write_text("\n".join(lines) + "\n")
    result = run(data, tmp_path / "out", weights=str(weights))
    assert result["verification"]["tar_at_far"]["1e-01"]["interval95"] is None
    assert any("no intervals for TAR" in warning for warning in result["warnings"])


def test_scores_are_needed_where_the_rules_use_them(data: Dataset) -> None:
    protocol = read_protocol(data.root, data.name)
    N = len(data.faces)
    features = np.eye(N, dtype=np.float32)
    rules = Rules.of_paper("insightface", {})
    with pytest.raises(InputError, match="expected one for each face"):
        evaluate_ijb(protocol, features, np.ones(N), {}, rules)
    with pytest.raises(InputError, match="rule media: 'sum' is none of not used, mean"):
        Rules.of_paper("adaface", {"media": "sum"})


def test_a_run_is_compared_with_another(data: Dataset, weights: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "a", weights=str(weights), protocol="adaface")
    run(data, tmp_path / "b", weights=str(weights), compare=str(tmp_path / "a"))
    text = (tmp_path / "b" / "report.md").read_text()
    assert "What differs, most likely cause first:" in text
    assert "flip: not used here, pre_norm_vector_add there" in text
    with pytest.raises(InputError, match="no published figure of TINY"):
        run(data, tmp_path / "b", weights=str(weights), compare="adaface_ir_101_webface4m")


# ------------------------------------------------------------------------------------ the command itself


def command(*words: str, **how: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable} | how.pop("env", {})
    return subprocess.run(
        words, cwd=how.pop("cwd", FOLDER), capture_output=True, text=True, env=environment, check=False
    )


def test_all_flag_faults_come_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--weights nowhere.ckpt --batch_size 0 --replicates -1 --aggregator mean mean --coreset_size 2"
    words += (
        " --precision 16-mixed --aggregator_weights gone.ckpt --gpus 0 --num_nodes 0 --two_identity_split 2"
    )
    words += " --published_identification --score_normalisation as_norm --features"
    monkeypatch.setattr(sys, "argv", ["validate_ijb.py", *words.split(), str(tmp_path)])
    assert validate_ijb.PROTOCOL.main() == 2
    done = capsys.readouterr()
    for part in (
        "--data_root is missing",
        "--weights nowhere.ckpt: no such file",
        "--aggregator_weights gone.ckpt: no such file",
        "--batch_size 0: expected 1 or more",
        "--num_nodes 0: expected 1 or more",
        "--replicates -1: expected 0 or more",
        "--batch_size has no effect with --features",
        "--precision has no effect with --features",
        "--aggregator mean is given twice",
        "--coreset_size has no effect",
        "--score_normalisation has no effect without --cohort",
        "--two_identity_split 2.0: expected a cosine, -1 to 1",
        "--two_identity_split has no effect on --published_identification",
        "--precision 16-mixed needs a GPU",
    ):
        assert part in done.err
    assert done.out == ""


@pytest.mark.slow
def test_the_script_says_what_it_needs() -> None:
    done = command("bash", "eval_ijb.sh")
    assert done.returncode == 2
    assert "--data_root is missing" in done.stderr
    assert "--weights is missing" in done.stderr
    done = command("bash", "eval_ijb.sh", "--data_root", "/nowhere", "--features", "/")
    assert done.returncode == 2
    assert "/nowhere/IJBC: no such folder" in done.stderr


@pytest.mark.slow
def test_the_script_runs_from_its_folder(data: Dataset, weights: Path, tmp_path: Path) -> None:
    words = ("--data_root", str(data.root), "--dataset_name", data.name, "--weights", str(weights))
    done = command("bash", "eval_ijb.sh", *words, "--out", str(tmp_path / "out"), "--num_workers", "1")
    assert done.returncode == 0, done.stderr
    assert "| TAR@FAR, %" in done.stdout
    assert "embedding TINY: 100%" in done.stderr
    assert json.loads((tmp_path / "out" / "result.json").read_text())["command"].startswith(
        "validate_ijb.py --data_root"
    )


@pytest.mark.slow
def test_two_processes_give_one_report(data: Dataset, weights: Path, tmp_path: Path) -> None:
    one = run(data, tmp_path / "a", weights=str(weights))
    done = command(
        *(sys.executable, "validate_ijb.py", "--data_root", str(data.root), "--dataset_name", data.name),
        *(
            "--weights",
            str(weights),
            "--out",
            str(tmp_path / "b"),
            "--num_workers",
            "0",
            "--cpu_processes",
            "2",
        ),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| TAR@FAR, %") == 1
    two = read_result(tmp_path / "b")
    assert two["verification"]["tar_at_far"] == one["verification"]["tar_at_far"]


@pytest.mark.slow
def test_killed_while_embedding_it_goes_on(tmp_path: Path, weights: Path) -> None:
    data = write_dataset(tmp_path / "sets", subjects=40)
    words = [
        *(sys.executable, "validate_ijb.py", "--data_root", str(data.root), "--dataset_name", data.name),
        *(
            "--weights",
            str(weights),
            "--out",
            str(tmp_path / "out"),
            "--num_workers",
            "0",
            "--batch_size",
            "1",
        ),
    ]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        words, cwd=FOLDER, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/features/*/parts/*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "result.json").exists()
    assert not is_complete(features_of(tmp_path / "out"))
    done = command(*words)
    assert done.returncode == 0, done.stderr
    again = read_result(tmp_path / "out")
    fresh = run(data, tmp_path / "fresh", weights=str(weights), batch_size=1)
    assert again["verification"] == fresh["verification"]


# ------------------------------------------------------------------------------------ the golden table

# Of ../shared/faces/README.md: TAR at 1e-02 and 1e-03, rank-1 and TPIR at FPIR 0.1 (mean of both galleries).
GOLDEN = {
    "mean": (47.8, 18.4, 73.2, 59.1),
    "norm_weighted": (53.6, 25.3, 75.4, 62.0),
    "media_mean": (64.4, 40.9, 81.1, 70.8),
    "top_k": (70.6, 47.3, 80.5, 69.5),
    "best_norm": (70.7, 48.8, 79.1, 70.1),
    "fps_mean": (70.5, 46.5, 81.8, 71.0),
}


@pytest.mark.slow
def test_real_faces_give_the_table_of_an_independent_script(shared: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "xf", str(shared / "faces" / "lfws_dev.tar"), "-C", str(tmp_path)], check=True)
    data = Dataset(tmp_path, "LFWS", [], [], {}, {}, [])
    weights = str(shared / "faces" / "mobilefacenet.safetensors")
    names = list(GOLDEN)
    result = run(data, tmp_path / "out", weights=weights, aggregator=names, replicates=0, num_workers=1)
    for name, wanted in GOLDEN.items():
        figures = result["aggregators"][name]
        tar, one_to_many = figures["verification"]["tar_at_far"], figures["identification"]
        galleries = ("gallery1", "gallery2")
        found = (
            tar["1e-02"]["strict"],
            tar["1e-03"]["strict"],
            np.mean([one_to_many["closed"][g]["cmc"]["1"] for g in galleries]),
            np.mean([one_to_many["open"][g]["tpir_at_fpir"]["0.1"]["tpir"] for g in galleries]),
        )
        np.testing.assert_allclose(100 * np.array(found), wanted, atol=0.1, err_msg=name)


def test_points_and_scores_without_sense_are_refused_before_work(
    data: Dataset, weights: Path, tmp_path: Path
) -> None:
    path = data.meta("name_5pts_score.txt")
    rows = [line.split() for line in path.read_text().splitlines()]
    right_eye_first = (0, 3, 4, 1, 2, 5, 6, 9, 10, 7, 8, 11)
    path.write_text("".join(" ".join(row[place] for place in right_eye_first) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"5pts_score\.txt, line 1: expected x y of the left eye"):
        run(data, tmp_path / "out", weights=str(weights))
    path.write_text("".join(" ".join([*row[:-1], "0.0"]) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"line \d+: all detector scores of template .*32 of 32"):
        run(data, tmp_path / "out", weights=str(weights), detector_score="on")
    path.write_text("".join(" ".join([*row[:-1], "1.0"]) + "\n" for row in rows))
    result = run(data, tmp_path / "ones", weights=str(weights), detector_score="on")
    assert any("all detector scores are 1" in warning for warning in result["warnings"])
    assert not (tmp_path / "out").exists()

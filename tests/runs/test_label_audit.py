"""Own people as training data, through the command: --dry_run, subjects of one image, too few subjects."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import main
from backbones.cosine_statistics import REFERENCE
from data.sampling.views import ViewedFaces
from features import cache as feature_cache
from features.options import FACES_AT_ONCE, EmbedOptions
from net import build_backbone
from runs import assembly as training_run
from runs.components import ENOUGH_CLASSES, RunRequest
from runs.config_rules import resolve
from runs.coreset_stage import MIN_CLASSES, with_losses_for
from runtime.errors import InputError
from weights import save_weights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def flags(tmp_path: Path, face_folder: Callable[..., Path]) -> dict[str, Any]:
    folder = face_folder(7, 4)
    # A photo under two names, a subject of one image.
    (folder / "s005" / "9.png").write_bytes((folder / "s002" / "1.png").read_bytes())
    for image in sorted((folder / "s006").iterdir())[1:]:
        image.unlink()
    torch.manual_seed(1)
    backbone = build_backbone("ir_tiny")
    # Fresh weights find all faces alike; so their limits would not be trusted.
    backbone.spec = replace(backbone.spec, cosine_statistics=REFERENCE)
    save_weights(tmp_path / "tiny.safetensors", backbone)
    return {
        "train_data_path": str(folder),
        "start_from_model_statedict": str(tmp_path / "tiny.safetensors"),
        "out": str(tmp_path / "experiments"),
        "held_out": 2.0,
        "num_workers": 0,
        "batch_size": 8,
        "gpus": 0,
        "dry_run": True,
    }


@pytest.fixture
def cached(flags: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    return flags | {"cache_features": str(tmp_path / "cache"), "views": 3}


def findings(flags: dict[str, Any]) -> list[dict[str, str]]:
    with (Path(flags["out"]) / "label_check" / "label_check.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", ["flags", "cached"])
def test_dry_run_lists_label_errors_and_trains_nothing(
    kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    given = request.getfixturevalue(kind)
    main.train(given)
    text = capsys.readouterr().out
    assert "classes" in text
    assert "1 subjects have one image" in text
    assert "pairs of images of different subjects" in text
    rows = [row for row in findings(given) if row["kind"] == "duplicate_under_two_names"]
    assert ["s002/1.png", "s005/9.png"] in [
        ["/".join(Path(row[side]).parts[-2:]) for side in ("first", "second")] for row in rows
    ]
    assert (Path(given["out"]) / "label_check" / "duplicates_under_two_names.png").is_file()
    assert [path.name for path in Path(given["out"]).iterdir()] == ["label_check"]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the faces that were embedded."""
    numbers: list[int] = []
    original = ViewedFaces.image
    monkeypatch.setattr(
        ViewedFaces, "image", lambda self, number: (numbers.append(number), original(self, number))[1]
    )
    return numbers


@pytest.mark.parametrize("kind", ["flags", "cached"])
def test_a_dry_run_embeds_each_image_once_and_a_second_one_none(
    kind: str, request: pytest.FixtureRequest, made: list[int]
) -> None:
    given = request.getfixturevalue(kind)
    main.train(given)
    first = findings(given)
    images = len(list(Path(given["train_data_path"]).rglob("*.png")))
    assert len(made) == images
    made.clear()
    main.train(given)
    assert made == []
    assert findings(given) == first


def test_dry_run_uses_cached_views(cached: dict[str, Any], made: list[int]) -> None:
    training_run.build_run(RunRequest(resolve(_without(cached))))
    made.clear()
    main.train(cached)
    assert made == []
    assert len(list(Path(cached["cache_features"]).iterdir())) == 1


@pytest.mark.parametrize("kind", ["flags", "cached"])
def test_a_dry_run_embeds_on_the_chosen_device(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = _without(request.getfixturevalue(kind))
    used: list[EmbedOptions] = []

    def embed(*given: Any, **_: Any) -> None:
        used.append(given[4])
        raise InterruptedError

    monkeypatch.setattr(feature_cache, "embed_faces", embed)
    with pytest.raises(InterruptedError):
        training_run.build_run(RunRequest(resolve(given), processes=4, gpu=True, dry_run=True)).faces()
    assert (used[0].gpu, used[0].devices, used[0].batch_size) == (True, 1, FACES_AT_ONCE["cuda"])


def test_a_run_without_some_subjects_uses_the_views_of_all(
    cached: dict[str, Any], tmp_path: Path, made: list[int]
) -> None:
    given = _without(cached)
    training_run.build_run(RunRequest(resolve(given)))
    made.clear()
    names = tmp_path / "judged.txt"
    names.write_text("s000\ns003\n")
    fewer = given | {"exclude_subjects": str(names), "min_images_per_subject": 2}
    run = training_run.build_run(RunRequest(resolve(fewer)))
    assert not {"s000", "s003", "s006"} & set(run.module._subjects)
    assert made == []
    assert len(list(Path(given["cache_features"]).iterdir())) == 1


def test_labels_of_precomputed_features_are_checked(
    flags: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 5)
    features = (rng.normal(size=(6, 16))[labels] + 0.3 * rng.normal(size=(30, 16))).astype(np.float32)
    features[3] = features[29]
    lengths = np.linalg.norm(features, axis=1)
    np.savez(tmp_path / "f.npz", features=features / lengths[:, None], norms=lengths, labels=labels)
    main.train({"features": str(tmp_path / "f.npz"), "held_out": 2.0, "batch_size": 4} | _run_flags(flags))
    assert ("mislabelled", "image 3 of subject 0", "5") in {
        (row["kind"], row["first"], row["second"]) for row in findings(flags)
    }
    assert "label_check.csv" in capsys.readouterr().out


def _run_flags(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: flags[name] for name in ("out", "gpus", "dry_run")}


def test_without_weights_labels_are_not_checked(
    flags: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = {name: value for name, value in flags.items() if name != "start_from_model_statedict"}
    del fresh["held_out"]
    main.train(fresh | {"arch": "ir_tiny"})
    said = capsys.readouterr()
    assert "labels   are not checked" in said.out
    assert "7 subjects are too few to train a backbone" in said.err
    assert not Path(flags["out"]).exists()


@pytest.mark.parametrize("kind", ["flags", "cached"])
def test_listed_subjects_are_excluded(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    given = {name: value for name, value in request.getfixturevalue(kind).items() if name != "dry_run"}
    names = tmp_path / "judged.txt"
    names.write_text("s000\ns003\nnobody\n")
    run = training_run.build_run(RunRequest(resolve(given | {"exclude_subjects": str(names)})))
    assert not {"s000", "s003"} & set(run.module._subjects)
    assert any("2 subjects are excluded, of 3 names" in line for line in run.lines)
    names.write_text("".join(f"s{number:03}\n" for number in range(100)))
    with pytest.raises(InputError, match=r"--exclude_subjects .* 0 of"):
        training_run.build_run(RunRequest(resolve(given | {"exclude_subjects": str(names)})))


@pytest.mark.parametrize("kind", ["flags", "cached"])
def test_subjects_with_few_images_are_excluded(kind: str, request: pytest.FixtureRequest) -> None:
    given = {name: value for name, value in request.getfixturevalue(kind).items() if name != "dry_run"}
    run = training_run.build_run(RunRequest(resolve(given)))
    assert "s006" in run.module._subjects
    run = training_run.build_run(RunRequest(resolve(given | {"min_images_per_subject": 2})))
    assert "s006" not in run.module._subjects
    assert any("1 subjects with fewer than 2 images are excluded" in line for line in run.lines)
    with pytest.raises(InputError, match="--min_images_per_subject"):
        training_run.build_run(RunRequest(resolve(given | {"min_images_per_subject": 5})))


@pytest.mark.parametrize("kind", ["flags", "cached"])
def test_subjects_in_training_and_validation_are_refused(kind: str, request: pytest.FixtureRequest) -> None:
    given = _without(request.getfixturevalue(kind))
    del given["held_out"]
    with pytest.raises(InputError, match=r"--val_data_path: 7 .*s000, s001"):
        training_run.build_run(RunRequest(resolve(given | {"val_data_path": given["train_data_path"]})))


def test_too_few_subjects_use_the_contrastive_loss(
    cached: dict[str, Any], face_folder: Callable[..., Path]
) -> None:
    given = _without(cached) | {"train_data_path": str(face_folder(4, 3, "few"))}
    run = training_run.build_run(RunRequest(resolve(given)))
    assert any("too few for a margin head" in warning for warning in run.warnings)
    assert (run.module.head_weight, run.module.optimiser.contrast_weight) == (0.0, 1.0)
    batch = next(iter(run.data.train_dataloader()))
    module = run.module
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    module._log_selection = lambda *_: None  # type: ignore[method-assign]
    loss, _ = module._loss(batch, seed=0)
    loss.backward()
    assert module.head.kernel.grad is not None
    assert not module.head.kernel.grad.any()
    assert any(p.grad is not None and p.grad.any() for p in module.aggregator.parameters())


def test_margin_head_is_used_with_enough_classes(flags: dict[str, Any]) -> None:
    settings = resolve(_without(flags))
    assert with_losses_for(settings, ENOUGH_CLASSES, 1) == (settings, "")
    same, warning = with_losses_for(settings, MIN_CLASSES, 1)
    assert same == settings
    assert f"{MIN_CLASSES} subjects are few" in warning
    changed, warning = with_losses_for(settings, MIN_CLASSES - 1, 1)
    assert changed.optimiser.contrast_weight == 1.0
    assert "contrastive loss" in warning
    with pytest.raises(InputError, match="even number"):
        with_losses_for(resolve(_without(flags) | {"batch_size": 7}), 2, 1)


def _without(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if name != "dry_run"}


def test_labels_are_not_checked_with_an_unmeasured_backbone(
    flags: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    save_weights(tmp_path / "tiny.safetensors", build_backbone("ir_tiny"))
    main.train(flags)
    said = capsys.readouterr().out
    assert "labels   are not checked" in said
    assert "--check-quality WEIGHTS IMAGES" in said
    assert not (Path(flags["out"]) / "label_check" / "label_check.csv").exists()

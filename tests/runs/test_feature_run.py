"""The coreset stage from features through the command: cached once, resumed, given, and equal to images."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

import main
import train_val
import training.loaders
from data.sampling.templates import HeldOutTemplates, Template
from features import cache as feature_cache
from net import build_backbone
from runs import assembly as training_run
from runs.checkpoints import StoppedBySignal
from runs.components import RunRequest
from runs.config_rules import Machine, resolve
from runtime.errors import InputError
from weights import load_aggregator, load_backbone, name_digests, save_weights, trained_subjects
from weights.converting import convert_weights, extract_aggregator

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def flags(tmp_path: Path, face_folder: Callable[..., Path]) -> dict[str, Any]:
    folder = face_folder(8, 5)
    torch.manual_seed(1)
    save_weights(tmp_path / "tiny.safetensors", build_backbone("ir_tiny"))
    return {
        "train_data_path": str(folder),
        "start_from_model_statedict": str(tmp_path / "tiny.safetensors"),
        "out": str(tmp_path / "experiments"),
        "cache_features": str(tmp_path / "cache"),
        "views": 6,
        "held_out": 3.0,
        "num_workers": 0,
        "batch_size": 8,
        "gpus": 0,
        "epochs": 2,
        "epoch_items": 32,
    }


@pytest.fixture
def good(flags: dict[str, Any]) -> dict[str, Any]:
    return flags | {"preset": "good", "aggregator": "coreset", "batch_size": 8}


OF_IMAGES = ("train_data_path", "cache_features", "views", "num_workers")


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def assert_same(first: Path, second: Path) -> None:
    one, other = weights_of(first), weights_of(second)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def store_of(flags: dict[str, Any]) -> Path:
    (folder,) = Path(flags["cache_features"]).iterdir()
    return folder


@pytest.mark.plots
def test_run_from_cached_features_writes_the_same_files(
    good: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main.train(good)
    run = tmp_path / "experiments" / "run_0"
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {"run.json", "metrics.csv", "last.ckpt", "best.ckpt", "validation.json"} <= names
    assert {"plots/curves.png", "plots/chosen_faces.png", "training_samples/step_0.png"} <= names
    assert json.loads((run / "validation.json").read_text()).keys() == {"coreset", "mean", "norm_weighted"}
    metrics = pd.read_csv(run / "metrics.csv")
    assert {"train/loss", "train/contrast", "train/gamma", "val/rank1"} <= set(metrics.columns)
    start = load_backbone(good["start_from_model_statedict"]).state_dict()
    kept = load_backbone(run / "last.ckpt").state_dict()
    assert all(torch.equal(start[name], kept[name]) for name in start)
    assert load_aggregator(run / "last.ckpt") is not None
    assert "6 views, float16" in capsys.readouterr().out


def test_checkpoint_contains_digests_of_training_subjects(good: dict[str, Any], tmp_path: Path) -> None:
    main.train(good | {"epochs": 1})
    checkpoint = tmp_path / "experiments" / "run_0" / "last.ckpt"
    run = training_run.build_run(RunRequest(resolve(good)))
    trained = name_digests(run.data._dataset._template_sampler.bank.subjects)
    assert len(trained) == 5  # Of eight, three are held out.
    convert_weights(str(checkpoint), tmp_path / "whole.safetensors")
    extract_aggregator(str(checkpoint), tmp_path / "alone.safetensors")
    for path in (checkpoint, tmp_path / "whole.safetensors", tmp_path / "alone.safetensors"):
        assert trained_subjects(path) == set(trained)
    assert trained_subjects(good["start_from_model_statedict"]) is None


def test_features_are_computed_once(good: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    training_run.build_run(RunRequest(resolve(good)))

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("embedded again")

    monkeypatch.setattr(feature_cache.ViewedFaces, "image", never)
    training_run.build_run(RunRequest(resolve(good | {"held_out": 2.0, "seed": 42, "m": 0.1})))
    assert len(list(Path(good["cache_features"]).iterdir())) == 1


def test_a_damaged_store_is_refused(good: dict[str, Any]) -> None:
    training_run.build_run(RunRequest(resolve(good)))
    path = store_of(good) / "features.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match="parts are damaged"):
        training_run.build_run(RunRequest(resolve(good)))


def test_features_equal_images_on_plain_views(flags: dict[str, Any]) -> None:
    given = flags | {"views": 1, "cache_dtype": "float32", "batch_size": 8}
    run = training_run.build_run(RunRequest(resolve(given)))
    features = next(iter(run.data.train_dataloader()))
    images = run.data.preview_images(features)
    assert images.images.shape == (len(features.rows), 3, 112, 112)
    module = run.module.eval()
    losses = []
    for batch in (features, images):
        sets = module.embedded(batch)
        descriptor = module.aggregator(sets)
        logits = module.head(descriptor.embedding, descriptor.norm[:, None], batch.labels)
        losses.append(torch.nn.functional.cross_entropy(logits, batch.labels))
        torch.testing.assert_close(sets.features, features.features, rtol=0, atol=2e-6)
        torch.testing.assert_close(sets.norms, features.norms, rtol=1e-5, atol=0)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("preset", ["good", "published"])
def test_stopped_run_resumes_exactly(
    flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, preset: str
) -> None:
    flags = flags | {"preset": preset, "batch_size": 8, "epochs": 2}
    main.train(flags | {"prefix": "whole"})
    original = train_val.TrainingModule.training_step
    sent: list[int] = []

    def training_step(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == step and not sent:
            sent.append(step)
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(train_val.TrainingModule, "training_step", training_step)
    with pytest.raises(StoppedBySignal):
        main.train(flags | {"prefix": "broken"})
    broken = tmp_path / "experiments" / "broken_0"
    main.train({"resume_from_checkpoint": str(broken / "last.ckpt")})
    assert_same(broken / "last.ckpt", tmp_path / "experiments" / "whole_0" / "last.ckpt")


def test_checkpoint_does_not_decide_where_features_are_written(flags: dict[str, Any], tmp_path: Path) -> None:
    main.train(flags | {"epochs": 2})
    run = tmp_path / "experiments" / "run_0"
    content = torch.load(run / "last.ckpt", weights_only=True)
    evil = {"out": str(tmp_path / "evil"), "prefix": "../escaped", "cache_features": str(tmp_path / "evil")}
    torch.save({**content, "hparams": content["hparams"] | evil}, run / "last.ckpt")
    before = {path for path in tmp_path.rglob("*") if "imgs" not in path.parts}
    with pytest.raises(InputError, match=rf"last\.ckpt.*--cache_features {tmp_path / 'evil'}"):
        main.train({"resume_from_checkpoint": str(run / "last.ckpt")})
    assert {path for path in tmp_path.rglob("*") if "imgs" not in path.parts} == before
    given = {"resume_from_checkpoint": str(run / "last.ckpt"), "cache_features": flags["cache_features"]}
    main.train(given)
    assert not (tmp_path / "evil").exists()
    assert [path.name for path in run.parent.iterdir()] == ["run_0"]
    torch.save({**content, "hparams": content["hparams"] | {"sample_by": "x"}}, run / "last.ckpt")
    with pytest.raises(InputError, match="sample_by"):
        main.train(given)


@pytest.mark.slow
def test_killed_store_continues(flags: dict[str, Any], tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import sys, time\nimport main\nfrom data.sampling import views\nplain = views.make_view\n"
        "def make_view(*a):\n    time.sleep(0.02)\n    return plain(*a)\n"
        "views.make_view = make_view\nsys.exit(main.main())\n"
    )
    command = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(slow), *command], env=environment)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("cache/*/parts/[0-9]*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = len(list(tmp_path.glob("cache/*/parts/[0-9]*.json")))
    assert kept
    made: list[int] = []
    original = feature_cache.ViewedFaces.image
    try:
        feature_cache.ViewedFaces.image = lambda self, number: (  # type: ignore[method-assign]
            made.append(number),
            original(self, number),
        )[1]
        bank = training_run.build_run(RunRequest(resolve(flags))).data._dataset._template_sampler.bank
    finally:
        feature_cache.ViewedFaces.image = original  # type: ignore[method-assign]
    assert len(set(made)) == 8 * 5 * 6 - kept * 32
    fresh = flags | {"cache_features": str(tmp_path / "fresh")}
    again = training_run.build_run(RunRequest(resolve(fresh))).data._dataset._template_sampler.bank
    assert np.array_equal(bank.features, again.features)


def test_precomputed_features_train_an_aggregator(flags: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "f.npz",
        features=rng.standard_normal((120, 64)).astype(np.float32),
        norms=rng.uniform(5, 30, 120),
        labels=np.repeat([f"p{n}" for n in range(10)], 12),
        media=np.arange(120) // 3,
    )
    kept = ("out", "batch_size", "gpus", "epochs", "epoch_items", "held_out")
    given = {name: flags[name] for name in kept} | {"features": str(tmp_path / "f.npz"), "preset": "good"}
    main.train(given)
    last = tmp_path / "experiments" / "run_0" / "last.ckpt"
    assert load_aggregator(last) is not None
    checkpoint = torch.load(last, weights_only=True)
    assert "backbone_spec" not in checkpoint
    assert not any(name.startswith("model.") for name in checkpoint["state_dict"])
    main.train({"resume_from_checkpoint": str(last), "evaluate": True})


def test_store_is_reused_by_its_folder(flags: dict[str, Any], tmp_path: Path) -> None:
    main.train(flags | {"prefix": "cached"})
    made = {"features": str(store_of(flags))}
    given = {name: value for name, value in flags.items() if name not in OF_IMAGES} | made
    main.train(given | {"prefix": "given"})
    out = tmp_path / "experiments"
    assert_same(out / "cached_0" / "last.ckpt", out / "given_0" / "last.ckpt")
    torch.manual_seed(2)
    save_weights(tmp_path / "other.safetensors", build_backbone("ir_tiny"))
    with pytest.raises(InputError, match=r"--start_from_model_statedict .*other\.safetensors"):
        main.train(given | {"start_from_model_statedict": str(tmp_path / "other.safetensors")})


def test_head_starts_at_the_class_means(good: dict[str, Any]) -> None:
    run = training_run.build_run(RunRequest(resolve(good)))
    means = torch.from_numpy(run.data._dataset._template_sampler.bank.clean_means())
    torch.testing.assert_close(run.module.head.kernel.detach().T, means)


def test_options_reach_the_aggregator(good: dict[str, Any], tmp_path: Path) -> None:
    given = vars(main.flags().parse_args(["--aggregator_options", "num_heads=4", "mask_picked=false"]))
    run = training_run.build_run(RunRequest(resolve(good | given)))
    assert run.module.aggregator.self_attention.num_heads == 4
    assert run.module.aggregator.mask_picked is False
    with pytest.raises(InputError, match="has no option 'no_such'"):
        training_run.build_run(RunRequest(resolve(good | {"aggregator_options": {"no_such": 1}})))
    with pytest.raises(InputError, match="--aggregator mean"):
        resolve(good | {"aggregator": "mean"})


def test_compiled_run_equals_an_eager_one(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main.train(good | {"epochs": 1, "prefix": "plain"})
    called = []

    def eager(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        called.append(function)
        return function

    monkeypatch.setattr(torch, "compile", eager)
    main.train(good | {"epochs": 1, "prefix": "compiled", "compile": True})
    assert called
    folder = tmp_path / "experiments"
    assert_same(folder / "plain_0" / "last.ckpt", folder / "compiled_0" / "last.ckpt")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="--compile"):
        resolve(good | {"compile": True}, machine=Machine.here())


def test_auxiliary_features_reach_aggregators_that_read_them(good: dict[str, Any], tmp_path: Path) -> None:
    plain = good["start_from_model_statedict"]
    start = tmp_path / "auxiliary.safetensors"
    convert_weights(plain, start, auxiliary=6)
    flags = good | {"start_from_model_statedict": str(start), "aggregator": "weighted_coreset", "epochs": 1}
    main.train(flags)
    checkpoint = tmp_path / "experiments" / "run_0" / "last.ckpt"
    trained = load_aggregator(checkpoint)
    assert trained is not None
    assert (trained.embedding_size, trained.auxiliary_size) == (70, 6)
    assert load_backbone(checkpoint).spec.auxiliary_size == 6
    others = resolve(flags | {"aggregator": "learned_map"})
    module = training_run.build_run(RunRequest(others)).module
    assert (module.aggregator.embedding_size, module.aggregator.auxiliary_size) == (64, 0)
    # From the store alone, where no weights are given.
    given = {key: value for key, value in flags.items() if key not in OF_IMAGES}
    given["features"] = str(store_of(good))
    unknown = {key: value for key, value in given.items() if key != "start_from_model_statedict"}
    run = training_run.build_run(RunRequest(resolve(unknown)))
    assert run.module.aggregator.auxiliary_size == 6
    assert run.module.subject_means.shape[1] == 64
    random = training_run.build_run(RunRequest(resolve(given | {"head_init": "random"})))
    for head in (run.module.head, random.module.head):
        assert head.kernel.shape[0] == 64
        torch.testing.assert_close(head.kernel.norm(dim=0), torch.ones(head.kernel.shape[1]))
    other = given | {"start_from_model_statedict": plain}
    with pytest.raises(InputError, match=r"tiny\.safetensors: .*64 .*\b0 .*70 .*\b6\b"):
        training_run.build_run(RunRequest(resolve(other)))


def test_backbone_with_auxiliary_features_is_not_fine_tuned(flags: dict[str, Any], tmp_path: Path) -> None:
    start = tmp_path / "auxiliary.safetensors"
    convert_weights(flags["start_from_model_statedict"], start, auxiliary=6)
    images = {key: value for key, value in flags.items() if key not in ("cache_features", "views")}
    tuned = images | {"start_from_model_statedict": str(start), "finetune_backbone": True}
    with pytest.raises(InputError, match=r"auxiliary\.safetensors: .*--auxiliary 0"):
        training_run.build_run(RunRequest(resolve(tuned)))


def test_contrastive_loss_needs_pairs_on_each_process(good: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"--batch_size 6: .*multiple of 4"):
        resolve(good | {"batch_size": 6, "cpu_processes": 2}, machine=Machine(0, has_compiler=True))


@pytest.mark.parametrize("cached", [True, False])
def test_two_subjects_need_pairs_on_each_process(flags: dict[str, Any], cached: bool) -> None:
    left = {} if cached else dict.fromkeys(("cache_features", "views"))
    few = {key: value for key, value in flags.items() if key not in left} | {"held_out": 6, "batch_size": 6}
    assert training_run.build_run(RunRequest(resolve(few))).module.num_subjects == 2
    with pytest.raises(InputError, match=r"--batch_size 6: .*multiple of 4"):
        training_run.build_run(RunRequest(resolve(few), processes=2))
    training_run.build_run(RunRequest(resolve(few | {"batch_size": 8}), processes=2))


def test_held_out_images_are_decoded_once_for_a_frozen_backbone(
    flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[int] = []
    original = HeldOutTemplates.__getitem__

    def counted(self: HeldOutTemplates, number: int) -> Template:
        loaded.append(number)
        return original(self, number)

    monkeypatch.setattr(HeldOutTemplates, "__getitem__", counted)
    monkeypatch.setattr(training.loaders, "VALIDATION_TEMPLATES", 4)
    images = {key: value for key, value in flags.items() if key not in ("cache_features", "views")}
    short = resolve(images | {"epochs": 3, "epoch_items": 8, "max_template_size": 3})
    run = training_run.build_run(RunRequest(short))
    trainer = pl.Trainer(
        max_epochs=3,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
    )
    trainer.fit(run.module, run.data)
    first = run.module.figures
    trainer.validate(run.module, run.data, verbose=False)
    assert sorted(loaded) == list(range(9))
    assert run.module.figures.keys() == first.keys()
    # A module that has not seen them asks for them.
    other = training_run.build_run(RunRequest(short)).module
    other.load_state_dict(run.module.state_dict())
    trainer.validate(other, run.data, verbose=False)
    assert sorted(loaded) == sorted([*range(9), *range(9)])
    assert str(other.figures) == str(run.module.figures)


def test_contrastive_loss_works_on_images(flags: dict[str, Any]) -> None:
    plain = {k: v for k, v in flags.items() if k not in ("cache_features", "views")}
    main.train(plain | {"contrast_weight": 1.0, "epochs": 1, "max_template_size": 4})
    config = resolve(plain | {"contrast_weight": 1.0, "max_template_size": 4})
    run = training_run.build_run(RunRequest(config))
    batch = next(iter(run.data.train_dataloader()))
    assert torch.equal(batch.labels[0::2], batch.labels[1::2])


WEIGHTS = {"train_data_path": "imgs", "start_from_model_statedict": "w.ckpt"}
CACHED = WEIGHTS | {"cache_features": ""}


def test_flags_override_presets() -> None:
    good = resolve(CACHED | {"preset": "good", "s": 40.0})
    model, optimiser = good.model, good.optimiser
    assert (model.head, model.m, model.s, model.head_init) == ("cosface", 0.25, 40.0, "centroids")
    assert (optimiser.lr, optimiser.lr_schedule, optimiser.contrast_weight) == (1e-3, "one_cycle", 1.0)
    published = resolve(WEIGHTS | {"preset": "published"})
    plain = resolve(WEIGHTS)
    assert published.aggregator.aggregator_options == {"mask_picked": False, "clamp_gamma": False}
    assert published.aggregator.quality == "norm"
    of_preset = ("preset", "aggregator_options", "quality")
    assert {k: v for k, v in published.to_flat().items() if k not in of_preset} == {
        k: v for k, v in plain.to_flat().items() if k not in of_preset
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (WEIGHTS | {"preset": "good"}, "--preset good .*--cache_features"),
        (WEIGHTS | {"head_init": "centroids"}, "--head_init centroids .*--features"),
        (WEIGHTS | {"impostor_media_prob": 0.5}, "--impostor_media_prob .*--features"),
        (WEIGHTS | {"views": 4}, "--views .*--cache_features"),
        (CACHED | {"features": "x"}, "--cache_features .*--features"),
        (CACHED | {"finetune_backbone": True}, "--finetune_backbone"),
        (CACHED | {"crop_augmentation_prob": 0.1}, "--crop_augmentation_prob"),
        (CACHED | {"longest_clip": 9}, "--longest_clip .*--template_style media"),
        (CACHED | {"preset": "good", "lr_milestones": (3,)}, "--lr_milestones .*one_cycle"),
        (CACHED | {"aggregator": "mean", "coreset_size": 4}, "--coreset_size .*--aggregator coreset"),
        ({"features": "x", "num_workers": 2}, "--num_workers"),
        ({"features": "x", "train_data_path": "imgs"}, "--train_data_path"),
        (CACHED | {"impostor_media_prob": 1.5}, "1.5: .*0 to 1"),
    ],
)
def test_flags_without_effect_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(given)

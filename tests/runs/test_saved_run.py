"""What flags become: the options of the aggregator, and what a checkpoint says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from backbones.spec import BackboneSpec
from coreset import build_aggregator
from runs.config_rules import resolve
from runs.coreset_stage import aggregator_options
from runs.folder import run_folder
from runs.saved_run import read_saved_run
from runtime.errors import InputError

WEIGHTS = {"train_data_path": "imgs", "start_from_model_statedict": "w.ckpt"}
SPEC = BackboneSpec("tiny", 16, "RGB", 127.5, 127.5, True)


def built(given: dict[str, Any]) -> nn.Module:
    return build_aggregator("coreset", aggregator_options(resolve(WEIGHTS | given), SPEC))


@pytest.mark.parametrize(
    ("given", "gamma", "is_learned"),
    [
        ({}, 0.01, True),
        ({"gamma": -1.0}, 0.01, True),
        ({"aggregator_options": {"gamma": 1.0}}, 1.0, True),
        ({"gamma": 0.01}, 0.01, False),
        ({"gamma": 0.0}, 0.0, False),
        ({"gamma": 0.7, "learn_temperature": True}, 0.7, False),
        ({"coreset_size": 1}, 0.01, False),
    ],
)
def test_minus_one_learns_gamma_and_any_other_value_fixes_it(
    given: dict[str, Any], gamma: float, is_learned: bool
) -> None:
    module = built(given)
    assert module.gamma.item() == pytest.approx(gamma)
    assert isinstance(module.gamma, nn.Parameter) == is_learned


def checkpoint(path: Path, **changes: Any) -> Path:
    """A file with what a resumed run reads of a checkpoint; a dotted key changes one of its hparams."""
    hparams = resolve(WEIGHTS).to_flat()
    hparams |= {key.removeprefix("hparams."): value for key, value in changes.items() if "." in key}
    content: dict[str, Any] = {"hparams": hparams, "data_fingerprint": {"images": "d"}, "global_step": 7}
    content["loops"] = {"fit_loop": {"epoch_progress": {"current": {"processed": 1}}}}
    content |= {key: value for key, value in changes.items() if "." not in key}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def test_checkpoint_does_not_decide_where_its_run_writes(tmp_path: Path) -> None:
    evil = {"hparams.out": str(tmp_path / "anywhere"), "hparams.prefix": "../../escaped"}
    path = checkpoint(tmp_path / "runs" / "run_3" / "last.ckpt", **evil)
    saved = read_saved_run(path)
    settings = resolve({}, saved.hparams)
    assert (settings.run.out, settings.run.prefix) == (str(tmp_path / "runs"), "run")
    assert run_folder(Path(settings.run.out), settings.run.prefix, path, step=7) == path.parent
    chosen = resolve({"out": "mine", "prefix": "new"}, saved.hparams)
    assert (chosen.run.out, chosen.run.prefix) == ("mine", "new")
    for cache, is_inside in [
        ("features", True),
        ("run_3/x", True),
        ("x", False),
        ("../x", False),
        ("/x", False),
    ]:
        folder = tmp_path / "runs" / cache
        assert replace(saved, cache_is_given=False).may_write_to(folder) == is_inside
        assert saved.may_write_to(folder)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"hparams.batch_size": "many"}, "batch_size"),
        ({"hparams.batch_size": 2.5}, "batch_size"),
        ({"hparams.lr": None}, "lr"),
        ({"hparams.lr_milestones": 3}, "lr_milestones"),
        ({"hparams.lr_milestones": ["a"]}, "lr_milestones"),
        ({"hparams.train_data_path": 3}, "train_data_path"),
        ({"hparams.aggregator_options": "x"}, "aggregator_options"),
        ({"hparams.share_wrong_media": 0.1}, "share_wrong_media"),
        ({"hparams.gamma_lr": 0.0}, "--gamma_lr"),
        ({"hparams.gamma": "x", "aggregator_options": {"learn_gamma": True}}, "gamma"),
        ({"hparams.views": 1_000_000}, "--views"),
        ({"hparams.num_workers": 1_000_000}, "--num_workers"),
        ({"hparams.cpu_processes": 1_000_000}, "--cpu_processes"),
        ({"hparams.coreset_size": 10**9}, "--coreset_size"),
        ({"hparams": [1]}, "hparams"),
        ({"hparams": {}}, "batch_size"),
        ({"data_fingerprint": 3}, "data_fingerprint"),
        ({"data_fingerprint": {"images": 3}}, "data_fingerprint: images"),
        ({"backbone_spec": "x"}, "backbone_spec"),
        ({"aggregator_options": [1]}, "aggregator_options"),
        ({"global_step": "x"}, "global_step"),
        ({"global_step": -1}, "global_step"),
        ({"global_step": True}, "global_step"),
        ({"pytorch-lightning_version": "x"}, "pytorch-lightning_version"),
        ({"callbacks": 0}, "callbacks"),
        ({"optimizer_states": [3]}, "optimizer_states"),
        ({"lr_schedulers": None}, "lr_schedulers"),
        ({"hparams.held_out": float("inf")}, "--held_out"),
        ({"loops": {}}, "epochs"),
        ({"loops": 3}, "loops"),
        ({"epoch_items": "x"}, "epoch_items"),
        ({"unusable_subjects": ["x"]}, "unusable_subjects"),
        ({"images_by_subject": "x"}, "images_by_subject"),
    ],
    ids=str,
)
def test_impossible_values_in_a_checkpoint_are_refused(
    tmp_path: Path, changes: dict[str, Any], place: str
) -> None:
    path = checkpoint(tmp_path / "last.ckpt", **changes)
    with pytest.raises(InputError) as fault:
        resolve({}, read_saved_run(path).hparams)
    assert place in str(fault.value)


def test_checkpoint_without_trainer_states_is_refused_before_writing(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "last.ckpt", callbacks={}, optimizer_states=[])
    with pytest.raises(InputError, match=r"last\.ckpt.*optimizer_states.*lr_schedulers"):
        read_saved_run(path).check_epochs(3)

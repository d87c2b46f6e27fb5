"""Joining the values of a run and the rules between them."""

from __future__ import annotations

from pathlib import Path

import pytest

from coreset import AGGREGATORS
from data.sampling.templates import SAMPLE_BY
from features.options import PRECISIONS
from features.templates import STYLES
from head import HEADS
from net import BACKBONES
from runs.config import config_fields
from runs.config_rules import Machine, resolve
from runtime.errors import InputError

PATH = {"train_data_path": "imgs"}
WEIGHTS = PATH | {"start_from_model_statedict": "w.ckpt"}


def test_the_stage_follows_from_whether_weights_are_given() -> None:
    assert resolve(PATH).stage == "backbone"
    assert resolve(WEIGHTS).stage == "coreset"
    assert resolve(WEIGHTS | {"stage": "backbone"}).stage == "backbone"


ADAFACE = {
    **{"batch_size": 512, "epochs": 26, "lr": 0.1, "lr_milestones": [12, 20, 24], "weight_decay": 5e-4},
    **{"gradient_clip_val": 0.0, "momentum": 0.9, "head": "adaface", "m": 0.4, "h": 0.333, "s": 64.0},
    **{f"{kind}_augmentation_prob": 0.2 for kind in ("low_res", "crop", "photometric")},
}


def test_the_backbone_stage_is_adafaces_recipe() -> None:
    values = resolve(PATH).to_flat()
    assert {name: values[name] for name in ADAFACE} == ADAFACE


def test_choices_are_those_of_the_packages_that_read_them() -> None:
    fields = config_fields()
    assert fields["sample_by"].choices == SAMPLE_BY
    assert fields["template_style"].choices == STYLES
    assert fields["precision"].choices == PRECISIONS
    assert set(fields["head"].choices) == set(HEADS)
    assert set(fields["arch"].choices) == set(BACKBONES)
    assert set(fields["aggregator"].choices) == set(AGGREGATORS)


def test_field_names_are_unique_across_groups_and_survive_flattening() -> None:
    config = resolve(WEIGHTS | {"lr_milestones": (3, 4), "aggregator_options": {"dropout": 0.0}})
    assert config.to_flat().keys() == config_fields().keys()
    assert type(config).from_flat(config.to_flat()) == config


# The supplement of arXiv 2308.14075v2, and train.sh of the paper's repository.
PAPER = {
    **{"aggregator": "coreset", "coreset_size": 3, "max_template_size": 20, "template_style": "clips"},
    **{"head": "adaface", "m": 0.8, "h": 0.333, "s": 48.0, "head_init": "random", "contrast_weight": 0.0},
    **{"batch_size": 20, "epochs": 150, "lr_milestones": [20], "lr_schedule": "milestones", "lr_gamma": 0.1},
    **{"lr": 1e-4, "gamma_lr": 1e-4, "weight_decay": 1e-3, "gradient_clip_val": 1.0, "sample_by": "image"},
    **{f"{kind}_augmentation_prob": 0.5 for kind in ("low_res", "crop", "photometric")},
    **{"impostor_media_prob": 0.0, "impostor_face_prob": 0.0, "identity_mixup_prob": 0.0},
}


@pytest.mark.parametrize("preset", [{}, {"preset": "published"}])
def test_the_coreset_stage_is_the_papers_recipe(preset: dict[str, str]) -> None:
    values = resolve(WEIGHTS | preset).to_flat()
    assert {name: values[name] for name in PAPER} == PAPER


def test_the_preset_good_keeps_its_own_recipe() -> None:
    settings = resolve({"features": "f", "preset": "good"})
    assert (settings.optimiser.weight_decay, settings.model.m, settings.model.s) == (1e-4, 0.25, 32.0)


def test_flags_override_defaults() -> None:
    settings = resolve(WEIGHTS | {"lr": 0.5, "m": 0.2})
    assert (settings.optimiser.lr, settings.model.m) == (0.5, 0.2)


def test_other_heads_use_their_own_margin() -> None:
    assert resolve(PATH | {"head": "arcface"}).model.m is None
    assert resolve(PATH | {"head": "arcface", "m": 0.3}).model.m == 0.3


def test_16_bit_is_a_precision() -> None:
    assert resolve(PATH | {"use_16bit": True}).run.precision == "16-mixed"
    with pytest.raises(InputError, match="--precision is 32"):
        resolve(PATH | {"use_16bit": True, "precision": "32"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--train_data_path"),
        (PATH | {"stage": "coreset"}, "--start_from_model_statedict"),
        (PATH | {"gamma": 0.5}, "--gamma .*coreset"),
        (WEIGHTS | {"momentum": 0.5}, "--momentum .*backbone"),
        (PATH | {"head": "cosface", "h": 0.3}, "--h .*adaface"),
        (WEIGHTS | {"backbone_lr": 0.1}, "--finetune_backbone"),
        (WEIGHTS | {"held_out": 0.2, "val_data_path": "x"}, "--held_out .*--val_data_path"),
        (
            WEIGHTS | {"learn_temperature": True, "selection_temperature_end": 0.1},
            "--learn_temperature .*_end",
        ),
        (PATH | {"batch_size": 0}, "--batch_size 0: expected 1 to"),
        (PATH | {"lr": float("nan")}, "--lr nan"),
        (PATH | {"lr": -1.0}, "--lr -1.0: expected 0 or more"),
        (PATH | {"crop_augmentation_prob": 1.5}, r"1.[25]: .*0 to 1"),
        (WEIGHTS | {"selection_temperature": 0.0}, "--selection_temperature 0.0: .*above 0"),
        (PATH | {"lr_milestones": (5, 3)}, "--lr_milestones 5,3"),
        ({"features": "f", "identity_mixup_prob": 0.5}, "--identity_mixup_prob .*--contrast_weight"),
        ({"features": "f", "preset": "good", "contrast_weight": 0.0}, "--identity_mixup_prob 0"),
        (WEIGHTS | {"impostor_face_prob": 0.2}, "--impostor_face_prob .*--features"),
        ({"features": "f", "impostor_face_prob": 1.2}, r"1.[25]: .*0 to 1"),
        (WEIGHTS | {"learn_temperature": True, "gamma_lr": 0.0}, "--gamma_lr 0.0: .*above 0"),
        (WEIGHTS | {"gamma": 0.5, "gamma_lr": 0.1}, "--gamma_lr .*--learn_temperature"),
        (WEIGHTS | {"coreset_size": 1, "gamma_lr": 0.1}, "--gamma_lr .*--learn_temperature"),
        (WEIGHTS | {"coreset_size": 1, "gamma": 0.5}, "--gamma .*--coreset_size 1"),
        (WEIGHTS | {"aggregator": "nan", "gamma_lr": 0.1}, "--gamma_lr .*--aggregator coreset"),
        (WEIGHTS | {"gamma": float("nan")}, "--gamma nan"),
        (WEIGHTS | {"gamma": 0.5, "aggregator_options": {"gamma": 1.0}}, "gamma=1.0 .*--gamma 0.5"),
        (WEIGHTS | {"aggregator_options": {"learn_gamma": False}}, "learn_gamma: .*--gamma"),
        (WEIGHTS | {"aggregator_options": {"coreset_size": 4}}, "coreset_size: .*--coreset_size"),
        ({"features": "f", "preset": "good", "lr_gamma": 0.5}, "--lr_gamma .*one_cycle"),
        ({"features": "f", "arch": "ir_18"}, "--arch .*--start_from_model_statedict"),
        (PATH | {"fast_dev_run": True, "test_run": True}, "--fast_dev_run .*--test_run"),
        (PATH | {"epoch_items": 10**12}, "--epoch_items 1000000000000: expected 1 to"),
        (WEIGHTS | {"aggregator": "mean"}, "--aggregator mean"),
        (PATH | {"batch_size": 9, "cpu_processes": 2}, "--batch_size 9 .*multiple of 2"),
        (WEIGHTS | {"compile": True}, "--compile .*CC"),
        (WEIGHTS | {"contrast_weight": 1.0, "batch_size": 7}, "--batch_size 7: .*multiple of 2"),
        (PATH | {"gpus": 3}, "--gpus 3"),
        (WEIGHTS | {"aggregator_options": {"no_such": 1}}, "--aggregator_options: .*no_such"),
        (WEIGHTS | {"aggregator_options": {"num_heads": 0.5}}, "--aggregator_options: .*num_heads.*int"),
    ],
)
def test_values_without_meaning_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(given, machine=Machine(gpus=0, has_compiler=False))


def test_all_faults_come_in_one_message() -> None:
    with pytest.raises(InputError) as fault:
        resolve(
            {"gamma": 0.5, "epochs": 0, "h": 0.2, "head": "arcface", "use_16bit": True, "precision": "32"}
        )
    assert len(str(fault.value).splitlines()) == 5


def test_resumed_run_uses_the_values_of_its_checkpoint() -> None:
    saved = resolve(WEIGHTS | {"lr": 0.5, "lr_milestones": (3, 4)}).to_flat()
    settings = resolve({"epochs": 7, "num_workers": 0}, saved)
    assert (settings.stage, settings.run.num_workers) == ("coreset", 0)
    optimiser = settings.optimiser
    assert (optimiser.lr, optimiser.lr_milestones, optimiser.epochs) == (0.5, (3, 4), 7)
    assert resolve(WEIGHTS | {"lr": 0.5}, saved).optimiser.lr == 0.5


def test_resumed_run_refuses_other_values() -> None:
    saved = resolve(WEIGHTS).to_flat()
    with pytest.raises(InputError, match=r"--lr 0.5: .* 0.0001"):
        resolve({"lr": 0.5}, saved)


def test_aggregator_options_extend_those_of_the_preset() -> None:
    given = {"preset": "published", "aggregator_options": {"dropout": 0.0}}
    settings = resolve(WEIGHTS | given)
    assert settings.aggregator.aggregator_options == {
        "mask_picked": False,
        "clamp_gamma": False,
        "dropout": 0.0,
    }
    assert resolve(given, settings.to_flat()) == settings
    assert (
        resolve(WEIGHTS | {"preset": "published", "aggregator": "nan"}).aggregator.aggregator_options is None
    )


def test_a_test_run_shortens_every_schedule() -> None:
    whole = resolve(PATH | {"lr_milestones": (12, 20, 24), "epochs": 26}).optimiser
    short = resolve(PATH | {"lr_milestones": (12, 20, 24), "epochs": 26, "test_run": True}).optimiser
    assert (whole.trained_epochs, whole.trained_milestones) == (26, (12, 20, 24))
    assert (short.trained_epochs, short.trained_milestones) == (2, (1, 2, 2))
    assert resolve(WEIGHTS | {"test_run": True}).optimiser.trained_milestones == (1,)


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({"lr_schedule": "one_cycle"}, "--lr_schedule one_cycle"),
        ({"selection_temperature_end": 0.1}, "--selection_temperature_end"),
        ({"test_run": True}, "--test_run"),
    ],
)
def test_schedule_over_all_epochs_refuses_another_number_of_epochs(
    given: dict[str, object], flag: str
) -> None:
    saved = resolve(WEIGHTS | given).to_flat()
    assert resolve({"epochs": 150}, saved).optimiser.epochs == 150
    for epochs in (149, 151):
        with pytest.raises(InputError, match=f"--epochs {epochs}") as fault:
            resolve({"epochs": epochs}, saved)
        assert flag in str(fault.value)


def test_a_resumed_run_may_write_elsewhere_and_finds_its_features() -> None:
    saved = resolve({**WEIGHTS, "cache_features": "", "out": "a"}).to_flat()
    settings = resolve({"out": "b", "prefix": "again"}, saved)
    assert (settings.run.out, settings.run.prefix) == ("b", "again")
    assert settings.feature_folder == Path("a/features")

"""The values of a run: defaults by stage, a checkpoint's own, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from runs.settings import STAGE_DEFAULTS, resolve
from runtime.errors import InputError

PATH = {"train_data_path": "imgs"}
WEIGHTS = PATH | {"start_from_model_statedict": "w.ckpt"}


def test_the_stage_follows_from_whether_weights_are_given() -> None:
    assert resolve(PATH, None).stage == "backbone"
    assert resolve(WEIGHTS, None).stage == "coreset"
    assert resolve(WEIGHTS | {"stage": "backbone"}, None).stage == "backbone"


@pytest.mark.parametrize("stage", STAGE_DEFAULTS)
def test_each_stage_has_its_published_recipe(stage: str) -> None:
    settings = resolve(WEIGHTS | {"stage": stage}, None)
    assert {name: getattr(settings, name) for name in STAGE_DEFAULTS[stage]} == STAGE_DEFAULTS[stage]


# The supplement of arXiv 2308.14075v2, and train.sh of the paper's repository; see METHOD 6.
PAPER = {
    **{"aggregator": "coreset", "coreset_size": 3, "max_template_size": 20, "template_style": "clips"},
    **{"head": "adaface", "m": 0.8, "h": 0.333, "s": 48.0, "head_init": "random", "contrast_weight": 0.0},
    **{"batch_size": 20, "epochs": 150, "lr_milestones": (20,), "lr_schedule": "milestones", "lr_gamma": 0.1},
    **{"lr": 1e-4, "gamma_lr": 1e-4, "weight_decay": 1e-3, "gradient_clip_val": 1.0, "sample_by": "image"},
    **{f"{kind}_augmentation_prob": 0.5 for kind in ("low_res", "crop", "photometric")},
    **{"impostor_media_prob": 0.0, "impostor_face_prob": 0.0, "identity_mixup_prob": 0.0},
}


@pytest.mark.parametrize("preset", [{}, {"preset": "published"}])
def test_the_coreset_stage_is_the_papers_recipe(preset: dict[str, str]) -> None:
    settings = resolve(WEIGHTS | preset, None)
    assert {name: getattr(settings, name) for name in PAPER} == PAPER


def test_the_preset_good_keeps_its_own_recipe() -> None:
    settings = resolve({"features": "f", "preset": "good"}, None)
    assert (settings.weight_decay, settings.m, settings.s) == (1e-4, 0.25, 32.0)


def test_what_is_given_wins() -> None:
    settings = resolve(WEIGHTS | {"lr": 0.5, "m": 0.2}, None)
    assert (settings.lr, settings.m) == (0.5, 0.2)


def test_other_heads_have_their_own_margin() -> None:
    assert resolve(PATH | {"head": "arcface"}, None).m is None
    assert resolve(PATH | {"head": "arcface", "m": 0.3}, None).m == 0.3


def test_16_bit_is_a_precision() -> None:
    assert resolve(PATH | {"use_16bit": True}, None).precision == "16-mixed"
    with pytest.raises(InputError, match="--precision 32 stands there too"):
        resolve(PATH | {"use_16bit": True, "precision": "32"}, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--train_data_path is missing"),
        (PATH | {"stage": "coreset"}, "needs the weights of a backbone"),
        (PATH | {"gamma": 0.5}, "--gamma belongs to the coreset stage"),
        (WEIGHTS | {"momentum": 0.5}, "--momentum belongs to the backbone stage"),
        (PATH | {"head": "cosface", "h": 0.3}, "--h belongs to the head adaface"),
        (WEIGHTS | {"backbone_lr": 0.1}, "--finetune_backbone"),
        (WEIGHTS | {"held_out": 0.2, "val_data_path": "x"}, "choose one"),
        (WEIGHTS | {"learn_temperature": True, "selection_temperature_end": 0.1}, "choose one"),
        (PATH | {"batch_size": 0}, "--batch_size 0: expected 1 or more"),
        (PATH | {"lr": float("nan")}, "--lr nan"),
        (PATH | {"lr": -1.0}, "--lr -1.0: expected 0 or more"),
        (PATH | {"crop_augmentation_prob": 1.5}, "a probability from 0 to 1"),
        (WEIGHTS | {"selection_temperature": 0.0}, "a number above 0"),
        (PATH | {"lr_milestones": (5, 3)}, "--lr_milestones 5,3"),
        ({"features": "f", "identity_mixup_prob": 0.5}, "needs pairs of templates of one subject"),
        ({"features": "f", "preset": "good", "contrast_weight": 0.0}, "or --identity_mixup_prob 0"),
        (WEIGHTS | {"impostor_face_prob": 0.2}, "--impostor_face_prob needs features"),
        ({"features": "f", "impostor_face_prob": 1.2}, "a probability from 0 to 1"),
        (WEIGHTS | {"learn_temperature": True, "gamma_lr": 0.0}, "--gamma_lr 0.0: expected a number above 0"),
        (WEIGHTS | {"gamma": 0.5, "gamma_lr": 0.1}, "--gamma_lr has no effect"),
        (WEIGHTS | {"coreset_size": 1, "gamma_lr": 0.1}, "--gamma_lr has no effect"),
        (WEIGHTS | {"coreset_size": 1, "gamma": 0.5}, "--gamma has no effect on a single pick"),
        (WEIGHTS | {"aggregator": "nan", "gamma_lr": 0.1}, "--gamma_lr belongs to --aggregator coreset"),
        (WEIGHTS | {"gamma": float("nan")}, "--gamma nan"),
        (WEIGHTS | {"gamma": 0.5, "aggregator_options": {"gamma": 1.0}}, "--gamma 0.5 fixes it"),
        (WEIGHTS | {"aggregator_options": {"learn_gamma": False}}, "learn_gamma: has a flag .*--gamma"),
        (WEIGHTS | {"aggregator_options": {"coreset_size": 4}}, "flag of its own, --coreset_size"),
        ({"features": "f", "preset": "good", "lr_gamma": 0.5}, "--lr_gamma has no effect"),
        ({"features": "f", "arch": "ir_18"}, "--arch has no effect"),
        (PATH | {"fast_dev_run": True, "test_run": True}, "choose one"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(given, None)


def test_all_faults_come_in_one_message() -> None:
    with pytest.raises(InputError) as fault:
        resolve(PATH | {"gamma": 0.5, "epochs": 0, "h": 0.2, "head": "arcface"}, None)
    assert len(str(fault.value).splitlines()) == 3


def test_a_resumed_run_has_its_own_values() -> None:
    saved = resolve(WEIGHTS | {"lr": 0.5, "lr_milestones": (3, 4)}, None).to_dict()
    settings = resolve({"epochs": 7, "num_workers": 0}, saved)
    assert (settings.lr, settings.stage, settings.lr_milestones) == (0.5, "coreset", (3, 4))
    assert (settings.epochs, settings.num_workers) == (7, 0)
    assert resolve(WEIGHTS | {"lr": 0.5}, saved).lr == 0.5


def test_a_resumed_run_stays_the_same_run() -> None:
    saved = resolve(WEIGHTS, None).to_dict()
    with pytest.raises(InputError, match=r"--lr 0.5: the run that is resumed has 0.0001"):
        resolve({"lr": 0.5}, saved)


def test_options_that_are_given_stand_beside_those_of_the_preset() -> None:
    given = {"preset": "published", "aggregator_options": {"dropout": 0.0}}
    settings = resolve(WEIGHTS | given, None)
    assert settings.aggregator_options == {"mask_picked": False, "clamp_gamma": False, "dropout": 0.0}
    assert resolve(given, settings.to_dict()) == settings
    assert resolve(WEIGHTS | {"preset": "published", "aggregator": "nan"}, None).aggregator_options is None


def test_a_test_run_shortens_every_schedule() -> None:
    whole = resolve(PATH | {"lr_milestones": (12, 20, 24), "epochs": 26}, None)
    short = resolve(PATH | {"lr_milestones": (12, 20, 24), "epochs": 26, "test_run": True}, None)
    assert (whole.trained_epochs, whole.trained_milestones) == (26, (12, 20, 24))
    assert (short.trained_epochs, short.trained_milestones) == (2, (1, 2, 2))
    assert resolve(WEIGHTS | {"test_run": True}, None).trained_milestones == (1,)


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({"lr_schedule": "one_cycle"}, "--lr_schedule one_cycle"),
        ({"selection_temperature_end": 0.1}, "--selection_temperature_end"),
        ({"test_run": True}, "--test_run"),
    ],
)
def test_a_schedule_over_all_epochs_resumes_over_the_same(given: dict[str, object], flag: str) -> None:
    saved = resolve(WEIGHTS | given, None).to_dict()
    assert resolve({"epochs": 150}, saved).epochs == 150
    for epochs in (149, 151):
        with pytest.raises(InputError, match=f"--epochs {epochs}") as fault:
            resolve({"epochs": epochs}, saved)
        assert flag in str(fault.value)


def test_a_resumed_run_may_write_elsewhere_and_finds_its_features() -> None:
    saved = resolve({**WEIGHTS, "cache_features": "", "out": "a"}, None).to_dict()
    settings = resolve({"out": "b", "prefix": "again"}, saved)
    assert (settings.out, settings.prefix) == ("b", "again")
    assert settings.feature_folder == Path("a/features")

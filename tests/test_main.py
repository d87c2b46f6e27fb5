"""The training command: both stages on small synthetic faces, resuming, signals, ranks, bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import main
import train_val
from runs import assembly as training_run
from runs.checkpoints import StoppedBySignal
from runs.components import RunRequest
from runs.config_rules import resolve
from runtime.errors import InputError
from weights import load_aggregator, load_backbone

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def assert_same(first: Path, second: Path, **tolerance: float) -> None:
    one, other = weights_of(first), weights_of(second)
    assert one.keys() == other.keys()
    for name in one:
        if tolerance and name.endswith("in_proj_bias"):
            # The keys' bias changes no output: its gradient is rounding, which Adam blows up to full steps.
            one[name], other[name] = (w.view(3, -1)[[0, 2]] for w in (one[name], other[name]))
        torch.testing.assert_close(one[name], other[name], **({"rtol": 0, "atol": 0} | tolerance), msg=name)


@pytest.mark.plots
def test_backbone_stage_writes_a_complete_run(backbone_stage: dict[str, Any], tmp_path: Path) -> None:
    main.train(backbone_stage)
    run = tmp_path / "experiments" / "run_0"
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {"run.json", "metrics.csv", "last.ckpt", "best.ckpt", "validation.json"} <= names
    assert {"plots/curves.png", "training_samples/step_0.png"} <= names
    assert any("tfevents" in name for name in names)
    metrics = pd.read_csv(run / "metrics.csv")
    assert {"train/loss", "val/mixed", "val/accuracy", "epoch", "step"} <= set(metrics.columns)
    lr = metrics.filter(like="lr-").dropna().to_numpy()
    assert lr[:, 0].tolist() == pytest.approx([0.1, 0.01])
    record = json.loads((run / "run.json").read_text())
    assert (record["float32_matmul_precision"], record["cudnn_benchmark"]) == ("highest", False)
    assert record["classes"] == 8
    assert yaml.safe_load((run / "hparams.yaml").read_text()) == record["flags"]
    backbone = load_backbone(run / "best.ckpt")
    assert backbone.spec.name == "ir_tiny"


def test_training_lowers_the_loss(backbone_stage: dict[str, Any], tmp_path: Path) -> None:
    main.train(backbone_stage | {"epochs": 12, "lr_milestones": (10,), "lr": 0.02})
    loss = pd.read_csv(tmp_path / "experiments" / "run_0" / "metrics.csv")["train/loss"].dropna()
    assert loss.iloc[-3:].mean() < 0.7 * loss.iloc[:3].mean()


@pytest.mark.plots
def test_coreset_stage_trains_the_aggregator_and_not_the_backbone(
    coreset_stage: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main.train(coreset_stage)
    run = tmp_path / "experiments" / "run_0"
    start = load_backbone(tmp_path / "tiny.safetensors").state_dict()
    trained = load_backbone(run / "last.ckpt").state_dict()
    assert all(torch.equal(start[name], trained[name]) for name in start)
    aggregator = load_aggregator(run / "last.ckpt")
    assert aggregator is not None
    fresh = training_run.build_run(RunRequest(resolve(coreset_stage))).module.aggregator
    moved = [
        n for n, p in aggregator.named_parameters() if not torch.equal(p, dict(fresh.named_parameters())[n])
    ]
    assert {"gamma", "cross_attention.in_proj_weight", "norm_code_scale.weight"} <= set(moved)
    assert (run / "plots" / "chosen_faces.png").is_file()
    figures = json.loads((run / "validation.json").read_text())
    assert figures.keys() == {"coreset", "mean", "norm_weighted"}
    said = capsys.readouterr().out
    assert "the backbone ir_tiny is frozen" in said
    assert "5 subjects with 30 images" in said
    assert "| mean " in said
    columns = pd.read_csv(run / "metrics.csv").columns
    assert {"train/gamma", "train/temperature", "train/pick_agreement", "val/rank1"} <= set(columns)


def test_fine_tuned_backbone_changes_weights_and_not_statistics(
    coreset_stage: dict[str, Any], tmp_path: Path
) -> None:
    main.train(coreset_stage | {"finetune_backbone": True, "backbone_lr": 1e-3, "epochs": 1})
    start = load_backbone(tmp_path / "tiny.safetensors").state_dict()
    trained = load_backbone(tmp_path / "experiments" / "run_0" / "last.ckpt").state_dict()
    assert not torch.equal(start["input_layer.0.weight"], trained["input_layer.0.weight"])
    assert torch.equal(start["input_layer.1.running_mean"], trained["input_layer.1.running_mean"])


def test_held_out_subjects_are_never_trained_on(coreset_stage: dict[str, Any]) -> None:
    run = training_run.build_run(RunRequest(resolve(coreset_stage)))
    held_out = {run.data.held_out._source.subjects[s] for s in run.data.held_out.labels}
    assert len(held_out) == 3
    assert not held_out & set(run.module._subjects)


def test_the_temperature_follows_its_schedule(coreset_stage: dict[str, Any], tmp_path: Path) -> None:
    given = {"selection_temperature": 1.0, "selection_temperature_end": 0.01, "epochs": 3}
    main.train(coreset_stage | given)
    metrics = pd.read_csv(tmp_path / "experiments" / "run_0" / "metrics.csv")
    per_epoch = metrics.dropna(subset="train/temperature").groupby("epoch")["train/temperature"].first()
    assert per_epoch.tolist() == pytest.approx([1.0, 0.1, 0.01])


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Sends SIGTERM while step `step` is under way, once."""
    original = train_val.TrainingModule.training_step
    sent: list[int] = []

    def training_step(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == step and not sent:
            sent.append(step)
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(train_val.TrainingModule, "training_step", training_step)


# Runs that were not stopped, by stage and accumulated batches; loaders change nothing.
WHOLE: dict[tuple[str, int], Path] = {}


@pytest.mark.parametrize("stage", ["backbone_stage", "coreset_stage"])
@pytest.mark.parametrize(("step", "accumulate", "workers"), [(1, 1, 0), (4, 1, 2), (2, 2, 0), (3, 1, 0)])
def test_stopped_run_resumes_exactly(
    stage: str,
    step: int,
    accumulate: int,
    workers: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = request.getfixturevalue(stage) | {
        "epochs": 3,
        "epoch_items": 32,
        "lr_milestones": (1, 2),
        "accumulate_grad_batches": accumulate,
        "num_workers": workers,
        "save_all_models": True,
    }
    if (stage, accumulate) not in WHOLE:
        main.train(flags | {"prefix": "whole"})
        WHOLE[stage, accumulate] = tmp_path / "experiments" / "whole_0"
    stop_at(monkeypatch, step)
    with pytest.raises(StoppedBySignal):
        main.train(flags | {"prefix": "broken"})
    broken, whole = tmp_path / "experiments" / "broken_0", WHOLE[stage, accumulate]
    stopped = torch.load(broken / "last.ckpt", weights_only=True)["global_step"]
    assert stopped == step + 1
    with warnings.catch_warnings():
        # The position of the data resumes too, and Lightning knows it.
        warnings.filterwarnings("error", message=".*unreliable results")
        main.train({"resume_from_checkpoint": str(broken / "last.ckpt")})
    assert_same(broken / "last.ckpt", whole / "last.ckpt")
    assert (broken / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert_same(broken / "best.ckpt", whole / "best.ckpt")
    last = torch.load(broken / "last.ckpt", weights_only=True)
    assert last["global_step"] == torch.load(whole / "last.ckpt", weights_only=True)["global_step"]
    assert {path.name for path in broken.glob("epoch_*")} == {path.name for path in whole.glob("epoch_*")}


def test_epochs_are_added_in_the_same_or_a_new_folder(coreset_stage: dict[str, Any], tmp_path: Path) -> None:
    main.train(coreset_stage | {"epochs": 1, "prefix": "short"})
    short, new = tmp_path / "experiments" / "short_0", tmp_path / "elsewhere" / "short_0"
    resume = {"resume_from_checkpoint": str(short / "last.ckpt"), "epochs": 2}
    main.train(resume | {"out": str(tmp_path / "elsewhere")})
    assert torch.load(short / "last.ckpt", weights_only=True)["global_step"] == 4
    main.train(resume)
    main.train(coreset_stage | {"epochs": 2, "prefix": "long"})
    long = tmp_path / "experiments" / "long_0"
    for folder in (short, new):
        assert_same(folder / "last.ckpt", long / "last.ckpt")
        assert_same(folder / "best.ckpt", long / "best.ckpt")
        assert (folder / "metrics.csv").read_text() == (long / "metrics.csv").read_text()
        assert len(json.loads((folder / "run.json").read_text())["starts"]) == 2
        assert yaml.safe_load((folder / "hparams.yaml").read_text())["epochs"] == 2


def test_fewer_epochs_than_are_done_are_refused(backbone_stage: dict[str, Any], tmp_path: Path) -> None:
    main.train(backbone_stage | {"epochs": 2, "epoch_items": 8})
    last = tmp_path / "experiments" / "run_0" / "last.ckpt"
    with pytest.raises(InputError, match=f"--epochs 1: .*{last} has done 2"):
        main.train({"resume_from_checkpoint": str(last), "epochs": 1})
    # As many have nothing left to train, and are validated.
    main.train({"resume_from_checkpoint": str(last), "epochs": 2})
    assert torch.load(last, weights_only=True)["global_step"] == 2


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"finetune_backbone": True}, "optimiser"),
        ({"learn_temperature": True}, "optimiser"),
        ({"coreset_size": 2, "aggregator": "weighted_coreset"}, "tensors"),
        ({"sample_by": "face"}, "sample_by"),
    ],
)
def test_edited_hparams_are_refused_before_anything_is_written(
    coreset_stage: dict[str, Any], tmp_path: Path, change: dict[str, Any], fact: str
) -> None:
    main.train(coreset_stage | {"epochs": 1, "epoch_items": 8})
    run = tmp_path / "experiments" / "run_0"
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    checkpoint["hparams"] |= change
    torch.save(checkpoint, run / "last.ckpt")
    with pytest.raises(InputError, match=rf"last\.ckpt: .*{fact}"):
        main.train({"resume_from_checkpoint": str(run / "last.ckpt"), "epochs": 2})
    for name, content in before.items():
        assert name == "last.ckpt" or (run / name).read_bytes() == content


def test_a_finished_run_can_be_repeated_from_its_run_json(
    coreset_stage: dict[str, Any], tmp_path: Path
) -> None:
    main.train(coreset_stage | {"epochs": 1, "epoch_items": 8})
    runs = tmp_path / "experiments"
    main.train({"config": str(runs / "run_0" / "run.json")})
    assert_same(runs / "run_0" / "last.ckpt", runs / "run_1" / "last.ckpt")
    main.train({"config": str(runs / "run_0" / "run.json"), "seed": 1})
    first, other = (weights_of(runs / name / "last.ckpt")["head.kernel"] for name in ("run_0", "run_2"))
    assert not torch.equal(first, other)


def test_the_resolved_configuration_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("train_data_path: imgs\nepochs: 3\n")
    monkeypatch.setattr(
        sys, "argv", ["main.py", "--config", str(path), "--lr", "0.5", "--gpus", "99", "--print_config"]
    )
    assert main.main() == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert (said["epochs"], said["lr"], said["stage"]) == (3, 0.5, "backbone")


def test_one_template_a_batch_can_be_trained(coreset_stage: dict[str, Any], tmp_path: Path) -> None:
    main.train(coreset_stage | {"batch_size": 1, "epochs": 1, "epoch_items": 2})
    last = weights_of(tmp_path / "experiments" / "run_0" / "last.ckpt")
    assert all(bool(value.isfinite().all()) for value in last.values())


def test_resuming_on_other_data_is_refused(coreset_stage: dict[str, Any], tmp_path: Path) -> None:
    main.train(coreset_stage | {"epochs": 1})
    last = tmp_path / "experiments" / "run_0" / "last.ckpt"
    for image in (tmp_path / "imgs").glob("*/0.png"):
        image.rename(image.with_name("renamed.png"))
    with pytest.raises(InputError, match="was trained on other data"):
        main.train({"resume_from_checkpoint": str(last)})


@pytest.mark.parametrize("stage", ["backbone_stage", "coreset_stage"])
def test_evaluating_a_checkpoint_gives_its_figures(
    stage: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main.train(request.getfixturevalue(stage) | {"epochs": 1})
    out = tmp_path / "experiments"
    main.train({"resume_from_checkpoint": str(out / "run_0" / "best.ckpt"), "evaluate": True})
    trained = json.loads((out / "run_0" / "validation.json").read_text())
    assert json.loads((out / "run_1" / "validation.json").read_text()) == trained
    folder, names = (
        capsys.readouterr().out.strip().splitlines()[-1].removeprefix("results are in ").split(": ")
    )
    assert "validation.json" in names
    assert all((Path(folder) / name).exists() for name in names.split(", "))


@pytest.mark.parametrize("stage", ["backbone_stage", "coreset_stage"])
def test_non_finite_loss_stops_with_step_and_subjects(
    stage: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = train_val.FaceCoresetNet if stage == "coreset_stage" else train_val.BackboneTrainer
    original = kind._loss

    def loss(self: Any, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        value, labels = original(self, *given)
        return (value * float("nan") if self.global_step == 5 else value), labels

    monkeypatch.setattr(kind, "_loss", loss)
    with pytest.raises(InputError) as fault:
        main.train(request.getfixturevalue(stage) | {"epoch_items": 32})
    last = tmp_path / "experiments" / "run_0" / "last.ckpt"
    assert "at step 5" in str(fault.value)
    assert str(last) in str(fault.value)
    assert "s00" in str(fault.value)
    assert all(bool(value.isfinite().all()) for value in weights_of(last).values())


def test_test_run_and_fast_dev_run_complete(
    backbone_stage: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    main.train(backbone_stage | {"test_run": True, "epochs": 26})
    # A log gets the last line of the bar of training, and no other.
    said = capfd.readouterr()
    assert "\r" not in said.out + said.err
    assert len(re.findall(r"Epoch \d+: 100%", said.out + said.err)) == 1
    metrics = pd.read_csv(tmp_path / "experiments" / "run_0" / "metrics.csv")
    assert metrics["step"].max() == 19
    main.train(backbone_stage | {"fast_dev_run": True})
    assert len(list((tmp_path / "experiments").iterdir())) == 1


NOISELESS = """
import sys
import main
from runs import coreset_stage
options = coreset_stage.aggregator_options
coreset_stage.aggregator_options = lambda *a: options(*a) | {"dropout": 0.0, "gumbel_noise": False}
sys.exit(main.main())
"""


@pytest.mark.slow
def test_two_processes_equal_one(coreset_stage: dict[str, Any], tmp_path: Path) -> None:
    script = tmp_path / "noiseless.py"
    script.write_text(NOISELESS)
    flags = [part for name, value in coreset_stage.items() for part in (f"--{name}", str(value))]
    for processes in (1, 2):
        more = ["--cpu_processes", str(processes), "--prefix", f"p{processes}"]
        done = subprocess.run(
            [sys.executable, str(script), *flags, *more],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    runs = [tmp_path / "experiments" / f"p{processes}_0" for processes in (1, 2)]
    # Adam turns rounding of a small gradient into 2e-6 of a weight, and an error into steps of 1e-3.
    assert_same(runs[0] / "last.ckpt", runs[1] / "last.ckpt", rtol=1e-4, atol=1e-5)
    one, two = (json.loads((run / "validation.json").read_text()) for run in runs)
    assert one == two
    losses = [pd.read_csv(run / "metrics.csv")["train/loss"].dropna().to_numpy() for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.slow
def test_ctrl_c_leaves_a_usable_checkpoint(backbone_stage: dict[str, Any], tmp_path: Path) -> None:
    flags = backbone_stage | {"epochs": 500, "lr_milestones": "400"}
    command = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = tmp_path / "experiments" / "run_0"
    deadline = time.monotonic() + 120
    while not (run / "last.ckpt").is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _out, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, said
    assert "stopped by SIGINT" in said
    assert "Traceback" not in said
    assert load_backbone(run / "last.ckpt").spec.name == "ir_tiny"
    step = torch.load(run / "last.ckpt", weights_only=True)["global_step"]
    assert step > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_data_path": "nowhere"}, "nowhere: no such folder"),
        ({"val_data_path": "nowhere"}, "nowhere"),
        ({"batch_size": 0}, "--batch_size 0"),
        ({"gpus": 99}, "--gpus 0 trains on the CPU"),
        ({"use_16bit": True}, "--use_16bit needs a GPU"),
        ({"batch_size": 9, "cpu_processes": 2}, "multiple of 2"),
        ({"batch_size": 1}, "--batch_size 1.* 2 or more"),
        ({"batch_size": 2, "cpu_processes": 2}, "--batch_size 2.* 4 or more"),
        ({"batch_size": 1000}, "fewer than one batch"),
        ({"start_from_model_statedict": "no.ckpt", "stage": "backbone"}, "no.ckpt: "),
        ({"resume_from_checkpoint": "no.ckpt"}, "no.ckpt: "),
    ],
)
def test_bad_input_is_refused_before_work_starts(
    backbone_stage: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        main.train(backbone_stage | change)
    assert not (tmp_path / "experiments").exists()


@pytest.mark.parametrize("cached", [False, True])
def test_pair_sets_are_refused_as_validation_of_the_coreset_stage(
    coreset_stage: dict[str, Any], tmp_path: Path, drawn_face: Callable[[int, int], bytes], cached: bool
) -> None:
    root = tmp_path / "emore"
    for folder in ("imgs/other", "imgs/another", "lfw"):
        (root / folder).mkdir(parents=True)
        (root / folder / "1.png").write_bytes(drawn_face(90, len(folder)))
    (root / "lfw" / "pairs.csv").write_text("first,second,mated\n")
    flags = coreset_stage | {"val_data_path": str(root), "cache_features": ""} | {"views": 1}
    flags = {name: value for name, value in flags.items() if name != "held_out"}
    if not cached:
        flags = {name: value for name, value in flags.items() if name not in ("cache_features", "views")}
    with pytest.raises(InputError, match=r"--val_data_path .*emore: .*lfw"):
        main.train(flags)
    (root / "lfw" / "pairs.csv").unlink()
    (root / "cfp.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"--val_data_path .*emore: .*cfp\.bin"):
        main.train(flags)


def test_ignored_files_and_subjects_are_reported(
    coreset_stage: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(coreset_stage["train_data_path"]) / "s001" / "7.heic").write_bytes(b"no image")
    names = tmp_path / "names.txt"
    names.write_text("s000\nS002\n")
    main.train(coreset_stage | {"fast_dev_run": True, "exclude_subjects": str(names)})
    said = capsys.readouterr().out
    for fact in (
        "1 .heic files are not read: s001/7.heic",
        "1 subjects are excluded, of 2 names",
        "S002 and s002",
    ):
        assert fact in said
    names.write_text("S000\nnobody\n")
    with pytest.raises(InputError, match=r"names\.txt: none of its 2 names .*S000 and s000"):
        main.train(coreset_stage | {"fast_dev_run": True, "exclude_subjects": str(names)})


def test_faults_are_printed_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), "--train_data_path", str(tmp_path / "none"), "--gpus", "0"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_every_default_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.flags().parse_args(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "(default: 0.1, coreset stage 0.0001)" in shown
    assert "None" not in shown


def test_published_command_is_parsed() -> None:
    command = (
        "--data_root D --train_data_path faces_emore/imgs --val_data_path faces_emore --train_data_subset "
        "--prefix run_ir18_ms1mv2_subset --gpus 2 --use_16bit --batch_size 512 --num_workers 16 --epochs 26 "
        "--lr_milestones 12,20,24 --head adaface --m 0.4 --h 0.333 --low_res_augmentation_prob 0.2 "
        "--crop_augmentation_prob 0.2 --photometric_augmentation_prob 0.2"
    )
    config = resolve(vars(main.flags().parse_args(command.split())))
    assert config.stage == "backbone"
    assert config.optimiser.lr_milestones == (12, 20, 24)
    assert config.data.train_data_subset == ""
    assert (config.run.precision, config.run.gpus) == ("16-mixed", 2)
    assert np.isclose(config.model.h, 0.333)


def test_test_run_covers_its_schedules(coreset_stage: dict[str, Any], tmp_path: Path) -> None:
    main.train(coreset_stage | {"test_run": True, "epochs": 150, "selection_temperature_end": 0.01})
    metrics = pd.read_csv(tmp_path / "experiments" / "run_0" / "metrics.csv")
    per_epoch = metrics.dropna(subset="train/temperature").groupby("epoch")["train/temperature"]
    assert per_epoch.last().tolist() == pytest.approx([1.0, 0.01])
    assert metrics["lr-AdamW/aggregator"].dropna().tolist() == pytest.approx([1e-3, 1e-4])

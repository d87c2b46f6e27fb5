"""Configuration files: what is read and refused, and that what is printed reads back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runs.config import TrainingConfig
from runs.config_files import config_text, read_config
from runs.config_rules import resolve
from runs.flags import training_flags
from runtime.errors import InputError
from runtime.json_files import json_text

WEIGHTS = {"train_data_path": "imgs", "start_from_model_statedict": "w.ckpt"}
# One of each kind of run, with values of every type.
GIVEN: list[dict[str, Any]] = [
    {"train_data_path": "imgs", "lr_milestones": (3, 5), "train_data_subset": "", "head": "cosface"},
    {"train_data_path": "imgs", "train_data_subset": "0.1", "precision": "bf16-mixed", "prefix": "ü: #1"},
    WEIGHTS | {"preset": "published", "aggregator_options": {"dropout": 0.0, "clamp_gamma": True}},
    WEIGHTS | {"selection_temperature_end": 0.01, "lr": 1e-5, "finetune_backbone": True},
    {"features": "f.npz", "preset": "good", "epochs": 3},
    WEIGHTS | {"cache_features": "", "preset": "good", "aggregator": "set_transformer"},
]


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def read_back(path: Path, text: str, **flags: Any) -> TrainingConfig:
    return resolve(flags, file=read_config(written(path, text)))


@pytest.mark.parametrize("given", GIVEN)
def test_a_printed_configuration_reads_back(given: dict[str, Any], tmp_path: Path) -> None:
    config = resolve(given)
    assert read_back(tmp_path / "run.yaml", config_text(config)) == config
    run_json = written(tmp_path / "run.json", json_text({"flags": config.to_flat(), "starts": []}))
    assert resolve({}, file=read_config(run_json)) == config


def test_every_configuration_of_the_project_is_complete() -> None:
    paths = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
    assert len(paths) >= 3
    for path in paths:
        text = path.read_text(encoding="utf-8")
        command = next(line for line in text.splitlines() if "main.py" in line).split("main.py ")[1]
        command = command.replace("configs/", f"{path.parent}/")
        flags = vars(training_flags(None).parse_args(command.split()))
        assert flags["config"] == str(path)
        config = resolve(flags, file=read_config(path))
        assert config.run.prefix != "run"


def test_flags_override_the_file(tmp_path: Path) -> None:
    text = "train_data_path: imgs\nlr: 1e-3\nepochs: 4\nuse_16bit: true\nlr_milestones: 1,2\n"
    config = read_back(tmp_path / "run.yaml", text, lr=0.5, train_data_path="other")
    assert (config.optimiser.lr, config.optimiser.epochs) == (0.5, 4)
    assert config.optimiser.lr_milestones == (1, 2)
    assert (config.data.train_data_path, config.run.precision) == ("other", "16-mixed")
    config = read_back(tmp_path / "run.yaml", "train_data_path: imgs\nprecision: 32\n", use_16bit=True)
    assert config.run.precision == "16-mixed"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("epochs: 010", 10),
        ("lr: 1e-3", 1e-3),
        ("lr: 010", 10.0),
        ("prefix: 010", "010"),
        ("lr_milestones: [08, 010]", [8, 10]),
        ("aggregator_options: {dropout: 1e-3}", {"dropout": 1e-3}),
    ],
)
def test_numbers_are_those_of_yaml_1_2(line: str, found: object, tmp_path: Path) -> None:
    file = read_config(written(tmp_path / "run.yaml", line))
    assert file.values == {line.partition(":")[0]: found}


@pytest.mark.parametrize("value", ["1:30", "1_000", "0x10", "0b1"])
def test_other_numbers_of_yaml_1_1_are_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"run\.yaml, line 2: epochs: .*{value}"):
        read_config(written(tmp_path / "run.yaml", f"seed: 1\nepochs: {value}\n"))
    file = read_config(written(tmp_path / "run.yaml", f"aggregator_options: {{a: {value}}}\n"))
    assert file.values == {"aggregator_options": {"a": value}}


def test_texts_that_look_like_numbers_are_printed_as_texts(tmp_path: Path) -> None:
    options = {"a": "1e3", "b": "1:30", "c": 1e-7, "d": 8, "e": "010", "f": float("inf")}
    config = TrainingConfig.from_flat({"prefix": "1e3", "aggregator_options": options})
    file = read_config(written(tmp_path / "run.yaml", config_text(config)))
    assert file.values["prefix"] == "1e3"
    assert file.values["aggregator_options"] == options


def test_duplicate_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.yaml, line 2: aggregator_options: 'dropout'"):
        read_config(written(tmp_path / "run.yaml", "seed: 1\naggregator_options: {dropout: 0, dropout: 1}\n"))
    text = '{\n "flags": {\n  "lr": 1,\n  "seed": 1,\n  "lr": 2\n }\n}\n'
    with pytest.raises(InputError, match=r"run\.json: .*'lr'.* 3, 5"):
        read_config(written(tmp_path / "run.json", text))


def test_duplicate_options_are_refused_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = training_flags(None)
    flag = "--aggregator_options"
    assert parser.parse_args([flag, "a=1", flag, "b=2"]).aggregator_options == {"a": 1, "b": 2}
    for words in (["a=1", "b=2", "a=3"], ["a=1", flag, "a=1"]):
        with pytest.raises(SystemExit):
            parser.parse_args([flag, *words])
        assert "--aggregator_options: 'a'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a\0b.yaml", "a\0b.json"])
def test_a_path_with_a_nul_character_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="NUL"):
        read_config(tmp_path / name)
    with pytest.raises(InputError, match=r"--prefix .*NUL"):
        resolve({"train_data_path": "imgs", "prefix": "a\0b"})


@pytest.mark.parametrize(
    "flags",
    [
        {"evaluate": True, "start_from_model_statedict": "w", "val_data_path": "d"},
        {"stage": "backbone", "head": "cosface", "train_data_path": "imgs"},
        {"stage": "backbone", "head": "cosface", "is_complete": False},
    ],
)
def test_unknown_choices_in_a_file_are_refused_in_every_mode(flags: dict[str, Any], tmp_path: Path) -> None:
    is_complete = flags.get("is_complete", True)
    given = {name: value for name, value in flags.items() if name != "is_complete"}
    file = read_config(written(tmp_path / "run.yaml", "stage: foo\nhead: softmax\n"))
    with pytest.raises(InputError) as fault:
        resolve(given, file=file, is_complete=is_complete)
    assert "line 1: stage foo" in str(fault.value)
    assert "line 2: head softmax" in str(fault.value)


@pytest.mark.parametrize(
    ("given", "more"),
    [
        ({}, {"train_data_path": "imgs"}),
        ({"epochs": 3, "head": "arcface"}, {"train_data_path": "imgs"}),
        ({"coreset_size": 5}, WEIGHTS),
        ({"preset": "good"}, {"features": "f.npz"}),
        ({"preset": "good"}, WEIGHTS | {"cache_features": ""}),
        ({"preset": "published", "aggregator_options": {"dropout": 0.0}}, WEIGHTS),
        ({"impostor_media_prob": 0.1}, {"features": "f.npz"}),
        ({"identity_mixup_prob": 0.1}, {"features": "f.npz", "contrast_weight": 1.0}),
    ],
)
def test_an_incomplete_configuration_is_printed_and_can_be_completed(
    given: dict[str, Any], more: dict[str, Any], tmp_path: Path
) -> None:
    text = config_text(resolve(given, is_complete=False))
    assert read_back(tmp_path / "run.yaml", text, **more) == resolve(given | more)
    with pytest.raises(InputError, match="--epochs 0"):
        resolve(given | {"epochs": 0}, is_complete=False)


def test_all_wrong_keys_are_refused_with_line_key_and_type(tmp_path: Path) -> None:
    text = """train_data_path: imgs
learning_rate: 0.1
epochs: many
lr: [1]

use_mxrecord: 1
lr_milestones: [a]
prefix: yes
seed: 1.5
aggregator_options: 3
head: softmax
batch_size: 8
batch_size: 9
evaluate: true
gpus: null
"""
    with pytest.raises(InputError) as fault:
        read_config(written(tmp_path / "run.yaml", text))
    lines = str(fault.value).splitlines()
    facts = {
        2: ("learning_rate", "unknown"),
        3: ("epochs", "an integer, found 'many'"),
        4: ("lr", "a number, found [1]"),
        6: ("use_mxrecord", "true or false"),
        7: ("lr_milestones", "integer"),
        8: ("prefix", "a string"),
        9: ("seed", "an integer"),
        10: ("aggregator_options", "an object"),
        13: ("batch_size", "twice"),
        14: ("evaluate", "command line"),
    }
    assert len(lines) == len(facts)
    for line, (number, (key, fact)) in zip(lines, facts.items(), strict=True):
        assert line.startswith(f"{tmp_path / 'run.yaml'}, line {number}: {key}")
        assert fact in line
    # A wrong choice or a value out of range is reported with the other rules.
    text = "train_data_path: imgs\nhead: softmax\ngamma: 0.5\nepochs: 0\n"
    with pytest.raises(InputError) as fault:
        read_back(tmp_path / "run.yaml", text)
    assert [line.split(":")[0].split(", ")[1] for line in str(fault.value).splitlines()] == [
        "line 3",
        "line 2",
        "line 4",
    ]


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("- a\n- b\n", "KEY: VALUE"),
        ("a: [1\n", "Line 2"),
        ("a: &x 1\nb: *x\n", "aliases"),
        ("? [a]\n: 1\n", "Line 1"),
        ("a: " + "[" * 5000, "configuration"),
        ("#" * (1 << 20) + "\n\n", "1 MiB"),
        ("a: \x01\n", "configuration"),
    ],
    ids=["list", "open", "alias", "key", "deep", "large", "control"],
)
def test_files_that_are_no_configuration_are_refused(text: str, fact: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.yaml") as fault:
        read_config(written(tmp_path / "run.yaml", text))
    assert fact in str(fault.value)


@pytest.mark.parametrize(
    "line",
    [
        "use_mxrecord: !!bool abc",
        "epochs: !!int ''",
        f"epochs: {'9' * 5000}",
        "aggregator_options: {dropout: !!float ''}",
        "aggregator_options: {dropout: !!timestamp x}",
    ],
)
def test_values_that_contradict_their_tag_are_refused(line: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"line 1: {line.partition(':')[0]}"):
        read_back(tmp_path / "run.yaml", line)


def test_missing_or_damaged_files_are_refused(tmp_path: Path) -> None:
    for name in ("none.yaml", "none.json"):
        with pytest.raises(InputError, match=name):
            read_config(tmp_path / name)
    path = written(tmp_path / "run.json", json_text({"flags": {"lr": "x", "color": 1}, "starts": []}))
    with pytest.raises(InputError, match="lr") as fault:
        read_config(path)
    assert "color" in str(fault.value)
    path.write_text(path.read_text().replace("color", "colour"))
    with pytest.raises(InputError, match="checksum"):
        read_config(path)


def test_a_resumed_run_takes_a_file_that_agrees_with_it(tmp_path: Path) -> None:
    saved = resolve(WEIGHTS).to_flat()
    text = config_text(resolve(WEIGHTS | {"num_workers": 1}))
    file = read_config(written(tmp_path / "run.yaml", text))
    assert resolve({}, saved, file=file).run.num_workers == 1
    file = read_config(written(tmp_path / "run.yaml", text.replace("momentum: 0.9", "momentum: 0.8")))
    with pytest.raises(InputError, match=r"run\.yaml, line \d+: momentum 0\.8: .*0\.9"):
        resolve({}, saved, file=file)


def test_the_parser_has_every_field_and_lists_aggregators(capsys: pytest.CaptureFixture[str]) -> None:
    parser = training_flags(None)
    flags = {action.dest for action in parser._actions}
    assert flags >= resolve(WEIGHTS).to_flat().keys() | {"config", "print_config"}
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--list_aggregators"])
    assert end.value.code == 0
    listed = capsys.readouterr().out
    assert "set_transformer" in listed
    assert "2308.14075" in listed
    shown = parser.format_help()
    assert "weighted_coreset" in shown
    assert "set_transformer" not in shown
    assert json.dumps(parser.parse_args(["--aggregator_options", "a=1", "b=x"]).aggregator_options) == (
        '{"a": 1, "b": "x"}'
    )

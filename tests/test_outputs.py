"""Commands check their outputs before work starts, and refuse those that cannot be written."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

import convert
import inference
import main
from tests.validation_commands import VALIDATION_COMMANDS

# What a validation command needs besides the folder of data, if it is not the weights alone.
_INPUTS = {"validation.ijb": "--dataset_name IJBB --features SET"}


def _main_of(module: str) -> Callable[[], int]:
    main: Callable[[], int] = import_module(module).PROTOCOL.main
    return main


# FILE is a file, so nothing can be written below it; inputs are missing as well.
COMMANDS: dict[str, tuple[Callable[[], int], str]] = {
    "inference": (inference.main, "--weights missing --out FILE/x SET"),
    "inference_of_the_example": (inference.main, "--weights missing --out FILE/x"),
    "enroll": (inference.main, "enroll --weights missing --gallery FILE/x.npz SET"),
    "calibrate": (inference.main, "calibrate --weights missing --out FILE/x.json --images_root SET"),
    "unpack": (convert.main, "--rec_path SET --out FILE/x"),
    "unpack_beside": (convert.main, "--rec_path FILE/x"),
    "pack": (convert.main, "--pack SET --out FILE/x"),
    "synthetic_faces": (convert.main, "--synthetic_faces FILE/x"),
    "fetch_weights": (convert.main, "--fetch-weights missing --out FILE/x"),
    "weights": (convert.main, "--weights missing FILE/x.safetensors"),
    "aggregator": (convert.main, "--aggregator missing FILE/x.safetensors"),
    "check_quality": (convert.main, "--check-quality missing SET --out FILE/x"),
    "check_quality_store": (convert.main, "--check-quality missing SET --store FILE/x.safetensors"),
    "export": (convert.main, "--export onnx missing --out FILE/x"),
    "benchmark": (convert.main, "--build_set_benchmark SET --out FILE/x --name mine"),
    **{
        name: (_main_of(name), f"--data_root SET {_INPUTS.get(name, '--weights missing')} --out FILE/x")
        for name in VALIDATION_COMMANDS.values()
    },
    "ijb_cache": (
        _main_of("validation.ijb"),
        "--data_root SET --dataset_name IJBB --weights FILE --cache FILE/x --out OUT",
    ),
    "pairs_cache": (
        _main_of("validation.pairs"),
        "--data_root SET --weights missing --out OUT --cache FILE/x",
    ),
    "train": (main.main, "--data_root SET --train_data_path missing --gpus 0 --out FILE/x"),
    "train_cache": (
        main.main,
        "--data_root SET --train_data_path missing --gpus 0 --out OUT --start_from_model_statedict missing "
        "--cache_features FILE/x",
    ),
    "evaluate": (
        main.main,
        "--evaluate --data_root SET --val_data_path missing --start_from_model_statedict missing --gpus 0 "
        "--out FILE/x",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_unwritable_output_is_reported_before_work(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, line = COMMANDS[name]
    (tmp_path / "file").touch()
    (tmp_path / "set").mkdir()
    for word in ("FILE", "SET", "OUT"):
        line = line.replace(word, str(tmp_path / word.lower()))
    monkeypatch.setattr(sys, "argv", ["command", *line.split()])
    monkeypatch.chdir(tmp_path)
    assert command() == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'file'} is a file" in said
    assert sorted(os.listdir(tmp_path)) == ["file", "set"]
    assert os.listdir(tmp_path / "set") == []


def test_weights_are_not_overwritten_by_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"weights")
    monkeypatch.setattr(sys, "argv", ["convert.py", "--weights", str(path), str(path)])
    assert convert.main() == 2
    assert str(path) in capsys.readouterr().err
    assert path.read_bytes() == b"weights"

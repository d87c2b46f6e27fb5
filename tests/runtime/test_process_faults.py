"""Runs of two processes: one run folder whoever starts them, and a fault or a signal that ends both."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.utilities import rank_zero_only

import main
import train_val
from data.sampling.positions import PositionSampler
from features import devices
from features import process_group as distributed_run
from features.process_group import take_rank
from runtime import process_faults
from runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300
LAUNCHERS = ("torchrun", "slurm", "node_rank")


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def environment(launcher: str, rank: int, port: str) -> dict[str, str]:
    """What process `rank` of two is told, one on each of two nodes."""
    own = {
        "torchrun": {
            **{"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
            **{"GROUP_RANK": str(rank), "TORCHELASTIC_RUN_ID": "none"},
        },
        "slurm": {
            **{"SLURM_NTASKS": "2", "SLURM_PROCID": str(rank), "SLURM_LOCALID": "0"},
            **{"SLURM_NODEID": str(rank), "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2"},
            **{"SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "training"},
        },
        "node_rank": {"NODE_RANK": str(rank)},
    }
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **own[launcher]}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """For the environment of a launcher; nothing is watched, and Lightning's rank is as before."""
    monkeypatch.setattr(distributed_run, "watch", lambda *_: None)
    before = rank_zero_only.rank
    yield monkeypatch
    rank_zero_only.rank = before


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("rank", [0, 1])
def test_rank_is_that_of_the_launcher(launcher: str, rank: int, told: pytest.MonkeyPatch) -> None:
    for name, value in environment(launcher, rank, "1").items():
        told.setenv(name, value)
    assert take_rank(devices=1, num_nodes=2) == rank
    assert rank_zero_only.rank == rank


def test_node_has_as_many_ranks_as_devices(told: pytest.MonkeyPatch) -> None:
    for name, value in environment("node_rank", 1, "1").items():
        told.setenv(name, value)
    assert take_rank(devices=4, num_nodes=2) == 4
    told.setenv("LOCAL_RANK", "3")
    assert take_rank(devices=4, num_nodes=2) == 7


def test_node_of_its_own_is_rank_0_for_any_node_rank(told: pytest.MonkeyPatch) -> None:
    told.setenv("NODE_RANK", "5")
    assert take_rank(devices=1, num_nodes=1) == 0


@pytest.mark.parametrize(
    ("given", "fact"),
    [
        ({}, "MASTER_ADDR, MASTER_PORT, NODE_RANK"),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "1", "NODE_RANK": "2"}, "NODE_RANK is 2, expected 0 to 1"),
        (environment("torchrun", 1, "1") | {"WORLD_SIZE": "4"}, "has started 4"),
    ],
)
def test_missing_environment_variable_is_reported(
    given: dict[str, str], fact: str, told: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        told.setenv(name, value)
    with pytest.raises(InputError, match=fact):
        take_rank(devices=1, num_nodes=2)


def command(flags: dict[str, Any], script: Path = ROOT / "main.py") -> list[str]:
    shown = {name: ",".join(map(str, v)) if isinstance(v, tuple) else str(v) for name, v in flags.items()}
    return [sys.executable, str(script), *(part for name, v in shown.items() for part in (f"--{name}", v))]


def started(command: list[str], more: dict[str, str] | None = None) -> subprocess.Popen[str]:
    inherited = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=inherited | (more or {}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; a process that hangs is killed and fails the test."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def of_two_nodes(command: list[str], launcher: str, fault: str = "") -> list[tuple[int, str, str]]:
    port = free_port()
    both = [started(command, environment(launcher, rank, port) | {"FAULT": fault}) for rank in (0, 1)]
    return [ended(process) for process in both]


# By the rank of its node alone, in the test after the next.
@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "slurm"])
def test_two_nodes_have_one_run_folder(launcher: str, backbone_stage: dict[str, Any], tmp_path: Path) -> None:
    flags = backbone_stage | {"epochs": 1, "epoch_items": 8, "num_nodes": 2}
    codes, outs, errs = zip(*of_two_nodes(command(flags), launcher), strict=True)
    assert codes == (0, 0), errs
    assert [path.name for path in (tmp_path / "experiments").iterdir()] == ["run_0"]
    assert "run_0" in outs[0]
    assert outs[1] == ""


# The colour check reads all of so few images.
FAULTY = """
import os, sys, time
import data.sources.face_source, main, train_val
from runs.components import RunRequest

RunRequest.colour_warnings = lambda *_: []

def broken_worker(*_, **__):
    raise ValueError("a bug in a loader")

def hangs(*_):
    open(os.environ["MARK"], "w").close()
    time.sleep(1000)

if os.environ["FAULT"] == "bug" and "1" in (os.environ.get("NODE_RANK"), os.environ.get("LOCAL_RANK")):
    data.sources.face_source.ImageFolder.image = broken_worker
if os.environ["FAULT"] == "hang" and os.environ.get("LOCAL_RANK") == "1":
    train_val.BackboneTrainer._loss = hangs
sys.exit(main.main())
"""


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY)
    return script


@pytest.mark.slow
def test_image_that_one_process_cannot_read_ends_both(
    backbone_stage: dict[str, Any], faulty: Path, tmp_path: Path
) -> None:
    flags = backbone_stage | {"epochs": 1, "cpu_processes": 2, "num_workers": 1}
    del flags["val_data_path"]
    # Rank 1 takes the second half of each batch of 8.
    batches = list(PositionSampler(num_rows=48, batch_size=4, world_size=2, rank=1, seed=42))
    row = batches[3][0].row
    broken = tmp_path / "imgs" / f"s{row // 6:03}" / f"{row % 6}.png"
    broken.write_bytes(broken.read_bytes()[:200])
    code, _out, err = ended(started(command(flags, faulty), {"FAULT": "none"}))
    assert code == 2, err
    assert err.count(str(broken)) == 1
    assert "Traceback" not in err
    last = tmp_path / "experiments" / "run_0" / "last.ckpt"
    assert str(last) in err
    assert torch.load(last, weights_only=True)["global_step"] == 3


@pytest.mark.slow
def test_bug_in_a_loader_of_one_node_ends_both(
    backbone_stage: dict[str, Any], faulty: Path, tmp_path: Path
) -> None:
    flags = backbone_stage | {"epochs": 1, "num_nodes": 2, "num_workers": 1}
    results = of_two_nodes(command(flags, faulty), "node_rank", "bug")
    assert [code for code, _, _ in results] == [1, 1]
    assert [path.name for path in (tmp_path / "experiments").iterdir()] == ["run_0"]
    assert results[1][1] == ""
    assert results[1][2].count("a bug in a loader") >= 1
    assert "ValueError" not in results[0][2]
    assert "Traceback" not in results[0][2]


@pytest.mark.parametrize("phase", ["embedding", "validation"])
def test_signal_ends_prediction_and_validation(
    phase: str, coreset_stage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    flags = coreset_stage | {"epochs": 1, "epoch_items": 8}
    if phase == "embedding":
        kind: type = devices._Embedding
        flags |= {"cache_features": str(tmp_path / "store"), "views": 1}
    else:
        kind = train_val.FaceCoresetNet
        main.train(flags)
        last = tmp_path / "experiments" / "run_0" / "last.ckpt"
        flags = {"resume_from_checkpoint": str(last), "evaluate": True}
    name = "predict_step" if phase == "embedding" else "validation_step"
    for signum in (signal.SIGTERM, signal.SIGINT):
        monkeypatch.setattr(kind, name, lambda *_, signum=signum: signal.raise_signal(signum))
        with pytest.raises(KeyboardInterrupt):
            main.train(flags)
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


@pytest.mark.slow
def test_second_sigterm_ends_a_run_that_hangs(
    backbone_stage: dict[str, Any], faulty: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "hangs"
    flags = backbone_stage | {"epochs": 1, "cpu_processes": 2}
    process = started(command(flags, faulty), {"FAULT": "hang", "MARK": str(mark)})
    deadline = time.monotonic() + SECONDS
    while not mark.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    time.sleep(2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    code, _out, err = ended(process)
    assert code == 128 + signal.SIGTERM, err
    # Its child too, which has the pipes.
    assert time.monotonic() - sent < 10


def test_interpreter_waits_for_a_call_to_the_store() -> None:
    """A thread that came back from such a call while Python ends would abort the process."""

    class SlowStore:
        def check(self, keys: list[str]) -> bool:
            looking.set()
            time.sleep(1.0)
            return False

    looking = threading.Event()
    watch = process_faults._Watch(rank=1, world_size=2)
    watch.store = SlowStore()
    watch.start()
    assert looking.wait(5.0)
    watch.stop()
    assert not watch.is_alive()

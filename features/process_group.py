"""Ranks, launchers and the watched strategy of a Lightning run on several devices or nodes.

One process per device, started by Lightning itself on each node (NODE_RANK where there are several), by
torchrun or by srun. In `features`, because that is the lowest package that uses Lightning.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.environments import (  # type: ignore[attr-defined]
    ClusterEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_only

from runtime.errors import InputError
from runtime.process_faults import watch

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# In the order in which Lightning tries them.
_LAUNCHERS = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)


class WatchedDDP(DDPStrategy):
    """DistributedDataParallel in which an error in any process ends all of them."""

    def setup_environment(self) -> None:
        """Start watching before the processes connect, so that an early failure is seen too."""
        rank = take_rank(self.num_processes, self.num_nodes)
        watch(rank, self.num_processes * self.num_nodes, getattr(self.launcher, "procs", ()))
        super().setup_environment()


class EndAtSignal(Callback):
    """End prediction and validation at SIGINT and SIGTERM, which Lightning only records.

    Training has its own handlers, which save a checkpoint.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Save the handlers; Lightning restores them only after an exception."""
        self._before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the handlers."""
        while self._before:
            signal.signal(*self._before.popitem())

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the handlers."""
        for signum in STOP_SIGNALS:
            signal.signal(signum, _end)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the handlers, unless this validation is part of training."""
        if trainer.state.fn != TrainerFn.FITTING:
            self.on_predict_start(trainer, pl_module)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt where a signal ended the block by SystemExit."""
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop


def take_rank(devices: int, num_nodes: int) -> int:
    """Determine the global rank of this process and set it in Lightning.

    Raises:
        InputError: the launcher started another number of processes, or the node's rank is not set.
    """
    processes = devices * num_nodes
    launched = _launched()
    if launched is None:
        rank = _rank_of_own_launch(devices, num_nodes)
    else:
        rank = launched.global_rank()
        if launched.world_size() != processes and (rank or processes > 1):
            raise InputError(
                f"--num_nodes {num_nodes} with {devices} devices are {processes} processes, but the launcher "
                f"({type(launched).__name__.removesuffix('Environment')}) has started "
                f"{launched.world_size()}. Start one process per device: as many on each node as --gpus or "
                "--cpu_processes says."
            )
    rank_zero_only.rank = rank  # type: ignore[attr-defined]
    if "MASTER_PORT" in os.environ:
        watch(rank, processes)
    return rank


def watch_launched() -> None:
    """Watch processes that a launcher started, so that an error in the flags is printed once."""
    launched = _launched()
    if launched is not None:
        watch(launched.global_rank(), launched.world_size())


def _rank_of_own_launch(devices: int, num_nodes: int) -> int:
    here: Any = LightningEnvironment()
    if num_nodes == 1:
        return int(here.local_rank())
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if not {"NODE_RANK", "GROUP_RANK"} & os.environ.keys():
        missing.append("NODE_RANK")
    if missing:
        raise InputError(
            f"--num_nodes {num_nodes}: {', '.join(missing)} is not set. Set MASTER_ADDR (the first node), "
            "MASTER_PORT (a free one there) and NODE_RANK (0, 1, ...) on each node, or start by torchrun or "
            "srun."
        )
    node: int = here.node_rank()
    if not 0 <= node < num_nodes:
        raise InputError(f"--num_nodes {num_nodes}: NODE_RANK is {node}, expected 0 to {num_nodes - 1}.")
    return node * devices + int(here.local_rank())


def _end(signum: int, frame: FrameType | None) -> NoReturn:
    # Not KeyboardInterrupt: on that Lightning kills the other processes, as if they had failed.
    raise SystemExit(128 + signum)


def _launched() -> ClusterEnvironment | None:
    """Environment of the launcher, None where Lightning starts the processes."""
    try:
        return next((kind() for kind in _LAUNCHERS if kind.detect()), None)
    except RuntimeError as fault:
        raise InputError(f"The environment of the launcher cannot be used: {fault}") from None

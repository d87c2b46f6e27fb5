"""A process among those of a run: its rank, whoever started it, and the strategy that makes the group.

One process a device: started by Lightning itself on each node (NODE_RANK where there are several), by
torchrun, or by srun.
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
# In the order in which Lightning looks.
_LAUNCHERS = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)


class WatchedDDP(DDPStrategy):
    """Distributed data parallel training, in which a fault of any process ends all of them."""

    def setup_environment(self) -> None:
        """Watches before the processes meet: one that fails on its way there would be waited for."""
        rank = take_rank(self.num_processes, self.num_nodes)
        watch(rank, self.num_processes * self.num_nodes, getattr(self.launcher, "procs", ()))
        super().setup_environment()


class EndAtSignal(Callback):
    """SIGINT and SIGTERM end an embedding or a validation: Lightning only makes a note of SIGTERM.

    Training has its own handlers, which keep a checkpoint.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remembers the handlers of before: Lightning gives them back after a fault alone."""
        self._before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the signals back."""
        while self._before:
            signal.signal(*self._before.popitem())

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the signals over."""
        for signum in STOP_SIGNALS:
            signal.signal(signum, _end)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As above, unless it is a part of training."""
        if trainer.state.fn != TrainerFn.FITTING:
            self.on_predict_start(trainer, pl_module)


@contextmanager
def interruptible() -> Iterator[None]:
    """What ends here by a signal, of `EndAtSignal` or as Lightning does it, is a KeyboardInterrupt."""
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop


def take_rank(devices: int, num_nodes: int) -> int:
    """The global rank of this process in a run of so many devices a node; Lightning is told too.

    Raises:
        InputError: a launcher has started another number of processes, or nothing says which node this is.
    """
    processes = devices * num_nodes
    launched = _launched()
    if launched is None:
        rank = _rank_of_own_launch(devices, num_nodes)
    else:
        rank = launched.global_rank()
        if launched.world_size() != processes and (rank or processes > 1):
            raise InputError(
                f"--num_nodes {num_nodes} with {devices} devices are {processes} processes, and the launcher "
                f"({type(launched).__name__.removesuffix('Environment')}) has started "
                f"{launched.world_size()}. Start one process a device: as many on each node as --gpus or "
                "--cpu_processes says."
            )
    rank_zero_only.rank = rank  # type: ignore[attr-defined]
    if "MASTER_PORT" in os.environ:
        watch(rank, processes)
    return rank


def watch_launched() -> None:
    """Under torchrun all processes are there from the first line on: a fault of flags is printed once."""
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
    # No KeyboardInterrupt: at that Lightning kills the other processes, which would look like their fault.
    raise SystemExit(128 + signum)


def _launched() -> ClusterEnvironment | None:
    """What started all processes of the run, where it is not Lightning."""
    try:
        return next((kind() for kind in _LAUNCHERS if kind.detect()), None)
    except RuntimeError as fault:
        raise InputError(f"The environment of the launcher cannot be used: {fault}") from None

"""Run the embedding of a feature store's pending parts over devices and nodes, with Lightning.

The one module of `features` that imports Lightning; `features.extract` imports it inside a function.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader

from data.sources.face_loader import FaceBatch, Faces, face_loader
from features.options import EmbedOptions
from features.process_group import EndAtSignal, WatchedDDP, interruptible
from features.store import MANIFEST, STAMP, FeatureWriter, StoreLayout
from net import Backbone
from runtime.distributed import gather_union
from runtime.errors import InputError
from runtime.matmul_precision import EXACT, FAST, matmul_precision
from runtime.progress import progress_bar

# Of Lightning, and of PyTorch's loader about the number of processors: --num_workers has one default for all.
_EXPECTED_WARNINGS = (
    *("does not have many workers", "LeafSpec", "predict returned None"),
    "This DataLoader will create",
)
# Folder, layout, identity and further facts of a store.
Place = tuple[Path, StoreLayout, dict[str, str], dict[str, str]]
# Backbone, (N, 3, H, W) uint8, flip rule -> unit features, norms (`features.extract.embed_batch`).
EmbedBatch = Callable[[Backbone, Tensor, str], tuple[Tensor, Tensor]]


def embed_pending_parts(
    backbone: Backbone,
    embed_batch: EmbedBatch,
    faces: Faces,
    options: EmbedOptions,
    columns: Mapping[str, NDArray[Any]],
    place: Place,
    name: str,
) -> dict[int, str]:
    """Embed and write the parts of a store that are not there; each process takes every n-th.

    Returns:
        Faults of images by their number, the same on all ranks.
    """
    module = _Embedding(backbone, embed_batch, faces, options, columns, place)
    with _quiet_lightning():
        trainer = _trainer(options, name)
        with interruptible():
            trainer.predict(module, return_predictions=False)
    return gather_union(module.faults)


def process_rank() -> int:
    """Rank of this process as its launcher gives it, whether there is a process group or not."""
    rank: int = rank_zero_only.rank  # type: ignore[attr-defined]
    return rank


class _Embedding(pl.LightningModule):
    """The parts of one process: every n-th of those that are pending."""

    def __init__(
        self,
        backbone: Backbone,
        embed_batch: EmbedBatch,
        faces: Faces,
        options: EmbedOptions,
        columns: Mapping[str, NDArray[Any]],
        place: Place,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self._embed_batch = embed_batch
        self.faults: dict[int, str] = {}
        self.pending: list[int] = []
        self._faces, self._options, self._columns = faces, options, columns
        self._place = place
        self.layout = place[1]
        self._made: list[tuple[Tensor, Tensor]] = []
        # There may be fewer parts than processes.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def setup(self, stage: str) -> None:
        """Broadcast from rank 0 which parts are pending, so that none is left out or computed twice."""
        folder = self._place[0]
        stamps = {STAMP: self._columns[STAMP]}
        pending = FeatureWriter(*self._place).pending(stamps) if self.global_rank == 0 else []
        self.pending = self.trainer.strategy.broadcast(pending)
        if not (folder / MANIFEST).is_file():
            raise InputError(
                f"{folder}: not all nodes see this folder. It has to be on a disk that they share."
            )
        self._writer = FeatureWriter(*self._place)
        self._mine = self.pending[self.global_rank :: self.trainer.world_size]

    def predict_dataloader(self) -> DataLoader[Any]:
        """The faces of this process's parts, in order."""
        return face_loader(
            self._faces,
            self.backbone.spec,
            [row for part in self._mine for row in self.layout.rows(part)],
            batch_size=self._options.batch_size,
            num_workers=self._options.num_workers,
            pin_memory=self._options.gpu,
        )

    def predict_step(self, batch: FaceBatch, batch_idx: int) -> None:
        """Embed a batch and write the parts that it completes."""
        self.faults |= batch.faults
        with matmul_precision(FAST if batch.images.is_cuda else EXACT):
            self._made.append(self._embed_batch(self.backbone, batch.images, self._options.flip))
        while self._mine and sum(len(norms) for _, norms in self._made) >= len(
            self.layout.rows(self._mine[0])
        ):
            self._write(self._mine.pop(0))

    def _write(self, part: int) -> None:
        rows = self.layout.rows(part)
        features, norms = (torch.cat(column) for column in zip(*self._made, strict=True))
        self._made = [(features[len(rows) :], norms[len(rows) :])]
        if any(number in self.faults for number in rows):
            return
        arrays = {
            # One transfer a part, so that a GPU does not wait for each batch.
            "features": features[: len(rows)].float().cpu().numpy(),
            "norms": norms[: len(rows)].float().cpu().numpy(),
            **{name: column[rows.start : rows.stop] for name, column in self._columns.items()},
        }
        self._writer.write_part(part, arrays)


class _Bar(Callback):
    """Progress in images over all processes, extrapolated from rank 0."""

    def __init__(self, name: str) -> None:
        self._name = name

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start at the number of rows that are there already."""
        self._total: int = pl_module.layout.num_rows
        pending = sum(len(pl_module.layout.rows(part)) for part in pl_module.pending)
        self._bar = progress_bar(
            total=self._total,
            initial=self._total - pending,
            desc=f"embedding {self._name}",
            unit=" images",
            unit_scale=True,
            mininterval=1,
            disable=not trainer.is_global_zero,
        )

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: FaceBatch, *_: Any
    ) -> None:
        """Count a batch of each process."""
        count = len(batch.numbers) * trainer.world_size
        self._bar.update(min(self._total - int(self._bar.n), count))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._bar.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar, so that the message begins on its own line."""
        if hasattr(self, "_bar"):
            self._bar.close()


def _trainer(options: EmbedOptions, name: str) -> pl.Trainer:
    backend = "nccl" if options.gpu else "gloo"
    several = options.devices * options.num_nodes > 1
    return pl.Trainer(
        accelerator="gpu" if options.gpu else "cpu",
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=WatchedDDP(process_group_backend=backend) if several else "auto",
        precision=options.precision,  # type: ignore[arg-type]
        # All batches of a process but its last have one shape.
        benchmark=options.gpu,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[EndAtSignal(), _Bar(name)],
    )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    logger = logging.getLogger("pytorch_lightning")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in _EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", f".*{message}")
            yield
    finally:
        logger.setLevel(before)

"""Order is arithmetic: any number of processes, any starting point."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from data.sampling.positions import Item, PositionSampler
from runtime.errors import InputError


class Echo(Dataset[Item]):
    def __getitem__(self, item: Item) -> Item:
        return item


def as_given(items: list[Item]) -> list[Item]:
    return items


@given(
    num_rows=st.integers(1, 50),
    batch_size=st.integers(1, 6),
    world_size=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 2**40),
    num_items=st.one_of(st.none(), st.integers(1, 130)),
    shuffle=st.booleans(),
)
def test_ranks_together_see_the_batches_of_one(
    num_rows: int, batch_size: int, world_size: int, seed: int, num_items: int | None, shuffle: bool
) -> None:
    total = batch_size * world_size
    common = {"num_rows": num_rows, "seed": seed, "num_items": num_items, "epoch": 3, "shuffle": shuffle}
    if (num_items or num_rows) < total:
        with pytest.raises(InputError, match="fewer than one batch"):
            PositionSampler(batch_size=total, **common)
        return
    alone = list(PositionSampler(batch_size=total, **common))
    ranks = [
        list(PositionSampler(batch_size=batch_size, rank=rank, world_size=world_size, **common))
        for rank in range(world_size)
    ]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == alone
    assert len(alone) == (num_items or num_rows) // total
    assert [item.position for batch in alone for item in batch] == list(range(len(alone) * total))
    assert {item.epoch for batch in alone for item in batch} == {3}


@given(start=st.integers(0, 12), epoch=st.integers(0, 5))
def test_resuming_is_arithmetic(start: int, epoch: int) -> None:
    sampler = PositionSampler(num_rows=50, batch_size=4, seed=1, epoch=epoch)
    whole = list(sampler)
    resumed = PositionSampler(num_rows=50, batch_size=4, seed=1, epoch=epoch, start=start)
    assert len(resumed) == len(whole) == 12
    assert list(resumed) == whole[start:]
    assert list(resumed) == whole
    resumed.start = start
    assert list(resumed) == whole[start:]


def test_every_row_comes_once_a_pass_in_another_order_each_epoch() -> None:
    sampler = PositionSampler(num_rows=20, batch_size=4, seed=5)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append([item.row for batch in sampler for item in batch])
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] == np.random.default_rng([5, 0]).permutation(20).tolist()


def test_more_items_than_rows_are_passes_in_a_row() -> None:
    sampler = PositionSampler(num_rows=6, num_items=18, batch_size=3, seed=0)
    rows = [item.row for batch in sampler for item in batch]
    passes = [rows[first : first + 6] for first in (0, 6, 12)]
    assert all(sorted(part) == list(range(6)) for part in passes)
    assert passes[0] != passes[1]


def test_fewer_items_than_rows_are_a_part_of_the_pass() -> None:
    part = PositionSampler(num_rows=100, num_items=10, batch_size=5, seed=0)
    whole = PositionSampler(num_rows=100, batch_size=5, seed=0)
    assert len(part) == 2
    assert list(part) == list(whole)[:2]


def test_without_shuffling_rows_come_in_order() -> None:
    sampler = PositionSampler(num_rows=7, batch_size=3, seed=0, shuffle=False)
    assert [item.row for batch in sampler for item in batch] == [0, 1, 2, 3, 4, 5]


def test_running_pass_is_not_changed() -> None:
    sampler = PositionSampler(num_rows=20, batch_size=4, seed=5)
    expected = list(sampler)
    batches = iter(sampler)
    first = next(batches)
    sampler.set_epoch(9)
    sampler.start = 3
    assert [first, *batches] == expected


def test_discarded_pass_does_not_consume_the_start() -> None:
    sampler = PositionSampler(num_rows=20, batch_size=4, seed=5, start=2)
    iter(sampler)
    assert next(iter(sampler))[0].position == 8


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_gets_the_same_items_with_and_without_workers(num_workers: int) -> None:
    sampler = PositionSampler(num_rows=21, batch_size=4, seed=5, start=2)
    loader = DataLoader(Echo(), batch_sampler=sampler, num_workers=num_workers, collate_fn=as_given)
    assert len(loader) == 5
    expected = list(PositionSampler(num_rows=21, batch_size=4, seed=5))
    assert list(loader) == expected[2:]
    assert list(loader) == expected


class Recorder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, batch: torch.Tensor, _number: int) -> torch.Tensor:
        self.seen.append(batch.flatten().tolist())
        return (self.weight * 0).sum()

    def train_dataloader(self) -> DataLoader[Item]:
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        sampler = PositionSampler(
            num_rows=20, batch_size=4, seed=1, epoch=self.trainer.current_epoch, start=done
        )
        return DataLoader(Echo(), batch_sampler=sampler, num_workers=2, collate_fn=torch.tensor)


class SaveAt(Callback):
    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_others: object) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore")
def test_lightning_sees_each_epoch_and_resumes_within_one(tmp_path: Path) -> None:
    def fit(checkpoint: Path | None, *callbacks: Callback) -> list[list[int]]:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=3,
            callbacks=list(callbacks),
            default_root_dir=tmp_path,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            logger=False,
            use_distributed_sampler=False,
        )
        recorder = Recorder()
        trainer.fit(recorder, ckpt_path=checkpoint)
        return recorder.seen

    whole = fit(None, SaveAt(7, tmp_path / "at7.ckpt"))
    sampler = PositionSampler(num_rows=20, batch_size=4, seed=1)
    expected = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        expected += [torch.tensor(batch).flatten().tolist() for batch in sampler]
    assert whole == expected
    assert fit(tmp_path / "at7.ckpt") == expected[7:]


def test_epoch_shorter_than_a_batch_is_refused() -> None:
    with pytest.raises(InputError, match=r"7 items, fewer than one batch of 8 \(4 on each of 2 processes\)"):
        PositionSampler(num_rows=7, batch_size=4, world_size=2, seed=0)

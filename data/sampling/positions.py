"""The order of training: which row is at which position of an epoch, for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from runtime.errors import InputError


class Item(NamedTuple):
    """One draw; everything random about it depends on the seed, `epoch` and `position` only."""

    epoch: int
    position: int
    row: int


class PositionSampler(Sampler[list[Item]]):
    """Yields batches of items: `DataLoader(dataset, batch_sampler=PositionSampler(...))`.

    Position p of an epoch has row `permutation[p]`, with a permutation that depends on seed and epoch. Global
    batch g has the positions from g * batch_size * world_size, split into consecutive parts by rank: two
    ranks with half the batch size see the same global batches as one. An incomplete last batch is dropped.

    Args:
        num_rows: rows to draw from.
        batch_size: items per rank.
        seed: of the permutations.
        num_items: positions of an epoch; None means `num_rows`, more means several permutations.
        epoch: number of the next pass.
        start: first batch of the next pass; reset to 0 afterwards, so that the following epoch is complete.
        rank: of this process.
        world_size: number of processes.
        shuffle: False keeps the rows in order.
        repeats: consecutive positions with the same row, such as two templates of one subject.

    Raises:
        InputError: an epoch has less than one batch.
    """

    def __init__(
        self,
        *,
        num_rows: int,
        batch_size: int,
        seed: int,
        num_items: int | None = None,
        epoch: int = 0,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        repeats: int = 1,
    ) -> None:
        self.num_rows = num_rows
        self.num_items = num_rows if num_items is None else num_items
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.start = start
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.repeats = repeats
        if not len(self):
            raise InputError(
                f"an epoch has {self.num_items:,} items, fewer than one batch of {batch_size * world_size:,} "
                f"({batch_size:,} on each of {world_size} processes). Lower --batch_size or use more data."
            )

    @property
    def sampler(self) -> PositionSampler:
        """Itself: Lightning calls `batch_sampler.sampler.set_epoch` before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_items // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[Item]]:
        # A generator, so that `start` is consumed at the first batch: a DataLoader with workers creates two
        # iterators and discards the first.
        epoch, start = self.epoch, self.start
        self.start = 0
        rows = self._rows(epoch)
        global_batch = self.batch_size * self.world_size
        for number in range(start, len(self)):
            first = number * global_batch + self.rank * self.batch_size
            positions = range(first, first + self.batch_size)
            yield [
                Item(epoch, p, int(row))
                for p, row in zip(positions, rows[first : positions.stop], strict=True)
            ]

    def _rows(self, epoch: int) -> NDArray[np.int64]:
        passes = -(-self.num_items // (self.num_rows * self.repeats))
        if not self.shuffle:
            return np.tile(np.arange(self.num_rows), passes).repeat(self.repeats)
        rng = np.random.default_rng([self.seed, epoch])
        return np.concatenate([rng.permutation(self.num_rows) for _ in range(passes)]).repeat(self.repeats)

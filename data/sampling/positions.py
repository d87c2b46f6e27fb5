"""Which row stands at which position of which epoch: arithmetic on integers, for any number of processes.

The one source of order in training. It knows no images; `data.sampling.templates` makes something of each
item.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from runtime.errors import InputError


class Item(NamedTuple):
    """One draw: all that is random about it follows from the seed, `epoch` and `position`."""

    epoch: int
    position: int
    row: int


class PositionSampler(Sampler[list[Item]]):
    """Yields batches of items: `DataLoader(dataset, batch_sampler=PositionSampler(...))`.

    Position p of an epoch holds row `permutation[p]`, where the permutation follows from seed and epoch.
    Global batch g holds the positions from g * batch_size * world_size on, of which each rank takes
    `batch_size` in a row: two ranks with half the batch see together what one rank sees. An incomplete last
    batch is left out.

    `num_rows`: rows to draw from. `num_items`: positions of an epoch, `num_rows` where it is None; where it
    is more, one permutation follows another. `repeats`: so many positions in a row hold the same row, such as
    two templates of one subject. `batch_size`: items of one rank. `start`: batch number that the
    next pass begins at; it holds for that pass alone and is 0 again after it, so that the epoch after a
    resumed one is whole.

    Raises:
        InputError: not one whole batch in an epoch.
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
        """Itself: Lightning looks for `batch_sampler.sampler.set_epoch` before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next pass; a pass under way is not changed."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_items // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[Item]]:
        # A generator, so that start and epoch count at the first batch: DataLoader with workers asks for a
        # pass twice and throws the first away; a start used up by that would repeat what was seen.
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

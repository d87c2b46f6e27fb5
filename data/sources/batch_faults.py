"""What a loader gives for a batch with an image that cannot be used, in place of a worker's traceback.

An exception would leave a worker as a page of text, and on one process alone while the others wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from runtime.errors import InputError


class UnusableBatch:
    """A batch that cannot be trained on.

    `faults`: what is wrong with an image that cannot be used -> its subject, where the dataset says it by
    `label_of`.
    """

    def __init__(self, faults: Mapping[str, int | None]) -> None:
        self.faults = dict(faults)


class FaultsAsItems(Dataset[Any]):
    """A dataset whose InputErrors are items."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __getitem__(self, item: Any) -> Any:
        try:
            return self._dataset[item]
        except InputError as fault:
            label_of = getattr(self._dataset, "label_of", None)
            return UnusableBatch({str(fault): None if label_of is None else label_of(item)})


@dataclass(frozen=True)
class CollateWithFaults:
    """Collates items of `FaultsAsItems`; a class, so that workers can be spawned."""

    collate: Callable[[Any], Any]

    def __call__(self, items: Any) -> Any:
        """A batch, or an `UnusableBatch` with the faults of all its items."""
        if isinstance(items, UnusableBatch):
            return items
        faults: dict[str, int | None] = {}
        for item in items:
            faults |= item.faults if isinstance(item, UnusableBatch) else {}
        return UnusableBatch(faults) if faults else self.collate(items)

"""LightningDataModules of both training stages, over ranks and workers, from any position."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from data.sampling.augmentation import Augmentation
from data.sampling.positions import PositionSampler
from data.sampling.templates import (
    FaceDataset,
    HeldOutTemplates,
    TemplateBatch,
    TemplateDataset,
    collate_faces,
    collate_templates,
)
from data.sources.face_loader import Faces
from data.sources.face_source import FaceSource
from data.sources.pair_files import PairSet
from data.sources.unusable_images import CollateWithFaults, FaultsAsItems, UnusableBatch
from features.bank import FeatureBatch
from features.templates import FeatureTemplateDataset, HeldOutFeatureTemplates, TemplateSampler

if TYPE_CHECKING:
    from backbones.spec import BackboneSpec

VALIDATION_FACES = 64
VALIDATION_TEMPLATES = 8
VALIDATION_FEATURES = 256
_PREVIEWED = 20


@dataclass(frozen=True)
class Loading:
    """How batches are loaded.

    Attributes:
        batch_size: items of a batch, over all processes.
        num_workers: of each process.
        seed: of the order and of augmentation.
        accumulate: batches per optimiser step.
        epoch_items: items per epoch; None for all rows.
    """

    batch_size: int
    num_workers: int
    seed: int
    accumulate: int = 1
    epoch_items: int | None = None


class _ResumableLoader(DataLoader[Any]):
    """Tells Lightning that training can resume within an epoch.

    It has no state: the position follows from the number of optimiser steps (`position_after`).
    """

    def state_dict(self) -> dict[str, Any]:
        """No state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The sampler starts at the position of the checkpoint."""


class TrainingData(LightningDataModule):
    """Shards over ranks; the position within an epoch follows from the number of optimiser steps.

    `repeats`: consecutive positions with the same row.
    """

    # Patterns of Lightning's warnings about intended settings.
    expected_warnings: tuple[str, ...] = ()

    def __init__(
        self, dataset: Dataset[Any], collate: Callable[[Any], Any], loading: Loading, repeats: int = 1
    ) -> None:
        super().__init__()
        self.loading = loading
        self._dataset = dataset
        self._collate = collate
        self._repeats = repeats

    def train_dataloader(self) -> DataLoader[Any]:
        """Training batches of one rank."""
        sampler = self.sampler()
        if self.trainer is not None:
            epoch, start = position_after(self.trainer.global_step, len(sampler), self.loading.accumulate)
            sampler.set_epoch(epoch)
            sampler.start = start
        return self._loader(self._dataset, self._collate, kind=_ResumableLoader, batch_sampler=sampler)

    def sampler(self) -> PositionSampler:
        """The order of this rank's items; without a trainer, of a single process."""
        rank, world_size = self._rank_and_world_size()
        return PositionSampler(
            num_rows=len(self._dataset),  # type: ignore[arg-type]
            num_items=self.loading.epoch_items,
            batch_size=self.loading.batch_size // world_size,
            seed=self.loading.seed,
            rank=rank,
            world_size=world_size,
            repeats=self._repeats,
        )

    def _validation_loader(
        self, dataset: Dataset[Any], count: int, batch_size: int, collate: Callable[[Any], Any]
    ) -> DataLoader[Any]:
        return self._loader(
            _Numbered(dataset),
            _collate_numbered(collate),
            sampler=rank_share(count, *self._rank_and_world_size()),
            batch_size=batch_size,
        )

    def _loader(
        self,
        dataset: Dataset[Any],
        collate: Callable[[Any], Any],
        *,
        kind: type[DataLoader[Any]] = DataLoader,
        **how: Any,
    ) -> DataLoader[Any]:
        workers = self.loading.num_workers
        # Datasets that return whole batches read no images.
        if not hasattr(dataset, "__getitems__"):
            dataset, collate = FaultsAsItems(dataset), CollateWithFaults(collate)
        return kind(
            dataset,
            num_workers=workers,
            collate_fn=collate,
            # Starting workers costs a second per epoch.
            persistent_workers=workers > 0,
            worker_init_fn=_one_thread if workers else None,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            **how,
        )

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


class FaceData(TrainingData):
    """Backbone stage: single faces to train on, pair sets to validate on.

    Training batches are images (B, 3, 112, 112) uint8 and labels (B,).
    """

    def __init__(
        self,
        source: FaceSource,
        spec: BackboneSpec,
        augmentation: Augmentation,
        pair_sets: Sequence[PairSet],
        loading: Loading,
    ) -> None:
        super().__init__(FaceDataset(source, spec, augmentation, seed=loading.seed), collate_faces, loading)
        self._spec = spec
        self.pair_sets = list(pair_sets)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """One loader a pair set: (numbers (B,), (images (B, 3, 112, 112) uint8, zeros))."""
        return [
            self._validation_loader(
                _PairImages(pairs, self._spec), len(pairs.images), VALIDATION_FACES, collate_faces
            )
            for pairs in self.pair_sets
        ]


class TemplateTrainingData(TrainingData):
    """Coreset stage: templates to train on, and of held-out subjects to validate on.

    `keeps_features`: the module keeps the features of a frozen backbone, so held-out templates are loaded
    once, and later passes yield their numbers only.
    """

    held_out: HeldOutTemplates | HeldOutFeatureTemplates
    keeps_features = False
    _once: _LoadedOnce | None = None
    _collate_held_out: Callable[[Any], Any]

    @abstractmethod
    def preview_images(self, batch: Any) -> TemplateBatch | None:
        """The images of a batch; None where they are unknown."""

    def held_out_batch(self, numbers: Sequence[int]) -> Any:
        """The held-out templates of these numbers as one batch."""
        return self._collate_held_out([self.held_out[number] for number in numbers])

    def example(self, count: int) -> Any:
        """The first held-out probe templates, for a preview."""
        return self.held_out_batch(np.flatnonzero(~self.held_out.is_gallery)[:count].tolist())

    def _held_out_loader(self, batch_size: int) -> DataLoader[Any] | _LoadedOnce:
        count = len(self.held_out)
        loader = self._validation_loader(self.held_out, count, batch_size, self._collate_held_out)
        if not self.keeps_features:
            return loader
        if self._once is None:
            self._once = _LoadedOnce(loader)
        return self._once


class _LoadedOnce:
    """Yields (numbers, templates) in the first complete pass, then (numbers, None)."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader: DataLoader[Any] | None = loader
        self._numbers: list[NDArray[np.int64]] = []

    def __len__(self) -> int:
        return len(self._numbers if self._loader is None else self._loader)

    def __iter__(self) -> Iterator[Any]:
        if self._loader is None:
            yield from ((numbers, None) for numbers in self._numbers)
            return
        seen: list[NDArray[np.int64]] = []
        count = len(self._loader)
        for batch in self._loader:
            if isinstance(batch, UnusableBatch):
                yield batch
                return
            numbers, templates = batch
            seen.append(numbers)
            if len(seen) == count:
                # Before the last batch, after which Lightning stops iterating. The workers end.
                self._numbers, self._loader = seen, None
            yield numbers, templates


class TemplateData(TemplateTrainingData):
    """Coreset stage from images: batches are `TemplateBatch`.

    `paired`: positions 2p and 2p+1 are templates of one subject.
    """

    _collate_held_out = staticmethod(collate_templates)

    def __init__(
        self,
        source: FaceSource,
        spec: BackboneSpec,
        augmentation: Augmentation,
        held_out: HeldOutTemplates,
        loading: Loading,
        *,
        max_template_size: int,
        sample_by: str,
        paired: bool = False,
        keeps_features: bool = False,
    ) -> None:
        dataset = TemplateDataset(
            source,
            spec,
            augmentation,
            seed=loading.seed,
            max_template_size=max_template_size,
            sample_by=sample_by,
        )
        super().__init__(dataset, collate_templates, loading, 2 if paired else 1)
        self.held_out: HeldOutTemplates = held_out
        self.keeps_features = keeps_features

    def val_dataloader(self) -> DataLoader[Any] | _LoadedOnce:
        """(numbers (B,), TemplateBatch) of the held-out templates."""
        return self._held_out_loader(VALIDATION_TEMPLATES)

    def preview_images(self, batch: TemplateBatch) -> TemplateBatch:
        """See the base class."""
        return batch


class FeatureTemplateData(TemplateTrainingData):
    """Coreset stage from features: batches are `FeatureBatch`, rows of a bank in place of images.

    `faces`: the images of the rows, for previews; None where they are unknown. There are no workers, since a
    batch is drawn in a few milliseconds.
    """

    expected_warnings = (".*does not have many workers",)
    keeps_features = True

    def __init__(
        self,
        template_sampler: TemplateSampler,
        held_out: HeldOutFeatureTemplates,
        loading: Loading,
        spec: BackboneSpec,
        faces: Faces | None,
    ) -> None:
        repeats = 2 if template_sampler.recipe.paired else 1
        dataset = FeatureTemplateDataset(template_sampler)
        super().__init__(dataset, _identity, replace(loading, num_workers=0), repeats)
        self._spec = spec
        self._faces = faces
        self.held_out: HeldOutFeatureTemplates = held_out
        self._collate_held_out = held_out.collate

    def val_dataloader(self) -> DataLoader[Any] | _LoadedOnce:
        """(numbers (B,), FeatureBatch) of the held-out templates."""
        return self._held_out_loader(VALIDATION_FEATURES)

    def preview_images(self, batch: FeatureBatch) -> TemplateBatch | None:
        """Images of the first templates of a batch; None where they are unknown."""
        if self._faces is None:
            return None
        count = min(len(batch), _PREVIEWED)
        faces = int(batch.offsets[count])
        images = np.stack([self._faces.image(row) for row in batch.rows[:faces].tolist()])
        return TemplateBatch(
            images=torch.from_numpy(self._spec.from_rgb(images)),
            offsets=batch.offsets[: count + 1].cpu(),
            labels=batch.labels[:count].cpu(),
            media=batch.media[:faces].cpu(),
        )


def position_after(global_step: int, batches: int, accumulate: int) -> tuple[int, int]:
    """(epoch, batch) at which training continues after `global_step` optimiser steps.

    The last step of an epoch of `batches` may have fewer than `accumulate` of them.
    """
    epoch, step = divmod(global_step, -(-batches // accumulate))
    return epoch, step * accumulate


def rank_share(count: int, rank: int, world_size: int) -> list[int]:
    """Every `world_size`-th of `count` items, wrapped around so that all ranks have equally many.

    Items may occur twice; results are gathered by their numbers.
    """
    padded = -(-count // world_size) * world_size
    return [number % count for number in range(rank, padded, world_size)]


class _Numbered(Dataset[tuple[int, Any]]):
    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __getitem__(self, number: int) -> tuple[int, Any]:
        return number, self._dataset[number]


@dataclass(frozen=True)
class _collate_numbered:  # noqa: N801 - used as a function; a class can be pickled for workers
    collate: Callable[[Any], Any]

    def __call__(self, items: Sequence[tuple[int, Any]]) -> tuple[NDArray[np.int64], Any]:
        return np.array([number for number, _ in items]), self.collate([item for _, item in items])


class _PairImages(Dataset[tuple[NDArray[np.uint8], int]]):
    def __init__(self, pairs: PairSet, spec: BackboneSpec) -> None:
        self._pairs = pairs
        self._spec = spec

    def __getitem__(self, number: int) -> tuple[NDArray[np.uint8], int]:
        return self._spec.from_rgb(self._pairs.image(number)), 0


def _identity(batch: Any) -> Any:
    return batch


def _one_thread(_worker: int) -> None:
    cv2.setNumThreads(0)

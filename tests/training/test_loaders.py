"""Loaders of both stages: positions, shares of ranks, validation by number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.sampling.augmentation import Augmentation
from data.sampling.templates import HeldOutTemplates
from data.sources.face_source import ImageFolder
from data.sources.pair_files import PairSet
from net import BACKBONES
from training.loaders import FaceData, Loading, TemplateData, position_after, rank_share

SPEC = BACKBONES["ir_tiny"]
NEVER = Augmentation(0.0, 0.0, 0.0)


@given(st.integers(0, 200), st.integers(1, 30), st.integers(1, 5))
def test_position_follows_from_the_step(steps: int, batches: int, accumulate: int) -> None:
    # Steps one by one: a step ends after `accumulate` batches, or with the epoch.
    epoch = batch = 0
    for _ in range(steps):
        batch = min(batch + accumulate, batches)
        if batch == batches:
            epoch, batch = epoch + 1, 0
    assert position_after(steps, batches, accumulate) == (epoch, batch)


@given(st.integers(1, 50), st.integers(1, 6))
def test_ranks_share_everything_evenly(count: int, world_size: int) -> None:
    shares = [rank_share(count, rank, world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    assert set().union(*shares) == set(range(count))
    assert sum(map(len, shares)) - count < world_size


@pytest.mark.parametrize("workers", [0, 2])
def test_held_out_templates_are_numbered(face_folder: Callable[..., Path], workers: int) -> None:
    source = ImageFolder(face_folder(4, 4))
    held_out = HeldOutTemplates(source, SPEC, NEVER, seed=0, max_template_size=3)
    loading = Loading(batch_size=2, num_workers=workers, seed=0, epoch_items=6)
    module = TemplateData(source, SPEC, NEVER, held_out, loading, max_template_size=3, sample_by="image")
    assert len(list(module.train_dataloader())) == 3
    seen = [(numbers.tolist(), batch.labels) for numbers, batch in module.val_dataloader()]
    numbers = [number for part, _ in seen for number in part]
    assert numbers == list(range(len(held_out)))
    assert torch.cat([labels for _, labels in seen]).tolist() == held_out.labels.tolist()
    example = module.example(2)
    assert example.labels.tolist() == held_out.labels[~held_out.is_gallery][:2].tolist()
    module.keeps_features = True
    next(iter(module.val_dataloader()))
    for number, (part, batch) in enumerate(module.val_dataloader()):
        assert (part.tolist(), batch.labels.tolist()) == (seen[number][0], seen[number][1].tolist())
    assert len(module.val_dataloader()) == len(seen)
    again = [(part.tolist(), batch) for part, batch in module.val_dataloader()]
    assert again == [(part, None) for part, _ in seen]
    assert torch.equal(module.held_out_batch(seen[0][0]).labels, seen[0][1])


def test_pair_images_come_in_the_order_of_the_spec(
    face_folder: Callable[..., Path], drawn_face: Callable[[int, int], bytes]
) -> None:
    source = ImageFolder(face_folder(2, 2))
    pairs = PairSet("p", [drawn_face(s, n) for s in range(2) for n in range(2)], np.array([True, True]))
    module = FaceData(source, SPEC, NEVER, [pairs], Loading(batch_size=2, num_workers=0, seed=0))
    ((numbers, (images, _)),) = list(module.val_dataloader()[0])
    assert numbers.tolist() == [0, 1, 2, 3]
    assert np.array_equal(images[2].numpy(), SPEC.from_rgb(pairs.image(2)))


def test_epoch_has_the_requested_number_of_items(face_folder: Callable[..., Path]) -> None:
    source = ImageFolder(face_folder(3, 4))
    module = FaceData(source, SPEC, NEVER, [], Loading(batch_size=2, num_workers=0, seed=0, epoch_items=30))
    assert [len(labels) for _, labels in module.train_dataloader()] == [2] * 15

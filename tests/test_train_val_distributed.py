"""Several processes train as one does: equal loss and gradients, and a gradient for every parameter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from backbones.auxiliary import append_auxiliary
from backbones.base import UnknownBackbone
from coreset import AGGREGATORS, build_aggregator
from features.bank import FeatureBatch
from head import build_head
from runtime.distributed import NumberedRows, gather_union
from runtime.errors import InputError
from train_val import FaceCoresetNet
from training.config import AggregatorConfig, OptimiserConfig

D, A, S, B = 16, 4, 12, 16
# A hang is an error after so long.
PATIENCE = timedelta(seconds=60)
RECIPE = OptimiserConfig(lr=1e-3, weight_decay=1e-4, contrast_weight=1.0, identity_mixup_prob=0.5)
# Every way to make a parameter that a batch of one-face templates might leave without a gradient.
LEARNED_SELECTION = {"learn_gamma": True, "learn_temperature": True, "quality": "learned"}


def trained_aggregators() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in AGGREGATORS:
        try:
            aggregator = build_aggregator(name, {"embedding_size": D})
        except InputError:
            continue  # A pooling, which has no such option.
        if any(True for _ in aggregator.parameters()):
            yield name, {"embedding_size": D}
    yield "coreset", {"embedding_size": D} | LEARNED_SELECTION


class Step(nn.Module):
    """The loss of a batch, as the Trainer calls it."""

    def __init__(self, module: FaceCoresetNet) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: FeatureBatch) -> Tensor:
        return self.module._loss(batch, seed=5)[0]


def step_of(
    aggregator: str, options: dict[str, Any], head: str = "cosface", auxiliary: int = 0, **recipe: Any
) -> Step:
    """Random weights everywhere, so that all gradients are large, and the same on all processes."""
    torch.manual_seed(0)
    module = FaceCoresetNet(
        UnknownBackbone(D + auxiliary, auxiliary),
        build_head(head, D, S),
        replace(RECIPE, **recipe),
        aggregator=AggregatorConfig(aggregator=aggregator),
        aggregator_options=options,
        steps_per_epoch=1,
        subject_means=F.normalize(torch.randn(S, D), dim=1) if auxiliary else None,
        seed=0,
        identity={},
        subjects=[str(number) for number in range(S)],
    )
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    module._log_selection = lambda *_: None  # type: ignore[method-assign]
    return Step(module)


def batch_of(sizes: Tensor, auxiliary: int = 0) -> FeatureBatch:
    """Pairs of templates of so many faces; a subject may come in two pairs."""
    torch.manual_seed(1)
    faces = int(sizes.sum())
    labels = torch.randint(S, (len(sizes) // 2,)).repeat_interleave(2)
    features = F.normalize(torch.randn(faces, D), dim=1)
    if auxiliary:
        features = append_auxiliary(features, torch.randn(faces, auxiliary))
    offsets = F.pad(sizes.cumsum(0), (1, 0))
    return FeatureBatch(
        features, torch.rand(faces) * 20 + 5, offsets, labels, torch.arange(faces), torch.arange(faces)
    )


def part_of(batch: FeatureBatch, rank: int, processes: int) -> FeatureBatch:
    count = len(batch) // processes
    first, last = rank * count, (rank + 1) * count
    faces = slice(int(batch.offsets[first]), int(batch.offsets[last]))
    return FeatureBatch(
        batch.features[faces],
        batch.norms[faces],
        batch.offsets[first : last + 1] - batch.offsets[first],
        batch.labels[first:last],
        batch.media[faces],
        batch.rows[faces],
    )


def good_steps() -> dict[str, Step]:
    """The whole recipe `good` without dropout, whose draws are not by template; also with adaface's state."""
    options = {"embedding_size": D + A, "auxiliary_size": A, "width": 16, "dropout": 0.0}
    coreset = {"embedding_size": D, "num_heads": 4, "dropout": 0.0, "gumbel_noise": False}
    return {
        "good": step_of("weighted_coreset", options, auxiliary=A),
        "adaface": step_of("coreset", coreset, "adaface", auxiliary=A),
    }


def good_results(rank: int, processes: int) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
    """Loss, and gradients and state after one batch, for each of `good_steps`."""
    batch = part_of(batch_of(torch.arange(B) % 6 + 1, A), rank, processes)
    results = {}
    for name, step in good_steps().items():
        # Kept by a name: without its wrapper a backward averages nothing.
        wrapped = DistributedDataParallel(step) if processes > 1 else step
        loss = wrapped(batch)
        loss.backward()
        gradients = {key: value.grad for key, value in step.named_parameters() if value.requires_grad}
        results[name] = loss.detach(), gradients | dict(step.named_buffers())
    return results


def one_face_steps(rank: int) -> None:
    """Two steps of every aggregator; all templates of process 0 have one face."""
    sizes = torch.ones(8, dtype=torch.int64) if rank == 0 else torch.arange(8) % 5 + 1
    for name, options in trained_aggregators():
        for weight in (0.0, 1.0):
            step = DistributedDataParallel(step_of(name, options, contrast_weight=weight))
            for _ in range(2):
                step(batch_of(sizes)).backward()


def process(rank: int, processes: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting{processes}",
        rank=rank,
        world_size=processes,
        timeout=PATIENCE,
    )
    torch.save(good_results(rank, processes), f"{folder}/{processes}_{rank}.pt")
    if processes == 2:
        one_face_steps(rank)
        rows = NumberedRows()
        for first in (0, 2):
            numbers = torch.tensor([first + rank, min(first + rank + 4, 6)])
            rows.add(numbers, numbers.unsqueeze(1) * torch.ones(3))
        table = rows.table(7)
        assert table is not None
        assert torch.equal(table, torch.arange(7.0).unsqueeze(1).expand(7, 3))
        assert rows.table(8) is None
        assert gather_union({rank: f"fault {rank}"}) == {0: "fault 0", 1: "fault 1"}
    distributed.destroy_process_group()


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_two_processes_have_the_gradients_of_one(processes: int, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(process, args=(processes, str(tmp_path)), nprocs=processes)
    parts = [torch.load(tmp_path / f"{processes}_{rank}.pt", weights_only=True) for rank in range(processes)]
    for name, (loss, expected) in good_results(0, 1).items():
        losses = torch.stack([part[name][0] for part in parts])
        torch.testing.assert_close(losses.mean(), loss, rtol=1e-5, atol=0)
        assert loss > 1
        # Of the whole gradient: some parameters have none but rounding, such as what a softmax takes out.
        whole = torch.cat([value.flatten() for value in expected.values()]).norm()
        for part in parts:
            for key, value in expected.items():
                error = (part[name][1][key] - value).norm()
                assert error <= 1e-5 * value.norm() + 1e-7 * whole, (name, key, error)


def test_every_parameter_has_a_gradient_where_templates_have_one_face() -> None:
    for name, options in trained_aggregators():
        step = step_of(name, options)
        step(batch_of(torch.ones(8, dtype=torch.int64))).backward()
        missing = [
            key for key, value in step.named_parameters() if value.requires_grad and value.grad is None
        ]
        assert not missing, name


def test_zero_gradients_reach_non_finite_parameters() -> None:
    step = step_of("coreset", {"embedding_size": D} | LEARNED_SELECTION)
    batch = batch_of(torch.ones(8, dtype=torch.int64))
    step.module.aggregator.gamma.data.fill_(torch.inf)
    step(batch).backward()
    assert step.module.aggregator.gamma.grad == 0
    assert all(value.grad.isfinite().all() for value in step.parameters() if value.grad is not None)

"""The judge of benchmarks/studies/baselines.py: an aggregator -> the figures of its row of the table."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.studies.evaluation_set import RULES, Judged
from benchmarks.studies.tables import FARS
from coreset import FaceSets
from coreset.aggregator import CoresetAggregator
from coreset.selection import pick_agreement
from evaluation.metrics.bootstrap import PairBootstrap
from evaluation.metrics.score_normalisation import compared
from evaluation.metrics.template_pairs import verify
from evaluation.metrics.verification import rate_key
from evaluation.protocols.ijb import AggregatorFigures, evaluate_ijb
from evaluation.protocols.templates import describe_templates

_TIMED_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class Judge(Judged):
    """The benchmark, and the draws of its subjects."""

    draws: PairBootstrap

    @classmethod
    def of(cls, judged: Judged, replicates: int) -> Judge:
        """With so many draws."""
        pairs, subjects = judged.protocol.pairs, judged.protocol.subjects.astype(np.int32)
        draws = PairBootstrap(
            subjects[pairs.first], subjects[pairs.second], pairs.is_mated, replicates=replicates
        )
        return cls(**vars(judged), draws=draws)

    def figures(self, name: str, module: nn.Module) -> dict[str, Any]:
        """A row's figures, rates as fractions: TAR by FAR and its draws (R, FARs), rank-1, TPIR, speed."""
        found = evaluate_ijb(
            self.protocol, self.features, self.norms, {name: module}, RULES, cohort=self.cohort, replicates=0
        ).aggregators[name]
        seconds = []
        for _ in range(_TIMED_ROUNDS):
            start = time.process_time()
            embedding = describe_templates(module, self.features, self.norms, self.groups).embedding
            seconds.append(time.process_time() - start)
        pairs, (left, right) = self.protocol.pairs, compared(embedding, self.normalisation(module))
        scores = verify(
            left, pairs.first, pairs.second, pairs.is_mated, FARS, second_descriptors=right
        ).scores
        return {
            "tar": {rate_key(far): found.tar[rate_key(far)].strict for far in FARS},
            "drawn": self.draws.tar(scores, FARS).round(6).tolist(),
            "people": self.draws.mated_people,
            **_identification(found),
            "templates_per_second": len(self.groups) / min(seconds),
            "parameters": sum(p.numel() for p in module.parameters()),
            **self._picks(module),
        }

    def _picks(self, module: nn.Module) -> dict[str, float]:
        """How far an aggregator that draws its picks in training draws those of evaluation, and copies."""
        if not isinstance(module, CoresetAggregator):
            return {}
        rows = self.groups.rows
        sets = FaceSets(
            torch.from_numpy(self.features[rows]),
            torch.from_numpy(self.norms[rows]),
            torch.from_numpy(self.groups.offsets),
        )
        torch.manual_seed(0)
        with torch.no_grad():
            evaluated = module.eval().evaluation_picks(sets)
            drawn = module.train()(sets).picks
        module.eval()
        return {
            "agreement": float(pick_agreement(drawn, evaluated)),
            "duplicates": duplicate_share(drawn),
        }


def duplicate_share(picks: torch.Tensor) -> float:
    """Share of the picks (B, K; -1 where none) that are an earlier pick of their set again."""
    earlier = torch.ones(picks.shape[1], picks.shape[1], dtype=torch.bool).tril(-1)
    again = ((picks.unsqueeze(2) == picks.unsqueeze(1)) & earlier).any(dim=2) & (picks >= 0)
    return float(again.sum() / (picks >= 0).sum())


def _identification(found: AggregatorFigures) -> dict[str, float | None]:
    """Means over the galleries; None where the benchmark has none."""
    galleries = list(found.galleries.values())
    keys = [list(gallery.tpir) for gallery in galleries]
    tpir = [gallery.tpir[key[-1]].tpir for gallery, key in zip(galleries, keys, strict=True) if key]
    return {
        "rank1": float(np.mean([gallery.cmc["1"] for gallery in galleries])) if galleries else None,
        "tpir": float(np.mean(tpir)) if tpir else None,
    }

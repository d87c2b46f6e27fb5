"""Evaluation of all studies: a set benchmark with features and a cohort; an aggregator to its figures."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.studies.tables import FARS
from coreset import FaceSets
from coreset.aggregator import CoresetAggregator
from coreset.selection import pick_agreement
from data.sources.subject_names import read_names
from evaluation.metrics.bootstrap import PairBootstrap
from evaluation.metrics.score_normalisation import (
    DEFAULT_METHOD,
    METHODS,
    METHODS_HELP,
    NEEDS_COHORT,
    ScoreNormalisation,
    compared,
)
from evaluation.metrics.template_pairs import verify
from evaluation.metrics.verification import rate_key
from evaluation.protocols.ijb import AggregatorFigures, Cohort, Floats, Rules, evaluate_ijb, normalised_with
from evaluation.protocols.ijb_layout import SetProtocol, read_protocol
from evaluation.protocols.templates import FaceGroups, aggregate_templates, group_faces
from features.precomputed import read_features
from runtime.errors import InputError
from validation.subjects import check_cohort, cohort_bank, cohort_of

_TIMED_ROUNDS = 3
RULES = Rules.of_paper("facecoresetnet", {})


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """`features` (N, D) unit rows and `norms` (N,) of the protocol's faces, in its order; its templates.

    `auxiliary_size`: number of auxiliary features at the end of each row; `cohort`: other people, whom scores
    are normalised with; None: scores are cosines.
    """

    protocol: SetProtocol
    features: Floats
    norms: Floats
    groups: FaceGroups
    cohort: Cohort | None
    auxiliary_size: int

    def normalisation(self, module: nn.Module) -> ScoreNormalisation | None:
        """That of an aggregator's scores; None where there is no cohort."""
        if self.cohort is None:
            return None
        return normalised_with(module, self.cohort, RULES, auxiliary_size=self.auxiliary_size)

    def describe(self, module: nn.Module, groups: FaceGroups | None = None) -> Floats:
        """The descriptors (M, D) of all templates, or of `groups`."""
        faces = self.features, self.norms, self.groups if groups is None else groups
        return aggregate_templates(module, *faces, auxiliary_size=self.auxiliary_size).embedding


def add_cohort_flags(parser: argparse.ArgumentParser) -> None:
    """`--cohort` and `--score_normalisation`, as validate_ijb.py has them."""
    parser.add_argument(
        "--cohort", type=Path, help="features of other people: scores are normalised with them"
    )
    parser.add_argument(
        "--score_normalisation",
        choices=METHODS,
        help=f"how, with --cohort; {METHODS_HELP} (default: {DEFAULT_METHOD})",
    )


def cohort_method(args: argparse.Namespace) -> str:
    """The method that the flags choose.

    Raises:
        InputError: one is chosen without a cohort.
    """
    if args.score_normalisation and not args.cohort:
        raise InputError(NEEDS_COHORT)
    return args.score_normalisation or DEFAULT_METHOD


def read_evaluation_set(
    data_root: Path,
    name: str,
    features: Path,
    cohort: Path | None = None,
    evaluated_subjects: Path | None = None,
    method: str = DEFAULT_METHOD,
) -> EvaluationSet:
    """Read all without embedding; features include horizontal flips if they were extracted with them.

    `cohort`: features of people; those in `evaluated_subjects`, names one per line, are excluded;
    `method` of `evaluation.metrics.score_normalisation`.

    Raises:
        InputError: as `read_protocol` and `read_features`, or they do not belong together.
    """
    protocol = read_protocol(data_root, name)
    given = read_features(features, None)
    if len(given.norms) != len(protocol.image_names):
        raise InputError(
            f"{features}: features of {len(given.norms):,} images, and {name} has "
            f"{len(protocol.image_names):,}. They belong to another data set."
        )
    groups = group_faces(protocol.template_of_face, protocol.media, len(protocol.template_ids))
    others = None
    if cohort is not None:
        bank = cohort_bank(
            str(cohort), None if evaluated_subjects is None else read_names(evaluated_subjects)
        )
        check_cohort(bank, given.identity.get("backbone_sha256"), given.features.shape[1])
        others = cohort_of(bank, method)
    return EvaluationSet(protocol, given.features, given.norms, groups, others, given.auxiliary_size or 0)


@dataclass(frozen=True, eq=False)
class Evaluator(EvaluationSet):
    """The benchmark, and the draws of its subjects."""

    draws: PairBootstrap

    @classmethod
    def of(cls, evaluation_set: EvaluationSet, replicates: int) -> Evaluator:
        """With so many draws."""
        pairs, subjects = evaluation_set.protocol.pairs, evaluation_set.protocol.subjects.astype(np.int32)
        draws = PairBootstrap(
            subjects[pairs.first], subjects[pairs.second], pairs.is_mated, replicates=replicates
        )
        return cls(**vars(evaluation_set), draws=draws)

    def figures(self, name: str, module: nn.Module) -> dict[str, Any]:
        """A row's figures, rates as fractions: TAR by FAR and its draws (R, FARs), rank-1, TPIR, speed."""
        found = evaluate_ijb(
            *(self.protocol, self.features, self.norms, {name: module}, RULES),
            auxiliary_size=self.auxiliary_size,
            cohort=self.cohort,
            replicates=0,
        ).aggregators[name]
        seconds = []
        for _ in range(_TIMED_ROUNDS):
            start = time.process_time()
            embedding = self.describe(module)
            seconds.append(time.process_time() - start)
        pairs, (left, right) = self.protocol.pairs, compared(embedding, self.normalisation(module))
        scores = verify(
            left, pairs.first, pairs.second, pairs.is_mated, FARS, second_descriptors=right
        ).scores
        return {
            "tar": {rate_key(far): found.tar[rate_key(far)].strict for far in FARS},
            "drawn": self.draws.tar(scores, FARS).round(6).tolist(),
            "people": self.draws.mated_subjects,
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
        sets = FaceSets.from_rows(
            torch.from_numpy(self.features[rows]),
            torch.from_numpy(self.norms[rows]),
            torch.from_numpy(self.groups.offsets),
            self.auxiliary_size,
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

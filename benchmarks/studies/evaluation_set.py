"""A set benchmark that is judged by: its protocol, the features of its faces and a cohort, read together."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from data.sources.subject_names import read_names
from evaluation.metrics.score_normalisation import (
    DEFAULT_METHOD,
    METHODS,
    METHODS_HELP,
    NEEDS_COHORT,
    ScoreNormalisation,
)
from evaluation.protocols.ijb import Cohort, Floats, Rules, normalised_with
from evaluation.protocols.ijb_layout import SetProtocol, read_protocol
from evaluation.protocols.templates import FaceGroups, group_faces
from features.precomputed import read_features
from runtime.errors import InputError
from validation.subjects import check_made_alike, cohort_bank, cohort_of

RULES = Rules.of_paper("facecoresetnet", {})


@dataclass(frozen=True, eq=False)
class Judged:
    """`features` (N, D) unit rows and `norms` (N,) of the protocol's faces, in its order; its templates.

    `cohort`: other people, whom scores are normalised with; None: scores are cosines.
    """

    protocol: SetProtocol
    features: Floats
    norms: Floats
    groups: FaceGroups
    cohort: Cohort | None

    def normalisation(self, module: nn.Module) -> ScoreNormalisation | None:
        """That of an aggregator's scores; None where there is no cohort."""
        return None if self.cohort is None else normalised_with(module, self.cohort, RULES)


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


def read_judged(
    data_root: Path,
    name: str,
    features: Path,
    cohort: Path | None = None,
    evaluated_subjects: Path | None = None,
    method: str = DEFAULT_METHOD,
) -> Judged:
    """Reads all, without embedding anything; mirror images are in the features if they were made so.

    `cohort`: features of people, of whom those in `evaluated_subjects`, names one a line, are left out;
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
        check_made_alike(bank, given.identity.get("backbone_sha256"), given.features.shape[1])
        others = cohort_of(bank, method)
    return Judged(protocol, given.features, given.norms, groups, others)

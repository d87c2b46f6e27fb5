"""A benchmark of the IJB layout: features -> figures of several aggregators, 1:1 and 1:N, with intervals.

No images, networks or flags are involved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coreset.two_identity_split import TwoIdentitySplit
from evaluation.metrics.bootstrap import PairBootstrap, ProbeBootstrap, difference_interval95, rate_interval95
from evaluation.metrics.identification import TpirAtFpir, cmc, tpir_at_fpir
from evaluation.metrics.score_normalisation import DEFAULT_METHOD, ScoreNormalisation, compared
from evaluation.metrics.search import PublishedHelperRates, Search, published_helper_rates, search
from evaluation.metrics.template_pairs import verify
from evaluation.metrics.verification import RocCurve, TarAtFar, few_scores_warnings, rate_key
from evaluation.protocols.ijb_layout import SetProtocol
from evaluation.protocols.subgroups import SubgroupFigures, find_subgroups, subgroup_figures, subgroup_section
from evaluation.protocols.templates import FaceGroups, aggregate_templates, average_media, group_faces
from evaluation.reporting.published import NOT_USED, PAPER_RULES
from evaluation.reporting.report import (
    Interval,
    Result,
    Seconds,
    closed_section,
    open_section,
    verification_section,
)
from features.flips import FLIP_RULES, NO_FLIP
from runtime.errors import InputError

# What each rule may be, by its name in PAPER_RULES and result.json.
RULE_VALUES = {
    "flip": (NO_FLIP, *FLIP_RULES),
    "media": (NOT_USED, "mean"),
    "detector_score": (NOT_USED, "multiplied"),
    "norm": (NOT_USED, "multiplied"),
}
FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
RANKS = (1, 5, 10)
FPIRS = (0.01, 0.1)

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Rules:
    """What is done to faces before an aggregator sees them.

    `flip`: how features of horizontal flips were fused; `media`: whether the faces of a medium are averaged
    to one first (media-aware aggregators get the media in any case); `detector_score` and
    `norm`: whether a face's norm is multiplied by the one, and whether it is 1 without the other.
    """

    flip: str
    media: str
    detector_score: str
    norm: str

    def __post_init__(self) -> None:
        for name, values in RULE_VALUES.items():
            if (value := getattr(self, name)) not in values:
                raise InputError(f"rule {name}: {value!r} is none of {', '.join(values)}.")

    @classmethod
    def of_paper(cls, paper: str, changes: Mapping[str, str]) -> Rules:
        """The rules of a paper in `PAPER_RULES`, with `changes` to single ones."""
        return replace(cls(**PAPER_RULES[paper]), **changes)


@dataclass(frozen=True, eq=False)
class Cohort:
    """Faces of subjects outside the benchmark, for score normalisation.

    `features` (N, D) unit rows, `norms` (N,), `groups`: one template or more per subject; `name` for the
    report; `method` of `evaluation.metrics.score_normalisation.METHODS`.
    """

    name: str
    features: Floats
    norms: Floats
    groups: FaceGroups
    method: str = DEFAULT_METHOD


@dataclass(frozen=True)
class GalleryFigures:
    """One gallery searched with all probes; `tpir` is empty where no probe is non-mated."""

    search: Search
    cmc: dict[str, float]
    cmc_intervals: dict[str, Interval] | None
    tpir: dict[str, TpirAtFpir]
    tpir_intervals: dict[str, Interval] | None


@dataclass(frozen=True)
class AggregatorFigures:
    """Figures of one aggregator; intervals are None where there are too few subjects.

    `split_rate`: fraction of templates split into two identities; None without the split.
    """

    tar: dict[str, TarAtFar]
    tar_intervals: dict[str, Interval] | None
    curve: RocCurve
    galleries: dict[str, GalleryFigures]
    published_helper: PublishedHelperRates | None
    subgroups: list[SubgroupFigures] = field(default_factory=list)
    split_rate: float | None = None

    def sections(self) -> Result:
        """'verification', 'identification' and 'strata' of a result.json."""
        result: Result = {"verification": verification_section(self.tar, self.curve.auc, self.tar_intervals)}
        if self.galleries:
            result["identification"] = {
                "closed": {n: closed_section(g.cmc, g.cmc_intervals) for n, g in self.galleries.items()},
                "open": {
                    n: open_section(g.tpir, g.tpir_intervals) for n, g in self.galleries.items() if g.tpir
                },
            }
        if self.published_helper is not None:
            rates = self.published_helper
            result["published_helper_not_fpir"] = {"rank": rates.rank_rates, "accepted_at": rates.accepted_at}
        if self.subgroups:
            result["strata"] = subgroup_section(self.subgroups)
        if self.split_rate is not None:
            result["share_of_two_people"] = self.split_rate
        return result


@dataclass(frozen=True)
class Difference:
    """Strict TAR of one aggregator less that of another, by FAR, with the paired intervals."""

    name: str
    reference: str
    tar: dict[str, float]
    intervals: dict[str, Interval]


@dataclass
class IjbFigures:
    """Figures by aggregator, differences to the first one, seconds by phase, and what a reader must know."""

    aggregators: dict[str, AggregatorFigures] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    seconds: Seconds = field(default_factory=Seconds)
    warnings: list[str] = field(default_factory=list)


def evaluate_ijb(
    protocol: SetProtocol,
    features: Floats,
    norms: Floats,
    aggregators: Mapping[str, nn.Module],
    rules: Rules,
    *,
    auxiliary_size: int = 0,
    detector_scores: Floats | None = None,
    cohort: Cohort | None = None,
    two_identity_split: float | None = None,
    replicates: int = 200,
    published_helper: bool = False,
    device: torch.device | str = "cpu",
) -> IjbFigures:
    """All figures of a benchmark.

    Args:
        protocol: N faces.
        features: (N, D) unit rows, flips fused as `rules.flip` says.
        norms: (N,).
        aggregators: of `coreset.AGGREGATORS`, by the names that tables call them.
        rules: what is done to faces first.
        auxiliary_size: number of auxiliary features at the end of each row.
        detector_scores: (N,); needed where the rules use them, or an aggregator whose quality they are.
        cohort: of score normalisation; None: scores are cosines.
        two_identity_split: limit of `coreset.two_identity_split.TwoIdentitySplit`; None: each template has
            one descriptor.
        replicates: draws of subjects for the intervals; 0 gives none.
        published_helper: also the published 1:N helper's own rates, which are not FPIR.
        device: where aggregators work.

    Raises:
        InputError: features or scores of another number of faces, or as the figures' own functions.
    """
    if cohort is not None and detector_scores is not None:
        raise InputError("detector scores are used, and the cohort's faces have none.")
    if two_identity_split is not None and published_helper:
        raise InputError("the published 1:N helper compares single descriptors, not two per template.")
    found, pairs = IjbFigures(), protocol.pairs
    with found.seconds.of("prepare"):
        features, norms, groups, scores = _faces_by_rules(protocol, features, norms, detector_scores, rules)
        groupings = find_subgroups(protocol)
    with found.seconds.of("intervals"):
        pair_draws = _pair_bootstrap(protocol, replicates, found.warnings)
    drawn: dict[str, NDArray[np.float64]] = {}
    for name, aggregator in aggregators.items():
        with found.seconds.of(f"aggregate {name}"):
            module = (
                aggregator if two_identity_split is None else TwoIdentitySplit(aggregator, two_identity_split)
            )
            described = aggregate_templates(
                *(module, features, norms, groups, device),
                auxiliary_size=auxiliary_size,
                detector_scores=scores,
            ).embedding
            normalisation = None
            if cohort is not None:
                normalisation = normalised_with(
                    aggregator, cohort, rules, device, auxiliary_size=auxiliary_size
                )
            left, right = compared(described, normalisation)
        with found.seconds.of("score"):
            ends = pairs.first, pairs.second, pairs.is_mated
            verification = verify(left, *ends, FARS, second_descriptors=right)
            subgroups = subgroup_figures(groupings, verification.scores, pairs.is_mated)
        with found.seconds.of("intervals"):
            tar_intervals = None
            if pair_draws is not None:
                drawn[name] = pair_draws.tar(verification.scores, FARS)
                strict = {key: rate.strict for key, rate in verification.rates.items()}
                tar_intervals = _intervals(drawn[name], strict, pair_draws.mated_subjects)
        with found.seconds.of("identify"):
            galleries = _identify(protocol, left, right, replicates, found.warnings)
            helper = _published_helper(protocol, left, right) if published_helper else None
        split_rate = None
        if two_identity_split is not None:
            split_rate = float((described[:, 0] != described[:, 1]).any(axis=1).mean())
        rates, curve = verification.rates, verification.curve
        found.aggregators[name] = AggregatorFigures(
            rates, tar_intervals, curve, galleries, helper, subgroups, split_rate
        )
        if len(found.aggregators) == 1:
            # They say of the pair list more than of the aggregator: once is enough.
            found.warnings += few_scores_warnings(verification.rates)
    if pair_draws is not None:
        found.differences = _differences(found.aggregators, drawn, pair_draws.mated_subjects)
    return found


def normalised_with(
    aggregator: nn.Module,
    cohort: Cohort,
    rules: Rules,
    device: torch.device | str = "cpu",
    *,
    auxiliary_size: int = 0,
) -> ScoreNormalisation:
    """By the descriptors of the cohort's templates, their faces treated by the benchmark's rules.

    Raises:
        InputError: as `ScoreNormalisation.with_cohort`.
    """
    features, norms, groups = cohort.features, cohort.norms, cohort.groups
    if rules.norm == NOT_USED:
        norms = np.ones_like(norms)
    if rules.media != NOT_USED:
        features, norms, groups = average_media(features, norms, groups)
    faces = features, norms, groups, device
    described = aggregate_templates(aggregator, *faces, auxiliary_size=auxiliary_size).embedding
    return ScoreNormalisation.with_cohort(cohort.method, described)


def _faces_by_rules(
    protocol: SetProtocol, features: Floats, norms: Floats, detector_scores: Floats | None, rules: Rules
) -> tuple[Floats, Floats, FaceGroups, Floats | None]:
    """Features, norms, templates and scores of the faces, or of the media that they are joined to."""
    if features.ndim != 2 or not len(features) == len(norms) == len(protocol.image_names):
        raise InputError(
            f"{protocol.name}: {len(protocol.image_names):,} images, but features {features.shape} and norms "
            f"{norms.shape}. They belong to another data set."
        )
    weights = norms if rules.norm != NOT_USED else np.ones_like(norms)
    if rules.detector_score != NOT_USED:
        if detector_scores is None or detector_scores.shape != norms.shape:
            raise InputError("the rules use detector scores: expected one for each face.")
        weights = weights * detector_scores
    groups = group_faces(protocol.template_of_face, protocol.media, len(protocol.template_ids))
    if rules.media == NOT_USED:
        return features, weights, groups, detector_scores
    scores = None
    if detector_scores is not None:
        # A medium's score is the mean of its faces'.
        sums = np.bincount(groups.media, weights=detector_scores[groups.rows])
        scores = sums / np.bincount(groups.media)
    return *average_media(features, weights, groups), scores


def _pair_bootstrap(protocol: SetProtocol, replicates: int, warnings: list[str]) -> PairBootstrap | None:
    if not replicates:
        return None
    pairs, subjects = protocol.pairs, protocol.subjects.astype(np.int32)
    try:
        return PairBootstrap(
            subjects[pairs.first], subjects[pairs.second], pairs.is_mated, replicates=replicates
        )
    except InputError as fault:
        warnings.append(f"There are no intervals for TAR: {fault}")
        return None


def _identify(
    protocol: SetProtocol, of_probes: Floats, of_galleries: Floats, replicates: int, warnings: list[str]
) -> dict[str, GalleryFigures]:
    """Each gallery searched by itself, as gallery1, gallery2."""
    if protocol.probes is None:
        return {}
    probes, draws = protocol.probes, None
    if replicates and len(np.unique(probes.subjects)) > 1:
        draws = ProbeBootstrap(probes.subjects, replicates=replicates)
    found = {}
    for number, gallery in enumerate(protocol.galleries, 1):
        compared_rows = of_probes[probes.templates], of_galleries[gallery.templates]
        result = search(*compared_rows, probes.subjects, gallery.subjects)
        closed = cmc(result, RANKS)
        num_subjects = draws.mated_subjects(result) if draws else 0
        cmc_intervals = _intervals(draws.cmc(result, RANKS), closed, num_subjects) if draws else None
        tpir: dict[str, TpirAtFpir] = {}
        tpir_intervals = None
        if result.is_mated.all():
            warning = f"Gallery {gallery.name}: every probe is mated, so there is no open-set identification."
            warnings += [] if warning in warnings else [warning]
        else:
            tpir = tpir_at_fpir(result, FPIRS)
            if draws:
                observed = {key: rate.tpir for key, rate in tpir.items()}
                tpir_intervals = _intervals(draws.tpir(result, FPIRS), observed, num_subjects)
        found[f"gallery{number}"] = GalleryFigures(result, closed, cmc_intervals, tpir, tpir_intervals)
    return found


def _published_helper(
    protocol: SetProtocol, of_probes: Floats, of_galleries: Floats
) -> PublishedHelperRates | None:
    if protocol.probes is None:
        return None
    joined = np.concatenate([gallery.templates for gallery in protocol.galleries])
    return published_helper_rates(
        of_probes[protocol.probes.templates],
        of_galleries[joined],
        protocol.probes.subjects,
        np.concatenate([gallery.subjects for gallery in protocol.galleries]),
        ranks=RANKS,
        fars=FPIRS,
    )


def _intervals(
    drawn: NDArray[np.float64], observed: Mapping[str, float], num_subjects: int
) -> dict[str, Interval] | None:
    try:
        low, high = rate_interval95(drawn, list(observed.values()), num_subjects)
    except InputError:
        return None
    return {key: (float(low[n]), float(high[n])) for n, key in enumerate(observed)}


def _differences(
    figures: Mapping[str, AggregatorFigures], drawn: Mapping[str, NDArray[np.float64]], num_subjects: int
) -> list[Difference]:
    """Every other aggregator against the first, on the same draws."""
    keys = [rate_key(far) for far in FARS]
    found = []
    for name in list(drawn)[1:]:
        reference = next(iter(drawn))
        try:
            low, high = difference_interval95(drawn[name] - drawn[reference], num_subjects)
        except InputError:
            continue
        intervals = {key: (float(low[n]), float(high[n])) for n, key in enumerate(keys)}
        tar = {key: figures[name].tar[key].strict - figures[reference].tar[key].strict for key in keys}
        found.append(Difference(name, reference, tar, intervals))
    return found

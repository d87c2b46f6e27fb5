"""Error versus reject: does throwing away the poorest comparisons remove the errors? Arrays in, figures out.

The false non-match rate at a fixed false match rate, as a rising share of the mated comparisons is rejected,
those of the lowest quality first (Grother & Tabassi 2007); a good measure of quality makes it fall. The
threshold stays that of all comparisons. The quality of a comparison is the lower one of its two faces.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.bootstrap import difference_interval95, draw_subjects, rate_interval95
from evaluation.metrics.thresholds import Floats, Integers, score_levels, threshold_at, thresholds_of_levels
from evaluation.metrics.verification import check_finite, check_rates
from runtime.errors import InputError

RANDOM = "random"
# Beyond, what is left is too little to tell a rate.
MOST_REJECTED = 0.95
# Who rejects more takes other photos: the share up to which a choice counts.
PARTIAL = 0.3
_STEPS = 95

Doubles = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FacePairs:
    """Comparisons of N faces.

    Attributes:
        subjects: (N,) int64 numbered from 0 without gaps.
        similarity: (N, N) symmetric.
    """

    subjects: Integers
    similarity: Floats


@dataclass(frozen=True, eq=False)
class RejectCurve:
    """One measure of quality.

    Attributes:
        fnmr: (96,) at the `rejected_shares`.
        area: mean of the curve up to `MOST_REJECTED` (AUERC by its width), with its 95 % interval.
        partial: mean up to `PARTIAL`.
        against_random: 95 % interval of `partial` minus that of rejecting at random; below 0 it helps.
    """

    fnmr: Doubles
    area: float
    area95: tuple[float, float]
    partial: float
    partial95: tuple[float, float]
    against_random: tuple[float, float]


@dataclass(frozen=True, eq=False)
class RejectCurves:
    """All measures on the same pairs: by name, `RANDOM` among them; `choice`: a name, or None.

    `differences`: 95 % interval of `partial` of each measure minus that of `choice`, on the same draws.
    """

    fmr: float
    threshold: float
    mated: int
    nonmated: int
    curves: dict[str, RejectCurve]
    choice: str | None
    differences: dict[str, tuple[float, float]]


def rejected_shares() -> Doubles:
    """(96,) the shares that curves are given at: 0 to 0.95."""
    return np.linspace(0, MOST_REJECTED, _STEPS + 1)


def reject_curves(
    pairs: FacePairs,
    qualities: Mapping[str, Floats],
    fmr: float,
    *,
    choices: Collection[str] | None = None,
    favourite: str | None = None,
    replicates: int = 200,
    seed: int = 0,
) -> RejectCurves:
    """Curves of several measures, and which of them to choose.

    The choice is the measure with the lowest `partial` among those that surely help (the interval against
    rejecting at random is below 0); `favourite` instead, if it surely helps too and the best one is not
    surely better; None where none helps.

    Args:
        pairs: all of N faces.
        qualities: (N,) of each face by the measure's name, higher is better.
        fmr: false match rate that sets the threshold.
        choices: names that may be chosen; None: all.
        favourite: a name that costs least.
        replicates: draws of subjects.
        seed: of the draws.

    Raises:
        InputError: no mated or no non-mated pair, a quality that is not finite, or shapes that differ.
    """
    check_rates([fmr], "FMR")
    mated, others = _split(pairs, qualities)
    threshold = threshold_at(others[0], fmr)
    weights = draw_subjects(int(pairs.subjects.max()) + 1, replicates=replicates, seed=seed).astype(np.int64)
    own = {name: np.minimum(values[mated[1]], values[mated[2]]) for name, values in qualities.items()}
    order = np.argsort(-others[0], kind="stable")
    first, second = others[1][order], others[2][order]
    levels, ends = score_levels(others[0][order])
    ones = np.ones(len(mated[0]), np.int64)
    whole = {name: reject_curve(mated[0] < threshold, quality, ones) for name, quality in own.items()}
    flat = np.full(_STEPS + 1, float((mated[0] < threshold).mean()))
    whole[RANDOM] = flat
    areas: dict[str, list[tuple[float, float]]] = {name: [] for name in whole}
    for draw in range(replicates):
        count = weights[:, draw][pairs.subjects]
        accepted = (count[first] * count[second]).cumsum()[ends - 1]
        # A subject that is drawn twice counts its mated pairs twice.
        weight = count[mated[1]]
        if not accepted[-1] or not weight.sum():
            continue
        missed = mated[0] < thresholds_of_levels(levels, accepted, [fmr])[0]
        for name, quality in own.items():
            areas[name].append(_areas(reject_curve(missed, quality, weight)))
        areas[RANDOM].append(_areas(np.full(_STEPS + 1, float((missed * weight).sum() / weight.sum()))))
    if not areas[RANDOM]:
        raise InputError("no draw of subjects had a mated and a non-mated pair: too few subjects.")
    drawn = {name: np.array(values) for name, values in areas.items()}
    people = len(np.unique(pairs.subjects[mated[1]]))
    curves = {name: _curve(whole[name], drawn[name], drawn[RANDOM], people) for name in whole}
    allowed = {name: curve for name, curve in curves.items() if choices is None or name in choices}
    choice = _choice(allowed, drawn, favourite, people)
    differences = {
        name: _difference(drawn[name], drawn[choice], people)
        for name in curves
        if choice is not None and name != choice
    }
    return RejectCurves(fmr, threshold, len(mated[0]), len(order), curves, choice, differences)


def reject_curve(missed: NDArray[np.bool_], quality: Floats, weights: Integers) -> Doubles:
    """The false non-match rate of what is left, (96,) at the `rejected_shares`.

    Comparisons of equal quality are rejected in equal parts, which is what any order of them gives on
    average; the last one is rejected in part.

    Args:
        missed: (M,) whether each mated comparison is below the threshold.
        quality: (M,).
        weights: (M,) how often each counts; not all 0.
    """
    levels, group = np.unique(quality, return_inverse=True)
    weight = np.bincount(group, weights, minlength=len(levels)).cumsum()
    errors = np.bincount(group, weights * missed, minlength=len(levels)).cumsum()
    rejected = rejected_shares() * weight[-1]
    gone = np.interp(rejected, np.concatenate([[0], weight]), np.concatenate([[0], errors]))
    return np.asarray(np.clip((errors[-1] - gone) / (weight[-1] - rejected), 0, 1))


def best_possible(fnmr: float) -> Doubles:
    """The curve of a measure that knows the errors: (96,)."""
    shares = rejected_shares()
    return np.asarray(np.maximum(fnmr - shares, 0) / (1 - shares))


def choice_text(found: RejectCurves) -> str:
    """A sentence on what the chosen measure saves, and on others that do as well."""
    if found.choice is None:
        helping = [name for name, curve in found.curves.items() if curve.against_random[1] < 0]
        others = f" {', '.join(helping)} would, but nothing weighs faces by it." if helping else ""
        return f"No measure that faces can be weighed by surely removes errors on these faces.{others}"
    fnmr = float(found.curves[RANDOM].fnmr[0])
    best = found.curves[found.choice]
    at = round(PARTIAL / MOST_REJECTED * _STEPS)
    text = (
        f"Without the poorest {PARTIAL:.0%} by {found.choice}, {best.fnmr[at]:.2%} of the mated pairs are "
        f"missed instead of {fnmr:.2%}."
    )
    equal = [name for name, (low, high) in found.differences.items() if low <= 0 <= high and name != RANDOM]
    return text + (f" Not surely different: {', '.join(equal)}." if equal else "")


# ------------------------------------------------------------------------------------------- helpers


def _split(
    pairs: FacePairs, qualities: Mapping[str, Floats]
) -> tuple[tuple[Floats, Integers, Integers], tuple[Floats, Integers, Integers]]:
    """Scores, first and second face of the mated pairs, and of the others."""
    count = len(pairs.subjects)
    wrong = [name for name, values in qualities.items() if values.shape != (count,)]
    if wrong or pairs.similarity.shape != (count, count):
        raise InputError(f"reject curves: expected a quality for each of {count} faces ({', '.join(wrong)}).")
    for name, values in qualities.items():
        check_finite(values, f"{name} of face")
    rows, columns = np.triu_indices(count, 1)
    scores = np.asarray(pairs.similarity[rows, columns], np.float64)
    check_finite(scores, "score of pair")
    is_mated = pairs.subjects[rows] == pairs.subjects[columns]
    if is_mated.all() or not is_mated.any():
        kind = "non-mated" if is_mated.all() else "mated"
        raise InputError(f"{count} faces, no {kind} pair: no false non-match rate can be given.")
    parts = [(scores[rule], rows[rule], columns[rule]) for rule in (is_mated, ~is_mated)]
    return parts[0], parts[1]


def _areas(fnmr: Doubles) -> tuple[float, float]:
    """Mean of a curve up to `MOST_REJECTED` and up to `PARTIAL`, by trapezia."""
    shares = rejected_shares()
    steps = np.diff(shares) * (fnmr[1:] + fnmr[:-1]) / 2
    part = shares[1:] <= PARTIAL + 1e-9
    return float(steps.sum() / MOST_REJECTED), float(steps[part].sum() / PARTIAL)


def _curve(fnmr: Doubles, drawn: Doubles, at_random: Doubles, people: int) -> RejectCurve:
    area, partial = _areas(fnmr)
    low, high = rate_interval95(drawn, [area, partial], people)
    return RejectCurve(
        fnmr=fnmr,
        area=area,
        area95=(float(low[0]), float(high[0])),
        partial=partial,
        partial95=(float(low[1]), float(high[1])),
        against_random=_difference(drawn, at_random, people),
    )


def _choice(
    curves: Mapping[str, RejectCurve], drawn: Mapping[str, Doubles], favourite: str | None, people: int
) -> str | None:
    helping = [name for name, curve in curves.items() if curve.against_random[1] < 0]
    if not helping:
        return None
    best = min(helping, key=lambda name: curves[name].partial)
    if favourite in helping and favourite is not None:
        low, high = _difference(drawn[best], drawn[favourite], people)
        if low <= 0 <= high:
            return favourite
    return best


def _difference(drawn: Doubles, other: Doubles, people: int) -> tuple[float, float]:
    """Of the partial areas of two measures."""
    low, high = difference_interval95(drawn[:, 1:] - other[:, 1:], people)
    return float(low[0]), float(high[0])

"""Error-versus-discard characteristic (EDC) of measures of face quality, with bootstrap intervals.

The false non-match rate at a fixed false match rate as a function of the fraction of mated comparisons that
is discarded, lowest quality first (Grother & Tabassi 2007; ISO/IEC 29794-1). The threshold stays that of all
comparisons. The quality of a comparison is the lower one of its two faces.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.bootstrap import difference_interval95, draw_subjects, rate_interval95
from evaluation.metrics.thresholds import Floats, Integers, threshold_at, thresholds_of_falling
from evaluation.metrics.verification import check_finite, check_rates
from runtime.errors import InputError

RANDOM = "random"
# Beyond it too few comparisons are left for a rate.
MAX_DISCARDED = 0.95
# Fraction up to which measures are ranked: more is hardly discarded in practice.
PARTIAL = 0.3
_STEPS = 95

Doubles = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FaceComparisons:
    """All comparisons of N faces.

    Attributes:
        subjects: (N,) int64 numbered from 0 without gaps.
        similarity: (N, N) symmetric.
    """

    subjects: Integers
    similarity: Floats


@dataclass(frozen=True, eq=False)
class DiscardCurve:
    """The EDC of one measure of quality.

    Attributes:
        fnmr: (96,) at the `discard_fractions`.
        area: mean FNMR up to `MAX_DISCARDED`, with its 95 % interval `area95`.
        partial: mean FNMR up to `PARTIAL`, with its 95 % interval `partial95`.
        against_random: 95 % interval of `partial` minus that of discarding at random; below 0 it helps.
    """

    fnmr: Doubles
    area: float
    area95: tuple[float, float]
    partial: float
    partial95: tuple[float, float]
    against_random: tuple[float, float]


@dataclass(frozen=True, eq=False)
class DiscardCurves:
    """The EDCs of several measures, and of `RANDOM`, on the same comparisons.

    Attributes:
        fmr: false match rate of the threshold.
        threshold: on the similarity.
        mated: number of mated comparisons.
        nonmated: number of non-mated comparisons.
        curves: by name of the measure.
        choice: name of the recommended measure, or None.
        differences: 95 % interval of `partial` of each measure minus that of `choice`, paired by replicate.
    """

    fmr: float
    threshold: float
    mated: int
    nonmated: int
    curves: dict[str, DiscardCurve]
    choice: str | None
    differences: dict[str, tuple[float, float]]


def discard_fractions() -> Doubles:
    """(96,) discarded fractions of the curves, 0 to 0.95."""
    return np.linspace(0, MAX_DISCARDED, _STEPS + 1)


def discard_curves(
    pairs: FaceComparisons,
    qualities: Mapping[str, Floats],
    fmr: float,
    *,
    choices: Collection[str] | None = None,
    favourite: str | None = None,
    replicates: int = 200,
    seed: int = 0,
) -> DiscardCurves:
    """Compute the EDCs of several measures and choose one.

    The choice is the measure with the lowest `partial` among those that help significantly (their interval
    against random discarding is below 0). `favourite` is preferred if it helps too and the best one is not
    significantly better. None where no measure helps.

    Args:
        pairs: comparisons of N faces.
        qualities: measure -> (N,), higher is better.
        fmr: false match rate of the threshold.
        choices: names that may be chosen; None: all.
        favourite: the name that is preferred.
        replicates: bootstrap replicates over subjects.
        seed: of the bootstrap.

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
    falling = others[0][order]
    ones = np.ones(len(mated[0]), np.int64)
    whole = {name: discard_curve(mated[0] < threshold, quality, ones) for name, quality in own.items()}
    flat = np.full(_STEPS + 1, float((mated[0] < threshold).mean()))
    whole[RANDOM] = flat
    areas: dict[str, list[tuple[float, float]]] = {name: [] for name in whole}
    for draw in range(replicates):
        count = weights[:, draw][pairs.subjects]
        accepted = (count[first] * count[second]).cumsum()
        # The mated pairs of a subject that is drawn twice count twice.
        weight = count[mated[1]]
        if not accepted[-1] or not weight.sum():
            continue
        missed = mated[0] < thresholds_of_falling(falling, accepted, [fmr])[0]
        for name, quality in own.items():
            areas[name].append(_areas(discard_curve(missed, quality, weight)))
        areas[RANDOM].append(_areas(np.full(_STEPS + 1, float((missed * weight).sum() / weight.sum()))))
    if not areas[RANDOM]:
        raise InputError("no bootstrap replicate had a mated and a non-mated pair: too few subjects.")
    drawn = {name: np.array(values) for name, values in areas.items()}
    subjects = len(np.unique(pairs.subjects[mated[1]]))
    curves = {name: _curve(whole[name], drawn[name], drawn[RANDOM], subjects) for name in whole}
    allowed = {name: curve for name, curve in curves.items() if choices is None or name in choices}
    choice = _choice(allowed, drawn, favourite, subjects)
    differences = {
        name: _difference(drawn[name], drawn[choice], subjects)
        for name in curves
        if choice is not None and name != choice
    }
    return DiscardCurves(fmr, threshold, len(mated[0]), len(order), curves, choice, differences)


def discard_curve(missed: NDArray[np.bool_], quality: Floats, weights: Integers) -> Doubles:
    """False non-match rate of the comparisons that are kept, (96,) at the `discard_fractions`.

    Comparisons of equal quality are discarded in equal parts, the average over their orders; the last one in
    part.

    Args:
        missed: (M,) whether each mated comparison is below the threshold.
        quality: (M,).
        weights: (M,) bootstrap counts, not all 0.
    """
    levels, group = np.unique(quality, return_inverse=True)
    weight = np.bincount(group, weights, minlength=len(levels)).cumsum()
    errors = np.bincount(group, weights * missed, minlength=len(levels)).cumsum()
    discarded = discard_fractions() * weight[-1]
    gone = np.interp(discarded, np.concatenate([[0], weight]), np.concatenate([[0], errors]))
    return np.asarray(np.clip((errors[-1] - gone) / (weight[-1] - discarded), 0, 1))


def ideal_curve(fnmr: float) -> Doubles:
    """(96,) the EDC of a measure that discards the errors first."""
    fractions = discard_fractions()
    return np.asarray(np.maximum(fnmr - fractions, 0) / (1 - fractions))


def choice_text(found: DiscardCurves) -> str:
    """A sentence on what the chosen measure saves, and on others that are not significantly different."""
    if found.choice is None:
        helping = [name for name, curve in found.curves.items() if curve.against_random[1] < 0]
        others = f" {', '.join(helping)} would, but faces cannot be weighted by it." if helping else ""
        return f"No measure that faces can be weighted by significantly reduces errors here.{others}"
    fnmr = float(found.curves[RANDOM].fnmr[0])
    best = found.curves[found.choice]
    at = round(PARTIAL / MAX_DISCARDED * _STEPS)
    text = (
        f"Discarding the lowest {PARTIAL:.0%} by {found.choice} reduces the FNMR from {fnmr:.2%} to "
        f"{best.fnmr[at]:.2%}."
    )
    equal = [name for name, (low, high) in found.differences.items() if low <= 0 <= high and name != RANDOM]
    return text + (f" Not significantly different: {', '.join(equal)}." if equal else "")


def _split(
    pairs: FaceComparisons, qualities: Mapping[str, Floats]
) -> tuple[tuple[Floats, Integers, Integers], tuple[Floats, Integers, Integers]]:
    """Scores, first and second face of the mated and of the non-mated pairs."""
    count = len(pairs.subjects)
    wrong = [name for name, values in qualities.items() if values.shape != (count,)]
    if wrong or pairs.similarity.shape != (count, count):
        raise InputError(
            f"error versus discard: expected a quality for each of {count} faces ({', '.join(wrong)})."
        )
    for name, values in qualities.items():
        check_finite(values, f"{name} of face")
    rows, columns = np.triu_indices(count, 1)
    scores = np.asarray(pairs.similarity[rows, columns], np.float64)
    check_finite(scores, "score of pair")
    is_mated = pairs.subjects[rows] == pairs.subjects[columns]
    if is_mated.all() or not is_mated.any():
        kind = "non-mated" if is_mated.all() else "mated"
        raise InputError(f"{count} faces, no {kind} pair: the false non-match rate is undefined.")
    parts = [(scores[rule], rows[rule], columns[rule]) for rule in (is_mated, ~is_mated)]
    return parts[0], parts[1]


def _areas(fnmr: Doubles) -> tuple[float, float]:
    """Mean of a curve up to `MAX_DISCARDED` and up to `PARTIAL`, by the trapezoidal rule."""
    fractions = discard_fractions()
    steps = np.diff(fractions) * (fnmr[1:] + fnmr[:-1]) / 2
    part = fractions[1:] <= PARTIAL + 1e-9
    return float(steps.sum() / MAX_DISCARDED), float(steps[part].sum() / PARTIAL)


def _curve(fnmr: Doubles, drawn: Doubles, at_random: Doubles, subjects: int) -> DiscardCurve:
    area, partial = _areas(fnmr)
    low, high = rate_interval95(drawn, [area, partial], subjects)
    return DiscardCurve(
        fnmr=fnmr,
        area=area,
        area95=(float(low[0]), float(high[0])),
        partial=partial,
        partial95=(float(low[1]), float(high[1])),
        against_random=_difference(drawn, at_random, subjects),
    )


def _choice(
    curves: Mapping[str, DiscardCurve], drawn: Mapping[str, Doubles], favourite: str | None, subjects: int
) -> str | None:
    helping = [name for name, curve in curves.items() if curve.against_random[1] < 0]
    if not helping:
        return None
    best = min(helping, key=lambda name: curves[name].partial)
    if favourite in helping and favourite is not None:
        low, high = _difference(drawn[best], drawn[favourite], subjects)
        if low <= 0 <= high:
            return favourite
    return best


def _difference(drawn: Doubles, other: Doubles, subjects: int) -> tuple[float, float]:
    """Of the partial areas of two measures."""
    low, high = difference_interval95(drawn[:, 1:] - other[:, 1:], subjects)
    return float(low[0]), float(high[0])

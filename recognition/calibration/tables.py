"""Tables of a measurement of thresholds, as text."""

from __future__ import annotations

import math

import numpy as np

from evaluation.metrics.calibration import GroupFigures, OneThreshold, RateFigures, num_subjects_for
from evaluation.metrics.set_pairs import groups_of
from evaluation.metrics.verification import RULE_OF_30
from recognition.calibration.measurement import Measurement


def measurement_text(measured: Measurement) -> str:
    """Thresholds and error rates of all pairs and by set sizes, failures to enrol, and the closest
    subjects.
    """
    parts = (
        _everything_text(measured),
        _failures_text(measured),
        _size_text(measured),
        _gain_text(measured),
        _closest_text(measured),
    )
    return "\n\n".join(part for part in parts if part)


def _everything_text(measured: Measurement) -> str:
    group, labelled = measured.everything, measured.labelled
    lines = [
        f"{len(labelled.sizes):,} sets of {len(labelled.subject_names):,} subjects, "
        f"{int(labelled.sizes.sum()):,} faces: {group.nonmated:,} non-mated comparisons "
        f"({group.subject_pairs:,} pairs of subjects), {group.mated:,} mated",
        f"{'FMR':<7}{'threshold (95 %)':<30}{'FNMR (on other subjects)':<30}FMR on other subjects (95 %)",
    ]
    for key, each in group.rates.items():
        low, high = each.interval95
        threshold = f"{each.threshold:.4f} ({low:.4f} to {high:.4f})"
        fmr = "{:.1e} to {:.1e}".format(*each.fmr_interval95)
        lines.append(f"{key:<7}{threshold:<30}{_fnmr_text(each):<30}{fmr}")
    lines += [
        f"FMR {key} rests on about {group.subject_pairs * float(key):.0f} false matches of subject "
        f"pairs; the rule of {RULE_OF_30} asks for {RULE_OF_30} (90 % confidence, within 30 %), "
        f"which {num_subjects_for(math.ceil(RULE_OF_30 / float(key))):,} subjects give."
        for key in group.rates
        if group.subject_pairs * float(key) < RULE_OF_30
    ]
    lines += [f"not supported: {sentence}" for sentence in group.refused.values()]
    return "\n".join(lines)


def _fnmr_text(each: RateFigures) -> str:
    if each.fnmr is None or each.fnmr_interval95 is None:
        return "no mated pair"
    low, high = each.fnmr_interval95
    return f"{_percent(each.fnmr)} ({_percent(low)} to {_percent(high)})"


def _failures_text(measured: Measurement) -> str:
    failures = measured.labelled.failures
    text = f"{failures.text()} FMR and FNMR do not count them."
    rates = [
        f"{_percent(failures.generalised_reject_rate(each.fnmr))} at FMR {key}"
        for key, each in measured.everything.rates.items()
        if each.fnmr is not None
    ]
    if not failures.failed or not rates:
        return text
    return f"{text} GFRR, which counts them as rejected: {', '.join(rates)}."


def _size_text(measured: Measurement) -> str:
    cells = measured.cells
    shared = [
        key for key in measured.everything.rates if sum(key in cell.rates for cell in cells.values()) > 1
    ]
    if not shared:
        if len(np.unique(groups_of(measured.labelled.sizes))) < 2:
            return "All sets are of one size group: the effect of other sizes was not measured."
        return "No rate is supported for sets of two or more sizes: the threshold for all sizes is used."
    key = shared[-1]
    cost = measured.costs[key]
    lines = [
        f"By faces of the two sets, at FMR {key} (other rates are in the file):",
        f"{'sizes':<13}{'mated':>11}{'non-mated':>12}  {'median scores':<16}{'own threshold':<15}"
        f"{'one for all: FMR':<18}FNMR",
    ]
    for name, cell in cells.items():
        own = f"{cell.rates[key].threshold:.4f}" if key in cell.rates else "too few"
        mated = "-" if cell.median_mated is None else f"{cell.median_mated:.3f}"
        fmr, fnmr = cost.cells[name]
        missed = "-" if fnmr is None else _percent(fnmr)
        lines.append(
            f"{name:<13}{cell.mated:>11,}{cell.nonmated:>12,}  {f'{mated} {cell.median_nonmated:+.3f}':<16}"
            f"{own:<15}{f'{fmr:.1e}' if cell.nonmated * float(key) >= 1 else 'too few':<18}{missed}"
        )
    return "\n".join([*lines, _cost_text(key, cells, cost)])


def _cost_text(key: str, cells: dict[str, GroupFigures], cost: OneThreshold) -> str:
    """How thresholds change with set size, and the error rates of one threshold for all sizes."""
    own = {name: cell.rates[key].threshold for name, cell in cells.items() if key in cell.rates}
    fmr = {name: cost.cells[name][0] for name in own}
    (lowest, highest), (rarest, commonest) = (
        (min(values, key=values.__getitem__), max(values, key=values.__getitem__)) for values in (own, fmr)
    )
    text = (
        f"The threshold for {key} rises from {own[lowest]:.4f} ({lowest}) to {own[highest]:.4f} ({highest}). "
        f"One threshold for all sizes has an FMR of {fmr[rarest]:.1e} for {rarest} and of "
        f"{fmr[commonest]:.1e} for {commonest}"
    )
    if cost.fnmr_one is None or cost.fnmr_by_size is None:
        return f"{text}."
    return (
        f"{text}, and an FNMR of {_percent(cost.fnmr_one)}; thresholds by size have an FNMR of "
        f"{_percent(cost.fnmr_by_size)}."
    )


def _gain_text(measured: Measurement) -> str:
    normalisation = measured.normalisation
    if normalisation is None:
        return ""
    lines = [
        f"Scores are normalised with a cohort of {len(normalisation.cohort):,} subjects "
        f"({normalisation.method}, the nearest {normalisation.top}), whose descriptors are in the file. "
        "Protect it as you protect them. FNMR:"
    ]
    for key, each in measured.gained.items():
        low, high = each.difference95
        verdict = "a gain" if high < 0 else "a loss: remove --cohort" if low > 0 else "not significant"
        lines.append(
            f"  FMR {key}: {_percent(each.before)} with cosines, {_percent(each.after)} normalised "
            f"(difference {100 * low:+.2f} to {100 * high:+.2f} points: {verdict})"
        )
    return "\n".join(lines)


def _closest_text(measured: Measurement) -> str:
    lines = ["The most similar subjects; one subject under two names would make all thresholds wrong:"]
    return "\n".join([*lines, *(f"  {score:.4f}  {one} - {two}" for (one, two), score in measured.closest)])


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f} %"

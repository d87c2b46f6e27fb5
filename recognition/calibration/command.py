"""`inference.py calibrate`: labelled sets of many people -> calibration.json, and what it says in tables.

What is measured stands in `evaluation.metrics.calibration` and `evaluation.metrics.score_normalisation`, the
form of the file in `recognition.calibration.thresholds`.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data.sources.subject_names import same_names
from evaluation.metrics.calibration import (
    GroupFigures,
    OneThreshold,
    RateFigures,
    calibrate,
    one_threshold,
    people_for,
)
from evaluation.metrics.enrolment_failures import EnrolmentFailures
from evaluation.metrics.score_normalisation import (
    DEFAULT_METHOD,
    FEWEST_IN_COHORT,
    METHODS,
    METHODS_HELP,
    NEEDS_COHORT,
    Gain,
    ScoreNormalisation,
    compared,
    gains,
)
from evaluation.metrics.set_pairs import InnerProducts, SetPairs, all_pairs, groups_of
from evaluation.metrics.verification import RULE_OF_30, rate_key
from recognition.calibration.labelled_sets import LabelledSets, describe_labelled, find_labelled
from recognition.calibration.thresholds import SCHEMA, encoded
from recognition.flags import add_model_flags, add_photo_flags, open_model, photo_options
from recognition.gallery.commands import Command
from recognition.model import FaceModel
from recognition.preprocessing import preprocessing_of
from runtime.errors import Faults, InputWarning
from runtime.files import atomic_write
from runtime.json_files import json_text
from runtime.output_checks import require_output_file

RATES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_FEWEST_REPLICATES = 40
_NOTES_SHOWN = 5
_CLOSEST = 3
_LOOKED_AT = 200


def calibrate_sets(args: argparse.Namespace) -> None:
    """Flags to calibration.json.

    Raises:
        InputError: flags, weights or photos that cannot be used, all in one message; nothing is written then.
    """
    faults = Faults()
    if args.out.suffix != ".json":
        faults.sentences.append(f"--out {args.out}: expected a name that ends in .json.")
    faults.of(lambda: require_output_file(args.out, "--out"))
    if args.faces == "all":
        faults.sentences.append("--faces all: the others in a photo are not its subject. Leave it out.")
    if args.replicates < _FEWEST_REPLICATES:
        faults.sentences.append(f"--replicates {args.replicates}: expected {_FEWEST_REPLICATES} or more.")
    if args.seed < 0:
        faults.sentences.append(f"--seed {args.seed}: expected 0 or more.")
    root, cohort_root = args.images_root, vars(args).get("cohort")
    method = vars(args).get("score_normalisation", DEFAULT_METHOD)
    if "score_normalisation" in vars(args) and cohort_root is None:
        faults.sentences.append(NEEDS_COHORT)
    sources = faults.of(lambda: find_labelled(root, "--images_root"))
    others = faults.of(
        lambda: [] if cohort_root is None else find_labelled(cohort_root, "--cohort", FEWEST_IN_COHORT)
    )
    if sources and others:
        both = same_names({each.subject for each in others}, {each.subject for each in sources})
        if both:
            faults.sentences.append(
                f"--cohort {cohort_root}: {', '.join(both[:_NOTES_SHOWN])} are in --images_root too; a "
                "cohort is of other people."
            )
    options = faults.of(lambda: photo_options(args))
    model = faults.of(lambda: open_model(args))
    reading = None
    if options is not None and model is not None and sources is not None and others is not None:
        read = [each.source for each in (*sources, *others)]
        reading = faults.of(lambda: preprocessing_of(model, options, read))
    faults.raise_if_any()
    if sources is None or others is None or options is None or model is None or reading is None:
        raise RuntimeError("what is None has left a fault")
    print(model.about)
    labelled = describe_labelled(model, sources, options, seed=args.seed)
    normalisation, cohort_notes = None, []
    if others:
        people = describe_labelled(model, others, options, seed=args.seed)
        print(people.rejected, end="")
        normalisation = normalised_with(people, method)
        cohort_notes = [f"--cohort: {note}" for note in people.notes]
    print(labelled.rejected, end="")
    if why := model.spec.unmeasured_warning(labelled.descriptors, labelled.subjects):
        warnings.warn(f"{why}, and calibrate with them.", InputWarning, stacklevel=2)
    notes = [*labelled.notes, *cohort_notes]
    for note in notes[:_NOTES_SHOWN]:
        print(f"left out: {note}")
    if len(notes) > _NOTES_SHOWN:
        print(f"left out: and {len(notes) - _NOTES_SHOWN:,} more")
    content, text = calibration_of(
        model, labelled, normalisation, reading=reading, replicates=args.replicates, seed=args.seed
    )
    atomic_write(args.out, json_text(content))
    print(f"\n{text}\n\n{args.out}: use it as --calibration {args.out} --fmr RATE")


def normalised_with(people: LabelledSets, method: str = DEFAULT_METHOD) -> ScoreNormalisation:
    """By the largest set of each person.

    Raises:
        InputError: too few people.
    """
    rows = [
        max(np.flatnonzero(people.subjects == person), key=lambda row: int(people.sizes[row]))
        for person in range(len(people.people))
    ]
    return ScoreNormalisation.with_cohort(method, people.descriptors[rows])


def calibration_of(
    model: FaceModel,
    labelled: LabelledSets,
    normalisation: ScoreNormalisation | None,
    *,
    reading: Mapping[str, str],
    replicates: int = 200,
    seed: int = 0,
) -> tuple[dict[str, Any], str]:
    """The content of the file, and all of it for a person.

    Raises:
        InputError: too few people.
    """
    embeddings = labelled.descriptors
    plain = all_pairs(InnerProducts(embeddings, embeddings, clip=True), labelled.subjects, labelled.sizes)
    pairs = plain
    if normalisation is not None:
        normalised = InnerProducts(*compared(embeddings.astype(np.float64), normalisation))
        pairs = all_pairs(normalised, labelled.subjects, labelled.sizes)
    everything, cells = calibrate(pairs, RATES, replicates=replicates, seed=seed)
    costs = one_threshold(pairs, everything, cells)
    rates = [float(key) for key in everything.rates]
    gained = (
        {} if normalisation is None else gains(plain, pairs.scores, rates, replicates=replicates, seed=seed)
    )
    closest = _closest(labelled, pairs)
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "fingerprint": model.fingerprint,
        "reading": dict(reading),
        "made_from": {
            "people": len(labelled.people),
            "sets": len(labelled.sizes),
            "faces": int(labelled.sizes.sum()),
            "replicates": replicates,
            "seed": seed,
        },
        "failures_to_enrol": _stored_failures(labelled.failures, everything),
        **_stored(everything),
        "by_size": {
            name: _stored(group) | {"one_threshold": _cost_of(name, costs)} for name, group in cells.items()
        },
        "left_out": [{"name": name, "reason": reason} for name, reason in labelled.left_out],
        "closest": [{"sets": list(names), "score": score} for names, score in closest],
    }
    if normalisation is not None:
        content["normalisation"] = _stored_normalisation(normalisation, gained)
    text = "\n\n".join(
        part
        for part in (
            _everything_text(labelled, everything),
            _failures_text(labelled.failures, everything),
            _size_text(everything, cells, costs, labelled),
            _gain_text(gained, normalisation),
            _closest_text(closest),
        )
        if part
    )
    return content, text


# ------------------------------------------------------------------------------------------- the file


def _stored(group: GroupFigures) -> dict[str, Any]:
    return {
        "mated": group.mated,
        "nonmated": group.nonmated,
        "people_pairs": group.people_pairs,
        "median_mated": group.median_mated,
        "median_nonmated": group.median_nonmated,
        "thresholds": {key: asdict(figures) for key, figures in group.rates.items()},
        "refused": group.refused,
        "curve": {"fmr": group.curve[0], "score": group.curve[1]},
    }


def _stored_failures(failures: EnrolmentFailures, everything: GroupFigures) -> dict[str, Any]:
    """With the generalised rates at each threshold (GFAR, GFRR), None where there is no mated pair."""
    generalised = {
        key: {
            "gfar": failures.generalised_accept_rate(each.fmr),
            "gfrr": None if each.fnmr is None else failures.generalised_reject_rate(each.fnmr),
        }
        for key, each in everything.rates.items()
    }
    rate = {"fte": failures.rate, "interval95": failures.interval95}
    return asdict(failures) | rate | {"generalised": generalised}


def _cost_of(name: str, costs: Mapping[str, OneThreshold]) -> dict[str, Any]:
    """What one threshold for all sizes does to pairs of these sizes, by rate."""
    return {key: dict(zip(("fmr", "fnmr"), cost.cells[name], strict=True)) for key, cost in costs.items()}


def _stored_normalisation(normalisation: ScoreNormalisation, gained: Mapping[str, Gain]) -> dict[str, Any]:
    people, values = normalisation.cohort.shape
    return {
        "method": normalisation.method,
        "top": normalisation.top,
        "people": people,
        "values": values,
        "gain": {key: asdict(each) for key, each in gained.items()},
        "descriptors": encoded(normalisation.cohort),
    }


def _closest(labelled: LabelledSets, pairs: SetPairs) -> list[tuple[tuple[str, str], float]]:
    """The two people most alike, and the next ones; each pair of people once."""
    rising = pairs.nonmated()
    top = pairs.highest_nonmated(rising[-min(_LOOKED_AT, len(rising))])
    top = top[np.argsort(-pairs.scores[top], kind="stable")][:_LOOKED_AT]
    found: dict[tuple[int, int], tuple[tuple[str, str], float]] = {}
    for first, second, score in zip(*pairs.sets_at(top), pairs.scores[top].tolist(), strict=True):
        who = int(pairs.subjects[first]), int(pairs.subjects[second])
        found.setdefault((min(who), max(who)), ((labelled.names[first], labelled.names[second]), score))
    return list(found.values())[:_CLOSEST]


# ------------------------------------------------------------------------------------------- the text


def _everything_text(labelled: LabelledSets, group: GroupFigures) -> str:
    lines = [
        f"{len(labelled.sizes):,} sets of {len(labelled.people):,} people, {int(labelled.sizes.sum()):,} "
        f"faces: {group.nonmated:,} comparisons of two people ({group.people_pairs:,} pairs of people), "
        f"{group.mated:,} of one",
        f"{'FMR':<7}{'threshold (95 %)':<30}{'FNMR (on as many others)':<30}FMR on as many others (95 %)",
    ]
    for key, each in group.rates.items():
        low, high = each.interval95
        threshold = f"{each.threshold:.4f} ({low:.4f} to {high:.4f})"
        lines.append(f"{key:<7}{threshold:<30}{_missed(each):<30}{each.fmr95[0]:.1e} to {each.fmr95[1]:.1e}")
    lines += [
        f"FMR {key} rests on about {group.people_pairs * float(key):.0f} false matches of different pairs of "
        f"people; the rule of {RULE_OF_30} asks for {RULE_OF_30} (within 30 % of the rate, 90 % confidence), "
        f"which {people_for(math.ceil(RULE_OF_30 / float(key))):,} people give."
        for key in group.rates
        if group.people_pairs * float(key) < RULE_OF_30
    ]
    lines += [f"refused: {sentence}" for sentence in group.refused.values()]
    return "\n".join(lines)


def _failures_text(failures: EnrolmentFailures, everything: GroupFigures) -> str:
    text = f"{failures.text()} FMR and FNMR leave them out."
    rates = [
        f"{_percent(failures.generalised_reject_rate(each.fnmr))} at FMR {key}"
        for key, each in everything.rates.items()
        if each.fnmr is not None
    ]
    if not failures.failed or not rates:
        return text
    return f"{text} Counted as rejected, for either set of a comparison (GFRR): {', '.join(rates)}."


def _missed(each: RateFigures) -> str:
    if each.fnmr is None or each.fnmr95 is None:
        return "no mated pair"
    return f"{_percent(each.fnmr)} ({_percent(each.fnmr95[0])} to {_percent(each.fnmr95[1])})"


def _size_text(
    everything: GroupFigures,
    cells: Mapping[str, GroupFigures],
    costs: Mapping[str, OneThreshold],
    labelled: LabelledSets,
) -> str:
    shared = [key for key in everything.rates if sum(key in cell.rates for cell in cells.values()) > 1]
    if not shared:
        if len(np.unique(groups_of(labelled.sizes))) < 2:
            return "All sets are of one size group: nothing can be said of others."
        return "No rate is supported for sets of two or more sizes: one threshold for all is what there is."
    key = shared[-1]
    cost = costs[key]
    lines = [
        f"By faces of the two sets, at FMR {key} (other rates are in the file):",
        f"{'sizes':<13}{'one person':>11}{'two people':>12}  {'median scores':<16}{'own threshold':<15}"
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


def _cost_text(key: str, cells: Mapping[str, GroupFigures], cost: OneThreshold) -> str:
    """How much scores rise with the size, and what one threshold costs."""
    own = {name: cell.rates[key].threshold for name, cell in cells.items() if key in cell.rates}
    least, most = (function(own, key=lambda name: own[name]) for function in (min, max))
    rates = {name: cost.cells[name][0] for name in own}
    seldom, often = (function(rates, key=lambda name: rates[name]) for function in (min, max))
    text = (
        f"The threshold for {key} rises from {own[least]:.4f} ({least}) to {own[most]:.4f} ({most}). One "
        f"threshold for all is an FMR of {rates[seldom]:.1e} for {seldom} and of {rates[often]:.1e} for "
        f"{often}"
    )
    if cost.fnmr_one is None or cost.fnmr_by_size is None:
        return f"{text}."
    return (
        f"{text}, and misses {_percent(cost.fnmr_one)} of all mated pairs; a threshold for each pair of "
        f"sizes misses {_percent(cost.fnmr_by_size)}."
    )


def _gain_text(gained: Mapping[str, Gain], normalisation: ScoreNormalisation | None) -> str:
    if normalisation is None:
        return ""
    lines = [
        f"Scores are normalised with a cohort of {len(normalisation.cohort):,} people "
        f"({normalisation.method}, the nearest {normalisation.top}); their descriptors are in the file, "
        "which is to be kept as they are. Mated pairs missed:"
    ]
    for key, each in gained.items():
        low, high = each.difference95
        verdict = "a gain" if high < 0 else "a loss: leave out --cohort" if low > 0 else "no sure difference"
        lines.append(
            f"  FMR {key}: {_percent(each.before)} with cosines, {_percent(each.after)} normalised "
            f"(difference {100 * low:+.2f} to {100 * high:+.2f} points: {verdict})"
        )
    return "\n".join(lines)


def _closest_text(closest: Sequence[tuple[tuple[str, str], float]]) -> str:
    lines = ["The people most alike; one person under two names would spoil all thresholds:"]
    return "\n".join([*lines, *(f"  {score:.4f}  {one} - {other}" for (one, other), score in closest)])


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f} %"


# ------------------------------------------------------------------------------------------ the flags


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, metavar="FILE", default=Path("calibration.json"), help="the file that is written"
    )
    group = parser.add_argument_group("photos")
    group.add_argument(
        "--images_root",
        type=Path,
        required=True,
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="every subfolder is a person; its subfolders are sets, loose photos are split into sets",
    )
    group.add_argument(
        "--cohort",
        type=Path,
        metavar="DIR",
        default=argparse.SUPPRESS,
        help=f"normalise scores with these other people, {FEWEST_IN_COHORT} or more, each a subfolder",
    )
    group.add_argument(
        "--score_normalisation",
        choices=METHODS,
        default=argparse.SUPPRESS,
        help=f"how, with --cohort; {METHODS_HELP} (default: {DEFAULT_METHOD})",
    )
    add_photo_flags(group)
    group = parser.add_argument_group("measurement")
    group.add_argument("--replicates", type=int, default=200, help="draws of people for the intervals")
    group.add_argument("--seed", type=int, default=0, help="of the draws and of the split into sets")
    add_model_flags(parser)


COMMANDS = {
    "calibrate": Command(
        "Finds thresholds of similarity for your own people: for false match rates of "
        f"{', '.join(rate_key(rate) for rate in RATES)}, by the sizes of the two sets, with intervals.",
        _flags,
        calibrate_sets,
    )
}

"""Measurement of thresholds on labelled sets, and the content of a calibration file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.metrics.calibration import (
    GroupFigures,
    OneThreshold,
    RateFigures,
    calibrate,
    one_threshold,
)
from evaluation.metrics.enrolment_failures import EnrolmentFailures
from evaluation.metrics.score_normalisation import (
    DEFAULT_METHOD,
    Gain,
    ScoreNormalisation,
    compared,
    gains,
)
from evaluation.metrics.set_pairs import InnerProducts, SetPairs, all_pairs
from recognition.calibration.thresholds import SCHEMA, encoded

if TYPE_CHECKING:
    from recognition.calibration.labelled_sets import LabelledSets

RATES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_CLOSEST_SHOWN = 3
_CLOSEST_SEARCHED = 200


@dataclass(frozen=True, eq=False)
class Measurement:
    """Thresholds measured on labelled sets.

    Attributes:
        labelled: the sets.
        everything: figures of all pairs of sets.
        cells: figures by the name of a pair of size groups.
        costs: effect of one threshold for all sizes, by rate.
        normalisation: score normalisation of the scores, or None.
        gained: false non-match rates without and with it, by rate.
        closest: names and score of the sets of the most similar pairs of subjects.
        replicates: draws of subjects.
        seed: of the draws.
    """

    labelled: LabelledSets
    everything: GroupFigures
    cells: dict[str, GroupFigures]
    costs: dict[str, OneThreshold]
    normalisation: ScoreNormalisation | None
    gained: dict[str, Gain]
    closest: list[tuple[tuple[str, str], float]]
    replicates: int
    seed: int

    def content(self, fingerprint: str, reading: Mapping[str, str]) -> dict[str, Any]:
        """The content of a calibration file; `reading`: from `recognition.preprocessing`."""
        labelled = self.labelled
        content: dict[str, Any] = {
            "schema": SCHEMA,
            "fingerprint": fingerprint,
            "reading": dict(reading),
            "made_from": {
                "people": len(labelled.subject_names),
                "sets": len(labelled.sizes),
                "faces": int(labelled.sizes.sum()),
                "replicates": self.replicates,
                "seed": self.seed,
            },
            "failures_to_enrol": _failures_content(labelled.failures, self.everything),
            **_group_content(self.everything),
            "by_size": {
                name: _group_content(group)
                | {
                    # Error rates of pairs of these sizes with one threshold for all sizes.
                    "one_threshold": {
                        key: dict(zip(("fmr", "fnmr"), cost.cells[name], strict=True))
                        for key, cost in self.costs.items()
                    }
                }
                for name, group in self.cells.items()
            },
            "left_out": [{"name": name, "reason": reason} for name, reason in labelled.left_out],
            "closest": [{"sets": list(names), "score": score} for names, score in self.closest],
        }
        if self.normalisation is not None:
            subjects, values = self.normalisation.cohort.shape
            content["normalisation"] = {
                "method": self.normalisation.method,
                "top": self.normalisation.top,
                "people": subjects,
                "values": values,
                "gain": {key: asdict(each) for key, each in self.gained.items()},
                "descriptors": encoded(self.normalisation.cohort),
            }
        return content


def measure(
    labelled: LabelledSets,
    normalisation: ScoreNormalisation | None = None,
    *,
    replicates: int = 200,
    seed: int = 0,
) -> Measurement:
    """Measure thresholds for `RATES` on all pairs of labelled sets.

    `replicates`: draws of subjects for the intervals. Raises InputError for too few subjects.
    """
    embeddings = labelled.descriptors
    plain = all_pairs(InnerProducts(embeddings, embeddings, clip=True), labelled.subjects, labelled.sizes)
    pairs = plain
    if normalisation is not None:
        normalised = InnerProducts(*compared(embeddings.astype(np.float64), normalisation))
        pairs = all_pairs(normalised, labelled.subjects, labelled.sizes)
    everything, cells = calibrate(pairs, RATES, replicates=replicates, seed=seed)
    gained = {}
    if normalisation is not None:
        rates = [float(key) for key in everything.rates]
        gained = gains(plain, pairs.scores, rates, replicates=replicates, seed=seed)
    return Measurement(
        labelled,
        everything,
        cells,
        one_threshold(pairs, everything, cells),
        normalisation,
        gained,
        _closest(labelled, pairs),
        replicates,
        seed,
    )


def cohort_normalisation(cohort: LabelledSets, method: str = DEFAULT_METHOD) -> ScoreNormalisation:
    """Score normalisation with the largest set of each subject; raises InputError for too few subjects."""
    largest = np.lexsort((-cohort.sizes, cohort.subjects))
    _, rows = np.unique(cohort.subjects[largest], return_index=True)
    return ScoreNormalisation.with_cohort(method, cohort.descriptors[largest[rows]])


def _closest(labelled: LabelledSets, pairs: SetPairs) -> list[tuple[tuple[str, str], float]]:
    """The most similar pairs of subjects, each once, with the names of the two sets."""
    rising = pairs.nonmated()
    top = pairs.highest_nonmated(rising[-min(_CLOSEST_SEARCHED, len(rising))])
    top = top[np.argsort(-pairs.scores[top], kind="stable")][:_CLOSEST_SEARCHED]
    found: dict[tuple[int, int], tuple[tuple[str, str], float]] = {}
    for first, second, score in zip(*pairs.sets_at(top), pairs.scores[top].tolist(), strict=True):
        who = int(pairs.subjects[first]), int(pairs.subjects[second])
        found.setdefault((min(who), max(who)), ((labelled.names[first], labelled.names[second]), score))
    return list(found.values())[:_CLOSEST_SHOWN]


# The keys of the file, some of which are older than the names of the attributes.


def _group_content(group: GroupFigures) -> dict[str, Any]:
    return {
        "mated": group.mated,
        "nonmated": group.nonmated,
        "people_pairs": group.subject_pairs,
        "median_mated": group.median_mated,
        "median_nonmated": group.median_nonmated,
        "thresholds": {key: _rate_content(figures) for key, figures in group.rates.items()},
        "refused": group.refused,
        "curve": {"fmr": group.curve[0], "score": group.curve[1]},
    }


def _rate_content(figures: RateFigures) -> dict[str, Any]:
    return {
        "threshold": figures.threshold,
        "interval95": figures.interval95,
        "fmr": figures.fmr,
        "fmr_interval95": figures.fmr_interval95,
        "fnmr": figures.fnmr,
        "fnmr_interval95": figures.fnmr_interval95,
    }


def _failures_content(failures: EnrolmentFailures, everything: GroupFigures) -> dict[str, Any]:
    """With the generalised rates at each threshold (GFAR, GFRR); GFRR is None without mated pairs."""
    return {
        "attempts": failures.attempts,
        "failed": failures.failed,
        "people": failures.subjects,
        "people_failed": failures.subjects_failed,
        "fte": failures.rate,
        "interval95": failures.interval95,
        "generalised": {
            key: {
                "gfar": failures.generalised_accept_rate(each.fmr),
                "gfrr": None if each.fnmr is None else failures.generalised_reject_rate(each.fnmr),
            }
            for key, each in everything.rates.items()
        },
    }

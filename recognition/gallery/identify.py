"""Identification of described sets: best matches in a gallery, open-set answers, calibrated decisions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.metrics.thresholds import at_or_above
from recognition.calibration.decisions import Decisions, decide
from recognition.calibration.thresholds import Calibration
from recognition.gallery.contents import Gallery
from recognition.gallery.enrol import descriptors_of
from recognition.gallery.open_set import OpenSetThreshold, threshold_text
from recognition.gallery.search import Matches, search
from recognition.model import FaceModel
from recognition.records import AggregatedSet
from runtime.errors import InputWarning


@dataclass(frozen=True, eq=False)
class Identification:
    """What a gallery answers to P sets.

    Attributes:
        sets: P probes.
        gallery: that was searched.
        matches: the k most similar subjects of each.
        threshold: the similarity from which on the best match is the answer, where an FPIR was asked for.
        decisions: (P, k) verdicts on the matches, where there is a calibration.
        is_trusted: False where the descriptors show that limits of cosine do not hold for the backbone.
    """

    sets: Sequence[AggregatedSet]
    gallery: Gallery
    matches: Matches
    threshold: OpenSetThreshold | None = None
    decisions: Decisions | None = None
    is_trusted: bool = True

    def text(self) -> str:
        """The matches of each set, its answer, and what threshold and decisions rest on."""
        lines = []
        for probe, each in enumerate(self.sets):
            rows, scores = self.matches.rows[probe], self.matches.scores[probe]
            answer = ""
            if self.threshold is not None:
                is_found = at_or_above(scores[:1], self.threshold.threshold).any()
                answer = f": {self.gallery.names[rows[0]] if is_found else 'not enrolled'}"
            lines.append(f"{each.name}{answer}")
            lines += [
                f"  {rank}. {score:7.4f}  {self.gallery.names[row]}{self._decided((probe, rank - 1))}"
                for rank, (row, score) in enumerate(zip(rows, scores, strict=True), 1)
            ]
        if self.threshold is not None:
            lines += ["", threshold_text(self.threshold, self.gallery.names)]
        if self.decisions is not None:
            expected = len(self.gallery) * float(self.decisions.fmr)
            lines += [
                "",
                f"decisions: at a false match rate of {self.decisions.fmr} for each comparison. A search "
                f"makes {len(self.gallery):,} comparisons, so up to {min(expected, 1.0):.1e} of the searches "
                "of subjects who are not enrolled return a false match: --fpir sets that rate itself.",
            ]
        return "\n".join(lines)

    def _decided(self, place: tuple[int, int]) -> str:
        if self.decisions is None:
            return ""
        normalised = self.decisions.normalisation is not None
        score = f"normalised {self.decisions.scores[place]:.4f}, " if normalised else ""
        return (
            f"  {self.decisions.verdict(place)} ({score}threshold {self.decisions.threshold_text(place)} for "
            f"{self.decisions.sizes_text(place)}; FMR at this score {self.decisions.fmr_text(place)})"
        )


def identify(
    model: FaceModel,
    sets: Sequence[AggregatedSet],
    gallery: Gallery,
    *,
    top: int = 5,
    threshold: OpenSetThreshold | None = None,
    calibration: Calibration | None = None,
) -> Identification:
    """Search sets in a gallery.

    Warns where the backbone was never measured and the enrolled subjects are more alike than they should be.
    `sets` and `gallery` hold one or more, and `model` described both; `calibration` is of the same model.
    """
    if why := model.spec.unmeasured_warning(gallery.descriptors, np.arange(len(gallery))):
        warnings.warn(f"gallery: {why}, and enroll anew.", InputWarning, stacklevel=2)
    matches = search(descriptors_of(sets), gallery.descriptors, top)
    decisions = None if calibration is None else decide_matches(calibration, sets, gallery, matches)
    return Identification(sets, gallery, matches, threshold, decisions, is_trusted=not why)


def decide_matches(
    calibration: Calibration, sets: Sequence[AggregatedSet], gallery: Gallery, matches: Matches
) -> Decisions:
    """Decide on the (P, k) matches of P sets, each as if the two sets had been compared alone."""
    scores = matches.scores.astype(np.float64)
    if calibration.normalisation is not None:
        probes = descriptors_of(sets)[:, None]
        found = zip(matches.scores[:, None], probes, matches.rows, strict=True)
        scores = np.concatenate(
            [calibration.compared(own, probe, gallery.descriptors[rows]) for own, probe, rows in found]
        )
    first = np.array([len(each.faces) for each in sets])
    second = np.array([len(files) for files in gallery.files])[matches.rows]
    return decide(calibration, scores, first[:, None], second)

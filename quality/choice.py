"""Recommend the quality to weight faces by, from error-versus-discard characteristics on degraded faces.

Faces of known subjects are degraded, each once and by its own degree, and compared with each other; the
curves are computed in `quality.error_versus_discard`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coreset.quality import quality_module
from data.checks.near_duplicates import copies_text, find_copies, sketch
from data.sampling.degradations import degrade, draw_degradation
from data.sources.decoding import FACE_SIZE, Image
from data.sources.face_source import ImageFolder, LooseImages
from data.sources.subject_index import SubjectIndex
from evaluation.metrics.verification import FEWEST_DECIDING, rate_key
from features.extract import extract
from net import Backbone
from photos.detection import open_yunet
from quality.check import NONE, open_faces
from quality.error_versus_discard import (
    MAX_DISCARDED,
    PARTIAL,
    RANDOM,
    DiscardCurves,
    FaceComparisons,
    choice_text,
    discard_curves,
    discard_fractions,
)
from runtime.errors import InputError

# What every command can weight faces by; the other measures are shown for comparison.
_USABLE = ("norm", "learned")
# False match rates, the strictest first.
_RATES = (1e-3, 1e-2, 1e-1)
_MAX_FACES_PER_SUBJECT = 4
_MIN_SUBJECTS = 15
# An aligned face fills its image, and the detector needs a margin around it.
_MARGIN = FACE_SIZE // 2
# Low, so that poor faces get a score too; where nothing is detected it is 0.
_LOWEST_SCORE = 0.02


class TooFewSubjectsError(InputError):
    """Too few subjects of a folder have two images."""


@dataclass(frozen=True, eq=False)
class QualityRecommendation:
    """`name`: norm, learned, or `NONE`; `text`: the comparison as a table."""

    name: str
    curves: DiscardCurves
    text: str


def recommend_quality(
    backbone: Backbone,
    images: Path,
    *,
    aggregator: nn.Module | None = None,
    detector: Path | None = None,
    num_images: int = 300,
    seed: int = 0,
    replicates: int = 200,
) -> QualityRecommendation:
    """Compare measures of quality on degraded faces of a folder of <subject>/<image>.

    Args:
        backbone: gives the norms and compares the faces.
        images: the folder; subjects with two images or more are used, up to four images of each.
        aggregator: its learned quality is compared too, if it has one.
        detector: file of YuNet, whose score is compared too; None: it is not.
        num_images: maximum number of faces.
        seed: of the faces, the degradation and the bootstrap.
        replicates: bootstrap replicates over subjects, for the intervals.

    Raises:
        TooFewSubjectsError: too few subjects have two images.
        InputError: features that are not finite.
    """
    faces, subjects, num_subjects, copies = _degraded(images, num_images, seed)
    features, norms = extract(np.stack(faces), backbone)
    qualities = {
        "norm": norms,
        "sharpness": np.array([laplacian_variance(face) for face in faces], np.float32),
    }
    not_measured = []
    if detector is None:
        not_measured.append("detector (no --detector FILE)")
    else:
        qualities["detector"] = detector_scores(faces, detector)
    learned = _learned(aggregator, features, norms)
    if learned is None:
        not_measured.append("learned (the weights have no aggregator with a learned quality)")
    else:
        qualities["learned"] = learned
    fmr = next(
        (rate for rate in _RATES if num_subjects * (num_subjects - 1) / 2 * rate >= FEWEST_DECIDING),
        _RATES[-1],
    )
    found = discard_curves(
        FaceComparisons(subjects, np.clip(features @ features.T, -1, 1)),
        qualities,
        fmr,
        choices=_USABLE,
        favourite="norm",
        replicates=replicates,
        seed=seed,
    )
    text = "\n".join([_text(found, len(faces), num_subjects, not_measured), *copies])
    return QualityRecommendation(found.choice or NONE, found, text)


def curves_to_dict(choice: QualityRecommendation, name: str) -> dict[str, Any]:
    """The figures as plain values, for a file; `name`: of the weights."""
    found = choice.curves
    return {
        "weights": name,
        "choice": choice.name,
        "fmr": found.fmr,
        "threshold": found.threshold,
        "mated": found.mated,
        "nonmated": found.nonmated,
        "rejected": discard_fractions().round(4).tolist(),
        "measures": {
            key: asdict(curve) | {"fnmr": curve.fnmr.tolist()} for key, curve in found.curves.items()
        },
        "partial_minus_choice": found.differences,
    }


def _degraded(
    images: Path, num_images: int, seed: int
) -> tuple[list[Image], NDArray[np.int64], int, list[str]]:
    """Degraded faces, their subjects (N,), the number of subjects, and sentences on excluded copies."""
    source = open_faces(images)
    rng = np.random.default_rng([seed, 11])
    chosen: list[tuple[int, int]] = []
    num_subjects = 0
    index = SubjectIndex(source.labels)
    for subject in rng.permutation(len(index)):
        rows = index.images_of(int(subject))
        if len(rows) < 2:
            continue
        if len(chosen) >= num_images - 1:
            break
        some = rng.permutation(rows)[: min(_MAX_FACES_PER_SUBJECT, num_images - len(chosen))]
        chosen += [(int(row), num_subjects) for row in some]
        num_subjects += 1
    chosen, copies = _without_copies(source, chosen)
    subjects = np.unique([subject for _, subject in chosen], return_inverse=True)[1].reshape(-1)
    num_subjects = int(subjects.max(initial=-1)) + 1
    if num_subjects < _MIN_SUBJECTS:
        raise TooFewSubjectsError(
            f"{images}: {num_subjects} subjects with two images or more (of the {num_images} images used); "
            f"expected {_MIN_SUBJECTS} or more for an error-versus-discard characteristic."
        )
    faces = [degrade(source.image(row), draw_degradation(rng, float(rng.random())), rng) for row, _ in chosen]
    return faces, subjects.astype(np.int64), num_subjects, copies


def _without_copies(
    source: ImageFolder | LooseImages, chosen: list[tuple[int, int]]
) -> tuple[list[tuple[int, int]], list[str]]:
    """(row, subject) without near-duplicates, of subjects with two images left; and sentences on them."""
    subjects = np.array([subject for _, subject in chosen], np.int64)
    names = {subject: source.subjects[int(source.labels[row])] for row, subject in chosen}
    sketches = [sketch(source.image(row))[None] for row, _ in chosen]
    found = find_copies(sketches, subjects, [names[subject] for subject in sorted(names)])
    kept = [each for place, each in enumerate(chosen) if place not in found.left_out]
    counts = Counter(subject for _, subject in kept)
    text = copies_text("images", found, [source.describe(row) for row, _ in chosen])
    return [each for each in kept if counts[each[1]] > 1], text


@torch.no_grad()
def _learned(
    aggregator: nn.Module | None, features: NDArray[Any], norms: NDArray[Any]
) -> NDArray[np.float32] | None:
    quality = quality_module(aggregator)
    if quality is None or quality.kind != "learned":
        return None
    found = quality(torch.from_numpy(features), torch.from_numpy(norms))
    return np.asarray(found.float().numpy(), np.float32)


def _text(found: DiscardCurves, faces: int, subjects: int, not_measured: Sequence[str]) -> str:
    lines = [
        f"Error versus discard: {faces} degraded faces of {subjects} subjects, {found.mated:,} mated and "
        f"{found.nonmated:,} non-mated pairs; FNMR in % at FMR {rate_key(found.fmr)} by discarded fraction:",
        f"{'measure':<11}{'0 %':>10}{'10 %':>11}{'30 %':>11}  {f'mean to {PARTIAL:.0%}':<27}"
        f"{f'mean to {MAX_DISCARDED:.0%} (AUERC)':<27}against random",
    ]
    places = [int(np.argmin(np.abs(discard_fractions() - fraction))) for fraction in (0.0, 0.1, 0.3)]
    for name, curve in sorted(found.curves.items(), key=lambda each: each[1].partial):
        rates = "".join(
            f"{100 * curve.fnmr[place]:>{width}.2f}"
            for place, width in zip(places, (10, 11, 11), strict=True)
        )
        low, high = (100 * value for value in curve.against_random)
        against = "" if name == RANDOM else f"{low:+.2f} to {high:+.2f}"
        lines.append(
            f"{name:<11}{rates}  {_area(curve.partial, curve.partial95):<27}"
            f"{_area(curve.area, curve.area95):<27}{against}"
        )
    if not_measured:
        lines.append(f"Not measured: {'; '.join(not_measured)}.")
    return "\n".join([*lines, choice_text(found)])


def _area(value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * value:.2f} ({100 * low:.2f} to {100 * high:.2f})"


def laplacian_variance(face: Image) -> float:
    """Variance of the Laplacian of the grey levels (Pech-Pacheco et al. 2000).

    Args:
        face: (H, W, 3) uint8 RGB.
    """
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def detector_scores(faces: Iterable[Image], model: Path) -> NDArray[np.float32]:
    """(N,) the highest detection score of YuNet in each aligned face; 0 where nothing is detected.

    Raises:
        InputError: the file is not a detector.
    """
    side = FACE_SIZE + 2 * _MARGIN
    yunet = open_yunet(model, side, _LOWEST_SCORE)
    scores = []
    for face in faces:
        image = cv2.cvtColor(face, cv2.COLOR_RGB2BGR)
        padded = cv2.copyMakeBorder(image, _MARGIN, _MARGIN, _MARGIN, _MARGIN, cv2.BORDER_CONSTANT)
        found = yunet.detect(padded)[1]
        scores.append(0.0 if found is None else float(found[:, -1].max()))
    return np.array(scores, np.float32)

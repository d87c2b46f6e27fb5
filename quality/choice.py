"""Which measure of quality should faces be weighed by? Measured by what rejecting the poorest ones saves.

And the whole of `convert.py --check-quality`.

Faces of known people are degraded, each once and in its own way, and compared with each other; the maths is
in `quality.error_versus_discard`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coreset.quality import quality_module
from data.checks.near_duplicates import copies_text, find_copies, sketch
from data.sampling.degradations import degrade, draw_degradation
from data.sources.decoding import Image
from data.sources.face_source import ImageFolder, LooseImages
from data.sources.subject_index import SubjectIndex
from evaluation.metrics.verification import FEWEST_DECIDING, rate_key
from features.extract import extract
from net import Backbone
from quality.check import NONE, check_quality, measure_cosines, open_faces, recommendation
from quality.error_versus_discard import (
    MOST_REJECTED,
    PARTIAL,
    RANDOM,
    FacePairs,
    RejectCurves,
    choice_text,
    reject_curves,
    rejected_shares,
)
from quality.image_measures import detector_scores, sharpness
from quality.plots import plot_reject
from runtime.errors import InputError
from runtime.files import atomic_write
from weights import Overrides, load_aggregator
from weights.converting import convert_weights

# What aggregators can weigh faces by in every command; all other measures are shown for comparison.
_USABLE = ("norm", "learned")
# The strictest that the pairs of people support.
_RATES = (1e-3, 1e-2, 1e-1)
_FACES_OF_ONE = 4
_FEWEST_PEOPLE = 15


class TooFewPeopleError(InputError):
    """A folder in which no two images, or too few, are of one person."""


@dataclass(frozen=True, eq=False)
class QualityChoice:
    """`name`: norm, learned, or `NONE`; `text`: all of it for a person."""

    name: str
    curves: RejectCurves
    text: str


@dataclass(frozen=True)
class Wish:
    """What a person asks for beside the choice.

    Attributes:
        out: folder of the plot and the figures.
        store: where the weights are written with the choice, .safetensors.
        detector: YuNet's file.
        arch: of the weights, where their file does not say it.
        stated: fields of their spec that overrule what their file says.
        overrides: coreset size and gamma of the weights' aggregator, in place of what the file says.

    Raises:
        InputError: a detector that is not there, or a name that weights cannot have.
    """

    out: Path | None = None
    store: Path | None = None
    detector: Path | None = None
    arch: str | None = None
    stated: Mapping[str, Any] | None = None
    num_images: int = 300
    seed: int = 0
    overrides: Overrides | None = None

    def __post_init__(self) -> None:
        faults = []
        if self.detector is not None and not self.detector.is_file():
            faults.append(f"--detector {self.detector}: there is no such file.")
        if self.store is not None and self.store.suffix != ".safetensors":
            faults.append(f"--store {self.store}: expected a name that ends in .safetensors.")
        if faults:
            raise InputError.from_faults(faults)


def measure_and_keep(backbone: Backbone, source: str, images: Path, wish: Wish) -> str:
    """Measures the weights `source` on a folder of faces, writes what is wished, and says all of it.

    Cosines first (`measure_cosines`), since all else is measured with the features as they will be. Which
    quality to weigh by says the error-versus-reject curve; where there are too few people for one, the norm's
    correlation with degradation.

    Raises:
        InputError: as `check_quality` and `choose_quality`; too few people where the curves are to be
            plotted.
    """
    aggregator = load_aggregator(source, wish.overrides)
    how = {"num_images": wish.num_images, "seed": wish.seed}
    cosines = measure_cosines(backbone, open_faces(images), keep_centre=aggregator is not None, **how)
    report = check_quality(backbone, images, name=source, **how)
    parts, quality, choice = [report.text, cosines], report.quality, None
    try:
        choice = choose_quality(backbone, images, aggregator=aggregator, detector=wish.detector, **how)
        quality = choice.name
        parts.append(choice.text)
    except TooFewPeopleError as few:
        if wish.out is not None:
            raise
        parts.append(f"Error versus reject was not measured: {few}")
    parts.append(recommendation(quality))
    if wish.out is not None and choice is not None:
        title = f"Rejecting poor faces, {Path(source).name}"
        plot_reject(wish.out / "error_versus_reject.png", choice.curves, title=title)
        text = json.dumps(curves_content(choice, Path(source).name), indent=1)
        atomic_write(wish.out / "quality.json", f"{text}\n")
        parts.append(f"{wish.out}: error_versus_reject.png, quality.json")
    if wish.store is not None:
        parts.append(
            convert_weights(
                source,
                wish.store,
                arch=wish.arch,
                channel_order=backbone.spec.channel_order,
                quality=quality,
                measured=backbone.spec,
                stated=wish.stated,
                overrides=wish.overrides,
            )
        )
    return "\n\n".join(parts)


def choose_quality(
    backbone: Backbone,
    images: Path,
    *,
    aggregator: nn.Module | None = None,
    detector: Path | None = None,
    num_images: int = 300,
    seed: int = 0,
    replicates: int = 200,
) -> QualityChoice:
    """Compares measures of quality on degraded faces of a folder of <subject>/<image>.

    Args:
        backbone: whose norm is looked at, and which compares the faces.
        images: the folder; subjects with two images or more are used, at most four images of each.
        aggregator: whose learned quality is looked at, if it has one.
        detector: YuNet's file; None leaves its score out.
        num_images: faces at most.
        seed: of the faces, the degradation and the draws of subjects.
        replicates: draws of subjects for the intervals.

    Raises:
        TooFewPeopleError: too few subjects with two images.
        InputError: features that are not finite.
    """
    faces, subjects, people, copies = _degraded(images, num_images, seed)
    features, norms = extract(np.stack(faces), backbone)
    if not (np.isfinite(features).all() and np.isfinite(norms).all()):
        raise InputError("features that are not finite; the weights may be damaged.")
    qualities = {"norm": norms, "sharpness": np.array([sharpness(face) for face in faces], np.float32)}
    left_out = []
    if detector is None:
        left_out.append("detector (no --detector FILE)")
    else:
        qualities["detector"] = detector_scores(faces, detector)
    learned = _learned(aggregator, features, norms)
    if learned is None:
        left_out.append("learned (the weights hold no aggregator with a learned quality)")
    else:
        qualities["learned"] = learned
    fmr = next((rate for rate in _RATES if people * (people - 1) / 2 * rate >= FEWEST_DECIDING), _RATES[-1])
    found = reject_curves(
        FacePairs(subjects, np.clip(features @ features.T, -1, 1)),
        qualities,
        fmr,
        choices=_USABLE,
        favourite="norm",
        replicates=replicates,
        seed=seed,
    )
    text = "\n".join([_text(found, len(faces), people, left_out), *copies])
    return QualityChoice(found.choice or NONE, found, text)


def curves_content(choice: QualityChoice, name: str) -> dict[str, Any]:
    """What a file keeps of it; `name`: of the weights."""
    found = choice.curves
    return {
        "weights": name,
        "choice": choice.name,
        "fmr": found.fmr,
        "threshold": found.threshold,
        "mated": found.mated,
        "nonmated": found.nonmated,
        "rejected": rejected_shares().round(4).tolist(),
        "measures": {
            key: asdict(curve) | {"fnmr": curve.fnmr.tolist()} for key, curve in found.curves.items()
        },
        "partial_minus_choice": found.differences,
    }


def _degraded(
    images: Path, num_images: int, seed: int
) -> tuple[list[Image], NDArray[np.int64], int, list[str]]:
    """Faces, the number (N,) of each one's subject, how many subjects, and sentences on copies left out."""
    source = open_faces(images)
    rng = np.random.default_rng([seed, 11])
    chosen: list[tuple[int, int]] = []
    people = 0
    index = SubjectIndex(source.labels)
    for subject in rng.permutation(len(index)):
        rows = index.images_of(int(subject))
        if len(rows) < 2:
            continue
        if len(chosen) >= num_images - 1:
            break
        some = rng.permutation(rows)[: min(_FACES_OF_ONE, num_images - len(chosen))]
        chosen += [(int(row), people) for row in some]
        people += 1
    chosen, copies = _without_copies(source, chosen)
    numbers = np.unique([person for _, person in chosen], return_inverse=True)[1].reshape(-1)
    people = int(numbers.max(initial=-1)) + 1
    if people < _FEWEST_PEOPLE:
        raise TooFewPeopleError(
            f"{images}: {people} subjects with two images or more (of the {num_images} images looked at); "
            f"expected {_FEWEST_PEOPLE} or more to tell what rejecting poor faces saves."
        )
    faces = [degrade(source.image(row), draw_degradation(rng, float(rng.random())), rng) for row, _ in chosen]
    return faces, numbers.astype(np.int64), people, copies


def _without_copies(
    source: ImageFolder | LooseImages, chosen: list[tuple[int, int]]
) -> tuple[list[tuple[int, int]], list[str]]:
    """(row, person) of images that are no copies, of people with two such; and sentences on the others."""
    persons = np.array([person for _, person in chosen], np.int64)
    names = {person: source.subjects[int(source.labels[row])] for row, person in chosen}
    sketches = [sketch(source.image(row))[None] for row, _ in chosen]
    found = find_copies(sketches, persons, [names[person] for person in sorted(names)])
    gone = found.left_out
    left = [each for place, each in enumerate(chosen) if place not in gone]
    counts = Counter(person for _, person in left)
    text = copies_text("images", found, [source.describe(row) for row, _ in chosen])
    return [each for each in left if counts[each[1]] > 1], text


@torch.no_grad()
def _learned(
    aggregator: nn.Module | None, features: NDArray[Any], norms: NDArray[Any]
) -> NDArray[np.float32] | None:
    quality = quality_module(aggregator)
    if quality is None or quality.kind != "learned":
        return None
    found = quality(torch.from_numpy(features), torch.from_numpy(norms))
    return np.asarray(found.float().numpy(), np.float32)


def _text(found: RejectCurves, faces: int, people: int, left_out: Sequence[str]) -> str:
    lines = [
        f"Error versus reject: {faces} degraded faces of {people} people, {found.mated:,} mated and "
        f"{found.nonmated:,} non-mated pairs; % missed at FMR {rate_key(found.fmr)} as the poorest pairs go:",
        f"{'measure':<11}{'none gone':>10}{'10 % gone':>11}{'30 % gone':>11}  {f'mean to {PARTIAL:.0%}':<27}"
        f"{f'mean to {MOST_REJECTED:.0%} (AUERC)':<27}against random",
    ]
    places = [int(np.argmin(np.abs(rejected_shares() - share))) for share in (0.0, 0.1, 0.3)]
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
    if left_out:
        lines.append(f"Not measured: {'; '.join(left_out)}.")
    return "\n".join([*lines, choice_text(found)])


def _area(value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * value:.2f} ({100 * low:.2f} to {100 * high:.2f})"

"""What a backbone's features are like: is their norm a measure of quality, and how alike are two people?

AdaFace trains the norm to be one; other backbones may or may not have it. It is measured on degraded faces;
cosines are measured as `cosine_statistics` says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from data.checks.colour_order import FEWEST_PAIRS, check_colour_order, wrong_order_advice
from data.sampling.augmentation import shrink_and_enlarge
from data.sources.decoding import Image
from data.sources.face_source import FaceSource, ImageFolder, LooseImages, is_loose_image
from features.extract import extract
from net import Backbone
from runtime.errors import InputError

# A measure of quality falls clearly with degradation.
STRONG = -0.5
NONE = "none"
# 11 of 112 pixels: the worst face that a detector still finds. Halving the side is one step, wherever from.
SMALLEST_SIDE = 0.1


@dataclass(frozen=True)
class QualityReport:
    """What degraded faces say of a backbone's norm.

    `correlation`: Spearman's, of norm and degradation over all faces, negative where the norm falls;
    `within_faces`: share of the faces whose norm is lower degraded than clean; `text`: the figures for a
    person.
    """

    num_images: int
    correlation: float
    within_faces: float
    text: str

    @property
    def quality(self) -> str:
        """Norm or `NONE`, by the correlation."""
        return "norm" if self.correlation <= STRONG else NONE


def open_faces(images: Path) -> ImageFolder | LooseImages:
    """A folder of <subject>/<image>, or one of images alone, of which nobody knows whose they are."""
    loose = images.is_dir() and any(is_loose_image(path) for path in images.iterdir())
    folders = loose and any(path.is_dir() and not path.name.startswith(".") for path in images.iterdir())
    return LooseImages(images) if loose and not folders else ImageFolder(images)


def measure_cosines(
    backbone: Backbone,
    source: FaceSource | LooseImages,
    *,
    keep_centre: bool = False,
    num_images: int = 300,
    seed: int = 0,
) -> str:
    """Measures centre and cosine statistics anew and sets them in the backbone's spec; says what was found.

    Two images of each of as many subjects as there is room for, or images of unknown people. Where it cannot
    be measured, the spec stays as it is.

    Args:
        backbone: on the CPU; its spec is changed in place.
        source: the images; of those of `LooseImages` nobody knows whose they are.
        keep_centre: for weights with an aggregator, which was trained on features as they are.
        num_images: at most.
        seed: of the choice.

    Raises:
        InputError: images that cannot be read.
    """
    rng = np.random.default_rng([seed, 7])
    order = rng.permutation(len(source))
    labels = source.labels[order]
    # Of each subject the first two in this order, whole subjects after one another.
    ranked = np.lexsort((order, rng.permutation(len(source.subjects))[labels]))
    labels = labels[ranked]
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    place = np.arange(len(labels)) - starts[np.cumsum(np.diff(labels, prepend=-1) != 0) - 1]
    rows = order[ranked][place < 2][:num_images]
    spec = backbone.spec if keep_centre else replace(backbone.spec, centre=None)
    before, backbone.spec = backbone.spec, replace(spec, cosine_statistics=None)
    features, norms = extract(np.stack([source.image(int(row)) for row in rows]), backbone)
    known = None if isinstance(source, LooseImages) else source.labels[rows]
    try:
        backbone.spec = backbone.spec.measured(features, known, norms, keep_centre=keep_centre)
    except InputError as few:
        backbone.spec = before
        return f"How alike two people are was not measured: {few}"
    statistics = backbone.spec.cosine_statistics
    text = "" if statistics is None else f"{backbone.spec.name}: {statistics.text()}."
    if backbone.spec.centre is not None:
        text += " The vector that the features of all people share is subtracted."
    return text


def check_quality(
    backbone: Backbone, images: Path, *, num_images: int = 300, seed: int = 0, name: str = "the weights"
) -> QualityReport:
    """Degrades faces of a folder (shrunk to 0.1..1 of their side and enlarged again, each by its own degree)
    and compares the norm of each with its degree; looks at the colour order too where subjects have pairs.

    Raises:
        InputError: no folder of <subject>/<image>, fewer than 20 images, or norms that are not finite.
    """
    source = open_faces(images)
    if len(source) < 20:
        raise InputError(f"{images}: holds {len(source)} images; expected 20 or more to compare.")
    rng = np.random.default_rng([seed, 3])
    rows = np.sort(rng.choice(len(source), min(num_images, len(source)), replace=False))
    # Evenly spread, and in no order that the rows could share.
    degrees = rng.permutation(np.linspace(0, 1, len(rows)))
    clean = [source.image(int(row)) for row in rows]
    degraded = [
        shrink_and_enlarge(image, SMALLEST_SIDE**degree, rng)
        for image, degree in zip(clean, degrees, strict=True)
    ]
    norms, clean_norms = _norms(backbone, degraded), _norms(backbone, clean)
    if not np.isfinite(norms).all() or not np.isfinite(clean_norms).all():
        raise InputError(f"{name}: norms that are not finite; the weights may be damaged.")
    constant = norms.std() == 0
    correlation = 0.0 if constant else float(spearmanr(norms, degrees).statistic)
    within = float((norms < clean_norms).mean())
    lines = [
        f"{name} ({backbone.spec.name}): rank correlation of norm and degradation {correlation:.2f}, over "
        f"{len(rows)} faces of {images}; {within:.0%} of them have a lower norm than before",
    ]
    lines += [f"{images}: {note}" for note in source.notes]
    lines += _colour_lines(backbone, source, seed)
    return QualityReport(len(rows), correlation, within, "\n".join(lines))


def recommendation(quality: str) -> str:
    """What to weigh faces by, in words; `quality`: what was found to say how good a face is, or `NONE`."""
    if quality == NONE:
        return (
            "Recommended: --quality learned for an aggregator that is trained, none for poolings: the norm "
            "does not say how good a face is."
        )
    whose = " of their aggregator, as it is" if quality == "learned" else ""
    return f"Recommended: --quality {quality}{whose}."


def _colour_lines(backbone: Backbone, source: ImageFolder | LooseImages, seed: int) -> list[str]:
    report = check_colour_order(
        source,
        lambda faces: extract(faces, backbone)[0],
        backbone.spec,
        seed=seed,
        advice=wrong_order_advice(backbone.spec),
    )
    if report.num_pairs < FEWEST_PAIRS:
        return []
    if report.verdict != "swapped":
        return [report.sentence]
    return [f"warning: {report.sentence}"]


def _norms(backbone: Backbone, faces: list[Image]) -> NDArray[np.float32]:
    return extract(np.stack(faces), backbone)[1]

"""Measure a backbone on a folder of faces: whether its norm is a quality, and its cosine statistics.

AdaFace trains the norm to follow image quality; the norm of other backbones may not. It is measured on
degraded faces. Cosines are measured as `backbones.cosine_statistics` says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from data.checks.colour_order import MIN_PAIRS, check_colour_order, wrong_order_advice
from data.sampling.augmentation import shrink_and_enlarge
from data.sources.face_source import FaceSource, ImageFolder, LooseImages, is_loose_image
from features.extract import extract
from net import Backbone
from runtime.errors import InputError

# Rank correlation with degradation from which on the norm counts as a quality.
STRONG = -0.5
NONE = "none"
# 11 of 112 pixels, the worst face that a detector still finds. Degrees are logarithmic in the side.
SMALLEST_SIDE = 0.1
_MIN_IMAGES = 20


@dataclass(frozen=True)
class QualityReport:
    """How the norm of a backbone follows degradation.

    Attributes:
        num_images: faces measured.
        correlation: Spearman's, of norm and degradation over all faces; negative where the norm falls.
        within_faces: fraction of the faces with a lower norm degraded than clean.
        text: the figures in words.
    """

    num_images: int
    correlation: float
    within_faces: float
    text: str

    @property
    def quality(self) -> str:
        """'norm' or `NONE`, by the correlation."""
        return "norm" if self.correlation <= STRONG else NONE


def open_faces(images: Path) -> ImageFolder | LooseImages:
    """Open a folder of <subject>/<image>, or one of images alone, whose subjects are unknown."""
    loose = images.is_dir() and any(is_loose_image(path) for path in images.iterdir())
    folders = loose and any(path.is_dir() and not path.name.startswith(".") for path in images.iterdir())
    return LooseImages(images) if loose and not folders else ImageFolder(images)


def set_cosine_statistics(
    backbone: Backbone,
    source: FaceSource | LooseImages,
    *,
    keep_centre: bool = False,
    num_images: int = 300,
    seed: int = 0,
) -> str:
    """Measure centre and cosine statistics of a backbone, set them in its spec, and describe them.

    Two images of each of up to `num_images / 2` subjects are used, or images of unknown subjects. Where the
    statistics cannot be measured, the spec stays as it is.

    Args:
        backbone: on the CPU; its spec is changed in place.
        source: the images.
        keep_centre: for weights with an aggregator, which was trained with the present centre.
        num_images: maximum number of images.
        seed: of the choice of images.

    Raises:
        InputError: images that cannot be read.
    """
    rng = np.random.default_rng([seed, 7])
    order = rng.permutation(len(source))
    labels = source.labels[order]
    # The first two images of each subject in this order, subject by subject.
    ranked = np.lexsort((order, rng.permutation(len(source.subjects))[labels]))
    labels = labels[ranked]
    is_new = np.diff(labels, prepend=-1) != 0
    place = np.arange(len(labels)) - np.flatnonzero(is_new)[np.cumsum(is_new) - 1]
    rows = order[ranked][place < 2][:num_images]
    spec = backbone.spec if keep_centre else replace(backbone.spec, centre=None)
    before, backbone.spec = backbone.spec, replace(spec, cosine_statistics=None)
    features, norms = extract(np.stack([source.image(int(row)) for row in rows]), backbone)
    known = None if isinstance(source, LooseImages) else source.labels[rows]
    try:
        backbone.spec = backbone.spec.measured(features, known, norms, keep_centre=keep_centre)
    except InputError as error:
        backbone.spec = before
        return f"The cosine statistics were not measured: {error}"
    statistics = backbone.spec.cosine_statistics
    text = "" if statistics is None else f"{backbone.spec.name}: {statistics.text()}."
    if backbone.spec.centre is not None:
        text += " The mean that the features of all subjects share is subtracted."
    return text


def check_quality(
    backbone: Backbone, images: Path, *, num_images: int = 300, seed: int = 0, name: str = "the weights"
) -> QualityReport:
    """Correlate the norm with degradation, and check the colour order where subjects have mated pairs.

    Each face is shrunk to 0.1..1 of its side and enlarged again, by its own degree.

    Raises:
        InputError: no folder of <subject>/<image>, fewer than 20 images, or features that are not finite.
    """
    source = open_faces(images)
    if len(source) < _MIN_IMAGES:
        raise InputError(f"{images}: holds {len(source)} images; expected {_MIN_IMAGES} or more to compare.")
    rng = np.random.default_rng([seed, 3])
    rows = np.sort(rng.choice(len(source), min(num_images, len(source)), replace=False))
    # Evenly spaced, in an order that is independent of the rows.
    degrees = rng.permutation(np.linspace(0, 1, len(rows)))
    clean = [source.image(int(row)) for row in rows]
    degraded = [
        shrink_and_enlarge(image, SMALLEST_SIDE**degree, rng)
        for image, degree in zip(clean, degrees, strict=True)
    ]
    norms, clean_norms = (extract(np.stack(faces), backbone)[1] for faces in (degraded, clean))
    correlation = 0.0 if norms.std() == 0 else float(spearmanr(norms, degrees).statistic)
    within = float((norms < clean_norms).mean())
    lines = [
        f"{name} ({backbone.spec.name}): rank correlation of norm and degradation {correlation:.2f} over "
        f"{len(rows)} faces of {images}; {within:.0%} of them have a lower norm when degraded",
        *(f"{images}: {note}" for note in source.notes),
    ]
    colours = check_colour_order(
        source,
        lambda faces: extract(faces, backbone)[0],
        backbone.spec,
        seed=seed,
        advice=wrong_order_advice(backbone.spec),
    )
    if colours.num_pairs >= MIN_PAIRS:
        lines.append(f"{'warning: ' if colours.verdict == 'swapped' else ''}{colours.sentence}")
    return QualityReport(len(rows), correlation, within, "\n".join(lines))

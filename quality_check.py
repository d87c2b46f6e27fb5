"""Is the feature norm of a backbone a measure of quality? Looked at on degraded faces, not believed.

AdaFace trains the norm to be one; other backbones may or may not have it. What an aggregator weighs faces by
is chosen by `--quality`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from data.augmentation import shrink_and_enlarge
from data.colour_order import FEWEST_PAIRS, check_colour_order, wrong_order_advice
from data.sources import Image, open_source
from embedding import embed_arrays
from errors import InputError
from net import Backbone

# A measure of quality falls clearly with degradation; between the two it says something, but little.
STRONG, WEAK = -0.5, -0.3
# 11 of 112 pixels: the worst face that a detector still finds. Halving the side is one step, wherever from.
SMALLEST_SIDE = 0.1


@dataclass(frozen=True)
class QualityReport:
    """What degraded faces say of a backbone's norm.

    `correlation`: Spearman's, of norm and degradation over all faces, negative where the norm falls;
    `within_faces`: share of the faces whose norm is lower degraded than clean; `plug`: for --quality; `text`:
    all of it for a person.
    """

    num_images: int
    correlation: float
    within_faces: float
    plug: str
    text: str


def check_quality(
    backbone: Backbone, images: Path, *, num_images: int = 300, seed: int = 0, name: str = "the weights"
) -> QualityReport:
    """Degrades faces of a folder (shrunk to 0.1..1 of their side and enlarged again, each by its own degree)
    and compares the norm of each with its degree; looks at the colour order too where subjects have pairs.

    Raises:
        InputError: no folder of <subject>/<image>, fewer than 20 images, or norms that are not finite.
    """
    source = open_source(images)
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
    plug = "norm" if correlation <= STRONG else "learned"
    lines = [
        f"{name} ({backbone.spec.name}): rank correlation of norm and degradation {correlation:.2f}, over "
        f"{len(rows)} faces of {images}; {within:.0%} of them have a lower norm than before",
        _advice(correlation),
    ]
    lines += [f"{images}: {note}" for note in source.notes]
    lines += _colour_lines(backbone, images, seed)
    return QualityReport(len(rows), correlation, within, plug, "\n".join(lines))


def _advice(correlation: float) -> str:
    if correlation <= STRONG:
        return "The norm is a measure of quality: --quality norm (the default)."
    if correlation <= WEAK:
        return (
            "The norm says something of quality, but little: --quality learned, or detector where the data "
            "have detector scores."
        )
    return (
        "The norm is no measure of quality: --quality learned, or detector where the data have detector "
        "scores; for poolings without training none or detector."
    )


def _colour_lines(backbone: Backbone, images: Path, seed: int) -> list[str]:
    report = check_colour_order(
        open_source(images),
        lambda faces: embed_arrays(backbone, faces)[0],
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
    return embed_arrays(backbone, np.stack(faces))[1]

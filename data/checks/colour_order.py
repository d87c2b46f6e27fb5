"""Are the colours of a source true, or are red and blue swapped? Looked at, not inferred from a path.

The old published unpacking wrote swapped colours and a backbone fed with them loses points silently, so
training looks at some images before it starts: at the colour of skin, and with a trained backbone at mated
pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from data.sources.decoding import FACE_SIZE, Image
from data.sources.face_source import FaceSource
from data.sources.subject_index import SubjectIndex

if TYPE_CHECKING:
    from backbones.spec import BackboneSpec

# The middle of an aligned face is skin. Of 1,500 aligned LFW faces 99.6 % are redder than blue there by more
# than 8 levels, half of them by more than 65; the rest are grey photographs.
_SKIN = np.s_[FACE_SIZE // 4 : -FACE_SIZE // 4, FACE_SIZE // 4 : -FACE_SIZE // 4]
_GREY_LEVELS = 4.0
_FEWEST_COLOURED = 10
# Fewer mated pairs say nothing sure.
FEWEST_PAIRS = 10
_ADVICE = (
    "If the folder was unpacked by the old published convert.py, it is read by main.py --swap_color_channel; "
    "if it was not, by main.py without it."
)


class LabelledFaces(Protocol):
    """What a look at mated pairs needs."""

    @property
    def name(self) -> str:
        """What messages call them."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) subjects."""

    def image(self, row: int, /) -> Image:
        """(112, 112, 3) RGB."""


@dataclass(frozen=True, eq=False)
class GivenFaces:
    """`LabelledFaces` of parts: `labels` (N,) int64 subjects 0..S-1, `image` gives each face."""

    name: str
    labels: NDArray[np.int64]
    image: Callable[[int], Image]


@dataclass(frozen=True)
class SkinColourReport:
    """What the colours of some images say.

    `num_images`: looked at; `num_coloured`: of these, not grey; `red_share`: share of the coloured images
    whose centre is redder than blue (1 where none is coloured); `warning`: a sentence, or empty where all is
    well.
    """

    num_images: int
    num_coloured: int
    red_share: float
    warning: str


@dataclass(frozen=True)
class ColourOrderReport:
    """Mean cosine of mated pairs in the source's colours and with red and blue swapped.

    `standard_error`: of the mean of their difference; `verdict`: "true", "swapped" or "undecided";
    `sentence`: the same for a person.
    """

    num_pairs: int
    mean_as_given: float
    mean_swapped: float
    standard_error: float
    verdict: str
    sentence: str


def check_skin_colour(source: FaceSource, *, num_images: int = 200, seed: int = 0) -> SkinColourReport:
    """Looks at some images of `source` without a network: in true colours skin is redder than blue."""
    rng = np.random.default_rng([seed, 1])
    rows = np.sort(rng.choice(len(source), min(num_images, len(source)), replace=False))
    red_minus_blue = np.array([_red_minus_blue(source.image(int(row))) for row in rows])
    coloured = red_minus_blue[np.abs(red_minus_blue) > _GREY_LEVELS]
    share = float((coloured > 0).mean()) if len(coloured) else 1.0
    warning = ""
    if share < 0.5 and len(coloured) >= min(_FEWEST_COLOURED, len(rows)):
        warning = (
            f"{source.name}: red and blue look swapped: only {share:.0%} of {len(coloured)} coloured faces "
            f"are redder than blue at their centre. {_ADVICE}"
        )
    return SkinColourReport(len(rows), len(coloured), share, warning)


def check_colour_order(
    source: LabelledFaces,
    embed: Callable[[Image], NDArray[np.float32]],
    spec: BackboneSpec,
    *,
    num_pairs: int = 200,
    seed: int = 0,
    advice: str = _ADVICE,
) -> ColourOrderReport:
    """Compares mated pairs in both colour orders: they are more alike in the order the backbone was trained
    with.

    `embed` takes (n, 112, 112, 3) uint8 RGB and gives (n, D) unit rows; it converts to the order of `spec`.
    `advice`: what a person may do about swapped colours.
    The verdict needs three standard errors: a wrong order costs some backbones only 0.03 in cosine.
    """
    first, second = _mated_pairs(source, num_pairs, seed)
    if not len(first):
        sentence = f"{source.name}: no subject has two images, so the colour order could not be looked at."
        return ColourOrderReport(0, 0.0, 0.0, 0.0, "undecided", sentence)
    images = np.stack([source.image(int(row)) for row in np.concatenate((first, second))])
    as_given, others = _pair_cosines(embed(images))
    swapped, swapped_others = _pair_cosines(embed(np.ascontiguousarray(images[..., ::-1])))
    difference = as_given - swapped
    error = float(difference.std(ddof=1) / len(difference) ** 0.5) if len(difference) > 1 else float("inf")
    verdict = "undecided"
    if abs(difference.mean()) > 3 * error:
        verdict = "true" if difference.mean() > 0 else "swapped"
    # A poor backbone may find all faces alike in colours that it never saw.
    if verdict == "swapped" and difference.mean() >= (others - swapped_others).mean():
        verdict = "undecided"
    means = float(as_given.mean()), float(swapped.mean())
    sentence = _sentence(source, spec, verdict, len(first), *means)
    if verdict == "swapped":
        sentence = f"{sentence} {advice}"
    return ColourOrderReport(len(first), *means, error, verdict, sentence)


def wrong_order_advice(spec: BackboneSpec) -> str:
    """What to do about weights that seem to want another order, where the images are known to be true."""
    other = "RGB" if spec.channel_order == "BGR" else "BGR"
    return (
        f"If the images are in true colours, the weights want {other}: python convert.py --weights IN "
        f"OUT.safetensors --channel_order {other}, and use OUT."
    )


def _sentence(
    source: LabelledFaces, spec: BackboneSpec, verdict: str, pairs: int, as_given: float, swapped: float
) -> str:
    measured = (
        f"mean cosine of {pairs} mated pairs of {source.name} by {spec.name} ({spec.channel_order}): "
        f"{as_given:.3f} as given, {swapped:.3f} with red and blue swapped"
    )
    return {
        "true": f"The colour order is right: {measured}.",
        "swapped": f"The colour order looks wrong: {measured}.",
        "undecided": f"The colour order makes no clear difference: {measured}.",
    }[verdict]


def _red_minus_blue(image: Image) -> float:
    red, _, blue = image[_SKIN].reshape(-1, 3).mean(axis=0)
    return float(red - blue)


def _mated_pairs(
    source: LabelledFaces, num_pairs: int, seed: int
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    index = SubjectIndex(source.labels)
    rng = np.random.default_rng([seed, 2])
    several = np.flatnonzero(index.counts() >= 2)
    chosen = rng.choice(several, min(num_pairs, len(several)), replace=False) if len(several) else several
    pairs = [rng.choice(index.images_of(int(subject)), 2, replace=False) for subject in chosen]
    first, second = np.array(pairs, np.int64).reshape(-1, 2).T
    return first, second


def _pair_cosines(embeddings: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosines of the mated pairs, and of each first face with the next subject's second one."""
    first, second = np.split(np.asarray(embeddings, np.float64), 2)
    return (first * second).sum(axis=1), (first * np.roll(second, -1, axis=0)).sum(axis=1)

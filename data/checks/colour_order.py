"""Check whether red and blue of a source are swapped, by skin colour or by a trained backbone.

The published convert.py wrote swapped colours, which silently reduce accuracy. Training checks some images
before it starts.
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

# The centre of an aligned face is skin. Of 1,500 aligned LFW faces, red exceeds blue there by more than 8
# levels in 99.6 % and by more than 65 in half of them; the rest are grey photographs.
_SKIN = np.s_[FACE_SIZE // 4 : -FACE_SIZE // 4, FACE_SIZE // 4 : -FACE_SIZE // 4]
_GREY_LEVELS = 4.0
_SKIN_IMAGES = 200
_MIN_COLOURED = 10
# Fewer mated pairs are inconclusive.
MIN_PAIRS = 10
_ADVICE = (
    "Use main.py --swap_color_channel if the folder was unpacked by the old published convert.py, and do not "
    "use it otherwise."
)


class LabelledFaces(Protocol):
    """Faces with subject labels."""

    @property
    def name(self) -> str:
        """Name for messages."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) subjects."""

    def image(self, row: int, /) -> Image:
        """(112, 112, 3) RGB."""


@dataclass(frozen=True, eq=False)
class GivenFaces:
    """`LabelledFaces` from labels (N,) int64 and a function that returns each face."""

    name: str
    labels: NDArray[np.int64]
    image: Callable[[int], Image]


@dataclass(frozen=True)
class ColourOrderReport:
    """Result of `check_colour_order`.

    `verdict`: "true", "swapped" or "undecided"; `sentence`: the result in words, with the mean cosines of
    mated pairs in the source's colours and with red and blue swapped.
    """

    num_pairs: int
    verdict: str
    sentence: str

    @property
    def is_swapped(self) -> bool:
        """Whether red and blue are swapped, by at least `MIN_PAIRS` pairs."""
        return self.verdict == "swapped" and self.num_pairs >= MIN_PAIRS


def check_skin_colour(source: FaceSource, *, seed: int = 0) -> str:
    """Check some images without a network: in true colours, skin has more red than blue.

    Returns:
        A warning if most faces are bluer; '' otherwise, and for grey images.
    """
    rng = np.random.default_rng([seed, 1])
    rows = np.sort(rng.choice(len(source), min(_SKIN_IMAGES, len(source)), replace=False))
    red_minus_blue = np.array([_red_minus_blue(source.image(int(row))) for row in rows])
    coloured = red_minus_blue[np.abs(red_minus_blue) > _GREY_LEVELS]
    share = float((coloured > 0).mean()) if len(coloured) else 1.0
    if share >= 0.5 or len(coloured) < min(_MIN_COLOURED, len(rows)):
        return ""
    return (
        f"{source.name}: red and blue look swapped: only {share:.0%} of {len(coloured)} coloured faces "
        f"are redder than blue at their centre. {_ADVICE}"
    )


def check_colour_order(
    source: LabelledFaces,
    embed: Callable[[Image], NDArray[np.float32]],
    spec: BackboneSpec,
    *,
    num_pairs: int = 200,
    seed: int = 0,
    advice: str = _ADVICE,
) -> ColourOrderReport:
    """Compare mated pairs in both colour orders: they are more similar in the order of training.

    The verdict requires a difference of three standard errors, because a wrong order reduces the cosine by
    only 0.03 with some backbones.

    Args:
        source: faces with labels.
        embed: maps (n, 112, 112, 3) uint8 RGB to (n, D) unit rows, converting to the order of `spec`.
        spec: of the backbone.
        num_pairs: pairs to compare.
        seed: of the choice of pairs.
        advice: appended to the sentence if the colours are swapped.
    """
    first, second = _mated_pairs(source, num_pairs, seed)
    if not len(first):
        sentence = f"{source.name}: no subject has two images, so the colour order could not be checked."
        return ColourOrderReport(0, "undecided", sentence)
    images = np.stack([source.image(int(row)) for row in np.concatenate((first, second))])
    as_given, others = _pair_cosines(embed(images))
    swapped, swapped_others = _pair_cosines(embed(np.ascontiguousarray(images[..., ::-1])))
    difference = as_given - swapped
    error = float(difference.std(ddof=1) / len(difference) ** 0.5) if len(difference) > 1 else float("inf")
    verdict = "undecided"
    if abs(difference.mean()) > 3 * error:
        verdict = "true" if difference.mean() > 0 else "swapped"
    # A poor backbone may map all faces in unseen colours to similar features.
    if verdict == "swapped" and difference.mean() >= (others - swapped_others).mean():
        verdict = "undecided"
    measured = (
        f"mean cosine of {len(first)} mated pairs of {source.name} by {spec.name} ({spec.channel_order}): "
        f"{as_given.mean():.3f} as given, {swapped.mean():.3f} with red and blue swapped"
    )
    sentence = {
        "true": f"The colour order is right: {measured}.",
        "swapped": f"The colour order looks wrong: {measured}. {advice}",
        "undecided": f"The colour order makes no clear difference: {measured}.",
    }[verdict]
    return ColourOrderReport(len(first), verdict, sentence)


def wrong_order_advice(spec: BackboneSpec) -> str:
    """Advice for weights that seem to expect the other channel order."""
    other = "RGB" if spec.channel_order == "BGR" else "BGR"
    return (
        f"If the images are in true colours, the weights expect {other}: run python convert.py --weights IN "
        f"OUT.safetensors --channel_order {other}, and use OUT."
    )


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
    """Cosines of mated pairs, and of each first face with the next subject's second one."""
    first, second = np.split(np.asarray(embeddings, np.float64), 2)
    return (first * second).sum(axis=1), (first * np.roll(second, -1, axis=0)).sum(axis=1)

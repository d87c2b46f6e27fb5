"""Probability that a photo or video of a set shows a different person than the others.

A low-quality face resembles no face, so similarity alone reports low-quality photos as outliers. The model
therefore also uses the similarities of the other photos, their mutual agreement, and the relative norm.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from backbones.spec import BackboneSpec
from recognition.enrolment.samples import pool_samples

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# With fewer samples the outlier is not identifiable.
MIN_SAMPLES = 3
# Beyond, a probability is 0 or 1.
_LARGEST_LOG_ODDS = 50.0


@dataclass(frozen=True)
class OutlierModel:
    """Logistic regression of 'this sample shows a different person' on the evidence of `outlier_evidence`.

    The defaults were fitted to MobileFaceNet's features of 1,101 subjects of LFW, degraded by
    `data.sampling.views`, with one impostor photo in every second set (`benchmarks/studies/impostor_media.py
    --fit`).
    The evidence does not depend on the scale of the norms.

    Attributes:
        bias: log-odds where all evidence is 0.
        similarity: weight of the cosine with the mean of the others.
        weakness: weight of the log ratio of the sample's norm to the mean norm of the others.
        agreement: weight of the mutual agreement of the others, about 0 to 1.
        lowest_other: weight of the lowest similarity among the others.
        interaction: weight of similarity times weakness.
    """

    bias: float = -0.12
    similarity: float = -11.83
    weakness: float = 1.96
    agreement: float = 0.28
    lowest_other: float = 3.79
    interaction: float = -7.18

    @property
    def weights(self) -> Floats:
        """(5,) in the order of `outlier_evidence`."""
        return np.array(astuple(self)[1:], np.float64)


DEFAULT_MODEL = OutlierModel()


def outlier_evidence(directions: Floats, lengths: Floats, spec: BackboneSpec | None = None) -> Floats:
    """(U, 5) evidence of `OutlierModel` for each of U >= 3 samples.

    Args:
        directions: (U, D) unit rows.
        lengths: (U,) positive norms.
        spec: of the backbone, to map cosines to the reference backbone's; None to use them as they are.
    """
    vectors = directions * lengths[:, None]
    rest = vectors.sum(axis=0) - vectors
    reach = np.linalg.norm(rest, axis=1)
    similarity = (directions * rest).sum(axis=1) / reach.clip(1e-12)
    total, squares = lengths.sum() - lengths, (lengths**2).sum() - lengths**2
    # Mean cosine of two others, weighted by the product of their norms.
    agreement = (reach**2 - squares) / (total**2 - squares).clip(1e-12)
    if spec is not None:
        similarity, agreement = spec.in_reference(similarity), spec.in_reference(agreement)
    weakness = np.log(lengths.clip(1e-12) / (total / (len(lengths) - 1)).clip(1e-12))
    order = np.argsort(similarity, kind="stable")
    lowest_other = np.full(len(similarity), similarity[order[0]])
    lowest_other[order[0]] = similarity[order[1]]
    return np.stack([similarity, weakness, agreement, lowest_other, similarity * weakness], axis=1)


def outlier_log_odds(
    features: NDArray[np.float32],
    norms: NDArray[np.float32],
    samples: Ints,
    model: OutlierModel = DEFAULT_MODEL,
    spec: BackboneSpec | None = None,
) -> Floats:
    """(T,) log-odds that a face shows a different person than the rest; equal within a sample.

    NaN if there are fewer than `MIN_SAMPLES` samples. Norms are ignored if the `spec` does not state that
    they measure quality.
    """
    count = int(samples.max(initial=-1)) + 1
    if count < MIN_SAMPLES:
        return np.full(len(samples), np.nan)
    directions, lengths = pool_samples(features, norms, samples)
    if spec is not None and not spec.norm_is_quality:
        lengths = np.ones_like(lengths)
    log_odds: Floats = model.bias + outlier_evidence(directions, lengths, spec) @ model.weights
    return log_odds[samples]


def outlier_probability(
    features: NDArray[np.float32], norms: NDArray[np.float32], samples: Ints, spec: BackboneSpec
) -> Floats:
    """(T,) probability of `outlier_log_odds`."""
    log_odds = outlier_log_odds(features, norms, samples, spec=spec)
    probability: Floats = 1 / (1 + np.exp(-log_odds.clip(-_LARGEST_LOG_ODDS, _LARGEST_LOG_ODDS)))
    return probability

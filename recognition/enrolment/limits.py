"""Limits of the enrolment checks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.errors import InputError

if TYPE_CHECKING:
    from backbones.spec import BackboneSpec

# Defaults for the reference backbone (`backbones.cosine_statistics`).
NEAR_DUPLICATE, POOR = 0.95, 0.6


@dataclass(frozen=True)
class EnrolmentLimits:
    """When a face is reported before enrolment.

    The defaults were measured with MobileFaceNet. On LFW, the most similar pair among 2,000 pairs of photos
    of one subject has a cosine of 0.95, as have 19 of 20 re-encoded copies or more. On LFWS with one impostor
    medium in every second template, an outlier probability of 0.22 finds 8 of 10 impostor media and reports
    1 in 20 genuine ones, which are of low quality; of undegraded LFW photos it reports 1 in 400
    (`benchmarks/studies/impostor_media.py`).

    Attributes:
        duplicate: cosine from which two faces are near-duplicates; None: `NEAR_DUPLICATE` for the backbone.
        outlier: probability of showing a different person from which a photo or video is reported
            (`recognition.enrolment.outliers`).
        poor: norm, as a fraction of the norm of the set's good faces, below which a face is of low quality;
            None: `POOR` for the backbone.

    Raises:
        InputError: a value outside its range.
    """

    duplicate: float | None = None
    outlier: float = 0.22
    poor: float | None = None

    def __post_init__(self) -> None:
        ranges = {"duplicate": (-1, 1), "outlier": (0, 1), "poor": (0, 1)}
        faults = [
            f"--{name} {value:g}: expected {low} to {high}."
            for name, (low, high) in ranges.items()
            if (value := getattr(self, name)) is not None
            and not (math.isfinite(value) and low <= value <= high)
        ]
        if faults:
            raise InputError.from_faults(faults)

    def of(self, spec: BackboneSpec) -> tuple[float, float]:
        """`duplicate` and `poor` for a backbone."""
        duplicate = spec.cosine_limit(NEAR_DUPLICATE) if self.duplicate is None else self.duplicate
        return duplicate, spec.norm_share(POOR) if self.poor is None else self.poor

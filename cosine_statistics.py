"""How alike two faces are for a backbone: statistics of its cosines, and limits of cosine expressed in them.

A limit that was chosen with one backbone means something else for another: for some, photos of two people
have a cosine of 0.8. Limits are therefore written down for the reference, and each backbone's statistics say
where they lie for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from errors import InputError


@dataclass(frozen=True)
class CosineStatistics:
    """Cosines of single photos, of two people (non-mated) and of one (mated), for one backbone.

    Attributes:
        nonmated_mean: of pairs of different subjects; of random pairs where subjects are not known.
        nonmated_std: above 0.
        mated_mean: of two photos of one subject; None where nobody knows which photos are of one.
        mated_std: above 0; None together with the mean.
        num_faces: how many photos were measured.
        num_subjects: of how many people; None where subjects are not known.

    Raises:
        InputError: a value that none of these can be.
    """

    nonmated_mean: float
    nonmated_std: float
    mated_mean: float | None
    mated_std: float | None
    num_faces: int
    num_subjects: int | None = None

    def __post_init__(self) -> None:
        means = [mean for mean in (self.nonmated_mean, self.mated_mean) if mean is not None]
        deviations = [std for std in (self.nonmated_std, self.mated_std) if std is not None]
        faults = []
        if not all(_is_number(value) for value in (*means, *deviations)):
            faults.append("means and standard deviations must be finite numbers")
        elif not all(-1 <= mean < 1 for mean in means) or min(deviations) <= 0:
            faults.append("means must be in -1..1 and standard deviations above 0")
        elif self.mated_mean is not None and self.mated_mean <= self.nonmated_mean:
            faults.append("the mated mean must be above the non-mated one")
        if (self.mated_mean is None) != (self.mated_std is None):
            faults.append("mated_mean and mated_std must be given together")
        counts = [count for count in (self.num_faces, self.num_subjects) if count is not None]
        if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 1 for count in counts):
            faults.append("num_faces and num_subjects must be positive integers")
        if faults:
            raise InputError(f"cosine statistics: {'; '.join(faults)}; found {self.to_dict()}.")

    @property
    def mated(self) -> tuple[float, float]:
        """Mean and standard deviation of mated pairs; where unknown, as far from 1 as the reference's are.

        That is, in the same proportion between the non-mated mean and 1. With MobileFaceNet and with dlib's
        ResNet, with or without its mean, this gives 0.70 to 0.95 and is off by 0.004 at most.
        """
        if self.mated_mean is not None and self.mated_std is not None:
            return self.mated_mean, self.mated_std
        scale = (1 - self.nonmated_mean) / (1 - REFERENCE.nonmated_mean)
        mean, std = REFERENCE.mated
        return 1 - (1 - mean) * scale, std * scale

    def limit(self, reference: float) -> float:
        """The cosine that means for this backbone what `reference` means for the reference; monotone.

        Between the two means: the point at which the distances to both, in their standard deviations, have
        the same ratio. Below: as many standard deviations under the non-mated mean. Above: in the same
        proportion between the mated mean and 1, which is where copies are.
        """
        low, low_std, (high, high_std) = self.nonmated_mean, self.nonmated_std, self.mated
        from_low = (reference - REFERENCE.nonmated_mean) / REFERENCE.nonmated_std
        to_high = (REFERENCE.mated[0] - reference) / REFERENCE.mated[1]
        if from_low <= 0:
            return max(-1.0, low + from_low * low_std)
        if to_high <= 0:
            return 1 - (1 - high) * (1 - reference) / (1 - REFERENCE.mated[0])
        share = from_low * low_std / (from_low * low_std + to_high * high_std)
        return low + share * (high - low)

    def difference(self, reference: float) -> float:
        """A difference of two cosines, in proportion to the distance of the two means."""
        scale = self.mated[0] - self.nonmated_mean
        return reference * scale / (REFERENCE.mated[0] - REFERENCE.nonmated_mean)

    def text(self) -> str:
        """The figures for a person."""
        who = "unlabelled" if self.num_subjects is None else f"{self.num_subjects:,} people"
        mated = "unknown" if self.mated_mean is None else f"{self.mated_mean:.3f} ± {self.mated_std:.3f}"
        return (
            f"cosine of two people {self.nonmated_mean:.3f} ± {self.nonmated_std:.3f}, of one {mated} "
            f"({self.num_faces:,} faces, {who})"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: object) -> CosineStatistics:
        """The inverse of `to_dict`; InputError on a missing, unknown or wrong field."""
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != known:
            raise InputError(
                f"cosine statistics: expected {', '.join(sorted(known))}, found "
                f"{', '.join(sorted(map(str, values))) if isinstance(values, dict) else repr(values)}."
            )
        return cls(**values)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# MobileFaceNet on LFW's photos, with which the limits were chosen; weights that nobody measured count as it.
REFERENCE = CosineStatistics(0.005, 0.096, 0.703, 0.100, num_faces=6429, num_subjects=1251)

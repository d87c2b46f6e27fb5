"""Failures to enrol: sets without a usable face, which FMR and FNMR leave out (ISO/IEC 19795-1).

FMR and FNMR are of comparisons that were made. A set without a usable face makes none, so that a stricter
detector would look better; the generalised rates count such sets: as rejected, and as no false accept.
"""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.metrics.binomial import Interval, exact_interval95


@dataclass(frozen=True)
class EnrolmentFailures:
    """Of `attempts` sets of `people`, `failed` had no usable face; `people_failed` have no other set."""

    attempts: int
    failed: int
    people: int
    people_failed: int

    @property
    def rate(self) -> float:
        """The failure-to-enrol rate (FTE), a fraction."""
        return self.failed / self.attempts

    @property
    def interval95(self) -> Interval:
        """Of the rate, with people as the trials: sets of one person fail together."""
        return exact_interval95(self.rate * self.people, self.people)

    def generalised_reject_rate(self, fnmr: float) -> float:
        """GFRR: share of mated attempts that fail, for want of a face in either set or as false non-match."""
        return 1 - (1 - self.rate) ** 2 * (1 - fnmr)

    def generalised_accept_rate(self, fmr: float) -> float:
        """Share of non-mated attempts in which both sets have a face and match (GFAR)."""
        return (1 - self.rate) ** 2 * fmr

    def text(self) -> str:
        """In a line."""
        low, high = self.interval95
        text = (
            f"failures to enrol: {self.failed:,} of {self.attempts:,} sets have no usable face (FTE "
            f"{100 * self.rate:.2f} %, 95 % interval {100 * low:.2f} to {100 * high:.2f} %)"
        )
        return f"{text}; {self.people_failed:,} of {self.people:,} people have no other set."

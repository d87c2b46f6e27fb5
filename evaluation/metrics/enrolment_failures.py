"""Failures to enrol: sets without a usable face, which FMR and FNMR do not count (ISO/IEC 19795-1).

FMR and FNMR are rates of comparisons that took place. A set without a usable face takes part in none, so a
stricter detector would look better; the generalised rates count such sets as rejected.
"""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.metrics.binomial import Interval, exact_interval95


@dataclass(frozen=True)
class EnrolmentFailures:
    """Numbers of sets and subjects, and of those without a usable face.

    Attributes:
        attempts: sets.
        failed: sets without a usable face.
        subjects: subjects of all sets.
        subjects_failed: subjects all of whose sets failed.
    """

    attempts: int
    failed: int
    subjects: int
    subjects_failed: int

    @property
    def rate(self) -> float:
        """The failure-to-enrol rate (FTE), a fraction."""
        return self.failed / self.attempts

    @property
    def interval95(self) -> Interval:
        """Of the rate, with subjects as the trials: sets of one subject fail together."""
        return exact_interval95(self.rate * self.subjects, self.subjects)

    def generalised_reject_rate(self, fnmr: float) -> float:
        """GFRR: share of mated attempts with a failure to enrol in either set, or a false non-match."""
        return 1 - (1 - self.rate) ** 2 * (1 - fnmr)

    def generalised_accept_rate(self, fmr: float) -> float:
        """GFAR: share of non-mated attempts in which both sets are enrolled and match."""
        return (1 - self.rate) ** 2 * fmr

    def text(self) -> str:
        """One line for a report."""
        low, high = self.interval95
        return (
            f"failures to enrol: {self.failed:,} of {self.attempts:,} sets have no usable face (FTE "
            f"{100 * self.rate:.2f} %, 95 % interval {100 * low:.2f} to {100 * high:.2f} %); "
            f"{self.subjects_failed:,} of {self.subjects:,} subjects have no other set."
        )

"""Failures to enrol and the generalised rates, against attempts that are played through one by one."""

from __future__ import annotations

import itertools

import pytest

from evaluation.metrics.enrolment_failures import EnrolmentFailures


def test_generalised_rates_are_those_of_all_attempts() -> None:
    # Ten sets of which two have no face, so that 64 of 100 ordered pairs are compared.
    usable = [number >= 2 for number in range(10)]
    failures = EnrolmentFailures(attempts=10, failed=2, subjects=5, subjects_failed=1)
    compared = [first and second for first, second in itertools.product(usable, usable)]
    fnmr, fmr = 0.25, 0.125
    # Of 64 comparisons 16 are false non-matches, or 8 false matches.
    assert failures.generalised_reject_rate(fnmr) == pytest.approx((36 + 16) / 100)
    assert failures.generalised_accept_rate(fmr) == pytest.approx(8 / 100)
    assert sum(compared) == 64


def test_no_failure_of_few_subjects_keeps_a_wide_interval() -> None:
    failures = EnrolmentFailures(attempts=60, failed=0, subjects=20, subjects_failed=0)
    assert failures.rate == 0
    assert failures.interval95 == pytest.approx((0, 1 - 0.05 ** (1 / 20)))
    assert failures.generalised_reject_rate(0.1) == pytest.approx(0.1)

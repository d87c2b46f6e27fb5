from __future__ import annotations

import numpy as np

from benchmarks.studies import impostor_media


def test_all_found_among_few_people_is_no_certainty() -> None:
    rng = np.random.default_rng(0)
    own, impostor = rng.normal(size=400), 9 + rng.normal(size=100)
    subjects = rng.integers(0, 40, 400), np.repeat(np.arange(20), 5)
    low, high = impostor_media._interval(own, impostor, *subjects)
    assert (low, high) == (0.05 ** (1 / 20), 1)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recognition.enrolment.limits import EnrolmentLimits
from recognition.enrolment.outliers import DEFAULT_MODEL, OutlierModel, outlier_evidence, outlier_log_odds
from recognition.enrolment.samples import pool_samples

D = 256
LIMIT = float(np.log(EnrolmentLimits().outlier / (1 - EnrolmentLimits().outlier)))


def faces(counts: list[int], seed: int = 0, spread: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows of `counts` faces per subject, and norms."""
    rng = np.random.default_rng(seed)
    rows = np.concatenate(
        [rng.normal(size=D) + spread * rng.normal(size=(count, D)) for count in counts if count]
    )
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), rng.uniform(5, 12, len(rows)).astype(np.float32)


def slow_evidence(directions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`outlier_evidence` sample by sample and pair by pair."""
    count = len(lengths)

    def similarity(sample: int) -> float:
        rest = sum(directions[other] * lengths[other] for other in range(count) if other != sample)
        return float(directions[sample] @ rest / np.linalg.norm(rest))

    rows = []
    for sample in range(count):
        others = [other for other in range(count) if other != sample]
        pairs = [(a, b) for a in others for b in others if a != b]
        weights = [lengths[a] * lengths[b] for a, b in pairs]
        cosines = [directions[a] @ directions[b] for a, b in pairs]
        weakness = np.log(lengths[sample] / np.mean([lengths[other] for other in others]))
        rows.append(
            [
                similarity(sample),
                weakness,
                np.average(cosines, weights=weights),
                min(similarity(other) for other in others),
                similarity(sample) * weakness,
            ]
        )
    return np.array(rows)


@pytest.mark.parametrize("counts", [[3], [4, 1], [2, 2, 2]])
def test_evidence_equals_a_naive_implementation(counts: list[int]) -> None:
    features, norms = faces(counts)
    samples = np.arange(len(norms))
    assert outlier_evidence(*pool_samples(features, norms, samples)) == pytest.approx(
        slow_evidence(features.astype(np.float64), norms.astype(np.float64)), abs=1e-6
    )


def test_log_odds_are_linear_in_the_evidence() -> None:
    features, norms = faces([4, 1])
    rule = OutlierModel(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    expected = 1 + slow_evidence(features.astype(np.float64), norms.astype(np.float64)) @ [2, 3, 4, 5, 6]
    assert outlier_log_odds(features, norms, np.arange(5), rule) == pytest.approx(expected, abs=1e-5)


def test_impostor_has_the_highest_log_odds() -> None:
    for seed in range(20):
        features, norms = faces([5, 1], seed)
        odds = outlier_log_odds(features, norms, np.arange(6))
        assert int(odds.argmax()) == 5
        assert odds[5] > LIMIT > odds[:5].max()


def test_low_norm_lowers_the_log_odds() -> None:
    """The same similarity gives a lower probability at a lower norm."""
    features, norms = faces([4, 1])
    strong, weak = norms.copy(), norms.copy()
    strong[4], weak[4] = 12, 4
    assert DEFAULT_MODEL.interaction != 0
    both = [outlier_log_odds(features, each, np.arange(5))[4] for each in (strong, weak)]
    assert both[0] > both[1]


def test_frames_of_a_video_count_once() -> None:
    features, norms = faces([3, 1])
    rows = np.array([0, 1, 2, *[3] * 30])
    samples = np.array([0, 1, 2, *[3] * 30])
    many = outlier_log_odds(features[rows], norms[rows], samples)
    assert many[3:] == pytest.approx(outlier_log_odds(features, norms, np.arange(4))[3], abs=1e-5)
    assert many[3] > LIMIT > many[:3].max()


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_samples_give_nan(count: int) -> None:
    features, norms = faces([count, 0] if count == 2 else [1])
    assert np.isnan(outlier_log_odds(features, norms, np.arange(count))).all()
    doubled = np.repeat(np.arange(count), 4)
    assert np.isnan(outlier_log_odds(features[doubled], norms[doubled], doubled)).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 9), st.integers(0, 99), st.floats(0.1, 20))
def test_log_odds_are_invariant_to_order_and_norm_scale(count: int, seed: int, scale: float) -> None:
    features, norms = faces([count - 1, 1], seed)
    samples = np.arange(count)
    odds = outlier_log_odds(features, norms, samples)
    order = np.random.default_rng(seed).permutation(count)
    assert outlier_log_odds(features[order], norms[order], samples) == pytest.approx(odds[order], abs=1e-5)
    scaled = outlier_log_odds(features, (norms * scale).astype(np.float32), samples)
    assert scaled == pytest.approx(odds, abs=1e-4)


def test_degenerate_features_give_finite_log_odds() -> None:
    features = np.array([[1, 0], [-1, 0], [1, 0], [0, 1]], np.float32)
    assert np.isfinite(outlier_log_odds(features, np.array([1, 1, 0, 0], np.float32), np.arange(4))).all()
    assert np.isfinite(outlier_log_odds(features, np.zeros(4, np.float32), np.arange(4))).all()

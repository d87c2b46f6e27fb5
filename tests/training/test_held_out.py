"""Validation on held-out subjects, against the obvious loop."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.metrics.verification import rate_key
from training.held_out import FARS, held_out_figures, held_out_table


def slow_figures(embeddings: np.ndarray, subjects: np.ndarray, is_gallery: np.ndarray) -> dict[str, float]:
    mated, nonmated, hits = [], [], []
    for probe in np.flatnonzero(~is_gallery):
        scores = {g: float(embeddings[probe] @ embeddings[g]) for g in np.flatnonzero(is_gallery)}
        for g, score in scores.items():
            (mated if subjects[g] == subjects[probe] else nonmated).append(score)
        hits.append(subjects[max(scores, key=scores.__getitem__)] == subjects[probe])
    figures = {"rank1": float(np.mean(hits))}
    for far in FARS:
        rates = [
            np.mean(np.array(mated) >= threshold)
            for threshold in [*mated, *nonmated]
            if np.mean(np.array(nonmated) >= threshold) <= far
        ]
        figures[f"tar_at_far_{rate_key(far)}"] = float(max(rates, default=0.0))
    return figures


@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_the_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    subjects = np.repeat(np.arange(12), 3)
    centres = rng.normal(size=(12, 8))
    embeddings = centres[subjects] + rng.normal(size=(36, 8))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    is_gallery = np.arange(36) % 3 == 0
    figures = held_out_figures(embeddings, subjects, is_gallery)
    assert figures.named() == pytest.approx(slow_figures(embeddings, subjects, is_gallery))


def test_the_table_has_a_row_for_each() -> None:
    subjects = np.repeat(np.arange(3), 3)
    figures = held_out_figures(np.eye(3)[subjects], subjects, np.arange(9) % 3 == 0)
    table = held_out_table({"coreset": figures, "mean": figures})
    assert "coreset" in table
    assert "mean" in table
    assert table.count("100.00") == 8

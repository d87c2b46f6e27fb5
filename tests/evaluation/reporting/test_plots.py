"""Axes carry the standards' names: FMR is not FAR."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from evaluation.metrics.verification import roc_curve
from evaluation.reporting.plots import plot_det, plot_roc

pytestmark = pytest.mark.plots


def test_axes_of_roc_and_det_have_the_names_of_their_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, str]] = []
    save = Figure.savefig

    def saved(figure: Figure, *given: object, **how: object) -> None:
        drawn.append((figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()))
        save(figure, *given, **how)

    monkeypatch.setattr(Figure, "savefig", saved)
    rng = np.random.default_rng(0)
    mated = np.arange(400) < 40
    curves = {"a": roc_curve(rng.normal(size=400) + mated, mated)}
    plot_roc(tmp_path / "roc.png", curves, title="roc")
    plot_det(tmp_path / "det.png", curves, title="det")
    (far, tar), (fmr, fnmr) = drawn
    assert "(FAR)" in far
    assert "(TAR)" in tar
    assert "(FMR)" in fmr
    assert "(FNMR)" in fnmr

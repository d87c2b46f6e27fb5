"""`convert.py --check-quality`: measure weights, recommend a quality, write plot, figures and weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from evaluation.metrics.verification import rate_key
from evaluation.reporting.plots import write_plot
from quality.check import NONE, check_quality, open_faces, set_cosine_statistics
from quality.choice import TooFewSubjectsError, curves_to_dict, recommend_quality
from quality.error_versus_discard import (
    MAX_DISCARDED,
    PARTIAL,
    RANDOM,
    DiscardCurves,
    discard_fractions,
    ideal_curve,
)
from runtime.errors import InputError
from runtime.files import atomic_write
from weights import load_aggregator, load_weights, open_weights
from weights.converting import convert_weights
from weights.overrides import AS_STORED, Overrides

_RECOMMENDED = {
    NONE: "learned for an aggregator that is trained, none for poolings: the norm does not measure quality",
    "learned": "learned, the one of their aggregator",
}


@dataclass(frozen=True)
class QualityCheckConfig:
    """Options of the check.

    Attributes:
        out: folder of the plot and the figures; None: neither is written.
        store: .safetensors file for the weights with what was measured; None: it is not written.
        detector: file of YuNet, to compare its score.
        arch: architecture, if the file of the weights does not state it.
        channel_order: in place of the one that the weights state.
        stated: fields of the backbone's spec, in place of those that the weights state.
        num_images: maximum number of faces.
        seed: of the choice of faces, the degradation and the bootstrap.
        overrides: coreset size and gamma of the aggregator, in place of the stored values.

    Raises:
        InputError: no such detector, or a store with another suffix.
    """

    out: Path | None = None
    store: Path | None = None
    detector: Path | None = None
    arch: str | None = None
    channel_order: str | None = None
    stated: Mapping[str, Any] | None = None
    num_images: int = 300
    seed: int = 0
    overrides: Overrides = AS_STORED

    def __post_init__(self) -> None:
        faults = []
        if self.detector is not None and not self.detector.is_file():
            faults.append(f"--detector {self.detector}: no such file.")
        if self.store is not None and self.store.suffix != ".safetensors":
            faults.append(f"--store {self.store}: expected a name that ends in .safetensors.")
        if faults:
            raise InputError.from_faults(faults)


def run_quality_check(source: str, images: Path, config: QualityCheckConfig) -> str:
    """Measure weights on a folder of faces, write what the options ask for, and return the report.

    The cosine statistics come first, since everything else is measured with the centre that they set. The
    quality is recommended by error-versus-discard characteristics, or by the norm's correlation with
    degradation where there are too few subjects for them.

    Raises:
        InputError: as `check_quality` and `recommend_quality`, also for too few subjects if `config.out` is
            given.
    """
    opened = open_weights(source)
    loaded = load_weights(opened, config.arch, channel_order=config.channel_order, stated=config.stated)
    backbone, aggregator = loaded.backbone, load_aggregator(opened, config.overrides)
    options = {"num_images": config.num_images, "seed": config.seed}
    cosines = set_cosine_statistics(
        backbone, open_faces(images), keep_centre=aggregator is not None, **options
    )
    report = check_quality(backbone, images, name=source, **options)
    parts, quality, found = [report.text, cosines], report.quality, None
    try:
        found = recommend_quality(
            backbone, images, aggregator=aggregator, detector=config.detector, **options
        )
        quality = found.name
        parts.append(found.text)
    except TooFewSubjectsError as error:
        if config.out is not None:
            raise
        parts.append(f"The error-versus-discard characteristic was not measured: {error}")
    parts.append(f"Recommended: --quality {_RECOMMENDED.get(quality, quality)}.")
    if config.out is not None and found is not None:
        name = Path(source).name
        _plot(config.out / "error_versus_reject.png", found.curves, title=f"Error versus discard, {name}")
        text = json.dumps(curves_to_dict(found, name), indent=1)
        atomic_write(config.out / "quality.json", f"{text}\n")
        parts.append(f"{config.out}: error_versus_reject.png, quality.json")
    if config.store is not None:
        parts.append(
            convert_weights(
                source,
                config.store,
                arch=config.arch,
                channel_order=backbone.spec.channel_order,
                quality=quality,
                measured=backbone.spec,
                stated=config.stated,
                overrides=config.overrides,
            )
        )
    return "\n\n".join(parts)


def _plot(path: Path, found: DiscardCurves, *, title: str) -> None:
    """Plot FNMR over the discarded fraction, one line for each measure of quality."""

    def draw(axes: Axes) -> None:
        percent = 100 * discard_fractions()
        start = float(found.curves[RANDOM].fnmr[0])
        for name, curve in found.curves.items():
            if name != RANDOM:
                chosen = " (chosen)" if name == found.choice else ""
                axes.plot(percent, 100 * curve.fnmr, label=f"{name}{chosen}")
        axes.plot(percent, 100 * found.curves[RANDOM].fnmr, label=RANDOM, color="0.45", linestyle=":")
        axes.plot(percent, 100 * ideal_curve(start), label="ideal", color="0.75", linestyle="-")
        axes.axvspan(0, 100 * PARTIAL, color="0.95", zorder=0)
        axes.set_xlim(0, 100 * MAX_DISCARDED)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("discarded mated pairs, %, lowest quality first (grey: range of the ranking)")
        axes.set_ylabel(f"FNMR at FMR {rate_key(found.fmr)}, %")

    write_plot(path, title, draw, "lower left")

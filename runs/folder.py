"""The folder of a training run and its record, run.json."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from evaluation.metrics.verification import FoldAccuracy
from evaluation.reporting.report import versions
from runs.metrics_log import METRICS, metrics_before
from runs.saved_run import place_of, step_of
from runtime.errors import InputError
from runtime.files import atomic_path, atomic_write, private_folder
from runtime.json_files import json_text, read_json
from train_val import BackboneTrainer, FaceCoresetNet
from weights.reading import read_checkpoint

LAST = "last.ckpt"
BEST = "best.ckpt"
RUN_JSON = "run.json"


def run_folder(root: Path, prefix: str, resumed: Path | None = None, *, step: int = 0) -> Path:
    """The folder of a run: that of a resumed last.ckpt, else a new `<root>/<prefix>_<n>`.

    A run resumed from another checkpoint than last.ckpt, or with another `root` or `prefix`, continues
    in a new folder with a copy of its metrics, its best checkpoint and its record. Metrics after `step`, the
    optimiser steps that the checkpoint has done, are dropped.

    Raises:
        InputError: the record or the metrics of the resumed run are damaged; nothing was written.
    """
    if resumed is None:
        return _free_folder(root, prefix)
    before = resumed.parent
    earlier_starts(before)
    metrics = metrics_before(before / METRICS, step) if (before / METRICS).is_file() else None
    its_root, its_prefix = place_of(resumed)
    continues = resumed.name == LAST and (Path(its_root), its_prefix) == (Path(os.path.abspath(root)), prefix)
    best = before / BEST
    # A best checkpoint after this step belongs to epochs that are trained again.
    copies_best = not continues and best.is_file() and step_of(best, read_checkpoint(best)) <= step
    folder = before if continues else _free_folder(root, prefix)
    if metrics is not None:
        atomic_write(folder / METRICS, metrics)
    if copies_best:
        _copy(best, folder / BEST)
    if not continues and (before / RUN_JSON).is_file():
        _copy(before / RUN_JSON, folder / RUN_JSON)
    return folder


def _free_folder(root: Path, prefix: str) -> Path:
    private_folder(root)
    for number in range(sys.maxsize):
        folder = root / f"{prefix}_{number}"
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return folder
    raise InputError(f"{root}: no number is left for another run of {prefix}.")


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def write_run_json(folder: Path, flags: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write run.json: flags, facts, and how the run was started; a resumed run adds a start."""
    start = {"command": sys.argv, "versions": versions(), "commit": _commit()}
    run = {"flags": dict(flags), **facts, "starts": [*earlier_starts(folder), start]}
    atomic_write(folder / RUN_JSON, json_text(run))


class _Record(TypedDict):
    """The part of run.json that a resumed run reads."""

    starts: list[dict[str, Any]]


def earlier_starts(folder: Path) -> list[dict[str, Any]]:
    """Earlier starts of a run according to its run.json; empty if there is none.

    Raises:
        InputError: run.json is damaged.
    """
    path = folder / RUN_JSON
    if not path.exists():
        return []
    try:
        record, _ = read_json(path, _Record, "the record of a training run")
    except InputError as fault:
        raise InputError(
            f"{fault} Without it the run can continue, but loses the record of starts."
        ) from None
    starts: list[dict[str, Any]] = record["starts"]
    return starts


def validation_summary(module: BackboneTrainer | FaceCoresetNet) -> dict[str, Any]:
    """Figures of the last validation, fractions."""
    if isinstance(module, FaceCoresetNet):
        return {name: figures.named() for name, figures in module.figures.items()}
    return pair_summary(module.accuracies)


def pair_summary(accuracies: Mapping[str, FoldAccuracy]) -> dict[str, Any]:
    """Figures of pair sets, fractions."""
    return {
        name: {"accuracy": result.accuracy, "standard_error": result.standard_error}
        for name, result in accuracies.items()
    }


def _commit() -> str | None:
    """Commit of this code, with a plus if files differ; None outside a checkout."""
    here = Path(__file__).resolve().parent
    asked = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None

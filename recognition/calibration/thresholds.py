"""Reader of calibration files: thresholds for false match rates, made for one model.

{"schema": 1, "fingerprint": "<FaceModel.fingerprint>", "reading": {"alignment": "as stored", ...},
 "thresholds": {"1e-03": {"threshold": 0.41, "interval95": [0.38, 0.45], ...}, ...},
 "curve": {"fmr": [...], "score": [...]},
 "by_size": {"1 x 2-4": {"thresholds": {...}, "curve": {...}, ...}, ...},
 "normalisation": {"method": "local_scaling", "top": 100, "people": 300, "values": 512,
                   "descriptors": "<base64 of float32>", ...}}

The keys of `thresholds` are false match rates. `schema`, `fingerprint` and `thresholds` are required, the
others optional. `recognition.calibration.measurement` writes more keys, which are not read here.
"""

from __future__ import annotations

import base64
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.score_normalisation import ScoreNormalisation
from recognition.preprocessing import check_same_preprocessing
from runtime.errors import InputError, InputWarning
from runtime.json_files import read_json

SCHEMA = 1
_SOURCE = "a calibration file"

Floats = NDArray[np.float32]


class _Normalisation(TypedDict):
    method: str
    people: int
    values: int
    top: int
    descriptors: str


class _HasThreshold(TypedDict):
    threshold: float


class _Threshold(_HasThreshold, total=False):
    interval95: tuple[float, float]


class _Curve(TypedDict):
    fmr: list[float]
    score: list[float]


class _Group(TypedDict, total=False):
    thresholds: dict[str, _Threshold]
    curve: _Curve


class _Identified(TypedDict):
    schema: int
    fingerprint: str


class _Content(_Identified, _Group, total=False):
    reading: dict[str, str]
    by_size: dict[str, _Group]
    normalisation: _Normalisation


@dataclass(frozen=True)
class Threshold:
    """Two sets with a score at or above `value` count as one person; `interval95`: of it, if known."""

    value: float
    interval95: tuple[float, float] | None = None


@dataclass(frozen=True)
class Group:
    """Thresholds by rate, and a curve of false match rates, ascending, with the lowest threshold of each."""

    thresholds: dict[str, Threshold]
    fmr: tuple[float, ...] = ()
    score: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Calibration:
    """Thresholds for one rate, `fmr`, of all sets and by the name of a pair of size groups."""

    fmr: str
    everything: Group
    by_size: Mapping[str, Group] = field(default_factory=dict)
    normalisation: ScoreNormalisation | None = None

    def compared(self, cosines: Floats, first: Floats, second: Floats) -> NDArray[np.float64]:
        """(N, M) scores for the thresholds, cosines or normalised, of descriptors (N, D) and (M, D)."""
        if self.normalisation is None:
            return np.asarray(cosines, np.float64)
        left, _ = self.normalisation.sides(first.astype(np.float64))
        _, right = self.normalisation.sides(second.astype(np.float64))
        return np.asarray(left @ right.T)


def read_calibration(
    path: Path, fingerprint: str, fmr: str | None = None, *, reading: Mapping[str, str] | None = None
) -> Calibration:
    """Read the thresholds for a false match rate.

    Args:
        path: a calibration file.
        fingerprint: of the model in use.
        fmr: as text, 1e-03 or 0.001; None is the lowest rate in the file.
        reading: how the faces in use were read (`recognition.preprocessing`); None: not compared.

    Raises:
        InputError: no such file, one for another model or another way of reading faces, or without that rate.
    """
    try:
        content, has_checksum = read_json(path, _Content, _SOURCE)
    except InputError as fault:
        raise InputError(f"{fault} A calibration of an earlier version has to be made again.") from None
    if content["schema"] != SCHEMA:
        raise InputError(f"{path}: expected {_SOURCE} with 'schema': {SCHEMA}.")
    if not has_checksum:
        warnings.warn(
            f"{path}: has no checksum, so damage cannot be detected. 'calibrate' writes files with one.",
            InputWarning,
            stacklevel=2,
        )
    everything = _group(path, "", content)
    if not everything.thresholds:
        raise InputError(f"{path}: contains no thresholds.")
    if content["fingerprint"] != fingerprint:
        raise InputError(
            f"{path}: was made for another model (fingerprint {content['fingerprint'][:12]}..., this one is "
            f"{fingerprint[:12]}...). Thresholds are valid for the weights, the aggregator, the flip "
            "rule and the preprocessing that they were measured with: use those, or calibrate again."
        )
    if reading is not None:
        check_same_preprocessing(path, content.get("reading", {}), reading, "calibrate again")
    return Calibration(
        _chosen(path, everything, fmr),
        everything,
        {
            name: _group(path, f"by_size, {name!r}, ", entry)
            for name, entry in content.get("by_size", {}).items()
        },
        _normalisation(path, content.get("normalisation")),
    )


def encoded(descriptors: Floats) -> str:
    """Descriptors (C, D) as the text in `normalisation`."""
    return base64.b64encode(np.ascontiguousarray(descriptors, "<f4").tobytes()).decode()


def _chosen(path: Path, group: Group, fmr: str | None) -> str:
    if fmr is None:
        return min(group.thresholds, key=float)
    wanted = _rate(fmr)
    if wanted is None:
        raise InputError(f"--fmr {fmr}: expected a rate such as 1e-03.")
    for key in group.thresholds:
        if math.isclose(float(key), wanted, rel_tol=1e-6):
            return key
    raise InputError(f"{path}: has no threshold for the rate {fmr}; there are {', '.join(group.thresholds)}.")


def _group(path: Path, where: str, content: _Group) -> Group:
    found = {}
    for key, entry in content.get("thresholds", {}).items():
        if _rate(key) is None:
            raise InputError(f"{path}: {where}thresholds: {key!r} is no rate, such as 1e-03.")
        low_high = entry.get("interval95")
        interval = None if low_high is None else (float(low_high[0]), float(low_high[1]))
        found[key] = Threshold(float(entry["threshold"]), interval)
    if (curve := content.get("curve")) is None:
        return Group(found)
    rates, scores = map(tuple, (map(float, curve["fmr"]), map(float, curve["score"])))
    is_curve = 0 < len(rates) == len(scores)
    if not is_curve or (np.diff(rates) <= 0).any() or (np.diff(scores) >= 0).any():
        raise InputError(
            f"{path}: {where}curve: expected equally many values in 'score', descending, and 'fmr', "
            "ascending. It may be damaged."
        )
    return Group(found, rates, scores)


def _normalisation(path: Path, stored: _Normalisation | None) -> ScoreNormalisation | None:
    if stored is None:
        return None
    subjects, top = stored["people"], stored["top"]
    try:
        numbers = np.frombuffer(base64.b64decode(stored["descriptors"], validate=True), "<f4")
        descriptors = numbers.reshape(subjects, stored["values"]).astype(np.float32)
        if not 2 <= top <= subjects:
            raise ValueError(f"top is {top}, of {subjects} subjects")
        lengths = np.linalg.norm(descriptors, axis=1)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise ValueError("a descriptor is zero or not finite")
        return ScoreNormalisation(stored["method"], descriptors, top)
    except (ValueError, InputError) as fault:
        raise InputError(f"{path}: normalisation: cannot be used ({fault}). Calibrate again.") from None


def _rate(text: str) -> float | None:
    try:
        rate = float(text)
    except ValueError:
        return None
    return rate if 0 < rate < 1 else None

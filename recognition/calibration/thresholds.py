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
import binascii
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.score_normalisation import AS_NORM, METHODS, ScoreNormalisation, compared
from recognition.preprocessing import check_same_preprocessing, preprocessing_from_json, without_auxiliary
from runtime.errors import InputError, InputWarning
from runtime.json_files import check_type, read_json

SCHEMA = 1
_SOURCE = "a calibration file"
# In files of earlier versions, which had one method.
_FORMER_METHOD = ("kind", "adaptive s-norm")


Floats = NDArray[np.float32]


class _Normalisation(TypedDict):
    method: str
    people: int
    values: int
    top: int
    descriptors: str


@dataclass(frozen=True)
class Threshold:
    """`fmr`: as in the file; `value`: two sets with a score at or above it count as one person; `interval95`:
    its confidence interval, if the file has it.
    """

    fmr: str
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

    @property
    def threshold(self) -> Threshold:
        """Of sets of any sizes."""
        return self.everything.thresholds[self.fmr]

    def compared(self, cosines: Floats, first: Floats, second: Floats) -> NDArray[np.float64]:
        """Scores (N, M) to compare with the thresholds: the cosines of (N, D) and (M, D), or normalised
        ones.
        """
        if self.normalisation is None:
            return np.asarray(cosines, np.float64)
        wide = first.astype(np.float64), second.astype(np.float64)
        left, right = compared(wide[0], self.normalisation)[0], compared(wide[1], self.normalisation)[1]
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
    content = _read(path)
    everything = _group(path, "", content)
    if not everything.thresholds:
        raise InputError(f"{path}: contains no thresholds.")
    if content.get("fingerprint") != fingerprint:
        other = str(content.get("fingerprint"))[:12]
        raise InputError(
            f"{path}: was made for another model (fingerprint {other}..., this one is "
            f"{fingerprint[:12]}...). Thresholds are valid for the weights, the aggregator, the "
            "preprocessing and "
            "the flip rule that they were measured with: use those, or calibrate again."
        )
    if reading is not None:
        check_same_preprocessing(path, preprocessing_from_json(content), reading, "calibrate again")
    by_size = content.get("by_size", {})
    if not isinstance(by_size, dict) or not all(isinstance(entry, dict) for entry in by_size.values()):
        raise InputError(f"{path}: by_size: expected a dictionary of pairs of sizes.")
    normalisation = _normalisation(path, content.get("normalisation"))
    if normalisation is not None:
        cohort = without_auxiliary(normalisation.cohort, preprocessing_from_json(content))
        normalisation = replace(normalisation, cohort=cohort)
    return Calibration(
        _chosen(path, everything, fmr),
        everything,
        {name: _group(path, f"by_size, {name!r}, ", entry) for name, entry in by_size.items()},
        normalisation,
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


def _read(path: Path) -> dict[str, Any]:
    content, has_checksum = read_json(path, dict[str, Any], _SOURCE)
    if content.get("schema") != SCHEMA:
        raise InputError(f"{path}: expected {_SOURCE} with 'schema': {SCHEMA}.")
    if not has_checksum:
        warnings.warn(
            f"{path}: has no checksum, so damage cannot be detected. 'calibrate' writes files with one.",
            InputWarning,
            stacklevel=2,
        )
    found: dict[str, Any] = content
    return found


def _group(path: Path, where: str, content: Mapping[str, Any]) -> Group:
    entries = content.get("thresholds")
    found = {}
    for key, entry in entries.items() if isinstance(entries, dict) else ():
        value = entry.get("threshold") if isinstance(entry, dict) else None
        if _rate(key) is None or isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(
                f"{path}: {where}thresholds, {key!r}: expected a rate, and {{'threshold': number}}."
            )
        if not math.isfinite(value):
            raise InputError(f"{path}: {where}thresholds, {key!r}: {value} is not a finite number.")
        interval = _numbers(entry.get("interval95"), 2)
        found[key] = Threshold(key, float(value), None if interval is None else (interval[0], interval[1]))
    curve = content.get("curve")
    if curve is None:
        return Group(found)
    rates, scores = (
        _numbers(curve.get(key) if isinstance(curve, dict) else None) for key in ("fmr", "score")
    )
    if (
        not rates
        or not scores
        or len(rates) != len(scores)
        or (np.diff(rates) <= 0).any()
        or (np.diff(scores) >= 0).any()
    ):
        raise InputError(
            f"{path}: {where}curve: expected equally many values in 'score', descending, and 'fmr', "
            "ascending. It may be damaged."
        )
    return Group(found, rates, scores)


def _normalisation(path: Path, content: object) -> ScoreNormalisation | None:
    if content is None:
        return None
    key, former = _FORMER_METHOD
    if isinstance(content, dict) and content.get(key) == former:
        content = {**content, "method": AS_NORM}
    check_type(content, _Normalisation, f"{path}: normalisation")
    stored = cast("_Normalisation", content)
    method, subjects, top = stored["method"], stored["people"], stored["top"]
    try:
        values = np.frombuffer(base64.b64decode(stored["descriptors"], validate=True), "<f4")
        if subjects < 1 or stored["values"] < 1 or len(values) != subjects * stored["values"]:
            raise ValueError(
                f"{len(values):,} numbers, of {subjects:,} subjects with {stored['values']:,} each"
            )
        descriptors = values.reshape(subjects, -1).astype(np.float32)
        if not 2 <= top <= subjects:
            raise ValueError(f"top is {top}, of {subjects} subjects")
        lengths = np.linalg.norm(descriptors, axis=1)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise ValueError("a descriptor is zero or not finite")
    except (ValueError, binascii.Error) as fault:
        raise InputError(f"{path}: normalisation: damaged ({fault}). Calibrate again.") from None
    if method not in METHODS:
        raise InputError(
            f"{path}: normalisation: the method is {method!r}, and this version has {', '.join(METHODS)}. "
            "Calibrate again, or use the version that wrote the file."
        )
    return ScoreNormalisation(method, descriptors, top)


def _numbers(value: object, count: int | None = None) -> tuple[float, ...] | None:
    """A list of finite numbers, of this length if given, as a tuple; None for any other value."""
    if not isinstance(value, list) or count not in (None, len(value)):
        return None
    if any(isinstance(each, bool) or not isinstance(each, (int, float)) for each in value):
        return None
    numbers = tuple(float(each) for each in value)
    return numbers if all(math.isfinite(each) for each in numbers) else None


def _rate(text: str) -> float | None:
    try:
        rate = float(text)
    except ValueError:
        return None
    return rate if 0 < rate < 1 else None

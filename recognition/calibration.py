"""Thresholds for a chosen false match rate, as a calibration file holds them; made for one model alone.

{"schema": 1, "fingerprint": "<FaceModel.fingerprint>",
 "thresholds": {"1e-03": {"threshold": 0.41, ...}, ...}}

The keys of `thresholds` are false match rates. Other entries are for people and other readers.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import InputError

SCHEMA = 1


@dataclass(frozen=True)
class Threshold:
    """`fmr`: as the file writes it; `value`: a cosine; at or above it two sets count as one person."""

    fmr: str
    value: float


def read_threshold(path: Path, fingerprint: str, fmr: str | None = None) -> Threshold:
    """The threshold for a false match rate.

    Args:
        path: a calibration file.
        fingerprint: of the model in use.
        fmr: as text, 1e-03 or 0.001; None is the lowest rate in the file.

    Raises:
        InputError: not such a file, one for another model, or without that rate.
    """
    content = _read(path)
    thresholds = _thresholds(path, content)
    if content.get("fingerprint") != fingerprint:
        other = str(content.get("fingerprint"))[:12]
        raise InputError(
            f"{path}: was made for another model (fingerprint {other}..., this one is "
            f"{fingerprint[:12]}...). Thresholds hold for the weights, the aggregator and the flip "
            "rule that they were measured with: use those, or calibrate again."
        )
    if fmr is None:
        key = min(thresholds, key=float)
        return Threshold(key, thresholds[key])
    wanted = _rate(fmr)
    if wanted is None:
        raise InputError(f"--fmr {fmr}: expected a rate such as 1e-03.")
    for key, value in thresholds.items():
        if math.isclose(float(key), wanted, rel_tol=1e-6):
            return Threshold(key, value)
    raise InputError(f"{path}: has no threshold for the rate {fmr}; there are {', '.join(thresholds)}.")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise InputError(f"{path}: cannot be read ({fault.strerror}).") from None
    except (ValueError, RecursionError) as fault:
        raise InputError(f"{path}: expected a calibration file (JSON); {fault}.") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InputError(f"{path}: expected a calibration file with 'schema': {SCHEMA}.")
    return content


def _thresholds(path: Path, content: dict[str, Any]) -> dict[str, float]:
    entries = content.get("thresholds")
    found = {}
    for key, entry in entries.items() if isinstance(entries, dict) else ():
        value = entry.get("threshold") if isinstance(entry, dict) else None
        if _rate(key) is None or isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"{path}: thresholds, {key!r}: expected a rate, and {{'threshold': number}}.")
        if not math.isfinite(value):
            raise InputError(f"{path}: thresholds, {key!r}: {value} is no threshold.")
        found[key] = float(value)
    if not found:
        raise InputError(f"{path}: holds no thresholds.")
    return found


def _rate(text: str) -> float | None:
    try:
        rate = float(text)
    except ValueError:
        return None
    return rate if 0 < rate < 1 else None

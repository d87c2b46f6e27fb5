"""How faces were read and preprocessed for descriptors that are kept, and whether others are read alike.

Galleries and calibration files both keep this record. The model itself is told by its fingerprint.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.sources.image_files import is_video
from photos.alignment import ALIGNMENT, AS_STORED
from photos.detection import DETECTION_REVISION, find_detector
from recognition.model import FaceModel
from recognition.sets import SetOptions, SetSource, files_of_set
from runtime.errors import InputError, InputWarning
from runtime.files import sha256_of

# What was found before there was more of it: faces aligned already, or aligned here.
_ALIGNMENTS = {True: AS_STORED, False: ALIGNMENT["alignment"]}

# The flag that decides a part of the record.
_FLAGS = {"alignment": "--aligned", "detector": "--detector", "fps": "--fps", "flip": "--flip"}


def reading_of(model: FaceModel, options: SetOptions, sources: Iterable[SetSource]) -> dict[str, str]:
    """The record for faces of these sets. Frames a second are in it where there are videos.

    Raises:
        InputError: no detector.
    """
    record = model.preprocessing(_ALIGNMENTS[options.aligned])
    if not options.aligned:
        detector = sha256_of(find_detector(options.detector))
        record["detector"] = f"SHA-256 {detector[:16]}, revision {DETECTION_REVISION}"
    if any(is_video(file) for source in sources for file in files_of_set(source)):
        record["fps"] = f"{options.fps:g}"
    return record


def reading_of_content(content: Mapping[str, object]) -> dict[str, str]:
    """The record that a calibration file holds; of files of before, what they say."""
    found = content.get("reading")
    if isinstance(found, dict):
        return {str(key): str(value) for key, value in found.items()}
    aligned = content.get("aligned")
    return {"alignment": _ALIGNMENTS[aligned]} if isinstance(aligned, bool) else {}


def without_auxiliary(descriptors: NDArray[np.float32], record: Mapping[str, str]) -> NDArray[np.float32]:
    """Descriptors (N, D) without the zeros that once stood in place of auxiliary values at their end."""
    text = record.get("auxiliary_size", "0")
    size = int(text) if text.isdecimal() else 0
    if not 0 < size < descriptors.shape[1] or descriptors[:, -size:].any():
        return descriptors
    return np.ascontiguousarray(descriptors[:, :-size])


def reading_text(record: Mapping[str, str]) -> str:
    """The parts that flags decide, in words."""
    told = [f"{key} {record[key]}" for key in _FLAGS if key in record]
    return f"faces: {', '.join(told)}" if told else "how its faces were read is not known"


def check_read_alike(path: Path | str, made: Mapping[str, str], here: Mapping[str, str], remedy: str) -> None:
    """Compares two records; what one of them does not tell is taken for alike.

    Args:
        path: of the file that `made` is from, for messages.
        made: empty where the file says nothing, which is a warning.
        here: of the faces in use.
        remedy: what to do beside reading them the same way.

    Raises:
        InputError: they differ.
    """
    if not made:
        warnings.warn(
            f"{path}: does not say how its faces were read (aligned or found by a detector, which one). "
            "Scores are right only if these are read the same way.",
            InputWarning,
            stacklevel=2,
        )
    differ = [key for key in made if key in here and made[key] != here[key]]
    if differ:
        flags = ", ".join(dict.fromkeys(_FLAGS[key] for key in differ if key in _FLAGS))
        raise InputError.from_faults(
            [
                f"{path}: was made with faces that were read in another way than these. Read them the same "
                f"way{f' ({flags})' if flags else ''}, or {remedy}.",
                *(f"  {key}: {made[key]} there, {here[key]} now" for key in differ),
            ]
        )

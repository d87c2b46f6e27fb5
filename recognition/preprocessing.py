"""Record of how faces were read and preprocessed, kept with galleries and calibrations, and its comparison.

The model itself is identified by its fingerprint.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import InputError, InputWarning

if TYPE_CHECKING:
    from recognition.face_reading import PhotoOptions
    from recognition.model import FaceModel
    from recognition.sources import SetSource

# Flags that decide a part of the record.
_FLAGS = {"alignment": "--aligned", "detector": "--detector", "fps": "--fps", "flip": "--flip"}


def preprocessing_of(model: FaceModel, options: PhotoOptions, sources: Iterable[SetSource]) -> dict[str, str]:
    """The record for faces of these sets; it has frames per second only if there are videos.

    Raises:
        InputError: no detector.
    """
    from data.sources.image_files import is_video
    from photos.detection import DETECTION_REVISION, find_detector
    from runtime.input_files import sha256_of

    record = model.preprocessing(_alignment(options.aligned))
    if not options.aligned:
        detector = sha256_of(find_detector(options.detector))
        record["detector"] = f"SHA-256 {detector[:16]}, revision {DETECTION_REVISION}"
    if any(is_video(file) for source in sources for file in source.files()):
        record["fps"] = f"{options.fps:g}"
    return record


def preprocessing_text(record: Mapping[str, str]) -> str:
    """The parts of the record that flags decide."""
    parts = [f"{key} {record[key]}" for key in _FLAGS if key in record]
    return f"faces: {', '.join(parts)}" if parts else "the preprocessing of its faces is not known"


def check_same_preprocessing(
    path: Path | str, stored: Mapping[str, str], current: Mapping[str, str], remedy: str
) -> None:
    """Compare two records; keys that only one of them has are ignored.

    Args:
        path: of the file that `stored` is from, for messages.
        stored: empty if the file has no record, which is a warning.
        current: of the faces in use.
        remedy: what to do other than reading the faces the same way.

    Raises:
        InputError: they differ.
    """
    if not stored:
        warnings.warn(
            f"{path}: does not say how its faces were read (aligned, or detected by which detector). "
            "Scores are valid only if the faces of this run are read the same way.",
            InputWarning,
            stacklevel=2,
        )
    differ = [key for key in stored if key in current and stored[key] != current[key]]
    if differ:
        flags = ", ".join(dict.fromkeys(_FLAGS[key] for key in differ if key in _FLAGS))
        raise InputError.from_faults(
            [
                f"{path}: its faces were read differently. Read them the same way"
                f"{f' ({flags})' if flags else ''}, or {remedy}.",
                *(f"  {key}: {stored[key]} there, {current[key]} now" for key in differ),
            ]
        )


def _alignment(aligned: bool) -> str:
    from photos.alignment import ALIGNMENT, AS_STORED

    return AS_STORED if aligned else ALIGNMENT["alignment"]

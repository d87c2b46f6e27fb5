"""How good an aligned face is by its pixels alone: sharpness, and how sure a detector is that it is one.

Measures that are compared with each other in `quality_choice`; higher is better.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data.sources.decoding import FACE_SIZE, Image
from runtime.errors import InputError
from runtime.input_files import utf8_path

# An aligned face fills its image, and the detector wants some room around one.
_ROOM = FACE_SIZE // 2
# Low, so that poor faces have a score too; those without any have 0.
_LOWEST_SCORE = 0.02


def sharpness(face: Image) -> float:
    """Variance of the Laplacian of the grey levels (Pech-Pacheco et al. 2000).

    Args:
        face: (H, W, 3) uint8 RGB.
    """
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def detector_scores(faces: Iterable[Image], model: Path) -> NDArray[np.float32]:
    """(N,) the highest score that YuNet gives anything in each aligned face; 0 where it sees none.

    Raises:
        InputError: the file is no detector.
    """
    side = FACE_SIZE + 2 * _ROOM
    level = cv2.utils.logging.getLogLevel()
    try:
        # As in `photos.detection`: OpenCV 5 says on stderr that its new engine has but one target.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        with utf8_path(model) as readable:
            yunet = cv2.FaceDetectorYN.create(str(readable), "", (side, side), _LOWEST_SCORE)
    except cv2.error as fault:
        raise InputError(f"{model}: OpenCV cannot read it as YuNet ({fault.err}).") from None
    finally:
        cv2.utils.logging.setLogLevel(level)
    scores = []
    for face in faces:
        image = cv2.cvtColor(face, cv2.COLOR_RGB2BGR)
        padded = cv2.copyMakeBorder(image, _ROOM, _ROOM, _ROOM, _ROOM, cv2.BORDER_CONSTANT)
        found = yunet.detect(padded)[1]
        scores.append(0.0 if found is None else float(found[:, -1].max()))
    return np.array(scores, np.float32)

"""Quality of an aligned face from its pixels: sharpness and detection score; higher is better."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data.sources.decoding import FACE_SIZE, Image
from runtime.errors import InputError
from runtime.input_files import utf8_path

# An aligned face fills its image, and the detector needs a margin around it.
_MARGIN = FACE_SIZE // 2
# Low, so that poor faces get a score too; where nothing is detected it is 0.
_LOWEST_SCORE = 0.02


def sharpness(face: Image) -> float:
    """Variance of the Laplacian of the grey levels (Pech-Pacheco et al. 2000).

    Args:
        face: (H, W, 3) uint8 RGB.
    """
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def detector_scores(faces: Iterable[Image], model: Path) -> NDArray[np.float32]:
    """(N,) the highest detection score of YuNet in each aligned face; 0 where nothing is detected.

    Raises:
        InputError: the file is not a detector.
    """
    side = FACE_SIZE + 2 * _MARGIN
    level = cv2.utils.logging.getLogLevel()
    try:
        # As in `photos.detection`: OpenCV 5 prints a note about its new engine on stderr.
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
        padded = cv2.copyMakeBorder(image, _MARGIN, _MARGIN, _MARGIN, _MARGIN, cv2.BORDER_CONSTANT)
        found = yunet.detect(padded)[1]
        scores.append(0.0 if found is None else float(found[:, -1].max()))
    return np.array(scores, np.float32)

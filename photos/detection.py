"""Detect faces by OpenCV's YuNet, with a second pass for the landmarks.

The model file is downloaded once and verified by its hash.
"""

from __future__ import annotations

import hashlib
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data.sources.decoding import Image
from photos import FACES
from photos.alignment import align_photo
from runtime.errors import InputError
from runtime.files import atomic_write, cache_folder
from runtime.input_files import sha256_of, utf8_path
from runtime.onnx_files import external_files, graph_outputs

# Faces with at least this fraction of the largest area make the choice of the largest ambiguous.
SIMILAR_AREA = 0.5

DETECTOR_NAME = "face_detection_yunet_2023mar.onnx"
DETECTOR_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
DETECTOR_URL = "https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/face_detection_yunet_2023mar.onnx"
# To be increased with every change of this file that moves a landmark.
DETECTION_REVISION = 2
_DOWNLOAD_SECONDS = 60
_YUNET_OUTPUTS = 12
_ERRORS_ALONE = cv2.utils.logging.LOG_LEVEL_ERROR

# YuNet finds faces of about 10 to 300 pixels, so a photo is searched at several sizes (longer side in pixels)
# until faces are found.
_SEARCH_SIDES = (640, 1280, 320)
# For all faces, including small ones, the largest size comes first.
_SEARCH_SIDES_ALL = (1280, 640, 320)
_FIND_SCORE, _LANDMARK_SCORE = 0.6, 0.3
_SAME_FACE = 0.3
# Landmarks are best for faces about 200 pixels high but vary with the size: the mean of three sizes is
# nearer to the points of a larger model (2.3 pixels at the median, faces 120 high) than one size (2.8).
_LANDMARK_HEIGHTS = (200.0, 240.0, 280.0)
_LANDMARK_MARGIN = 0.75
# YuNet also finds upside-down faces, with landmarks as if upright. On 60 press photos the mean score of both
# passes is at least 0.913 upright, and at most 0.897 rotated by 90, 180 or 270 degrees. Blurred, dark or
# occluded faces score lower, but again highest when upright.
_UPRIGHT_SCORE = 0.905
_ROTATION_GAIN, _MIN_ROTATED_SCORE = 0.01, 0.7
_ROTATIONS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


@dataclass(frozen=True, eq=False)
class DetectedFace:
    """A detected face, in pixels of the photo.

    `box`: x, y, width, height; `landmarks`: (5, 2) x, y, from the left of the upright face (left eye first);
    `score`: of the detector, 0 to 1; `landmark_score`: mean score of the landmark passes, 0 if these miss the
    face; `rotation`: clockwise rotation in degrees that makes the photo upright.
    """

    box: tuple[float, float, float, float]
    landmarks: NDArray[np.float32]
    score: float
    landmark_score: float = 0.0
    rotation: int = 0

    @property
    def height(self) -> float:
        """Height of the upright face in pixels."""
        return self.box[3] if self.rotation in (0, 180) else self.box[2]

    def aligned(self, photo: Image) -> Image:
        """The aligned face (112, 112, 3) from the photo."""
        return align_photo(photo, self.landmarks)


def open_yunet(model: Path, side: int, min_score: float) -> cv2.FaceDetectorYN:
    """Open YuNet for images of `side` x `side` pixels; faces with a lower score are not detected.

    Raises:
        InputError: the file is not YuNet.
    """
    content = model.read_bytes()
    if external_files(model, content):
        raise InputError(
            f"{model}: refers to weights in other files; expected the single file {DETECTOR_NAME}."
        )
    level = cv2.utils.logging.getLogLevel()
    try:
        # OpenCV 5 warns on stderr about targets of its new engine.
        cv2.utils.logging.setLogLevel(_ERRORS_ALONE)
        with utf8_path(model) as readable:
            yunet = cv2.FaceDetectorYN.create(str(readable), "", (side, side), min_score)
        # OpenCV checks the outputs only at the first call.
        yunet.detect(np.zeros((side, side, 3), np.uint8))
    except cv2.error as fault:
        count = len(graph_outputs(content))
        other = "; use recognition models with --weights" if count in (1, 2) else ""
        raise InputError(
            f"{model}: is not YuNet ({count} outputs, not {_YUNET_OUTPUTS}{other}). Expected "
            f"{DETECTOR_NAME} of {DETECTOR_URL}; without --detector it is downloaded."
        ) from fault
    finally:
        cv2.utils.logging.setLogLevel(level)
    return yunet


class FaceDetector:
    """YuNet in two passes. Not thread-safe: use one instance per thread.

    Raises:
        InputError: the file is not a detector.
    """

    def __init__(self, model: Path) -> None:
        self._yunet = open_yunet(model, _SEARCH_SIDES_ALL[-1], _FIND_SCORE)

    def detect(
        self, photo: Image, faces: str = FACES[0], *, with_similar: bool = False, is_upright: bool = False
    ) -> list[DetectedFace]:
        """Detect faces; without a clearly upright face, in all four rotations of the photo.

        Args:
            photo: (H, W, 3) uint8 RGB.
            faces: of `FACES`: the largest, the most central, or all, the largest first.
            with_similar: with the largest, also return faces of similar size (`SIMILAR_AREA`), largest first.
            is_upright: do not try rotations.

        Returns:
            At most one face; any number for 'all' or `with_similar`.
        """
        sides = _SEARCH_SIDES_ALL if faces == "all" else _SEARCH_SIDES

        def landmarked(found: list[DetectedFace]) -> list[DetectedFace]:
            chosen = chosen_faces(found, photo.shape[:2], faces, with_similar=with_similar)
            return [self._landmarked(photo, face) for face in chosen]

        found = self._find(photo, sides)
        as_it_is = landmarked(found)
        if is_upright or any(map(_is_surely_upright, as_it_is)):
            return as_it_is
        rotated = max((self._find(photo, sides, rotation) for rotation in _ROTATIONS), key=_best_score)
        needed = max(_best_score(found) + _ROTATION_GAIN, _MIN_ROTATED_SCORE)
        return landmarked(rotated) if _best_score(rotated) >= needed else as_it_is

    def _find(self, image: Image, sides: tuple[int, ...], rotation: int = 0) -> list[DetectedFace]:
        longer, tried = max(image.shape[:2]), set()
        for side in sides:
            # Small photos are not enlarged, but reduced, in case the face fills the photo.
            scale = min(1.0, side / longer)
            if scale not in tried and (found := self._run(image, scale, _FIND_SCORE, rotation)):
                return found
            tried.add(scale)
        return []

    def _landmarked(self, image: Image, face: DetectedFace) -> DetectedFace:
        """The face with landmarks of the second pass; unchanged if that does not find it."""
        left, top, width, height = face.box
        margin = _LANDMARK_MARGIN * max(width, height)
        x, y = max(0, int(left - margin)), max(0, int(top - margin))
        crop = image[y : int(top + height + margin) + 1, x : int(left + width + margin) + 1]
        if not crop.size or face.height < 1:
            return face
        crop = np.ascontiguousarray(crop)
        seen = [
            best
            for tall in _LANDMARK_HEIGHTS
            for best in _same_face(
                face, self._run(crop, tall / face.height, _LANDMARK_SCORE, face.rotation), x, y
            )
        ]
        if not seen:
            return face
        landmarks = np.stack([each.landmarks for each in seen]).mean(axis=0)
        return replace(
            face,
            box=seen[0].box,
            landmarks=np.asarray(landmarks, np.float32),
            landmark_score=sum(each.score for each in seen) / len(_LANDMARK_HEIGHTS),
        )

    def _run(self, image: Image, scale: float, score: float, rotation: int) -> list[DetectedFace]:
        """Detect faces in an RGB image, scaled and rotated for the search; results in its pixels."""
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        resized = (
            image
            if (height, width) == image.shape[:2]
            else cv2.resize(image, (width, height), None, 0, 0, kind)
        )
        # Converted after resizing, so that a large photo is not copied.
        searched = cv2.cvtColor(resized, cv2.COLOR_RGB2BGR)
        if rotation:
            searched = cv2.rotate(searched, _ROTATIONS[rotation])
        self._yunet.setScoreThreshold(score)
        self._yunet.setInputSize((searched.shape[1], searched.shape[0]))
        rows = self._yunet.detect(searched)[1]
        ratio = np.array([image.shape[1] / width, image.shape[0] / height], np.float32)
        return [] if rows is None else [_face(row, rotation, (width, height), ratio) for row in rows]


def chosen_faces(
    found: list[DetectedFace], shape: tuple[int, ...], faces: str, *, with_similar: bool = False
) -> list[DetectedFace]:
    """Select faces of a photo of `shape` (height, width); other arguments are those of `detect`."""
    if not found:
        return []
    largest_first = sorted(found, key=_area, reverse=True)
    if faces == "all":
        return largest_first
    if faces == "largest":
        least = SIMILAR_AREA * _area(largest_first[0])
        return [face for face in largest_first if _area(face) >= least] if with_similar else largest_first[:1]
    if faces == "central":

        def distance_to_centre(face: DetectedFace) -> float:
            left, top, width, height = face.box
            return float(np.hypot(left + width / 2 - shape[1] / 2, top + height / 2 - shape[0] / 2))

        return [min(largest_first, key=distance_to_centre)]
    raise InputError(f"faces {faces!r}: expected {', '.join(FACES)}.")


def find_detector(given: Path | None = None, *, cache: Path | None = None) -> Path:
    """The detector's model file: `given`, or the cached one, downloaded if necessary.

    Args:
        given: path of the file.
        cache: folder; None means `cache_folder()`.

    Raises:
        InputError: the file does not exist, cannot be downloaded, or has another hash.
    """
    if given is not None:
        if not given.is_file():
            raise InputError(f"--detector {given}: no such file. {_how_to_get(given)}")
        return given
    path = (cache or cache_folder()) / DETECTOR_NAME
    if path.is_file():
        if sha256_of(path) != DETECTOR_SHA256:
            raise InputError(f"{path}: is damaged (its SHA-256 differs). Remove it. {_how_to_get(path)}")
        return path
    try:
        with urllib.request.urlopen(DETECTOR_URL, timeout=_DOWNLOAD_SECONDS) as answer:
            content: bytes = answer.read()
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "reason", None) or fault
        raise InputError(
            f"the face detector is not in {path.parent} and cannot be downloaded ({reason}). "
            f"{_how_to_get(path)}"
        ) from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != DETECTOR_SHA256:
        raise InputError(
            f"{DETECTOR_URL} returned another file ({len(content):,} bytes, SHA-256 {digest}). "
            f"{_how_to_get(path)}"
        )
    atomic_write(path, content)
    return path


def _how_to_get(path: Path) -> str:
    return (
        f"Download {DETECTOR_URL} (SHA-256 {DETECTOR_SHA256}, 232,589 bytes) to {path}, or pass it by "
        "--detector FILE. Aligned faces need no detector: inference.py --aligned."
    )


def _face(
    row: NDArray[np.float32], rotation: int, size: tuple[int, int], ratio: NDArray[np.float32]
) -> DetectedFace:
    """A face from YuNet's row (box, landmarks, score), in the image before rotation.

    `size`: width and height of the searched image; `ratio`: (x, y) scale from it to the photo.
    """
    corners = _rotated_back(np.stack([row[:2], row[:2] + row[2:4]]), rotation, size) * ratio
    left, top = corners.min(axis=0).tolist()
    width, height = np.ptp(corners, axis=0).tolist()
    landmarks = _rotated_back(row[4:14].reshape(5, 2), rotation, size) * ratio
    return DetectedFace((left, top, width, height), landmarks, float(row[14]), rotation=rotation)


def _rotated_back(points: NDArray[np.float32], rotation: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """Map points (n, 2) back from an image of `size` that was rotated clockwise by `rotation` degrees."""
    x, y = points.T
    right, bottom = size[0] - 1, size[1] - 1
    before = {0: (x, y), 90: (y, bottom - x), 180: (right - x, bottom - y), 270: (right - y, x)}
    return np.stack(before[rotation], axis=1).astype(np.float32)


def _best_score(found: list[DetectedFace]) -> float:
    return max((face.score for face in found), default=0.0)


def _is_surely_upright(face: DetectedFace) -> bool:
    left_eye, right_eye, _, left_mouth, right_mouth = face.landmarks
    across, down = (left_mouth + right_mouth - left_eye - right_eye).tolist()
    return down > abs(across) and (face.score + face.landmark_score) / 2 >= _UPRIGHT_SCORE


def _same_face(face: DetectedFace, found: list[DetectedFace], x: float, y: float) -> list[DetectedFace]:
    """The face, among those of a crop at x, y, that overlaps `face` enough; else none."""
    shift = np.array([x, y], np.float32)
    moved = [
        replace(
            each,
            box=(each.box[0] + x, each.box[1] + y, each.box[2], each.box[3]),
            landmarks=each.landmarks + shift,
        )
        for each in found
    ]
    best = max(moved, key=lambda each: _overlap(each.box, face.box), default=None)
    return [] if best is None or _overlap(best.box, face.box) < _SAME_FACE else [best]


def _overlap(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """Intersection over union of two boxes."""
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    common = max(width, 0.0) * max(height, 0.0)
    total = first[2] * first[3] + second[2] * second[3] - common
    return common / total if total > 0 else 0.0


def _area(face: DetectedFace) -> float:
    return face.box[2] * face.box[3]

"""inference.py on real faces: 40 subjects, two sets each, a third of the images degraded.

python benchmarks/speed/inference.py --weights WEIGHTS --faces FOLDER
    FOLDER/<subject>/<image> are aligned 112 x 112 faces
python benchmarks/speed/inference.py --weights WEIGHTS --faces ... --photos FOLDER --detector FILE
    measures detection on photos too, FOLDER/<subject>/<photo>

Prints the number of subjects whose two sets are more similar to each other than to any other set, and wall
and CPU seconds per image and per set; writes report.html.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np

from data.sampling.augmentation import Augmentation
from photos.photo_files import read_photo
from recognition.aggregation import aggregate_sets
from recognition.enrolment.checks import check_set
from recognition.enrolment.limits import EnrolmentLimits
from recognition.enrolment.quality_feedback import quality_feedback
from recognition.face_reading import PhotoOptions
from recognition.model import load_model
from recognition.report.page import write_page
from recognition.report.summary import InferenceReport
from recognition.report.tables import similarities
from recognition.sources import find_sets

SUBJECTS, FEWEST, MOST, DEGRADED_SHARE = 40, 6, 20, 1 / 3


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True)
    parser.add_argument("--aggregator")
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--detector", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("experiments/face_sets"))
    args = parser.parse_args()
    model = load_model(args.weights, aggregator=args.aggregator, device=args.device)
    print(model.about)
    with tempfile.TemporaryDirectory() as folder:
        images = write_sets(args.faces, Path(folder), args.seed)
        clock = Clock()
        sets, empty = aggregate_sets(model, find_sets([], Path(folder)), PhotoOptions(aligned=True))
        described = clock.read()
    clock = Clock()
    checks = [check_set(model, each, EnrolmentLimits()) for each in sets]
    checked = clock.read()
    matrix = similarities(sets)
    feedback = [quality_feedback(each, check) for each, check in zip(sets, checks, strict=True)]
    write_page(args.out / "report.html", InferenceReport(model, sets, empty, matrix, checks, feedback))
    first = matched(matrix)
    mated, others = pair_scores(matrix)
    print(
        f"{len(sets)} sets of {images} images: for {first} of {len(sets) // 2} subjects the two sets are "
        f"more alike than either is to any other\n"
        f"same subject: median {np.median(mated):.3f}, lowest {mated.min():.3f}; others: median "
        f"{np.median(others):.3f}, highest {others.max():.3f}\n"
        f"an image (read, embed, describe): {per(described, images)}; a set: {per(described, len(sets))}\n"
        f"enrolment check of a set: {per(checked, len(sets))}"
    )
    if args.photos is not None:
        clock = Clock()
        found, _ = aggregate_sets(model, find_sets([], args.photos), PhotoOptions(detector=args.detector))
        photos = sum(len(each.faces) for each in found)
        print(f"a photo with detection: {per(clock.read(), photos)} ({photos} photos, {len(found)} sets)")
    return 0


class Clock:
    """Seconds since it was made: by the clock, and of all threads' CPU."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Both."""
        return time.perf_counter() - self._start[0], time.process_time() - self._start[1]


def per(seconds: tuple[float, float], count: int) -> str:
    """Seconds of each of so many."""
    return f"{seconds[0] / count:.4f} s ({seconds[1] / count:.4f} s of CPU)"


def write_sets(faces: Path, folder: Path, seed: int) -> int:
    """Write `<subject> 1` and `<subject> 2` of chosen subjects; return the number of images."""
    rng = np.random.default_rng(seed)
    subjects = [path for path in sorted(faces.iterdir()) if path.is_dir() and path.name[0] != "."]
    subjects = [path for path in subjects if len(list(path.iterdir())) >= FEWEST]
    chosen = sorted(rng.choice(len(subjects), SUBJECTS, replace=False).tolist())
    count = 0
    for subject in (subjects[number] for number in chosen):
        files = [
            sorted(subject.iterdir())[number] for number in rng.permutation(len(list(subject.iterdir())))
        ]
        files = files[:MOST]
        for half in (0, 1):
            mine = files[half::2]
            degraded = set(rng.choice(len(mine), round(len(mine) * DEGRADED_SHARE), replace=False).tolist())
            place = folder / f"{subject.name} {half + 1}"
            place.mkdir()
            for number, file in enumerate(mine):
                image = read_photo(file)
                if number in degraded:
                    image = Augmentation(1, 1, 1).apply(image, rng)
                name = f"{'degraded ' if number in degraded else ''}{file.stem}.png"
                cv2.imwrite(str(place / name), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            count += len(mine)
    return count


def matched(matrix: np.ndarray) -> int:
    """Pairs of sets 2n, 2n + 1 whose similarity is above all others in both rows."""
    first = 0
    for one in range(0, len(matrix), 2):
        rest = np.delete(matrix[one : one + 2], (one, one + 1), axis=1)
        first += bool(matrix[one, one + 1] > rest.max())
    return first


def pair_scores(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Similarities of sets of one subject, and of all others."""
    subject = np.arange(len(matrix)) // 2
    row, column = np.triu_indices(len(matrix), 1)
    same = subject[row] == subject[column]
    return matrix[row, column][same], matrix[row, column][~same]


if __name__ == "__main__":
    sys.exit(main())

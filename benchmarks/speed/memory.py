"""Peak memory and time by size: pairs of sets, frames of a video, repeats of one face.

python benchmarks/speed/memory.py --detector face_detection_yunet_2023mar.onnx
python benchmarks/speed/memory.py --measure calibrate 3000

Each size runs in its own process: MiB above what was loaded before, and CPU seconds, on synthetic sets,
faces and videos. --measure runs one size of one task.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.speed.usage import hand_over, in_process_of_its_own, measured
from runtime.errors import InputError

RATES = (1e-1, 1e-2, 1e-3, 1e-4)
SETS_OF_A_PERSON = 5
SIZE = 256
# Frames a second of the video, all of which are looked at; 16 are taken.
RATE = 25


def main() -> None:
    """Measure all, or one, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", nargs=2, metavar=("WORK", "SIZE"), help=f"WORK: {', '.join(WORK)}")
    parser.add_argument("--detector", type=Path, metavar="FILE", help="YuNet's file; default: the cache's")
    arguments = parser.parse_args()
    detector = [] if arguments.detector is None else ["--detector", str(arguments.detector)]
    if arguments.measure:
        work, size = arguments.measure
        if work == "video":
            read_video(int(size), arguments.detector)
        else:
            WORK[work][1](int(size))
        return
    print("| work | size | extra memory, MiB | CPU, s |\n|---|---:|---:|---:|")
    for name, (title, _, sizes) in WORK.items():
        for size in sizes:
            usage = in_process_of_its_own(__file__, ["--measure", name, str(size), *detector])
            print(f"| {title} | {size:,} | {usage.extra_mib:,.0f} | {usage.cpu:.1f} |", flush=True)


def _rows(people: int, each: int, noise: float, seed: int) -> np.ndarray:
    """(people * each, SIZE) unit rows, each person's one after another."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.normal(size=(people, SIZE)), each, axis=0)
    rows += noise * rng.normal(size=rows.shape)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32)


def calibrate_sets(count: int, *, with_cohort: bool = False) -> None:
    """What `inference.py calibrate` computes of descriptors, 200 draws of people."""
    from evaluation.metrics.calibration import calibrate, one_threshold
    from evaluation.metrics.score_normalisation import LOCAL_SCALING, ScoreNormalisation, compared, gains
    from evaluation.metrics.set_pairs import InnerProducts, all_pairs

    rows = _rows(count // SETS_OF_A_PERSON, SETS_OF_A_PERSON, 1.2, 0)
    subjects = np.repeat(np.arange(count // SETS_OF_A_PERSON), SETS_OF_A_PERSON)
    sizes = np.random.default_rng(1).choice([1, 3, 8, 20], len(rows))
    cohort = ScoreNormalisation.with_cohort(LOCAL_SCALING, _rows(200, 1, 0, 2))
    with measured() as usage:
        pairs = plain = all_pairs(InnerProducts(rows, rows, clip=True), subjects, sizes)
        if with_cohort:
            sides = compared(rows.astype(np.float64), cohort)
            pairs = all_pairs(InnerProducts(*sides), subjects, sizes)
        everything, cells = calibrate(pairs, RATES)
        one_threshold(pairs, everything, cells)
        if with_cohort:
            gains(plain, pairs.scores, [float(key) for key in everything.rates])
    hand_over(usage)


def read_video(seconds: int, detector: Path | None = None) -> None:
    """What `convert.py --build_set_benchmark` does with a video of 720p that shows no face."""
    import cv2

    from photos.detection import find_detector
    from set_benchmark.media import collect_media
    from set_benchmark.protocol import BenchmarkProtocol

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "people", "anna", "film.mp4")
        path.parent.mkdir(parents=True)
        picture = np.random.default_rng(0).integers(0, 256, (45, 80, 3), np.uint8)
        picture = cv2.resize(picture, (1280, 720))
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), RATE, (1280, 720))
        for frame in range(seconds * RATE):
            writer.write(np.roll(picture, frame, axis=1))
        writer.release()
        protocol = BenchmarkProtocol(clip_frames=(2, 16), fps=float(RATE))
        detector = find_detector(detector)
        with measured() as usage:
            try:
                collect_media(
                    path.parents[1],
                    protocol,
                    Path(folder, "cut"),
                    detector=detector,
                    exclude=frozenset(),
                    chosen=list,
                )
            except InputError as fault:
                usage.remark = str(fault)
    hand_over(usage)


def group_copies(count: int) -> None:
    """Near-duplicates of a set whose frames are all alike."""
    from recognition.enrolment.samples import duplicate_groups

    frames = _rows(1, count, 0.01, 0)
    with measured() as usage:
        duplicate_groups(frames, 0.95)
    hand_over(usage)


WORK: dict[str, tuple[str, Callable[[int], None], tuple[int, ...]]] = {
    "calibrate": ("calibrate, sets", calibrate_sets, (3_000, 10_000)),
    "calibrate_with_cohort": (
        "calibrate with a cohort, sets",
        lambda count: calibrate_sets(count, with_cohort=True),
        (3_000, 10_000),
    ),
    "video": ("set benchmark from a video of 720p, seconds", read_video, (20, 60)),
    "copies": ("near-duplicates of a set of one picture, frames", group_copies, (6_000, 12_000)),
}


if __name__ == "__main__":
    main()

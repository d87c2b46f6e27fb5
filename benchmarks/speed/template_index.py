"""Index operations of template sampling at the size of MS1MV2, against a scan over all samples.

Both sides find the images of a subject and sample a template; no image is read. The scan re-creates the
published code. Run from the root: `python benchmarks/speed/template_index.py`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.sampling.positions import PositionSampler
from data.sampling.templates import draw_clips
from data.sources.subject_index import SubjectIndex

Result = TypeVar("Result")

MS1MV2_IMAGES = 5_822_653
MS1MV2_SUBJECTS = 85_742


def main() -> None:
    """Measure, and print times and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--images", type=int, default=MS1MV2_IMAGES)
    parser.add_argument("--subjects", type=int, default=MS1MV2_SUBJECTS)
    parser.add_argument("--max_template_size", type=int, default=30)
    parser.add_argument("--scans", type=int, default=10, help="templates drawn by scanning")
    arguments = parser.parse_args()

    labels = synthetic_labels(arguments.images, arguments.subjects)
    print(f"{arguments.images:,} images of {arguments.subjects:,} subjects")
    index, seconds = timed(lambda: SubjectIndex(labels))
    print(f"index built once:           {seconds * 1e3:12.1f} ms, {index.rows.nbytes / 2**20:.0f} MiB")
    sampler = PositionSampler(num_rows=len(labels), batch_size=20, seed=0)
    items, seconds = timed(
        lambda: [item for _, batch in zip(range(500), sampler, strict=False) for item in batch]
    )
    print(f"epoch drawn, 500 batches:   {seconds * 1e3:12.1f} ms")

    def ours(row: int, rng: np.random.Generator) -> int:
        rows = index.images_of(int(labels[row]))
        return len([rows[image] for image, _ in draw_clips(rng, len(rows), arguments.max_template_size)])

    rows = [item.row for item in items]
    _, seconds = timed(lambda: [ours(row, np.random.default_rng([0, 0, row])) for row in rows])
    ours_each = seconds / len(rows)
    print(f"ours, one template:         {ours_each * 1e3:12.4f} ms")

    samples = [(f"imgs/{label}/{row}.jpg", label) for row, label in enumerate(labels.tolist())]

    def scan(row: int, rng: np.random.Generator) -> int:
        subject = samples[row][1]
        paths = [path for path, label in samples if label == subject]
        return len([paths[image] for image, _ in draw_clips(rng, len(paths), arguments.max_template_size)])

    _, seconds = timed(
        lambda: [scan(row, np.random.default_rng([0, 0, row])) for row in rows[: arguments.scans]]
    )
    scan_each = seconds / arguments.scans
    print(f"scan, one template:         {scan_each * 1e3:12.1f} ms")
    print(f"ratio:                      {scan_each / ours_each:12,.0f}")


def synthetic_labels(images: int, subjects: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """(images,) subjects in order, their sizes as uneven as in a collected set."""
    weights = np.random.default_rng(0).lognormal(0, 0.8, subjects)
    counts = np.maximum(1, np.floor(weights / weights.sum() * images)).astype(np.int64)
    counts[np.argsort(-counts)[: abs(images - counts.sum())]] += np.sign(images - counts.sum())
    return np.repeat(np.arange(subjects), counts)


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """The result of `work` and its seconds."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


if __name__ == "__main__":
    main()

"""Checks of sets and labels with a backbone whose cosines differ from those of MobileFaceNet.

python benchmarks/studies/cosine_limits.py --weights WEIGHTS --arch ARCH --faces FOLDER --out RESULT.json
    FOLDER/<subject>/<image> are aligned 112 x 112 faces, such as LFW; WEIGHTS are those of any backbone, as
    published and as written by `convert.py --check-quality WEIGHTS FOLDER --store`

Cases: 40 sets of five photos of a subject, one of them replaced by another subject's; 40 sets with three
photos of each of two subjects; 100 clean sets of five photos. The label audit gets two photos of every
subject. Subjects of `--measured_on`, one per line, are excluded.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from data.checks.label_noise import LabelLimits, check_labels
from data.checks.near_duplicates import duplicates_within, sketch
from data.sources.face_source import ImageFolder
from data.sources.subject_names import read_names
from features.extract import extract
from net import Backbone
from recognition.enrolment.checks import check_identities
from recognition.enrolment.limits import EnrolmentLimits
from recognition.enrolment.samples import duplicate_groups, independent_samples
from runtime.files import atomic_write
from weights import load_backbone

WRONG, TWO, CLEAN = 40, 40, 100
OWN, EACH_OF_TWO, MIN_PHOTOS = 5, 3, 6
AT_ONCE = 256


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True)
    parser.add_argument("--arch")
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--measured_on", type=Path, metavar="FILE", help="subjects to exclude")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    source = ImageFolder(args.faces)
    left_out = read_names(args.measured_on) if args.measured_on else frozenset()
    backbone = load_backbone(args.weights, args.arch)
    found = {
        "weights": Path(args.weights).name,
        "is_measured": backbone.spec.is_measured,
        "seeds": args.seeds,
    }
    counts = [checked_sets(backbone, source, left_out, seed) for seed in range(args.seeds)]
    found |= {name: [each[name] for each in counts] for name in counts[0]}
    found |= label_counts(backbone, source, two_rows_per_subject(source))
    text = json.dumps(found, indent=1)
    print(text)
    if args.out is not None:
        atomic_write(args.out, text + "\n")
    return 0


def checked_sets(
    backbone: Backbone, source: ImageFolder, left_out: frozenset[str], seed: int
) -> dict[str, int]:
    """Outliers and sets of two identities found, and false positives among clean sets."""
    rng = np.random.default_rng(seed)
    names = source.subjects
    images = {
        subject: rows
        for subject in range(len(names))
        if names[subject] not in left_out
        and len(rows := np.flatnonzero(source.labels == subject)) >= MIN_PHOTOS
    }
    people = np.array(sorted(images))
    counts = dict.fromkeys(
        ("outliers_found", "two_identities_found", "false_positives", "repeats_reported"), 0
    )

    def some(subject: int, count: int) -> list[int]:
        return rng.choice(images[subject], count, replace=False).tolist()

    for _ in range(WRONG):
        one, other = rng.choice(people, 2, replace=False).tolist()
        identity, _, another, _ = checked(backbone, source, [*some(one, OWN), *some(other, 1)])
        counts["outliers_found"] += bool(another[-1] or identity[-1] not in (identity[0], -1))
    for _ in range(TWO):
        one, other = rng.choice(people, 2, replace=False).tolist()
        rows = [*some(one, EACH_OF_TWO), *some(other, EACH_OF_TWO)]
        counts["two_identities_found"] += int(checked(backbone, source, rows)[0].max()) == 1
    for _ in range(CLEAN):
        rows = some(int(rng.choice(people)), OWN)
        identity, _, another, groups = checked(backbone, source, rows)
        counts["false_positives"] += bool(identity.max() > 0 or another.any())
        counts["repeats_reported"] += repeats_reported(source, rows, groups)
    return counts


def checked(backbone: Backbone, source: ImageFolder, rows: list[int]) -> tuple[np.ndarray, ...]:
    """Identities, inlier evidence, outliers and near-duplicates of a set of photos."""
    features, norms = embedded(backbone, source, rows)
    limits = EnrolmentLimits()
    groups = duplicate_groups(features, limits.of(backbone.spec)[0])
    samples = independent_samples(np.arange(len(rows)), groups)
    return *check_identities(features, norms, samples, backbone.spec, limits.outlier), groups


def repeats_reported(source: ImageFolder, rows: list[int], groups: np.ndarray) -> bool:
    """Whether photos are reported as copies: near-duplicates whose pixels agree too."""
    near = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    return any(
        duplicates_within([sketch(source.image(rows[face]))[None] for face in faces]) for faces in near
    )


def label_counts(backbone: Backbone, source: ImageFolder, rows: np.ndarray) -> dict[str, int]:
    """Findings of the label audit, and the numbers of images and pairs of subjects."""
    parts = [embedded(backbone, source, part)[0] for part in blocks(rows.tolist())]
    labels = source.labels[rows]
    found = check_labels(np.concatenate(parts), labels, LabelLimits.of(backbone.spec))
    return {
        "images": len(rows),
        "subject_pairs": len(source.subjects) * (len(source.subjects) - 1) // 2,
        "same_person": len(found.split_identities),
        "mislabelled": len(found.mislabelled),
        "duplicates": len(found.duplicates) + len(found.duplicates_across or ()),
    }


def embedded(backbone: Backbone, source: ImageFolder, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Features and norms."""
    return extract(np.stack([source.image(row) for row in rows]), backbone)


def two_rows_per_subject(source: ImageFolder) -> np.ndarray:
    """The first two images of each subject."""
    first = np.searchsorted(source.labels, source.labels)
    return np.flatnonzero(np.arange(len(source)) - first < 2)


def blocks(rows: list[int]) -> Iterator[list[int]]:
    """Rows in parts of `AT_ONCE`."""
    for start in range(0, len(rows), AT_ONCE):
        yield rows[start : start + AT_ONCE]


if __name__ == "__main__":
    sys.exit(main())

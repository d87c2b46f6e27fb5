"""Detection and false alarm rates of the check for several identities in a set.

python benchmarks/studies/identities.py --weights WEIGHTS --faces FOLDER [--aggregator_weights FILE]
    FOLDER/<subject>/<image> are aligned 112 x 112 faces; --degraded: also with degraded images

The limit of `recognition.enrolment.identities` is chosen on one half of the subjects: the largest one that
reports at most 0.2 % of the sets of one subject. Figures are of the other half. A mix is found if two
identities or more are reported; its groups are right if each subject has one, apart from photos that are
assigned to no group. Degraded: a third of the photos of a set, by `data.sampling.augmentation`. Writes a
table to --out.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from backbones.spec import BackboneSpec
from data.sampling.augmentation import Augmentation
from photos.photo_files import read_photo
from recognition.enrolment.checks import check_identities
from recognition.enrolment.identities import IdentityLimits, find_identities
from recognition.enrolment.limits import EnrolmentLimits
from recognition.enrolment.samples import duplicate_groups, independent_samples, pool_samples
from recognition.model import FaceModel, embed_images, load_model
from runtime.files import atomic_write
from runtime.progress import progress_bar

PEOPLE, PHOTOS = (2, 3, 4, 5, 6), (1, 2, 3, 4, 6, 8, 10)
MIXES, CLEAN_SETS, LARGEST_CLEAN_SET = 300, 8000, 20
MAX_FALSE_POSITIVE_RATE = 0.002
GRID = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)
DEGRADED_SHARE = 1 / 3
REQUIRED = (2, 3, 4)


@dataclass(frozen=True)
class Faces:
    """All images: `features` (V, N, D), `norms` (V, N), `subject` (N,); V is 2 with degraded ones, else 1."""

    features: np.ndarray
    norms: np.ndarray
    subject: np.ndarray
    spec: BackboneSpec

    def half(self, number: int) -> list[np.ndarray]:
        """The images of each subject of one half."""
        subjects = np.random.default_rng(1).permutation(int(self.subject.max()) + 1)[number::2]
        return [np.flatnonzero(self.subject == each) for each in np.sort(subjects)]


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True)
    parser.add_argument("--arch")
    parser.add_argument("--aggregator_weights")
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--degraded", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("experiments/identities.md"))
    args = parser.parse_args()
    model = load_model(args.weights, args.aggregator_weights, arch=args.arch, device=args.device)
    text = measure(embedded(model, args.faces, degraded=args.degraded), model.about)
    atomic_write(args.out, text)
    print(text)
    return 0


def embedded(model: FaceModel, folder: Path, *, degraded: bool) -> Faces:
    """Embed every image as it is, and once more degraded."""
    rng = np.random.default_rng(0)
    files = [(path, place) for place, person in enumerate(_folders(folder)) for path in person]
    features, norms = [], []
    for start in progress_bar(range(0, len(files), 256), unit=" batches"):
        images = np.stack([read_photo(path) for path, _ in files[start : start + 256]])
        found = [embed_images(model, images)]
        if degraded:
            poor = [Augmentation(1, 1, 1).apply(each, rng) for each in images]
            found.append(embed_images(model, np.stack(poor)))
        features.append(np.stack([each[0] for each in found]))
        norms.append(np.stack([each[1] for each in found]))
    subject = np.array([place for _, place in files])
    return Faces(np.concatenate(features, axis=1), np.concatenate(norms, axis=1), subject, model.spec)


def measure(faces: Faces, about: str) -> str:
    """The tables as Markdown."""
    shipped = IdentityLimits()
    chosen = [_chosen_limit(faces, half) for half in (0, 1)]
    found, clean = {}, {}
    for half in (0, 1):
        rng = np.random.default_rng(half)
        clean[half] = _clean(faces, half, rng, degraded=False)
        for people in PEOPLE:
            for photos in PHOTOS if half else REQUIRED:
                found[half, people, photos] = _mixes(faces, half, (people, photos), rng)
    head = "| people | " + " | ".join(f"{photos} a person" for photos in PHOTOS) + " |"
    rows = [
        f"| {people} | "
        + " | ".join("{:.1f} ({:.1f})".format(*found[1, people, photos]) for photos in PHOTOS)
        + " |"
        for people in PEOPLE
    ]
    worst = [min(found[half, people, n][0] for people in PEOPLE for n in REQUIRED) for half in (0, 1)]
    return "\n".join(
        [
            "# Sets of several people",
            "",
            f"{about} {len(faces.subject):,} images of {faces.subject.max() + 1:,} subjects. The largest "
            f"limit with at most {100 * MAX_FALSE_POSITIVE_RATE:g} % of sets of one person taken for several "
            f"is {chosen[0]:g} on the first half of the subjects ({chosen[1]:g} on the second); shipped: "
            f"{shipped.same:g}. "
            f"Figures are of the second half unless said, in per cent of {MIXES} mixes each.",
            "",
            "Found to show several people (groups right):",
            "",
            head,
            "|---:|" + "---:|" * len(PHOTOS),
            *rows,
            "",
            f"Least with {REQUIRED[0]} to {REQUIRED[-1]} photos per person: {worst[1]:.1f} (first half: "
            f"{worst[0]:.1f}).",
            "",
            "| sets of one person | sets | taken for several people | single faces named |",
            "|---|---:|---:|---:|",
            _row("second half", clean[1]),
            _row("first half", clean[0]),
            *_degraded_row(faces),
            "",
        ]
    )


def _degraded_row(faces: Faces) -> list[str]:
    if len(faces.features) < 2:
        return []
    false_positives = _clean(faces, 1, np.random.default_rng(2), degraded=True)
    return [_row("second half, a third of the photos degraded", false_positives)]


def _row(name: str, false_positives: tuple[float, float]) -> str:
    return (
        f"| {name}, 2 to {LARGEST_CLEAN_SET} photos | {CLEAN_SETS:,} | {false_positives[0]:.2f} | "
        f"{false_positives[1]:.2f} |"
    )


def _chosen_limit(faces: Faces, half: int) -> float:
    """The largest limit of the grid that keeps the false positive rate."""
    rng, subjects = np.random.default_rng(3), faces.half(half)
    sets = [_samples(faces, _draw_photos(subjects, 1, _size(rng), rng)) for _ in range(CLEAN_SETS)]
    fits = [
        limit
        for limit in GRID
        if np.mean([_people(each, faces, limit) > 1 for each in sets]) <= MAX_FALSE_POSITIVE_RATE
    ]
    return max(fits, default=float("nan"))


def _people(samples: tuple[np.ndarray, np.ndarray], faces: Faces, limit: float) -> int:
    limits = IdentityLimits.of(faces.spec)
    limits = replace(limits, same=faces.spec.cosine_limit(limit))
    return int(find_identities(*samples, limits).max()) + 1


def _samples(faces: Faces, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features = faces.features[0, rows]
    return pool_samples(features, faces.norms[0, rows], _sample_numbers(faces, features))


def _sample_numbers(faces: Faces, features: np.ndarray) -> np.ndarray:
    duplicate, _ = EnrolmentLimits().of(faces.spec)
    return independent_samples(np.arange(len(features)), duplicate_groups(features, duplicate))


def _mixes(faces: Faces, half: int, size: tuple[int, int], rng: np.random.Generator) -> tuple[float, float]:
    """Per cent found, and with the right groups."""
    subjects, results = faces.half(half), []
    for _ in range(MIXES):
        rows = _draw_photos(subjects, *size, rng)
        identity, _ = _checked(faces, rows, np.zeros(len(rows), np.int64))
        known = identity >= 0
        pairs = np.unique(np.stack([identity, faces.subject[rows]])[:, known], axis=1)
        is_right = pairs.shape[1] == size[0] == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))
        results.append((identity.max() > 0, is_right))
    found, right = 100 * np.mean(results, axis=0)
    return float(found), float(right)


def _clean(faces: Faces, half: int, rng: np.random.Generator, *, degraded: bool) -> tuple[float, float]:
    """Per cent of sets of one person taken for several people, and in which single faces are named."""
    subjects, results = faces.half(half), []
    for _ in range(CLEAN_SETS):
        rows = _draw_photos(subjects, 1, _size(rng), rng)
        kinds = (rng.random(len(rows)) < DEGRADED_SHARE).astype(np.int64) * degraded
        identity, named = _checked(faces, rows, kinds)
        results.append((identity.max() > 0, named.any()))
    several, single = 100 * np.mean(results, axis=0)
    return float(several), float(single)


def _checked(faces: Faces, rows: np.ndarray, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Identities, and the faces that may show a different person, as the enrolment check has them."""
    features, norms = faces.features[kinds, rows], faces.norms[kinds, rows]
    samples = _sample_numbers(faces, features)
    identity, _, named = check_identities(features, norms, samples, faces.spec, EnrolmentLimits().outlier)
    return identity, named


def _size(rng: np.random.Generator) -> int:
    return int(rng.integers(2, LARGEST_CLEAN_SET + 1))


def _draw_photos(
    subjects: list[np.ndarray], people: int, photos: int, rng: np.random.Generator
) -> np.ndarray:
    able = [rows for rows in subjects if len(rows) >= photos]
    return np.concatenate(
        [rng.permutation(able[each])[:photos] for each in rng.permutation(len(able))[:people]]
    )


def _folders(root: Path) -> list[list[Path]]:
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name[0] != "."]
    return [sorted(path.iterdir()) for path in folders]


if __name__ == "__main__":
    sys.exit(main())

"""Training subsets of a source: published subset, fraction of the subjects, held-out and excluded subjects.

Subjects are drawn by a hash of seed and name, so a folder, its pack and any subset of it give the same ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.sources.face_source import FaceSource, select
from data.sources.subject_index import SubjectIndex
from data.sources.subject_names import match_names, name_hash, normal, read_names, unknown_names
from runtime.errors import InputError

PUBLISHED_SUBSET = "ms1mv2_train_subset_index.txt"
FALLBACK_FRACTION = 0.1
MIN_IMAGES = 5


def train_subset(source: FaceSource, spec: str | None, seed: int) -> tuple[FaceSource, str]:
    """Apply `--train_data_subset`; returns the subset and a sentence that describes it.

    `spec`: None without the flag (all data); '' for the flag without a value (the published index file beside
    the data, else a tenth of the subjects); the path of an index file; or a fraction in (0, 1] of the
    subjects. An index file contains comma-separated image positions in sorted folder order; as published,
    subjects with fewer than five of these images are dropped.

    Raises:
        InputError: neither a file nor a fraction, or positions that do not fit the data.
    """
    if spec is None:
        return source, f"all {_size(source)}"
    if spec == "":
        folder = source.location.resolve()
        around = dict.fromkeys((folder, folder.parent, folder.parent.parent))
        places = [each / PUBLISHED_SUBSET for each in around]
        for path in places:
            if path.is_file():
                return _indexed(source, path)
        subset, sentence = _share(source, FALLBACK_FRACTION, seed)
        looked = ", ".join(str(path.parent) for path in places)
        return subset, f"{sentence} (no {PUBLISHED_SUBSET} in {looked})"
    path = Path(spec)
    if path.is_file():
        return _indexed(source, path)
    try:
        fraction = float(spec)
    except ValueError:
        fraction = float("nan")
    if not 0 < fraction <= 1:
        raise InputError(
            f"--train_data_subset {spec}: neither an existing index file nor a fraction in (0, 1]. Without a "
            "value the published index file beside the data is used."
        )
    return _share(source, fraction, seed)


def kept_subjects(name: str, subjects: list[str], path: str) -> tuple[list[str], str]:
    """Apply `--exclude_subjects`; returns the remaining subjects and a sentence.

    Args:
        name: the data in messages.
        subjects: all subjects.
        path: list of subjects to exclude.

    Raises:
        InputError: as `match_names`, or fewer than two subjects remain.
    """
    listed = read_names(Path(path))
    matches = match_names(listed, subjects, f"--exclude_subjects {path}", name)
    kept = [subject for subject in subjects if subject not in matches.subjects]
    if len(kept) < 2:
        raise InputError(
            f"{name}: --exclude_subjects {path} leaves {len(kept)} of {len(subjects):,} subjects, but "
            "training needs two or more. Exclude fewer."
        )
    left_out = len(subjects) - len(kept)
    return kept, (
        f"{left_out:,} subjects are excluded, of {len(listed):,} names in {path}"
        + unknown_names(matches, subjects)
    )


def exclude_subjects(source: FaceSource, path: str) -> tuple[FaceSource, str]:
    """`source` reduced to `kept_subjects`, and the sentence."""
    names, sentence = kept_subjects(source.name, source.subjects, path)
    kept = np.isin(source.subjects, names)
    return select(source, np.flatnonzero(kept[source.labels])), sentence


def with_enough_images(source: FaceSource, fewest: int) -> tuple[FaceSource, str]:
    """Drop subjects with fewer than `fewest` images; returns the rest and a sentence ('' if none is needed).

    Raises:
        InputError: fewer than two subjects remain.
    """
    counts = SubjectIndex(source.labels).counts()
    few, single = int((counts < fewest).sum()), int((counts == 1).sum())
    if few:
        kept = np.flatnonzero(counts[source.labels] >= fewest)
        if len(counts) - few < 2:
            raise InputError(
                f"{source.name}: {few:,} of {len(counts):,} subjects have fewer than {fewest} images "
                "(--min_images_per_subject), but training needs two subjects or more. Lower it."
            )
        return select(source, kept), f"{few:,} subjects with fewer than {fewest} images are excluded"
    if single:
        return source, (
            f"{single:,} subjects have one image: they are negatives only and never held out; "
            "--min_images_per_subject 2 excludes them"
        )
    return source, ""


def hold_out(source: FaceSource, fraction_or_count: float, seed: int) -> tuple[FaceSource, FaceSource]:
    """Split off held-out subjects; returns (training part, held-out part).

    `fraction_or_count`: below 1 a fraction of the subjects, otherwise their number. At least two subjects,
    each with two or more images, are held out. With a fraction each subject is drawn by its name, so a subset
    of the data holds out the same ones.

    Raises:
        InputError: too few subjects.
    """
    counts = SubjectIndex(source.labels).counts()
    chosen = held_out_subjects(source.name, source.subjects, counts, fraction_or_count, seed)
    held_out = np.isin(source.labels, chosen)
    return select(source, np.flatnonzero(~held_out)), select(source, np.flatnonzero(held_out))


def held_out_subjects(
    name: str, subjects: list[str], counts: NDArray[np.int64], fraction_or_count: float, seed: int
) -> list[int]:
    """The subjects that `hold_out` chooses; `counts` (S,): images of each.

    Raises:
        InputError: too few subjects.
    """
    if not fraction_or_count > 0 or (fraction_or_count > 1 and fraction_or_count != int(fraction_or_count)):
        raise InputError(
            f"cannot hold out {fraction_or_count:g} of the subjects: expected a fraction between 0 and 1, or "
            "an integer."
        )
    order = _drawn_order(subjects, seed, "hold out")
    eligible = [subject for subject in order if counts[subject] >= 2]
    if fraction_or_count < 1:
        wanted = sum(_hash(subjects[s], seed, "hold out") < fraction_or_count * 2**64 for s in eligible)
    else:
        wanted = int(fraction_or_count)
    wanted = max(2, wanted)
    if wanted > len(eligible) or len(order) - wanted < 2:
        raise InputError(
            f"{name}: cannot hold out {wanted:,} of {len(order):,} subjects ({len(eligible):,} have two or "
            "more images); at least two must be held out and two remain for training. Hold out fewer, or use "
            "more data."
        )
    return eligible[:wanted]


def _indexed(source: FaceSource, path: Path) -> tuple[FaceSource, str]:
    rows = _read_positions(path)
    try:
        chosen = select(source, rows)
    except InputError as fault:
        raise InputError(f"{path}: {fault}") from None
    counts = SubjectIndex(chosen.labels).counts()
    enough = counts[chosen.labels] >= MIN_IMAGES
    if not enough.any():
        raise InputError(f"{path}: no subject of {source.name} has {MIN_IMAGES} or more of its images.")
    subset = chosen if enough.all() else select(chosen, np.flatnonzero(enough))
    dropped = int((counts < MIN_IMAGES).sum())
    return subset, (
        f"{_size(subset)}: the {len(rows):,} images of {path}, without {dropped:,} subjects with fewer than "
        f"{MIN_IMAGES} of them"
    )


def _read_positions(path: Path) -> NDArray[np.int64]:
    texts = path.read_bytes().strip().rstrip(b",").split(b",")
    try:
        return np.fromiter(map(int, texts), np.int64, len(texts))
    except (ValueError, OverflowError):
        number, text = next((i, t) for i, t in enumerate(texts, 1) if not _is_position(t.strip()))
        raise InputError(
            f"{path}, entry {number:,}: expected an image position, found "
            f"{text[:40].decode(errors='replace')!r}. An index file contains integers separated by commas."
        ) from None


def _is_position(text: bytes) -> bool:
    return text.removeprefix(b"-").isdigit() and len(text) < 19


def _share(source: FaceSource, fraction: float, seed: int) -> tuple[FaceSource, str]:
    total = len(source.subjects)
    number = min(total, max(2, round(fraction * total)))
    taken = _drawn_order(source.subjects, seed, "subset")[:number]
    subset = source if number == total else select(source, np.flatnonzero(np.isin(source.labels, taken)))
    return (
        subset,
        f"{_size(subset)}: a fraction of {fraction:g} of the {total:,} subjects, drawn with seed {seed}",
    )


def _drawn_order(subjects: list[str], seed: int, purpose: str) -> list[int]:
    hashes = [_hash(name, seed, purpose) for name in subjects]
    return sorted(range(len(subjects)), key=hashes.__getitem__)


def _hash(name: str, seed: int, purpose: str) -> int:
    return name_hash(f"{purpose}:{seed}:{normal(name)}")


def _size(source: FaceSource) -> str:
    return f"{len(source):,} images of {len(source.subjects):,} subjects"

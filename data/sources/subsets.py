"""Which part of a source is trained on: the published subset, a share of the subjects, held-out subjects.

Subjects are drawn by a hash of seed and name, so that the same ones are drawn from a folder, from the pack it
was unpacked from, and from any part of them.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.sources.face_source import FaceSource, select
from data.sources.subject_index import SubjectIndex
from data.sources.subject_names import match_names, normal, read_names, unknown_names
from runtime.errors import InputError

PUBLISHED_SUBSET = "ms1mv2_train_subset_index.txt"
FALLBACK_FRACTION = 0.1
FEWEST_IMAGES = 5


def train_subset(source: FaceSource, spec: str | None, seed: int) -> tuple[FaceSource, str]:
    """Takes the part of `source` that `--train_data_subset` asks for, and a sentence that says which.

    `spec`: None where the flag is absent (everything); an empty string where it stands without a value (the
    published index file beside the data, else a tenth of the subjects); the path of an index file; or a
    fraction in (0, 1] of the subjects. An index file holds image positions in sorted folder order, separated
    by commas; as published, subjects that it leaves with fewer than five images are dropped.

    Raises:
        InputError: neither a file nor a fraction, or positions that do not fit the data.
    """
    if spec is None:
        return source, f"all {_size(source)}"
    if spec == "":
        places = [folder / PUBLISHED_SUBSET for folder in _folders_around(source.location)]
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
            f"--train_data_subset {spec}: neither an index file that exists nor a fraction above 0 and up to "
            "1. Without a value it takes the published index file beside the data."
        )
    return _share(source, fraction, seed)


def kept_subjects(name: str, subjects: list[str], path: str) -> tuple[list[str], str]:
    """The subjects that the file of `--exclude_subjects` does not name, and a sentence that says so.

    Raises:
        InputError: as `read_names`, the file names nobody in the data, or fewer than two subjects are left;
            `name` is that of the data.
    """
    listed = read_names(Path(path))
    matches = match_names(listed, subjects, f"--exclude_subjects {path}", name)
    kept = [subject for subject in subjects if subject not in matches.subjects]
    if len(kept) < 2:
        raise InputError(
            f"{name}: --exclude_subjects {path} leaves {len(kept)} of {len(subjects):,} subjects, and "
            "training takes two or more. Name fewer."
        )
    left_out = len(subjects) - len(kept)
    return kept, (
        f"{left_out:,} subjects are left out, of {len(listed):,} names in {path}"
        + unknown_names(matches, subjects)
    )


def exclude_subjects(source: FaceSource, path: str) -> tuple[FaceSource, str]:
    """`source` without the subjects that `kept_subjects` leaves out, and its sentence.

    Raises:
        InputError: as `kept_subjects`.
    """
    names, sentence = kept_subjects(source.name, source.subjects, path)
    kept = np.isin(source.subjects, names)
    return select(source, np.flatnonzero(kept[source.labels])), sentence


def with_enough_images(source: FaceSource, fewest: int) -> tuple[FaceSource, str]:
    """Leaves out subjects with fewer than `fewest` images, and says so; a sentence, or nothing to say.

    With 1 all stay: a subject of one image is never held out, and a class that others are told from.

    Raises:
        InputError: fewer than two subjects are left.
    """
    counts = SubjectIndex(source.labels).counts()
    few, single = int((counts < fewest).sum()), int((counts == 1).sum())
    if few:
        kept = np.flatnonzero(counts[source.labels] >= fewest)
        if len(counts) - few < 2:
            raise InputError(
                f"{source.name}: {few:,} of {len(counts):,} subjects have fewer than {fewest} images "
                "(--min_images_per_subject), and training takes two subjects or more. Ask for fewer images."
            )
        return select(source, kept), f"{few:,} subjects of fewer than {fewest} images are left out"
    if single:
        return source, (
            f"{single:,} subjects have one image: others are told from them, they are never held out; "
            "--min_images_per_subject 2 leaves them out"
        )
    return source, ""


def hold_out(source: FaceSource, fraction_or_count: float, seed: int) -> tuple[FaceSource, FaceSource]:
    """Splits off subjects that are never trained on: (the rest, the held out).

    `fraction_or_count`: below 1 a share of the subjects, from 1 on their number. Only subjects with two
    images or more are held out, and at least two of them. A share draws each subject by its own name, so that
    a subset of the data holds out the same ones.

    Raises:
        InputError: too few subjects for that.
    """
    counts = SubjectIndex(source.labels).counts()
    chosen = held_out_subjects(source.name, source.subjects, counts, fraction_or_count, seed)
    held_out = np.isin(source.labels, chosen)
    return select(source, np.flatnonzero(~held_out)), select(source, np.flatnonzero(held_out))


def held_out_subjects(
    name: str, subjects: list[str], counts: NDArray[np.int64], fraction_or_count: float, seed: int
) -> list[int]:
    """The subjects that `hold_out` holds out of data of that name; `counts` (S,): images of each.

    Raises:
        InputError: too few subjects for that.
    """
    if not fraction_or_count > 0 or (fraction_or_count > 1 and fraction_or_count != int(fraction_or_count)):
        raise InputError(
            f"cannot hold out {fraction_or_count:g} of the subjects: expected a share above 0 and below 1, "
            "or a whole number of subjects."
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
            f"{name}: cannot hold out {wanted:,} of {len(order):,} subjects ({len(eligible):,} have "
            "two images or more); two or more must be held out and two be left to train on. Hold out fewer, "
            "or use more data."
        )
    return eligible[:wanted]


def _indexed(source: FaceSource, path: Path) -> tuple[FaceSource, str]:
    rows = _read_positions(path)
    try:
        chosen = select(source, rows)
    except InputError as fault:
        raise InputError(f"{path}: {fault}") from None
    counts = SubjectIndex(chosen.labels).counts()
    enough = counts[chosen.labels] >= FEWEST_IMAGES
    if not enough.any():
        raise InputError(f"{path}: leaves no subject of {source.name} with {FEWEST_IMAGES} images or more.")
    subset = chosen if enough.all() else select(chosen, np.flatnonzero(enough))
    dropped = int((counts < FEWEST_IMAGES).sum())
    return subset, (
        f"{_size(subset)}: the {len(rows):,} images of {path}, less {dropped:,} subjects that it leaves with "
        f"fewer than {FEWEST_IMAGES}"
    )


def _read_positions(path: Path) -> NDArray[np.int64]:
    texts = path.read_bytes().strip().rstrip(b",").split(b",")
    try:
        return np.fromiter(map(int, texts), np.int64, len(texts))
    except (ValueError, OverflowError):
        number, text = next((i, t) for i, t in enumerate(texts, 1) if not _is_position(t.strip()))
        raise InputError(
            f"{path}, entry {number:,}: expected an image position, found "
            f"{text[:40].decode(errors='replace')!r}. An index file holds whole numbers separated by commas."
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
        f"{_size(subset)}: a share of {fraction:g} of the {total:,} subjects, drawn with seed {seed}",
    )


def _drawn_order(subjects: list[str], seed: int, purpose: str) -> list[int]:
    hashes = [_hash(name, seed, purpose) for name in subjects]
    return sorted(range(len(subjects)), key=hashes.__getitem__)


def _hash(name: str, seed: int, purpose: str) -> int:
    text = f"{purpose}:{seed}:".encode() + os.fsencode(normal(name))
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _folders_around(location: Path) -> list[Path]:
    folder = location.resolve()
    return list(dict.fromkeys((folder, folder.parent, folder.parent.parent)))


def _size(source: FaceSource) -> str:
    return f"{len(source):,} images of {len(source.subjects):,} subjects"

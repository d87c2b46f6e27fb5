"""Write synthetic faces: a RecordIO pack with a pair set of other subjects, or example sets for inference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.sources.decoding import encode_image
from data.sources.pair_files import write_pair_set
from data.sources.recordio import REC_NAME, write_face_pack
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.progress import progress_bar
from synthetic.faces import SyntheticFace, draw_faces, draw_frontal_face

PAIRS = 600
PAIR_SET = "synthetic.bin"
# Subjects of the pair set, which are not in the pack.
MIN_OTHERS = 20
# Subjects that the demo's network was not trained on: it is trained on those of seed 0.
_SEED, _FIRST_SUBJECT, _FACES_PER_SET = 1, 2, 9


def write_synthetic_pack(folder: Path, *, num_subjects: int, seed: int) -> tuple[int, int, int]:
    """Write a pack of subjects 0 to `num_subjects` - 1 and a pair set of further subjects.

    The same seed gives the same bytes. Half of the pairs are mated, of different media.

    Returns:
        Number of subjects, images and pairs.

    Raises:
        InputError: the folder contains a pack that is not synthetic.
    """
    # The pair set is written first, so that a synthetic pack always has one.
    if (folder / REC_NAME).exists() and not (folder / PAIR_SET).exists():
        raise InputError(f"{folder / REC_NAME}: exists and is not synthetic. Choose another folder.")
    num_others = max(MIN_OTHERS, num_subjects // 5)
    with progress_bar(total=num_subjects + num_others, desc="drawing", unit="subject") as bar:
        others = draw_faces(num_subjects=num_others, seed=seed, first_subject=num_subjects)
        encoded = [
            (face.subject, face.medium, encode_image(face.image, ".jpg")) for face in _counted(others, bar)
        ]
        content, is_mated = _pairs(encoded, np.random.default_rng(seed))
        write_pair_set(folder / PAIR_SET, content, is_mated)
        faces = _counted(draw_faces(num_subjects=num_subjects, seed=seed), bar)
        images = write_face_pack(folder, ((face.subject, encode_image(face.image, ".jpg")) for face in faces))
    return num_subjects, images, PAIRS


def write_example_sets(folder: Path) -> list[Path]:
    """Write three sets: two of one subject, and one of another subject with one impostor face.

    Raises:
        InputError: the folder has other files.
    """
    subjects: list[list[bytes]] = [[], []]
    for face in draw_faces(num_subjects=len(subjects), seed=_SEED, first_subject=_FIRST_SUBJECT):
        subjects[face.subject - _FIRST_SUBJECT].append(encode_image(face.image, ".png"))
    first, second = subjects
    impostor = draw_frontal_face(_FIRST_SUBJECT, seed=_SEED)
    sets = {
        "alex_album": first[:_FACES_PER_SET],
        # The last faces of a subject are video frames.
        "alex_camera": first[-_FACES_PER_SET:],
        "robin_album": [*second[:_FACES_PER_SET], encode_image(impostor, ".png")],
    }
    files = {
        folder / name / f"{number:02}.png": encoded
        for name, faces in sets.items()
        for number, encoded in enumerate(faces)
    }
    existing = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
    if others := [path for path in existing if path not in files or path.read_bytes() != files[path]]:
        raise InputError(
            f"{folder}: contains files that are not of the example, such as {others[0]}. Choose another "
            "--out, or move them."
        )
    for path, encoded in files.items():
        atomic_write(path, encoded)
    return [folder / name for name in sets]


def _counted(faces: Iterator[SyntheticFace], bar: tqdm[Any]) -> Iterator[SyntheticFace]:
    """Yield the faces and update the bar after each subject."""
    for _, of_subject in groupby(faces, key=lambda face: face.subject):
        yield from of_subject
        bar.update(1)


def _pairs(
    encoded: Sequence[tuple[int, int, bytes]], rng: np.random.Generator
) -> tuple[list[bytes], NDArray[np.bool_]]:
    """Choose distinct pairs among (subject, medium, image), alternately mated and non-mated."""
    is_mated = np.arange(PAIRS) % 2 == 0
    content: list[bytes] = []
    chosen: set[tuple[int, int]] = set()
    for mated in is_mated.tolist():
        while True:
            one, other = np.sort(rng.integers(len(encoded), size=2)).tolist()
            (subject, medium, _), (subject_2, medium_2, _) = encoded[one], encoded[other]
            fits = subject == subject_2 and medium != medium_2 if mated else subject != subject_2
            if fits and (one, other) not in chosen:
                break
        chosen.add((one, other))
        content += [encoded[one][2], encoded[other][2]]
    return content, is_mated

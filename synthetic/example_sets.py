"""Example sets of synthetic faces for `inference.py` without arguments."""

from __future__ import annotations

from pathlib import Path

from data.sources.decoding import encode_image
from runtime.errors import InputError
from runtime.files import atomic_write
from synthetic.faces import draw_faces, draw_frontal_face

# Subjects that the demo's network was not trained on: it is trained on those of seed 0.
_SEED, _FIRST_SUBJECT, _FACES_PER_SET = 1, 2, 9


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

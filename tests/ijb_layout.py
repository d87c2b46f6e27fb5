"""Write a small set benchmark in the layout of IJB-B: synthetic faces as JPEG, points, all meta files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from photos.alignment import TEMPLATE


@dataclass
class Dataset:
    """What was written; `face`: lines of face_tid_mid.txt, `pairs`: (t1, t2, label)."""

    root: Path
    name: str
    faces: list[tuple[str, int, int]]
    pairs: list[tuple[int, int, int]]
    subject_of: dict[int, int]
    gallery: dict[str, list[int]]
    probes: list[int]

    @property
    def folder(self) -> Path:
        return self.root / self.name

    def meta(self, part: str) -> Path:
        return self.folder / "meta" / f"{self.name.lower()}_{part}"


def drawn_crop(subject: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A BGR photograph of about 130 pixels and its five points: a coarse pattern of the subject, shifted."""
    rng = np.random.default_rng([subject, number, 5])
    pattern = np.random.default_rng([subject, 7]).integers(40, 220, (7, 7, 3))
    coarse = np.clip(pattern + rng.integers(-20, 20, (7, 7, 3)), 0, 255).astype(np.uint8)
    size = int(rng.integers(120, 150))
    scale = size / 140
    shift = rng.uniform(8, 14, 2)
    transform = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    face = cv2.resize(coarse, (112, 112), interpolation=cv2.INTER_CUBIC)
    crop = cv2.warpAffine(face, transform, (size, size), borderMode=cv2.BORDER_REPLICATE)
    return crop, TEMPLATE * scale + shift


def write_dataset(
    root: Path, name: str = "TINY", *, subjects: int = 8, probes: int = 3, images: bool = True, seed: int = 0
) -> Dataset:
    """Each subject has a gallery template of two stills in S1 or S2 by turns, and probes of stills and clips.

    Template and subject ids have gaps and are in no order; media ids come again in other templates.
    """
    rng = np.random.default_rng(seed)
    ids = (rng.permutation(subjects * (probes + 1) * 2)[: subjects * (probes + 1)] + 1).tolist()
    subject_ids = (rng.permutation(subjects * 2)[:subjects] + 1).tolist()
    data = Dataset(root, name, [], [], {}, {"S1": [], "S2": []}, [])
    (data.folder / "meta").mkdir(parents=True)
    (data.folder / "loose_crop").mkdir()
    points, rows = [], []
    for subject in range(subjects):
        for which in range(probes + 1):
            template = ids.pop()
            data.subject_of[template] = subject_ids[subject]
            if which == 0:
                data.gallery["S1" if subject % 2 else "S2"].append(template)
            else:
                data.probes.append(template)
            frames = 2 if which == 0 else int(rng.integers(1, 6))
            # A still, and the rest is a clip.
            rows += [(template, subject, 1 + (frame > 0)) for frame in range(frames)]
    # Faces of a template need not stand together in the files.
    order = rng.permutation(len(rows))
    for number, place in enumerate(order.tolist(), 1):
        template, subject, medium = rows[place]
        file = f"{number}.jpg"
        crop, five = drawn_crop(subject, number)
        if images:
            cv2.imwrite(str(data.folder / "loose_crop" / file), crop)
        data.faces.append((file, template, medium))
        points.append(f"{file} {' '.join(f'{v:.3f}' for v in five.ravel())} {rng.uniform(0.5, 1):.6f}")
    registered = data.gallery["S1"] + data.gallery["S2"]
    data.pairs = [
        (g, p, int(data.subject_of[g] == data.subject_of[p])) for g in registered for p in data.probes
    ]
    rng.shuffle(data.pairs)
    data.pairs = [tuple(map(int, pair)) for pair in data.pairs]
    data.meta("name_5pts_score.txt").write_text("\n".join(points) + "\n")
    write_meta(data)
    return data


def write_meta(data: Dataset) -> None:
    """All meta files but the landmarks, from what `data` says now."""
    write_lines(data.meta("face_tid_mid.txt"), [" ".join(map(str, face)) for face in data.faces])
    write_lines(data.meta("template_pair_label.txt"), [" ".join(map(str, pair)) for pair in data.pairs])
    lists = {f"gallery_{part}": templates for part, templates in data.gallery.items()}
    for part, templates in {**lists, "probe_mixed": data.probes}.items():
        lines = [
            f"{template},{data.subject_of[template]},{file},{number}"
            for number, (file, template, _) in enumerate(data.faces)
            if template in templates
        ]
        header = "TEMPLATE_ID,SUBJECT_ID,FILENAME,SIGHTING_ID"
        write_lines(data.meta(f"1N_{part}.csv"), [header, *lines])


def write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n")

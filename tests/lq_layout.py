"""Small TinyFace and IJB-S data sets of synthetic faces in the published layout, with expected figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.io import savemat

from evaluation.protocols.ijb_s import METADATA, PROTOCOLS
from evaluation.protocols.tinyface import GALLERY_LIST, PROBE_LIST

Draw = Callable[[int, int], bytes]

# ------------------------------------------------------------------------------------------ TinyFace

TESTING = "tinyface/Testing_Set"
GALLERY = [(s, n) for s in range(8) for n in (1, 2)]
PROBES = [(s, n) for s in range(8) for n in (3, 4)[: 1 + s % 2]]
DISTRACTORS = range(20)


def cells(names: Sequence[str]) -> np.ndarray:
    """A MATLAB cell array: a column of strings."""
    column = np.empty((len(names), 1), object)
    column[:, 0] = list(names)
    return column


def write_list(path: Path, kind: str, names: Sequence[str], ids: Sequence[int]) -> None:
    column = np.array(ids, np.float64)[:, None]
    savemat(path, {f"{kind}_set": cells(names), f"{kind}_ids": column}, appendmat=False)


def write_tinyface(root: Path, drawn_face: Draw) -> Path:
    """Two gallery images and one or two probes of each subject, and distractors of as many others."""
    testing = root / TESTING
    for part in ("Gallery_Match", "Gallery_Distractor", "Probe"):
        (testing / part).mkdir(parents=True)
    for part, images in (("Gallery_Match", GALLERY), ("Probe", PROBES)):
        for subject, number in images:
            (testing / part / f"{subject}_{number}.jpg").write_bytes(drawn_face(subject, number))
    for subject in DISTRACTORS:
        (testing / "Gallery_Distractor" / f"{subject}_1.jpg").write_bytes(drawn_face(100 + subject, 1))
    for name, kind, images in ((GALLERY_LIST, "gallery", GALLERY), (PROBE_LIST, "probe", PROBES)):
        shuffled = [images[n] for n in np.random.default_rng(1).permutation(len(images))]
        write_list(testing / name, kind, [f"{s}_{n}.jpg" for s, n in shuffled], [s for s, _ in shuffled])
    return root


Rows = Callable[[Sequence[Path]], np.ndarray]


def tinyface_by_hand(root: Path, rows: Rows, rank: int) -> float:
    """One probe after another; `rows`: files -> unit features."""
    testing = root / TESTING
    entries = rows([testing / "Gallery_Match" / f"{s}_{n}.jpg" for s, n in GALLERY])
    strangers = rows([testing / "Gallery_Distractor" / f"{s}_1.jpg" for s in DISTRACTORS])
    probes = rows([testing / "Probe" / f"{s}_{n}.jpg" for s, n in PROBES])
    ids = [s for s, _ in GALLERY] + [-1] * len(DISTRACTORS)
    return slow_cmc(probes, np.r_[entries, strangers], [s for s, _ in PROBES], ids, rank)


def slow_cmc(
    probes: np.ndarray, gallery: np.ndarray, probe_ids: Sequence[int], gallery_ids: Sequence[int], rank: int
) -> float:
    """Sort the gallery, look at the first so many; among equals strangers first."""
    hits = 0
    for probe, subject in zip(probes, probe_ids, strict=True):
        scored = [
            (-float(probe @ entry), own == subject) for entry, own in zip(gallery, gallery_ids, strict=True)
        ]
        hits += any(own for _, own in sorted(scored)[:rank])
    return hits / len(probes)


# --------------------------------------------------------------------------------------------- IJB-S

SUBJECTS = range(1, 13)
FIRST, SECOND = range(1, 7), range(7, 13)
SURVEILLANCE = ["4001", "4002", "4003", "4004"]
GALLERY_VIDEOS = ["4010", "4011"]
UAV_VIDEOS, UAV_STILLS = ["4020"], [2, 5, 9]


def seen_in(video: str) -> list[int]:
    """Subjects of a surveillance video; everybody is in the galleries' two."""
    return [s for s in SUBJECTS if video in GALLERY_VIDEOS or (s + int(video)) % 3]


def frames(subject: int, video: str) -> list[int]:
    return list(range(8 + subject, 8 + subject + 1 + (subject + int(video)) % 4))


def write_ijb_s(root: Path, drawn_face: Draw) -> Path:
    """<root>/<subject>/..., <root>/protocols/..., as the published readers expect them."""
    protocols = root / "protocols"
    (protocols / "galleries").mkdir(parents=True)
    metadata = ["SUBJECT_ID,FILENAME,FRAME,X"]
    for video in (*SURVEILLANCE, *GALLERY_VIDEOS, *UAV_VIDEOS):
        for subject in seen_in(video):
            folder = root / str(subject)
            folder.mkdir(exist_ok=True)
            for frame in frames(subject, video):
                metadata.append(f"{subject},videos/{video}.mp4,{frame},1.5")
                image = drawn_face(subject, 100 * int(video) + frame)
                (folder / f"videos_{video}_{frame}.jpg").write_bytes(image)
    for subject in SUBJECTS:
        for number in range(3):
            metadata.append(f"{subject},img/{subject}{number}.jpg,,1.5")
            (root / str(subject) / f"img_{subject}{number}.jpg").write_bytes(drawn_face(subject, number))
    for subject in UAV_STILLS:
        metadata.append(f"{subject},img/{subject}9.jpg,,1.5")
        (root / str(subject) / f"img_{subject}9.jpg").write_bytes(drawn_face(subject, 9))
    (protocols / METADATA).write_text("\n".join(metadata) + "\n")
    for name in {protocol.probes for protocol in PROTOCOLS.values()}:
        files = [f"videos/{v}.mp4" for v in SURVEILLANCE]
        if name.startswith("cs6_uav"):
            files = [f"videos/{v}.mp4" for v in UAV_VIDEOS] + [f"img/{s}9.jpg" for s in UAV_STILLS]
        (protocols / name).write_text("\n".join(["FILENAME", *files]))
    for number, (half, video) in enumerate(zip((FIRST, SECOND), GALLERY_VIDEOS, strict=True), 1):
        rows = {
            "single": [f"{s},{s},img/{s}0.jpg" for s in half],
            "booking": [f"{s},{s},img/{s}{n}.jpg" for n in range(3) for s in half],
            "surveillance": [f"{s},{s},videos/{video}.mp4,0.5" for s in half for _ in (1, 2)],
        }
        for kind, lines in rows.items():
            path = protocols / "galleries" / f"cs6_surveillance_to_{kind}_g{number}.csv"
            path.write_text("\n".join(["TEMPLATE_ID,SUBJECT_ID,FILENAME", *lines]) + "\n")
    return root


Vectors = Callable[[Sequence[Path]], np.ndarray]


class IjbSByHand:
    """No numbers of templates, no arrays of the reader; one probe after another.

    `vectors`: files -> features that are not normalised; a set is their mean. `probes`: one subject in one
    surveillance video; 'multi_view': in all videos; 'uav': in one video or still of the UAV's.
    """

    def __init__(self, root: Path, vectors: Vectors, probes: str = "") -> None:
        self.root = root
        self.vectors = vectors
        if probes == "multi_view":
            subjects = sorted({s for v in SURVEILLANCE for s in seen_in(v)})
            self.probes = [(s, self.descriptor(s, "videos")) for s in subjects]
        elif probes == "uav":
            self.probes = [(s, self.descriptor(s, f"videos_{v}")) for v in UAV_VIDEOS for s in seen_in(v)]
            self.probes += [(s, self.descriptor(s, f"img_{s}9")) for s in UAV_STILLS]
        else:
            self.probes = [(s, self.descriptor(s, f"videos_{v}")) for v in SURVEILLANCE for s in seen_in(v)]

    def descriptor(self, subject: int, *starts: str) -> np.ndarray | None:
        paths = [
            path
            for start in starts
            for path in sorted((self.root / str(subject)).glob(f"{start}*"))
            if path.stem == start or path.stem.startswith(start + "_")
        ]
        if not paths:
            return None
        total = np.sum(self.vectors(paths), axis=0)
        return total / np.linalg.norm(total)

    def galleries(self, kind: str) -> list[dict[int, np.ndarray | None]]:
        found = []
        for half, video in zip((FIRST, SECOND), GALLERY_VIDEOS, strict=True):
            starts = {
                s: {
                    "single": [f"img_{s}0"],
                    "booking": [f"img_{s}{n}" for n in range(3)],
                    "surveillance": [f"videos_{video}"],
                }[kind]
                for s in half
            }
            found.append({s: self.descriptor(s, *starts[s]) for s in half})
        return found

    @staticmethod
    def scores(probe: np.ndarray | None, gallery: dict[int, np.ndarray | None]) -> list[tuple[float, int]]:
        """Falling, entries without faces left out."""
        if probe is None:
            return []
        return sorted(((float(probe @ e), s) for s, e in gallery.items() if e is not None), reverse=True)

    def cmc(self, gallery: dict[int, np.ndarray | None], rank: int) -> float:
        mated = [(s, p) for s, p in self.probes if s in gallery]
        return sum(s in [o for _, o in self.scores(p, gallery)[:rank]] for s, p in mated) / len(mated)

    def tpir(self, gallery: dict[int, np.ndarray | None], fpir: float) -> float:
        strangers = [self.scores(p, gallery) for s, p in self.probes if s not in gallery]
        alarms = sorted((scores[0][0] if scores else -9.0 for scores in strangers), reverse=True)
        bar = alarms[int(fpir * len(alarms) + 1e-9)]
        mated = [(s, self.scores(p, gallery)) for s, p in self.probes if s in gallery]
        return sum(bool(f) and f[0][1] == s and f[0][0] > bar for s, f in mated) / len(mated)

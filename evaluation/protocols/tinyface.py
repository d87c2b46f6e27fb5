"""TinyFace: the published lists read and checked, and features -> closed-set identification with distractors.

The lists are MATLAB files, as published (`gallery_match_img_ID_pairs.mat`, `probe_img_ID_pairs.mat`); images
are looked for where the public evaluation codes have them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.identification import cmc
from evaluation.metrics.search import search
from evaluation.protocols.face_files import FaceFiles, files_by_stem
from evaluation.protocols.matlab_files import read_matlab
from evaluation.reporting.report import closed_section
from runtime.errors import InputError
from runtime.text import listed

RANKS = (1, 5, 20)
GALLERY_LIST = "gallery_match_img_ID_pairs.mat"
PROBE_LIST = "probe_img_ID_pairs.mat"
GALLERY, DISTRACTORS, PROBE = "Gallery_Match", "Gallery_Distractor", "Probe"
# Under the data root: where the archive puts the lists, and names that aligned copies go by, the first first.
TESTING_FOLDERS = ("tinyface/Testing_Set", "Testing_Set", ".")
ALIGNED_FOLDERS = ("aligned_pad_0.1_pad_high", "tinyface_aligned_pad_0.1", "tinyface_aligned_112", "aligned")
PUBLISHED_SIZES = {GALLERY: 4443, DISTRACTORS: 153428, PROBE: 3728}
HOW_TO_GET = (
    "TinyFace comes from its authors (https://qmul-tinyface.github.io); unpack it so that DATA_ROOT/tinyface/"
    "Testing_Set is there, and put faces aligned to 112 x 112 beside it (validation_lq/README.md)."
)
_DISTRACTOR = -100


@dataclass(frozen=True)
class TinyFace:
    """The protocol on disk.

    `faces`: N images, those of the gallery, then the distractors, then the probes; `gallery_subjects` (G,),
    `probe_subjects` (P,): int64 in the order of the lists; `num_distractors` = N - G - P; `notes`: sentences
    that belong beside the figures.
    """

    faces: FaceFiles
    gallery_subjects: NDArray[np.int64]
    probe_subjects: NDArray[np.int64]
    num_distractors: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TinyFaceFigures:
    """`cmc`: share of probes with their subject among the first 1, 5, 20; fractions by rank."""

    cmc: dict[str, float]
    probes: int
    gallery: int
    distractors: int

    def to_result(self) -> dict[str, Any]:
        """The protocol's parts of result.json."""
        return {
            "data": {
                "images": self.probes + self.gallery + self.distractors,
                "probes": self.probes,
                "gallery": self.gallery,
                "distractors": self.distractors,
            },
            "identification": {"closed": {"gallery with distractors": closed_section(self.cmc)}},
            "figures": {f"rank {rank}": rate for rank, rate in self.cmc.items()},
        }


def tinyface_figures(features: NDArray[np.floating[Any]], protocol: TinyFace) -> TinyFaceFigures:
    """Arrays to figures: each probe is searched in gallery and distractors; ties are counted as errors.

    Args:
        features: (N, D) unit rows, in the order of `protocol.faces`.
        protocol: whose faces they are.

    Raises:
        InputError: another number of rows, or a row that is not finite.
    """
    if features.ndim != 2 or len(features) != len(protocol.faces):
        raise InputError(f"TinyFace: features {features.shape} of {len(protocol.faces):,} images.")
    distractors = np.full(protocol.num_distractors, _DISTRACTOR)
    subjects = np.concatenate([protocol.gallery_subjects, distractors])
    entries = len(subjects)
    found = search(features[entries:], features[:entries], protocol.probe_subjects, subjects)
    return TinyFaceFigures(
        cmc(found, RANKS),
        len(protocol.probe_subjects),
        len(protocol.gallery_subjects),
        protocol.num_distractors,
    )


def read_tinyface(data_root: Path, images: Path | None = None) -> TinyFace:
    """Read the lists and find every image.

    `images`: the folder of aligned faces (with `Gallery_Match`, `Gallery_Distractor`, `Probe`); None is the
    first of `ALIGNED_FOLDERS` under `data_root`, else the folder of the lists. Images are found by name
    without suffix.

    Raises:
        InputError: lists, folders or images that are missing (first ten and the count), lists of another
            form, probes whose subject the gallery lacks; all faults in one message.
    """
    testing = _first_folder(data_root, TESTING_FOLDERS, (GALLERY_LIST, PROBE_LIST))
    parts = (GALLERY, DISTRACTORS, PROBE)
    if testing is None:
        looked = ", ".join(str(data_root / name) for name in TESTING_FOLDERS)
        raise InputError(f"TinyFace: {GALLERY_LIST} was looked for in {looked}. {HOW_TO_GET}")
    folder = images or _first_folder(data_root, ALIGNED_FOLDERS, parts) or testing
    faults: list[str] = []
    gallery = _read_list(testing / GALLERY_LIST, "gallery_set", "gallery_ids", faults)
    probes = _read_list(testing / PROBE_LIST, "probe_set", "probe_ids", faults)
    on_disk = {part: _listing(folder / part, faults) for part in parts}
    stems = {GALLERY: gallery.stems, DISTRACTORS: list(on_disk[DISTRACTORS]), PROBE: probes.stems}
    names = [
        f"{part}/{file}"
        for part in parts
        for file in _found(folder / part, on_disk[part], stems[part], faults)
    ]
    absent = np.setdiff1d(probes.subjects, gallery.subjects).tolist()
    if absent and len(gallery.subjects):
        faults.append(
            f"{testing / PROBE_LIST}: {len(absent):,} subjects are not in {GALLERY_LIST}: "
            f"{listed(list(map(str, absent)), 10)}. Are both lists of one release?"
        )
    if faults:
        raise InputError.from_faults(faults)
    sizes = {part: len(listing) for part, listing in stems.items()}
    notes = [
        f"{part}: {sizes[part]:,} images, the published protocol has {published:,}: do not compare the "
        "figures with published ones."
        for part, published in PUBLISHED_SIZES.items()
        if sizes[part] != published
    ]
    notes += _name_notes({GALLERY_LIST: gallery, PROBE_LIST: probes})
    return TinyFace(
        FaceFiles.of(folder, names), gallery.subjects, probes.subjects, sizes[DISTRACTORS], tuple(notes)
    )


@dataclass(frozen=True)
class _List:
    stems: list[str]
    subjects: NDArray[np.int64]


def _first_folder(root: Path, candidates: Sequence[str], contents: Sequence[str]) -> Path | None:
    """The first of the candidates that holds any of `contents`."""
    folders = (root / name for name in candidates)
    return next((folder for folder in folders if any((folder / c).exists() for c in contents)), None)


def _read_list(path: Path, names_field: str, ids_field: str, faults: list[str]) -> _List:
    """Image names without suffix and subjects of a list; an empty one with a fault where it is not usable."""
    nothing = _List([], np.empty(0, np.int64))
    try:
        fields = read_matlab(path)
    except InputError as fault:
        faults.append(str(fault) if path.exists() else f"{path}: no such file. {HOW_TO_GET}")
        return nothing
    absent = [field for field in (names_field, ids_field) if field not in fields]
    if absent:
        faults.append(
            f"{path}: has no field {' and '.join(map(repr, absent))}, only: {', '.join(fields) or 'none'}. "
            "Expected a list of the TinyFace release."
        )
        return nothing
    names, ids = fields[names_field], fields[ids_field]
    found = len(faults)
    if not isinstance(names, list):
        faults.append(f"{path}: '{names_field}' holds numbers, expected a cell array of file names.")
    if isinstance(ids, list) or not ((ids >= 0) & (ids == np.floor(ids)) & (ids < 2**53)).all():
        faults.append(f"{path}: '{ids_field}' is no array of whole numbers from 0 on.")
    if isinstance(names, list) and len(set(names)) < len(names):
        twice = [name for name, times in Counter(names).items() if times > 1]
        faults.append(f"{path}: {len(twice):,} names occur more than once: {listed(twice, 10)}.")
    if len(names) != len(ids) or not len(names):
        faults.append(
            f"{path}: {len(names):,} names and {len(ids):,} ids, expected one name and one id per image."
        )
    if isinstance(ids, list) or not isinstance(names, list) or len(faults) > found:
        return nothing
    return _List([PurePosixPath(name).stem for name in names], ids.astype(np.int64))


def _listing(folder: Path, faults: list[str]) -> dict[str, str]:
    try:
        found = files_by_stem(folder)
    except InputError as fault:
        faults.append(f"{fault} {HOW_TO_GET}" if not folder.is_dir() else str(fault))
        return {}
    if not found:
        faults.append(f"{folder}: holds no images.")
    return found


def _found(folder: Path, on_disk: Mapping[str, str], stems: Sequence[str], faults: list[str]) -> list[str]:
    missing = [stem for stem in stems if stem not in on_disk]
    if missing and on_disk:
        faults.append(
            f"{folder}: {len(missing):,} of {len(stems):,} listed images are missing: {listed(missing, 10)}. "
            "Aligned copies need every listed image: keep the plain crop where alignment failed."
        )
    return [on_disk[stem] for stem in stems if stem in on_disk]


def _name_notes(lists: Mapping[str, _List]) -> list[str]:
    """File names start with the subject, and some public codes go by that: say where it is not so."""
    notes = []
    for name, entries in lists.items():
        others = [
            stem
            for stem, subject in zip(entries.stems, entries.subjects.tolist(), strict=True)
            if (prefix := stem.partition("_")[0]).isdecimal() and int(prefix) != subject
        ]
        if others:
            notes.append(
                f"{name}: {len(others):,} images are named after another subject than the list gives them "
                f"({listed(others, 10)}); codes that go by the names get other figures."
            )
    return notes

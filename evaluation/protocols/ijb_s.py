"""IJB-S: protocol files and faces of templates, and closed- and open-set identification of their descriptors.

A probe is all faces of one subject in one surveillance video (multi-view: in all videos; UAV: in one video or
still). Galleries hold stills, booking sets or videos. The lists and columns are those that
public codes read (PFE, CAFace, AdaFace).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.identification import TpirAtFpir, cmc, tpir_at_fpir
from evaluation.metrics.search import Search, search
from evaluation.protocols.face_files import FaceFiles, image_names
from evaluation.reporting.report import closed_section, markdown_table, open_section, percent
from runtime.errors import InputError
from runtime.text import listed

if TYPE_CHECKING:
    import torch
    from torch import nn

    from evaluation.protocols.templates import FaceGroups

RANKS = (1, 5, 10)
FPIRS = (0.01, 0.1)
# A template that could not be enrolled is found at no rank.
_NEVER = np.iinfo(np.int64).max
METADATA = "cs6_metadata.csv"
_STILLS_PROBES = "cs6_surveillance_to_single-booking_probe.csv"
_VIDEO_PROBES = "cs6_surveillance_to_surveillance_probe.csv"


@dataclass(frozen=True)
class Protocol:
    """One protocol's lists.

    `title`: what tables call it; `probes`: the list of probe videos; `gallery`: kind of the two galleries,
    'single', 'booking' or 'surveillance'; `multi_view`: a probe is a subject of those videos, with all faces
    of it in all videos of the data set; `stills`: images may be probes too.
    """

    title: str
    probes: str
    gallery: str
    multi_view: bool = False
    stills: bool = False


PROTOCOLS = {
    "surveillance_to_single": Protocol("Sur-to-Single", _STILLS_PROBES, "single"),
    "surveillance_to_booking": Protocol("Sur-to-Book", _STILLS_PROBES, "booking"),
    "surveillance_to_surveillance": Protocol("Sur-to-Sur", _VIDEO_PROBES, "surveillance"),
    # As the public evaluation code has it: subjects are those of the list of Surveillance-to-Surveillance.
    "multi_view_to_booking": Protocol("Multi-view Sur-to-Book", _VIDEO_PROBES, "booking", multi_view=True),
    "uav_to_booking": Protocol("UAV-to-Book", "cs6_uav_to_single-booking_probe.csv", "booking", stills=True),
}
# Of the tables of AdaFace and CAFace.
PUBLISHED_PROTOCOLS = tuple(PROTOCOLS)[:3]
PUBLISHED_SUBJECTS = 202
LAYOUT = (
    "Expected DATA_ROOT/<SUBJECT>/videos_<VIDEO>_<FRAME>.jpg and DATA_ROOT/<SUBJECT>/img_<NUMBER>.jpg, "
    "aligned to 112 x 112 (validation_lq/README.md)."
)
HOW_TO_GET = "IJB-S is given out by its authors on request (validation_lq/README.md)."
_SOURCE = re.compile(r"(videos|img)/([^/_,]+)\.[A-Za-z0-9]+")
_ON_DISK = re.compile(r"(videos_[^_]+)_([^_]+)|(img_[^_]+)")


@dataclass(frozen=True)
class SearchLists:
    """One protocol, as numbers of templates: `probes` (P,), `galleries`: 1 and 2, (G,) each."""

    probes: NDArray[np.int64]
    galleries: tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class IjbS:
    """The data set on disk.

    `subjects` (M,): of each template; `row` (M,): its place among the templates that have faces, -1 where no
    face of it is on the disk; `groups`: the faces of those that have any; `protocols`: by name; `notes`:
    sentences that belong beside the figures.
    """

    faces: FaceFiles
    groups: FaceGroups
    subjects: NDArray[np.int64]
    row: NDArray[np.int64]
    protocols: Mapping[str, SearchLists]
    notes: tuple[str, ...]


def read_ijb_s(data_root: Path, protocol_root: Path, protocols: Sequence[str] = PUBLISHED_PROTOCOLS) -> IjbS:
    """Read the lists of `protocols` and find the faces of their templates under `data_root`.

    Raises:
        InputError: files or folders that are missing, lines of another form, names that contradict each
            other, images with other names, or a list of templates none of which has a face.
    """
    probe_files = {name: protocol_root / PROTOCOLS[name].probes for name in protocols}
    gallery_files = {
        name: [
            protocol_root / "galleries" / f"cs6_surveillance_to_{PROTOCOLS[name].gallery}_g{number}.csv"
            for number in (1, 2)
        ]
        for name in protocols
    }
    metadata = protocol_root / METADATA
    wanted = [metadata, *probe_files.values(), *(path for two in gallery_files.values() for path in two)]
    missing = [str(path) for path in dict.fromkeys(wanted) if not path.is_file()]
    faults = [f"{data_root}: no such folder. {LAYOUT}"] if not data_root.is_dir() else []
    faults += [f"protocol files that are missing: {', '.join(missing)}. {HOW_TO_GET}"] if missing else []
    if faults:
        raise InputError.from_faults(faults)
    subjects_of = _subjects_of_files(metadata)
    templates: _Templates = {}
    lists = {
        name: SearchLists(
            _probes(templates, PROTOCOLS[name], probe_files[name], subjects_of, metadata),
            _galleries(templates, PROTOCOLS[name].gallery, gallery_files[name], subjects_of),
        )
        for name in protocols
    }
    return _with_faces(data_root, templates, lists)


# Each set of faces once: (subject, files) -> its number.
_Templates = dict[tuple[int, tuple[str, ...]], int]


def _number_of(templates: _Templates, subject: int, files: Iterable[str]) -> int:
    return templates.setdefault((subject, tuple(files)), len(templates))


def _rows(path: Path, columns: str) -> Iterator[tuple[int, list[str]]]:
    """Numbers (from 2) and columns of the lines after the header; `columns` says what a line has to be."""
    fewest = columns.count(",") + 1
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        header = stream.readline()
        if not header.strip() or any(_SOURCE.fullmatch(column.strip()) for column in header.split(",")):
            raise InputError(f"{path}, line 1: expected a header, found '{header.strip()}'.")
        for number, line in enumerate(stream, 2):
            if not line.strip():
                continue
            row = [column.strip() for column in line.split(",", fewest)]
            if len(row) < fewest:
                raise InputError(f"{path}, line {number}: expected '{columns}', found '{line.strip()}'.")
            yield number, row


def _subject_and_file(path: Path, number: int, subject: str, file: str, columns: str) -> tuple[int, str]:
    """The subject, and the file as the start of its faces' names: 'videos_5004', 'img_101146'."""
    source = _SOURCE.fullmatch(file)
    if source is None or not subject.isdecimal():
        raise InputError(
            f"{path}, line {number}: expected '{columns}' with a whole number and videos/<VIDEO>.mp4 or "
            f"img/<NUMBER>.jpg, found '{subject},{file}'."
        )
    return int(subject), f"{source[1]}_{source[2]}"


def _subjects_of_files(metadata: Path) -> dict[str, list[int]]:
    """Video or image -> subjects that were seen in it, rising."""
    columns = "SUBJECT,FILE"
    seen: dict[tuple[str, str], tuple[int, str]] = {}
    for number, row in _rows(metadata, columns):
        # A line for every face of every frame: each pair is looked at once.
        if (row[0], row[1]) not in seen:
            seen[row[0], row[1]] = _subject_and_file(metadata, number, row[0], row[1], columns)
    subjects: dict[str, list[int]] = {}
    for subject, source in sorted(set(seen.values())):
        subjects.setdefault(source, []).append(subject)
    return subjects


def _probes(
    templates: _Templates,
    protocol: Protocol,
    path: Path,
    subjects_of: Mapping[str, Sequence[int]],
    metadata: Path,
) -> NDArray[np.int64]:
    seen: list[tuple[int, str]] = []
    for number, (file, *_) in _rows(path, "FILE" if protocol.stills else "VIDEO"):
        source = _SOURCE.fullmatch(file)
        if source is None or not (source[1] == "videos" or protocol.stills):
            forms = "videos/<VIDEO>.mp4" + (" or img/<NUMBER>.jpg" if protocol.stills else "")
            raise InputError(f"{path}, line {number}: expected {forms}, found '{file}'.")
        name = f"{source[1]}_{source[2]}"
        if name not in subjects_of:
            raise InputError(f"{path}, line {number}: {file} does not occur in {metadata}.")
        seen += [(subject, name) for subject in subjects_of[name]]
    if not seen:
        raise InputError(f"{path}: lists no videos.")
    if protocol.multi_view:
        probes: dict[int, list[str]] = {subject: [] for subject, _ in seen}
        for name, subjects in subjects_of.items():
            for subject in subjects:
                if subject in probes and name.startswith("videos_"):
                    probes[subject].append(name)
        numbers = [_number_of(templates, subject, names) for subject, names in probes.items()]
    else:
        numbers = [_number_of(templates, subject, [name]) for subject, name in seen]
    return np.array(list(dict.fromkeys(numbers)), np.int64)


def _galleries(
    templates: _Templates, kind: str, paths: Sequence[Path], subjects_of: Mapping[str, Sequence[int]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A template a subject: of one image or video, or of all its booking images."""
    columns = "ENTRY,SUBJECT,FILE"
    files: list[dict[int, list[str]]] = [{}, {}]
    for path, mine, others in zip(paths, files, reversed(files), strict=True):
        for number, row in _rows(path, columns):
            subject, file = _subject_and_file(path, number, row[1], row[2], columns)
            known = mine.setdefault(subject, [])
            if subject in others:
                raise InputError(f"{path}, line {number}: subject {subject} is in {paths[0]} too.")
            if file not in known:
                known.append(file)
            if kind == "surveillance" and subject not in subjects_of.get(file, ()):
                raise InputError(
                    f"{path}, line {number}: {METADATA} does not have subject {subject} in {row[2]}."
                )
            if len(known) > 1 and kind != "booking":
                raise InputError(
                    f"{path}, line {number}: a second file of subject {subject} ({known[0]}, {file}); this "
                    "gallery has one per subject."
                )
        if not mine:
            raise InputError(f"{path}: lists no files.")
    first, second = (
        np.array([_number_of(templates, subject, mine[subject]) for subject in sorted(mine)], np.int64)
        for mine in files
    )
    return first, second


def _with_faces(data_root: Path, templates: _Templates, lists: Mapping[str, SearchLists]) -> IjbS:
    from evaluation.protocols.templates import FaceGroups

    needed: dict[int, set[str]] = {}
    for subject, files in templates:
        needed.setdefault(subject, set()).update(files)
    # Packed subject by subject: as strings of their own, ten million names would take a gigabyte.
    packed: list[NDArray[np.bytes_]] = []
    rows_of: dict[tuple[int, str], range] = {}
    num_faces = 0
    for subject in sorted(needed):
        found = _faces_of(data_root / str(subject), needed[subject])
        for file in sorted(found):
            rows_of[subject, file] = range(num_faces, num_faces + len(found[file]))
            packed.append(FaceFiles.of(data_root, (f"{subject}/{name}" for name in found[file])).names)
            num_faces += len(found[file])
    row = np.full(len(templates), -1)
    rows: list[NDArray[np.int64]] = []
    media: list[NDArray[np.int64]] = []
    offsets = [0]
    num_media = 0
    for number, (subject, files) in enumerate(templates):
        parts = [rows_of[subject, file] for file in files if (subject, file) in rows_of]
        if not parts:
            continue
        row[number] = len(offsets) - 1
        rows += [np.arange(part.start, part.stop) for part in parts]
        media += [np.full(len(part), num_media + place) for place, part in enumerate(parts)]
        num_media += len(parts)
        offsets.append(offsets[-1] + sum(map(len, parts)))
    if not rows:
        raise InputError(f"{data_root}: no face of any template of the protocols was found. {LAYOUT}")
    groups = FaceGroups(np.concatenate(rows), np.array(offsets), np.concatenate(media))
    subjects = np.array([subject for subject, _ in templates], np.int64)
    notes = _notes(data_root, lists, row, subjects)
    return IjbS(FaceFiles(data_root, np.concatenate(packed)), groups, subjects, row, lists, notes)


def _faces_of(folder: Path, needed: set[str]) -> dict[str, list[str]]:
    """Names of the images of a subject's folder by the file that they come from, frames in their order."""
    if not folder.is_dir():
        return {}
    found: dict[str, list[tuple[int, str, str]]] = {}
    unknown = []
    for name in image_names(folder):
        match = _ON_DISK.fullmatch(os.path.splitext(name)[0])
        if match is None:
            unknown.append(name)
        elif (file := match[1] or match[3]) in needed:
            frame = match[2] or ""
            found.setdefault(file, []).append((int(frame) if frame.isdecimal() else -1, frame, name))
    if unknown:
        raise InputError(
            f"{folder}: {len(unknown):,} images have other names: {listed(sorted(unknown), 10)}. {LAYOUT}"
        )
    return {file: [name for *_, name in sorted(frames)] for file, frames in found.items()}


def _notes(
    data_root: Path, lists: Mapping[str, SearchLists], row: NDArray[np.int64], subjects: NDArray[np.int64]
) -> tuple[str, ...]:
    """What is missing or unusual; InputError where a protocol has a side without any face."""
    notes, faults = [], []
    for name, protocol in lists.items():
        title = PROTOCOLS[name].title
        sides = {
            "probes": protocol.probes,
            "gallery 1": protocol.galleries[0],
            "gallery 2": protocol.galleries[1],
        }
        for side, numbers in sides.items():
            missing = int((row[numbers] < 0).sum())
            if missing == len(numbers):
                faults.append(f"{data_root}: none of the {missing:,} {side} of {title} has a face. {LAYOUT}")
            elif missing:
                notes.append(
                    f"{title}: {missing:,} of {len(numbers):,} {side} have no face: failures to enrol, which "
                    "count as never found."
                )
        both = np.intersect1d(protocol.probes, np.concatenate(protocol.galleries))
        if len(both):
            notes.append(f"{title}: {len(both):,} probes are gallery entries too, and so find themselves.")
        enrolled = len(np.unique(subjects[np.concatenate(protocol.galleries)]))
        if enrolled != PUBLISHED_SUBJECTS:
            notes.append(
                f"{title}: {enrolled:,} subjects in the galleries, the published protocol has "
                f"{PUBLISHED_SUBJECTS}: do not compare the figures with published ones."
            )
    if faults:
        raise InputError.from_faults(faults)
    return tuple(notes)


# ------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class IjbSFigures:
    """Figures of one protocol, fractions.

    `closed`: CMC by gallery ('gallery1', 'gallery2', and 'joint', the published rule); `open`: TPIR@FPIR of
    each gallery by itself; `mean_tpir`: their mean, as published. Probes without faces are never found.
    """

    probes: int
    probes_without_faces: int
    gallery: tuple[int, int]
    gallery_without_faces: int
    closed: dict[str, dict[str, float]]
    open: dict[str, dict[str, TpirAtFpir]]
    mean_tpir: dict[str, float]

    def to_result(self) -> dict[str, Any]:
        """The protocol's parts of result.json; 'figures' are those that are published."""
        return {
            "data": {
                "probes": self.probes,
                "probes without faces": self.probes_without_faces,
                "gallery1": self.gallery[0],
                "gallery2": self.gallery[1],
                "gallery without faces": self.gallery_without_faces,
            },
            "identification": {
                "closed": {name: closed_section(rates) for name, rates in self.closed.items()},
                "open": {name: open_section(rates) for name, rates in self.open.items()},
            },
            "figures": {
                **{f"rank {rank}": rate for rank, rate in self.closed["joint"].items()},
                **{f"TPIR@FPIR {fpir}": rate for fpir, rate in self.mean_tpir.items()},
            },
        }


def ijb_s_figures(descriptors: NDArray[np.floating[Any]], data: IjbS) -> dict[str, IjbSFigures]:
    """Arrays to figures, by protocol; ties are counted as errors.

    Args:
        descriptors: one unit row for each template that has faces, in the order of `data.groups`.
        data: the protocols.

    Raises:
        InputError: another number of rows, one that is not finite, no mated or no non-mated probe.
    """
    if descriptors.ndim != 2 or len(descriptors) != len(data.groups):
        raise InputError(f"IJB-S: descriptors {descriptors.shape} of {len(data.groups):,} templates.")
    return {name: _figures_of(descriptors, data, lists) for name, lists in data.protocols.items()}


def evaluate_ijb_s(
    data: IjbS,
    features: NDArray[np.floating[Any]],
    norms: NDArray[np.floating[Any]],
    aggregators: Mapping[str, nn.Module],
    device: torch.device | str = "cpu",
    *,
    auxiliary_size: int = 0,
) -> dict[str, dict[str, IjbSFigures]]:
    """Features of faces to figures: name of the aggregator -> protocol -> figures.

    Args:
        data: N faces and the protocols.
        features: (N, D) unit rows, in the order of `data.faces`.
        norms: (N,).
        aggregators: of `coreset.AGGREGATORS`.
        device: where aggregators work.
        auxiliary_size: number of auxiliary features at the end of each row.

    Raises:
        InputError: another number of features, or as `ijb_s_figures`.
    """
    from evaluation.protocols.templates import aggregate_templates

    if features.ndim != 2 or not len(features) == len(norms) == len(data.faces):
        raise InputError(
            f"IJB-S: features {features.shape} and norms {norms.shape} of {len(data.faces):,} faces."
        )
    return {
        name: ijb_s_figures(
            aggregate_templates(
                aggregator, features, norms, data.groups, device, auxiliary_size=auxiliary_size
            ).embedding,
            data,
        )
        for name, aggregator in aggregators.items()
    }


def ijb_s_table(rows: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Markdown table as the published command prints it, in per cent.

    Columns: rank 1, rank 5 and TPIR at FPIR 1e-02 of each protocol.

    Args:
        rows: name of the model -> protocol -> these three, fractions.
    """
    names = [name for name in PROTOCOLS if any(name in row for row in rows.values())]
    head = ["model"]
    for name in names:
        title = PROTOCOLS[name].title
        head += [f"{title} rank 1", "rank 5", "TPIR@FPIR 0.01"]
    none = (np.nan, np.nan, np.nan)
    body = [
        [model, *(percent(v) for name in names for v in row.get(name, none))] for model, row in rows.items()
    ]
    return markdown_table(head, body)


def table_row(figures: Mapping[str, IjbSFigures]) -> dict[str, tuple[float, float, float]]:
    """What `ijb_s_table` shows of figures: closed set by the published rule, open set as the mean of both."""
    return {
        name: (each.closed["joint"]["1"], each.closed["joint"]["5"], each.mean_tpir[f"{FPIRS[0]:g}"])
        for name, each in figures.items()
    }


def sections(figures: Mapping[str, IjbSFigures]) -> dict[str, Any]:
    """'identification' and 'figures' of a result.json of several protocols, and the counts of each.

    Galleries are called 'surveillance_to_single gallery1', figures 'surveillance_to_single rank 1'.
    """
    parts = {name: each.to_result() for name, each in figures.items()}

    def joined(*keys: str) -> dict[str, Any]:
        return {
            f"{name} {key}": value
            for name, part in parts.items()
            for key, value in (part[keys[0]] if len(keys) == 1 else part[keys[0]][keys[1]]).items()
        }

    return {
        "identification": {
            "closed": joined("identification", "closed"),
            "open": joined("identification", "open"),
        },
        "figures": joined("figures"),
        "protocols": {name: part["data"] for name, part in parts.items()},
    }


def _figures_of(descriptors: NDArray[np.floating[Any]], data: IjbS, lists: SearchLists) -> IjbSFigures:
    galleries = {f"gallery{number}": gallery for number, gallery in enumerate(lists.galleries, 1)}
    found = {name: _search(descriptors, data, lists.probes, gallery) for name, gallery in galleries.items()}
    joint = _search(descriptors, data, lists.probes, np.concatenate(lists.galleries))
    tpir = {name: tpir_at_fpir(each, FPIRS) for name, each in found.items()}
    return IjbSFigures(
        probes=len(lists.probes),
        probes_without_faces=int((data.row[lists.probes] < 0).sum()),
        gallery=(len(lists.galleries[0]), len(lists.galleries[1])),
        gallery_without_faces=int((data.row[np.concatenate(lists.galleries)] < 0).sum()),
        closed={name: cmc(each, RANKS) for name, each in {**found, "joint": joint}.items()},
        open=tpir,
        mean_tpir={
            key: float(np.mean([rates[key].tpir for rates in tpir.values()])) for key in tpir["gallery1"]
        },
    )


def _search(
    descriptors: NDArray[np.floating[Any]], data: IjbS, probes: NDArray[np.int64], gallery: NDArray[np.int64]
) -> Search:
    """Search the probes that have faces in the entries that have; the others are never found.

    A mated probe without faces, or whose mate has none, is a miss at every rank; a non-mated one without
    faces is no false positive. (Public codes give such templates a descriptor of zeros, which may be found.)
    """
    with_faces, entries = np.flatnonzero(data.row[probes] >= 0), gallery[data.row[gallery] >= 0]
    part = search(
        descriptors[data.row[probes[with_faces]]],
        descriptors[data.row[entries]],
        data.subjects[probes[with_faces]],
        data.subjects[entries],
    )
    rank = np.where(np.isin(data.subjects[probes], data.subjects[gallery]), _NEVER, 0)
    rank[with_faces] = np.where(part.rank > 0, part.rank, rank[with_faces])
    own, other = np.full((2, len(probes)), -np.inf)
    own[with_faces], other[with_faces] = part.own, part.other
    return Search(rank, own, other)

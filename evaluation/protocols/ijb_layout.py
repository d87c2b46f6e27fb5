"""Set benchmarks in the layout of IJB-B and IJB-C: meta files, read and checked.

`<root>/<NAME>/loose_crop/*.jpg` and `<root>/<NAME>/meta/<name>_*`, as in InsightFace's evaluation package.
Any data set of this layout is read; of the published ones the sizes are known and checked. Pixels are read
elsewhere.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from evaluation.protocols.text_tables import line_of_row, read_table
from evaluation.reporting.published import IJB_SIZES
from runtime.errors import InputError
from runtime.input_files import check_inside
from runtime.rows import joined_rows
from runtime.text import listed

Integers = NDArray[np.integer[Any]]

# Look-ups of so many ids at a time stay in the processor's cache.
_CHUNK = 1 << 17
_KNOWN_SUBJECTS = {"IJBB": 1_845, "IJBC": 3_531}
# Of all mated pairs: so many may contradict the 1:N lists in data sets of published size, none in others.
_MOST_MATED_CONTRADICTIONS = 0.01
# Non-mated pairs of one subject, to the number of mated pairs: fewer cost the intervals alone.
_MOST_NON_MATED_CONTRADICTIONS = 0.5
# Id of the templates that are in no 1:N list.
_UNKNOWN = np.iinfo(np.int64).min


@dataclass(frozen=True, eq=False)
class TemplatePairs:
    """`first`, `second` (n,) int32: rows of templates; `is_mated` (n,) bool."""

    first: NDArray[np.int32]
    second: NDArray[np.int32]
    is_mated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True, eq=False)
class TemplateList:
    """A gallery, or the probes, of a 1:N protocol: `templates` (n,) rows, `subjects` (n,) ids of the csv."""

    name: str
    templates: NDArray[np.int64]
    subjects: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.templates)


@dataclass(frozen=True, eq=False)
class SetProtocol:
    """One benchmark. N faces in the order of the features, M templates in rising order of their ids.

    `image_names`: N file names below `image_folder`; `template_ids` (M,); `template_of_face` (N,) rows
    0..M-1; `media` (N,) ids; `subjects` (M,) 0..S-1, whose templates they are as far as the files tell;
    `galleries` and `probes`: none where there are no 1:N files. `warnings`: where the files contradict each
    other.
    """

    name: str
    folder: Path
    image_names: list[str]
    template_ids: NDArray[np.int64]
    template_of_face: NDArray[np.int64]
    media: NDArray[np.int64]
    pairs: TemplatePairs
    galleries: tuple[TemplateList, ...]
    probes: TemplateList | None
    subjects: NDArray[np.int64]
    warnings: tuple[str, ...] = ()

    @property
    def image_folder(self) -> Path:
        """Where the images lie."""
        return self.folder / "loose_crop"

    def meta(self, part: str) -> Path:
        """A file of the meta folder, such as `name_5pts_score.txt`, whether it is there or not."""
        return _meta(self.folder, part)

    @property
    def sizes(self) -> dict[str, int]:
        """What the files hold, by the names that messages use."""
        return {
            "images": len(self.image_names),
            "templates": len(self.template_ids),
            "pairs": len(self.pairs),
            "mated pairs": int(np.count_nonzero(self.pairs.is_mated)),
        }


def read_protocol(data_root: Path, name: str) -> SetProtocol:
    """Read and check all meta files but the landmarks of the data set `name`, such as IJBC.

    Raises:
        InputError: a file is missing or broken (with its line), files contradict each other, or a published
            data set has other sizes than it should.
    """
    folder = data_root / name
    _check_folder(folder, name)
    table = read_table(
        _meta(folder, "face_tid_mid.txt"), {"FILE": str, "TEMPLATE": np.int64, "MEDIA": np.int64}
    )
    check_inside(table["FILE"], str(_meta(folder, "face_tid_mid.txt")))
    ids, rows = np.unique(table["TEMPLATE"].to_numpy(), return_inverse=True)
    pairs = read_pairs(_meta(folder, "template_pair_label.txt"), ids)
    galleries, probes = read_one_to_many(folder, ids)
    lists = [*galleries, probes] if probes is not None else list(galleries)
    subjects, warnings = _subjects(ids, pairs, lists, folder)
    protocol = SetProtocol(
        name=name,
        folder=folder,
        image_names=table["FILE"].tolist(),
        template_ids=ids,
        template_of_face=rows.astype(np.int64),
        media=table["MEDIA"].to_numpy(),
        pairs=pairs,
        galleries=galleries,
        probes=probes,
        subjects=subjects,
        warnings=tuple(warnings),
    )
    _check_known_sizes(protocol)
    return protocol


def image_stamps(protocol: SetProtocol) -> NDArray[np.uint64]:
    """Look for every image; return (N,) numbers of their sizes and times: a changed image, another number.

    An image that was replaced by one of the same size and time is not noticed: half a million are not read
    for that.

    Raises:
        InputError: images are missing or empty: the first ten and how many.
    """
    folder = protocol.image_folder
    sizes = np.zeros(len(protocol.image_names), np.uint64)
    times = np.zeros(len(sizes), np.uint64)
    place = {name: row for row, name in enumerate(protocol.image_names)}
    try:
        # One pass over the folder: on a network disk it is far faster than asking for each name.
        with os.scandir(folder) as entries:
            for entry in entries:
                if (row := place.get(entry.name)) is not None:
                    status = entry.stat()
                    sizes[row], times[row] = status.st_size, status.st_mtime_ns
    except OSError as fault:
        raise InputError(
            f"{folder}: cannot be read ({fault.strerror}). Expected the images of {protocol.name}."
        ) from None
    for row in np.flatnonzero(sizes == 0).tolist():
        name = protocol.image_names[row]
        if "/" in name and (folder / name).is_file():
            status = (folder / name).stat()
            sizes[row], times[row] = status.st_size, status.st_mtime_ns
        elif place[name] != row:
            # The same image occurs in several lines, as it may in several templates.
            sizes[row], times[row] = sizes[place[name]], times[place[name]]
    missing = [protocol.image_names[row] for row in np.flatnonzero(sizes == 0)]
    if missing:
        raise InputError(
            f"{folder}: {len(missing):,} of {len(sizes):,} images are missing or empty: "
            f"{listed(missing, 10)}. Unpack them again."
        )
    # An odd factor keeps sizes apart whatever the times are.
    stamps: NDArray[np.uint64] = sizes * np.uint64(0x9E3779B97F4A7C15) ^ times
    return stamps


def _meta(folder: Path, part: str) -> Path:
    return folder / "meta" / f"{folder.name.lower()}_{part}"


def _check_folder(folder: Path, name: str) -> None:
    if folder.is_dir():
        if (folder / "meta").is_dir():
            return
        raise InputError(
            f"{folder}: has no folder 'meta'. Expected meta/{name.lower()}_face_tid_mid.txt and the other "
            "files of the IJB layout."
        )
    beside = folder.parent
    there = sorted(path.parent.name for path in beside.glob("*/meta")) if beside.is_dir() else []
    found = f" It holds {', '.join(there)}." if there else ""
    raise InputError(
        f"{folder}: no such folder. Expected --data_root to hold {name}/meta and {name}/loose_crop."
        f"{found} IJB-B and IJB-C are had from NIST, aligned lists of them from InsightFace's evaluation "
        "package."
    )


def read_pairs(path: Path, template_ids: NDArray[np.int64]) -> TemplatePairs:
    """Read a pair list; `template_ids` (M,) rising. IJB-C's 15.7 M lines take 1.1 s of CPU.

    Raises:
        InputError: the file is missing or broken (with its line), or names other templates.
    """
    table = read_table(path, {"TEMPLATE": np.int32, "TEMPLATE_2": np.int32, "LABEL": np.int8})
    labels = table["LABEL"].to_numpy()
    if labels.min() < 0 or labels.max() > 1:
        row = int(np.flatnonzero((labels != 0) & (labels != 1))[0])
        raise InputError(
            f"{path}, line {line_of_row(path, row)}: expected a label of 0 or 1, found {labels[row]}."
        )
    first, second = (
        _rows_of(table[column].to_numpy(), template_ids, path) for column in ("TEMPLATE", "TEMPLATE_2")
    )
    return TemplatePairs(first, second, labels.view(np.bool_))


def _rows_of(ids: Integers, template_ids: NDArray[np.int64], path: Path) -> NDArray[np.int32]:
    """Rows of templates by their ids; `path` is the file that names them, one per line."""
    low, high = int(template_ids[0]), int(template_ids[-1])
    rows = np.empty(len(ids), np.int32)
    if high - low < max(1 << 24, 4 * len(ids)):
        # The places before the first and after the last id are for all that lie outside.
        place = np.full(high - low + 3, -1, np.int32)
        place[template_ids - low + 1] = np.arange(len(template_ids), dtype=np.int32)
        for start in range(0, len(ids), _CHUNK):
            part = slice(start, start + _CHUNK)
            place.take(ids[part].astype(np.int64) - (low - 1), out=rows[part], mode="clip")
    else:
        near = np.minimum(np.searchsorted(template_ids, ids), len(template_ids) - 1)
        rows[:] = np.where(template_ids[near] == ids, near, -1)
    if not len(rows) or rows.min() >= 0:
        return rows
    unknown = np.flatnonzero(rows < 0)
    row = int(unknown[0])
    raise InputError(
        f"{path}, line {line_of_row(path, row + (path.suffix == '.csv'))}: expected a template of "
        f"face_tid_mid.txt, found {ids[row]} ({len(unknown):,} such lines). Do the files belong together?"
    )


def read_one_to_many(
    folder: Path, template_ids: NDArray[np.int64]
) -> tuple[tuple[TemplateList, ...], TemplateList | None]:
    """Galleries in the order of their names, and probes; nothing where there is none of the files.

    Raises:
        InputError: some are missing, are broken (with the line), or name other templates.
    """
    galleries = sorted((folder / "meta").glob(f"{folder.name.lower()}_1N_gallery_*.csv"))
    probes = _meta(folder, "1N_probe_mixed.csv")
    if not galleries and not probes.is_file():
        return (), None
    if not galleries or not probes.is_file():
        expected = probes if galleries else _meta(folder, "1N_gallery_G1.csv")
        raise InputError(
            f"{expected}: is missing, though other 1:N files are there. Expected galleries "
            f"({folder.name.lower()}_1N_gallery_*.csv) and probes (_1N_probe_mixed.csv), or none."
        )
    lists = [_read_template_list(path, template_ids) for path in (*galleries, probes)]
    return tuple(lists[:-1]), lists[-1]


def _read_template_list(path: Path, template_ids: NDArray[np.int64]) -> TemplateList:
    table = read_table(path, {"TEMPLATE_ID": np.int64, "SUBJECT_ID": np.int64}, csv=True)
    ids, subjects = table["TEMPLATE_ID"].to_numpy(), table["SUBJECT_ID"].to_numpy()
    rows = _rows_of(ids, template_ids, path)
    templates, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    differ = np.flatnonzero(subjects != subjects[first][inverse])
    if len(differ):
        row = int(differ[0])
        before = subjects[first[inverse[row]]]
        raise InputError(
            f"{path}, line {line_of_row(path, row + 1)}: expected subject {before} for template "
            f"{ids[row]}, as in a line before, found {subjects[row]}."
        )
    name = path.stem.split("_1N_")[1].removeprefix("gallery_")
    return TemplateList(name, templates.astype(np.int64), subjects[first])


def _subjects(
    ids: NDArray[np.int64], pairs: TemplatePairs, lists: list[TemplateList], folder: Path
) -> tuple[NDArray[np.int64], list[str]]:
    """(M,) 0..S-1: templates are of one subject where a 1:N file or a mated pair says so; and warnings.

    Raises:
        InputError: 1:N files and pairs contradict each other.
    """
    mated = pairs.first[pairs.is_mated], pairs.second[pairs.is_mated]
    by_pairs = joined_rows(len(ids), *mated)
    first, second = [mated[0]], [mated[1]]
    known = np.full(len(ids), _UNKNOWN, np.int64)
    if lists:
        templates = np.concatenate([entry.templates for entry in lists])
        subjects = np.concatenate([entry.subjects for entry in lists])
        representative = pd.Series(templates).groupby(subjects).transform("first").to_numpy()
        first.append(templates.astype(np.int32))
        second.append(representative.astype(np.int32))
        known[templates] = subjects
    joined = joined_rows(len(ids), np.concatenate(first), np.concatenate(second))
    alike = np.flatnonzero((joined[pairs.first] == joined[pairs.second]) & ~pairs.is_mated)
    warnings = _check_one_to_many(
        mated,
        np.stack([pairs.first[alike], pairs.second[alike]], axis=1),
        known,
        by_pairs,
        ids,
        published=folder.name in IJB_SIZES,
        folder=folder,
    )
    return joined, warnings


def _check_one_to_many(
    mated: tuple[Integers, Integers],
    non_mated_alike: Integers,
    known_subject: Integers,
    component: Integers,
    template_ids: Integers,
    *,
    published: bool,
    folder: Path,
) -> list[str]:
    """Check subjects of pairs against those of the 1:N lists.

    Args:
        mated: rows of templates of all mated pairs (P,), (P,).
        non_mated_alike: (Q, 2) rows of non-mated pairs whose templates are of one subject by all else.
        known_subject: (M,) id of the 1:N lists, `_UNKNOWN` where a template is in none.
        component: (M,) number of the templates that mated pairs join.
        template_ids: (M,).
        published: a data set of known size, in which a few contradictions give a warning only.
        folder: of the data set.

    Raises:
        InputError: they contradict each other.
    """
    known = np.flatnonzero(known_subject != _UNKNOWN)
    order = known[np.lexsort((known_subject[known], component[known]))]
    same_component = component[order[1:]] == component[order[:-1]]
    places = np.flatnonzero(same_component & (known_subject[order[1:]] != known_subject[order[:-1]]))
    said = []
    contradicted = 0
    if len(places):
        first, second = order[places[0]], order[places[0] + 1]
        torn = np.unique(component[order[places]])
        contradicted = int(np.isin(component[mated[0]], torn).sum())
        said.append(
            f"templates {template_ids[first]} and {template_ids[second]} are joined by mated pairs, but are "
            f"of subjects {known_subject[first]} and {known_subject[second]} in the 1:N lists (so are "
            f"{len(torn):,} groups of templates, with {contradicted:,} of {len(mated[0]):,} mated pairs)"
        )
    if len(non_mated_alike):
        first, second = non_mated_alike[0]
        said.append(
            f"templates {template_ids[first]} and {template_ids[second]} are a non-mated pair, but of one "
            f"subject by the 1:N lists or by other pairs (so are {len(non_mated_alike):,} pairs)"
        )
    if not said:
        return []
    text = f"{folder / 'meta'}: " + "; ".join(said) + ". Do the files belong together?"
    most = _MOST_MATED_CONTRADICTIONS * len(mated[0]) if published else 0
    if contradicted > most or len(non_mated_alike) > _MOST_NON_MATED_CONTRADICTIONS * len(mated[0]):
        raise InputError(text)
    return [text]


def _check_known_sizes(protocol: SetProtocol) -> None:
    """Raise InputError with all sizes that are not the published ones."""
    known = IJB_SIZES.get(protocol.name)
    if known is None:
        return
    found = protocol.sizes
    faults = [f"{found[key]:,} {key}, expected {size:,}" for key, size in known.items() if found[key] != size]
    registered = {int(s) for gallery in protocol.galleries for s in gallery.subjects}
    if protocol.galleries and len(registered) != _KNOWN_SUBJECTS[protocol.name]:
        faults.append(f"{len(registered):,} subjects, expected {_KNOWN_SUBJECTS[protocol.name]:,}")
    if faults:
        raise InputError(
            f"{protocol.folder}: {'; '.join(faults)}. A file may be cut short or of another release. A data "
            f"set of your own needs another name than {protocol.name}."
        )

"""TAR@FAR by subgroups of pairs: number of faces, number of media, fraction of impostor faces of the probe.

Each subgroup has its own non-mated pairs and so its own threshold. Impostor faces are only known for
benchmarks that `convert.py --build_set_benchmark` made.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.verification import TarAtFar, rate_key, tar_at_far
from evaluation.protocols.ijb_layout import SetProtocol
from evaluation.protocols.text_tables import read_table
from evaluation.reporting.report import Result, markdown_table, percent
from runtime.errors import InputError

FARS = (1e-2, 1e-3)
# Keys of result.json, whose names are kept: foreign faces are impostor faces.
FACES, MEDIA, IMPOSTORS = "faces of the probe", "media of the probe", "share of foreign faces"
# Names of the subgroups and the lower bound of each. The titles and names are keys of result.json.
_SIZES = {"1": 1, "2-4": 2, "5-16": 5, "17 or more": 17}
_MEDIA = {"1": 1, "2": 2, "3-4": 3, "5 or more": 5}
_SHARES = {"none": 0.0, "up to 0.25": 1e-9, "0.25 to 0.5": 0.25, "0.5 or more": 0.5}

Codes = NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Subgrouping:
    """A partition of the pairs: `names` of the subgroups, `codes` (n,) int8 the subgroup of each pair."""

    title: str
    names: tuple[str, ...]
    codes: Codes


@dataclass(frozen=True)
class SubgroupFigures:
    """One subgroup; `rates` by `rate_key`, without FARs below one in its number of non-mated pairs."""

    title: str
    name: str
    pairs: int
    mated: int
    rates: dict[str, TarAtFar]


def find_subgroups(protocol: SetProtocol) -> list[Subgrouping]:
    """The partitions of a protocol's pairs that have two subgroups or more.

    The probe of a pair is the template that is in no gallery; if both or neither are, the second.

    Raises:
        InputError: notes on the faces that do not match the other files.
    """
    M = len(protocol.template_ids)
    sizes = np.bincount(protocol.template_of_face, minlength=M)
    media = np.unique(np.stack([protocol.template_of_face, protocol.media]), axis=1)
    values: dict[str, tuple[NDArray[Any], Mapping[str, float]]] = {
        FACES: (sizes, _SIZES),
        MEDIA: (np.bincount(media[0], minlength=M), _MEDIA),
    }
    if (impostor := read_impostor_faces(protocol)) is not None:
        sums = np.bincount(protocol.template_of_face, weights=impostor, minlength=M)
        values[IMPOSTORS] = (sums / np.maximum(sizes, 1), _SHARES)
    probes = _probe_of_pairs(protocol)
    found = []
    for title, (value, bounds) in values.items():
        # The value of a bound belongs to the stratum that begins there.
        of_template = np.searchsorted(np.array(list(bounds.values())), value, side="right") - 1
        codes = of_template.astype(np.int8)[probes]
        if len(np.unique(codes)) > 1:
            found.append(Subgrouping(title, tuple(bounds), codes))
    return found


def read_impostor_faces(protocol: SetProtocol) -> NDArray[np.bool_] | None:
    """(N,) whether a face is an impostor's; None where the data set has no notes.

    Raises:
        InputError: the notes are damaged, or of other faces.
    """
    path = protocol.meta("face_notes.csv")
    if not path.is_file():
        return None
    table = read_table(path, {"TEMPLATE_ID": np.int64, "MEDIA_ID": np.int64, "FOREIGN": np.int64}, csv=True)
    ids = protocol.template_ids[protocol.template_of_face]
    if len(table) != len(ids) or not (
        np.array_equal(table["TEMPLATE_ID"].to_numpy(), ids)
        and np.array_equal(table["MEDIA_ID"].to_numpy(), protocol.media)
    ):
        raise InputError(
            f"{path}: its {len(table):,} lines do not match the {len(ids):,} faces of face_tid_mid.txt. "
            "Remove the notes to evaluate without them."
        )
    return np.asarray(table["FOREIGN"].to_numpy() == 1, np.bool_)


def _probe_of_pairs(protocol: SetProtocol) -> NDArray[np.int32]:
    in_gallery = np.zeros(len(protocol.template_ids), np.bool_)
    for gallery in protocol.galleries:
        in_gallery[gallery.templates] = True
    first, second = protocol.pairs.first, protocol.pairs.second
    return np.where(in_gallery[second] & ~in_gallery[first], first, second)


def subgroup_figures(
    groupings: Sequence[Subgrouping], scores: NDArray[np.floating[Any]], is_mated: NDArray[np.bool_]
) -> list[SubgroupFigures]:
    """TAR at each of `FARS` of every subgroup that has mated and non-mated pairs.

    Args:
        groupings: from `find_subgroups`.
        scores: (n,) of the pairs.
        is_mated: (n,).
    """
    places = [(each, code) for each in groupings for code in range(len(each.names))]
    # NumPy releases Python's lock: at IJB-C's size a second per core.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda place: _figures(place[0], place[1], scores, is_mated), places))
    return [figures for figures in found if figures is not None]


def _figures(
    grouping: Subgrouping, code: int, scores: NDArray[np.floating[Any]], is_mated: NDArray[np.bool_]
) -> SubgroupFigures | None:
    own = np.flatnonzero(grouping.codes == code)
    mated = is_mated[own]
    nonmated = int(np.count_nonzero(~mated))
    if not mated.any() or not nonmated:
        return None
    rates = tar_at_far(scores[own], mated, [far for far in FARS if nonmated * far >= 1])
    return SubgroupFigures(grouping.title, grouping.names[code], len(own), len(own) - nonmated, rates)


def subgroup_section(figures: Sequence[SubgroupFigures]) -> Result:
    """The 'strata' of a result.json: by title and name."""
    section: Result = {}
    for each in figures:
        rates = {
            key: {"strict": rate.strict, "threshold": rate.threshold, "nonmated_above": rate.nonmated_above}
            for key, rate in each.rates.items()
        }
        entry = {"pairs": each.pairs, "mated": each.mated, "tar_at_far": rates}
        section.setdefault(each.title, {})[each.name] = entry
    return section


def subgroup_table(results: Mapping[str, Result]) -> str | None:
    """Strict TAR by subgroup of results by name, per cent; None where they have no subgroups."""
    first: Result = next(iter(results.values())).get("strata", {})
    if not first:
        return None
    keys = [rate_key(far) for far in FARS]
    rows = []
    for title, groups in first.items():
        for number, (name, counts) in enumerate(groups.items()):
            rates = [result["strata"][title][name]["tar_at_far"] for result in results.values()]
            cells = [" / ".join(percent(r.get(key, {}).get("strict")) for key in keys) for r in rates]
            pairs = [f"{counts['pairs']:,}", f"{counts['mated']:,}"]
            rows.append([title if number == 0 else "", name, *pairs, *cells])
    return markdown_table([f"TAR@FAR {' / '.join(keys)}, %", "", "pairs", "mated", *results], rows)

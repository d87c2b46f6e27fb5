"""TAR@FAR by what a template is like: its number of faces, of media, and the share of faces of somebody else.

A figure in total hides where a method is good. Each stratum has its own non-mated pairs, so its threshold is
its own. Whose the foreign faces are is known of benchmarks that `convert.py --build_set_benchmark` made.
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
FACES, MEDIA, FOREIGN = "faces of the probe", "media of the probe", "share of foreign faces"
# Names of the strata and the least that each begins at.
_SIZES = {"1": 1, "2-4": 2, "5-16": 5, "17 or more": 17}
_MEDIA = {"1": 1, "2": 2, "3-4": 3, "5 or more": 5}
_SHARES = {"none": 0.0, "up to 0.25": 1e-9, "0.25 to 0.5": 0.25, "0.5 or more": 0.5}

Codes = NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Strata:
    """One way to part the pairs: `names` of the strata; `codes` (n,) int8, each pair's place among them."""

    title: str
    names: tuple[str, ...]
    codes: Codes


@dataclass(frozen=True)
class StratumFigures:
    """One stratum; `rates` by `rate_key`, without those that its non-mated pairs are too few for."""

    title: str
    name: str
    pairs: int
    mated: int
    rates: dict[str, TarAtFar]


def find_strata(protocol: SetProtocol) -> list[Strata]:
    """The ways in which the pairs of a protocol can be parted into two strata or more.

    The probe of a pair is the template that is in no gallery; where both are or none is, the second.

    Raises:
        InputError: notes on the faces that do not belong to the other files.
    """
    M = len(protocol.template_ids)
    sizes = np.bincount(protocol.template_of_face, minlength=M)
    media = np.unique(np.stack([protocol.template_of_face, protocol.media]), axis=1)
    values: dict[str, tuple[NDArray[Any], Mapping[str, float]]] = {
        FACES: (sizes, _SIZES),
        MEDIA: (np.bincount(media[0], minlength=M), _MEDIA),
    }
    if (foreign := read_foreign(protocol)) is not None:
        sums = np.bincount(protocol.template_of_face, weights=foreign, minlength=M)
        values[FOREIGN] = (sums / np.maximum(sizes, 1), _SHARES)
    probes = _probe_of_pairs(protocol)
    found = []
    for title, (value, bounds) in values.items():
        # The value of a bound belongs to the stratum that begins there.
        of_template = np.searchsorted(np.array(list(bounds.values())), value, side="right") - 1
        codes = of_template.astype(np.int8)[probes]
        if len(np.unique(codes)) > 1:
            found.append(Strata(title, tuple(bounds), codes))
    return found


def read_foreign(protocol: SetProtocol) -> NDArray[np.bool_] | None:
    """(N,) whether a face is somebody else's; None where the data set has no notes.

    Raises:
        InputError: the notes are broken, or of other faces.
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
            f"{path}: its {len(table):,} lines are of other faces than the {len(ids):,} of "
            "face_tid_mid.txt. Do the files belong together? Remove the notes to evaluate without them."
        )
    return np.asarray(table["FOREIGN"].to_numpy() == 1, np.bool_)


def _probe_of_pairs(protocol: SetProtocol) -> NDArray[np.int32]:
    in_gallery = np.zeros(len(protocol.template_ids), np.bool_)
    for gallery in protocol.galleries:
        in_gallery[gallery.templates] = True
    first, second = protocol.pairs.first, protocol.pairs.second
    return np.where(in_gallery[second] & ~in_gallery[first], first, second)


def figures_of_strata(
    strata: Sequence[Strata], scores: NDArray[np.floating[Any]], is_mated: NDArray[np.bool_]
) -> list[StratumFigures]:
    """TAR at each of `FARS` of every stratum that has mated and non-mated pairs.

    Args:
        strata: from `find_strata`.
        scores: (n,) of the pairs.
        is_mated: (n,).
    """
    places = [(each, code) for each in strata for code in range(len(each.names))]
    # NumPy works outside of Python's lock: at IJB-C's size a second a core.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda place: _stratum(place[0], place[1], scores, is_mated), places))
    return [figures for figures in found if figures is not None]


def _stratum(
    strata: Strata, code: int, scores: NDArray[np.floating[Any]], is_mated: NDArray[np.bool_]
) -> StratumFigures | None:
    own = np.flatnonzero(strata.codes == code)
    mated = is_mated[own]
    nonmated = int(np.count_nonzero(~mated))
    if not mated.any() or not nonmated:
        return None
    # With fewer pairs than one in 1/FAR no score decides.
    rates = tar_at_far(scores[own], mated, [far for far in FARS if nonmated * far >= 1])
    return StratumFigures(strata.title, strata.names[code], len(own), len(own) - nonmated, rates)


def strata_section(figures: Sequence[StratumFigures]) -> Result:
    """The 'strata' of a result.json: by title and name."""
    section: Result = {}
    for each in figures:
        section.setdefault(each.title, {})[each.name] = {
            "pairs": each.pairs,
            "mated": each.mated,
            "tar_at_far": {
                key: {
                    "strict": rate.strict,
                    "threshold": rate.threshold,
                    "nonmated_above": rate.nonmated_above,
                }
                for key, rate in each.rates.items()
            },
        }
    return section


def strata_table(results: Mapping[str, Result]) -> str | None:
    """Strict TAR by stratum of results by name, per cent; None where they have no strata."""
    first: Result = next(iter(results.values())).get("strata", {})
    if not first:
        return None
    keys = [rate_key(far) for far in FARS]
    rows = []
    for title, strata in first.items():
        for number, (name, counts) in enumerate(strata.items()):
            cells = [
                " / ".join(_cell(result["strata"][title][name]["tar_at_far"].get(key)) for key in keys)
                for result in results.values()
            ]
            pairs = [f"{counts['pairs']:,}", f"{counts['mated']:,}"]
            rows.append([title if number == 0 else "", name, *pairs, *cells])
    return markdown_table([f"TAR@FAR {' / '.join(keys)}, %", "", "pairs", "mated", *results], rows)


def _cell(rate: Mapping[str, Any] | None) -> str:
    return "-" if rate is None else percent(rate["strict"])

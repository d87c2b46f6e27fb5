"""Ten-fold verification accuracy on pair sets: LFW, CFP-FP, CPLFW, CALFW, AgeDB-30, or the user's own."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.metrics.verification import few_scores_warnings
from evaluation.reporting.published import Reference
from runtime.errors import Faults, InputError
from validation.frame import Report, Run, Validation, heading, result_of_run

if TYPE_CHECKING:
    from evaluation.protocols.pair_sets import FacePairs, PairFigures

HOW_TO_GET = (
    "The five sets are part of the training packs of InsightFace's data zoo, such as MS1MV2 (faces_emore): "
    "https://github.com/deepinsight/insightface/tree/master/recognition/_datasets_"
)


class PairSets(Validation["dict[str, FacePairs]", "dict[str, PairFigures]"]):
    """The command validation_hq/validate_pairs.py."""

    name = out = "pair_sets"
    flip = "pre_norm_vector_add"

    def add_data(self, group: argparse._ActionsContainer) -> None:
        group.add_argument("--data_root", type=Path, metavar="FOLDER", help="holds pair sets (lfw.bin, ...)")
        group.add_argument("--sets", nargs="+", metavar="NAME", help="only these of them (default: all)")
        group.add_argument(
            "--pairs",
            nargs=2,
            type=Path,
            metavar=("FOLDER", "LIST"),
            help="aligned faces and a list of pairs",
        )

    def read(self, args: argparse.Namespace) -> dict[str, FacePairs]:
        return find_pairs(args.data_root, args.sets, args.pairs)

    def evaluate(self, run: Run, data: dict[str, FacePairs]) -> dict[str, PairFigures] | None:
        from evaluation.protocols.pair_sets import FIVE_SETS, pair_figures

        figures = {}
        for name, pairs in data.items():
            store = run.embed(pairs.faces, name=FIVE_SETS.get(name, name))
            if store is not None:
                with run.seconds.of("score"):
                    figures[name] = pair_figures(store.features, pairs)
        return figures or None

    def report(
        self,
        run: Run,
        data: dict[str, FacePairs],
        figures: dict[str, PairFigures],
        reference: Reference | None,
    ) -> Report:
        from evaluation.protocols.pair_sets import (
            FIVE_SETS,
            accuracy_table,
            details_table,
            mean_accuracy,
            size_notes,
        )

        counts = {
            "images": sum(len(each.faces) for each in data.values()),
            "pairs": sum(map(len, data.values())),
            "genuine": sum(int(each.is_mated.sum()) for each in data.values()),
        }
        result = result_of_run(run, self.name, {"distance": "squared Euclidean"}, "none", counts)
        result["pair_sets"] = {
            name: {
                "pairs": len(data[name]),
                "mated": int(data[name].is_mated.sum()),
                "images": len(data[name].faces),
                **each.to_result(),
            }
            for name, each in figures.items()
        }
        result["figures"] = {f"{name} accuracy": each.accuracy.accuracy for name, each in figures.items()}
        # 'mean accuracy' without names is the published mean of the five sets.
        is_five = list(figures) == list(FIVE_SETS)
        mean = "mean accuracy" if is_five else f"mean accuracy of {', '.join(figures)}"
        result["figures"][mean] = mean_accuracy(figures)
        model = run.loaded
        rows: dict[str, Mapping[str, float]] = {
            model.name: {name: each.accuracy.accuracy for name, each in figures.items()}
        }
        if reference is not None:
            known = {name: reference.figures.get(f"{name} accuracy") for name in figures}
            known["mean"] = reference.figures.get("mean accuracy")
            rows[reference.name] = {name: value for name, value in known.items() if value is not None}
        head = (
            f"{heading(result, f'{model.name}, {model.backbone.spec.name}')}\n\nTen-fold accuracy, per cent:"
        )
        notes = [
            f"{name}: {text}"
            for name, each in figures.items()
            for text in few_scores_warnings(each.tar_at_far)
        ]
        notes += size_notes(data)
        absent = [f"{name}.bin" for name in FIVE_SETS if name not in figures]
        if absent and len(absent) < len(FIVE_SETS):
            notes.append(f"Of the five published sets, {', '.join(absent)} are missing. {HOW_TO_GET}")
        return Report(result, [head, accuracy_table(rows), details_table(figures, data)], notes)


def find_pairs(
    data_root: Path | None, names: Sequence[str] | None, pairs: Sequence[Path] | None
) -> dict[str, FacePairs]:
    """The pair sets of the flags by name: the five in the order of tables, then others.

    Raises:
        InputError: no set, one that was asked for is missing, or one that cannot be read.
    """
    from evaluation.protocols.pair_sets import FIVE_SETS, read_pair_list

    if data_root is not None and pairs is None:
        return _sets_of_folder(data_root, names)
    if pairs is None or data_root is not None:
        files = ", ".join(f"{name}.bin" for name in FIVE_SETS)
        raise InputError(
            f"expected either --data_root, a folder of pair sets ({files}), or --pairs FOLDER LIST. "
            f"{HOW_TO_GET}"
        )
    if names:
        raise InputError("--sets selects pair sets of --data_root. Remove it, or remove --pairs.")
    listed = read_pair_list(*pairs)
    return {listed.name: listed}


def _sets_of_folder(data_root: Path, names: Sequence[str] | None) -> dict[str, FacePairs]:
    from data.sources.pair_files import find_pair_sets, read_pair_set
    from evaluation.protocols.pair_sets import FIVE_SETS, pairs_of_bin

    if not data_root.is_dir():
        raise InputError(f"--data_root {data_root}: no such folder. {HOW_TO_GET}")
    on_disk = {path.stem: path for path in find_pair_sets(data_root)}
    present = [name for name in FIVE_SETS if name in on_disk]
    wanted = list(dict.fromkeys(names or [*present, *(name for name in on_disk if name not in FIVE_SETS)]))
    missing = [f"{name}.bin" for name in wanted or FIVE_SETS if name not in on_disk]
    if missing:
        present_files = ", ".join(path.name for path in on_disk.values()) or "no .bin file"
        raise InputError(f"{data_root}: looked for {', '.join(missing)}; found {present_files}. {HOW_TO_GET}")
    faults = Faults()
    read = {name: faults.of(partial(read_pair_set, on_disk[name])) for name in wanted}
    found = {
        name: faults.of(partial(pairs_of_bin, pairs)) for name, pairs in read.items() if pairs is not None
    }
    faults.raise_if_any()
    return {name: pairs for name, pairs in found.items() if pairs is not None}


PROTOCOL = PairSets()

"""Closed- and open-set identification in surveillance video on IJB-S, five protocols."""

from __future__ import annotations

import argparse
from pathlib import Path

from evaluation.protocols.ijb_s import (
    FPIRS,
    HOW_TO_GET,
    LAYOUT,
    PROTOCOLS,
    PUBLISHED_PROTOCOLS,
    IjbS,
    IjbSFigures,
    evaluate_ijb_s,
    ijb_s_table,
    read_ijb_s,
    sections,
    table_row,
)
from evaluation.reporting.published import Reference, compare, find_reference
from evaluation.reporting.report import Result
from runtime.errors import Faults, InputError
from validation.frame import Report, Run, Validation, heading, result_of_run

# Aggregator -> protocol -> figures.
Figures = dict[str, dict[str, IjbSFigures]]
References = dict[str, Reference]


class IjbSIdentification(Validation[IjbS, Figures]):
    """The command validation_lq/validate_IJB_S.py."""

    name = out = "IJB-S"
    # The published evaluation of IJB-S uses no flips, and weighs faces by their feature norms.
    flip = "none"
    default_aggregator = "norm_weighted"

    def add_data(self, group: argparse._ActionsContainer) -> None:
        group.add_argument("--data_root", type=Path, metavar="FOLDER", help="folder of the subjects' folders")
        group.add_argument(
            "--protocol_root", type=Path, metavar="FOLDER", help="csv files (default: DATA_ROOT/protocols)"
        )
        group.add_argument(
            "--protocol",
            nargs="+",
            choices=PROTOCOLS,
            default=list(PUBLISHED_PROTOCOLS),
            help="one or more; the default are the three of the published tables",
        )

    def read(self, args: argparse.Namespace) -> IjbS:
        if args.data_root is None:
            raise InputError(f"--data_root is missing: the folder of IJB-S. {LAYOUT} {HOW_TO_GET}")
        return read_ijb_s(args.data_root, args.protocol_root or args.data_root / "protocols", args.protocol)

    def find_reference(self, args: argparse.Namespace) -> References:
        """An earlier result as a whole, or published figures by protocol.

        Raises:
            InputError: no such file or row, or a row with figures of none of the protocols.
        """
        if Path(args.compare).exists():
            return {self.name: find_reference(args.compare, self.name)}
        found, faults = {}, Faults()
        for protocol in args.protocol:
            reference = faults.of(lambda protocol=protocol: find_reference(args.compare, protocol))  # type: ignore[misc]
            if reference is not None:
                found[protocol] = reference
        if not found:
            faults.raise_if_any()
        return found

    def evaluate(self, run: Run, data: IjbS) -> Figures | None:
        store = run.embed(data.faces, name=self.name)
        if store is None:
            return None
        with run.seconds.of("aggregate and identify"):
            return evaluate_ijb_s(
                *(data, store.features, store.norms, run.aggregators, run.loaded.device),
                auxiliary_size=run.loaded.auxiliary_size,
            )

    def report(self, run: Run, data: IjbS, figures: Figures, reference: References | None) -> Report:
        first = next(iter(figures))
        rules = {
            "sets": "per subject and video",
            "closed set": "both galleries joined",
            "open set": "mean of both",
        }
        counts = {"images": len(data.faces), "templates": len(data.subjects)}
        result = result_of_run(run, self.name, rules, first, counts)
        result |= sections(figures[first])
        result["notes"] = list(data.notes)
        if len(figures) > 1:
            result["aggregators"] = {name: sections(each) for name, each in figures.items()}
        rows = {name: table_row(each) for name, each in figures.items()}
        for name, each in (reference or {}).items():
            wanted = ("rank 1", "rank 5", f"TPIR@FPIR {FPIRS[0]:g}")
            if name in PROTOCOLS:
                known = [each.figures.get(figure, float("nan")) for figure in wanted]
                rows.setdefault(each.name, {})[name] = (known[0], known[1], known[2])
        model = f"{run.loaded.name}, {run.loaded.backbone.spec.name}"
        head = f"{heading(result, model)}\n\nClosed set: galleries joined; open set: mean of both; per cent:"
        return Report(result, [head, ijb_s_table(rows)], data.notes)

    def comparison(self, figures: Figures, result: Result, reference: References) -> list[str]:
        """A whole result, or a section for each protocol of the published row; of the first aggregator."""
        first = next(iter(figures.values()))
        parts = []
        for name, each in reference.items():
            if name == self.name:
                parts.append(compare(result, each))
                continue
            ours = {**result, **first[name].to_result()}
            ours["protocol"] = {**result["protocol"], "name": name}
            parts.append(f"## {PROTOCOLS[name].title}\n\n{compare(ours, each)}")
        return parts


PROTOCOL = IjbSIdentification()

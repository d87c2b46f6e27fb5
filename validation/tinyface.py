"""Closed-set identification on TinyFace among 153,428 distractors: rank 1, 5 and 20."""

from __future__ import annotations

import argparse
from pathlib import Path

from evaluation.protocols.tinyface import (
    ALIGNED_FOLDERS,
    HOW_TO_GET,
    RANKS,
    TinyFace,
    TinyFaceFigures,
    read_tinyface,
    tinyface_figures,
)
from evaluation.reporting.published import Reference
from evaluation.reporting.report import markdown_table, percent
from runtime.errors import InputError
from validation.frame import Report, Run, Validation, heading, result_of_run


class TinyFaceIdentification(Validation[TinyFace, TinyFaceFigures]):
    """The command validation_lq/validate_tinyface.py."""

    name = out = "TinyFace"
    flip = "pre_norm_vector_add"

    def add_data(self, group: argparse._ActionsContainer) -> None:
        group.add_argument(
            "--data_root", type=Path, metavar="FOLDER", help="folder with tinyface/Testing_Set"
        )
        group.add_argument(
            "--images",
            type=Path,
            metavar="FOLDER",
            help=f"aligned faces (default: {', '.join(ALIGNED_FOLDERS)} in the data root, else Testing_Set)",
        )

    def read(self, args: argparse.Namespace) -> TinyFace:
        if args.data_root is None:
            raise InputError(f"--data_root is missing: the folder of TinyFace. {HOW_TO_GET}")
        return read_tinyface(args.data_root, args.images)

    def evaluate(self, run: Run, data: TinyFace) -> TinyFaceFigures | None:
        store = run.embed(data.faces, name=self.name)
        if store is None:
            return None
        with run.seconds.of("identify"):
            return tinyface_figures(store.features, data)

    def report(
        self, run: Run, data: TinyFace, figures: TinyFaceFigures, reference: Reference | None
    ) -> Report:
        result = result_of_run(run, self.name, {"gallery": "with distractors"}, "none", {})
        result |= figures.to_result()
        model = run.loaded
        names = [f"rank {rank}" for rank in RANKS]
        rows = [[model.name, *(percent(result["figures"][name]) for name in names)]]
        if reference is not None:
            known = [reference.figures.get(name) for name in names]
            rows.append([reference.name, *("-" if rate is None else percent(rate) for rate in known)])
        head = (
            f"{heading(result, f'{model.name}, {model.backbone.spec.name}')}\n\n{figures.probes:,} probes "
            f"searched among {figures.gallery:,} gallery images and {figures.distractors:,} distractors of "
            f"{data.faces.root}; per cent:"
        )
        return Report(result, [head, markdown_table(["model", *names], rows)], data.notes)


PROTOCOL = TinyFaceIdentification()

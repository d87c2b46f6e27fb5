"""The flags of validate_ijb.py: what they may be, and all that is wrong with them in one message."""

from __future__ import annotations

import inspect
from argparse import SUPPRESS, ArgumentParser, _ArgumentGroup
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from coreset import AGGREGATORS, requires_training
from coreset.catalogue import DEFAULT_SPLIT_LIMIT, QUALITIES
from evaluation.metrics.score_normalisation import DEFAULT_METHOD, METHODS, METHODS_HELP, NEEDS_COHORT
from evaluation.protocols.ijb import NOT_USED, RULE_VALUES
from evaluation.reporting.published import PAPER_RULES
from features.flips import FLIP_CHOICES, flip_rule
from features.options import FACES_AT_ONCE, PRECISIONS
from net import BACKBONES
from runtime.command import build_parser
from runtime.errors import InputError
from weights import resolve
from weights.overrides import add_override_flags

DEFAULT_AGGREGATOR = "media_mean"
_SWITCHES = {"detector_score": ("off", "on"), "norm": ("off", "on"), "media": ("none", "mean")}
DEFAULTS: dict[str, Any] = {
    "dataset_name": "IJBC",
    "protocol": "facecoresetnet",
    "num_nodes": 1,
    "cpu_processes": 1,
    "num_workers": 4,
    "precision": "32",
    "replicates": 200,
    "published_identification": False,
    "score_normalisation": DEFAULT_METHOD,
}
# Flags that say how images are embedded, hence nothing where features are given.
_EMBEDDING = ("num_nodes", "cpu_processes", "num_workers", "batch_size", "precision", "cache")


def ijb_flags(description: str | None = None) -> ArgumentParser:
    """The command's flags; what is not given is absent from the namespace."""
    parser = build_parser(description)
    parser.argument_default = SUPPRESS
    _what_flags(parser.add_argument_group("what is evaluated"))
    _protocol_flags(parser.add_argument_group("protocol"))
    _embedding_flags(parser.add_argument_group("embedding"))
    return parser


def _what_flags(group: _ArgumentGroup) -> None:
    group.add_argument("--data_root", metavar="DIR", help="folder of the data sets: holds IJBB/, IJBC/, ...")
    group.add_argument(
        "--dataset_name",
        metavar="NAME",
        help="IJBB, IJBC, or any folder of that layout" + _default("dataset_name"),
    )
    group.add_argument(
        "--weights",
        metavar="SOURCE",
        help="backbone, with an aggregator or without: a file, a name of the catalogue, hf://OWNER/REPO",
    )
    group.add_argument("--arch", choices=BACKBONES, help="of the weights, where their file does not say it")
    group.add_argument(
        "--aggregator",
        choices=AGGREGATORS,
        nargs="+",
        help=f"one or more (default: that of the weights, else {DEFAULT_AGGREGATOR})",
    )
    group.add_argument(
        "--aggregator_weights", metavar="SOURCE", nargs="+", help="checkpoints of trained aggregators"
    )
    add_override_flags(group)
    group.add_argument(
        "--quality",
        choices=[name for name in QUALITIES if name != "learned"],
        help="what the poolings weigh faces by (default: norm); a trained aggregator has its own",
    )
    group.add_argument(
        "--features",
        metavar="PATH",
        help="features in place of images: a folder of an earlier run, an npz of InsightFace's, or a "
        "published pickle",
    )
    group.add_argument(
        "--compare", metavar="PUBLISHED", help="a published row (adaface_ir_101_webface4m), or a result.json"
    )
    group.add_argument("--out", metavar="DIR", help="default: experiments/<dataset_name> of the project")
    group.add_argument("--cache", metavar="DIR", help="where features are kept (default: OUT/features)")


def _protocol_flags(group: _ArgumentGroup) -> None:
    group.add_argument("--protocol", choices=PAPER_RULES, help="switches of a paper" + _default("protocol"))
    group.add_argument(
        "--flip",
        choices=FLIP_CHOICES,
        help="how features of the mirror image are joined",
    )
    group.add_argument("--media", choices=_SWITCHES["media"], help="average the faces of each medium first")
    group.add_argument(
        "--detector_score", choices=_SWITCHES["detector_score"], help="multiply norms by the detector's score"
    )
    group.add_argument("--norm", choices=_SWITCHES["norm"], help="faces count by their feature norm")
    group.add_argument(
        "--cohort",
        metavar="FEATURES",
        help="other people, a store of main.py --cache_features or an npz: scores are normalised with them",
    )
    group.add_argument(
        "--score_normalisation",
        choices=METHODS,
        help=f"how, with --cohort; {METHODS_HELP}" + _default("score_normalisation"),
    )
    group.add_argument(
        "--two_identity_split",
        nargs="?",
        const=DEFAULT_SPLIT_LIMIT,
        type=float,
        metavar="COSINE",
        help="templates that fall into two parts whose descriptors have a cosine below this one "
        f"({DEFAULT_SPLIT_LIMIT:g}) keep both, and the best score counts",
    )
    group.add_argument(
        "--evaluated_subjects",
        metavar="FILE",
        help="names of the benchmark's people, one a line: aggregators trained with one of them are refused, "
        "and the cohort is without them (default: the benchmark's own list, where it has one)",
    )
    group.add_argument(
        "--replicates",
        type=int,
        metavar="N",
        help="draws of subjects for intervals, 0: none" + _default("replicates"),
    )
    group.add_argument(
        "--published_identification",
        action="store_true",
        help="also the published 1:N helper's rates, which are not FPIR",
    )


def _embedding_flags(group: _ArgumentGroup) -> None:
    group.add_argument("--gpus", type=int, help="GPUs of a node (default: one if there is one, else the CPU)")
    group.add_argument("--num_nodes", type=int, help="machines; all see --out" + _default("num_nodes"))
    group.add_argument("--cpu_processes", type=int, help="without GPUs" + _default("cpu_processes"))
    group.add_argument(
        "--num_workers", type=int, help="decode and align, for each process" + _default("num_workers")
    )
    group.add_argument(
        "--batch_size",
        type=int,
        help=f"images at once (default: {FACES_AT_ONCE['cuda']} on a GPU, {FACES_AT_ONCE['cpu']} on a CPU)",
    )
    group.add_argument("--precision", choices=PRECISIONS, help="of the backbone" + _default("precision"))


def _default(name: str) -> str:
    return f" (default: {DEFAULTS[name]})"


def check_flags(given: Mapping[str, Any]) -> None:
    """All faults of the command line in one message."""
    faults = []
    if "data_root" not in given:
        faults.append(
            "--data_root is missing: the folder that holds IJBB/ and IJBC/, with loose_crop/ and meta/ in "
            "each. IJB is had from NIST; crops and lists in this layout are InsightFace's."
        )
    if "features" in given:
        faults += [
            f"--{name} has no effect with --features. Leave it out." for name in _EMBEDDING if name in given
        ]
    elif "weights" not in given:
        faults.append(
            "--weights is missing: the weights of a backbone, such as AdaFace's published ones; or "
            "--features of an earlier run."
        )
    if "arch" in given and "weights" not in given:
        faults.append("--arch has no effect without --weights. Leave it out.")
    faults += [
        f"--{name} {given[name]}: there is no such file."
        for name in ("features", "cohort", "evaluated_subjects")
        if name in given and not Path(given[name]).exists()
    ]
    for name in ("weights", "aggregator_weights"):
        sources = [given[name]] if name in given and name == "weights" else given.get(name, [])
        faults += [fault for source in sources if (fault := _source_fault(name, source))]
    for name, least in (("coreset_size", 1), ("num_nodes", 1), ("cpu_processes", 1), ("batch_size", 1)):
        if given.get(name, least) < least:
            faults.append(f"--{name} {given[name]}: expected {least} or more.")
    for name in ("num_workers", "replicates", "gpus"):
        if given.get(name, 0) < 0:
            faults.append(f"--{name} {given[name]}: expected 0 or more.")
    if "score_normalisation" in given and "cohort" not in given:
        faults.append(NEEDS_COHORT)
    if not -1 <= given.get("two_identity_split", 0) <= 1:
        faults.append(f"--two_identity_split {given['two_identity_split']}: expected a cosine, -1 to 1.")
    if "two_identity_split" in given and "published_identification" in given:
        faults.append(
            "--two_identity_split has no effect on --published_identification. Leave out one of them."
        )
    faults += _device_faults(given)
    names = given.get("aggregator", [])
    faults += [f"--aggregator {name} stands there twice." for name in {*names} if names.count(name) > 1]
    poolings = _poolings(names) if names else [DEFAULT_AGGREGATOR]
    if "quality" in given and not any("quality" in options_of(name) for name in poolings):
        faults.append("--quality has no effect: it is of poolings that weigh faces. Leave it out.")
    faults += [
        f"--{option} has no effect: none of {', '.join(names)} has it. Remove it."
        for option in ("coreset_size", "gamma")
        if names and option in given and not any(option in options_of(name) for name in names)
    ]
    if faults:
        raise InputError.from_faults(faults)


def _source_fault(flag: str, source: str) -> str | None:
    try:
        there = resolve(source).is_file()
    except InputError as fault:
        return f"--{flag} {fault}"
    return None if there else f"--{flag} {source}: there is no such file."


def _device_faults(given: Mapping[str, Any]) -> list[str]:
    there, faults = torch.cuda.device_count(), []
    if given.get("gpus", 0) > there:
        faults.append(f"--gpus {given['gpus']}: this machine shows {there} GPUs to PyTorch.")
    if chosen_gpus(given) and given.get("cpu_processes", 1) > 1:
        faults.append("--cpu_processes is for embedding without GPUs. Leave it out, or pass --gpus 0.")
    if not chosen_gpus(given) and given.get("precision") == "16-mixed":
        faults.append("--precision 16-mixed needs a GPU; bf16-mixed is the half precision of a CPU.")
    return faults


def chosen_gpus(values: Mapping[str, Any]) -> int:
    """GPUs of a node; 0 is the CPU."""
    gpus: int = values.get("gpus", min(1, torch.cuda.device_count()))
    return gpus


def changed_rules(given: Mapping[str, Any]) -> dict[str, str]:
    """Single switches, as the rules name them."""
    words = {"none": NOT_USED, "off": NOT_USED, "on": "multiplied"}
    changed = {name: words.get(given[name], given[name]) for name in RULE_VALUES if name in given}
    return changed | ({"flip": flip_rule(given["flip"])} if "flip" in given else {})


def options_of(name: str) -> Mapping[str, inspect.Parameter]:
    """Options of an aggregator."""
    return inspect.signature(AGGREGATORS[name]).parameters


def _poolings(names: list[str]) -> list[str]:
    return [name for name in names if not requires_training(name)]

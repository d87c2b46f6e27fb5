"""The frame of the validation commands: flags, backbone and aggregators, features, report.

`Validation.validate` runs a command; each protocol is a subclass in a module of its own.
"""

from __future__ import annotations

import argparse
import inspect
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

# Commands start fast: what imports torch or OpenCV is imported by the functions that need it.
from backbones.catalogue import BACKBONES
from coreset.catalogue import AGGREGATOR_NAMES, MAIN_AGGREGATORS, requires_training
from evaluation.reporting.published import Reference, compare, find_reference
from evaluation.reporting.report import SCHEMA, Result, Seconds, protocol_text, versions, write_result
from features.flips import FLIP_CHOICES, flip_rule, warn_of_doubled_norms
from features.options import FACES_AT_ONCE, PRECISIONS, EmbedOptions
from runtime.command import build_parser, run_command
from runtime.errors import Faults, InputError
from runtime.files import atomic_write
from runtime.machine import peak_resident_mib
from runtime.output_checks import require_output_folder
from weights.overrides import Overrides, add_override_flags
from weights.sources import resolve, source_name, weights_sha256

if TYPE_CHECKING:
    from torch import nn

    from evaluation.protocols.face_files import ListedFaces
    from features.store import FeatureStore
    from net import Backbone

# Written to the project's folder, whatever folder a command is called from.
EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
_Data = TypeVar("_Data")
_Figures = TypeVar("_Figures")


# --------------------------------------------------------------------------------------------- flags


def add_weights(group: argparse._ActionsContainer) -> None:
    """Add --weights and --arch."""
    group.add_argument(
        "--weights",
        metavar="SOURCE",
        help="backbone, with an aggregator or without: a file (.ckpt, .pt, .safetensors, .onnx), a name of "
        "the catalogue, hf://OWNER/REPO",
    )
    group.add_argument(
        "--arch",
        choices=BACKBONES,
        metavar="NAME",
        help="architecture of the weights, if their file does not say it",
    )


def add_flip(group: argparse._ActionsContainer, default: str) -> None:
    """Add --flip; `default`: the value of the published code, `argparse.SUPPRESS` where there is none."""
    group.add_argument(
        "--flip",
        choices=FLIP_CHOICES,
        default=default,
        help="fusion with the features of the horizontal flip",
    )


def add_embedding(parser: argparse.ArgumentParser) -> None:
    """Add the flags of embedding."""
    group = parser.add_argument_group("embedding")
    group.add_argument("--gpus", type=int, help="GPUs of a node (default: one if there is one, else the CPU)")
    group.add_argument(
        "--num_nodes",
        type=int,
        default=1,
        help="machines, which all see the cache; started by torchrun or SLURM",
    )
    group.add_argument("--cpu_processes", type=int, default=1, help="processes without GPUs")
    group.add_argument(
        "--num_workers", type=int, default=4, help="workers that decode images, for each process"
    )
    group.add_argument(
        "--batch_size",
        type=int,
        help=f"images (default: {FACES_AT_ONCE['cuda']} on a GPU, {FACES_AT_ONCE['cpu']} on a CPU)",
    )
    group.add_argument("--precision", choices=PRECISIONS, default="32", help="precision of the backbone")


def add_sets(group: argparse._ActionsContainer, default: str) -> None:
    """Add the flags of aggregators; `default`: the one of weights without an aggregator."""
    group.add_argument(
        "--aggregator",
        choices=AGGREGATOR_NAMES,
        nargs="+",
        metavar="NAME",
        help=f"one or more, in one table: {', '.join(MAIN_AGGREGATORS)} or a baseline of main.py "
        f"--list_aggregators (default: that of the weights, else {default})",
    )
    group.add_argument(
        "--aggregator_weights", metavar="SOURCE", nargs="+", help="checkpoints of trained aggregators"
    )
    add_override_flags(group)


def add_output(parser: argparse.ArgumentParser, out: str) -> None:
    """Add --out, --cache and --compare; `out`: name of the default output folder in experiments."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out", type=Path, metavar="DIR", help=f"folder of the results (default: experiments/{out})"
    )
    group.add_argument("--cache", type=Path, metavar="DIR", help="folder of features (default: OUT/features)")
    group.add_argument(
        "--compare", metavar="PUBLISHED", help="a published row (adaface_ir_101_webface4m), or a result.json"
    )


def chosen_gpus(gpus: int | None) -> int:
    """GPUs of a node by --gpus; 0 is the CPU."""
    import torch

    return min(1, torch.cuda.device_count()) if gpus is None else gpus


def embedding_faults(args: argparse.Namespace) -> list[str]:
    """What is wrong with the flags of embedding."""
    import torch

    available, gpus, faults = torch.cuda.device_count(), chosen_gpus(args.gpus), []
    if gpus > available:
        faults.append(f"--gpus {gpus}: PyTorch finds {available} GPUs on this machine.")
    if gpus and args.cpu_processes > 1:
        faults.append("--cpu_processes is for embedding without GPUs. Remove it, or pass --gpus 0.")
    if not gpus and args.precision == "16-mixed":
        faults.append("--precision 16-mixed needs a GPU. On a CPU use bf16-mixed.")
    return faults + range_faults(
        args, {"gpus": 0, "num_nodes": 1, "cpu_processes": 1, "num_workers": 0, "batch_size": 1}
    )


def source_faults(args: argparse.Namespace) -> list[str]:
    """A sentence for each file of weights that does not exist."""
    faults = []
    sources = [("weights", args.weights), *(("aggregator_weights", s) for s in args.aggregator_weights or [])]
    for flag, source in sources:
        if source is not None:
            try:
                reason = "" if resolve(source).is_file() else f"{source}: no such file."
            except InputError as fault:
                reason = str(fault)
            faults += [f"--{flag} {reason}"] if reason else []
    return faults


def aggregator_faults(args: argparse.Namespace) -> list[str]:
    """What is wrong with --aggregator and its options."""
    names = args.aggregator or []
    faults = [f"--aggregator {name} is given twice." for name in {*names} if names.count(name) > 1]
    return faults + [
        f"--{option} has no effect: none of {', '.join(names)} has this option. Remove it."
        for option in Overrides.of(vars(args)).given()
        if names and not any(option in options_of(name) for name in names)
    ]


def range_faults(args: argparse.Namespace, least: Mapping[str, int]) -> list[str]:
    """A sentence for each flag below its least value."""
    values = vars(args)
    return [
        f"--{name} {values[name]}: expected {low} or more."
        for name, low in least.items()
        if values.get(name) is not None and values[name] < low
    ]


# ------------------------------------------------------------------------------- backbone, aggregators


@dataclass(frozen=True, eq=False)
class Model:
    """A backbone and how it embeds; `weights`: its source."""

    backbone: Backbone
    weights: str
    options: EmbedOptions

    @property
    def embedding_size(self) -> int:
        """Values of a row, flips fused."""
        from features.flips import fused_size

        return fused_size(self.backbone.spec.embedding_size, self.options.flip)

    @property
    def auxiliary_size(self) -> int:
        """Number of auxiliary features at the end of each row; 0 where flips are concatenated."""
        from features.flips import auxiliary_size_of

        return auxiliary_size_of(self.backbone.spec.auxiliary_size, self.options.flip)

    @property
    def name(self) -> str:
        """Of the weights, for tables."""
        return source_name(self.weights)

    @property
    def device(self) -> str:
        """Where aggregators run."""
        return "cuda" if self.options.gpu else "cpu"

    def about(self) -> dict[str, str]:
        """What a feature store records of the weights."""
        return {"weights": self.name, "weights_sha256": weights_sha256(self.weights)}


@dataclass(frozen=True, eq=False)
class TrainedAggregator:
    """An aggregator of a file and its name in the registry."""

    module: nn.Module
    name: str
    source: str


def embed_options(args: argparse.Namespace, flip: str) -> EmbedOptions:
    """How the flags of embedding embed; `flip`: the rule."""
    gpus = chosen_gpus(args.gpus)
    return EmbedOptions(
        flip=flip,
        precision=args.precision,
        batch_size=args.batch_size or FACES_AT_ONCE["cuda" if gpus else "cpu"],
        num_workers=args.num_workers,
        gpu=gpus > 0,
        devices=gpus or args.cpu_processes,
        num_nodes=args.num_nodes,
    )


def open_model(args: argparse.Namespace, flip: str) -> Model:
    """The model of the flags, prepared as its aggregators need it.

    Raises:
        InputError: --weights is missing or cannot be used, or does not fit --aggregator_weights.
    """
    from weights import load_backbone, prepare_for

    if args.weights is None:
        raise InputError("--weights is missing: the weights of a backbone, such as AdaFace's published ones.")
    backbone = load_backbone(args.weights, args.arch)
    prepare_for(backbone, args.aggregator_weights or [])
    return Model(backbone, args.weights, embed_options(args, flip))


def trained_aggregators(args: argparse.Namespace) -> dict[str, TrainedAggregator]:
    """The aggregators in the files, by name: those of --aggregator_weights, then that of --weights.

    Raises:
        InputError: a file has none, or two have one of the same name.
    """
    from weights import load_stored_aggregator

    overrides = Overrides.of(vars(args))
    found: dict[str, TrainedAggregator] = {}
    for source in args.aggregator_weights or []:
        stored = load_stored_aggregator(source, overrides)
        if stored is None:
            raise InputError(f"--aggregator_weights {source}: contains no aggregator.")
        if (name := stored.name) in found:
            raise InputError(
                f"--aggregator_weights: {found[name].source} and {source} both contain a {name} aggregator."
            )
        found[name] = TrainedAggregator(stored.module, name, source)
    needed = args.aggregator is None or any(map(requires_training, args.aggregator))
    own = load_stored_aggregator(args.weights, overrides) if needed and args.weights else None
    if own is not None and own.name not in found:
        found[own.name] = TrainedAggregator(own.module, own.name, args.weights)
    return found


def open_aggregators(
    args: argparse.Namespace, default: str
) -> tuple[dict[str, nn.Module], list[TrainedAggregator]]:
    """The aggregators by name, in the order asked for, and the trained ones among them.

    Raises:
        InputError: files as in `trained_aggregators`, an untrained aggregator that has to be trained, a file
            or an option that no aggregator uses.
    """
    from coreset import AGGREGATORS, build_aggregator

    trained = trained_aggregators(args)
    names = args.aggregator or list(trained) or [default]
    faults = Faults()
    if untrained := [name for name in names if name not in trained and requires_training(name)]:
        faults.sentences.append(
            f"--aggregator {' '.join(untrained)}: has to be trained, and no given file contains one. Pass "
            "--aggregator_weights CHECKPOINT, or choose among "
            f"{', '.join(name for name in AGGREGATORS if not requires_training(name))}."
        )
    faults.sentences += [
        f"--aggregator_weights {entry.source}: contains a {name} aggregator. Add '{name}' to --aggregator."
        for name, entry in trained.items()
        if name not in names and entry.source in (args.aggregator_weights or [])
    ]
    faults.raise_if_any()
    overrides, quality = Overrides.of(vars(args)), getattr(args, "quality", None)
    options = {} if quality is None else {"quality": quality}
    modules = {
        name: trained[name].module
        if name in trained
        else build_aggregator(
            name, overrides.options_of(name) | {o: v for o, v in options.items() if o in options_of(name)}
        )
        for name in names
    }
    overrides.check_effect(modules.values())
    return modules, [trained[name] for name in names if name in trained]


def options_of(aggregator: str) -> Iterable[str]:
    """Names of an aggregator's options."""
    from coreset import AGGREGATORS

    return inspect.signature(AGGREGATORS[aggregator]).parameters


# --------------------------------------------------------------------------------------------- run


@dataclass(frozen=True, eq=False)
class Run:
    """What a validation works with; `model` is None where features are precomputed."""

    args: argparse.Namespace
    model: Model | None
    aggregators: Mapping[str, nn.Module]
    trained: Sequence[TrainedAggregator]
    out: Path
    cache: Path
    seconds: Seconds

    @property
    def loaded(self) -> Model:
        """The model of a validation that embeds."""
        if self.model is None:
            raise RuntimeError("this run has no model: its features are precomputed")
        return self.model

    def embed(self, faces: ListedFaces, *, name: str, alignment: str | None = None) -> FeatureStore | None:
        """Features of images, by default taken as stored; None in all processes but the first."""
        from features.extract import embed_faces
        from photos.alignment import AS_STORED

        with self.seconds.of("embed"):
            return embed_faces(
                self.loaded.backbone,
                faces,
                {"images": faces.digest(), "alignment": alignment or AS_STORED},
                self.cache,
                self.loaded.options,
                stamps=faces.stamps(),
                about=self.loaded.about(),
                name=name,
            )


@dataclass
class Report:
    """The result.json, and the report: `paragraphs` with tables, `notes` on how to read them."""

    result: Result
    paragraphs: list[str]
    notes: Sequence[str] = ()


class Validation(ABC, Generic[_Data, _Figures]):
    """A validation command: flags, files, figures and report of one protocol.

    Attributes:
        name: in tables and result.json.
        out: name of the default output folder in experiments.
        flip: value of --flip in the published code.
        default_aggregator: of weights without one; None where no sets are aggregated.
    """

    name: ClassVar[str]
    out: ClassVar[str]
    flip: ClassVar[str]
    default_aggregator: ClassVar[str | None] = None

    @abstractmethod
    def add_data(self, group: argparse._ActionsContainer) -> None:
        """Add the flags of the data set."""

    def add_more(self, parser: argparse.ArgumentParser) -> None:
        """Add flags of the protocol, other than those of the data set."""

    @abstractmethod
    def read(self, args: argparse.Namespace) -> _Data:
        """Read the protocol's files.

        Raises:
            InputError: flags or files that cannot be used.
        """

    @abstractmethod
    def evaluate(self, run: Run, data: _Data) -> _Figures | None:
        """Images or features to figures; None in all processes but the first."""

    @abstractmethod
    def report(self, run: Run, data: _Data, figures: _Figures, reference: Any) -> Report:
        """What is written of the figures; `reference`: of `find_reference`, or None."""

    def find_reference(self, args: argparse.Namespace) -> Any:
        """What --compare names.

        Raises:
            InputError: no such reference, or it has no figures of this protocol.
        """
        return find_reference(args.compare, self.name)

    def comparison(self, figures: _Figures, result: Result, reference: Any) -> list[str]:
        """Paragraphs that compare the result with what --compare names."""
        found: Reference = reference
        return [compare(result, found)]

    def flags(self, description: str | None = None) -> argparse.ArgumentParser:
        """The command's flags."""
        parser = build_parser(description)
        parser.argument_default = argparse.SUPPRESS
        self.add_data(parser.add_argument_group("data"))
        group = parser.add_argument_group("model")
        add_weights(group)
        add_flip(group, self.flip)
        if self.default_aggregator is not None:
            add_sets(parser.add_argument_group("sets"), self.default_aggregator)
        self.add_more(parser)
        add_embedding(parser)
        add_output(parser, self.out)
        return parser

    def main(self, description: str | None = None) -> int:
        """Run the command and return its exit code; `description` is shown by --help."""
        parser = self.flags(description)
        absent = object()
        names = [action.dest for action in parser._actions]
        values = vars(parser.parse_args(namespace=argparse.Namespace(**dict.fromkeys(names, absent))))
        given = {name: value for name, value in values.items() if value is not absent}
        return run_command(lambda: self.validate(given))

    def arguments(self, given: Mapping[str, Any]) -> argparse.Namespace:
        """All flags by name: the given ones, defaults, None where there is neither."""
        defaults = {
            action.dest: None if action.default is argparse.SUPPRESS else action.default
            for action in self.flags()._actions
        }
        return argparse.Namespace(**defaults | {"aggregator": None, "aggregator_weights": None} | dict(given))

    def check(self, given: Mapping[str, Any], args: argparse.Namespace) -> list[str]:
        """What is wrong with flags, files and data apart."""
        return embedding_faults(args) + aggregator_faults(args)

    def open(self, args: argparse.Namespace, out: Path, seconds: Seconds) -> Run:
        """The model and the aggregators of the flags.

        Raises:
            InputError: weights that cannot be used or do not fit each other.
        """
        from weights import check_feature_size

        faults = Faults()
        model = faults.of(lambda: open_model(args, self.flip_rule(args))) if self.embeds(args) else None
        default = self.default_aggregator
        opened = None if default is None else faults.of(lambda: open_aggregators(args, default))
        faults.raise_if_any()
        aggregators, trained = opened or ({}, [])
        for entry in trained:
            if model is not None:
                check_feature_size(entry.module, model.embedding_size, model.auxiliary_size, entry.source)
            warn_of_doubled_norms(self.flip_rule(args), entry.module, entry.name)
        return Run(args, model, aggregators, trained, out, args.cache or out / "features", seconds)

    def validate(self, given: Mapping[str, Any]) -> None:
        """Run the command with the given flags and write everything into the output folder.

        Raises:
            InputError: flags, weights or data that cannot be used, all in one message.
        """
        args = self.arguments(given)
        faults, seconds = Faults(), Seconds()
        missing = source_faults(args)
        faults.sentences += missing + self.check(given, args)
        out = Path(args.out or EXPERIMENTS / self.default_out(args))
        faults.of(lambda: check_output(out, args.cache))
        run = None if missing else faults.of(lambda: self.open(args, out, seconds))
        with seconds.of("read"):
            data = faults.of(lambda: self.read(args))
        reference = faults.of(lambda: self.find_reference(args)) if args.compare else None
        faults.raise_if_any()
        if run is None or data is None:
            # As `raise_if_any` has raised, for the type checker alone.
            return
        figures = self.evaluate(run, data)
        if figures is None:
            return
        report = self.report(run, data, figures, reference)
        paragraphs = [*report.paragraphs, *(["\n".join(report.notes)] if report.notes else [])]
        if reference is not None:
            paragraphs += self.comparison(figures, report.result, reference)
        self.write(run, report.result, paragraphs, figures)

    def embeds(self, args: argparse.Namespace) -> bool:
        """Whether images are embedded."""
        return True

    def flip_rule(self, args: argparse.Namespace) -> str:
        """How features of flips are fused."""
        return flip_rule(args.flip)

    def default_out(self, args: argparse.Namespace) -> str:
        """Name of the output folder in experiments."""
        return self.out

    def write(self, run: Run, result: Result, paragraphs: Sequence[str], figures: _Figures) -> None:
        """Print the report, write result.json and report.md, and print where they are."""
        text = "\n\n".join(paragraphs)
        # Printed before the files are written, which a full disk may prevent.
        print(text)
        write_result(run.out, result)
        atomic_write(run.out / "report.md", text + "\n")
        print(f"\nResults are in {run.out}: {', '.join(self.write_more(run, figures))}")

    def write_more(self, run: Run, figures: _Figures) -> list[str]:
        """Write what the protocol adds to result.json and report.md; return all names in the folder."""
        return ["result.json", "report.md", "features/"]


def check_output(out: Path, cache: Path | None) -> None:
    """Raise InputError unless results and features can be written, before they are made."""
    require_output_folder(out, "--out", files=("result.json", "report.md"))
    if cache is not None:
        require_output_folder(Path(cache), "--cache")


# --------------------------------------------------------------------------------------------- result


def result_frame(
    name: str,
    rules: Mapping[str, str],
    model: Mapping[str, str],
    data: Mapping[str, int],
    seconds: Mapping[str, float],
) -> Result:
    """What every result.json has beside its figures: protocol, model, counts, times, versions."""
    return {
        "schema": SCHEMA,
        "protocol": {"name": name, "rules": dict(rules)},
        "model": dict(model),
        "data": dict(data),
        "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
        "peak_rss_mib": peak_resident_mib(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": versions(),
    }


def result_of_run(
    run: Run,
    name: str,
    rules: Mapping[str, str],
    aggregator: str,
    data: Mapping[str, int],
    alignment: str | None = None,
) -> Result:
    """`result_frame` of a run that embeds."""
    from backbones.preprocessing import describe_preprocessing
    from photos.alignment import AS_STORED

    model = run.loaded
    spec, options = model.backbone.spec, model.options
    steps = describe_preprocessing(
        spec, alignment=alignment or AS_STORED, flip=options.flip, precision=options.precision
    )
    return result_frame(
        name,
        {**rules, **steps},
        {
            "backbone": spec.name,
            "aggregator": aggregator,
            "weights_sha256": weights_sha256(model.weights),
        },
        data,
        run.seconds,
    )


def heading(result: Result, model: str) -> str:
    """What precedes a table: all that makes figures differ."""
    return f"# {result['protocol']['name']}\n\n{protocol_text(result)}\n- model: {model}"

"""What validation commands share: flags, the model, embedding, and the frame of result.json.

Figures are made in `evaluation`, features in `embedding`; here both are called as the flags say.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from backbones.preprocessing import describe_preprocessing
from coreset import AGGREGATORS, build_aggregator, requires_training
from evaluation.protocols.face_files import ListedFaces
from evaluation.reporting.report import SCHEMA, Result, protocol_text, versions, write_result
from features.extract import embed_faces
from features.flips import FLIP_CHOICES, flip_rule, warn_of_doubled_norms
from features.options import FACES_AT_ONCE, PRECISIONS, EmbedOptions
from features.store import FeatureStore
from net import BACKBONES, Backbone
from photos.alignment import AS_STORED
from runtime.errors import Faults
from runtime.files import atomic_write
from runtime.machine import peak_resident_mib
from runtime.output_checks import require_output_folder
from weights import (
    Overrides,
    check_feature_size,
    load_backbone,
    load_stored_aggregator,
    prepare_for,
    source_name,
    weights_sha256,
)
from weights.overrides import add_override_flags

# Written whatever folder a command is called from.
EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


# --------------------------------------------------------------------------------------------- flags


def add_model(parser: argparse.ArgumentParser, *, flip: str) -> None:
    """Adds the flags of the backbone and of embedding; `flip`: what the published code does."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--weights",
        metavar="SOURCE",
        help="of a backbone: a file (.ckpt, .pt, .safetensors, .onnx), a name of the catalogue, hf://OWNER/REPO",
    )
    group.add_argument("--arch", choices=BACKBONES, help="of the weights, where their file does not say it")
    group.add_argument(
        "--flip",
        choices=FLIP_CHOICES,
        default=flip,
        help="how features of the mirror image are joined",
    )
    group = parser.add_argument_group("embedding")
    group.add_argument("--gpus", type=int, help="GPUs of a node (default: one if there is one, else the CPU)")
    group.add_argument("--num_nodes", type=int, default=1, help="machines; all see the cache")
    group.add_argument("--cpu_processes", type=int, default=1, help="without GPUs")
    group.add_argument("--num_workers", type=int, default=4, help="decode images, for each process")
    group.add_argument(
        "--batch_size",
        type=int,
        help=f"images at once (default: {FACES_AT_ONCE['cuda']} on a GPU, {FACES_AT_ONCE['cpu']} on a CPU)",
    )
    group.add_argument("--precision", choices=PRECISIONS, default="32", help="of the backbone")


def add_sets(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds --aggregator, one or more, and --aggregator_weights; `default`: of weights without one."""
    group = parser.add_argument_group("sets")
    group.add_argument(
        "--aggregator",
        choices=AGGREGATORS,
        nargs="+",
        help=f"how faces become one descriptor (default: that of the weights, else {default})",
    )
    group.add_argument("--aggregator_weights", metavar="SOURCE", help="checkpoint of a trained aggregator")
    add_override_flags(group)


def add_output(parser: argparse.ArgumentParser, name: str) -> None:
    """Adds --out, --cache and --compare; `name`: of the output folder among the experiments."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=EXPERIMENTS / name,
        help="folder of result.json and report.md",
    )
    group.add_argument(
        "--cache", type=Path, metavar="DIR", help="where features are kept (default: OUT/features)"
    )
    group.add_argument(
        "--compare", metavar="PUBLISHED", help="a published row (adaface_ir_101_webface4m), or a result.json"
    )


def check_output(out: Path, cache: Path | None) -> None:
    """Raises InputError unless results and features can be written, before they are made."""
    require_output_folder(out, "--out", files=("result.json", "report.md"))
    if cache is not None:
        require_output_folder(cache, "--cache")


def parsed(parser: argparse.ArgumentParser, *optional: str) -> argparse.Namespace:
    """The flags given; None where one without a default was not (`optional`: the command's own)."""
    shared = ("weights", "arch", "gpus", "batch_size", "cache", "compare")
    return argparse.Namespace(**dict.fromkeys((*shared, *optional)) | vars(parser.parse_args()))


# --------------------------------------------------------------------------------------------- model


@dataclass(frozen=True, eq=False)
class Model:
    """A backbone and how it embeds; `weights`: its source."""

    backbone: Backbone
    weights: str
    options: EmbedOptions

    @property
    def embedding_size(self) -> int:
        """D of the features, those of the mirror images joined."""
        return self.backbone.spec.embedding_size * (2 if self.options.flip == "concat" else 1)

    @property
    def name(self) -> str:
        """Of the weights, for tables."""
        return source_name(self.weights)

    @property
    def device(self) -> str:
        """Where aggregators work."""
        return "cuda" if self.options.gpu else "cpu"


def open_model(args: argparse.Namespace, faults: Faults) -> Model | None:
    """The model of the flags; None where a fault was added."""
    before = len(faults.sentences)
    backbone = None
    if args.weights is None:
        faults.sentences.append(
            "--weights is missing: the weights of a backbone, such as AdaFace's published ones."
        )
    else:
        backbone = faults.of(lambda: load_backbone(args.weights, args.arch))
    there = torch.cuda.device_count()
    gpus = min(1, there) if args.gpus is None else args.gpus
    if gpus > there:
        faults.sentences.append(f"--gpus {gpus}: this machine shows {there} GPUs to PyTorch.")
    if gpus and args.cpu_processes > 1:
        faults.sentences.append(
            "--cpu_processes is for embedding without GPUs. Leave it out, or pass --gpus 0."
        )
    if not gpus and args.precision == "16-mixed":
        faults.sentences.append(
            "--precision 16-mixed needs a GPU; bf16-mixed is the half precision of a CPU."
        )
    batch_size = FACES_AT_ONCE["cuda" if gpus else "cpu"] if args.batch_size is None else args.batch_size
    least = {"gpus": 0, "num_nodes": 1, "cpu_processes": 1, "num_workers": 0, "batch_size": 1}
    values = vars(args) | {"gpus": gpus, "batch_size": batch_size}
    faults.sentences += [
        f"--{name} {values[name]}: expected {low} or more."
        for name, low in least.items()
        if values[name] < low
    ]
    if backbone is None or len(faults.sentences) > before:
        return None
    options = EmbedOptions(
        flip=flip_rule(args.flip),
        precision=args.precision,
        batch_size=batch_size,
        num_workers=args.num_workers,
        gpu=gpus > 0,
        devices=gpus or args.cpu_processes,
        num_nodes=args.num_nodes,
    )
    return Model(backbone, args.weights, options)


def open_aggregators(
    names: Sequence[str],
    model: Model,
    weights: str | None,
    default: str,
    overrides: Overrides,
    faults: Faults,
) -> dict[str, nn.Module]:
    """Aggregators by name; a trained one comes from `weights`, else from the backbone's own file.

    No names are that of the file, else the `default`. `overrides` are for all that have such options.
    """
    source, before = weights or model.weights, len(faults.sentences)
    needed = weights is not None or not names or any(map(requires_training, names))
    trained = faults.of(lambda: load_stored_aggregator(source, overrides)) if needed else None
    if len(faults.sentences) > before:
        return {}
    own = None if trained is None else trained.name
    if weights is not None and own is None and not faults.sentences:
        faults.sentences.append(f"--aggregator_weights {weights}: there is no aggregator in it.")
    if weights is not None:
        faults.of(lambda: prepare_for(model.backbone, [weights]))
    wanted = list(names) or [own or default]
    if trained is not None and own in wanted:
        faults.of(lambda: check_feature_size(trained.module, model.embedding_size, source))
    elif weights is not None and own is not None:
        faults.sentences.append(f"--aggregator_weights {weights}: holds a {own}; add it to --aggregator.")
    poolings = [name for name in AGGREGATORS if not requires_training(name)]
    found: dict[str, nn.Module] = {}
    for name in wanted:
        if name == own and trained is not None:
            found[name] = trained.module
            warn_of_doubled_norms(model.options.flip, trained.module, name)
        elif name in poolings:
            module = faults.of(lambda name=name: build_aggregator(name, overrides.options_of(name)))  # type: ignore[misc]
            if module is not None:
                found[name] = module
        else:
            faults.sentences.append(
                f"--aggregator {name}: has to be trained, and {source} holds {own or 'none'}. Pass "
                f"--aggregator_weights CHECKPOINT, or choose among {', '.join(poolings)}."
            )
    if len(faults.sentences) == before:
        faults.of(lambda: overrides.check_effect(found.values()))
    return found


def open_model_of_sets(
    args: argparse.Namespace, default: str, faults: Faults
) -> tuple[Model | None, dict[str, nn.Module]]:
    """The model and the aggregators of the flags; none where a fault was added."""
    model = open_model(args, faults)
    if model is None:
        return None, {}
    names = args.aggregator or []
    overrides = Overrides.of(vars(args))
    return model, open_aggregators(names, model, args.aggregator_weights, default, overrides, faults)


# ------------------------------------------------------------------------------------------ embedding


def embed(
    model: Model, faces: ListedFaces, cache: Path, *, name: str, alignment: str = AS_STORED
) -> FeatureStore | None:
    """Features of images, aligned as `alignment` says; None in all processes but the first."""
    return embed_faces(
        model.backbone,
        faces,
        {"images": faces.digest(), "alignment": alignment},
        cache,
        model.options,
        stamps=faces.stamps(),
        about={"weights": model.name, "weights_sha256": weights_sha256(model.weights)},
        name=name,
    )


# --------------------------------------------------------------------------------------------- result


@dataclass
class Seconds:
    """Wall time of phases by name."""

    phases: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        """Adds the time of a block."""
        start = time.perf_counter()
        yield
        self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - start


def result_frame(
    protocol: str,
    rules: Mapping[str, str],
    model: Model,
    aggregator: str,
    seconds: Seconds,
    *,
    alignment: str = AS_STORED,
) -> Result:
    """What every result.json says beside its figures and counts: protocol, model, times, versions."""
    spec = model.backbone.spec
    # Linux counts in KiB, macOS in bytes.
    return {
        "schema": SCHEMA,
        "protocol": {
            "name": protocol,
            "rules": {
                **rules,
                **describe_preprocessing(
                    spec,
                    alignment=alignment,
                    flip=model.options.flip,
                    precision=model.options.precision,
                ),
            },
        },
        "model": {
            "backbone": spec.name,
            "aggregator": aggregator,
            "weights_sha256": weights_sha256(model.weights),
        },
        "data": {},
        "seconds": {name: round(value, 3) for name, value in seconds.phases.items()},
        "peak_rss_mib": peak_resident_mib(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": versions(),
    }


def heading(result: Result, model: Model) -> str:
    """What stands above a table: all that makes figures differ."""
    name = result["protocol"]["name"]
    return f"# {name}\n\n{protocol_text(result)}\n- model: {model.name}, {model.backbone.spec.name}"


def leave(out: Path, result: Result, paragraphs: Sequence[str]) -> None:
    """Prints the report, writes result.json and report.md into `out`, and says where all is."""
    text = "\n\n".join(paragraphs)
    # Before the files, of which a full disk may take none.
    print(text)
    write_result(out, result)
    atomic_write(out / "report.md", text + "\n")
    print(f"\neverything is in {out}: result.json, report.md, features/")

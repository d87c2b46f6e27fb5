"""Convert data sets and weights between formats.

python convert.py --rec_path DATA/faces_emore --num_workers 8
    unpacks train.rec and the pair sets (*.bin) beside it, with the original bytes
python convert.py --pack FOLDER --out DIR
    packs a folder of <subject>/<image>
python convert.py --synthetic_faces DIR --subjects 200
    generates a synthetic dataset: a pack and a pair set, for the demo and for tests
python convert.py --list-weights
    lists the published models that have a name here: figures, licences, pages
python convert.py --fetch-weights adaface_ir_50_ms1mv2
    downloads one of them; every command then accepts its name as weights
python convert.py --weights IN OUT.safetensors
    writes weights of any supported layout as .safetensors with architecture, preprocessing, source, licence
python convert.py --weights GRAPH.onnx OUT.safetensors --channel_order RGB --mean 127.5 --std 127.5
    states the preprocessing of an ONNX graph, once (also --input_size, --template and --norm_is_quality); a
    graph may state it in its metadata: architecture=onnx, channel_order=RGB, mean=127.5, std=[1, 1, 1],
    input_size=112, norm_is_quality=null
python convert.py --weights BACKBONE OUT.safetensors --aggregator_weights CHECKPOINT
    writes a backbone and an aggregator that was trained on its features to one file
python convert.py --check-quality WEIGHTS IMAGES
    measures weights on aligned faces of a few hundred subjects, <subject>/<image> or images alone: cosines
    of different subjects, whether the norm is a measure of quality, and which quality to weight faces by;
    --store FILE writes the weights with the result, --out DIR plots error-versus-discard characteristics
python convert.py --export onnx WEIGHTS --out DIR
    writes backbone.onnx and, for a trained aggregator, aggregator.onnx
python convert.py --build_set_benchmark FOLDER --out DATA --name MINE --protocol mixed
    builds a set benchmark in the IJB layout from a folder of subjects, for validation_mixed
"""

from __future__ import annotations

import sys
from argparse import SUPPRESS, ArgumentParser, _ArgumentGroup, _MutuallyExclusiveGroup
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import InputError
from runtime.text import first_lines

if TYPE_CHECKING:
    from data.sources.unpacking import Unpacked

# Everything else is imported by the mode that needs it: --help is fast, and so are the worker processes, each
# of which imports this file.
_SHOWN = 5
# `data.sources.unpacking.FORMATS`.
IMAGE_FORMATS = ("original", "jpg", "png")
# The default of a flag that a mode needs.
_NEEDED = object()
# Files that modes write into --out.
_FILES = {
    "check_quality": ("quality.json", "error_versus_reject.png"),
    "export": ("backbone.onnx", "aggregator.onnx"),
}


def main() -> int:
    """Run the command and return its exit code."""
    from runtime.command import run_command

    given = vars(flags().parse_args())
    return run_command(lambda: convert(given))


def flags() -> ArgumentParser:
    """Build the parser; flags that are not given are absent from the namespace."""
    from runtime.command import build_parser

    parser = build_parser(__doc__)
    parser.argument_default = SUPPRESS
    modes = parser.add_argument_group("mode").add_mutually_exclusive_group(required=True)
    modes.add_argument(
        "--rec_path", metavar="DIR", help="unpack train.rec of this folder to imgs/<subject>/<key>"
    )
    modes.add_argument("--pack", metavar="DIR", help="pack this folder of <subject>/<image>")
    modes.add_argument("--synthetic_faces", metavar="DIR", help="generate a synthetic pack and a pair set")
    modes.add_argument(
        "--build_set_benchmark",
        metavar="SOURCE",
        help="make a set benchmark of a folder of subjects (images, folders of frames, videos), a folder "
        "with train.rec, or cached features",
    )
    _weight_modes(modes)
    options = parser.add_argument_group("options")
    options.add_argument(
        "--out", metavar="DIR", help="output folder (default: --rec_path's folder, or the cache)"
    )
    options.add_argument(
        "--num_workers", type=int, help="--rec_path: number of worker processes (default: 0, this process)"
    )
    options.add_argument(
        "--image_format",
        choices=IMAGE_FORMATS,
        help="--rec_path: image format of the unpacked files (default: original, unchanged bytes)",
    )
    options.add_argument(
        "--quality", type=int, help="--rec_path: JPEG quality, with --image_format jpg (default: 95)"
    )
    options.add_argument("--subjects", type=int, help="--synthetic_faces: number of subjects (default: 200)")
    options.add_argument("--seed", type=int, help="seed of synthetic faces and degradations (default: 0)")
    _benchmark_flags(parser.add_argument_group("set benchmark"))
    _weight_flags(parser.add_argument_group("weights"))
    return parser


def _benchmark_flags(group: _ArgumentGroup) -> None:
    group.add_argument("--name", help="name of the data set; --out is the --data_root of its evaluation")
    group.add_argument(
        "--protocol", metavar="FILE|PRESET", help="stills, mixed, stress, or .json or .toml (default: stills)"
    )
    group.add_argument(
        "--detector", metavar="FILE", help="YuNet's model file; --check-quality: detector that scores faces"
    )
    group.add_argument(
        "--exclude_subjects",
        metavar="FILE",
        help="file of subjects to exclude, one per line, such as the training subjects",
    )


def _weight_modes(modes: _MutuallyExclusiveGroup) -> None:
    modes.add_argument(
        "--list-weights", "--list_weights", action="store_true", help="show the catalogue of published models"
    )
    modes.add_argument(
        "--fetch-weights", "--fetch_weights", metavar="NAME", help="download a model of the catalogue"
    )
    modes.add_argument(
        "--weights", nargs=2, metavar=("IN", "OUT"), help="write weights of any kind as OUT.safetensors"
    )
    modes.add_argument(
        "--aggregator",
        nargs=2,
        metavar=("CHECKPOINT", "OUT"),
        help="write a checkpoint's trained aggregator alone as OUT.safetensors",
    )
    modes.add_argument(
        "--check-quality",
        "--check_quality",
        nargs=2,
        metavar=("WEIGHTS", "IMAGES"),
        help="measure these weights on faces; IMAGES: a folder of <subject>/<image>, or of images alone",
    )
    modes.add_argument(
        "--export",
        nargs=2,
        metavar=("FORMAT", "WEIGHTS"),
        help="write weights for other programs; FORMAT: onnx",
    )


def _weight_flags(group: _ArgumentGroup) -> None:
    from backbones.catalogue import BACKBONES
    from weights.overrides import add_override_flags, add_spec_flags

    add_override_flags(group)
    add_spec_flags(group)
    group.add_argument(
        "--arch", choices=BACKBONES, help="architecture of the weights, if the file does not state it"
    )
    group.add_argument(
        "--channel_order",
        "--channel-order",
        choices=("BGR", "RGB"),
        help="channel order that the weights expect, if it differs from the default of their layout",
    )
    group.add_argument(
        "--allow-pickle",
        "--allow_pickle",
        action="store_true",
        help="--weights: read old files that hold more than tensors, which can run any code",
    )
    group.add_argument(
        "--normalise_illumination",
        action="store_true",
        help="--weights: normalise brightness and contrast of each face before the backbone",
    )
    group.add_argument(
        "--auxiliary",
        type=int,
        metavar="N",
        help="--weights: N auxiliary features after the embedding, for aggregators that use them (0: none)",
    )
    group.add_argument(
        "--aggregator_weights",
        metavar="CHECKPOINT",
        help="--weights: join the trained aggregator of this file with the backbone of IN; checkpoints "
        "of main.py --features need it",
    )
    group.add_argument(
        "--licence",
        metavar="TEXT",
        help="--weights, --aggregator: licence of the weights, as stated by the author",
    )
    group.add_argument(
        "--num_images", type=int, help="--check-quality: faces to measure on, at most (default: 300)"
    )
    group.add_argument(
        "--store",
        metavar="FILE",
        help="--check-quality: write the weights with what was measured, .safetensors",
    )


def convert(given: Mapping[str, Any]) -> None:
    """Run the mode of the flags given.

    Raises:
        InputError: flags that do not belong to the mode, or data that cannot be used.
    """
    mode = next(name for name in _MODES if name in given)
    work, allowed = _MODES[mode]
    faults = [
        f"--{name} has no effect with --{mode}. Remove it." for name in given if name not in (mode, *allowed)
    ]
    faults += [
        f"--{mode} needs --{name}."
        for name, default in allowed.items()
        if default is _NEEDED and name not in given
    ]
    values = allowed | dict(given)
    for name, least in (("num_workers", 0), ("subjects", 2), ("seed", 0), ("quality", 1), ("num_images", 20)):
        if name in values and values[name] < least:
            faults.append(f"--{name} {values[name]}: expected {least} or more.")
    if values.get("quality", 0) > 100:
        faults.append(f"--quality {values['quality']}: expected at most 100.")
    if "quality" in given and values.get("image_format") != "jpg":
        faults.append("--quality has no effect without --image_format jpg. Remove it.")
    if faults:
        raise InputError.from_faults(faults)
    _check_output(mode, values)
    work(values)


def _check_output(mode: str, values: Mapping[str, Any]) -> None:
    """Raise InputError for an output that cannot be written, or that is an input."""
    from runtime.output_checks import require_output_file, require_output_folder

    out = Path(values["out"]) if values.get("out") else None
    if mode in ("weights", "aggregator"):
        source, target = values[mode]
        require_output_file(Path(target), f"--{mode}", inputs=[Path(source)])
    elif mode == "synthetic_faces":
        require_output_folder(Path(values[mode]), "--synthetic_faces")
    elif mode == "fetch_weights" and out is not None:
        require_output_file(out, "--out")
    elif mode == "rec_path":
        folder = Path(values[mode]) if out is None else out
        require_output_folder(folder, "--rec_path" if out is None else "--out")
    elif out is not None:
        require_output_folder(out, "--out", files=_FILES.get(mode, ()))
    if values.get("store"):
        require_output_file(Path(values["store"]), "--store", inputs=[Path(values[mode][0])])


def _unpack(values: Mapping[str, Any]) -> None:
    from data.sources.image_files import IMAGES
    from data.sources.pair_files import find_pair_sets, read_pair_set
    from data.sources.recordio import REC_NAME
    from data.sources.unpacking import unpack_pack, unpack_pairs

    folder = Path(values["rec_path"])
    out = Path(values["out"] or folder)
    pair_sets = find_pair_sets(folder)
    if not (folder / REC_NAME).is_file() and not pair_sets:
        raise InputError(
            f"{folder}: holds neither {REC_NAME} nor pair sets (*.bin). Expected the folder of an "
            "InsightFace data set, such as faces_emore."
        )
    # Before the work, which may take hours.
    faults = []
    for path in pair_sets:
        if path.stem == IMAGES:
            faults.append(f"{path}: would be unpacked among the images of {REC_NAME}. Rename it.")
            continue
        try:
            read_pair_set(path)
        except InputError as fault:
            faults.append(str(fault))
    if faults:
        raise InputError.from_faults(faults)
    if (folder / REC_NAME).is_file():
        done = unpack_pack(
            folder,
            out,
            num_workers=values["num_workers"],
            image_format=values["image_format"],
            quality=values["quality"],
        )
        _print_unpacked(done, out / IMAGES)
    for path in pair_sets:
        pairs = read_pair_set(path)
        count = unpack_pairs(pairs, out / path.stem)
        print(f"{out / path.stem}: {count:,} pairs of {path.name}, with pairs.csv")
        if count < len(pairs):
            print(f"  {len(pairs) - count:,} pairs are skipped: one of their images cannot be decoded")


def _print_unpacked(done: Unpacked, images: Path) -> None:
    print(
        f"{images}: {done.subjects:,} subjects, {done.written:,} images written, {done.there:,} were there, "
        f"{len(done.skipped):,} records skipped"
    )
    for note in done.notes:
        print(f"  {note}")
    kinds = len({why for _, why in done.skipped})
    skipped = [f"  record {key}: {why}" for key, why in sorted(done.skipped)]
    for line in first_lines(skipped, _SHOWN, f"  and {{}} more; {kinds:,} different reasons"):
        print(line)
    if done.of_other_size:
        print(
            f"  {done.of_other_size:,} images are not 112 x 112, which training refuses. Align them first",
            file=sys.stderr,
        )


def _pack(values: Mapping[str, Any]) -> None:
    from data.sources.recordio import REC_NAME
    from data.sources.unpacking import pack_folder

    out = Path(values["out"])
    subjects, images, notes = pack_folder(Path(values["pack"]), out)
    print(f"{out / REC_NAME}: {images:,} images of {subjects:,} subjects (names in subjects.txt)")
    for note in notes:
        print(f"  {note}")


def _generate_faces(values: Mapping[str, Any]) -> None:
    from data.sources.recordio import REC_NAME
    from synthetic.datasets import write_synthetic_pack

    out = Path(values["synthetic_faces"])
    subjects, images, pairs = write_synthetic_pack(out, num_subjects=values["subjects"], seed=values["seed"])
    print(
        f"{out / REC_NAME}: {images:,} synthetic images of {subjects:,} subjects; {out / 'synthetic.bin'}: "
        f"{pairs:,} pairs of further subjects"
    )


def _list_weights(_: Mapping[str, Any]) -> None:
    from weights.catalogue import CATALOGUE, catalogue_text
    from weights.sources import fetched

    print(catalogue_text(CATALOGUE.values(), [e.name for e in CATALOGUE.values() if fetched(e) is not None]))


def _fetch_weights(values: Mapping[str, Any]) -> None:
    from weights.fetching import entry_named, fetch

    entry = entry_named(values["fetch_weights"])
    path = fetch(entry, Path(values["out"]) if values["out"] else None)
    print(
        f"{path}\n  licence of the weights: {entry.weights_licence}; commercial use: {entry.commercial_use}"
    )
    print(f"  trained on {entry.training_data}: {entry.data_terms}")
    print(f"  pass it as {path if values['out'] else entry.name} to any --weights")


def _convert_weights(values: Mapping[str, Any]) -> None:
    from weights.converting import PICKLE_WARNING, convert_weights
    from weights.overrides import Overrides, stated_spec

    source, out = values["weights"]
    if values["allow_pickle"]:
        print(PICKLE_WARNING, file=sys.stderr)
    done = convert_weights(
        source,
        Path(out),
        arch=values["arch"],
        channel_order=values["channel_order"],
        allow_pickle=values["allow_pickle"],
        licence=values["licence"],
        normalise_illumination=values["normalise_illumination"],
        auxiliary=values["auxiliary"],
        stated=stated_spec(values),
        overrides=Overrides.of(values),
        aggregator_weights=values["aggregator_weights"],
    )
    print(done)


def _extract_aggregator(values: Mapping[str, Any]) -> None:
    from weights.converting import extract_aggregator
    from weights.overrides import Overrides

    source, out = values["aggregator"]
    print(extract_aggregator(source, Path(out), values["licence"], Overrides.of(values)))


def _check_quality(values: Mapping[str, Any]) -> None:
    from quality.command import QualityCheckConfig, run_quality_check
    from weights.overrides import Overrides, stated_spec

    source, images = values["check_quality"]
    config = QualityCheckConfig(
        **{name: Path(values[name]) if values[name] else None for name in ("out", "store", "detector")},
        arch=values["arch"],
        channel_order=values["channel_order"],
        stated=stated_spec(values),
        num_images=values["num_images"],
        seed=values["seed"],
        overrides=Overrides.of(values),
    )
    print(run_quality_check(source, Path(images), config))


def _export(values: Mapping[str, Any]) -> None:
    from weights.export import FORMATS, export_onnx
    from weights.overrides import Overrides

    form, source = values["export"]
    if form not in FORMATS:
        raise InputError(f"--export {form}: expected {' or '.join(FORMATS)}, then the weights.")
    how = values["arch"], values["channel_order"], Overrides.of(values)
    done = export_onnx(source, Path(values["out"]), *how)
    for each in done:
        check = "not compared, as onnxruntime is not installed"
        if each.difference is not None:
            check = f"embeddings within {each.difference:.1g} of PyTorch's"
        print(f"{each.path}: {each.path.stat().st_size / 2**20:.1f} MiB, {check}")
    if len(done) == 1:
        print(f"{source}: contains no trained aggregator, so only the backbone was written")


def _build_set_benchmark(values: Mapping[str, Any]) -> None:
    from data.sources.subject_names import read_names
    from set_benchmark.build import build_set_benchmark
    from set_benchmark.protocol import read_benchmark_protocol

    without = Path(values["exclude_subjects"]) if values["exclude_subjects"] else None
    built = build_set_benchmark(
        Path(values["build_set_benchmark"]),
        Path(values["out"]),
        name=values["name"],
        protocol=read_benchmark_protocol(values["protocol"]),
        seed=values["seed"],
        detector=Path(values["detector"]) if values["detector"] else None,
        exclude=read_names(without) if without else frozenset(),
    )
    print(built.text)


# Flags of several modes, which are None unless given.
_OVERRIDES = dict.fromkeys(("coreset_size", "gamma"))
_SPEC = dict.fromkeys(("mean", "std", "input_size", "template", "norm_is_quality", "arch", "channel_order"))
# The work of each mode, and its flags with their defaults.
_MODES: dict[str, tuple[Callable[[Mapping[str, Any]], None], dict[str, Any]]] = {
    "rec_path": (_unpack, {"out": None, "num_workers": 0, "image_format": "original", "quality": 95}),
    "pack": (_pack, {"out": _NEEDED}),
    "synthetic_faces": (_generate_faces, {"subjects": 200, "seed": 0}),
    "list_weights": (_list_weights, {}),
    "fetch_weights": (_fetch_weights, {"out": None}),
    "weights": (
        _convert_weights,
        {
            **dict.fromkeys(("licence", "aggregator_weights", "auxiliary")),
            **{"allow_pickle": False, "normalise_illumination": False},
            **_OVERRIDES,
            **_SPEC,
        },
    ),
    "aggregator": (_extract_aggregator, {"licence": None, **_OVERRIDES}),
    "check_quality": (
        _check_quality,
        {"num_images": 300, "seed": 0, "out": None, "store": None, "detector": None, **_OVERRIDES, **_SPEC},
    ),
    "export": (_export, {"out": _NEEDED, "arch": None, "channel_order": None, **_OVERRIDES}),
    "build_set_benchmark": (
        _build_set_benchmark,
        dict.fromkeys(("out", "name"), _NEEDED)
        | {"protocol": "stills", "seed": 0, "detector": None, "exclude_subjects": None},
    ),
}


if __name__ == "__main__":
    sys.exit(main())

"""Any weights that we read -> one .safetensors file in our form, with what is known of them."""

from __future__ import annotations

from pathlib import Path

from errors import InputError
from weights import load_weights, resolve, save_model
from weights.aggregators import stored_aggregator
from weights.reading import read_stored
from weights.sources import NOT_STATED, licence_of, source_name

PICKLE_WARNING = (
    "--allow-pickle: the file is unpickled as it asks for, and a pickle can run any code on this machine "
    "with your rights. Do it for files alone whose author you trust, on a machine without secrets."
)


def convert_weights(
    source: str,
    out: Path,
    *,
    arch: str | None = None,
    channel_order: str | None = None,
    allow_pickle: bool = False,
    licence: str | None = None,
) -> str:
    """Writes a source's backbone, and its aggregator where it has one, to `out`; says what was written.

    `licence`: of the weights; None is what the file or the catalogue says.

    Raises:
        InputError: as `load_backbone`, or `out` is none of .safetensors.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: our form is .safetensors; choose a name that ends in it.")
    path = resolve(source)
    loaded = load_weights(path, arch, channel_order=channel_order, allow_pickle=allow_pickle)
    aggregator, about = None, {}
    if path.suffix != ".onnx":
        stored = read_stored(path, allow_pickle=allow_pickle)
        aggregator, about = stored_aggregator(stored), dict(stored.about)
    known = licence_of(source)
    about = {
        "source": about.get("source") or source_name(source),
        "licence": licence or (known if known != NOT_STATED else about.get("licence", known)),
    }
    backbone = loaded.backbone
    parts = None if aggregator is None else (aggregator.name, aggregator.options, aggregator.module)
    save_model(out, backbone, parts, about)
    spec = backbone.spec
    lines = [
        f"{out}: {spec.name}, {spec.embedding_size} values a face; recognised as: {loaded.kind}",
        f"  colours {spec.channel_order}, pixels (value - {spec.mean:g}) / {spec.std:g}",
        f"  aggregator {aggregator.name if aggregator else 'none'}",
        f"  source {about['source']}; licence of the weights: {about['licence']}",
    ]
    return "\n".join(lines)

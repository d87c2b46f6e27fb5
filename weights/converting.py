"""Convert weights of any supported layout to one .safetensors file with their spec, source and licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from backbones.preprocessing import describe_preprocessing
from backbones.spec import BackboneSpec
from net import Backbone
from runtime.errors import InputError
from weights.aggregators import StoredAggregator
from weights.compatibility import check_feature_size, prepare_for
from weights.digest import weights_digest
from weights.loading import load_stored_aggregator, load_weights, open_weights
from weights.overrides import AS_STORED, Overrides
from weights.reading import BACKBONE_DIGEST, TRAINED_SUBJECTS
from weights.sources import NOT_STATED, licence_of, source_name
from weights.storing import save_weights

PICKLE_WARNING = (
    "--allow-pickle: the file is unpickled in full, and a pickle can run any code with your rights. Use it "
    "only for files of authors whom you trust."
)
_NOT_MEASURED = "not measured"
_NORM_TEXTS = {None: "was not measured", True: "is a measure of it", False: "is not a measure of it"}


def convert_weights(
    source: str,
    out: Path,
    *,
    arch: str | None = None,
    channel_order: str | None = None,
    allow_pickle: bool = False,
    licence: str | None = None,
    quality: str | None = None,
    normalise_illumination: bool = False,
    auxiliary: int | None = None,
    measured: BackboneSpec | None = None,
    stated: Mapping[str, Any] | None = None,
    overrides: Overrides = AS_STORED,
    aggregator_weights: str | None = None,
) -> str:
    """Write a source's backbone, and its aggregator if there is one, to `out`.

    Args:
        source: whatever `weights.load_backbone` reads.
        out: a .safetensors file.
        arch: architecture, where the file does not state it.
        channel_order: overrides the file's.
        allow_pickle: see `weights.reading.read_checkpoint`.
        licence: of the weights; None: as the file or the catalogue states it.
        quality: the recommended quality, which also says whether the norm is one; None: as the file states.
        normalise_illumination: normalise the illumination of faces for these weights.
        auxiliary: number of auxiliary values behind the embedding; None: as the file states.
        measured: spec with the centre and cosine statistics of these weights.
        stated: fields of the spec that override the file's.
        overrides: coreset size and gamma of the aggregator in place of the file's.
        aggregator_weights: source of another aggregator, such as a checkpoint trained from features, which
            has no backbone.

    Returns:
        A description of what was written.

    Raises:
        InputError: as `load_backbone`, an aggregator that does not fit, a backbone without auxiliary values,
            or another suffix of `out`.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: weights are written as .safetensors; choose a name that ends in it.")
    opened = open_weights(source, allow_pickle=allow_pickle)
    loaded = load_weights(opened, arch, channel_order=channel_order, stated=stated)
    about = {} if opened.stored is None else dict(opened.stored.about)
    if aggregator_weights is None:
        aggregator, fit = load_stored_aggregator(opened, overrides), ""
    else:
        aggregator, fit = _joined(loaded.backbone, aggregator_weights, about, overrides)
    overrides.check_effect([] if aggregator is None else [aggregator.module])
    known = licence_of(source)
    about = {
        "source": about.get("source") or source_name(source),
        "licence": licence or (known if known != NOT_STATED else about.get("licence", known)),
        "quality": quality or about.get("quality", _NOT_MEASURED),
        **_trained_subjects(about),
    }
    backbone = loaded.backbone
    if quality:
        backbone.spec = replace(backbone.spec, norm_is_quality=quality == "norm")
    if measured is not None:
        statistics = measured.cosine_statistics
        backbone.spec = replace(backbone.spec, centre=measured.centre, cosine_statistics=statistics)
    before = backbone.spec
    if normalise_illumination and not before.normalises_illumination:
        # Centre and statistics were measured without it.
        backbone.spec = replace(before, normalises_illumination=True, centre=None, cosine_statistics=None)
    if auxiliary is not None:
        backbone.set_auxiliary(auxiliary)
    if aggregator is not None and backbone.spec != before:
        raise InputError(
            f"{opened.path}: --normalise_illumination and --auxiliary change every feature, and its "
            "aggregator was trained on the present ones. Convert a backbone, then train an aggregator for it."
        )
    if backbone.spec.auxiliary_size > before.auxiliary_size:
        # Raises where the backbone cannot give as many.
        backbone.auxiliary_layer()
    save_weights(out, backbone, aggregator, about)
    name = f"{aggregator.name if aggregator else 'none'}{fit}"
    return _written_text(out, backbone.spec, loaded.kind, name, about)


def _joined(
    backbone: Backbone, source: str, about: dict[str, str], overrides: Overrides
) -> tuple[StoredAggregator, str]:
    """The aggregator of a source, and a text on how its fit was checked; prepares the backbone for it.

    `about`: metadata of the backbone's file; its trained subjects become those of the aggregator.
    """
    opened = open_weights(source)
    aggregator = load_stored_aggregator(opened, overrides)
    if aggregator is None or opened.stored is None:
        raise InputError(f"--aggregator_weights {source}: there is no aggregator in it.")
    prepare_for(backbone, [opened])
    spec = backbone.spec
    check_feature_size(aggregator.module, spec.embedding_size, spec.auxiliary_size, source)
    about.pop(TRAINED_SUBJECTS, None)
    about.update(_trained_subjects(opened.stored.about))
    fit = "which does not state the weights that it was trained with; only sizes were compared"
    if BACKBONE_DIGEST in opened.stored.about:
        fit = "trained on features of these weights"
    return aggregator, f" of {source_name(source)}, {fit}"


def extract_aggregator(
    source: str, out: Path, licence: str | None = None, overrides: Overrides = AS_STORED
) -> str:
    """Write the trained aggregator of a checkpoint without its backbone to `out`, and describe it.

    Raises:
        InputError: no aggregator or no backbone in it, or another suffix of `out`.
    """
    opened = open_weights(source)
    found = load_stored_aggregator(opened, overrides)
    if found is None or opened.stored is None:
        raise InputError(
            f"{source}: there is no aggregator in it. Expected a checkpoint of the coreset stage."
        )
    overrides.check_effect([found.module])
    backbone = load_weights(opened).backbone
    about = {"licence": licence or NOT_STATED, **_trained_subjects(opened.stored.about)}
    save_weights(out, backbone, found, about, aggregator_alone=True)
    size = sum(parameter.numel() for parameter in found.module.parameters())
    illumination = "with" if backbone.spec.normalises_illumination else "without"
    return (
        f"{out}: {found.name}, {size:,} parameters as float16\n"
        f"  for features of {backbone.spec.name} {illumination} illumination normalisation; weights "
        f"{weights_digest(backbone)[:16]}\n"
        f"  licence: {about['licence']}"
    )


def _written_text(out: Path, spec: BackboneSpec, kind: str, aggregator: str, about: Mapping[str, str]) -> str:
    values = f"{spec.with_auxiliary(0).embedding_size} values"
    if spec.auxiliary_size:
        values += f" and {spec.auxiliary_size} auxiliary values"
    cosines = "cosines not measured: the limits of MobileFaceNet are used"
    if spec.cosine_statistics is not None:
        cosines = f"{spec.cosine_statistics.text()}, {'with a' if spec.centre else 'without a'} centre"
    lines = [
        f"{out}: {spec.name}, {values} per face; layout: {kind}",
        f"  {_pixels_text(spec)}",
        f"  aggregator {aggregator}",
        f"  quality of a face {about['quality']}; its norm {_NORM_TEXTS[spec.norm_is_quality]}",
        f"  {cosines}",
        f"  source {about['source']}; licence of the weights: {about['licence']}",
    ]
    return "\n".join(lines)


def _trained_subjects(about: Mapping[str, str]) -> dict[str, str]:
    """The trained subjects that a file states, which are written to the converted file too."""
    return {key: value for key, value in about.items() if key == TRAINED_SUBJECTS}


def _pixels_text(spec: BackboneSpec) -> str:
    done = describe_preprocessing(spec, alignment="", flip="", precision="")
    illumination = "illumination normalised, " if spec.normalises_illumination else ""
    template = ", own alignment template" if spec.alignment else ""
    pixels = f"{illumination}pixels {done['pixel_scale']}, side {spec.input_size}{template}"
    return f"channel order {done['colour_order']}, {pixels}"

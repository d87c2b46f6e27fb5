"""Check that an aggregator fits a backbone, was not trained on the evaluated subjects, and gets a norm that
measures quality.

What a file does not state is not checked.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from backbones.spec import BackboneSpec, centre_digest
from net import Backbone
from runtime.errors import InputError
from runtime.text import listed
from weights.digest import name_digest, name_digests, weights_digest
from weights.loading import PIXEL_FIELDS, Source, load_backbone, open_weights
from weights.reading import BACKBONE_DIGEST, TRAINED_SUBJECTS
from weights.specs import spec_in

# ----------------------------------------------------------------------- what a file says of its training


def trained_spec(source: Source, backbone: Backbone | None = None) -> BackboneSpec | None:
    """The spec of the backbone whose features an aggregator was trained on; None where it is not stated.

    An aggregator that was trained from cached features has no spec. With a `backbone` it gets that one's,
    changed by what the file states of the features.
    """
    opened = open_weights(source)
    if not opened.path.is_file() or (stored := opened.stored) is None:
        return None
    spec = spec_in(opened.path, stored.backbone_spec)
    if spec is not None or backbone is None or stored.aggregator is None:
        return spec
    options, spec = stored.aggregator[1], backbone.spec
    if isinstance(options, Mapping) and isinstance(size := options.get("auxiliary_size", 0), int):
        spec = spec.with_auxiliary(size)
    if isinstance(illumination := stored.features.get("illumination_normalisation"), str):
        spec = replace(spec, normalises_illumination=illumination != "none")
        if "centre" not in stored.features:
            # A store of views, whose features had no centre subtracted.
            spec = spec.with_features_of(replace(spec, centre=None, cosine_statistics=None))
    return spec


def trained_backbone_digest(source: Source) -> str | None:
    """Digest of the backbone whose features an aggregator was trained on; None where it is not known.

    It is stated, or that of the backbone in the same file.
    """
    opened = open_weights(source)
    if opened.stored is None:
        return None
    if BACKBONE_DIGEST in opened.stored.about:
        return opened.stored.about[BACKBONE_DIGEST]
    try:
        return weights_digest(load_backbone(opened))
    except InputError:
        return None


def trained_subjects(source: Source) -> frozenset[str] | None:
    """Digests (`name_digests`) of the subjects that an aggregator was trained on; None if not stated."""
    stored = open_weights(source).stored
    text = None if stored is None else stored.about.get(TRAINED_SUBJECTS)
    return None if text is None else frozenset(text.split())


# ------------------------------------------------------------------------ aggregator and features


def check_feature_size(aggregator: nn.Module, size: int, auxiliary_size: int, source: Source) -> None:
    """Check that the aggregator of a source takes features of a size.

    Args:
        aggregator: the module.
        size: values of a row, auxiliary ones included.
        auxiliary_size: auxiliary ones among them.
        source: what the message calls the aggregator.

    Raises:
        InputError: it takes others. One that reads no auxiliary features takes rows with any number of them.
    """
    read = getattr(aggregator, "auxiliary_size", 0)
    own, given = getattr(aggregator, "embedding_size", size - auxiliary_size) - read, size - auxiliary_size
    if own != given or (read and read != auxiliary_size):
        raise InputError(
            f"{source}: its aggregator takes features of {own} values and {read} auxiliary ones, but these "
            f"have {given} and {auxiliary_size}. Use the backbone that it was trained with; the flip rule "
            "'concat' doubles the size."
        )


def check_same_backbone(
    features: str, digest: str | None, other: str, wanted: str | None, advice: str
) -> None:
    """Raise InputError where features are known to be of another backbone than expected.

    Args:
        features: what the message calls them, with their file or flag.
        digest: of their backbone (`weights_digest`); None where it is not known.
        other: what the message calls the expected backbone.
        wanted: its digest; None where it is not known.
        advice: what the user can do.
    """
    if digest is not None and wanted is not None and digest != wanted:
        raise InputError(
            f"{features} were made by another backbone than {other} ({digest[:16]}, not {wanted[:16]}). "
            f"{advice}"
        )


def _check_trained_on(source: Source, digest: str, name: str) -> None:
    features = f"{source}: the features that its aggregator was trained on"
    advice = "Pass the weights of that one, or train an aggregator for these."
    check_same_backbone(features, trained_backbone_digest(source), name, digest, advice)


def check_computed_features(
    backbone: Backbone, source: str, sizes: tuple[int, int], digest: str | None, features: str
) -> None:
    """Check that a backbone computed features that were made before.

    Args:
        backbone: the module.
        source: what the message calls it.
        sizes: values of a feature, and auxiliary ones among them.
        digest: of the weights that computed the features; None if it is not known.
        features: what the message calls them.

    Raises:
        InputError: the features have other sizes, or other weights computed them.
    """
    own = (backbone.spec.embedding_size, backbone.spec.auxiliary_size)
    if own != sizes:
        raise InputError(
            f"{source}: computes features of {own[0]} values, {own[1]} of them auxiliary, and those in "
            f"{features} have {sizes[0]} and {sizes[1]}. Give the weights that computed them."
        )
    if digest is not None:
        advice = "Give the weights that computed them."
        made = f"{source}: the features in {features}"
        check_same_backbone(made, digest, "these weights", weights_digest(backbone), advice)


def check_precomputed(
    aggregator: nn.Module, source: Source, identity: Mapping[str, str], size: int, features: str
) -> None:
    """Check that an aggregator fits features that were made before.

    Args:
        aggregator: the module.
        source: its file.
        identity: what the features were made from, as far as it is known (`features.extract.identity_of`).
        size: values of a feature.
        features: what the message calls them.

    Raises:
        InputError: the features have another size, or were made by another backbone, with another
            illumination normalisation, number of auxiliary values or centre.
    """
    auxiliary_size = int(identity.get("auxiliary_size", getattr(aggregator, "auxiliary_size", 0)))
    check_feature_size(aggregator, size, 0 if identity.get("flip") == "concat" else auxiliary_size, source)
    if (digest := identity.get("backbone_sha256")) is not None:
        _check_trained_on(source, digest, f"that of {features}")
    spec = trained_spec(source)
    if spec is None or "illumination_normalisation" not in identity:
        return
    made = _preparation(
        identity["illumination_normalisation"] != "none",
        int(identity.get("auxiliary_size", spec.auxiliary_size)),
        identity.get("centre"),
    )
    if made != (own := _preparation_of(spec)):
        raise InputError(
            f"{features}: these features were made with {made}, and the aggregator of {source} was trained "
            f"with {own}. Embed the images again: pass --weights without --features."
        )


def prepare_for(backbone: Backbone, sources: Sequence[Source]) -> None:
    """Make a backbone give the features that the aggregators of these sources were trained on, in place.

    Sets illumination normalisation, number of auxiliary values and centre.

    Raises:
        InputError: an aggregator was trained with other weights or pixel values, two of them need different
            preparations, or the backbone does not support one.
    """
    wanted: dict[str, tuple[Source, BackboneSpec]] = {}
    for source in sources:
        opened = open_weights(source)
        _check_trained_on(opened, weights_digest(backbone), f"the {backbone.spec.name} given")
        if (spec := trained_spec(opened, backbone)) is None:
            continue
        _check_pixels(source, spec, backbone.spec)
        wanted.setdefault(_preparation_of(spec), (source, spec))
    if len(wanted) > 1:
        needed = [f"{source} needs {preparation}" for preparation, (source, _) in wanted.items()]
        raise InputError(f"{'; '.join(needed)}. Pass one of them at a time.")
    for source, spec in wanted.values():
        backbone.spec = replace(backbone.spec, normalises_illumination=spec.normalises_illumination)
        try:
            backbone.set_auxiliary(spec.auxiliary_size)
            backbone.spec = backbone.spec.with_features_of(spec)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None


def _check_pixels(source: Source, trained: BackboneSpec, used: BackboneSpec) -> None:
    for name in PIXEL_FIELDS:
        own, given = getattr(trained, name), getattr(used, name)
        same = own == given
        if not same and None not in (own, given) and name != "channel_order":
            # Scales of older files went through their reciprocal.
            same = bool(np.allclose(own, given, rtol=1e-9))
        if not same:
            raise InputError(
                f"{source}: its aggregator was trained with {name} {own} of the backbone, and the weights "
                f"given have {name} {given}. Use the same for both."
            )


def _preparation(illumination: bool, auxiliary_size: int, centre: str | None) -> str:
    return (
        f"{'' if illumination else 'no '}illumination normalisation, {auxiliary_size} auxiliary values and "
        f"{f'the centre {centre}' if centre else 'no centre'}"
    )


def _preparation_of(spec: BackboneSpec) -> str:
    centre = None if spec.centre is None else centre_digest(spec.centre)
    return _preparation(spec.normalises_illumination, spec.auxiliary_size, centre)


# ------------------------------------------------------------------------ subjects


def check_not_trained_on(names: frozenset[str], aggregators: Mapping[str, Source], benchmark: str) -> None:
    """Refuse aggregators that were trained on evaluated subjects.

    Args:
        names: of the benchmark's subjects.
        aggregators: name -> file.
        benchmark: its name.

    Raises:
        InputError: a file says that its aggregator was trained on some of the subjects.
    """
    # Older checkpoints hold digests of names as a file system gave them, before names were compared in NFC.
    decomposed = {name_digest(unicodedata.normalize("NFD", name)): name for name in names}
    digests = decomposed | name_digests(names)
    faults = []
    for aggregator, source in aggregators.items():
        trained = trained_subjects(source) or ()
        if shared := sorted({digests[digest] for digest in trained if digest in digests}):
            faults.append(
                f"{source}: its {aggregator} was trained on {len(shared):,} of the {len(names):,} subjects "
                f"of {benchmark} ({listed(shared)}), so its figures would not hold for others. Train one "
                "with main.py --exclude_subjects FILE."
            )
    if faults:
        raise InputError.from_faults(faults)


# ------------------------------------------------------------------------ norm and quality


def default_quality(spec: BackboneSpec) -> str:
    """The quality that trained aggregators weigh faces by: 'norm' unless it is known not to be one."""
    return "learned" if spec.norm_is_quality is False else "norm"


def default_pooling(spec: BackboneSpec) -> str:
    """The pooling of a bare backbone: by norm only where the norm is known to be a quality."""
    return "norm_weighted" if spec.norm_is_quality else "mean"


def norm_warning(spec: BackboneSpec, quality: str) -> str:
    """A sentence where faces are weighed by a norm that is not known to be a quality; else empty."""
    if spec.norm_is_quality or quality != "norm":
        return ""
    known = "is not known to be" if spec.norm_is_quality is None else "is not"
    return (
        f"The norm of {spec.name} {known} a measure of quality, by what its weights say: --quality "
        "learned may do better. python convert.py --check-quality WEIGHTS IMAGES --store OUT measures it."
    )

"""Verification and identification on IJB-B, IJB-C and benchmarks in their layout."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from coreset import AGGREGATORS, build_aggregator, requires_training
from coreset.quality import quality_of
from evaluation.protocols.face_points import check_detector_scores, check_landmarks, check_points_in_images
from evaluation.protocols.ijb import NOT_USED, Cohort, Rules, evaluate_ijb
from evaluation.protocols.ijb_layout import (
    POINTS,
    FacePoints,
    SetProtocol,
    faces_digest,
    image_stamps,
    read_points,
    read_protocol,
)
from evaluation.reporting.published import find_reference
from features.bank import FeatureBank
from features.flips import warn_of_doubled_norms
from features.options import FACES_AT_ONCE
from features.precomputed import PrecomputedFeatures, read_features
from net import Backbone
from photos.alignment import ALIGNMENT, LandmarkedFaces, similarity_transforms
from runtime.command import run_command
from runtime.errors import InputError
from validation.frame import EXPERIMENTS, check_output
from validation.ijb_flags import (
    DEFAULT_AGGREGATOR,
    DEFAULTS,
    changed_rules,
    check_flags,
    chosen_gpus,
    options_of,
)
from validation.ijb_flags import ijb_flags as flags
from validation.ijb_report import Evaluated, report
from validation.subjects import (
    check_made_alike,
    cohort_bank,
    cohort_of,
    judged_names,
    with_centre,
)
from weights import (
    Overrides,
    check_feature_size,
    check_not_trained_on,
    check_precomputed,
    load_backbone,
    load_stored_aggregator,
    prepare_for,
    source_name,
    trained_spec,
    weights_digest,
    weights_sha256,
)


@dataclass(frozen=True)
class _Trained:
    """An aggregator from a file, and its name in the registry."""

    module: nn.Module
    name: str
    path: str


def main(description: str | None = None) -> int:
    """Run the command and return its exit code; `description` is shown by --help."""
    given = vars(flags(description).parse_args())
    return run_command(lambda: validate(given))


def validate(given: Mapping[str, Any]) -> None:
    """Evaluates as the flags say, and writes everything into the output folder.

    Raises:
        InputError: flags, files or data that cannot be used.
    """
    check_flags(given)
    values = DEFAULTS | dict(given)
    name = values["dataset_name"]
    out = _output(values)
    rules = Rules.of_paper(values["protocol"], changed_rules(given))
    reference = find_reference(values["compare"], name) if "compare" in values else None
    trained = _trained_aggregators(values)
    aggregators = _aggregators(values, trained)
    Overrides.of(values).check_effect(aggregators.values())
    used = [trained[name] for name in aggregators if name in trained]
    for entry in used:
        warn_of_doubled_norms(rules.flip, entry.module, entry.name)

    began = time.perf_counter()
    protocol = read_protocol(Path(values["data_root"]), name)
    wanted = any(quality_of(module) == "detector" for module in aggregators.values())
    wanted = wanted or rules.detector_score != NOT_USED
    if wanted and "cohort" in values:
        raise InputError("--cohort: detector scores are used here, and the cohort's faces have none.")
    points, notes = _points(protocol, aligns="features" not in values, weighs=wanted)
    judged = judged_names(protocol, values.get("evaluated_subjects"))
    if judged is not None:
        check_not_trained_on(judged, {entry.name: entry.path for entry in used}, name)
    bank = cohort_bank(values["cohort"], judged) if "cohort" in values else None
    seconds = {"read": time.perf_counter() - began}
    began = time.perf_counter()
    features = (
        _given(values, rules, used, bank)
        if points is None or "features" in values
        else _embedded(values, rules, (protocol, points), used, bank, out)
    )
    if features is None:
        return  # A process beside the first, which has done its share.
    seconds["embed"] = time.perf_counter() - began
    cohort = None if bank is None else _cohort(values, bank, features, used)
    figures = evaluate_ijb(
        protocol,
        features.features,
        features.norms,
        aggregators,
        rules,
        detector_scores=points.scores if points is not None and wanted else None,
        cohort=cohort,
        two_identity_split=values.get("two_identity_split"),
        replicates=values["replicates"],
        published_helper=values["published_identification"],
        device="cuda" if chosen_gpus(values) else "cpu",
    )
    figures.warnings += notes
    if cohort is not None and judged is None:
        figures.warnings.append(
            f"{name} does not name its people, so that the cohort may hold some of them. "
            "--evaluated_subjects "
            "FILE names them."
        )
    figures.seconds = seconds | figures.seconds
    hashes = {entry.name: weights_sha256(entry.path) for entry in used}
    two_identity_split = values.get("two_identity_split")
    done = Evaluated(
        protocol, rules, values["protocol"], cohort, two_identity_split, features, figures, hashes
    )
    report(done, out, reference)


def _cohort(
    values: Mapping[str, Any], bank: FeatureBank, features: PrecomputedFeatures, trained: Sequence[_Trained]
) -> Cohort:
    known = [entry.path for entry in trained] + [values[key] for key in ("weights",) if key in values]
    bank = with_centre(bank, features.identity.get("centre"), map(trained_spec, known))
    return cohort_of(bank, values["score_normalisation"])


def _output(values: Mapping[str, Any]) -> Path:
    """The output folder, probed before the work as the cache is."""
    out = Path(values["out"]) if "out" in values else EXPERIMENTS / values["dataset_name"]
    check_output(out, Path(values["cache"]) if "cache" in values else None)
    return out


def _given(
    values: Mapping[str, Any], rules: Rules, trained: Sequence[_Trained], cohort: FeatureBank | None
) -> PrecomputedFeatures:
    """Features that were made before, if --weights and aggregators belong to them."""
    features = read_features(Path(values["features"]), rules.flip)
    made = features.identity.get("backbone_sha256")
    if made is not None and "weights" in values and weights_digest(_backbone(values)) != made:
        raise InputError(
            f"--features {values['features']}: were made by another backbone than --weights "
            f"{values['weights']}. Remove one of them."
        )
    size = features.features.shape[1]
    for entry in trained:
        check_precomputed(
            entry.module, entry.path, features.identity, size, f"--features {values['features']}"
        )
    if cohort is not None:
        check_made_alike(cohort, made, size)
    return features


def _embedded(
    values: Mapping[str, Any],
    rules: Rules,
    faces: tuple[SetProtocol, FacePoints],
    trained: Sequence[_Trained],
    cohort: FeatureBank | None,
    out: Path,
) -> PrecomputedFeatures | None:
    # Lightning takes seconds to import, and given features do not need it.
    from features.extract import embed_faces
    from features.options import EmbedOptions

    protocol, points = faces
    backbone = _backbone(values)
    digest = weights_digest(backbone)
    size = backbone.spec.embedding_size * (2 if rules.flip == "concat" else 1)
    for entry in trained:
        check_feature_size(entry.module, size, entry.path)
    if cohort is not None:
        check_made_alike(cohort, digest, size)
    stamps = image_stamps(protocol)
    transforms = similarity_transforms(points.landmarks)
    gpus = chosen_gpus(values)
    store = embed_faces(
        backbone,
        LandmarkedFaces(protocol.image_folder, protocol.image_names, transforms),
        {"faces": faces_digest(protocol, points), **ALIGNMENT},
        Path(values.get("cache", out / "features")),
        EmbedOptions(
            flip=rules.flip,
            precision=values["precision"],
            batch_size=values.get("batch_size", FACES_AT_ONCE["cuda" if gpus else "cpu"]),
            num_workers=values["num_workers"],
            gpu=gpus > 0,
            devices=gpus or values["cpu_processes"],
            num_nodes=values["num_nodes"],
        ),
        stamps=stamps,
        labels=protocol.subjects[protocol.template_of_face],
        about={
            "weights": source_name(values["weights"]),
            "weights_sha256": weights_sha256(values["weights"]),
        },
        name=protocol.name,
    )
    if store is None:
        return None
    return PrecomputedFeatures(store.features, store.norms, store.identity, store.about)


def _points(protocol: SetProtocol, *, aligns: bool, weighs: bool) -> tuple[FacePoints | None, list[str]]:
    """Landmarks and scores where they are needed, checked for what they are needed for; and warnings."""
    notes = list(protocol.warnings)
    if not aligns and not weighs:
        return None, notes
    points, path = read_points(protocol), protocol.meta(POINTS)
    if aligns:
        notes += check_landmarks(points.landmarks, path)
        notes += check_points_in_images(points.landmarks, protocol.image_names, protocol.image_folder, path)
    if weighs:
        notes += check_detector_scores(points.scores, protocol.template_of_face, protocol.template_ids, path)
    return points, notes


def _backbone(values: Mapping[str, Any]) -> Backbone:
    backbone = load_backbone(values["weights"], values.get("arch"))
    prepare_for(backbone, values.get("aggregator_weights", []))
    return backbone


def _trained_aggregators(values: Mapping[str, Any]) -> dict[str, _Trained]:
    """The aggregators in the files, by their names; --aggregator_weights come before the weights' own.

    Raises:
        InputError: a file has none, or two have one of the same name.
    """
    overrides = Overrides.of(values)
    found: dict[str, _Trained] = {}
    for path in values.get("aggregator_weights", []):
        stored = load_stored_aggregator(path, overrides)
        if stored is None:
            raise InputError(f"--aggregator_weights {path}: there is no aggregator in it.")
        if (name := stored.name) in found:
            raise InputError(f"--aggregator_weights: {found[name].path} and {path} both hold a {name}.")
        found[name] = _Trained(stored.module, name, path)
    needed = "aggregator" not in values or any(map(requires_training, values["aggregator"]))
    own = load_stored_aggregator(values["weights"], overrides) if needed and "weights" in values else None
    if own is not None and own.name not in found:
        found[own.name] = _Trained(own.module, own.name, values["weights"])
    return found


def _aggregators(values: Mapping[str, Any], trained: Mapping[str, _Trained]) -> dict[str, nn.Module]:
    """The modules by name, in the order asked for."""
    names = values.get("aggregator") or list(trained) or [DEFAULT_AGGREGATOR]
    if untrained := [name for name in names if name not in trained and requires_training(name)]:
        raise InputError(
            f"--aggregator {' '.join(untrained)}: has to be trained, and no file given holds one. Pass "
            "--aggregator_weights CHECKPOINT, or choose among "
            f"{', '.join(name for name in AGGREGATORS if not requires_training(name))}."
        )
    for name, entry in trained.items():
        if name not in names and entry.path in values.get("aggregator_weights", []):
            raise InputError(f"--aggregator_weights {entry.path}: holds a {name}; add it to --aggregator.")
    return {
        name: trained[name].module
        if name in trained
        else build_aggregator(
            name,
            {
                option: values[option]
                for option in ("coreset_size", "gamma", "quality")
                if option in options_of(name) and option in values
            },
        )
        for name in names
    }

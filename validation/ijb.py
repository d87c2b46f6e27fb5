"""Verification and identification on IJB-B, IJB-C and benchmarks in their layout."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreset.catalogue import DEFAULT_SPLIT_LIMIT, QUALITIES, requires_training
from evaluation.metrics.score_normalisation import DEFAULT_METHOD, METHODS, METHODS_HELP, NEEDS_COHORT
from evaluation.reporting.published import PAPER_RULES, Reference, find_reference
from evaluation.reporting.report import Seconds
from runtime.errors import InputError
from validation.frame import (
    Report,
    Run,
    Validation,
    chosen_gpus,
    open_model,
    options_of,
    range_faults,
)
from weights.sources import weights_sha256

if TYPE_CHECKING:
    from evaluation.protocols.face_points import FacePoints
    from evaluation.protocols.ijb import Cohort, Rules
    from evaluation.protocols.ijb_layout import SetProtocol
    from features.bank import FeatureBank
    from features.precomputed import PrecomputedFeatures
    from validation.ijb_report import Evaluated

DEFAULT_AGGREGATOR = "media_mean"
# Flags of embedding, without effect on precomputed features.
_EMBEDDING = ("num_nodes", "cpu_processes", "num_workers", "batch_size", "precision", "cache")


@dataclass(frozen=True, eq=False)
class Data:
    """A benchmark, names of its subjects where they are known, and the cohort."""

    protocol: SetProtocol
    subjects: frozenset[str] | None
    cohort: FeatureBank | None


class IjbBenchmark(Validation[Data, "Evaluated"]):
    """The command validation_mixed/validate_ijb.py."""

    out = "DATASET_NAME"
    # The rules of --protocol have a value.
    flip = argparse.SUPPRESS
    default_aggregator = DEFAULT_AGGREGATOR

    def add_more(self, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("features")
        group.add_argument(
            "--quality",
            choices=[name for name in QUALITIES if name != "learned"],
            help="weights of the poolings (default: norm); a trained aggregator has its own",
        )
        group.add_argument(
            "--features",
            metavar="PATH",
            help="precomputed features: a folder of an earlier run, an npz of InsightFace's, or a published "
            "pickle",
        )
        _add_protocol(parser.add_argument_group("protocol"))

    def add_data(self, group: argparse._ActionsContainer) -> None:
        group.add_argument(
            "--data_root", metavar="DIR", help="folder of the data sets: holds IJBB/, IJBC/, ..."
        )
        group.add_argument(
            "--dataset_name", metavar="NAME", default="IJBC", help="IJBB, IJBC, or a folder of that layout"
        )
        group.add_argument(
            "--evaluated_subjects",
            metavar="FILE",
            help="names of the benchmark's subjects, one per line: aggregators trained on one of them are "
            "refused, and the cohort is used without them (default: the benchmark's own list, where it has "
            "one)",
        )

    def default_out(self, args: argparse.Namespace) -> str:
        return str(args.dataset_name)

    def check(self, given: Mapping[str, Any], args: argparse.Namespace) -> list[str]:
        faults = super().check(given, args)
        if args.features is not None:
            faults += [
                f"--{name} has no effect with --features. Remove it." for name in _EMBEDDING if name in given
            ]
            if args.arch is not None and args.weights is None:
                faults.append("--arch has no effect without --weights. Remove it.")
        faults += [
            f"--{name} {value}: no such file."
            for name in ("features", "cohort", "evaluated_subjects")
            if (value := getattr(args, name)) is not None and not Path(value).exists()
        ]
        faults += range_faults(args, {"coreset_size": 1, "replicates": 0})
        if "score_normalisation" in given and args.cohort is None:
            faults.append(NEEDS_COHORT)
        limit = args.two_identity_split
        if limit is not None and not -1 <= limit <= 1:
            faults.append(f"--two_identity_split {limit}: expected a cosine, -1 to 1.")
        if limit is not None and args.published_identification:
            faults.append(
                "--two_identity_split has no effect on --published_identification. Remove one of them."
            )
        names = args.aggregator or [DEFAULT_AGGREGATOR]
        poolings = [name for name in names if not requires_training(name)]
        if args.quality is not None and not any("quality" in options_of(name) for name in poolings):
            faults.append("--quality has no effect: no pooling weighs faces here. Remove it.")
        return faults

    def embeds(self, args: argparse.Namespace) -> bool:
        return args.features is None

    def flip_rule(self, args: argparse.Namespace) -> str:
        return rules_of(args).flip

    def read(self, args: argparse.Namespace) -> Data:
        from evaluation.protocols.ijb_layout import read_protocol
        from validation.subjects import cohort_bank, evaluated_subjects

        if args.data_root is None:
            raise InputError(
                "--data_root is missing: the folder that holds IJBB/ and IJBC/, with loose_crop/ and meta/ "
                "in each. IJB is available from NIST, crops and lists in this layout from InsightFace."
            )
        protocol = read_protocol(Path(args.data_root), args.dataset_name)
        subjects = evaluated_subjects(protocol, args.evaluated_subjects)
        return Data(protocol, subjects, None if args.cohort is None else cohort_bank(args.cohort, subjects))

    def find_reference(self, args: argparse.Namespace) -> Reference:
        return find_reference(args.compare, args.dataset_name)

    def evaluate(self, run: Run, data: Data) -> Evaluated | None:
        from coreset.quality import quality_of
        from evaluation.protocols.ijb import evaluate_ijb
        from evaluation.reporting.published import NOT_USED
        from validation.ijb_report import Evaluated
        from weights import check_not_trained_on

        args, rules, protocol = run.args, rules_of(run.args), data.protocol
        if data.subjects is not None:
            sources = {entry.name: entry.source for entry in run.trained}
            check_not_trained_on(data.subjects, sources, protocol.name)
        weighs = rules.detector_score != NOT_USED
        weighs = weighs or any(quality_of(module) == "detector" for module in run.aggregators.values())
        if weighs and data.cohort is not None:
            raise InputError("--cohort: detector scores are used here, and the cohort's faces have none.")
        with run.seconds.of("read"):
            points, warnings = _points(protocol, aligns=run.model is not None, weighs=weighs)
        with run.seconds.of("embed"):
            features = (
                _precomputed(run, rules, data.cohort)
                if run.model is None or points is None
                else _embedded(run, protocol, points, data.cohort)
            )
        if features is None:
            # Another process than the first.
            return None
        cohort = None if data.cohort is None else _cohort(run, data.cohort, features)
        figures = evaluate_ijb(
            protocol,
            features.features,
            features.norms,
            run.aggregators,
            rules,
            auxiliary_size=_auxiliary_size(run, features),
            detector_scores=points.scores if points is not None and weighs else None,
            cohort=cohort,
            two_identity_split=args.two_identity_split,
            replicates=args.replicates,
            published_helper=args.published_identification,
            device="cuda" if chosen_gpus(args.gpus) else "cpu",
        )
        figures.warnings += warnings
        if cohort is not None and data.subjects is None:
            figures.warnings.append(
                f"{protocol.name} does not name its subjects, so the cohort may contain some of them. "
                "--evaluated_subjects FILE names them."
            )
        figures.seconds = Seconds(run.seconds | figures.seconds)
        hashes = {entry.name: weights_sha256(entry.source) for entry in run.trained}
        return Evaluated(
            protocol, rules, args.protocol, cohort, args.two_identity_split, features, figures, hashes
        )

    def report(self, run: Run, data: Data, figures: Evaluated, reference: Reference | None) -> Report:
        from validation.ijb_report import paragraphs, result_of

        return Report(result_of(figures), paragraphs(figures))

    def write_more(self, run: Run, figures: Evaluated) -> list[str]:
        from validation.ijb_report import plot

        plot(figures, run.out / "plots")
        return ["result.json", "report.md", "plots/", "features/ (for --features)"]


def _add_protocol(group: argparse._ActionsContainer) -> None:
    group.add_argument("--protocol", choices=PAPER_RULES, default="facecoresetnet", help="rules of a paper")
    group.add_argument("--media", choices=("none", "mean"), help="average the faces of each medium first")
    group.add_argument(
        "--detector_score", choices=("off", "on"), help="multiply norms by the detector's score"
    )
    group.add_argument("--norm", choices=("off", "on"), help="weight faces by their feature norm")
    group.add_argument(
        "--cohort",
        metavar="FEATURES",
        help="other subjects, for score normalisation: a store of main.py --cache_features, or an npz",
    )
    group.add_argument(
        "--score_normalisation",
        choices=METHODS,
        default=DEFAULT_METHOD,
        help=f"with --cohort; {METHODS_HELP}",
    )
    group.add_argument(
        "--two_identity_split",
        nargs="?",
        const=DEFAULT_SPLIT_LIMIT,
        type=float,
        metavar="COSINE",
        help="split a template in two descriptors if their cosine is below this one "
        f"({DEFAULT_SPLIT_LIMIT:g}); the best score counts",
    )
    group.add_argument(
        "--replicates", type=int, metavar="N", default=200, help="bootstrap replicates of intervals, 0: none"
    )
    group.add_argument(
        "--published_identification",
        action="store_true",
        default=False,
        help="also the published 1:N helper's rates, which are not FPIR",
    )


def rules_of(args: argparse.Namespace) -> Rules:
    """The rules of the paper, changed by the flags of single rules."""
    from evaluation.protocols.ijb import RULE_VALUES, Rules
    from evaluation.reporting.published import NOT_USED

    words = {"none": NOT_USED, "off": NOT_USED, "on": "multiplied"}
    values = {name: getattr(args, name) for name in RULE_VALUES if getattr(args, name) is not None}
    return Rules.of_paper(args.protocol, {name: words.get(v, v) for name, v in values.items()})


def _auxiliary_size(run: Run, features: PrecomputedFeatures) -> int:
    """That of the features; of ones without a description, what the aggregators read."""
    if features.auxiliary_size is not None:
        return features.auxiliary_size
    return max(getattr(module, "auxiliary_size", 0) for module in run.aggregators.values())


def _cohort(run: Run, bank: FeatureBank, features: PrecomputedFeatures) -> Cohort:
    from validation.subjects import cohort_of, with_centre
    from weights import trained_spec

    known = [entry.source for entry in run.trained] + ([run.args.weights] if run.args.weights else [])
    bank = with_centre(bank, features.identity.get("centre"), map(trained_spec, known))
    return cohort_of(bank, run.args.score_normalisation)


def _precomputed(run: Run, rules: Rules, cohort: FeatureBank | None) -> PrecomputedFeatures:
    """The features of --features, checked against --weights, aggregators and cohort."""
    from features.precomputed import read_features
    from validation.subjects import check_cohort
    from weights import check_precomputed, check_same_backbone, weights_digest

    args = run.args
    features = read_features(Path(args.features), rules.flip)
    digest, size = features.identity.get("backbone_sha256"), features.features.shape[1]
    if digest is not None and args.weights:
        check_same_backbone(
            f"--features {args.features}: its features",
            digest,
            f"--weights {args.weights}",
            weights_digest(open_model(args, rules.flip).backbone),
            "Remove one of them.",
        )
    for entry in run.trained:
        check_precomputed(entry.module, entry.source, features.identity, size, f"--features {args.features}")
    if cohort is not None:
        check_cohort(cohort, digest, size)
    return features


def _embedded(
    run: Run, protocol: SetProtocol, points: FacePoints, cohort: FeatureBank | None
) -> PrecomputedFeatures | None:
    from evaluation.protocols.face_points import faces_digest
    from evaluation.protocols.ijb_layout import image_stamps
    from features.extract import embed_faces
    from features.precomputed import PrecomputedFeatures
    from photos.alignment import ALIGNMENT, LandmarkedFaces, similarity_transforms
    from validation.subjects import check_cohort
    from weights import weights_digest

    model = run.loaded
    if cohort is not None:
        check_cohort(cohort, weights_digest(model.backbone), model.embedding_size)
    stamps = image_stamps(protocol)
    transforms = similarity_transforms(points.landmarks)
    store = embed_faces(
        model.backbone,
        LandmarkedFaces(protocol.image_folder, protocol.image_names, transforms),
        {"faces": faces_digest(protocol, points), **ALIGNMENT},
        run.cache,
        model.options,
        stamps=stamps,
        labels=protocol.subjects[protocol.template_of_face],
        about=model.about(),
        name=protocol.name,
    )
    if store is None:
        return None
    return PrecomputedFeatures(store.features, store.norms, store.identity, store.about)


def _points(protocol: SetProtocol, *, aligns: bool, weighs: bool) -> tuple[FacePoints | None, Sequence[str]]:
    """Landmarks and scores if they are needed, checked for their use; and warnings."""
    from evaluation.protocols import face_points as checks

    warnings = list(protocol.warnings)
    if not aligns and not weighs:
        return None, warnings
    points, path = checks.read_points(protocol), protocol.meta(checks.POINTS)
    if aligns:
        warnings += checks.check_landmarks(points.landmarks, path)
        warnings += checks.check_points_in_images(
            points.landmarks, protocol.image_names, protocol.image_folder, path
        )
    if weighs:
        warnings += checks.check_detector_scores(
            points.scores, protocol.template_of_face, protocol.template_ids, path
        )
    return points, warnings


PROTOCOL = IjbBenchmark()

"""Robustness of aggregators to contaminated, repeated and small sets: TAR@FAR and rank 1.

python benchmarks/studies/robustness.py --data_root ROOT --dataset_name LFWS --features FEATURES \
    --weights BACKBONE --aggregator mean norm_weighted media_mean --aggregator_weights coreset=RUN/best.ckpt \
    --donors VIEWS --evaluated_subjects SUBJECTS.txt
    FEATURES: features of its faces, as validation_mixed stores them (<out>/features/...), made by the
    backbone; VIEWS: a store of main.py --cache_features; SUBJECTS: those of the benchmark, who are not used
    as donors

Every template, gallery and probe, is changed in one way at a time, at random by --seed:
    repeats     its face of the smallest norm is repeated that many times
    impostors   that fraction of its faces are impostor faces, each of another donor; donors are not subjects
                of the benchmark, so that compared templates do not share an image
    unreadable  that fraction of its faces are noise, a blank, or synthetic hair without a face
    wrong       that fraction of the templates get one impostor medium: a still, or a clip of 4 to 40 frames,
                of a donor of its own while there are any. A template of one medium does not indicate which is
                meant
    among_several  the same, in templates of two media or more only
    size        that many of its faces are kept; smaller templates are repeated
Fractions of faces are rounded at random, so that they are right on average.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
import pandas as pd
from torch import nn

from benchmarks.studies.evaluator import EvaluationSet, add_cohort_flags, cohort_method, read_evaluation_set
from benchmarks.studies.robustness_tables import AMOUNTS, REFERENCE, SPLIT_SUFFIX, draw, report
from coreset import build_aggregator
from coreset.catalogue import DEFAULT_SPLIT_LIMIT
from coreset.two_identity_split import TwoIdentitySplit
from data.sampling.views import Kind
from data.sources.subject_names import read_names
from evaluation.metrics.identification import cmc
from evaluation.metrics.score_normalisation import compared
from evaluation.metrics.search import search
from evaluation.metrics.template_pairs import verify
from evaluation.protocols.ijb_layout import SetProtocol
from evaluation.protocols.templates import FaceGroups, aggregate_templates
from features.bank import FeatureBank, read_feature_bank, with_centre_of
from features.extract import extract
from runtime.command import build_parser, run_command
from runtime.errors import InputError
from runtime.files import atomic_write
from weights import load_aggregator, load_backbone

FARS = (1e-2, 1e-3)
NUM_UNREADABLE, NUM_DONATED = 60, 60_000
CLIP_FRAMES = (4, 40)
UNREADABLE, DONOR = -1, -2

Array = np.ndarray


@dataclass(frozen=True)
class Faces:
    """`features` (N, D) unit rows and `norms` (N,) of the benchmark's faces, then of those that are added.

    `subjects` (N,) of each face, `UNREADABLE` or `DONOR` for the others; `donated`: of each donor, the faces
    of each medium.
    """

    features: Array
    norms: Array
    subjects: Array
    donated: Sequence[Sequence[Array]]
    auxiliary_size: int = 0

    def describe(self, aggregator: nn.Module, groups: FaceGroups) -> Array:
        """Descriptors (M, D) of templates."""
        faces = self.features, self.norms, groups
        return aggregate_templates(aggregator, *faces, auxiliary_size=self.auxiliary_size).embedding


def main() -> int:
    """Run the benchmark."""
    parser = build_parser(__doc__)
    parser.add_argument("--data_root", type=Path, required=True)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--features", type=Path, required=True, help="of all its faces, in its order")
    parser.add_argument("--weights", type=Path, required=True, help="the backbone, for unreadable faces")
    parser.add_argument("--donors", type=Path, required=True, help="views of other people's faces")
    parser.add_argument(
        "--evaluated_subjects", type=Path, required=True, help="names, one per line: no donors"
    )
    add_cohort_flags(parser)
    parser.add_argument("--aggregator", nargs="+", default=["mean", REFERENCE, "media_mean"], help="poolings")
    parser.add_argument("--aggregator_weights", nargs="+", default=[], metavar="NAME=FILE", help="trained")
    parser.add_argument(
        "--two_identity_split",
        nargs="?",
        const=DEFAULT_SPLIT_LIMIT,
        type=float,
        metavar="COSINE",
        help="each aggregator also as validate_ijb.py --two_identity_split has it",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("robustness"), help="folder of all results")
    args = parser.parse_args()
    return run_command(lambda: compare(args))


def compare(args: argparse.Namespace) -> None:
    """Flags to robustness.csv, robustness.md and robustness.png in --out.

    Raises:
        InputError: data, features or weights that cannot be used.
    """
    aggregators = _aggregators(args.aggregator, args.aggregator_weights)
    evaluation_set = read_evaluation_set(
        args.data_root,
        args.dataset_name,
        args.features,
        args.cohort,
        args.evaluated_subjects,
        cohort_method(args),
    )
    normalisation = {
        name: evaluation_set.normalisation(aggregator) for name, aggregator in aggregators.items()
    }
    if args.two_identity_split is not None:
        for name, aggregator in list(aggregators.items()):
            aggregators[name + SPLIT_SUFFIX] = TwoIdentitySplit(aggregator, args.two_identity_split)
            normalisation[name + SPLIT_SUFFIX] = normalisation[name]
    faces, groups = _faces(args, evaluation_set), evaluation_set.groups
    rows: list[dict[str, object]] = []
    for kind, amounts in AMOUNTS.items():
        for amount in amounts:
            changed = CHANGES[kind](groups, faces, amount, args.seed)
            for name, aggregator in aggregators.items():
                embedding = faces.describe(aggregator, changed)
                row: dict[str, object] = {"aggregator": name, "change": kind, "amount": amount}
                rows.append(row | _rates(evaluation_set.protocol, *compared(embedding, normalisation[name])))
            print(f"{kind} {amount:g}: done")
    table = pd.DataFrame(rows)
    cosines = {name: repeat_cosine(aggregator, groups, faces) for name, aggregator in aggregators.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    atomic_write(args.out / "robustness.csv", table.to_csv(index=False, float_format="%.4f"))
    draw(table, args.out / "robustness.png")
    text = report(table, cosines, args.dataset_name)
    atomic_write(args.out / "robustness.md", text + "\n")
    print(f"\n{text}\n\n{args.out}: robustness.csv, robustness.md, robustness.png")


def _faces(args: argparse.Namespace, evaluation_set: EvaluationSet) -> Faces:
    features, norms = (
        np.asarray(evaluation_set.features, np.float32),
        np.asarray(evaluation_set.norms, np.float32),
    )
    backbone = load_backbone(args.weights)
    odd_features, odd_norms = extract(unreadable_images(NUM_UNREADABLE, args.seed), backbone)
    donors = with_centre_of(backbone.spec, read_feature_bank(args.donors))
    donors = donors.of_subjects(donors.other_subjects(read_names(args.evaluated_subjects)))
    for flag, width in (("weights", odd_features.shape[1]), ("donors", donors.embedding_size)):
        if width != features.shape[1]:
            raise InputError(
                f"--{flag}: {width} values a face, --features have {features.shape[1]}; give what "
                "one backbone made."
            )
    media, owners = _media_of(donors, np.random.default_rng(args.seed))
    chosen = np.concatenate(media)
    first = len(features) + NUM_UNREADABLE
    places = np.split(np.arange(first, first + len(chosen)), np.cumsum([len(rows) for rows in media])[:-1])
    donated: dict[int, list[Array]] = {}
    for owner, place in zip(owners, places, strict=True):
        donated.setdefault(owner, []).append(place)
    kinds = np.repeat([UNREADABLE, DONOR], [NUM_UNREADABLE, len(chosen)])
    return Faces(
        np.concatenate([features, odd_features, donors.values(chosen).float().numpy()]),
        np.concatenate([norms, odd_norms, np.asarray(donors.norms[chosen], np.float32)]),
        np.concatenate([evaluation_set.protocol.subjects[evaluation_set.protocol.template_of_face], kinds]),
        list(donated.values()),
        evaluation_set.auxiliary_size,
    )


def _media_of(donors: FeatureBank, rng: np.random.Generator) -> tuple[list[Array], list[int]]:
    """Rows of media of random images with about `NUM_DONATED` faces in all, and the subject of each."""
    media: list[Array] = []
    owners: list[int] = []
    count = 0
    for image in rng.permutation(len(donors)):
        start, length = donors.starts[image], donors.lengths[image]
        parts = [(0, length)] if donors.plan is None else donors.plan.media(*Kind).tolist()
        media += [np.arange(start + first, start + first + size) for first, size in parts]
        owners += [int(donors.labels[image])] * len(parts)
        count += length
        if count >= NUM_DONATED:
            break
    return media, owners


def _aggregators(poolings: Sequence[str], trained: Sequence[str]) -> dict[str, nn.Module]:
    found = {name: build_aggregator(name, {}) for name in dict.fromkeys([*poolings, REFERENCE])}
    for word in trained:
        name, _, path = word.partition("=")
        aggregator = load_aggregator(path) if path else None
        if aggregator is None or name in found:
            raise InputError(
                f"--aggregator_weights {word}: expected NAME=FILE, a name of its own and weights that "
                "hold an aggregator."
            )
        found[name] = aggregator
    return found


def unreadable_images(count: int, seed: int) -> Array:
    """(count, 112, 112, 3) RGB: noise, blanks and synthetic hair in turn."""
    images = np.empty((count, 112, 112, 3), np.uint8)
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        if number % 3 == 0:
            images[number] = rng.integers(0, 256, images[number].shape)
        elif number % 3 == 1:
            images[number] = rng.integers(0, 256, 3)
        else:
            images[number] = rng.integers(90, 220, 3)
            hair = rng.integers(10, 120, 3)
            cv2.ellipse(images[number], (56, 60), (42, 52), 0, 0, 360, hair.tolist(), -1)
            strands = cv2.blur(rng.normal(0, 40, (112, 112)), (1, 15))
            images[number] = np.clip(images[number] + strands[..., None], 0, 255)
    return images


def with_repeats(groups: FaceGroups, faces: Faces, amount: float, seed: int) -> FaceGroups:
    """Repeat the face of the smallest norm of each template `amount` times."""

    def changed(rows: Array, rng: np.random.Generator) -> Array:
        worst = rows[np.argmin(faces.norms[rows])]
        return np.concatenate([rows, np.full(int(amount) - 1, worst)])

    return _each(groups, seed, changed)


def _with_added(whose: int, groups: FaceGroups, faces: Faces, amount: float, seed: int) -> FaceGroups:
    """Add impostor or unreadable faces until their fraction is `amount`."""
    others = np.flatnonzero(faces.subjects == whose)

    def changed(rows: Array, rng: np.random.Generator) -> Array:
        return np.concatenate([rows, rng.choice(others, _added(len(rows), amount, rng))])

    return _each(groups, seed, changed)


with_impostor_faces = partial(_with_added, DONOR)
with_unreadable = partial(_with_added, UNREADABLE)


def _with_impostor_medium(
    min_media: int, groups: FaceGroups, faces: Faces, amount: float, seed: int
) -> FaceGroups:
    """Add an impostor medium to a fraction `amount` of the templates with `min_media` media or more.

    Of another donor in every template, while there are any: two sets with the same impostor do show one
    person.
    """
    donors = cycle(np.random.default_rng(seed).permutation(len(faces.donated)).tolist())
    medium_of = dict(zip(groups.rows.tolist(), groups.media.tolist(), strict=True))

    def changed(rows: Array, rng: np.random.Generator) -> Array:
        media = faces.donated[next(donors)]
        if rng.random() >= amount or len({medium_of[row] for row in rows.tolist()}) < min_media:
            return rows
        medium = media[rng.integers(len(media))]
        frames = 1 if len(medium) == 1 else round(np.exp(rng.uniform(*np.log(CLIP_FRAMES))))
        return np.concatenate([rows, np.resize(medium, frames)])

    return _each(groups, seed, changed, together=True)


with_wrong_medium = partial(_with_impostor_medium, 1)
with_wrong_among_several = partial(_with_impostor_medium, 2)


def of_size(groups: FaceGroups, faces: Faces, amount: float, seed: int) -> FaceGroups:
    """`amount` faces of each template in random order, repeated if it has fewer."""

    def changed(rows: Array, rng: np.random.Generator) -> Array:
        return np.resize(rng.permutation(rows), int(amount))

    return _each(groups, seed, changed)


CHANGES: Mapping[str, Callable[[FaceGroups, Faces, float, int], FaceGroups]] = {
    "repeats": with_repeats,
    "impostors": with_impostor_faces,
    "unreadable": with_unreadable,
    "wrong": with_wrong_medium,
    "among_several": with_wrong_among_several,
    "size": of_size,
}


def _added(count: int, share: float, rng: np.random.Generator) -> int:
    wanted = count * share / (1 - share)
    return int(wanted) + int(rng.random() < wanted % 1)


def _each(
    groups: FaceGroups,
    seed: int,
    changed: Callable[[Array, np.random.Generator], Array],
    *,
    together: bool = False,
) -> FaceGroups:
    """Templates of other faces. A face keeps its medium; one that was not there is a medium of its own, or
    (`together`) all such of a template are one.
    """
    rows, media, next_medium = [], [], int(groups.media.max()) + 1
    for number in range(len(groups)):
        place = slice(groups.offsets[number], groups.offsets[number + 1])
        own = dict(zip(groups.rows[place].tolist(), groups.media[place].tolist(), strict=True))
        found = changed(groups.rows[place], np.random.default_rng([seed, number]))
        rows.append(found)
        for row in found.tolist():
            if row not in own:
                own[row] = next_medium
                next_medium += not together
            media.append(own[row])
        next_medium += together
    offsets = np.concatenate([[0], np.cumsum([len(found) for found in rows])])
    return FaceGroups(np.concatenate(rows), offsets, np.array(media))


def repeat_cosine(aggregator: nn.Module, groups: FaceGroups, faces: Faces) -> tuple[float, float]:
    """Mean and smallest cosine of each descriptor with that of its worst face repeated 500 times."""
    before, after = (
        faces.describe(aggregator, each)
        for each in (groups, with_repeats(groups, faces, AMOUNTS["repeats"][-1], 0))
    )
    cosines = (before * after).sum(axis=-1)
    return float(cosines.mean()), float(cosines.min())


def _rates(protocol: SetProtocol, left: Array, right: Array) -> dict[str, float]:
    pairs = protocol.pairs
    verified = verify(left, pairs.first, pairs.second, pairs.is_mated, FARS, second_descriptors=right).rates
    rates = {f"tar_at_far_{key}": 100 * rate.strict for key, rate in verified.items()}
    if protocol.probes is None or not protocol.galleries:
        return rates
    ranks = []
    probes = left[protocol.probes.templates]
    for gallery in protocol.galleries:
        known = right[gallery.templates]
        found = search(probes, known, protocol.probes.subjects, gallery.subjects)
        ranks.append(cmc(found, (1,))["1"])
    return rates | {"rank1": 100 * float(np.mean(ranks))}


if __name__ == "__main__":
    sys.exit(main())

"""Detection and false alarm rates of the outlier check at enrolment.

python benchmarks/studies/impostor_media.py --data_root ROOT --dataset_name LFWS --features FEATURES --seeds 5
    FEATURES: features of its faces, as validation_mixed stores them (<out>/features/...). One medium of
    another subject is added to every second template; templates of three media or more are counted
python benchmarks/studies/impostor_media.py --fit VIEWS [--exclude_subjects SUBJECTS.txt] ...
    fits the model to a store of views (main.py --cache_features) without those subjects, prints its
    coefficients in the form of recognition/enrolment/outliers.py, and evaluates it

A medium counts as reported if at least half of its faces are. "media": faces of one photo or video are known
to be one medium, as in inference.py; "frames": every face counts as a photo, as if the frames of a video
were files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.studies.evaluator import read_evaluation_set
from data.sampling.views import Kind
from evaluation.metrics.bootstrap import rate_interval95
from evaluation.metrics.thresholds import threshold_at
from evaluation.protocols.ijb_layout import SetProtocol
from features.bank import FeatureBank, read_feature_bank
from recognition.enrolment.checks import similarity_to_rest
from recognition.enrolment.identities import IdentityLimits, find_identities
from recognition.enrolment.limits import NEAR_DUPLICATE, EnrolmentLimits
from recognition.enrolment.outliers import (
    DEFAULT_MODEL,
    MIN_SAMPLES,
    OutlierModel,
    outlier_evidence,
    outlier_log_odds,
)
from recognition.enrolment.samples import duplicate_groups, independent_samples, pool_samples

FIT_SETS = 6000
MIN_IMAGES, MAX_IMAGES = 2, 6
# Moderate stills, poor stills, poor clips.
KINDS, SHARES = (Kind.MODERATE, Kind.POOR, Kind.CLIP), (0.3, 0.25, 0.45)
FALSE_ALARM_RATES = (0.02, 0.05, 0.1)
REPLICATES = 200

Ints = np.ndarray
Score = Callable[["MixedSet"], np.ndarray]


@dataclass(frozen=True)
class MixedSet:
    """One set: `features` (T, D), `norms` (T,), `media` (T,) 0..M-1, `impostor` (M,) bool, `subject`."""

    features: np.ndarray
    norms: np.ndarray
    media: np.ndarray
    impostor: np.ndarray
    subject: int


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_root", type=Path)
    parser.add_argument("--dataset_name", default="LFWS")
    parser.add_argument("--features", type=Path, help="of all faces of the data set, in its order")
    parser.add_argument("--seeds", type=int, default=5, help="mixes, from seed 0 on")
    parser.add_argument("--fit", type=Path, metavar="VIEWS")
    parser.add_argument(
        "--exclude_subjects", type=Path, metavar="FILE", help="subjects to exclude from the fit"
    )
    parser.add_argument("--impostor_media", type=int, default=1, help="added to every second template")
    args = parser.parse_args()
    rule = DEFAULT_MODEL
    if args.fit is not None:
        rule = fit(args.fit, args.exclude_subjects)
    if args.data_root is None or args.features is None:
        return 0
    evaluation_set = read_evaluation_set(args.data_root, args.dataset_name, args.features)
    features, norms = (
        np.asarray(evaluation_set.features, np.float32),
        np.asarray(evaluation_set.norms, np.float32),
    )
    mixes = [
        mixed(evaluation_set.protocol, features, norms, seed, args.impostor_media)
        for seed in range(args.seeds)
    ]
    report("a face's cosine with the others, as before", mixes, _cosine_score)
    report("media", mixes, lambda each: _odds(each, rule, by_media=True))
    report("frames", mixes, lambda each: _odds(each, rule, by_media=False))
    several_people(mixes)
    halves(mixes, lambda each: _odds(each, rule, by_media=True))
    return 0


def mixed(
    protocol: SetProtocol, features: np.ndarray, norms: np.ndarray, seed: int, impostor_media: int = 1
) -> list[MixedSet]:
    """All templates, with impostor media added to every second one."""
    rng = np.random.default_rng(seed)
    order = np.argsort(protocol.media, kind="stable")
    first = np.unique(protocol.media[order], return_index=True)[1]
    media = np.split(order, first[1:])
    template_of = np.array([protocol.template_of_face[rows[0]] for rows in media])
    subject_of = protocol.subjects[template_of]
    chosen = set(rng.permutation(len(protocol.template_ids))[::2].tolist())
    sets = []
    for template, subject in enumerate(protocol.subjects.tolist()):
        own = np.flatnonzero(template_of == template)
        others = np.flatnonzero(subject_of != subject)
        added = rng.choice(others, impostor_media, replace=False) if template in chosen else others[:0]
        parts = [media[number] for number in [*own, *added]]
        rows = np.concatenate(parts)
        sets.append(
            MixedSet(
                features[rows],
                norms[rows],
                np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
                np.arange(len(parts)) >= len(own),
                subject,
            )
        )
    return sets


def draw_sets(bank: FeatureBank, count: int, seed: int) -> list[MixedSet]:
    """Sets of degraded views of a bank's subjects, each medium from an image of its own."""
    rng = np.random.default_rng(seed)
    plan = bank.plan
    if plan is None:
        raise SystemExit(f"{bank.name}: --fit needs a store of views.")
    views = [plan.media(kind) for kind in KINDS]
    images = [np.flatnonzero(bank.labels == subject) for subject in range(len(bank.subjects))]
    several = [subject for subject, rows in enumerate(images) if len(rows) > MIN_IMAGES]
    sets = []
    for _ in range(count):
        subject = int(rng.choice(several))
        size = min(len(images[subject]), int(rng.integers(MIN_IMAGES, MAX_IMAGES + 1)))
        chosen = rng.choice(images[subject], size, replace=False).tolist()
        if rng.random() < 0.5:
            chosen.append(int(rng.choice(np.flatnonzero(bank.labels != subject))))
        rows, media = [], []
        for number, image in enumerate(chosen):
            begin, length = rng.choice(views[rng.choice(len(KINDS), p=SHARES)])
            rows += (bank.starts[image] + begin + np.arange(length)).tolist()
            media += [number] * int(length)
        sets.append(
            MixedSet(
                np.asarray(bank.features[rows], np.float32),
                np.asarray(bank.norms[rows], np.float32),
                np.array(media),
                np.arange(len(chosen)) >= size,
                subject,
            )
        )
    return sets


def fit(views: Path, exclude_subjects: Path | None) -> OutlierModel:
    """Logistic regression of the evidence; prints its coefficients and false alarm rates."""
    bank = read_feature_bank(views)
    excluded = set(exclude_subjects.read_text().split()) if exclude_subjects is not None else set()
    bank = bank.of_subjects(set(bank.subjects) - excluded)
    sets = [each for each in draw_sets(bank, FIT_SETS, seed=1) if len(each.impostor) >= MIN_SAMPLES]
    rows = np.concatenate(
        [outlier_evidence(*pool_samples(each.features, each.norms, each.media)) for each in sets]
    )
    labels = np.concatenate([each.impostor for each in sets])
    found = LogisticRegression(C=100, max_iter=1000).fit(rows, labels)
    rule = OutlierModel(*(round(float(value), 2) for value in [found.intercept_[0], *found.coef_[0]]))
    print(f"fitted on {len(bank.subjects):,} subjects, {len(sets):,} sets, {labels.sum():,} impostor media:")
    print(rule)
    report(
        "on the subjects of the fit, new draws", [draw_sets(bank, 2000, 2)], lambda s: _odds(s, rule, True)
    )
    return rule


def report(name: str, mixes: Sequence[Sequence[MixedSet]], score: Score) -> None:
    """Print the detection rate at fixed false alarm rates, and both rates at the shipped limit."""
    own, impostor, *subjects = _scores([each for mix in mixes for each in mix], score)
    low, high = _interval(own, impostor, *subjects)
    cuts = [f"{_share_found(own, impostor, wrong):.3f} at {wrong:.2f}" for wrong in FALSE_ALARM_RATES]
    line = (
        f"{name}: {len(own):,} genuine and {len(impostor):,} impostor media; found {', '.join(cuts)} reported"
    )
    line += f" ({low:.3f} to {high:.3f} at 0.05, 95 % over subjects)"
    if own.max() <= 1 and own.min() >= 0:
        limit = EnrolmentLimits().outlier
        line += f"; shipped limit {limit:g}: found {np.mean(impostor >= limit):.3f}, reported "
        line += f"{np.mean(own >= limit):.3f}"
    print(line)


def several_people(mixes: Sequence[Sequence[MixedSet]]) -> None:
    """Print how many templates of one subject are reported as several identities."""
    clean = [each for mix in mixes for each in mix if not each.impostor.any()]
    for name, by_media in (("media", True), ("frames", False)):
        units = [pool_samples(each.features, each.norms, _units(each, by_media)) for each in clean]
        taken = [find_identities(*each, IdentityLimits()).max() > 0 for each in units]
        print(
            f"{name}: {np.mean(taken):.4f} of {len(clean):,} templates of one subject are taken for several"
        )


def halves(mixes: Sequence[Sequence[MixedSet]], score: Score) -> None:
    """Choose the limit with 5 % false alarms on one half of the subjects, evaluate it on the other."""
    for half in (0, 1):
        here = [each for mix in mixes for each in mix if each.subject % 2 == half]
        there = [each for mix in mixes for each in mix if each.subject % 2 != half]
        limit = threshold_at(_scores(here, score)[0], 0.05)
        own, impostor, *_ = _scores(there, score)
        print(
            f"limit {limit:.3f} from half {half}, on the other half: found {np.mean(impostor >= limit):.3f}, "
            f"reported {np.mean(own >= limit):.3f}"
        )


def _scores(sets: Sequence[MixedSet], score: Score) -> tuple[np.ndarray, ...]:
    """Scores of genuine and impostor media of sets of three media or more: the median of their faces'.

    And the subjects of their sets.
    """
    own, impostor = [], []
    for each in sets:
        if len(each.impostor) < MIN_SAMPLES:
            continue
        values = score(each)
        for medium, is_impostor in enumerate(each.impostor):
            value = (np.median(values[each.media == medium]), each.subject)
            (impostor if is_impostor else own).append(value)
    (own_scores, own_subjects), (impostor_scores, impostor_subjects) = np.array(own).T, np.array(impostor).T
    return own_scores, impostor_scores, own_subjects, impostor_subjects


def _interval(
    own: np.ndarray, impostor: np.ndarray, own_subjects: np.ndarray, impostor_subjects: np.ndarray
) -> tuple[float, float]:
    """95 % bootstrap interval over subjects of the detection rate at 5 % false alarms."""
    rng = np.random.default_rng(0)
    subjects = np.unique(np.concatenate([own_subjects, impostor_subjects]))
    found = []
    for _ in range(REPLICATES):
        replicate = rng.multinomial(len(subjects), np.full(len(subjects), 1 / len(subjects)))
        here, there = (
            np.repeat(scores, replicate[np.searchsorted(subjects, subject_of)])
            for scores, subject_of in ((own, own_subjects), (impostor, impostor_subjects))
        )
        found.append(_share_found(here, there, 0.05))
    observed = _share_found(own, impostor, 0.05)
    low, high = rate_interval95(np.array(found)[:, None], [observed], len(np.unique(impostor_subjects)))
    return float(low[0]), float(high[0])


def _share_found(own: np.ndarray, impostor: np.ndarray, wrong: float) -> float:
    """Detection rate at a false alarm rate."""
    return float(np.mean(impostor >= threshold_at(own, wrong)))


def _odds(each: MixedSet, rule: OutlierModel, by_media: bool) -> np.ndarray:
    odds = outlier_log_odds(each.features, each.norms, _units(each, by_media), rule)
    return np.nan_to_num(1 / (1 + np.exp(-odds)), nan=0.0)


def _units(each: MixedSet, by_media: bool) -> np.ndarray:
    groups = duplicate_groups(each.features, NEAR_DUPLICATE)
    return independent_samples(each.media if by_media else np.arange(len(each.norms)), groups)


def _cosine_score(each: MixedSet) -> np.ndarray:
    return -similarity_to_rest(each.features, each.norms)


if __name__ == "__main__":
    sys.exit(main())

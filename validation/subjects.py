"""Evaluated subjects of a set benchmark, and a cohort of other subjects for score normalisation."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from backbones.spec import BackboneSpec, centre_digest
from data.sampling.positions import Item
from data.sources.subject_names import match_names, normal, read_names, unknown_names
from evaluation.metrics.score_normalisation import DEFAULT_METHOD, MIN_COHORT
from evaluation.protocols.ijb import Cohort
from evaluation.protocols.ijb_layout import SetProtocol
from evaluation.protocols.templates import group_faces
from evaluation.protocols.text_tables import read_table
from features.bank import FeatureBank, read_feature_bank, with_centre_of
from features.templates import TemplateRecipe, TemplateSampler
from runtime.errors import InputError, InputWarning
from runtime.escaping import from_csv_cell
from weights import check_same_backbone

# With one template a subject, normalised scores depend on how it happens to be drawn. Every template of the
# benchmark is compared with the whole cohort.
MAX_COHORT = 1_024
TEMPLATES_PER_SUBJECT = 4


def evaluated_subjects(protocol: SetProtocol, path: str | None) -> frozenset[str] | None:
    """Names of the benchmark's subjects: of --evaluated_subjects, else of the benchmark's own list.

    `convert.py --build_set_benchmark` writes such a list; published benchmarks have none.

    Returns:
        None where neither names them.

    Raises:
        InputError: a file cannot be read, or --evaluated_subjects names none of the benchmark's own list.
    """
    listed = None if path is None else read_names(Path(path))
    own = protocol.meta("subjects.csv")
    if not own.is_file():
        return listed
    table = read_table(own, {"SUBJECT_ID": np.int64, "NAME": str}, csv=True)
    names = [from_csv_cell(name) for name in table["NAME"]]
    if listed is None:
        return frozenset(map(normal, names))
    matches = match_names(listed, names, f"--evaluated_subjects {path}", protocol.name)
    if unknown := unknown_names(matches, names):
        found = f"{len(matches.subjects):,} of its names are subjects of {protocol.name}"
        warnings.warn(f"--evaluated_subjects {path}: {found}{unknown}.", InputWarning, stacklevel=2)
    return listed


def cohort_bank(path: str, excluded: frozenset[str] | None) -> FeatureBank:
    """Subjects of a store of views, or of an npz of features, for a cohort.

    Args:
        path: as `features.bank.read_feature_bank` takes it.
        excluded: names of the benchmark's subjects; None where they are not known.

    Raises:
        InputError: the features cannot be read, or have too few other subjects.
    """
    bank = read_feature_bank(Path(path))
    others = sorted(bank.other_subjects(excluded or ()))
    if len(others) < MIN_COHORT:
        raise InputError(
            f"--cohort {path}: {len(others)} subjects who are not in the benchmark, expected {MIN_COHORT} or "
            "more."
        )
    most = min(len(others), MAX_COHORT)
    return bank.of_subjects(np.random.default_rng(0).choice(others, most, replace=False).tolist())


def check_cohort(bank: FeatureBank, backbone: str | None, size: int) -> None:
    """Check that a cohort's features were made by the backbone of the benchmark's.

    Args:
        bank: the cohort.
        backbone: digest of the benchmark's backbone; None where it is not known.
        size: values of a feature.

    Raises:
        InputError: they were made by another one, or have another size.
    """
    features, advice = f"--cohort {bank.name}: its features", "Make both with the same --weights."
    check_same_backbone(features, bank.backbone_sha256, "the benchmark's", backbone, advice)
    if bank.embedding_size != size:
        raise InputError(
            f"{features} have {bank.embedding_size} values, and the benchmark's have {size}. {advice}"
        )


def with_centre(bank: FeatureBank, wanted: str | None, specs: Iterable[BackboneSpec | None]) -> FeatureBank:
    """The cohort with the centre subtracted that was subtracted from the benchmark's features.

    Args:
        bank: the cohort, without a centre subtracted.
        wanted: `backbones.spec.centre_digest` of the benchmark's features; None: they have none.
        specs: of weights and aggregators, one of which should have that centre.

    Raises:
        InputError: none has.
    """
    if wanted is None:
        return bank
    for spec in specs:
        if spec is not None and spec.centre is not None and centre_digest(spec.centre) == wanted:
            return with_centre_of(spec, bank)
    raise InputError(
        f"--cohort {bank.name}: the centre {wanted} was subtracted from the benchmark's features, and no "
        "given file has it. Pass the --weights that made them."
    )


def cohort_of(bank: FeatureBank, method: str = DEFAULT_METHOD) -> Cohort:
    """Templates of each subject, drawn as in training, without contamination."""
    sampler = TemplateSampler(bank, TemplateRecipe(), seed=0)
    subjects = np.repeat(np.arange(len(bank.subjects)), TEMPLATES_PER_SUBJECT)
    batch = sampler.batch([Item(0, place, subject) for place, subject in enumerate(subjects.tolist())])
    template = np.repeat(np.arange(len(batch)), np.diff(batch.offsets.numpy()))
    groups = group_faces(template, batch.media.numpy(), len(batch))
    name = f"{len(batch):,} templates of {len(bank.subjects):,} subjects of {bank.name}"
    return Cohort(name, batch.features.float().numpy(), batch.norms.numpy(), groups, method)

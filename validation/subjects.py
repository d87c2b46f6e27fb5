"""Whom a set benchmark judges: nobody that an aggregator was trained with; and a cohort of other people."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from backbones.spec import BackboneSpec, centre_digest
from data.sampling.positions import Item
from data.sources.subject_names import match_names, normal, read_names, unknown_names
from evaluation.metrics.score_normalisation import DEFAULT_METHOD, FEWEST_IN_COHORT
from evaluation.protocols.ijb import Cohort
from evaluation.protocols.ijb_layout import SetProtocol
from evaluation.protocols.templates import group_faces
from evaluation.protocols.text_tables import read_table
from features.bank import FeatureBank, read_feature_bank, with_centre_of
from features.templates import TemplateRecipe, TemplateSampler
from runtime.errors import InputError, InputWarning
from runtime.escaping import from_csv_cell

# People, and templates of each: with one, normalised scores hang on how it happened to be drawn. Every
# template of the benchmark is compared with all.
MOST_IN_COHORT = 1_024
TEMPLATES_OF_EACH = 4


def judged_names(protocol: SetProtocol, path: str | None) -> frozenset[str] | None:
    """Names of the benchmark's people: of the file of --evaluated_subjects, else of the benchmark's own list.

    `convert.py --build_set_benchmark` writes such a list; published benchmarks have none. None: nobody says.

    Raises:
        InputError: a file cannot be read, or the file names none of the people in the benchmark's own list.
    """
    listed = None if path is None else read_names(Path(path))
    own = protocol.meta("subjects.csv")
    if not own.is_file():
        return listed
    table = read_table(own, {"SUBJECT_ID": np.int64, "NAME": str}, csv=True)
    people = [from_csv_cell(name) for name in table["NAME"]]
    if listed is None:
        return frozenset(map(normal, people))
    matches = match_names(listed, people, f"--evaluated_subjects {path}", protocol.name)
    if unknown := unknown_names(matches, people):
        found = f"{len(matches.subjects):,} of its names are people of {protocol.name}"
        warnings.warn(f"--evaluated_subjects {path}: {found}{unknown}.", InputWarning, stacklevel=2)
    return listed


def cohort_bank(path: str, judged: frozenset[str] | None) -> FeatureBank:
    """The people of a store of views, or of an npz of features, who are not of the benchmark.

    Args:
        path: as `features.bank.read_feature_bank` takes it.
        judged: people who are left out; None: nothing is known of them.

    Raises:
        InputError: nothing of the kind is there, or too few other people are in it.
    """
    bank = read_feature_bank(Path(path))
    others = sorted(bank.other_subjects(judged or ()))
    if len(others) < FEWEST_IN_COHORT:
        raise InputError(
            f"--cohort {path}: {len(others)} people who are not of the benchmark, expected "
            f"{FEWEST_IN_COHORT} or more."
        )
    most = min(len(others), MOST_IN_COHORT)
    return bank.of_subjects(np.random.default_rng(0).choice(others, most, replace=False).tolist())


def check_made_alike(bank: FeatureBank, backbone: str | None, size: int) -> None:
    """Refuses a cohort that other weights saw than the benchmark's faces.

    Args:
        bank: the cohort.
        backbone: digest of what makes the benchmark's features; None: not known.
        size: values of a feature.

    Raises:
        InputError: so it is, as far as it can be told.
    """
    differ = None not in (backbone, bank.backbone_sha256) and backbone != bank.backbone_sha256
    if differ or bank.embedding_size != size:
        raise InputError(
            f"--cohort {bank.name}: its features of {bank.embedding_size} values were made by another "
            f"backbone than the benchmark's of {size} values. Make both with the same --weights."
        )


def with_centre(bank: FeatureBank, wanted: str | None, specs: Iterable[BackboneSpec | None]) -> FeatureBank:
    """The cohort with the centre that the benchmark's features are without.

    Args:
        bank: the cohort, without a centre.
        wanted: `backbone_spec.centre_digest` of the benchmark's features; None: they have none.
        specs: of weights and aggregators that are there, one of which should have that centre.

    Raises:
        InputError: none has.
    """
    if wanted is None:
        return bank
    for spec in specs:
        if spec is not None and spec.centre is not None and centre_digest(spec.centre) == wanted:
            return with_centre_of(spec, bank)
    raise InputError(
        f"--cohort {bank.name}: the benchmark's features are without the centre of their backbone "
        f"({wanted}), which is not known here. Give the --weights that made them."
    )


def cohort_of(bank: FeatureBank, method: str = DEFAULT_METHOD) -> Cohort:
    """Templates of each person, drawn as those of training are, nothing wrong in them."""
    template_sampler = TemplateSampler(bank, TemplateRecipe(), seed=0)
    people = np.repeat(np.arange(len(bank.subjects)), TEMPLATES_OF_EACH)
    batch = template_sampler.batch([Item(0, place, person) for place, person in enumerate(people.tolist())])
    template = np.repeat(np.arange(len(batch)), np.diff(batch.offsets.numpy()))
    groups = group_faces(template, batch.media.numpy(), len(batch))
    name = f"{len(batch):,} templates of {len(bank.subjects):,} people of {bank.name}"
    return Cohort(name, batch.features.float().numpy(), batch.norms.numpy(), groups, method)

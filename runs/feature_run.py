"""The coreset stage from features: a run whose templates are rows of a bank, made here once or given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data.sampling.views import ViewPlan, views_identity
from data.sources.face_source import FaceSource
from data.sources.subsets import held_out_subjects, kept_subjects
from features.bank import FeatureBank, with_centre_of
from features.cache import Cache, CachedViews, cached_views, cosine_warning, given_features, with_cosines
from features.options import FACES_AT_ONCE, EmbedOptions
from features.templates import HeldOutFeatures, TemplateDrawer, TemplateRecipe
from net import Backbone
from runs.components import (
    MOST_HELD_OUT,
    Run,
    aggregator_options,
    check_apart,
    coreset_module,
    cosine_lines,
    head_of,
    items_of_epoch,
    loading_of,
    losses_of,
    make_run,
    module_identity,
    quality_warnings,
    trained_aggregator,
    validation_people,
)
from runs.label_audit import faces_of_bank
from runs.saved_run import SavedRun
from runs.settings import Settings
from runtime.errors import InputError
from train_val import UnknownBackbone
from training.loaders import FeatureTemplateData
from weights import load_weights, weights_digest


def cached_feature_run(
    settings: Settings,
    saved: SavedRun | None,
    backbone: Backbone,
    source: FaceSource,
    lines: list[str],
    skipped: list[str],
    *,
    processes: int,
    gpu: bool,
    plain_only: bool = False,
) -> Run:
    """Embeds what is not there yet; `source`: all images, of which some subjects are held out.

    `plain_only`: one view of each image, for a run that is described and not started. `skipped`: where
    sentences of images that are left out are added.
    """
    cache = cache_of(settings, settings.feature_folder, processes, gpu=gpu, plain_only=plain_only)
    if saved is not None and not saved.may_write_to(cache.folder):
        cache = replace(cache, named_by=saved.path)
    cached = cached_views(backbone, source, cache)
    if plain_only:
        # The run that is described would have them all.
        views = views_identity(ViewPlan.of(settings.views), settings.seed)
        cached = replace(cached, bank=replace(cached.bank, identity={**cached.bank.identity, "views": views}))
    others = None
    if settings.val_data_path is not None:
        others = cached_views(backbone, validation_people(settings, lines, skipped), cache)
    cached, others = _centred(backbone, cached, others, saved, lines)
    lines.append(f"features {cached.bank.name}: {settings.views} views, {settings.cache_dtype}")
    run = _run(settings, saved, backbone, cached, others, lines, processes)
    return replace(run, faces=lambda: faces_of_bank(cached.bank, source))


def _centred(
    backbone: Backbone,
    cached: CachedViews,
    others: CachedViews | None,
    saved: SavedRun | None,
    lines: list[str],
) -> tuple[CachedViews, CachedViews | None]:
    """Both with the backbone's centre; measures a backbone that is new here.

    A run that goes on stays with what it began with. Of a backbone that is not there nothing can be kept but
    the statistics.
    """
    is_known = not isinstance(backbone, UnknownBackbone)
    if saved is None or not is_known:
        bank = with_cosines(backbone, cached.bank, keep_centre=not is_known)
    else:
        bank = with_centre_of(backbone.spec, cached.bank)
    if others is not None:
        others = replace(others, bank=with_centre_of(backbone.spec, others.bank))
    lines += cosine_lines(backbone.spec)
    return replace(cached, bank=bank), others


def cache_of(settings: Settings, folder: Path, processes: int, *, gpu: bool, plain_only: bool) -> Cache:
    """Stores below `folder`, filled by so many processes; `plain_only`: with one view, by one process."""
    how = EmbedOptions(
        precision=settings.precision,
        batch_size=FACES_AT_ONCE["cuda" if gpu else "cpu"],
        num_workers=settings.num_workers,
        gpu=gpu,
        devices=1 if plain_only else processes // settings.num_nodes,
        num_nodes=1 if plain_only else settings.num_nodes,
        feature_type=settings.cache_dtype,
    )
    return Cache(folder, 1 if plain_only else settings.views, settings.seed, how)


def precomputed_feature_run(settings: Settings, saved: SavedRun | None, *, processes: int) -> Run:
    """Opens --features and, where one is known, the backbone that made them.

    Raises:
        InputError: the backbone is not the one that made them, as far as that is known.
    """
    root = Path(settings.data_root)
    given = given_features(root / str(settings.features))
    notes = []
    if settings.exclude_subjects is not None:
        kept, left_out = kept_subjects(given.bank.name, given.bank.subjects, settings.exclude_subjects)
        given = replace(given, bank=given.bank.of_subjects(kept))
        notes.append(f"         {left_out}")
    given = _enough_images(given, settings.min_images_per_subject)
    others = None if settings.val_data_path is None else given_features(root / settings.val_data_path)
    bank = given.bank
    start = settings.start_from_model_statedict
    if start is None:
        backbone: Backbone = UnknownBackbone(bank.embedding_size, bank.auxiliary_size)
        weights = (
            "none: checkpoints hold aggregator and head; evaluate with the weights that made the features"
        )
    else:
        loaded = load_weights(start if saved is None else saved.path, settings.arch)
        backbone, weights = loaded.backbone, f"{loaded.backbone.spec.name} of {start}: {loaded.kind}"
        for known in (bank, *(() if others is None else (others.bank,))):
            _check_backbone(backbone, known, start)
    lines = [f"weights  {weights}", f"features {bank.name}", *notes]
    given, others = _centred(backbone, given, others, saved, lines)
    run = _run(settings, saved, backbone, given, others, lines, processes)
    return replace(run, faces=lambda: faces_of_bank(given.bank, None))


def _enough_images(given: CachedViews, fewest: int) -> CachedViews:
    """Without the subjects that have fewer images."""
    bank = given.bank
    counts = np.bincount(bank.labels, minlength=len(bank.subjects))
    if (counts >= fewest).all():
        return given
    kept = [name for name, count in zip(bank.subjects, counts.tolist(), strict=True) if count >= fewest]
    if len(kept) < 2:
        raise InputError(
            f"{bank.name}: {len(kept)} subjects have {fewest} images or more (--min_images_per_subject), "
            "and training "
            "takes two subjects or more. Ask for fewer images."
        )
    return replace(given, bank=bank.of_subjects(kept))


def _check_backbone(backbone: Backbone, bank: FeatureBank, start: str) -> None:
    made, there = backbone.spec, (bank.embedding_size, bank.auxiliary_size)
    if (made.embedding_size, made.auxiliary_size) != there:
        raise InputError(
            f"--start_from_model_statedict {start}: makes features of {made.embedding_size} values, of which "
            f"{made.auxiliary_size} are auxiliary, and those in {bank.name} have {there[0]} and {there[1]}. "
            "Give "
            "the weights that they were made with."
        )
    if bank.backbone_sha256 not in (None, weights_digest(backbone)):
        raise InputError(
            f"--start_from_model_statedict {start}: the features in {bank.name} were made by other weights. "
            "Pass those."
        )


def _run(
    settings: Settings,
    saved: SavedRun | None,
    backbone: Backbone,
    cached: CachedViews,
    others: CachedViews | None,
    lines: list[str],
    processes: int,
) -> Run:
    bank, held_out_bank = _split(settings, cached.bank, others)
    settings, few = losses_of(settings, len(bank.subjects), processes)
    recipe = TemplateRecipe(
        style=settings.template_style,
        max_size=settings.max_template_size,
        longest_clip=settings.longest_clip,
        impostor_media_prob=settings.impostor_media_prob,
        impostor_face_prob=settings.impostor_face_prob,
        paired=settings.contrast_weight > 0,
    )
    drawer = TemplateDrawer(bank, recipe, seed=settings.seed, sample_by=settings.sample_by)
    held_out = HeldOutFeatures(held_out_bank, recipe, seed=settings.seed, max_subjects=MOST_HELD_OUT)
    data = FeatureTemplateData(
        drawer,
        held_out,
        loading_of(settings, items_of_epoch(settings, saved, max(settings.batch_size, len(bank) // 10))),
        backbone.spec,
        cached.faces if others is None else None,
    )
    columns, means = _clean_means(settings, bank)
    module = coreset_module(
        settings,
        backbone,
        head_of(settings, backbone, len(bank.subjects), columns),
        aggregator_options(settings, backbone.spec, saved),
        data,
        module_identity(settings, saved, bank.name, bank.identity, bank.subjects),
        means,
    )
    single = int((np.bincount(bank.labels) == 1).sum())
    features = bank.num_rows if cached.faces is None else len(bank) * settings.views
    lines += [
        f"classes  {len(bank.subjects):,} subjects with {len(bank):,} images, {features:,} features"
        + (f"; {single:,} of one image, others are told from them" if single else ""),
        f"validate {len(np.unique(held_out.labels)):,} of {len(held_out_bank.subjects):,} held-out subjects: "
        f"{len(held_out):,} templates",
    ]
    wrong = (
        f", {settings.impostor_media_prob:.0%} with a wrong medium" if settings.impostor_media_prob else ""
    )
    if settings.impostor_face_prob:
        wrong += f", {settings.impostor_face_prob:.0%} with faces of other people"
    return make_run(
        settings,
        module,
        data,
        f"trains {trained_aggregator(settings)} and a head of {settings.head} on templates of features",
        lines,
        num_images=len(bank),
        each=f"{settings.batch_size} templates of 1 to {settings.max_template_size} faces{wrong}",
        validates=True,
        warnings=[each for each in (few, *_warnings(settings, backbone, bank)) if each],
    )


def _warnings(settings: Settings, backbone: Backbone, bank: FeatureBank) -> list[str]:
    return [*quality_warnings(settings, backbone), cosine_warning(backbone.spec, bank)]


def _clean_means(settings: Settings, bank: FeatureBank) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The subjects' means (S, D) for the head's columns and for virtual subjects, where they are wanted."""
    for_head, for_people = settings.head_init == "centroids", settings.identity_mixup_prob > 0
    means = torch.from_numpy(bank.clean_means()) if for_head or for_people else None
    return (means if for_head else None), (means if for_people else None)


def _split(
    settings: Settings, bank: FeatureBank, others: CachedViews | None
) -> tuple[FeatureBank, FeatureBank]:
    """The bank that is trained from and the one that is validated on, without a common subject."""
    if others is None:
        counts = np.bincount(bank.labels)
        chosen = held_out_subjects(bank.name, bank.subjects, counts, settings.held_out, settings.seed)
        names = {bank.subjects[subject] for subject in chosen}
        return bank.of_subjects(set(bank.subjects) - names), bank.of_subjects(names)
    check_apart(bank.subjects, others.bank.subjects)
    return bank, others.bank

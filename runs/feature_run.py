"""The coreset stage from features: templates of cached or precomputed features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from backbones.base import UnknownBackbone
from data.sampling.views import ViewPlan, views_identity
from data.sources.face_source import FaceSource
from data.sources.subsets import held_out_subjects, kept_subjects
from features.bank import FeatureBank, with_centre_of
from features.cache import (
    Cache,
    CachedViews,
    cached_views,
    cosine_warning,
    precomputed_features,
    with_cosines,
)
from features.options import FACES_AT_ONCE, EmbedOptions
from features.templates import HeldOutFeatureTemplates, TemplateRecipe, TemplateSampler
from net import Backbone
from runs.components import Run, RunRequest
from runs.coreset_stage import (
    MAX_HELD_OUT_SUBJECTS,
    check_disjoint,
    cosine_lines,
    make_coreset_run,
    validation_subjects,
    with_losses_for,
)
from runs.label_audit import faces_of_bank
from runtime.errors import InputError
from training.loaders import FeatureTemplateData
from weights import load_weights
from weights.compatibility import check_computed_features


def cached_feature_run(request: RunRequest, backbone: Backbone, source: FaceSource) -> Run:
    """A run from cached features; embeds images that are not in the cache yet.

    `source`: all images, of which some subjects are held out.
    """
    config, saved = request.config, request.saved
    cache = cache_of(request, config.feature_folder, plain_only=request.dry_run)
    if saved is not None and not saved.may_write_to(cache.folder):
        cache = replace(cache, named_by=saved.path)
    cached = cached_views(backbone, source, cache)
    if request.dry_run:
        # The described run embeds all views.
        views = views_identity(ViewPlan.of(config.data.views), config.run.seed)
        cached = replace(cached, bank=replace(cached.bank, identity={**cached.bank.identity, "views": views}))
    others = None
    if config.data.val_data_path is not None:
        others = cached_views(backbone, validation_subjects(request), cache)
    cached, others = _centred(request, backbone, cached, others)
    request.lines.append(f"features {cached.bank.name}: {config.data.views} views, {config.data.cache_dtype}")
    run = _feature_run(request, backbone, cached, others)
    return replace(run, faces=lambda: faces_of_bank(cached.bank, source))


def _centred(
    request: RunRequest, backbone: Backbone, cached: CachedViews, others: CachedViews | None
) -> tuple[CachedViews, CachedViews | None]:
    """Both banks with the backbone's centre; measures a backbone without statistics.

    A resumed run keeps its centre. Of a backbone that is not there, only the statistics can be kept.
    """
    is_known = not isinstance(backbone, UnknownBackbone)
    if request.saved is None or not is_known:
        bank = with_cosines(backbone, cached.bank, keep_centre=not is_known)
    else:
        bank = with_centre_of(backbone.spec, cached.bank)
    if others is not None:
        others = replace(others, bank=with_centre_of(backbone.spec, others.bank))
    request.lines.extend(cosine_lines(backbone.spec))
    return replace(cached, bank=bank), others


def cache_of(request: RunRequest, folder: Path, *, plain_only: bool) -> Cache:
    """The cache in `folder`, filled by all processes; `plain_only`: with one view, by one process."""
    data, run = request.config.data, request.config.run
    options = EmbedOptions(
        precision=run.precision,
        batch_size=FACES_AT_ONCE["cuda" if request.gpu else "cpu"],
        num_workers=run.num_workers,
        gpu=request.gpu,
        devices=1 if plain_only else request.processes // run.num_nodes,
        num_nodes=1 if plain_only else run.num_nodes,
        feature_type=data.cache_dtype,
    )
    return Cache(folder, 1 if plain_only else data.views, run.seed, options)


def precomputed_feature_run(request: RunRequest) -> Run:
    """A run from --features, with the backbone that computed them where it is given.

    Raises:
        InputError: another backbone computed them, as far as that is known.
    """
    config = request.config
    root, data = Path(config.data.data_root), config.data
    given = precomputed_features(root / str(data.features))
    notes = []
    if data.exclude_subjects is not None:
        kept, excluded = kept_subjects(given.bank.name, given.bank.subjects, data.exclude_subjects)
        given = replace(given, bank=given.bank.of_subjects(kept))
        notes.append(f"         {excluded}")
    given = _with_enough_images(given, data.min_images_per_subject)
    others = None if data.val_data_path is None else precomputed_features(root / data.val_data_path)
    bank = given.bank
    start = config.model.start_from_model_statedict
    if start is None:
        backbone: Backbone = UnknownBackbone(bank.embedding_size, bank.auxiliary_size)
        weights = "none: checkpoints hold aggregator and head; evaluate with the weights of the features"
    else:
        loaded = load_weights(start if request.saved is None else request.saved.path, config.model.arch)
        backbone, weights = loaded.backbone, f"{loaded.backbone.spec.name} of {start}: {loaded.kind}"
        for known in (bank, *(() if others is None else (others.bank,))):
            sizes = (known.embedding_size, known.auxiliary_size)
            flag = f"--start_from_model_statedict {start}"
            check_computed_features(backbone, flag, sizes, known.backbone_sha256, known.name)
    request.lines.extend([f"weights  {weights}", f"features {bank.name}", *notes])
    given, others = _centred(request, backbone, given, others)
    run = _feature_run(request, backbone, given, others)
    return replace(run, faces=lambda: faces_of_bank(given.bank, None))


def _with_enough_images(given: CachedViews, minimum: int) -> CachedViews:
    """Features of the subjects with `minimum` images or more."""
    bank = given.bank
    counts = np.bincount(bank.labels, minlength=len(bank.subjects))
    if (counts >= minimum).all():
        return given
    kept = [name for name, count in zip(bank.subjects, counts.tolist(), strict=True) if count >= minimum]
    if len(kept) < 2:
        raise InputError(
            f"{bank.name}: {len(kept)} subjects have {minimum} images or more (--min_images_per_subject), "
            "and training needs two subjects or more. Use a lower minimum."
        )
    return replace(given, bank=bank.of_subjects(kept))


def _feature_run(
    request: RunRequest, backbone: Backbone, cached: CachedViews, others: CachedViews | None
) -> Run:
    data_config, seed = request.config.data, request.config.run.seed
    bank, held_out_bank = _split(request, cached.bank, others)
    config, few = with_losses_for(request.config, len(bank.subjects), request.processes)
    request = replace(request, config=config)
    recipe = TemplateRecipe(
        style=data_config.template_style,
        max_size=data_config.max_template_size,
        longest_clip=data_config.longest_clip,
        impostor_media_prob=data_config.impostor_media_prob,
        impostor_face_prob=data_config.impostor_face_prob,
        paired=config.optimiser.contrast_weight > 0,
    )
    held_out = HeldOutFeatureTemplates(held_out_bank, recipe, seed=seed, max_subjects=MAX_HELD_OUT_SUBJECTS)
    data = FeatureTemplateData(
        TemplateSampler(bank, recipe, seed=seed, sample_by=data_config.sample_by),
        held_out,
        request.loading(max(config.optimiser.batch_size, len(bank) // 10)),
        backbone.spec,
        cached.faces if others is None else None,
    )
    needs_means = config.model.head_init == "centroids" or config.optimiser.identity_mixup_prob > 0
    single = int((np.bincount(bank.labels) == 1).sum())
    features = bank.num_rows if cached.faces is None else len(bank) * data_config.views
    negatives = f"; {single:,} with one image serve as negatives only" if single else ""
    shares = {"medium": data_config.impostor_media_prob, "faces": data_config.impostor_face_prob}
    impostors = "".join(f", {share:.0%} with impostor {what}" for what, share in shares.items() if share)
    return make_coreset_run(
        request,
        backbone,
        data,
        request.identity_of(bank.name, bank.identity, bank.subjects),
        trains_on="templates of features",
        num_images=len(bank),
        num_held_out=len(held_out_bank.subjects),
        details=(f", {features:,} features{negatives}", impostors),
        class_means=torch.from_numpy(bank.clean_means()) if needs_means else None,
        warnings=[few, cosine_warning(backbone.spec, bank)],
    )


def _split(
    request: RunRequest, bank: FeatureBank, others: CachedViews | None
) -> tuple[FeatureBank, FeatureBank]:
    """The banks for training and for validation, without a common subject."""
    if others is None:
        held_out, seed = request.config.data.held_out, request.config.run.seed
        chosen = held_out_subjects(bank.name, bank.subjects, np.bincount(bank.labels), held_out, seed)
        names = {bank.subjects[subject] for subject in chosen}
        return bank.of_subjects(set(bank.subjects) - names), bank.of_subjects(names)
    check_disjoint(bank.subjects, others.bank.subjects)
    return bank, others.bank

"""Where the features that are trained from come from: made here once from images, or given.

The views are those of `data.views`, the store that of `embedding`; what is drawn from it is decided in
`data.feature_templates`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import distributed

from data.face_loader import Faces
from data.feature_bank import FACES, LABEL, FeatureBank, bank_of_views, read_given
from data.feature_store import fingerprint as fingerprint_of
from data.feature_store import open_store
from data.sources import FaceSource, fingerprint
from data.views import ViewedFaces, ViewPlan
from embedding import EmbedOptions, embed_faces, identity_of
from files import atomic_write
from net import Backbone


@dataclass(frozen=True)
class Cache:
    """Where stores of views are kept, how many views an image has, and how they are embedded."""

    folder: Path
    views: int
    seed: int
    options: EmbedOptions


@dataclass(frozen=True)
class CachedViews:
    """A bank, and what its rows were made from, where that is known."""

    bank: FeatureBank
    faces: Faces | None


def cached_views(backbone: Backbone, source: FaceSource, cache: Cache) -> CachedViews:
    """Embeds all views of all images, or opens those that are there; after a kill it goes on where it was.

    The store is named by all that it depends on: weights, preprocessing, views, image list.

    Raises:
        InputError: as `embedding.embed_faces`.
    """
    plan = ViewPlan.of(cache.views)
    faces = ViewedFaces(source, plan, cache.seed)
    images = {"faces": fingerprint(source), **faces.identity()}
    identity = identity_of(backbone, images, cache.options)
    folder = cache.folder / fingerprint_of(identity)[:16]
    store = embed_faces(
        backbone,
        faces,
        images,
        cache.folder,
        cache.options,
        columns={LABEL: np.repeat(source.labels, len(plan))},
        about={"images": source.name},
        name=f"{len(plan)} views of {len(source):,} images",
    )
    if store is not None:
        kinds = [kind.name for kind in plan.kinds]
        text = json.dumps({"kinds": kinds, "groups": plan.groups, "subjects": source.subjects}) + "\n"
        path = folder / FACES
        if not path.is_file() or path.read_text() != text:
            atomic_write(path, text)
    if distributed.is_available() and distributed.is_initialized():
        # The first process may still be verifying what all wrote.
        distributed.barrier()
    if store is None:
        store = open_store(folder, identity, verify=False)
    return CachedViews(bank_of_views(store, source.subjects, source.labels, plan), faces)


def given_features(path: Path) -> CachedViews:
    """Opens and verifies features that were made before.

    Raises:
        InputError: as `data.feature_bank.read_given`.
    """
    return CachedViews(read_given(path), None)

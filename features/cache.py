"""Features to train on: embedded once from views of images, or precomputed.

Stores are found by their content, not by the list of images that they were made for: a run on a subset of a
store's images uses that store, and a new store copies the features of images that an earlier one has.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import distributed

from backbones.spec import BackboneSpec
from data.sampling.views import ViewedFaces, ViewPlan, includes_views, number_of_views, views_identity
from data.sources.decoding import Image
from data.sources.face_loader import Faces
from data.sources.face_source import FaceSource
from data.sources.fingerprint import data_parts, reading_parts
from data.sources.image_stamps import UNREADABLE, content_stamp
from features.bank import (
    FACES,
    LABEL,
    FeatureBank,
    bank_of_views,
    faces_text,
    read_feature_bank,
    two_rows_per_subject,
    view_subjects,
    with_centre_of,
)
from features.extract import embed_faces, identity_of
from features.options import EmbedOptions
from features.store import (
    MANIFEST,
    STAMP,
    FeatureStore,
    is_complete,
    open_store,
    stored_identity,
    written_rows,
)
from features.store import fingerprint as fingerprint_of
from net import Backbone
from runtime.distributed import is_distributed
from runtime.errors import InputError
from runtime.files import atomic_write

# Parts of an identity in which a usable store may differ.
_IMAGES, _VIEWS = "faces", "views"
_WrittenRows = tuple[FeatureStore, NDArray[np.bool_]]


@dataclass(frozen=True)
class Cache:
    """Where stores of views are kept, and how they are made.

    Attributes:
        folder: of the stores.
        views: per image.
        seed: of the views.
        options: of embedding.
        named_by: the file that names the folder, if no flag does; the folder is then read-only.
    """

    folder: Path
    views: int
    seed: int
    options: EmbedOptions
    named_by: Path | None = None


@dataclass(frozen=True)
class CachedViews:
    """A bank, and the images of the rows of its arrays, where they are known."""

    bank: FeatureBank
    faces: Faces | None


def cached_views(backbone: Backbone, source: FaceSource, cache: Cache) -> CachedViews:
    """Open a store with all views of all images, or embed what no store has.

    Resumes after a kill. A store is named by all that it depends on: weights, preprocessing, decoder, views,
    content and subjects of the images. Its features are stored without the backbone's centre, which may be
    measured on them (`with_cosines`).

    Raises:
        InputError: as `features.extract.embed_faces`, a damaged store, or missing features in a read-only
            folder.
    """
    spec, backbone = backbone.spec, copy.copy(backbone)
    backbone.spec = replace(spec, centre=None)
    plan = ViewPlan.of(cache.views)
    wanted = _Wanted.of(backbone, source, plan, cache)
    found = next(wanted.stores_with_all(), None)
    if found is None and cache.named_by is not None:
        raise InputError(
            f"{cache.named_by}: its cached features are in {cache.folder}, outside the run, and not all of "
            f"them are there. Pass --cache_features {cache.folder} to make them there, or another folder."
        )
    if found is None:
        store = _embedded(backbone, source, wanted, cache)
        starts = np.arange(len(source), dtype=np.int64) * len(plan)
    else:
        from features.devices import process_rank  # Imports Lightning.

        folder, starts = found
        store = open_store(folder, None, verify=process_rank() == 0)
    bank = bank_of_views(store, source.subjects, source.labels, plan, starts, wanted.identity)
    return CachedViews(bank, _FacesOfRows(wanted.faces, starts, len(plan)))


def precomputed_features(path: Path) -> CachedViews:
    """Open and verify precomputed features.

    Raises:
        InputError: as `features.bank.read_feature_bank`.
    """
    return CachedViews(read_feature_bank(path), None)


def with_cosines(backbone: Backbone, bank: FeatureBank, *, keep_centre: bool = False) -> FeatureBank:
    """The bank with the backbone's centre, which is measured first if it was not (`BackboneSpec.measured`).

    It is measured on the first rows, the plain views, of up to two images of each subject. Where that is not
    possible, the spec stays as it is.

    Args:
        backbone: its spec is changed in place.
        bank: of its features without a centre.
        keep_centre: measure cosine statistics only.
    """
    if not backbone.spec.is_measured:
        rows = two_rows_per_subject(bank.with_centre(backbone.spec.centre))
        with suppress(InputError):
            backbone.spec = backbone.spec.measured(*rows, keep_centre=keep_centre)
    return with_centre_of(backbone.spec, bank)


def cosine_warning(spec: BackboneSpec, bank: FeatureBank) -> str:
    """A sentence where cosine limits do not apply to the bank's features; else an empty string."""
    features, labels, _ = two_rows_per_subject(bank)
    return f"{bank.name}: {why}." if (why := spec.unmeasured_warning(features, labels)) else ""


@dataclass(frozen=True, eq=False)
class _Wanted:
    """What a store has to contain.

    `stamps` (I,): content of the images; `keys` (I,): content and subject; `identity`: all that the features
    depend on.
    """

    plan: ViewPlan
    seed: int
    folder: Path
    faces: ViewedFaces
    stamps: NDArray[np.uint64]
    keys: NDArray[np.uint64]
    images: dict[str, str]
    identity: dict[str, str]

    @classmethod
    def of(cls, backbone: Backbone, source: FaceSource, plan: ViewPlan, cache: Cache) -> _Wanted:
        stamps = source.stamps()
        images = {
            _IMAGES: fingerprint_of(data_parts(source.subjects, source.labels, stamps)),
            **reading_parts(source),
            _VIEWS: views_identity(plan, cache.seed),
        }
        return cls(
            plan,
            cache.seed,
            cache.folder,
            ViewedFaces(source, plan, cache.seed, stamps),
            stamps,
            _keys(source.subjects, source.labels, stamps),
            images,
            identity_of(backbone, images, cache.options),
        )

    @property
    def name(self) -> str:
        """Folder name of the store that is made for these images."""
        return fingerprint_of(self.identity)[:16]

    def alike(self) -> Iterator[tuple[Path, int]]:
        """Stores of such features, complete or not, with their numbers of views; the own name first."""
        folders = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        for folder in sorted(folders, key=lambda path: path.name != self.name):
            made = stored_identity(folder)
            if made is None or _VIEWS not in made or _rest(made) != _rest(self.identity):
                continue
            if includes_views(made[_VIEWS], self.plan, self.seed):
                yield folder, number_of_views(made[_VIEWS])

    def stores_with_all(self) -> Iterator[tuple[Path, NDArray[np.int64]]]:
        """Complete stores with every image under its subject, and the rows of the first views (I,)."""
        for folder, views in self.alike():
            if not (folder / FACES).is_file() or not is_complete(folder):
                continue
            try:
                store = open_store(folder, None, verify=False)
                subjects, _ = view_subjects(store)
                if STAMP not in store.columns:
                    raise InputError(
                        f"{folder / MANIFEST}: layout, columns: has no '{STAMP}'. Remove the folder."
                    )
            except InputError:
                if folder.name == self.name:
                    raise
                continue  # A damaged store of other images does not matter.
            stored = _keys(subjects, store.columns[LABEL][::views], store.columns[STAMP][::views])
            places = _places(stored, self.keys)
            if (places >= 0).all():
                yield folder, places * views


def _embedded(backbone: Backbone, source: FaceSource, wanted: _Wanted, cache: Cache) -> FeatureStore:
    V = len(wanted.plan)
    folder = cache.folder / wanted.name
    store = embed_faces(
        backbone,
        wanted.faces,
        wanted.images,
        cache.folder,
        cache.options,
        stamps=np.repeat(wanted.stamps, V),
        columns={LABEL: np.repeat(source.labels, V)},
        about={"images": source.name},
        known=_KnownViews(wanted),
        name=f"{V} views of {len(source):,} images",
    )
    if store is not None:
        text = faces_text(source.subjects, wanted.plan)
        path = folder / FACES
        if not path.is_file() or path.read_bytes() != text.encode():
            atomic_write(path, text)
    if is_distributed():
        # Rank 0 may still be verifying what all ranks wrote.
        distributed.barrier()
    if store is None:
        store = open_store(folder, wanted.identity, verify=False)
    return store


class _KnownViews:
    """Features of images in other stores, complete or not, found by content."""

    def __init__(self, wanted: _Wanted) -> None:
        self._wanted = wanted

    def __call__(self, rows: range) -> Mapping[str, NDArray[Any]] | None:
        stores, of_image, first_row = self._found
        images, view = np.divmod(np.arange(rows.start, rows.stop), len(self._wanted.plan))
        of, place = of_image[images], first_row[images] + view
        if (of < 0).any():
            return None
        like = stores[0][0].features
        features, norms = np.empty((len(rows), like.shape[1]), like.dtype), np.empty(len(rows), np.float32)
        for number in np.unique(of).tolist():
            (store, valid), here = stores[number], of == number
            if not valid[place[here]].all():
                return None
            features[here], norms[here] = store.features[place[here]], store.norms[place[here]]
        return {"features": features, "norms": norms}

    # Lazy: only one process reads the stores.
    @cached_property
    def _found(self) -> tuple[list[_WrittenRows], NDArray[np.int64], NDArray[np.int64]]:
        """Stores and their valid rows; index of the store of each image (I,), -1 for none; its first row."""
        wanted = self._wanted
        stores: list[_WrittenRows] = []
        of = np.full(len(wanted.stamps), -1)
        first = np.zeros(len(wanted.stamps), np.int64)
        # Complete ones first: the others may lack some views of an image.
        for folder, views in sorted(wanted.alike(), key=lambda each: not is_complete(each[0])):
            if folder.name == wanted.name or (of >= 0).all():
                continue
            if (there := written_rows(folder)) is None:
                continue
            store, valid = there
            some = valid.reshape(-1, views).any(axis=1)
            stored = np.where(some, store.columns[STAMP][::views], UNREADABLE).astype(np.uint64)
            places = _places(stored, wanted.stamps)
            new = (places >= 0) & (of < 0)
            of[new], first[new] = len(stores), places[new] * views
            stores.append(there)
        return stores, of, first


class _FacesOfRows:
    """The images of the rows of a store, which may have further images and another order."""

    def __init__(self, faces: ViewedFaces, starts: NDArray[np.int64], views: int) -> None:
        self._faces, self._views = faces, views
        self._order = np.argsort(starts, kind="stable")
        self._starts = starts[self._order]

    def __len__(self) -> int:
        return len(self._faces)

    def image(self, number: int) -> Image:
        """(112, 112, 3) RGB of row `number` of the store."""
        place = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._faces.image(int(self._order[place]) * self._views + number - int(self._starts[place]))


def _rest(identity: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in identity.items() if key not in (_IMAGES, _VIEWS)}


def _keys(subjects: list[str], labels: NDArray[Any], stamps: NDArray[Any]) -> NDArray[np.uint64]:
    """(I,) hash of each image's subject and content; `UNREADABLE` for an unreadable image."""
    names = np.array([content_stamp(os.fsencode(name)) for name in subjects], np.uint64)
    # An odd factor, so that subject and image are not interchangeable.
    mixed = names[labels] * np.uint64(0x9E3779B97F4A7C15) ^ stamps.astype(np.uint64)
    return np.where(stamps == UNREADABLE, UNREADABLE, mixed).astype(np.uint64)


def _places(stored: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Index of each of `wanted` (n,) in `stored`; -1 where it is missing or `UNREADABLE`."""
    order = np.argsort(stored, kind="stable")
    at = np.minimum(np.searchsorted(stored[order], wanted), len(stored) - 1)
    found = order[at]
    there = (stored[found] == wanted) & (wanted != UNREADABLE)
    return np.where(there, found, -1).astype(np.int64)

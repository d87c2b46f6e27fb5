"""Features of single faces by subject, image and view, mapped from the disk, and batches of them.

A bank is a store of views of this project, or precomputed features of others. `features.templates` decides
which rows form a template.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbones.auxiliary import split_auxiliary, subtract_centre
from backbones.cosine_statistics import measure_cosines
from backbones.spec import BackboneSpec, centre_digest
from data.sampling.views import Kind, ViewPlan
from data.sources.fingerprint import data_parts
from data.sources.subject_names import normal
from data.tensor_batch import TensorBatch
from features.store import MANIFEST, STAMP, FeatureStore, fingerprint, open_store
from runtime.array_files import read_npz
from runtime.errors import InputError
from runtime.json_files import json_text, read_json

# File beside the arrays of a store of views: names of the subjects, and the kinds of the views.
FACES = "faces.json"
LABEL = "label"

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FeatureBank:
    """Features of single faces by subject, image and view.

    Attributes:
        name: for messages.
        features: (N, D) unit rows as stored, possibly mapped.
        norms: (N,).
        subjects: S names.
        labels: (I,) subject of each image.
        starts: (I,) first row of each image.
        lengths: (I,) rows of each image, which are consecutive.
        plan: the views of each image; None where its rows are frames of one medium.
        identity: all that the features depend on, by part.
        backbone_sha256: `weights.weights_digest` of their backbone, where it is known.
        auxiliary_size: number of auxiliary values at the end of the D.
        centre: of the backbone; `values` subtracts it.
    """

    name: str
    features: NDArray[Any]
    norms: NDArray[np.float32]
    subjects: list[str]
    labels: Ints
    starts: Ints
    lengths: Ints
    plan: ViewPlan | None
    identity: Mapping[str, str]
    backbone_sha256: str | None = None
    auxiliary_size: int = 0
    centre: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def embedding_size(self) -> int:
        """D."""
        return int(self.features.shape[1])

    @property
    def digest(self) -> str:
        """SHA-256 over the identity."""
        return fingerprint(self.identity)

    @property
    def num_rows(self) -> int:
        """Number of rows of all images; the arrays may hold more."""
        return int(self.lengths.sum())

    def values(self, rows: Ints) -> Tensor:
        """Features (n, D) of rows with the centre subtracted, as aggregators expect them."""
        stored = torch.from_numpy(np.asarray(self.features[rows]))
        return (
            stored
            if self.centre is None
            else subtract_centre(stored.float(), self.centre, self.auxiliary_size)
        )

    def with_centre(self, centre: tuple[float, ...] | None) -> FeatureBank:
        """The bank with a centre; it must have none yet."""
        if centre is None:
            return self
        return replace(self, centre=centre, identity={**self.identity, "centre": centre_digest(centre)})

    def of_subjects(self, names: Collection[str]) -> FeatureBank:
        """The bank of these subjects, relabelled in the order of their names."""
        wanted = sorted(set(names) & set(self.subjects))
        number = {name: place for place, name in enumerate(wanted)}
        new = np.array([number.get(name, -1) for name in self.subjects], np.int64)[self.labels]
        return self.subset(np.flatnonzero(new >= 0), new[new >= 0], wanted)

    def other_subjects(self, names: Collection[str]) -> list[str]:
        """Subjects that are not in `names` (normalised, `data.sources.subject_names.read_names`)."""
        return [subject for subject in self.subjects if normal(subject) not in names]

    def subset(self, images: Ints, labels: Ints, subjects: list[str]) -> FeatureBank:
        """The bank of images (I',) with labels (I',) and names."""
        chosen = hashlib.sha256(self.identity.get("images", "").encode() + images.tobytes())
        parts = data_parts(subjects, labels, np.zeros(0, np.uint64))
        parts["images"] = f"{len(images):,}, {chosen.hexdigest()[:16]}"
        return replace(
            self,
            subjects=subjects,
            labels=labels,
            starts=self.starts[images],
            lengths=self.lengths[images],
            identity={**self.identity, **parts},
        )

    def clean_means(self) -> NDArray[np.float32]:
        """(S, D) unit mean of each subject's plain views, or of all its rows without a plan.

        D excludes the auxiliary values.
        """
        sums = np.zeros((len(self.subjects), self.embedding_size - self.auxiliary_size), np.float32)
        lengths = np.ones_like(self.lengths) if self.plan else self.lengths
        for part in np.array_split(np.arange(len(self)), max(1, len(self) // 8192)):
            rows, within = ragged_ranges(self.starts[part], lengths[part])
            identity, _ = split_auxiliary(self.values(rows).float(), self.auxiliary_size)
            np.add.at(sums, self.labels[part][within], identity.numpy() / lengths[part][within][:, None])
        sums /= np.linalg.norm(sums, axis=1, keepdims=True).clip(1e-12)
        return sums


@dataclass(frozen=True)
class FeatureTemplate:
    """`rows` (T,) of the bank; `media` (T,), equal for faces of one medium."""

    rows: Ints
    media: Ints
    label: int


@dataclass(frozen=True)
class FeatureBatch(TensorBatch):
    """Templates as one ragged batch of features.

    `features` (N, D) as stored; `norms` (N,) float32; `offsets` (B+1,), `labels` (B,), `media` (N,) int64 as
    in `data.sampling.templates.TemplateBatch`; `rows` (N,) int64 of the bank.
    """

    features: Tensor
    norms: Tensor
    offsets: Tensor
    labels: Tensor
    media: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def bank_of_views(
    store: FeatureStore,
    subjects: Sequence[str],
    labels: Ints,
    plan: ViewPlan,
    starts: Ints,
    made_from: Mapping[str, str],
) -> FeatureBank:
    """Build the bank of some images of a store of views, which may hold more images and views.

    Args:
        store: complete.
        subjects: S names.
        labels: (I,) of the images.
        plan: the views of each image.
        starts: (I,) rows of their first views.
        made_from: identity of the store, with the views that are used.
    """
    # A store of another writer may have no stamps; norms identify its images instead.
    stamps = np.asarray(store.columns.get(STAMP, store.norms.view(np.uint32))[starts], np.uint64)
    identity = {key: value for key, value in made_from.items() if key != "faces"}
    auxiliary_size = store.identity.get("auxiliary_size", "0")
    if not auxiliary_size.isdecimal() or int(auxiliary_size[:9]) > store.features.shape[1]:
        raise InputError(
            f"{store.folder / MANIFEST}: identity, auxiliary_size: expected a whole number up to "
            f"{store.features.shape[1]}, found {auxiliary_size[:40]!r}. Remove the folder."
        )
    return FeatureBank(
        name=str(store.folder),
        features=store.features,
        norms=store.norms,
        subjects=list(subjects),
        labels=np.asarray(labels, np.int64),
        starts=starts,
        lengths=np.full_like(starts, len(plan)),
        plan=plan,
        identity={**data_parts(subjects, labels, stamps), **identity},
        backbone_sha256=store.identity.get("backbone_sha256"),
        auxiliary_size=int(auxiliary_size),
    )


def bank_of_rows(
    name: str, features: NDArray[Any], norms: NDArray[Any], labels: NDArray[Any], media: NDArray[Any] | None
) -> FeatureBank:
    """Build the bank of precomputed features, which may be in any order.

    Args:
        name: for messages.
        features: (N, D) floating, unit rows, or of length `norms`.
        norms: (N,).
        labels: (N,) numbers or names of subjects.
        media: (N,) numbers or names of the photo or video of each face; None: each face is a medium.

    Raises:
        InputError: unusable shapes or values; all faults in one message.
    """
    _check_rows(name, features, norms, labels, media)
    texts, subject = np.unique(labels.astype(str), return_inverse=True)
    subject = subject.reshape(-1).astype(np.int64)
    medium = np.arange(len(subject))
    if media is not None:
        medium = np.unique(media, return_inverse=True)[1].reshape(-1)
    order = np.lexsort((medium, subject))
    if not np.array_equal(order, np.arange(len(order))):
        features, norms, subject, medium = features[order], norms[order], subject[order], medium[order]
    new = np.flatnonzero(np.diff(subject, prepend=-1) | np.diff(medium, prepend=-1))
    norms = np.asarray(norms, np.float32)
    digest = hashlib.sha256()
    for array in (norms, subject, new, features):
        digest.update(np.ascontiguousarray(array).data)
    subjects = [str(text) for text in texts]
    identity = data_parts(subjects, subject[new], np.zeros(0, np.uint64))
    identity["images"] = f"{len(new):,}, {digest.hexdigest()[:16]}"
    return FeatureBank(
        name=name,
        features=_unit_rows(features),
        norms=norms,
        subjects=subjects,
        labels=subject[new],
        starts=new.astype(np.int64),
        lengths=np.diff(new, append=len(subject)).astype(np.int64),
        plan=None,
        identity=identity,
    )


def with_centre_of(spec: BackboneSpec, bank: FeatureBank) -> FeatureBank:
    """The bank with the spec's centre, unless precomputed features are centred already."""
    if spec.centre is not None and bank.plan is None:
        embedding, _ = split_auxiliary(torch.from_numpy(two_rows_per_subject(bank)[0]), spec.auxiliary_size)
        if measure_cosines(embedding.numpy(), None)[0] is None:
            return bank
    return bank.with_centre(spec.centre)


def two_rows_per_subject(
    bank: FeatureBank,
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """First rows of up to two images of each subject: features (n, D), labels (n,), norms (n,)."""
    order = np.argsort(bank.labels, kind="stable")
    labels = bank.labels[order]
    images = order[np.arange(len(order)) - np.searchsorted(labels, labels) < 2]
    rows = bank.starts[images]
    return bank.values(rows).float().numpy(), bank.labels[images], np.asarray(bank.norms[rows], np.float32)


def gather_batch(bank: FeatureBank, rows: Ints, offsets: Ints, labels: Ints, media: Ints) -> FeatureBatch:
    """Read the rows of a batch. Repeated rows (frames of a cyclic clip) are read once."""
    once, where = np.unique(rows, return_inverse=True)
    place = torch.from_numpy(where.reshape(-1))
    return FeatureBatch(
        features=bank.values(once).index_select(0, place),
        norms=torch.from_numpy(np.asarray(bank.norms[once], np.float32)).index_select(0, place),
        offsets=torch.from_numpy(np.asarray(offsets, np.int64)),
        labels=torch.from_numpy(np.array(labels, np.int64)),
        media=torch.from_numpy(np.asarray(media, np.int64)),
        rows=torch.from_numpy(rows),
    )


def ragged_ranges(starts: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """Concatenate the ranges start..start+length-1: integers (n,), and the range of each (n,)."""
    which = np.repeat(np.arange(len(lengths)), lengths)
    begin = np.cumsum(lengths) - lengths
    return starts[which] + np.arange(len(which)) - begin[which], which


def read_feature_bank(path: Path) -> FeatureBank:
    """Open features to train on: a store of views, or an npz of others.

    An npz has 'features' (N, D), 'norms' (N,), 'labels' (N,) and optionally 'media' (N,), equal for faces of
    one photo or video.

    Raises:
        InputError: neither of them, or it is incomplete, damaged or cannot be used.
    """
    if path.is_dir() and (path / MANIFEST).is_file():
        store = open_store(path, None)
        try:
            subjects, plan = view_subjects(store)
        except InputError as fault:
            raise InputError(
                f"{fault} Its features are not views to train on; make them with main.py --cache_features."
            ) from None
        labels = np.asarray(store.columns[LABEL][:: len(plan)], np.int64)
        starts = np.arange(len(labels), dtype=np.int64) * len(plan)
        return bank_of_views(store, subjects, labels, plan, starts, store.identity)
    if path.suffix == ".npz" and path.is_file():
        needed = ("features", "norms", "labels")
        stored, _ = read_npz(path, "an npz of features", needed=needed, if_there=("media",))
        features, norms, labels = (stored[name] for name in needed)
        return bank_of_rows(str(path), features, norms, labels, stored.get("media"))
    raise InputError(
        f"{path}: holds no features to train on. Expected a folder written by main.py --cache_features, or "
        "an npz with 'features', 'norms', 'labels' and, if known, 'media'."
    )


class _Faces(TypedDict):
    kinds: list[Literal["PLAIN", "FLIP", "MODERATE", "POOR", "CLIP"]]
    groups: list[int]
    subjects: list[str]


def faces_text(subjects: Sequence[str], plan: ViewPlan) -> str:
    """The content of `FACES` beside a store of views: subjects, and the kinds and groups of the views."""
    kinds = [kind.name for kind in plan.kinds]
    return json_text({"kinds": kinds, "groups": list(plan.groups), "subjects": list(subjects)})


def view_subjects(store: FeatureStore) -> tuple[list[str], ViewPlan]:
    """Read the names of the subjects of a store of views, and the views of each image.

    Raises:
        InputError: `FACES` is missing, damaged, or belongs to other images than the store's.
    """
    path = store.folder / FACES
    faces, _ = read_json(path, _Faces, "the subjects and views of a store of features")
    subjects, groups = faces["subjects"], faces["groups"]
    plan = ViewPlan(tuple(Kind[name] for name in faces["kinds"]), tuple(groups))
    labels = store.columns.get(LABEL)
    if not len(plan) or len(groups) != len(plan) or labels is None or len(labels) % len(plan):
        raise InputError(f"{path}: its views do not match the store beside it.")
    of_images = np.asarray(labels, np.int64).reshape(-1, len(plan))
    if of_images.min() < 0 or of_images.max() >= len(subjects) or (of_images != of_images[:, :1]).any():
        raise InputError(
            f"{path}: has {len(subjects):,} subjects, but the store beside it has labels up to "
            f"{of_images.max()}: they do not belong together."
        )
    wanted, stamps = store.identity.get("faces"), store.columns.get(STAMP)
    if wanted is None or stamps is None:
        return subjects, plan
    if fingerprint(data_parts(subjects, of_images[:, 0], np.asarray(stamps[:: len(plan)]))) != wanted:
        raise InputError(f"{path}: is damaged: its subjects do not match the identity of the store.")
    return subjects, plan


def _check_rows(
    name: str, features: NDArray[Any], norms: NDArray[Any], labels: NDArray[Any], media: NDArray[Any] | None
) -> None:
    faults = []
    if features.ndim != 2 or features.dtype.kind != "f" or not len(features):
        faults.append(f"{name}: features {features.shape} {features.dtype}; expected (N, D) floating.")
    for what, array in (("norms", norms), ("labels", labels), ("media", media)):
        if array is not None and array.shape != features.shape[:1]:
            faults.append(
                f"{name}: {what} {array.shape}; expected one for each of the {len(features):,} features."
            )
    if not faults:
        if norms.dtype.kind not in "fiu" or not np.isfinite(norms).all() or (norms < 0).any():
            faults.append(f"{name}: norms must be finite and not negative.")
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            faults.append(f"{name}: the feature of row {int(np.argmin(finite))} is not finite.")
        if len(np.unique(labels)) < 2:
            faults.append(f"{name}: labels need two subjects or more.")
    if faults:
        raise InputError.from_faults(faults)


def _unit_rows(features: NDArray[Any]) -> NDArray[Any]:
    lengths = np.linalg.norm(features.astype(np.float32), axis=1, keepdims=True)
    if (np.abs(lengths - 1) < 1e-2).all():
        return features
    unit: NDArray[np.float32] = features / lengths.clip(1e-12)
    return unit.astype(np.float32, copy=False)

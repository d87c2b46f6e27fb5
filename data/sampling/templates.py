"""What a step is fed with: single faces (backbone stage) or templates (coreset stage), drawn and augmented.

A template is a set of faces of one subject, as recognition meets it: stills, and clips of near-duplicates.
All that is random follows from the seed and an item's epoch and position, so nothing depends on workers or
processes. Which items make a batch is decided in `data.sampling.positions`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from data.sampling.augmentation import augment_face, clip_transform, mirror
from data.sampling.positions import Item
from data.sources.decoding import Image
from data.sources.face_source import FaceSource
from data.sources.subject_index import SubjectIndex
from runtime.errors import InputError

if TYPE_CHECKING:
    from backbones.spec import BackboneSpec

LONGEST_CLIP = 3
GALLERY_STILLS = 3
PROBES = 2
SAMPLE_BY = ("image", "subject")


@dataclass(frozen=True)
class Augmentation:
    """The three AdaFace augmentations, each with its own probability in [0, 1]."""

    crop_prob: float = 0.2
    low_res_prob: float = 0.2
    photometric_prob: float = 0.2

    def __post_init__(self) -> None:
        faults = [
            f"{field.name} is {getattr(self, field.name)}, expected a probability from 0 to 1."
            for field in fields(self)
            if not 0 <= getattr(self, field.name) <= 1
        ]
        if faults:
            raise InputError.from_faults(faults)

    def apply(self, image: Image, rng: np.random.Generator) -> Image:
        """(112, 112, 3) RGB -> the same shape."""
        return augment_face(
            image,
            rng,
            crop_prob=self.crop_prob,
            low_res_prob=self.low_res_prob,
            photometric_prob=self.photometric_prob,
        )


@dataclass(frozen=True)
class Template:
    """`images`: (T, 3, 112, 112) uint8 in the order of the spec; `media`: (T,) int64, equal in a clip."""

    images: NDArray[np.uint8]
    label: int
    media: NDArray[np.int64]


@dataclass(frozen=True)
class TemplateBatch:
    """Templates as one ragged batch.

    `images`: (N, 3, 112, 112) uint8 in the order of the spec; `offsets`: (B+1,) int64, template b has rows
    `offsets[b]:offsets[b+1]`; `labels`: (B,) int64; `media`: (N,) int64, equal for the frames of one clip and
    for nothing else in the batch.
    """

    images: Tensor
    offsets: Tensor
    labels: Tensor
    media: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def pin_memory(self) -> TemplateBatch:
        """The same batch in pinned memory; DataLoader calls it."""
        return replace(self, **{field.name: getattr(self, field.name).pin_memory() for field in fields(self)})

    def to(self, device: torch.device | str, non_blocking: bool = True) -> TemplateBatch:
        """The same batch on `device`; Lightning calls it."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=non_blocking)
            for field in fields(self)
        }
        return replace(self, **moved)


def collate_templates(templates: Sequence[Template]) -> TemplateBatch:
    """Joins templates to one ragged batch; media are numbered through."""
    sizes = np.array([len(template.images) for template in templates])
    first_media = np.cumsum([0, *(int(template.media.max()) + 1 for template in templates[:-1])])
    media = [template.media + first for template, first in zip(templates, first_media, strict=True)]
    return TemplateBatch(
        images=torch.from_numpy(np.concatenate([template.images for template in templates])),
        offsets=torch.from_numpy(np.concatenate(([0], np.cumsum(sizes)))),
        labels=torch.tensor([template.label for template in templates]),
        media=torch.from_numpy(np.concatenate(media)),
    )


def collate_faces(faces: Sequence[tuple[NDArray[np.uint8], int]]) -> tuple[Tensor, Tensor]:
    """Joins single faces: images (B, 3, 112, 112) uint8 in the order of the spec, labels (B,) int64."""
    images = np.stack([image for image, _ in faces])
    return torch.from_numpy(images), torch.tensor([label for _, label in faces])


class FaceDataset(Dataset[tuple[NDArray[np.uint8], int]]):
    """Backbone stage: item -> (image (3, 112, 112) uint8 in the order of the spec, label).

    Each face gets the AdaFace augmentations and is mirrored with probability 0.5.
    """

    def __init__(
        self, source: FaceSource, spec: BackboneSpec, augmentation: Augmentation, *, seed: int
    ) -> None:
        self._source = source
        self._spec = spec
        self._augmentation = augmentation
        self._seed = seed

    def __len__(self) -> int:
        return len(self._source)

    def label_of(self, item: Item) -> int:
        """The subject of an item."""
        return int(self._source.labels[item.row])

    def __getitem__(self, item: Item) -> tuple[NDArray[np.uint8], int]:
        rng = _item_rng(self._seed, item)
        image = self._augmentation.apply(self._source.image(item.row), rng)
        return self._spec.from_rgb(mirror(image, rng)), self.label_of(item)


class TemplateDataset(Dataset[Template]):
    """Coreset stage: item -> template of 1 to `max_template_size` faces.

    `sample_by` says what an item's row counts: "image" (published: the template is of that image's subject,
    so subjects come in proportion to their images) or "subject". `len` is the number of rows to sample from.
    `longest_clip`: frames of a clip at most; 1 gives stills alone.
    """

    def __init__(
        self,
        source: FaceSource,
        spec: BackboneSpec,
        augmentation: Augmentation,
        *,
        seed: int,
        max_template_size: int,
        sample_by: str = "image",
        longest_clip: int = LONGEST_CLIP,
    ) -> None:
        if sample_by not in SAMPLE_BY:
            raise InputError(f"templates are sampled by {' or '.join(SAMPLE_BY)}, not by {sample_by!r}.")
        _check_sizes(max_template_size, longest_clip)
        self._source = source
        self._index = SubjectIndex(source.labels)
        self._spec = spec
        self._augmentation = augmentation
        self._seed = seed
        self._max_size = max_template_size
        self._by_image = sample_by == "image"
        self._longest_clip = longest_clip

    def __len__(self) -> int:
        return len(self._source) if self._by_image else len(self._index)

    def label_of(self, item: Item) -> int:
        """The subject of an item."""
        return int(self._source.labels[item.row]) if self._by_image else item.row

    def __getitem__(self, item: Item) -> Template:
        rng = _item_rng(self._seed, item)
        subject = self.label_of(item)
        rows = self._index.images_of(subject)
        clips = draw_clips(rng, len(rows), self._max_size, self._longest_clip)
        return _make_template(self._source, self._spec, self._augmentation, rng, rows, clips, subject)


def draw_clips(
    rng: np.random.Generator, num_images: int, max_template_size: int, longest_clip: int = LONGEST_CLIP
) -> list[tuple[int, int]]:
    """Draws a template: (image 0..num_images-1, frames) per medium, until its T ~ U{1..max} faces are there.

    An image is chosen with replacement; the frames of its clip are min(longest_clip, U{1..missing}). Source:
    the published sampling, with T drawn for each template where it is drawn once a batch there.
    """
    missing = int(rng.integers(1, max_template_size + 1))
    clips = []
    while missing:
        image = int(rng.integers(num_images))
        frames = min(longest_clip, int(rng.integers(1, missing + 1)))
        clips.append((image, frames))
        missing -= frames
    return clips


class HeldOutTemplates(Dataset[Template]):
    """Templates of subjects that are not trained on; see `held_out_templates`.

    `labels`: (M,) int64 subject of each template; `is_gallery`: (M,) bool, one of each subject's three
    templates.
    """

    def __init__(
        self,
        source: FaceSource,
        spec: BackboneSpec,
        augmentation: Augmentation,
        *,
        seed: int,
        max_template_size: int,
        subjects: NDArray[np.int64],
    ) -> None:
        self._source = source
        self._index = SubjectIndex(source.labels)
        self._spec = spec
        self._augmentation = augmentation
        self._seed = seed
        self._max_size = max_template_size
        self.labels = np.repeat(subjects, 1 + PROBES)
        self.is_gallery = np.arange(len(self.labels)) % (1 + PROBES) == 0

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self) -> NDArray[np.int64]:
        """Rows of the source that templates are made of."""
        subjects = np.unique(self.labels)
        return np.concatenate([self._index.images_of(int(subject)) for subject in subjects]).astype(np.int64)

    def __getitem__(self, number: int) -> Template:
        if not 0 <= number < len(self):
            raise IndexError(number)
        subject, which = int(self.labels[number]), number % (1 + PROBES)
        name = _name_hash(self._source.subjects[subject])
        rows = np.random.default_rng([self._seed, name, 1]).permutation(self._index.images_of(subject))
        rng = np.random.default_rng([self._seed, name, 2 + which])
        gallery, probes = np.split(rows, [len(rows) // 2])
        if which:
            clips = draw_clips(rng, len(probes), self._max_size)
            return _make_template(self._source, self._spec, self._augmentation, rng, probes, clips, subject)
        stills = gallery[: rng.integers(1, GALLERY_STILLS + 1)]
        images = np.stack([self._source.image(int(row)) for row in stills])
        return Template(self._spec.from_rgb(images), subject, np.arange(len(stills)))


def held_out_templates(
    source: FaceSource,
    spec: BackboneSpec,
    augmentation: Augmentation,
    *,
    seed: int,
    max_template_size: int,
    max_subjects: int | None = None,
) -> HeldOutTemplates:
    """The fixed protocol of validation on held-out subjects; the same for a seed whatever else is chosen.

    The images of each subject with two or more are split into two disjoint halves. The gallery template is
    one to three unchanged stills of the first half (fewer where it has fewer); two probe templates are drawn
    from the second half as in training. At most `max_subjects` subjects, chosen by seed and name.

    Raises:
        InputError: fewer than two subjects have two images.
    """
    _check_sizes(max_template_size, LONGEST_CLIP)
    several = np.flatnonzero(SubjectIndex(source.labels).counts() >= 2)
    if len(several) < 2:
        raise InputError(
            f"{source.name}: {len(several)} held-out subjects have two images or more, and validation "
            "compares at least two. Hold out more subjects."
        )
    if max_subjects is not None and max_subjects < len(several):
        hashes = [_name_hash(f"{seed}:{source.subjects[subject]}") for subject in several]
        several = np.sort(several[np.argsort(hashes)[:max_subjects]])
    return HeldOutTemplates(
        source, spec, augmentation, seed=seed, max_template_size=max_template_size, subjects=several
    )


def _make_template(
    source: FaceSource,
    spec: BackboneSpec,
    augmentation: Augmentation,
    rng: np.random.Generator,
    rows: NDArray[Any],
    clips: Sequence[tuple[int, int]],
    label: int,
) -> Template:
    # An image drawn twice is read and augmented once, as published; only its frames differ.
    used: dict[int, Image] = {}
    frames: list[Image] = []
    for image, length in clips:
        if image not in used:
            used[image] = augmentation.apply(source.image(int(rows[image])), rng)
        frames += (mirror(clip_transform(used[image], rng), rng) for _ in range(length))
    media = np.repeat(np.arange(len(clips)), [length for _, length in clips])
    return Template(spec.from_rgb(np.stack(frames)), label, media)


def _item_rng(seed: int, item: Item) -> np.random.Generator:
    # The last number keeps the draws of position 0 apart from the epoch's permutation: NumPy pads with zeros.
    return np.random.default_rng([seed, item.epoch, item.position, 1])


def _name_hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "big")


def _check_sizes(max_template_size: int, longest_clip: int) -> None:
    if max_template_size < 1 or longest_clip < 1:
        raise InputError(
            f"templates of at most {max_template_size} faces in clips of at most {longest_clip}: expected "
            "one or more."
        )

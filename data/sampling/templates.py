"""Training datasets: single faces (backbone stage) and templates (coreset stage), with augmentation.

A template is a set of faces of one subject: stills, and clips of near-duplicates. Randomness depends on the
seed and an item's epoch and position only, not on workers or processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from data.sampling.augmentation import Augmentation, clip_transform, random_horizontal_flip
from data.sampling.positions import Item
from data.sources.decoding import Image
from data.sources.face_source import FaceSource
from data.sources.subject_index import SubjectIndex
from data.sources.subject_names import name_hash
from data.tensor_batch import TensorBatch
from runtime.errors import InputError

if TYPE_CHECKING:
    from backbones.spec import BackboneSpec

LONGEST_CLIP = 3
GALLERY_STILLS = 3
PROBES = 2
SAMPLE_BY = ("image", "subject")


@dataclass(frozen=True)
class Template:
    """`images`: (T, 3, 112, 112) uint8 in the spec's channel order; `media`: (T,) int64, equal in a clip."""

    images: NDArray[np.uint8]
    label: int
    media: NDArray[np.int64]


@dataclass(frozen=True)
class TemplateBatch(TensorBatch):
    """Templates as a ragged batch.

    `images`: (N, 3, 112, 112) uint8 in the spec's channel order; `offsets`: (B+1,) int64, template b has rows
    `offsets[b]:offsets[b+1]`; `labels`: (B,) int64; `media`: (N,) int64, unique per clip or still in the
    batch.
    """

    images: Tensor
    offsets: Tensor
    labels: Tensor
    media: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def collate_templates(templates: Sequence[Template]) -> TemplateBatch:
    """Join templates to a ragged batch, with media numbered consecutively."""
    offsets, media = ragged_media([template.media for template in templates])
    return TemplateBatch(
        images=torch.from_numpy(np.concatenate([template.images for template in templates])),
        offsets=torch.from_numpy(offsets),
        labels=torch.tensor([template.label for template in templates]),
        media=torch.from_numpy(media),
    )


def ragged_media(media: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Join the media of templates.

    Args:
        media: (T,) of each of B templates, numbered from 0.

    Returns:
        (B+1,) offsets of the templates; (N,) media, unique per medium in the batch.
    """
    offsets = np.concatenate(([0], np.cumsum([len(each) for each in media])))
    first = np.cumsum([0, *(int(each.max()) + 1 for each in media[:-1])])
    return offsets, np.concatenate([each + start for each, start in zip(media, first, strict=True)])


def subjects_for_validation(
    index: SubjectIndex, names: list[str], where: str, *, seed: int, max_subjects: int | None = None
) -> NDArray[np.int64]:
    """Sorted subjects with two or more images; `max_subjects` of them are drawn by hashes of their names.

    Args:
        index: images by subject.
        names: of all subjects.
        where: the data in messages.
        seed: of the draw.
        max_subjects: largest number; None is all.

    Raises:
        InputError: fewer than two such subjects.
    """
    several = np.flatnonzero(index.counts() >= 2)
    if len(several) < 2:
        raise InputError(
            f"{where}: {len(several)} held-out subjects have two or more images, but validation needs at "
            "least two such subjects. Hold out more subjects."
        )
    hashes = np.array([name_hash(f"{seed}:{names[subject]}") for subject in several.tolist()], np.uint64)
    return np.sort(several[np.argsort(hashes)[:max_subjects]])


def collate_faces(faces: Sequence[tuple[NDArray[np.uint8], int]]) -> tuple[Tensor, Tensor]:
    """Join single faces: images (B, 3, 112, 112) uint8 in the spec's channel order, labels (B,) int64."""
    images = np.stack([image for image, _ in faces])
    return torch.from_numpy(images), torch.tensor([label for _, label in faces])


class _AugmentedFaces:
    """What the datasets share: a source, its augmentation and the form of the backbone's images."""

    def __init__(
        self, source: FaceSource, spec: BackboneSpec, augmentation: Augmentation, *, seed: int
    ) -> None:
        self._source = source
        self._spec = spec
        self._augmentation = augmentation
        self._seed = seed

    def _template(
        self, rng: np.random.Generator, rows: NDArray[Any], clips: Sequence[tuple[int, int]], label: int
    ) -> Template:
        # As published, an image drawn twice is augmented once; only its clip frames differ.
        used: dict[int, Image] = {}
        frames: list[Image] = []
        for image, length in clips:
            if image not in used:
                used[image] = self._augmentation.apply(self._source.image(int(rows[image])), rng)
            varied = (clip_transform(used[image], rng) for _ in range(length))
            frames += (random_horizontal_flip(frame, rng) for frame in varied)
        media = np.repeat(np.arange(len(clips)), [length for _, length in clips])
        return Template(self._spec.from_rgb(np.stack(frames)), label, media)


class FaceDataset(_AugmentedFaces, Dataset[tuple[NDArray[np.uint8], int]]):
    """Backbone stage: item -> (image (3, 112, 112) uint8 in the spec's channel order, label).

    Each face gets the AdaFace augmentations and a random horizontal flip.
    """

    def __len__(self) -> int:
        return len(self._source)

    def label_of(self, item: Item) -> int:
        """The subject of an item."""
        return int(self._source.labels[item.row])

    def __getitem__(self, item: Item) -> tuple[NDArray[np.uint8], int]:
        rng = _item_rng(self._seed, item)
        image = self._augmentation.apply(self._source.image(item.row), rng)
        return self._spec.from_rgb(random_horizontal_flip(image, rng)), self.label_of(item)


class TemplateDataset(_AugmentedFaces, Dataset[Template]):
    """Coreset stage: item -> template of 1 to `max_template_size` faces.

    `sample_by`: an item's row is an "image" (published: the template is of its subject, so subjects are drawn
    in proportion to their images) or a "subject". `longest_clip`: maximum frames of a clip; 1 gives stills.
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
        super().__init__(source, spec, augmentation, seed=seed)
        self._index = SubjectIndex(source.labels)
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
        return self._template(rng, rows, clips, subject)


def draw_clips(
    rng: np.random.Generator, num_images: int, max_template_size: int, longest_clip: int = LONGEST_CLIP
) -> list[tuple[int, int]]:
    """Draw a template of T ~ U{1..max} faces as (image 0..num_images-1, frames) per medium.

    Images are drawn with replacement, with min(longest_clip, U{1..remaining}) frames. Source: the published
    sampling of FaceCoresetNet (arXiv 2308.14075), which draws T once per batch instead of per template.
    """
    missing = int(rng.integers(1, max_template_size + 1))
    clips = []
    while missing:
        image = int(rng.integers(num_images))
        frames = min(longest_clip, int(rng.integers(1, missing + 1)))
        clips.append((image, frames))
        missing -= frames
    return clips


class HeldOutTemplates(_AugmentedFaces, Dataset[Template]):
    """The validation protocol on held-out subjects; depends on the seed only.

    The images of each subject with two or more are split into disjoint halves. The gallery template has one
    to three unmodified stills of the first half; two probe templates are drawn from the second half as in
    training. At most `max_subjects` subjects are used, chosen by seed and name.

    `labels`: (M,) int64 subject of each template; `is_gallery`: (M,) bool, one of three per subject.

    Raises:
        InputError: fewer than two subjects have two images.
    """

    def __init__(
        self,
        source: FaceSource,
        spec: BackboneSpec,
        augmentation: Augmentation,
        *,
        seed: int,
        max_template_size: int,
        max_subjects: int | None = None,
    ) -> None:
        super().__init__(source, spec, augmentation, seed=seed)
        _check_sizes(max_template_size, LONGEST_CLIP)
        self._index = SubjectIndex(source.labels)
        self._max_size = max_template_size
        several = subjects_for_validation(
            self._index, source.subjects, source.name, seed=seed, max_subjects=max_subjects
        )
        self.labels = np.repeat(several, 1 + PROBES)
        self.is_gallery = np.arange(len(self.labels)) % (1 + PROBES) == 0

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self) -> NDArray[np.int64]:
        """Rows of the source that the templates use."""
        subjects = np.unique(self.labels)
        return np.concatenate([self._index.images_of(int(subject)) for subject in subjects]).astype(np.int64)

    def __getitem__(self, number: int) -> Template:
        if not 0 <= number < len(self):
            raise IndexError(number)
        subject, which = int(self.labels[number]), number % (1 + PROBES)
        name = name_hash(self._source.subjects[subject])
        rows = np.random.default_rng([self._seed, name, 1]).permutation(self._index.images_of(subject))
        rng = np.random.default_rng([self._seed, name, 2 + which])
        gallery, probes = np.split(rows, [len(rows) // 2])
        if which:
            clips = draw_clips(rng, len(probes), self._max_size)
            return self._template(rng, probes, clips, subject)
        stills = gallery[: rng.integers(1, GALLERY_STILLS + 1)]
        images = np.stack([self._source.image(int(row)) for row in stills])
        return Template(self._spec.from_rgb(images), subject, np.arange(len(stills)))


def _item_rng(seed: int, item: Item) -> np.random.Generator:
    # The last number separates position 0 from the epoch's permutation: NumPy pads seeds with zeros.
    return np.random.default_rng([seed, item.epoch, item.position, 1])


def _check_sizes(max_template_size: int, longest_clip: int) -> None:
    if max_template_size < 1 or longest_clip < 1:
        raise InputError(
            f"a maximum template size of {max_template_size} with clips of up to {longest_clip} frames: "
            "expected at least one of each."
        )

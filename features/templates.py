"""Sample training templates from cached features: which rows form a set, thousands of sets per second.

A medium is one view or clip of one image (`data.sampling.views`), or the frames of one photo or video of
precomputed features. Randomness is counter-based: a hash of seed, epoch and position, computed for a batch at
once. Nothing is embedded here, and no image is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from data.sampling.positions import Item
from data.sampling.templates import GALLERY_STILLS, PROBES, ragged_media, subjects_for_validation
from data.sampling.views import Kind, ViewPlan
from data.sources.subject_index import SubjectIndex
from data.sources.subject_names import name_hash
from features.bank import FeatureBank, FeatureBatch, FeatureTemplate, gather_batch, ragged_ranges
from runtime.errors import InputError

STYLES = ("clips", "media")
MAX_MEDIA = 4
LONGEST_CLIP = 40
# Of the faces of a contaminated template.
MAX_IMPOSTOR_FRACTION = 0.4
_PUBLISHED_CLIP = 3
_GALLERY_PROB, _MAX_GALLERY_MEDIA = 0.25, 2
# Probabilities of moderate stills, poor stills and poor clips.
_KIND_PROBS = (0.35, 0.25, 0.4)
_KINDS = ((Kind.PLAIN, Kind.FLIP, Kind.MODERATE), (Kind.POOR,), (Kind.CLIP,))
_STILL, _POOR, _CLIP = range(len(_KINDS))

Ints = NDArray[np.int64]
Uints = NDArray[np.uint64]


@dataclass(frozen=True)
class TemplateRecipe:
    """What a training template is.

    Attributes:
        style: "clips", as published: T ~ U{1..max_size} faces in clips of up to three frames. "media": one to
            `MAX_MEDIA` media, each a moderate still, a poor still or a poor clip whose length is log-uniform
            in 2..longest_clip, so that T has a heavy tail. A quarter of these templates are like gallery
            templates: one or two moderate stills, without impostors.
        max_size: maximum of T.
        longest_clip: frames of a clip of style "media".
        impostor_media_prob: probability that a medium of another subject is appended to a template.
        impostor_face_prob: probability that a template is contaminated with single faces of other subjects,
            up to `MAX_IMPOSTOR_FRACTION` of its faces.
        paired: positions 2p and 2p+1 are two templates of one subject, with no image in common where it has
            two.

    Raises:
        InputError: an unknown style, or a value out of range.
    """

    style: str = "media"
    max_size: int = 160
    longest_clip: int = LONGEST_CLIP
    impostor_media_prob: float = 0.0
    impostor_face_prob: float = 0.0
    paired: bool = False

    def __post_init__(self) -> None:
        faults = []
        if self.style not in STYLES:
            faults.append(f"template style {self.style!r}: expected {' or '.join(STYLES)}.")
        if min(self.max_size, self.longest_clip) < 1:
            faults.append("max_size and longest_clip: expected 1 or more.")
        for what, share in (("media", self.impostor_media_prob), ("face", self.impostor_face_prob)):
            if not 0 <= share <= 1:
                faults.append(f"impostor_{what}_prob {share}: expected 0 to 1.")
        if faults:
            raise InputError.from_faults(faults)


class TemplateSampler:
    """Samples templates of a bank's subjects, a batch at once.

    `num_rows` is the number of images or of subjects, by `sample_by`; the rows of items refer to it.
    """

    def __init__(
        self, bank: FeatureBank, recipe: TemplateRecipe, *, seed: int, sample_by: str = "subject"
    ) -> None:
        self.bank = bank
        self.recipe = recipe
        self._seed = seed
        self._by_image = sample_by == "image"
        self._index = SubjectIndex(bank.labels)
        self._counts = self._index.counts()
        self.num_rows = len(bank) if self._by_image else len(self._counts)
        if recipe.impostor_media_prob + recipe.impostor_face_prob and len(self._counts) < 2:
            raise InputError(f"{bank.name}: impostor media and faces need two subjects or more.")
        self._slots = None if bank.plan is None else _slots(bank.plan)

    def draw(self, epoch: int, positions: Ints, rows: Ints) -> list[FeatureTemplate]:
        """Sample the templates at positions (B,) for items with rows (B,)."""
        subjects = self.bank.labels[rows] if self._by_image else rows
        found, offsets, media = self._draw(epoch, np.asarray(positions), np.asarray(subjects))
        return [
            FeatureTemplate(found[a:b], media[a:b] - media[a], int(subject))
            for a, b, subject in zip(offsets[:-1], offsets[1:], subjects, strict=True)
        ]

    def batch(self, items: Sequence[Item]) -> FeatureBatch:
        """Sample the templates of a batch of items of one epoch."""
        rows = np.array([item.row for item in items])
        subjects = self.bank.labels[rows] if self._by_image else rows
        found, offsets, media = self._draw(
            items[0].epoch, np.array([item.position for item in items]), subjects
        )
        return gather_batch(self.bank, found, offsets, subjects, media)

    def _draw(self, epoch: int, positions: Ints, subjects: Ints) -> tuple[Ints, Ints, Ints]:
        """Rows (N,), offsets (B+1,), and media (N,) numbered across the batch."""
        rng = _CounterRandom(self._seed, epoch, positions)
        kinds, frames = self._composed(rng)
        M = frames.shape[1]
        of_subject = np.repeat(subjects[:, None], M, axis=1)
        place = self._image_places(epoch, positions, subjects, M)
        has_impostor = (rng.uniform(0) < self.recipe.impostor_media_prob) & ~self._is_gallery(rng)
        if has_impostor.any():
            # The last column is reserved for it.
            other = self._other_subjects(subjects, rng.uniform(1))
            of_subject[:, -1] = other
            place[:, -1] = (rng.uniform(2) * self._counts[other]).astype(np.int64)
            kinds[:, -1] = self._kinds(rng.uniform(3))
            frames[:, -1] = np.where(has_impostor, self._frames(kinds[:, -1], rng.uniform(4)), 0)
        image = self._index.rows[self._index.offsets[of_subject] + place].astype(np.int64)
        start, length = self._pools(image, kinds, rng.uniforms(6, M))
        if self._slots is None:
            frames = np.minimum(frames, length)
        frames = _cut(frames, self.recipe.max_size, keep_last=has_impostor)
        drawn = _rows_of(start, length, frames, rng.uniforms(7, M))
        return self._with_impostor_faces(rng, subjects, *drawn) if self.recipe.impostor_face_prob else drawn

    def _with_impostor_faces(
        self, rng: _CounterRandom, subjects: Ints, rows: Ints, offsets: Ints, media: Ints
    ) -> tuple[Ints, Ints, Ints]:
        """Append faces of other subjects to some templates, each a medium of its own."""
        sizes = np.diff(offsets)
        contaminated = (rng.uniform(12) < self.recipe.impostor_face_prob) & ~self._is_gallery(rng)
        share = rng.uniform(13) * MAX_IMPOSTOR_FRACTION
        wanted = (sizes * share / (1 - share) + rng.uniform(14)).astype(np.int64)
        count = np.where(contaminated, np.minimum(wanted, self.recipe.max_size - sizes), 0)
        number, template = ragged_ranges(np.zeros(len(count), np.int64), count)
        most = max(1, int(count.max()))
        whose, place, kind, slot, frame = (rng.uniforms(n, most)[template, number] for n in range(15, 20))
        other = self._other_subjects(subjects[template], whose)
        image = self._index.rows[self._index.offsets[other] + (place * self._counts[other]).astype(np.int64)]
        start, length = self._pools(image.astype(np.int64), self._kinds(kind), slot)
        impostors = start + (frame * length).astype(np.int64)
        order = np.concatenate([np.repeat(np.arange(len(sizes)), sizes), template]).argsort(kind="stable")
        new_media = int(media.max()) + 1 + np.arange(len(impostors))
        return (
            np.concatenate([rows, impostors])[order],
            np.concatenate([[0], np.cumsum(sizes + count)]),
            np.concatenate([media, new_media])[order],
        )

    def _other_subjects(self, subjects: Ints, uniform: NDArray[np.float64]) -> Ints:
        step = 1 + (uniform * (len(self._counts) - 1)).astype(np.int64)
        return (subjects + step) % len(self._counts)

    def _is_gallery(self, rng: _CounterRandom) -> NDArray[np.bool_]:
        """(B,) True for templates of one or two moderate stills."""
        return rng.uniform(21) < (_GALLERY_PROB if self.recipe.style == "media" else 0)

    def _composed(self, rng: _CounterRandom) -> tuple[Ints, Ints]:
        """Kinds and frames (B, M) of the subject's own media; 0 frames where there is no medium."""
        if self.recipe.style == "clips":
            return self._published(rng)
        M = MAX_MEDIA
        is_gallery = self._is_gallery(rng)
        count = 1 + (rng.uniform(5) * np.where(is_gallery, _MAX_GALLERY_MEDIA, M)).astype(np.int64)
        kinds = np.where(is_gallery[:, None], _STILL, self._kinds(rng.uniforms(8, M + 1)))
        frames = self._frames(kinds, rng.uniforms(9, M + 1))
        return kinds, np.where(np.arange(M + 1) < count[:, None], frames, 0)

    def _published(self, rng: _CounterRandom) -> tuple[Ints, Ints]:
        missing = 1 + (rng.uniform(5) * self.recipe.max_size).astype(np.int64)
        columns: list[Ints] = []
        each = rng.uniforms(8, self.recipe.max_size)
        while missing.any():
            drawn = 1 + (each[:, len(columns)] * missing).astype(np.int64)
            frames = np.minimum(np.minimum(drawn, _PUBLISHED_CLIP), missing)
            columns.append(frames)
            missing = missing - frames
        frames = np.stack([*columns, np.zeros_like(missing)], axis=1)
        still = self._kinds(rng.uniforms(9, frames.shape[1]))
        return np.where(frames > 1, _CLIP, still), frames

    def _kinds(self, uniform: NDArray[np.float64]) -> Ints:
        return np.searchsorted(np.cumsum(_KIND_PROBS[:-1]), uniform, side="right")

    def _frames(self, kinds: Ints, uniform: NDArray[np.float64]) -> Ints:
        longest = self.recipe.longest_clip
        drawn = np.floor(2 * ((longest + 1) / 2) ** uniform).astype(np.int64) if longest > 1 else 1
        # Precomputed media keep their length: a photo has one frame.
        return np.where((kinds == _CLIP) | (self._slots is None), drawn, 1)

    def _image_places(self, epoch: int, positions: Ints, subjects: Ints, M: int) -> Ints:
        """(B, M) index of each medium's image among those of its subject."""
        counts = self._counts[subjects][:, None]
        each = _CounterRandom(self._seed, epoch, positions).uniforms(10, M)
        if not self.recipe.paired:
            return (each * counts).astype(np.int64)
        # Both templates of a pair split the images at the same offset and take different halves.
        split = _CounterRandom(self._seed, epoch, positions // 2).uniform(11)
        offset = (split[:, None] * counts).astype(np.int64)
        second = (positions % 2).astype(bool)[:, None] & (counts > 1)
        half = np.where(second, counts // 2, counts - counts // 2)
        place = (each * half).astype(np.int64) + np.where(second, counts - counts // 2, 0)
        return (place + offset) % counts

    def _pools(self, image: Ints, kinds: Ints, uniform: NDArray[np.float64]) -> tuple[Ints, Ints]:
        """First row and number of rows of the media that frames are taken from."""
        start = self.bank.starts[image]
        if self._slots is None:
            return start, self.bank.lengths[image]
        first, length, count = self._slots
        slot = (uniform * count[kinds]).astype(np.int64)
        return start + first[kinds, slot], length[kinds, slot]


class FeatureTemplateDataset(Dataset[Any]):
    """Templates for the coreset stage: the items of a batch -> `FeatureBatch`."""

    def __init__(self, template_sampler: TemplateSampler) -> None:
        self._template_sampler = template_sampler

    def __len__(self) -> int:
        return self._template_sampler.num_rows

    def __getitems__(self, items: Sequence[Item]) -> FeatureBatch:
        """The whole batch; called by DataLoader."""
        return self._template_sampler.batch(items)


class HeldOutFeatureTemplates(Dataset[FeatureTemplate]):
    """Templates of held-out subjects, as `data.sampling.templates.HeldOutTemplates` builds them.

    The images of each subject with two or more are split in half. One to three plain views of the first half
    form the gallery template; two probe templates are sampled from the second half as in training, without
    impostors. `labels` (M,) int64; `is_gallery` (M,) bool.

    Raises:
        InputError: fewer than two subjects have two images.
    """

    def __init__(self, bank: FeatureBank, recipe: TemplateRecipe, *, seed: int, max_subjects: int) -> None:
        index = SubjectIndex(bank.labels)
        several = subjects_for_validation(
            index, bank.subjects, bank.name, seed=seed, max_subjects=max_subjects
        )
        self.bank = bank
        self.labels = np.repeat(several, 1 + PROBES)
        self.is_gallery = np.arange(len(self.labels)) % (1 + PROBES) == 0
        gallery, probes = [], []
        for subject in several.tolist():
            name = name_hash(bank.subjects[subject])
            rng = np.random.default_rng([seed, name, 1])
            images = rng.permutation(index.images_of(subject))
            first, second = np.split(images, [len(images) // 2])
            gallery.append(first[: rng.integers(1, GALLERY_STILLS + 1)])
            probes.append(second)
        labels = np.repeat(np.arange(len(several)), [len(part) for part in probes])
        names = [bank.subjects[subject] for subject in several]
        half = bank.subset(np.concatenate(probes), labels, names)
        clean = replace(recipe, impostor_media_prob=0.0, impostor_face_prob=0.0, paired=False)
        template_sampler = TemplateSampler(half, clean, seed=seed)
        subjects = np.repeat(np.arange(len(several)), PROBES)
        # An epoch that training does not reach.
        drawn = template_sampler.draw(2**40, np.arange(len(subjects)), subjects)
        self._templates: list[FeatureTemplate] = []
        for number, images in enumerate(gallery):
            rows = bank.starts[images]
            self._templates.append(FeatureTemplate(rows, np.arange(len(rows)), int(several[number])))
            for which in range(PROBES):
                probe = drawn[number * PROBES + which]
                self._templates.append(replace(probe, label=int(several[number])))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> FeatureTemplate:
        return self._templates[number]

    def collate(self, templates: Sequence[FeatureTemplate]) -> FeatureBatch:
        """Join templates to one ragged batch, with media numbered across it."""
        offsets, media = ragged_media([template.media for template in templates])
        rows = np.concatenate([template.rows for template in templates])
        return gather_batch(self.bank, rows, offsets, np.array([t.label for t in templates]), media)


class _CounterRandom:
    """Counter-based random numbers in [0, 1): a function of seed, epoch, position and stream."""

    def __init__(self, seed: int, epoch: int, positions: Ints) -> None:
        key = _mixed(np.array([seed], np.uint64))
        key = _mixed(key ^ np.array([epoch], np.uint64))
        self._keys = _mixed(key ^ positions.astype(np.uint64))

    def uniform(self, stream: int) -> NDArray[np.float64]:
        """(B,) of a stream."""
        return self.uniforms(stream, 1)[:, 0]

    def uniforms(self, stream: int, count: int) -> NDArray[np.float64]:
        """(B, count) of a stream; streams are independent."""
        counters = _mixed(np.arange(count, dtype=np.uint64) + np.uint64(stream << 32))
        bits: NDArray[np.float64] = _mixed(self._keys[:, None] ^ counters) >> np.uint64(11)
        return bits * 2.0**-53


def _mixed(values: Uints) -> Uints:
    """One step of splitmix64 (Steele et al., 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def _slots(plan: ViewPlan) -> tuple[Ints, Ints, Ints]:
    """First view and length (3, M) of the media of each kind, and their number (3,).

    Kinds that a short plan lacks are replaced by the poorest of the others.
    """
    groups = [plan.media(*kinds) for kinds in _KINDS]
    for number in range(1, len(groups)):
        if not len(groups[number]):
            groups[number] = groups[number - 1]
    counts = np.array([len(group) for group in groups])
    padded = np.stack([np.resize(group, (counts.max(), 2)) for group in groups])
    return padded[..., 0], padded[..., 1], counts


def _cut(frames: Ints, most: int, *, keep_last: NDArray[np.bool_]) -> Ints:
    """Limit frames (B, M) to `most` per set by shortening or removing media from the end.

    Where `keep_last` is set, the last medium keeps at least one frame if `most` is above 1.
    """
    available = np.maximum(most - (keep_last & (most > 1)), 1)
    before = np.cumsum(frames[:, :-1], axis=1) - frames[:, :-1]
    kept = np.clip(available[:, None] - before, 0, frames[:, :-1])
    last = np.clip(most - kept.sum(axis=1), 0, frames[:, -1])
    return np.concatenate([kept, last[:, None]], axis=1)


def _rows_of(
    start: Ints, length: Ints, frames: Ints, uniform: NDArray[np.float64]
) -> tuple[Ints, Ints, Ints]:
    """Consecutive frames from a random one on, cyclic where a medium has fewer rows than frames."""
    offsets = np.concatenate(([0], np.cumsum(frames.sum(axis=1))))
    step, medium = ragged_ranges(np.zeros(frames.size, np.int64), frames.ravel())
    first = (uniform.ravel() * length.ravel()).astype(np.int64)
    rows = start.ravel()[medium] + (first[medium] + step) % length.ravel()[medium]
    return rows, offsets, medium

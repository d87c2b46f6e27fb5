"""Training templates drawn from cached features: which rows make a set, thousands of sets a second.

A medium is one draw of one image (`data.sampling.views`), or the frames of one photo or video where features
come from elsewhere. All chance is a hash of seed, epoch and position, computed for a whole batch at once;
nothing is embedded and no image is read here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from data.sampling.positions import Item
from data.sampling.templates import GALLERY_STILLS, PROBES
from data.sampling.views import Kind, ViewPlan
from data.sources.subject_index import SubjectIndex
from features.bank import FeatureBank, FeatureBatch, FeatureTemplate, gather_batch, ragged_ranges
from runtime.errors import InputError

STYLES = ("clips", "media")
MOST_MEDIA = 4
LONGEST_CLIP = 40
# Of the faces of a template with foreign ones.
MOST_FOREIGN = 0.4
_PUBLISHED_CLIP = 3
_GALLERY_SHARE, _MOST_OF_GALLERY = 0.25, 2
# Moderate stills, poor stills, poor clips.
_SHARES = (0.35, 0.25, 0.4)
_KINDS = ((Kind.PLAIN, Kind.FLIP, Kind.MODERATE), (Kind.POOR,), (Kind.CLIP,))
_STILL, _POOR, _CLIP = range(len(_KINDS))

Ints = NDArray[np.int64]
Uints = NDArray[np.uint64]


@dataclass(frozen=True)
class TemplateRecipe:
    """What a training template is.

    `style` "clips" (published): T ~ U{1..max_size} faces, in clips of up to three frames. "media": one to
    `MOST_MEDIA` media, each a moderate still, a poor still or a poor clip whose length is log-uniform in
    2..`longest_clip`, so that T has a heavy tail; cut off at `max_size`. A quarter of them are as those of a
    gallery: one or two moderate stills, nothing wrong. `impostor_media_prob`: of the other templates, one
    medium of another subject is added to. `impostor_face_prob`: of the other templates, single faces are
    scattered in, each of another subject, up to `MOST_FOREIGN` of the faces. `paired`: positions 2p and 2p+1
    are two templates of one subject, without a common image where it has two.

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
            faults.append(f"templates are drawn as {' or '.join(STYLES)}, not as {self.style!r}.")
        if min(self.max_size, self.longest_clip) < 1:
            faults.append("templates and clips: expected one face or more.")
        for what, share in (("media", self.impostor_media_prob), ("faces", self.impostor_face_prob)):
            if not 0 <= share <= 1:
                faults.append(f"share of templates with wrong {what} {share}: expected 0 to 1.")
        if faults:
            raise InputError.from_faults(faults)


class TemplateDrawer:
    """Draws templates of subjects of a bank, a batch at once.

    `num_rows`: what an item's row counts, images or subjects as `sample_by` says (`TemplateDataset`).
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
            raise InputError(f"{bank.name}: wrong media and foreign faces need two subjects or more.")
        self._slots = None if bank.plan is None else _slots(bank.plan)

    def draw(self, epoch: int, positions: Ints, rows: Ints) -> list[FeatureTemplate]:
        """The templates at these positions (B,) for items with these rows (B,)."""
        subjects = self.bank.labels[rows] if self._by_image else rows
        found, offsets, media = self._draw(epoch, np.asarray(positions), np.asarray(subjects))
        return [
            FeatureTemplate(found[a:b], media[a:b] - media[a], int(subject))
            for a, b, subject in zip(offsets[:-1], offsets[1:], subjects, strict=True)
        ]

    def batch(self, items: Sequence[Item]) -> FeatureBatch:
        """The templates of a batch's items, which are of one epoch."""
        rows = np.array([item.row for item in items])
        subjects = self.bank.labels[rows] if self._by_image else rows
        found, offsets, media = self._draw(
            items[0].epoch, np.array([item.position for item in items]), subjects
        )
        return gather_batch(self.bank, found, offsets, subjects, media)

    def _draw(self, epoch: int, positions: Ints, subjects: Ints) -> tuple[Ints, Ints, Ints]:
        """Rows (N,), offsets (B+1,), media (N,) numbered through the batch."""
        chance = _Chance(self._seed, epoch, positions)
        kinds, frames = self._composed(chance)
        M = frames.shape[1]
        of_subject = np.repeat(subjects[:, None], M, axis=1)
        lot = self._lots(epoch, positions, subjects, M)
        wrong = (chance.draw(0) < self.recipe.impostor_media_prob) & ~self._of_gallery(chance)
        if wrong.any():
            # The last place is free for it.
            other = self._another(subjects, chance.draw(1))
            of_subject[:, -1] = other
            lot[:, -1] = (chance.draw(2) * self._counts[other]).astype(np.int64)
            kinds[:, -1] = self._kinds(chance.draw(3))
            frames[:, -1] = np.where(wrong, self._frames(kinds[:, -1], chance.draw(4)), 0)
        image = self._index.rows[self._index.offsets[of_subject] + lot].astype(np.int64)
        start, length = self._pools(image, kinds, chance.draw_each(6, M))
        if self._slots is None:
            frames = np.minimum(frames, length)
        frames = _cut(frames, self.recipe.max_size, keep_last=wrong)
        drawn = _rows_of(start, length, frames, chance.draw_each(7, M))
        return self._with_foreign(chance, subjects, *drawn) if self.recipe.impostor_face_prob else drawn

    def _with_foreign(
        self, chance: _Chance, subjects: Ints, rows: Ints, offsets: Ints, media: Ints
    ) -> tuple[Ints, Ints, Ints]:
        """The same with faces of other subjects at the end of some templates, each a medium of its own."""
        sizes = np.diff(offsets)
        spoiled = (chance.draw(12) < self.recipe.impostor_face_prob) & ~self._of_gallery(chance)
        share = chance.draw(13) * MOST_FOREIGN
        wanted = (sizes * share / (1 - share) + chance.draw(14)).astype(np.int64)
        count = np.where(spoiled, np.minimum(wanted, self.recipe.max_size - sizes), 0)
        number, template = ragged_ranges(np.zeros(len(count), np.int64), count)
        # One table of chance for each thing that is drawn of a face.
        most = max(1, int(count.max()))
        whose, lot, kind, slot, frame = (chance.draw_each(n, most)[template, number] for n in range(15, 20))
        other = self._another(subjects[template], whose)
        image = self._index.rows[self._index.offsets[other] + (lot * self._counts[other]).astype(np.int64)]
        start, length = self._pools(image.astype(np.int64), self._kinds(kind), slot)
        foreign = start + (frame * length).astype(np.int64)
        order = np.concatenate([np.repeat(np.arange(len(sizes)), sizes), template]).argsort(kind="stable")
        new_media = int(media.max()) + 1 + np.arange(len(foreign))
        return (
            np.concatenate([rows, foreign])[order],
            np.concatenate([[0], np.cumsum(sizes + count)]),
            np.concatenate([media, new_media])[order],
        )

    def _another(self, subjects: Ints, chance: NDArray[np.float64]) -> Ints:
        step = 1 + (chance * (len(self._counts) - 1)).astype(np.int64)
        return (subjects + step) % len(self._counts)

    def _of_gallery(self, chance: _Chance) -> NDArray[np.bool_]:
        """(B,) which templates are one or two moderate stills."""
        return chance.draw(21) < (_GALLERY_SHARE if self.recipe.style == "media" else 0)

    def _composed(self, chance: _Chance) -> tuple[Ints, Ints]:
        """Kinds and frames (B, M) of the right media; no frames where there is no medium."""
        if self.recipe.style == "clips":
            return self._published(chance)
        M = MOST_MEDIA
        of_gallery = self._of_gallery(chance)
        count = 1 + (chance.draw(5) * np.where(of_gallery, _MOST_OF_GALLERY, M)).astype(np.int64)
        kinds = np.where(of_gallery[:, None], _STILL, self._kinds(chance.draw_each(8, M + 1)))
        frames = self._frames(kinds, chance.draw_each(9, M + 1))
        return kinds, np.where(np.arange(M + 1) < count[:, None], frames, 0)

    def _published(self, chance: _Chance) -> tuple[Ints, Ints]:
        missing = 1 + (chance.draw(5) * self.recipe.max_size).astype(np.int64)
        columns: list[Ints] = []
        each = chance.draw_each(8, self.recipe.max_size)
        while missing.any():
            drawn = 1 + (each[:, len(columns)] * missing).astype(np.int64)
            frames = np.minimum(np.minimum(drawn, _PUBLISHED_CLIP), missing)
            columns.append(frames)
            missing = missing - frames
        frames = np.stack([*columns, np.zeros_like(missing)], axis=1)
        still = self._kinds(chance.draw_each(9, frames.shape[1]))
        return np.where(frames > 1, _CLIP, still), frames

    def _kinds(self, chance: NDArray[np.float64]) -> Ints:
        return np.searchsorted(np.cumsum(_SHARES[:-1]), chance, side="right")

    def _frames(self, kinds: Ints, chance: NDArray[np.float64]) -> Ints:
        longest = self.recipe.longest_clip
        drawn = np.floor(2 * ((longest + 1) / 2) ** chance).astype(np.int64) if longest > 1 else 1
        # Media from elsewhere are what they are: a photo has one frame.
        return np.where((kinds == _CLIP) | (self._slots is None), drawn, 1)

    def _lots(self, epoch: int, positions: Ints, subjects: Ints, M: int) -> Ints:
        """(B, M) which of its subject's images each medium is of."""
        counts = self._counts[subjects][:, None]
        each = _Chance(self._seed, epoch, positions).draw_each(10, M)
        if not self.recipe.paired:
            return (each * counts).astype(np.int64)
        # Both templates of a pair cut the images at the same place and take another half.
        turn = (_Chance(self._seed, epoch, positions // 2).draw(11)[:, None] * counts).astype(np.int64)
        second = (positions % 2).astype(bool)[:, None] & (counts > 1)
        half = np.where(second, counts // 2, counts - counts // 2)
        lot = (each * half).astype(np.int64) + np.where(second, counts - counts // 2, 0)
        return (lot + turn) % counts

    def _pools(self, image: Ints, kinds: Ints, chance: NDArray[np.float64]) -> tuple[Ints, Ints]:
        """First row and number of rows of the media that frames are subset from."""
        start = self.bank.starts[image]
        if self._slots is None:
            return start, self.bank.lengths[image]
        first, length, count = self._slots
        slot = (chance * count[kinds]).astype(np.int64)
        return start + first[kinds, slot], length[kinds, slot]


class DrawnFeatures(Dataset[Any]):
    """Coreset stage from features: `PositionSampler` items of a batch -> `FeatureBatch`."""

    def __init__(self, drawer: TemplateDrawer) -> None:
        self._drawer = drawer

    def __len__(self) -> int:
        return self._drawer.num_rows

    def __getitems__(self, items: Sequence[Item]) -> FeatureBatch:
        """The whole batch; DataLoader asks for it where a data set has this."""
        return self._drawer.batch(items)


class HeldOutFeatures(Dataset[FeatureTemplate]):
    """Templates of subjects that are not trained on, as `data.sampling.templates.held_out_templates` makes
    them.

    The images of each subject with two or more are split into two halves: one to three plain views of the
    first are the gallery template; two probe templates are drawn from the second as in training, without
    wrong media. `labels` (M,) int64; `is_gallery` (M,) bool.

    Raises:
        InputError: fewer than two subjects have two images.
    """

    def __init__(self, bank: FeatureBank, recipe: TemplateRecipe, *, seed: int, max_subjects: int) -> None:
        index = SubjectIndex(bank.labels)
        several = np.flatnonzero(index.counts() >= 2)
        if len(several) < 2:
            raise InputError(
                f"{bank.name}: {len(several)} held-out subjects have two images or more, and validation "
                "compares at least two. Hold out more subjects."
            )
        hashes = np.array([_name_hash(f"{seed}:{bank.subjects[subject]}") for subject in several], np.uint64)
        several = np.sort(several[np.argsort(hashes)[:max_subjects]])
        self.bank = bank
        self.labels = np.repeat(several, 1 + PROBES)
        self.is_gallery = np.arange(len(self.labels)) % (1 + PROBES) == 0
        gallery, probes = [], []
        for subject in several.tolist():
            name = _name_hash(bank.subjects[subject])
            rng = np.random.default_rng([seed, name, 1])
            images = rng.permutation(index.images_of(subject))
            first, second = np.split(images, [len(images) // 2])
            gallery.append(first[: rng.integers(1, GALLERY_STILLS + 1)])
            probes.append(second)
        labels = np.repeat(np.arange(len(several)), [len(part) for part in probes])
        names = [bank.subjects[subject] for subject in several]
        half = bank.subset(np.concatenate(probes), labels, names)
        clean = replace(recipe, impostor_media_prob=0.0, impostor_face_prob=0.0, paired=False)
        drawer = TemplateDrawer(half, clean, seed=seed)
        subjects = np.repeat(np.arange(len(several)), PROBES)
        # An epoch that training never comes to.
        drawn = drawer.draw(2**40, np.arange(len(subjects)), subjects)
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
        """Joins templates to one ragged batch; media are numbered through."""
        sizes = np.array([len(template.rows) for template in templates])
        first = np.cumsum([0, *(int(template.media.max()) + 1 for template in templates[:-1])])
        media = np.concatenate([template.media + at for template, at in zip(templates, first, strict=True)])
        offsets = np.concatenate(([0], np.cumsum(sizes)))
        rows = np.concatenate([template.rows for template in templates])
        return gather_batch(self.bank, rows, offsets, np.array([t.label for t in templates]), media)


class _Chance:
    """Numbers in [0, 1) that follow from seed, epoch, position and their own number alone."""

    def __init__(self, seed: int, epoch: int, positions: Ints) -> None:
        key = _mixed(np.array([seed], np.uint64))
        key = _mixed(key ^ np.array([epoch], np.uint64))
        self._keys = _mixed(key ^ positions.astype(np.uint64))

    def draw(self, number: int) -> NDArray[np.float64]:
        """(B,)."""
        return self.draw_each(number, 1)[:, 0]

    def draw_each(self, number: int, count: int) -> NDArray[np.float64]:
        """(B, count); numbers with another first argument have nothing to do with these."""
        numbers = _mixed(np.arange(count, dtype=np.uint64) + np.uint64(number << 32))
        chance: NDArray[np.float64] = _mixed(self._keys[:, None] ^ numbers) >> np.uint64(11)
        return chance * 2.0**-53


def _mixed(values: Uints) -> Uints:
    """One step of splitmix64 (Steele et al., 2014): every bit of the result hangs on every bit given."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def _slots(plan: ViewPlan) -> tuple[Ints, Ints, Ints]:
    """First view and length (3, most) of the media of each kind, and their number (3,).

    A short plan lacks kinds: what is poorest of the others serves in their place.
    """
    groups = [plan.media(*kinds) for kinds in _KINDS]
    for number in range(1, len(groups)):
        if not len(groups[number]):
            groups[number] = groups[number - 1]
    counts = np.array([len(group) for group in groups])
    padded = np.stack([np.resize(group, (counts.max(), 2)) for group in groups])
    return padded[..., 0], padded[..., 1], counts


def _cut(frames: Ints, most: int, *, keep_last: NDArray[np.bool_]) -> Ints:
    """Frames (B, M) of which no set has more than `most`; media behind are shortened or left out.

    Where `keep_last` says so, the last medium keeps one frame at least if there is room for two.
    """
    room = np.maximum(most - (keep_last & (most > 1)), 1)
    before = np.cumsum(frames[:, :-1], axis=1) - frames[:, :-1]
    right = np.clip(room[:, None] - before, 0, frames[:, :-1])
    last = np.clip(most - right.sum(axis=1), 0, frames[:, -1])
    return np.concatenate([right, last[:, None]], axis=1)


def _rows_of(start: Ints, length: Ints, frames: Ints, chance: NDArray[np.float64]) -> tuple[Ints, Ints, Ints]:
    """Frames in a row from a random one on, round and round where a medium has fewer rows."""
    offsets = np.concatenate(([0], np.cumsum(frames.sum(axis=1))))
    step, medium = ragged_ranges(np.zeros(frames.size, np.int64), frames.ravel())
    first = (chance.ravel() * length.ravel()).astype(np.int64)
    rows = start.ravel()[medium] + (first[medium] + step) % length.ravel()[medium]
    return rows, offsets, medium


def _name_hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "big")

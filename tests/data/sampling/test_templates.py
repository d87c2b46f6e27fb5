"""What a step is fed with follows from the seed and the position, and only what is used is decoded."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import data.sampling.templates
from backbones.spec import BackboneSpec
from data.sampling.augmentation import Augmentation
from data.sampling.positions import Item, PositionSampler
from data.sampling.templates import (
    FaceDataset,
    HeldOutTemplates,
    TemplateBatch,
    TemplateDataset,
    collate_faces,
    collate_templates,
    draw_clips,
)
from data.sources.face_source import select
from data.sources.subject_index import SubjectIndex
from runtime.errors import InputError

NEVER = Augmentation(0.0, 0.0, 0.0)
ALWAYS = Augmentation(1.0, 1.0, 1.0)
BGR = BackboneSpec("fake", 4, "BGR", 127.5, 127.5, True)
RGB = BackboneSpec("fake", 4, "RGB", 127.5, 127.5, True)


class DrawnFaces:
    """Random pictures; remembers which rows were decoded."""

    name = "drawn"
    location = Path("nowhere")

    def __init__(self, counts: list[int]) -> None:
        self.subjects = [f"s{subject:03}" for subject in range(len(counts))]
        self.labels = np.repeat(np.arange(len(counts)), counts)
        self.decoded: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def read_bytes(self, row: int) -> bytes:
        return b""

    def describe(self, row: int) -> str:
        return f"row {row}"

    def image(self, row: int) -> np.ndarray:
        self.decoded.append(row)
        noise = np.random.default_rng(row).integers(0, 256, (14, 14, 3), np.uint8)
        return noise.repeat(8, axis=0).repeat(8, axis=1)

    def names_digest(self) -> bytes:
        return b""


@pytest.fixture
def faces() -> DrawnFaces:
    return DrawnFaces([1, 2, 3, 7, 12, 5])


@pytest.fixture
def untransformed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves frames of a clip as they are, so that they can be told."""
    monkeypatch.setattr(data.sampling.templates, "clip_transform", lambda image, rng: image)


def templates_of(faces: DrawnFaces, **options: object) -> TemplateDataset:
    return TemplateDataset(faces, BGR, ALWAYS, **{"seed": 3, "max_template_size": 9, **options})


def same(one: TemplateBatch, other: TemplateBatch) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("images", "offsets", "labels", "media")
    )


def is_or_mirrors(image: np.ndarray, original: np.ndarray) -> bool:
    return bool((image == original).all() or (image == original[:, ::-1]).all())


# ---- templates


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(0, 1000))
def test_clips_fill_the_template(num_images: int, max_size: int, longest: int, seed: int) -> None:
    clips = draw_clips(np.random.default_rng(seed), num_images, max_size, longest)
    assert 1 <= sum(length for _, length in clips) <= max_size
    assert all(0 <= image < num_images and 1 <= length <= longest for image, length in clips)


def test_sizes_are_uniform_and_clips_are_drawn_as_published() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_clips(rng, 50, 20) for _ in range(4000)]
    sizes = Counter(sum(length for _, length in clips) for clips in drawn)
    assert set(sizes) == set(range(1, 21))
    assert max(sizes.values()) < 1.35 * 200
    # with T missing frames the first clip has 1, 2 with probability 1/T each and 3 with the rest
    first = Counter(clips[0][1] for clips in drawn if sum(length for _, length in clips) == 20)
    assert first[3] > 0.8 * sum(first.values())
    images = Counter(image for clips in drawn for image, _ in clips)
    assert max(images.values()) < 1.3 * min(images.values())


def test_template_holds_one_subject_and_its_frames_share_a_medium(
    faces: DrawnFaces, untransformed: None
) -> None:
    dataset = TemplateDataset(faces, RGB, NEVER, seed=0, max_template_size=12)
    for position in range(30):
        faces.decoded.clear()
        template = dataset[Item(0, position, 20)]
        assert template.label == faces.labels[20] == 4
        used = list(faces.decoded)
        assert set(faces.labels[used]) == {4}
        assert (np.diff(template.media) >= 0).all()
        assert max(Counter(template.media.tolist()).values()) <= 3
        assert template.media.max() + 1 >= len(used)
        by_medium: dict[int, list[int]] = {}
        for image, medium in zip(template.images, template.media.tolist(), strict=True):
            original = [row for row in used if is_or_mirrors(np.moveaxis(image, 0, -1), faces.image(row))]
            assert len(original) == 1
            by_medium.setdefault(medium, []).extend(original)
        assert all(len(set(rows)) == 1 for rows in by_medium.values())
        assert {row for rows in by_medium.values() for row in rows} == set(used)


def test_only_the_images_used_are_decoded_and_each_once(faces: DrawnFaces) -> None:
    dataset = templates_of(faces, max_template_size=3)
    for position in range(40):
        faces.decoded.clear()
        template = dataset[Item(0, position, 20)]
        assert len(faces.decoded) == len(set(faces.decoded)) <= len(template.images)


def test_frames_of_a_clip_differ(faces: DrawnFaces) -> None:
    dataset = templates_of(DrawnFaces([1]), max_template_size=30)
    template = max((dataset[Item(0, position, 0)] for position in range(10)), key=lambda t: len(t.images))
    distinct = {image.tobytes() for image in template.images}
    assert len(distinct) > len(template.images) / 2


def test_clips_of_one_frame_are_stills(faces: DrawnFaces) -> None:
    template = templates_of(faces, longest_clip=1, max_template_size=30)[Item(0, 1, 25)]
    assert template.media.tolist() == list(range(len(template.images)))


def test_faces_are_mirrored_half_of_the_time(untransformed: None) -> None:
    faces = DrawnFaces([1])
    dataset = TemplateDataset(faces, RGB, NEVER, seed=0, max_template_size=20)
    images = np.concatenate([dataset[Item(0, position, 0)].images for position in range(40)])
    as_is = (images == np.moveaxis(faces.image(0), -1, 0)).all(axis=(1, 2, 3))
    assert 0.4 < as_is.mean() < 0.6


def test_sampling_by_image_favours_large_subjects_and_by_subject_does_not() -> None:
    faces = DrawnFaces([1, 9, 30])
    for sample_by, expected in (("image", [1, 9, 30]), ("subject", [1, 1, 1])):
        dataset = TemplateDataset(faces, RGB, NEVER, seed=0, max_template_size=1, sample_by=sample_by)
        sampler = PositionSampler(num_rows=len(dataset), batch_size=1, seed=0)
        labels = [dataset[item].label for batch in sampler for item in batch]
        assert np.bincount(labels).tolist() == expected


def test_template_depends_on_seed_epoch_and_position_only(faces: DrawnFaces) -> None:
    dataset, other_seed = templates_of(faces), templates_of(faces, seed=4)
    reference = dataset[Item(2, 5, 20)]
    dataset[Item(0, 0, 3)]
    again = dataset[Item(2, 5, 20)]
    assert (again.images == reference.images).all()
    assert (again.media == reference.media).all()
    for changed in (dataset[Item(3, 5, 20)], dataset[Item(2, 6, 20)], other_seed[Item(2, 5, 20)]):
        assert changed.images.shape != reference.images.shape or (changed.images != reference.images).any()


@pytest.mark.parametrize("sample_by", ["image", "subject"])
def test_workers_and_ranks_change_nothing(faces: DrawnFaces, sample_by: str) -> None:
    dataset = templates_of(faces, sample_by=sample_by)
    sampling = {"num_rows": len(dataset), "num_items": 16, "seed": 3, "epoch": 1}

    def batches(num_workers: int, **ranks: int) -> list[TemplateBatch]:
        sampler = PositionSampler(**sampling, **ranks)
        loader = DataLoader(
            dataset, batch_sampler=sampler, num_workers=num_workers, collate_fn=collate_templates
        )
        return list(loader)

    alone = batches(0, batch_size=4)
    assert all(same(*pair) for pair in zip(alone, batches(2, batch_size=4), strict=True))
    ranks = [batches(0, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    for whole, first, second in zip(alone, *ranks, strict=True):
        assert torch.equal(whole.images, torch.cat((first.images, second.images)))
        assert torch.equal(whole.labels, torch.cat((first.labels, second.labels)))


def test_wrong_options_are_refused(faces: DrawnFaces) -> None:
    with pytest.raises(InputError, match="by image or subject, not by 'name'"):
        templates_of(faces, sample_by="name")
    with pytest.raises(InputError, match="size of 0"):
        templates_of(faces, max_template_size=0)
    with pytest.raises(InputError, match=r"crop_prob is 1\.5.*\n.*photometric_prob is -1"):
        Augmentation(1.5, 0.5, -1)


# ---- batches


def test_batch_is_ragged_and_media_are_unique_in_it(faces: DrawnFaces) -> None:
    dataset = templates_of(faces)
    templates = [dataset[Item(0, position, position)] for position in range(8)]
    batch = collate_templates(templates)
    assert len(batch) == 8
    assert (batch.images.dtype, batch.images.shape[1:]) == (torch.uint8, (3, 112, 112))
    assert (batch.offsets.dtype, batch.labels.dtype, batch.media.dtype) == (torch.int64,) * 3
    for number, (first, last) in enumerate(pairwise(batch.offsets.tolist())):
        assert (batch.images[first:last].numpy() == templates[number].images).all()
        media = batch.media[first:last]
        assert torch.equal(media - media[0], torch.from_numpy(templates[number].media))
    assert len(batch.media.unique()) == sum(len(set(template.media.tolist())) for template in templates)
    assert batch.labels.tolist() == [template.label for template in templates]
    assert same(batch.to("cpu"), batch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs an accelerator")
def test_batch_is_pinned(faces: DrawnFaces) -> None:
    assert collate_templates([templates_of(faces)[Item(0, 0, 0)]]).pin_memory().images.is_pinned()


# ---- single faces


def test_face_is_given_in_the_order_of_the_spec(faces: DrawnFaces) -> None:
    image, label = FaceDataset(faces, BGR, NEVER, seed=0)[Item(0, 0, 9)]
    assert label == faces.labels[9]
    assert is_or_mirrors(np.moveaxis(image, 0, -1)[..., ::-1], faces.image(9))


def test_faces_are_augmented_by_seed_epoch_and_position(faces: DrawnFaces) -> None:
    dataset = FaceDataset(faces, BGR, ALWAYS, seed=0)
    reference, _ = dataset[Item(0, 4, 9)]
    assert (dataset[Item(0, 4, 9)][0] == reference).all()
    assert (dataset[Item(1, 4, 9)][0] != reference).any()
    assert (dataset[Item(0, 5, 9)][0] != reference).any()


def test_faces_are_the_same_with_workers(faces: DrawnFaces) -> None:
    dataset = FaceDataset(faces, BGR, ALWAYS, seed=0)
    loaded = [
        list(
            DataLoader(
                dataset,
                batch_sampler=PositionSampler(num_rows=len(faces), batch_size=6, seed=0),
                num_workers=num_workers,
                collate_fn=collate_faces,
            )
        )
        for num_workers in (0, 2)
    ]
    for (images, labels), (other_images, other_labels) in zip(*loaded, strict=True):
        assert images.shape == (6, 3, 112, 112)
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


# ---- held-out subjects


def held_out(faces: DrawnFaces, **options: object) -> HeldOutTemplates:
    return HeldOutTemplates(faces, RGB, ALWAYS, **{"seed": 1, "max_template_size": 8, **options})


def test_held_out_subject_has_a_gallery_template_and_two_probes(faces: DrawnFaces) -> None:
    templates = held_out(faces)
    assert templates.labels.tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]
    assert templates.is_gallery.tolist() == [True, False, False] * 5
    assert len(templates) == 15
    assert [template.label for template in templates] == templates.labels.tolist()


def test_gallery_and_probes_share_no_image_and_the_gallery_is_clean(faces: DrawnFaces) -> None:
    templates = held_out(faces)
    for subject in range(5):
        faces.decoded.clear()
        gallery = templates[3 * subject]
        stills = list(faces.decoded)
        assert 1 <= len(stills) <= 3
        assert (np.moveaxis(gallery.images, 1, -1) == np.stack([faces.image(row) for row in stills])).all()
        assert gallery.media.tolist() == list(range(len(stills)))
        faces.decoded.clear()
        sizes = [len(templates[3 * subject + probe].images) for probe in (1, 2)]
        assert all(1 <= size <= 8 for size in sizes)
        assert not set(stills) & set(faces.decoded)
        assert set(faces.labels[stills + faces.decoded]) == {subject + 1}


def test_protocol_is_fixed_by_seed_and_subject_only(faces: DrawnFaces) -> None:
    reference = held_out(faces)
    part = select(faces, np.flatnonzero(faces.labels >= 3))
    few = held_out(part)
    for number in (0, 4, 8):
        assert (few[number].images == reference[6 + number].images).all()
    assert (reference[4].images == reference[4].images).all()
    assert any(
        a.images.shape != b.images.shape or (a.images != b.images).any()
        for a, b in zip(reference, held_out(faces, seed=2), strict=True)
    )


def test_number_of_validation_subjects_can_be_limited(faces: DrawnFaces) -> None:
    few = held_out(faces, max_subjects=3)
    assert len(few) == 9
    assert (np.diff(few.labels) >= 0).all()
    assert held_out(faces, max_subjects=3).labels.tolist() == few.labels.tolist()
    assert len({tuple(held_out(faces, max_subjects=3, seed=seed).labels) for seed in range(6)}) > 1
    assert len(held_out(faces, max_subjects=100)) == 15


def test_held_out_templates_load_in_workers(faces: DrawnFaces) -> None:
    loaded = [
        list(DataLoader(held_out(faces), batch_size=4, num_workers=workers, collate_fn=collate_templates))
        for workers in (0, 2)
    ]
    assert all(same(*pair) for pair in zip(*loaded, strict=True))


def test_too_few_held_out_subjects_are_refused() -> None:
    with pytest.raises(InputError, match="1 held-out subjects"):
        held_out(DrawnFaces([1, 4, 1]))


def test_looking_up_a_subject_does_not_grow_with_the_data() -> None:
    index = SubjectIndex(np.repeat(np.arange(50_000), 20))
    assert index.images_of(49_999).tolist() == list(range(999_980, 1_000_000))

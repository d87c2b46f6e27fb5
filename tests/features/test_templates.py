"""Templates from features: every draw follows from seed and position, and is what was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backbones.auxiliary import append_auxiliary
from data.sampling.positions import Item, PositionSampler
from data.sampling.views import Kind, ViewPlan
from features.bank import FeatureBank, bank_of_rows, gather_batch, read_feature_bank
from features.templates import (
    FeatureTemplateDataset,
    HeldOutFeatureTemplates,
    TemplateRecipe,
    TemplateSampler,
)
from runtime.errors import InputError

SUBJECTS = 12


def view_bank(views: int = 16, images: int = 5) -> FeatureBank:
    """Subjects with `images` and more images each, which are not stored in order."""
    rng = np.random.default_rng(3)
    labels = rng.permutation(np.repeat(np.arange(SUBJECTS), images + np.arange(SUBJECTS) % 3))
    plan = ViewPlan.of(views)
    features = rng.standard_normal((len(labels) * views, 8)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return FeatureBank(
        name="drawn",
        features=features,
        norms=rng.uniform(5, 30, len(features)).astype(np.float32),
        subjects=[f"s{number:02}" for number in range(SUBJECTS)],
        labels=labels,
        starts=np.arange(len(labels)) * views,
        lengths=np.full(len(labels), views),
        plan=plan,
        identity={"images": "d"},
    )


def items(count: int, epoch: int = 0) -> list[Item]:
    return [Item(epoch, position, position % SUBJECTS) for position in range(count)]


def drawn(recipe: TemplateRecipe, count: int = 3000, bank: FeatureBank | None = None) -> Any:
    bank = bank or view_bank()
    template_sampler = TemplateSampler(bank, recipe, seed=7)
    positions = np.arange(count)
    return bank, template_sampler.draw(0, positions, positions % SUBJECTS)


def image_of(bank: FeatureBank, rows: np.ndarray) -> np.ndarray:
    return np.searchsorted(bank.starts, rows, side="right") - 1


def test_the_same_seed_draws_the_same_rows_in_any_batch() -> None:
    bank = view_bank()
    template_sampler = TemplateSampler(bank, TemplateRecipe(impostor_media_prob=0.3), seed=7)
    whole = template_sampler.batch(items(64))
    again = TemplateSampler(bank, TemplateRecipe(impostor_media_prob=0.3), seed=7).batch(items(64))
    assert torch.equal(whole.rows, again.rows)
    parts = [template_sampler.batch(items(64)[first : first + 8]) for first in range(0, 64, 8)]
    assert torch.equal(whole.rows, torch.cat([part.rows for part in parts]))
    for other in (
        TemplateSampler(bank, TemplateRecipe(impostor_media_prob=0.3), seed=8).batch(items(64)),
        template_sampler.batch(items(64, epoch=1)),
    ):
        assert not np.array_equal(whole.rows[:50], other.rows[:50])


@pytest.mark.parametrize("style", ["media", "clips"])
@pytest.mark.parametrize("views", [1, 2, 3, 4, 6, 16])
def test_rows_are_of_the_subject_whatever_the_views(style: str, views: int) -> None:
    bank = view_bank(views)
    template_sampler = TemplateSampler(bank, TemplateRecipe(style=style, max_size=30), seed=1)
    batch = template_sampler.batch(items(200))
    template = torch.arange(200).repeat_interleave(batch.offsets.diff())
    assert np.array_equal(bank.labels[image_of(bank, batch.rows.numpy())], batch.labels[template])
    assert torch.equal(batch.features, torch.from_numpy(bank.features[batch.rows]))
    assert torch.equal(batch.norms, torch.from_numpy(bank.norms[batch.rows]))
    assert 1 <= int(batch.offsets.diff().min()) <= int(batch.offsets.diff().max()) <= 30
    # A medium is within one template, and of one image.
    for media in (template, torch.from_numpy(image_of(bank, batch.rows.numpy()))):
        assert len(torch.unique(torch.stack([batch.media, media]), dim=1).T) == len(batch.media.unique())


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("style", ["media", "clips"])
def test_impostor_media_have_the_requested_probability(share: float, style: str) -> None:
    bank, templates = drawn(TemplateRecipe(style=style, max_size=40, impostor_media_prob=share))
    wrong = 0
    for template in templates:
        subjects = bank.labels[image_of(bank, template.rows)]
        impostor = subjects != template.label
        assert not impostor.all() or len(impostor) == 1
        assert len(np.unique(template.media[impostor])) <= 1
        assert len(np.unique(subjects[impostor])) <= 1
        wrong += bool(impostor.any())
    # A quarter of the sets of media are a gallery's and stay as they are. A template that is full with one
    # face has no room for a second; 40 faces rarely are.
    assert wrong / len(templates) == pytest.approx(share * (0.75 if style == "media" else 1), abs=0.03)


@pytest.mark.parametrize("style", ["media", "clips"])
def test_impostor_faces_are_separate_media(style: str) -> None:
    recipe = TemplateRecipe(style=style, max_size=60, impostor_face_prob=0.4)
    bank, templates = drawn(recipe)
    plain = drawn(TemplateRecipe(style=style, max_size=60))[1]
    contaminated, shares = 0, []
    for template, before in zip(templates, plain, strict=True):
        subjects = bank.labels[image_of(bank, template.rows)]
        impostor = subjects != template.label
        # What was there before is there still, before all others.
        assert np.array_equal(template.rows[~impostor], before.rows)
        assert not impostor[: len(before.rows)].any()
        media, count = np.unique(template.media, return_counts=True)
        assert (count[np.isin(media, template.media[impostor])] == 1).all()
        contaminated += bool(impostor.any())
        if len(before.rows) >= 20:
            shares.append(impostor.mean())
    assert 0.1 < contaminated / len(templates) < 0.4
    # Few sets have room for none or more than two fifths, but for one that is rounded up.
    assert max(shares) <= 0.4 + 1 / 20
    assert np.mean(shares) == pytest.approx(0.4 * 0.2 * (0.75 if style == "media" else 1), abs=0.02)
    subjects = np.concatenate([bank.labels[image_of(bank, t.rows)] for t in templates if len(t.rows) > 30])
    assert len(np.unique(subjects)) == SUBJECTS


def test_quarter_of_the_templates_are_gallery_like() -> None:
    recipe = TemplateRecipe(impostor_media_prob=1.0, impostor_face_prob=1.0)
    bank, templates = drawn(recipe)
    kinds = np.array(bank.plan.kinds)
    still = (Kind.PLAIN, Kind.FLIP, Kind.MODERATE)
    count = 0
    for template in templates:
        if (bank.labels[image_of(bank, template.rows)] == template.label).all():
            count += 1
            assert len(template.rows) <= 2
            assert np.isin(kinds[template.rows % 16], still).all()
    assert count / len(templates) == pytest.approx(0.25, abs=0.03)


def test_media_are_stills_and_clips_and_sizes_have_a_heavy_tail() -> None:
    bank, templates = drawn(TemplateRecipe(max_size=1000, longest_clip=40))
    kinds = np.array(bank.plan.kinds)
    count = {"moderate": 0, "poor": 0, "clip": 0}
    for template in templates:
        views = template.rows % 16
        for medium in np.unique(template.media):
            own = views[template.media == medium]
            found = set(kinds[own])
            if found == {Kind.CLIP}:
                count["clip"] += 1
                assert 2 <= len(own) <= 40
            else:
                count["poor" if found == {Kind.POOR} else "moderate"] += 1
                assert len(own) == 1
    total = sum(count.values())
    # A quarter have one or two stills, the others one to four media.
    assert total / len(templates) == pytest.approx(0.75 * 2.5 + 0.25 * 1.5, abs=0.1)
    others = 0.75 * 2.5 / 2.25
    assert count["clip"] / total == pytest.approx(0.4 * others, abs=0.03)
    assert count["poor"] / total == pytest.approx(0.25 * others, abs=0.03)
    sizes = np.array([len(template.rows) for template in templates])
    assert sizes.max() > 4 * np.median(sizes)
    long = [len(t.rows) for t in drawn(TemplateRecipe(max_size=2000, longest_clip=500))[1]]
    assert max(long) > 600


def test_template_size_is_limited() -> None:
    _, templates = drawn(TemplateRecipe(max_size=7, impostor_media_prob=1.0))
    assert max(len(template.rows) for template in templates) == 7


def test_clips_style_has_the_published_distribution() -> None:
    templates = drawn(TemplateRecipe(style="clips", max_size=10), count=6000)[1]
    sizes = np.bincount([len(template.rows) for template in templates], minlength=11)[1:]
    assert np.allclose(sizes / 6000, 0.1, atol=0.02)
    assert max(np.bincount(template.media).max() for template in templates) == 3


def test_a_pair_shares_a_subject_and_no_image() -> None:
    bank = view_bank()
    template_sampler = TemplateSampler(bank, TemplateRecipe(paired=True), seed=0)
    sampler = PositionSampler(
        num_rows=template_sampler.num_rows, batch_size=8, seed=0, num_items=64, repeats=2
    )
    seen = set()
    for batch in map(FeatureTemplateDataset(template_sampler).__getitems__, sampler):
        assert torch.equal(batch.labels[0::2], batch.labels[1::2])
        for pair in range(0, 8, 2):
            a, b, c = batch.offsets[pair : pair + 3].tolist()
            one, other = (
                set(image_of(bank, batch.rows[part].numpy())) for part in (slice(a, b), slice(b, c))
            )
            assert not one & other
            seen |= {len(one), len(other)}
    assert max(seen) > 1


def test_single_image_serves_both_templates_of_a_pair() -> None:
    bank = view_bank(images=1)
    templates = TemplateSampler(bank, TemplateRecipe(paired=True), seed=0).draw(
        0, np.arange(8), np.zeros(8, np.int64)
    )
    assert {int(image) for t in templates for image in image_of(bank, t.rows)} == {
        int(np.flatnonzero(bank.labels == 0)[0])
    }


def test_precomputed_media_keep_their_frames() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 30)
    media = np.repeat(np.arange(24), 5)
    order = rng.permutation(120)
    features = rng.standard_normal((120, 6))
    bank = bank_of_rows("x", features[order], np.full(120, 9.0), labels[order], media[order])
    assert bank.lengths.tolist() == [5] * 24
    assert np.allclose(np.linalg.norm(bank.features, axis=1), 1)
    templates = TemplateSampler(bank, TemplateRecipe(), seed=0).draw(0, np.arange(200), np.arange(200) % 4)
    for template in templates:
        assert set(template.rows // 30) == {template.label}
        for medium in np.unique(template.media):
            own = template.rows[template.media == medium]
            assert len(set(own.tolist())) == len(own) <= 5
    assert any(len(set(template.media)) < len(template.rows) for template in templates)


def test_clean_means_are_those_of_plain_views() -> None:
    bank = view_bank()
    means = bank.clean_means()
    for subject in range(SUBJECTS):
        plain = bank.features[bank.starts[bank.labels == subject]].sum(axis=0)
        assert np.allclose(means[subject], plain / np.linalg.norm(plain), atol=1e-6)
    rows = bank_of_rows("x", bank.features, bank.norms, np.arange(len(bank.features)) % 5, None)
    mean = bank.features[np.arange(len(bank.features)) % 5 == 2].sum(axis=0)
    assert np.allclose(rows.clean_means()[2], mean / np.linalg.norm(mean), atol=1e-6)


def test_clean_means_exclude_auxiliary_values() -> None:
    plain = view_bank()
    auxiliary = np.random.default_rng(5).standard_normal((len(plain.features), 3)).astype(np.float32) + 3
    joined = append_auxiliary(torch.from_numpy(plain.features), torch.from_numpy(auxiliary)).numpy()
    bank = replace(plain, features=joined, auxiliary_size=3)
    assert np.allclose(bank.clean_means(), plain.clean_means(), atol=1e-6)


def test_held_out_templates_share_no_image_and_have_no_impostor() -> None:
    bank = view_bank()
    recipe = TemplateRecipe(impostor_media_prob=1.0, paired=True)
    held_out = HeldOutFeatureTemplates(bank, recipe, seed=0, max_subjects=8)
    again = HeldOutFeatureTemplates(bank, recipe, seed=0, max_subjects=8)
    assert len(held_out) == 24
    assert held_out.is_gallery.sum() == 8
    for number in range(0, 24, 3):
        gallery, *probes = (held_out[number + which] for which in range(3))
        assert set(gallery.rows % 16) == {0}
        shown = set(image_of(bank, gallery.rows))
        for probe in probes:
            assert not shown & set(image_of(bank, probe.rows))
            assert set(bank.labels[image_of(bank, probe.rows)]) == {held_out.labels[number]}
        assert np.array_equal(again[number + 1].rows, probes[0].rows)
    batch = held_out.collate([held_out[0], held_out[4]])
    assert batch.offsets.tolist() == [0, len(held_out[0].rows), len(held_out[0].rows) + len(held_out[4].rows)]
    assert len(batch.media.unique()) == len(set(held_out[0].media)) + len(set(held_out[4].media))


def test_repeated_rows_are_gathered_as_they_come() -> None:
    bank = view_bank()
    rows = np.array([5, 3, 5, 5, 0])
    batch = gather_batch(bank, rows, np.array([0, 2, 5]), np.array([0, 1]), np.zeros(5, np.int64))
    assert np.array_equal(batch.features.numpy(), bank.features[rows])


def test_subset_of_subjects_is_relabelled() -> None:
    bank = view_bank()
    some = bank.of_subjects(["s07", "s02"])
    assert some.subjects == ["s02", "s07"]
    assert len(some) == int(np.isin(bank.labels, [2, 7]).sum())
    assert np.array_equal(some.labels == 1, bank.labels[np.isin(bank.labels, [2, 7])] == 7)
    assert some.digest != bank.digest


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"features": np.ones((4, 3)), "norms": np.ones(4)}, "labels"),
        (
            {"features": np.ones((4, 3)), "norms": np.ones(3), "labels": np.arange(5)},
            r"norms \(3,\).*\n.*labels \(5,\)",
        ),
        ({"features": np.ones((4, 3)), "norms": np.ones(4), "labels": np.zeros(4)}, "two subjects or more"),
        (
            {"features": np.full((4, 3), np.nan), "norms": np.ones(4), "labels": np.arange(4)},
            "row 0 is not finite",
        ),
        ({"features": np.ones(4), "norms": np.ones(4), "labels": np.arange(4)}, r"expected \(N, D\)"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(tmp_path: Path, arrays: Any, message: str) -> None:
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(InputError, match=message):
        read_feature_bank(tmp_path / "f.npz")


def test_what_holds_no_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no features"):
        read_feature_bank(tmp_path)
    (tmp_path / "f.npz").write_bytes(b"no zip")
    with pytest.raises(InputError, match="cannot be read as an npz"):
        read_feature_bank(tmp_path / "f.npz")


def test_recipes_out_of_range_are_refused() -> None:
    with pytest.raises(InputError) as fault:
        TemplateRecipe(style="x", max_size=0, impostor_media_prob=2)
    assert len(str(fault.value).splitlines()) == 3

"""Flip rules, and templates described in ragged batches: every aggregator as one template at a time."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from backbones.auxiliary import append_auxiliary
from coreset import AGGREGATORS, FaceSets, build_aggregator
from evaluation.protocols import templates as templates_module
from evaluation.protocols.templates import FaceGroups, aggregate_templates, average_media, group_faces
from features.flips import FLIP_RULES, fuse_flips
from runtime.errors import InputError

D = 16
OPTIONS: dict[str, dict[str, object]] = {
    name: {"embedding_size": D}
    for name, kind in AGGREGATORS.items()
    if "embedding_size" in inspect.signature(kind).parameters
}
every_name = pytest.mark.parametrize("name", AGGREGATORS)


@pytest.fixture(autouse=True, scope="module")
def _batches_of_few_faces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(templates_module, "_WORK_AT_ONCE", 24)
        yield


def faces(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((count, D)).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True), rng.uniform(5, 35, count).astype(
        np.float32
    )


def dataset(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """features, norms, template of each face, medium of each face; shuffled; templates share media ids."""
    rng = np.random.default_rng(seed)
    sizes = [1, 40, 2, 7, 1, 13, 5]
    template = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return *faces(len(template), seed), template, rng.integers(3, 7, len(template))


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_aggregator(name, OPTIONS.get(name, {})).eval()


def one_at_a_time(module: nn.Module, features, norms, template, media) -> np.ndarray:
    rows = []
    with torch.no_grad():
        for number in range(template.max() + 1):
            mine = template == number
            sets = FaceSets(
                torch.from_numpy(features[mine]),
                torch.from_numpy(norms[mine]),
                torch.tensor([0, mine.sum()]),
                media=torch.from_numpy(media[mine]),
            )
            found = module(sets)
            rows.append(torch.cat([found.embedding[0], found.norm]).numpy())
    return np.stack(rows)


@every_name
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_auxiliary_features_are_apart_from_the_descriptors(name: str, dtype: type) -> None:
    """Rows with them give the descriptors of the embeddings alone, whichever way poolings are computed."""
    features, norms, template, media = dataset()
    auxiliary = np.random.default_rng(1).standard_normal((len(features), 5)).astype(np.float32)
    rows = append_auxiliary(torch.from_numpy(features), torch.from_numpy(auxiliary)).numpy().astype(dtype)
    groups = group_faces(template, media, template.max() + 1)
    found = aggregate_templates(build(name), rows, norms, groups, auxiliary_size=5)
    wanted = aggregate_templates(build(name), features, norms, groups)
    if name != "random_k":
        # Which hashes the bits of the features.
        np.testing.assert_allclose(
            found.embedding, wanted.embedding, atol=2e-3 if dtype is np.float16 else 1e-5
        )
    assert found.embedding.shape == wanted.embedding.shape


@every_name
def test_threads_change_nothing_and_are_given_back(name: str) -> None:
    features, norms, template, media = dataset()
    groups = group_faces(template, media, template.max() + 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = aggregate_templates(build(name), features, norms, groups)
        torch.set_num_threads(3)
        together = aggregate_templates(build(name), features, norms, groups)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(together.embedding, alone.embedding)
    assert np.array_equal(together.norm, alone.norm)


@every_name
def test_described_as_one_template_at_a_time(name: str) -> None:
    features, norms, template, media = dataset()
    module = build(name)
    wanted = one_at_a_time(module, features, norms, template, media)
    found = aggregate_templates(module, features, norms, group_faces(template, media, 7))
    assert found.embedding.dtype == found.norm.dtype == np.float32
    np.testing.assert_allclose(found.embedding, wanted[:, :D], atol=2e-6)
    np.testing.assert_allclose(found.norm, wanted[:, D], rtol=1e-5)


@every_name
def test_half_precision_features_are_widened_first(name: str) -> None:
    features, norms, template, media = dataset()
    half = features.astype(np.float16)
    groups = group_faces(template, media, 7)
    wanted = aggregate_templates(build(name), half.astype(np.float32), norms, groups)
    found = aggregate_templates(build(name), half, norms, groups)
    np.testing.assert_allclose(found.embedding, wanted.embedding, atol=1e-6)


@pytest.mark.parametrize("name", ["media_mean", "top_k"])
def test_features_may_be_a_read_only_file(
    name: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    features, norms, template, media = dataset()
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    groups = group_faces(template, media, 7)
    found = aggregate_templates(build(name), mapped, norms, groups)
    wanted = aggregate_templates(build(name), features, norms, groups)
    np.testing.assert_array_equal(found.embedding, wanted.embedding)
    assert not recwarn.list


def test_order_of_the_faces_does_not_matter() -> None:
    features, norms, template, media = dataset()
    rows = np.random.default_rng(1).permutation(len(norms))
    wanted = aggregate_templates(build("coreset"), features, norms, group_faces(template, media, 7))
    groups = group_faces(template[rows], media[rows], 7)
    found = aggregate_templates(build("coreset"), features[rows], norms[rows], groups)
    np.testing.assert_allclose(found.embedding, wanted.embedding, atol=2e-6)


def test_media_of_two_templates_with_one_id_are_two_media() -> None:
    groups = group_faces(np.array([0, 1, 0, 1]), np.array([5, 5, 5, 6]), 2)
    assert groups.rows.tolist() == [0, 2, 1, 3]
    assert groups.offsets.tolist() == [0, 2, 4]
    assert groups.media.tolist() == [0, 0, 1, 2]


def test_a_face_without_direction_gives_a_descriptor_of_zeros() -> None:
    features, norms = faces(2)
    features[1] = -features[0]
    norms[:] = 10
    found = aggregate_templates(
        build("mean"), features, norms, group_faces(np.zeros(2, int), np.arange(2), 1)
    )
    assert np.abs(found.embedding).max() == 0


def test_averaged_media_are_those_of_a_loop() -> None:
    features, norms, template, media = dataset(3)
    found, lengths, groups = average_media(features, norms, group_faces(template, media, 7))
    for number in range(7):
        rows = groups.rows[groups.offsets[number] : groups.offsets[number + 1]]
        vectors = found[rows] * lengths[rows, None]
        mine = template == number
        wanted = [
            (features * norms[:, None])[mine & (media == medium)].mean(axis=0)
            for medium in np.unique(media[mine])
        ]
        np.testing.assert_allclose(
            vectors[np.lexsort(vectors.T)], np.array(wanted)[np.lexsort(np.array(wanted).T)], atol=1e-4
        )
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_norm_weighted_of_averaged_media_is_media_mean() -> None:
    features, norms, template, media = dataset(4)
    groups = group_faces(template, media, 7)
    wanted = aggregate_templates(build("media_mean"), features, norms, groups).embedding
    found = aggregate_templates(build("norm_weighted"), *average_media(features, norms, groups)).embedding
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("template", "media", "count", "message"),
    [
        (np.array([0, 2]), np.array([0, 0]), 3, "template 1 of 3 has no face"),
        (np.array([0, 1]), np.array([0]), 2, "expected"),
    ],
)
def test_groups_that_cannot_be_are_refused(template, media, count, message) -> None:
    with pytest.raises(InputError, match=message):
        group_faces(template, media, count)


def test_descriptors_that_are_not_finite_are_refused() -> None:
    aggregator = build("coreset")
    with torch.no_grad():
        next(each for each in aggregator.parameters() if each.ndim == 2).fill_(3e38)
    groups = FaceGroups(np.arange(3), np.array([0, 3]), np.arange(3))
    with pytest.raises(InputError, match="1 of 1 sets"):
        aggregate_templates(aggregator, *faces(3), groups)


def test_features_that_do_not_fit_the_groups_are_refused() -> None:
    features, norms = faces(3)
    groups = FaceGroups(np.arange(4), np.array([0, 4]), np.arange(4))
    with pytest.raises(InputError, match="rows below N"):
        aggregate_templates(build("mean"), features, norms, groups)


# ---------------------------------------------------------------------------------------- flip rules


def pair(seed: int, count: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = (F.normalize(torch.randn(count, D, generator=generator), dim=1) for _ in range(2))
    norms = 5 + 30 * torch.rand(2, count, generator=generator)
    return first, second, norms[0], norms[1]


def test_flip_rules_are_those_of_the_text() -> None:
    f1, f2, r1, r2 = pair(0)
    summed = r1[:, None] * f1 + r2[:, None] * f2
    found, norm = fuse_flips(f1, f2, r1, r2, "pre_norm_vector_add")
    torch.testing.assert_close(found, F.normalize(summed, dim=1))
    torch.testing.assert_close(norm, summed.norm(dim=1))
    found, norm = fuse_flips(f1, f2, r1, r2, "norm_weighted_avg")
    torch.testing.assert_close(
        found, F.normalize((r1 / (r1 + r2))[:, None] * f1 + (r2 / (r1 + r2))[:, None] * f2, dim=1)
    )
    torch.testing.assert_close(norm, (r1 + r2) / 2)
    found, norm = fuse_flips(f1, f2, r1, r2, "average")
    torch.testing.assert_close(found, F.normalize(f1 + f2, dim=1))
    torch.testing.assert_close(norm, (r1 + r2) / 2)
    found, norm = fuse_flips(f1, f2, r1, r2, "concat")
    assert found.shape == (5, 2 * D)
    torch.testing.assert_close(found @ found.T, (f1 @ f1.T + f2 @ f2.T) / 2)
    torch.testing.assert_close(norm, (r1 + r2) / 2)


@given(st.sampled_from(FLIP_RULES), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_flip_rules_give_unit_rows_and_keep_a_face_that_is_its_own_mirror_image(rule: str, seed: int) -> None:
    f1, f2, r1, r2 = pair(seed)
    found, norm = fuse_flips(f1, f2, r1, r2, rule)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))
    assert bool((norm > 0).all())
    same, _ = fuse_flips(f1, f1, r1, r1, rule)
    torch.testing.assert_close(same[:, :D] / same[:, :D].norm(dim=1, keepdim=True), f1)


def test_an_unknown_flip_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="norm_weighted_avg, average"):
        fuse_flips(*pair(0), "sum")

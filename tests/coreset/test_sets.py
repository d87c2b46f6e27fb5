from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backbones.auxiliary import append_auxiliary
from coreset import sets as sets_module
from coreset.sets import FaceSets, SetDescriptor, unit_and_norm
from runtime.errors import InputError


def some_sets(sizes: list[int], D: int = 4) -> FaceSets:
    N = sum(sizes)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    return FaceSets(torch.randn(N, D), torch.arange(N).float() + 1, offsets)


def test_sizes_and_sets_of_faces_follow_the_offsets() -> None:
    sets = some_sets([2, 1, 3])
    assert (sets.num_sets, sets.num_faces, sets.embedding_size) == (3, 6, 4)
    assert sets.sizes.tolist() == [2, 1, 3]
    assert sets.set_of_face.tolist() == [0, 0, 1, 2, 2, 2]


def test_dense_and_from_list_are_equivalent() -> None:
    features, norms = torch.randn(3, 2, 4), torch.rand(3, 2)
    media = torch.arange(6).view(3, 2)
    dense = FaceSets.dense(features, norms, media)
    listed = FaceSets.from_list(list(zip(features, norms, strict=True)))
    assert dense.media is not None
    assert dense.media.tolist() == [0, 1, 2, 3, 4, 5]
    for one, other in ((dense.features, listed.features), (dense.norms, listed.norms)):
        assert torch.equal(one, other)
    assert dense.offsets.tolist() == listed.offsets.tolist() == [0, 2, 4, 6]


def test_to_device_keeps_all_fields() -> None:
    sets = FaceSets.dense(torch.randn(2, 3, 4), torch.rand(2, 3), torch.zeros(2, 3, dtype=torch.int64))
    moved = sets.to("cpu")
    assert moved.media is not None
    assert torch.equal(moved.features, sets.features)
    assert torch.equal(moved.offsets, sets.offsets)


def test_subset_selects_faces_and_drops_empty_sets() -> None:
    sets = some_sets([2, 1, 3])
    sets = FaceSets(
        sets.features, sets.norms, sets.offsets, media=torch.arange(6), detector_scores=torch.arange(6) / 6
    )
    sets = replace(sets, auxiliary=torch.arange(12.0).view(6, 2))
    found = sets.subset(torch.tensor([False, True, False, True, True, False]))
    assert found.auxiliary is not None
    assert found.auxiliary.tolist() == [[2, 3], [6, 7], [8, 9]]
    assert found.offsets.tolist() == [0, 1, 3]
    assert torch.equal(found.features, sets.features[[1, 3, 4]])
    assert found.norms.tolist() == [2, 4, 5]
    assert found.media is not None
    assert found.media.tolist() == [1, 3, 4]
    assert found.detector_scores is not None
    assert torch.equal(found.detector_scores, torch.tensor([1, 3, 4]) / 6)
    with pytest.raises(InputError, match="with B at least 1"):
        sets.subset(torch.zeros(6, dtype=torch.bool))


def test_rows_of_a_backbone_are_split_and_padded_together() -> None:
    sets = some_sets([2, 1, 3])
    features, auxiliary = torch.nn.functional.normalize(sets.features, dim=1), torch.randn(6, 3)
    rows = append_auxiliary(features, auxiliary)
    found = FaceSets.from_rows(rows, sets.norms, sets.offsets, 3, media=torch.arange(6))
    assert found.auxiliary is not None
    torch.testing.assert_close(found.features, features)
    torch.testing.assert_close(found.auxiliary, auxiliary, rtol=1e-3, atol=1e-3)
    whole = FaceSets.from_rows(rows, sets.norms, sets.offsets, 0)
    assert whole.features is rows
    assert whole.auxiliary is None

    def sums(
        features: Tensor, norms: Tensor, mask: Tensor | None, more: Tensor
    ) -> tuple[tuple[Tensor], None]:
        present = torch.ones_like(norms) if mask is None else mask.float()
        return ((more * present.unsqueeze(2)).sum(dim=1),), None

    (by_set,), _ = found.map_padded(sums, found.auxiliary)
    torch.testing.assert_close(by_set, found.sum_by_set(found.auxiliary))


FEATURES, NORMS, OFFSETS = torch.ones(3, 4), torch.ones(3), torch.tensor([0, 1, 3])
FAULTS = {
    "features (N, D)": (torch.ones(3), NORMS, OFFSETS, None, "expected (N, D) floating, found (3,) float32"),
    "features floating": (FEATURES.int(), NORMS, OFFSETS, None, "found (3, 4) int32"),
    "a norm a face": (FEATURES, torch.ones(3, 1), OFFSETS, None, "squeeze the last dimension"),
    "int64 offsets": (FEATURES, NORMS, OFFSETS.int(), None, "expected (B+1,) int64"),
    "one set at least": (FEATURES, NORMS, torch.tensor([0]), None, "with B at least 1"),
    "offsets from 0": (FEATURES, NORMS, torch.tensor([1, 3]), None, "found 1 to 3"),
    "offsets to N": (FEATURES, NORMS, torch.tensor([0, 2]), None, "to the number of faces, 3; found 0 to 2"),
    "no empty set": (FEATURES, NORMS, torch.tensor([0, 1, 1, 3]), None, "set 1 is empty"),
    "rising offsets": (FEATURES, NORMS, torch.tensor([0, 2, 1, 3]), None, "set 1 ends at row 1, before"),
    "a medium a face": (FEATURES, NORMS, OFFSETS, torch.zeros(2, dtype=torch.int64), "media: expected (3,)"),
    "whole media": (FEATURES, NORMS, OFFSETS, torch.zeros(3), "media: expected (3,) int64"),
}


@pytest.mark.parametrize("auxiliary", [torch.ones(2, 4), torch.ones(3), torch.ones(3, 4).int()])
def test_auxiliary_features_of_another_shape_or_type_are_rejected(auxiliary: Tensor) -> None:
    with pytest.raises(InputError, match="auxiliary"):
        FaceSets(FEATURES, NORMS, OFFSETS, auxiliary)


@pytest.mark.parametrize("fault", FAULTS)
def test_invalid_batches_are_rejected(fault: str) -> None:
    features, norms, offsets, media, words = FAULTS[fault]
    with pytest.raises(InputError) as error:
        FaceSets(features, norms, offsets, media=media)
    assert words in str(error.value)


def test_all_faults_of_a_batch_are_reported_together() -> None:
    with pytest.raises(InputError) as error:
        FaceSets(FEATURES, torch.ones(2), OFFSETS.float())
    assert "norms" in str(error.value)
    assert "offsets" in str(error.value)


def test_dense_and_from_list_report_shapes() -> None:
    with pytest.raises(InputError, match=r"found \(2, 3, 4\) and \(2, 3, 1\)"):
        FaceSets.dense(torch.ones(2, 3, 4), torch.ones(2, 3, 1))
    with pytest.raises(InputError, match=r"set 1: .*\(T, 4\).*found \(3, 5\)"):
        FaceSets.from_list([(FEATURES, NORMS), (torch.ones(3, 5), NORMS)])
    with pytest.raises(InputError, match="at least one set"):
        FaceSets.from_list([])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 200), st.integers(0, 50))
def test_chunks_hold_every_face_once_and_little_padding(sizes: list[int], places: int, free: int) -> None:
    sets = some_sets(sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets_module, "MAX_CHUNK_POSITIONS", places)
        patch.setattr(sets_module, "FREE_PADDING", free)
        chunks = sets.chunks()
    seen_sets, seen_rows = [], []
    for chunk in chunks:
        mask = torch.ones_like(chunk.rows, dtype=torch.bool) if chunk.mask is None else chunk.mask
        assert chunk.rows.numel() <= places or len(chunk.sets) == 1
        assert (~mask).sum() <= max(free, mask.numel() // 4)
        assert torch.equal(mask.sum(1), sets.sizes[chunk.sets])
        assert torch.equal(sets.set_of_face[chunk.rows], chunk.sets[:, None].expand_as(chunk.rows))
        assert torch.equal(chunk.take(sets.norms), sets.norms[chunk.rows])
        seen_sets += chunk.sets.tolist()
        seen_rows += chunk.rows[mask].tolist()
    assert sorted(seen_sets) == list(range(len(sizes)))
    assert sorted(seen_rows) == list(range(sum(sizes)))


def test_one_large_set_does_not_pad_the_others() -> None:
    sets = some_sets([5] * 200 + [20_000] + [5] * 200)
    places = sum(chunk.rows.numel() for chunk in sets.chunks())
    assert places < 1.4 * sets.num_faces


def test_vectors_split_into_direction_and_length() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-15, 0.0]], requires_grad=True)
    descriptor = SetDescriptor.from_vectors(vectors, torch.zeros(3, 1, dtype=torch.int64))
    assert torch.allclose(descriptor.embedding, torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))
    assert torch.allclose(descriptor.norm, torch.tensor([5.0, 0.0, 1e-15]))
    (descriptor.embedding.sum() + descriptor.norm.sum()).backward()
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()
    assert vectors.grad[1].abs().sum() == 0


def test_direction_and_length_have_the_right_gradient() -> None:
    vectors = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit_and_norm, (vectors,))

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed

from head import HEADS, AdaFace, build_head
from runtime.errors import InputError

GOLDEN = [("adaface", "alpha0.01_"), ("adaface", "alpha1.0_"), ("arcface", ""), ("cosface", "")]
EPS = {"adaface": 1e-3, "arcface": 1e-4, "cosface": 1e-4}


def some_batch(size: int, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    embedding = F.normalize(torch.randn(size, 8, generator=random))
    norm = 20 + 7 * torch.randn(size, 1, generator=random)
    return embedding, norm, torch.randint(classes, (size,), generator=random)


def slow_logits(
    name: str,
    kernel: list[list[float]],
    faces: list[list[float]],
    margins: list[tuple[float, float]],
    labels: list[int],
) -> list[list[float]]:
    """The definition, one cosine at a time; `margins`: added to the angle, and subtracted from the cosine."""
    eps, logits = EPS[name], []
    lengths = [math.sqrt(sum(row[c] ** 2 for row in kernel)) for c in range(len(kernel[0]))]
    for face, (angular, additive), label in zip(faces, margins, labels, strict=True):
        row = []
        for c, length in enumerate(lengths):
            cosine = sum(x * w[c] for x, w in zip(face, kernel, strict=True)) / length
            cosine = min(max(cosine, -1 + eps), 1 - eps)
            if c == label:
                theta = min(max(math.acos(cosine) + angular, eps), math.pi - eps)
                cosine = math.cos(theta) - additive
            row.append(64 * cosine)
        logits.append(row)
    return logits


def slow_margins(name: str, norms: list[float]) -> list[tuple[float, float]]:
    """One training step from fresh state; AdaFace with t_alpha 0.5, m 0.4, h 0.333."""
    if name == "arcface":
        return [(0.5, 0.0)] * len(norms)
    if name == "cosface":
        return [(0.0, 0.4)] * len(norms)
    clipped = [min(max(norm, 1e-3), 100.0) for norm in norms]
    mean = 0.5 * statistics.fmean(clipped) + 0.5 * 20
    std = 0.5 * statistics.stdev(clipped) + 0.5 * 100 if len(clipped) > 1 else 100.0
    quality = [min(max(0.333 * (norm - mean) / (std + 1e-3), -1.0), 1.0) for norm in clipped]
    return [(-0.4 * z, 0.4 + 0.4 * z) for z in quality]


# Values


@pytest.mark.parametrize(("name", "case"), GOLDEN)
def test_steps_equal_the_published_code(name: str, case: str, golden: Path) -> None:
    reference = np.load(golden / f"{name}_head_d64.npz")
    head = build_head(name, 64, 50, t_alpha=float(case[5:-1]) if case else 0.01)
    head.load_state_dict({"kernel": torch.from_numpy(reference["kernel"])}, strict=False)

    def close(value: Tensor, entry: str) -> None:
        expected = torch.from_numpy(reference[f"{case}step{step}_{entry}"])
        tolerance = 1e-4 * expected.abs().max().item()
        torch.testing.assert_close(value.detach(), expected, atol=tolerance, rtol=0)

    for step in range(4):
        embedding, norm, label = (
            torch.from_numpy(reference[f"{case}step{step}_{entry}"])
            for entry in ("embedding", "norm", "label")
        )
        embedding.requires_grad_()
        head.zero_grad()
        logits = head(embedding, norm, label)
        loss = F.cross_entropy(logits, label)
        loss.backward()
        close(logits, "logits")
        assert loss.item() == pytest.approx(float(reference[f"{case}step{step}_loss"]), rel=1e-5)
        assert embedding.grad is not None
        close(embedding.grad, "grad_embedding")
        close(head.get_parameter("kernel").grad, "grad_kernel")  # type: ignore[arg-type]
        if name == "adaface":
            close(head.get_buffer("batch_mean"), "batch_mean")
            close(head.get_buffer("batch_std"), "batch_std")


@pytest.mark.parametrize("name", HEADS)
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    norms=st.lists(st.floats(0, 300, width=32), min_size=1, max_size=7),
    aligned=st.booleans(),
)
def test_logits_equal_the_definition(name: str, seed: int, norms: list[float], aligned: bool) -> None:
    embedding, _, label = some_batch(len(norms), seed=seed)
    head = build_head(name, 8, 5, t_alpha=0.5).double()
    if aligned:
        # Cosines of +-1, where the clamps act.
        kernel = head.get_parameter("kernel").detach()
        embedding = kernel.T[label].float() * (-1) ** (label.unsqueeze(1) + seed)
        embedding = F.normalize(embedding.double())
    logits = head(embedding.double(), torch.tensor(norms).unsqueeze(1), label)
    kernel = head.get_parameter("kernel").tolist()
    expected = slow_logits(name, kernel, embedding.tolist(), slow_margins(name, norms), label.tolist())
    torch.testing.assert_close(logits, torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", HEADS)
def test_logits_are_float32_under_autocast(name: str, dtype: torch.dtype) -> None:
    embedding, norm, label = some_batch(6)
    embedding, norm = embedding.to(dtype), norm.to(dtype)
    kernel = torch.randn(8, 5)
    heads = [build_head(name, 8, 5) for _ in range(2)]
    for head in heads:
        head.load_state_dict({"kernel": kernel}, strict=False)
    expected = heads[0](embedding.float(), norm.float(), label)
    with torch.autocast("cpu", dtype=torch.bfloat16 if dtype is torch.float32 else dtype):
        logits = heads[1](embedding, norm, label)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, atol=0, rtol=0)


@pytest.mark.parametrize("name", HEADS)
def test_gradients_equal_finite_differences(name: str) -> None:
    embedding, norm, label = some_batch(4)
    head = build_head(name, 8, 5, s=2.0).double().eval()
    kernel = head.get_parameter("kernel")

    def loss(x: Tensor, w: Tensor) -> Tensor:
        logits = torch.func.functional_call(head, {"kernel": w}, (x, norm.double(), label))
        return F.cross_entropy(logits, label)

    inputs = (embedding.double().requires_grad_(), kernel.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("name", HEADS)
def test_gradients_are_finite_at_extreme_cosines(name: str) -> None:
    head = build_head(name, 8, 2)
    embedding = head.get_parameter("kernel").detach().T.clone().requires_grad_()
    F.cross_entropy(
        head(embedding, torch.full((2, 1), 20.0), torch.tensor([0, 0])), torch.tensor([0, 0])
    ).backward()
    assert embedding.grad is not None
    assert embedding.grad.isfinite().all()


@pytest.mark.parametrize("name", HEADS)
def test_only_the_target_has_a_margin_and_norms_are_detached(name: str) -> None:
    embedding, norm, label = some_batch(6)
    norm.requires_grad_()
    embedding.requires_grad_()
    head = build_head(name, 8, 5)
    logits = head(embedding, norm, label)
    plain = 64 * embedding @ F.normalize(head.get_parameter("kernel"), dim=0)
    others = torch.ones_like(logits, dtype=torch.bool).scatter(1, label.unsqueeze(1), False)
    torch.testing.assert_close(logits[others], plain[others])
    assert (logits[~others] < plain[~others]).all()
    logits.sum().backward()
    assert norm.grad is None


def test_adaface_margin_depends_on_the_norm() -> None:
    """z = -1 is ArcFace, 0 CosFace, +1 a negative angular margin."""
    embedding, _, label = some_batch(3)
    head = AdaFace(8, 5, m=0.3, h=1.0).eval()
    head.batch_std.fill_(10.0)
    logits = head(embedding, torch.tensor([[1.0], [20.0], [90.0]]), label) / 64
    theta = (embedding @ F.normalize(head.kernel, dim=0)).gather(1, label.unsqueeze(1)).acos().flatten()
    expected = torch.stack([(theta[0] + 0.3).cos(), theta[1].cos() - 0.3, (theta[2] - 0.3).cos() - 0.6])
    torch.testing.assert_close(logits.gather(1, label.unsqueeze(1)).flatten(), expected)


# The running statistics


def test_one_face_updates_only_the_mean() -> None:
    head = AdaFace(8, 5, t_alpha=0.5)
    embedding, _, label = some_batch(1)
    logits = head(embedding, torch.tensor([[30.0]]), label)
    assert logits.isfinite().all()
    assert head.batch_mean.item() == 25.0
    assert head.batch_std.item() == 100.0
    head(*some_batch(4))
    assert 0 < head.batch_std.item() < 100


@given(
    st.lists(
        st.lists(st.floats(width=32) | st.sampled_from([math.nan, math.inf, 0.0, 20.0]), max_size=5),
        max_size=6,
    ),
    st.sampled_from([0.01, 1.0]),
)
def test_statistics_stay_finite_for_any_batch(batches: list[list[float]], alpha: float) -> None:
    head = AdaFace(8, 5, t_alpha=alpha)
    for norms in batches:
        embedding, _, label = some_batch(len(norms))
        head(embedding, torch.tensor(norms).unsqueeze(1), label)
        assert 1e-3 <= head.batch_mean.item() <= 100
        assert 0 <= head.batch_std.item() <= 100


def test_non_finite_norms_are_excluded_from_the_statistics() -> None:
    head, clean = AdaFace(8, 5, t_alpha=1.0), AdaFace(8, 5, t_alpha=1.0)
    embedding, _, label = some_batch(4)
    norms = torch.tensor([[10.0], [math.nan], [18.0], [math.inf]])
    logits = head(embedding, norms, label)
    clean(embedding[[0, 2]], norms[[0, 2]], label[[0, 2]])
    torch.testing.assert_close(head.batch_mean, clean.batch_mean)
    torch.testing.assert_close(head.batch_std, clean.batch_std)
    assert logits[1].isnan().any()


def test_nearly_equal_norms_keep_their_small_deviation() -> None:
    head = AdaFace(8, 5, t_alpha=1.0)
    embedding, _, label = some_batch(64)
    norms = 90 + 1e-3 * torch.arange(64.0).unsqueeze(1)
    head(embedding, norms, label)
    assert head.batch_std.item() == pytest.approx(statistics.stdev(norms.flatten().tolist()), rel=1e-3)


def test_evaluation_does_not_update_the_statistics() -> None:
    head = AdaFace(8, 5).eval()
    before = {key: value.clone() for key, value in head.state_dict().items()}
    head(*some_batch(4))
    for key, value in head.state_dict().items():
        assert torch.equal(value, before[key])


def uneven_parts(processes: int) -> list[slice]:
    return [slice(0, 16)] if processes == 1 else [slice(0, 15), slice(15, 16)]


def three_steps(rank: int, processes: int, folder: str) -> None:
    """Three steps on this rank's part of the batches; leaves state and logits in `folder`."""
    torch.set_num_threads(1)
    if processes > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes
        )
    head = AdaFace(8, 5, t_alpha=0.3)
    head.load_state_dict({"kernel": torch.linspace(-1, 1, 40).sin().view(8, 5)}, strict=False)
    part, logits = uneven_parts(processes)[rank], []
    for step in range(3):
        embedding, norm, label = some_batch(16, seed=step)
        logits.append(head(embedding[part], norm[part], label[part]).detach())
    head.eval()(*some_batch(4 if rank == 0 else 2))
    if rank == 0:
        # An evaluation on one rank alone must not wait for the others.
        head(*some_batch(4))
    torch.save((torch.stack(logits), head.state_dict()), f"{folder}/{processes}_{rank}.pt")
    if processes > 1:
        distributed.destroy_process_group()


def test_two_processes_have_the_statistics_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(three_steps, args=(2, str(tmp_path)), nprocs=2)
    three_steps(0, 1, str(tmp_path))
    logits, state = torch.load(tmp_path / "1_0.pt", weights_only=True)
    parts = [torch.load(tmp_path / f"2_{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(torch.cat([part for part, _ in parts], dim=1), logits)
    for _, state_of_rank in parts:
        torch.testing.assert_close(state_of_rank, state)


# State and options


def test_state_has_the_published_names() -> None:
    assert list(AdaFace(8, 5).state_dict()) == ["kernel", "t", "batch_mean", "batch_std"]
    assert list(build_head("arcface", 8, 5).state_dict()) == ["kernel"]
    assert list(build_head("cosface", 8, 5).state_dict()) == ["kernel"]
    state = AdaFace(8, 5).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "kernel": (8, 5),
        "t": (1,),
        "batch_mean": (1,),
        "batch_std": (1,),
    }


@pytest.mark.parametrize("name", HEADS)
def test_initial_class_weights_have_unit_length(name: str) -> None:
    torch.testing.assert_close(build_head(name, 8, 5).get_parameter("kernel").norm(dim=0), torch.ones(5))


@pytest.mark.parametrize(("name", "margin"), [("adaface", 0.4), ("arcface", 0.5), ("cosface", 0.4)])
def test_default_margin_depends_on_the_head(name: str, margin: float) -> None:
    assert build_head(name, 8, 5).m == margin
    assert build_head(name, 8, 5, m=None).m == margin
    assert build_head(name, 8, 5, m=0.7).m == 0.7


def test_unknown_name_reports_valid_and_nearest_names() -> None:
    with pytest.raises(InputError, match=r"adaface, arcface, cosface.*Did you mean 'adaface'"):
        build_head("adaFace", 8, 5)


@pytest.mark.parametrize("name", HEADS)
def test_options_out_of_range_are_reported_together(name: str) -> None:
    with pytest.raises(
        InputError, match=r"(?s)num_classes must be at least 1, found 0.*margin m .*-1.*scale s .*nan"
    ):
        build_head(name, 8, 0, m=-1.0, s=math.nan)


def test_invalid_adaface_options_are_reported_together() -> None:
    with pytest.raises(
        InputError, match=r"(?s)h must be finite and not negative, found inf.*t_alpha must be above 0"
    ):
        build_head("adaface", 8, 5, h=math.inf, t_alpha=0.0)

from __future__ import annotations

import contextlib
import errno
import os
import re
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from net import BACKBONES, Backbone, build_backbone
from runtime.errors import InputError
from weights import load_aggregator, load_backbone, save_weights
from weights.digest import CHECKSUM


@pytest.fixture
def tiny() -> Backbone:
    backbone = build_backbone("ir_tiny")
    for name, buffer in backbone.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return backbone.eval()


def assert_same_weights(backbone: Backbone, expected: dict[str, Tensor]) -> None:
    state = backbone.state_dict()
    assert list(state) == list(expected)
    for key, value in state.items():
        assert torch.equal(value, expected[key]), key


def without_memory(name: str) -> dict[str, Tensor]:
    """A state dict whose entries are all one zero, so that its file is small."""
    with torch.device("meta"):
        state = build_backbone(name).state_dict()
    return {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in state.items()}


def message_of(path: Path, arch: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load_backbone(path, arch)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must not run",)


# What is read


def checkpoint_forms(tiny: Backbone) -> dict[str, object]:
    state = dict(tiny.state_dict())
    lightning = {f"model.{key}": value for key, value in state.items()}
    head = {"head.kernel": torch.zeros(64, 3), "head.t": torch.zeros(1)}
    copies = {f"template_model.module.{key}": value for key, value in state.items()}
    aggregator = {"aggregate_model.gamma": torch.tensor(0.01)}
    spec = {**tiny.spec.to_dict(), "channel_order": "RGB"}
    return {
        "plain": state,
        "adaface": {"state_dict": lightning | head, "epoch": 3, "optimizer_states": [{"lr": 0.1}]},
        "published": {"state_dict": aggregator | head | lightning | copies},
        "ours": {
            "state_dict": lightning | {"aggregator.gamma": torch.zeros(())} | head,
            "backbone_spec": spec,
        },
        "parameters": {key: nn.Parameter(v) if v.is_floating_point() else v for key, v in state.items()},
    }


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
@pytest.mark.parametrize("form", ["plain", "adaface", "published", "ours", "parameters"])
@pytest.mark.parametrize("zipped", [True, False])
def test_reads_every_form_of_checkpoint(
    form: str, suffix: str, zipped: bool, tiny: Backbone, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(checkpoint_forms(tiny)[form], path, _use_new_zipfile_serialization=zipped)
    backbone = load_backbone(path)
    assert_same_weights(backbone, tiny.state_dict())
    assert not backbone.training
    assert backbone.spec.name == "ir_tiny"
    assert backbone.spec.channel_order == ("RGB" if form == "ours" else "BGR")
    assert_same_weights(load_backbone(str(path), "ir_tiny"), tiny.state_dict())


@pytest.mark.usefixtures("zeros_load")
@pytest.mark.parametrize("name", BACKBONES)
def test_deduces_the_architecture_from_the_shapes(name: str, tmp_path: Path) -> None:
    torch.save(without_memory(name), tmp_path / "any.pt")
    assert load_backbone(tmp_path / "any.pt").spec == BACKBONES[name]


def test_half_precision_files_become_float32(tiny: Backbone, tmp_path: Path) -> None:
    torch.save(tiny.half().state_dict(), tmp_path / "half.pt")
    assert_same_weights(load_backbone(tmp_path / "half.pt"), tiny.float().state_dict())


def test_loading_draws_no_random_numbers(tiny: Backbone, tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", tiny)
    before = torch.get_rng_state()
    load_backbone(tmp_path / "a.safetensors")
    assert torch.equal(before, torch.get_rng_state())


def test_loaded_weights_do_not_depend_on_the_file(tiny: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(tiny.state_dict(), path)
    backbone = load_backbone(path)
    with path.open("r+b") as stream:
        stream.write(b"\0" * path.stat().st_size)
    assert_same_weights(backbone, tiny.state_dict())


# MobileFaceNet, real weights


def test_mobilefacenet_equals_mxnet(shared: Path) -> None:
    reference = np.load(shared / "faces" / "mobilefacenet_io.npz")
    backbone = load_backbone(shared / "faces" / "mobilefacenet.safetensors")
    assert backbone.spec == BACKBONES["mobilefacenet"]
    expected = torch.from_numpy(reference["embedding"])
    with torch.no_grad():
        embedding, norm = backbone(backbone.spec.normalise(torch.from_numpy(reference["images_rgb_uint8"])))
    torch.testing.assert_close(embedding * norm, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(norm, expected.norm(dim=1, keepdim=True), atol=0, rtol=1e-5)


def test_mobilefacenet_equals_its_onnx_file(shared: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(shared / "faces" / "mobilefacenet.onnx")
    backbone = load_backbone(shared / "faces" / "mobilefacenet.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 112, 112), dtype=np.uint8)
    images = backbone.spec.normalise(torch.from_numpy(pixels))
    with torch.no_grad():
        embedding, norm = backbone(images)
    (expected,) = session.run(None, {"data": images.numpy()})
    torch.testing.assert_close(embedding * norm, torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_mobilefacenet_is_equal_after_saving(shared: Path, tmp_path: Path) -> None:
    backbone = load_backbone(shared / "faces" / "mobilefacenet.safetensors")
    save_weights(tmp_path / "ours.safetensors", backbone)
    assert_same_weights(load_backbone(tmp_path / "ours.safetensors"), backbone.state_dict())


def mxnet_state() -> dict[str, Tensor]:
    """Fresh MobileFaceNet weights under MXNet's names."""
    kinds = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
    state = {}
    for key, value in build_backbone("mobilefacenet").state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        module, _, kind = key.rpartition(".")
        if module == "pre_fc1":
            name = {"weight": "fc1_weight", "bias": "pre_fc1_bias"}[kind]
        elif module.endswith("conv2d"):
            name = f"{module}_weight"
        else:
            name = f"{module}_{kinds[kind]}"
        state[name.replace(".", "_")] = value
    return state


def test_mxnet_names_are_mapped_strictly_and_the_fixed_scale_is_one(tmp_path: Path) -> None:
    state = mxnet_state()
    state["fc1_gamma"] = torch.full((128,), 7.0)
    save_file(state, tmp_path / "mxnet.safetensors")
    backbone = load_backbone(tmp_path / "mxnet.safetensors")
    assert backbone.spec.name == "mobilefacenet"
    assert (backbone.get_parameter("fc1.weight") == 1).all()
    assert torch.equal(backbone.state_dict()["pre_fc1.weight"], state["fc1_weight"])

    state["fc2_weight"] = state.pop("res_3_block0_conv_dw_relu_gamma")
    save_file(state, tmp_path / "mxnet.safetensors")
    message = message_of(tmp_path / "mxnet.safetensors")
    assert "res_3_block0.conv_dw.relu.weight: missing" in message
    assert "fc2_weight: unexpected" in message


# Our own form


def test_saved_weights_and_spec_come_back(tiny: Backbone, tmp_path: Path) -> None:
    tiny.spec = type(tiny.spec).from_dict({**tiny.spec.to_dict(), "channel_order": "RGB", "std": 128.0})
    path = tmp_path / "new" / "tiny.safetensors"
    save_weights(path, tiny.to(memory_format=torch.channels_last))
    assert load_backbone(path).spec == tiny.spec
    assert_same_weights(load_backbone(path), tiny.state_dict())
    with safe_open(path, "pt") as stored:
        metadata = stored.metadata()
    assert metadata["architecture"] == "ir_tiny"
    assert [metadata[key] for key in ("embedding_size", "channel_order", "mean")] == ["64", "RGB", "127.5"]
    assert [metadata[key] for key in ("std", "norm_is_quality", "input_size")] == ["128.0", "true", "112"]


def test_a_failed_save_leaves_the_old_file(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.safetensors"
    save_weights(path, tiny)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # What was written does not reach the disk.
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(path, tiny)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.safetensors"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "resnet"}, "'resnet'"),
        ({"architecture": "ir_18"}, "its ir_18 has 64 values for 112 pixels; expected 512 values"),
        ({"architecture": "ir_18", "embedding_size": "512"}, "the weights are not those of ir_18"),
        ({"mean": "many"}, "mean"),
        ({"scale": "0"}, "metadata"),
        ({"std": "-1"}, "std finite and positive"),
        ({"channel_order": "HSV"}, "channel_order is BGR or RGB, not 'HSV'"),
        ({"embedding_size": "128"}, "its ir_tiny has 128 values for 112 pixels; expected 64 values"),
    ],
)
def test_wrong_metadata_are_an_error(
    change: dict[str, str], message: str, tiny: Backbone, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.safetensors"
    save_weights(path, tiny)
    with safe_open(path, "pt") as stored:
        metadata = stored.metadata()
    metadata |= {"version": "1"}  # without a checksum
    del metadata[CHECKSUM]
    save_file(load_file(path), path, metadata | change)
    assert message in message_of(path)


@pytest.mark.parametrize("spec", ["ir_tiny", {"name": "ir_tiny"}, {"name": ["ir_tiny"]}])
def test_a_wrong_spec_in_a_checkpoint_is_an_error(spec: object, tiny: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": tiny.state_dict(), "backbone_spec": spec}, path)
    assert "backbone" in message_of(path)


# What is refused


def test_another_architecture_than_asked_for_is_named(tiny: Backbone, tmp_path: Path) -> None:
    torch.save(tiny.state_dict(), tmp_path / "plain.pt")
    message = message_of(tmp_path / "plain.pt", "ir_50")
    assert "the weights are not those of ir_50:" in message
    assert "They are exactly those of ir_tiny" in message
    save_weights(tmp_path / "tiny.safetensors", tiny)
    assert "holds ir_tiny, but ir_50 was asked for" in message_of(tmp_path / "tiny.safetensors", "ir_50")
    with pytest.raises(InputError, match=r"'ir_51' .*ir_18"):
        load_backbone(tmp_path / "plain.pt", "ir_51")


def test_mismatches_are_counted_and_the_first_five_listed(tiny: Backbone, tmp_path: Path) -> None:
    state = dict(tiny.state_dict())
    state["input_layer.0.weight"] = torch.zeros(8, 4, 3, 3)
    del state["body.0.res_layer.1.weight"]
    state |= {f"extra.{number}": torch.zeros(1) for number in range(6)}
    torch.save(state, tmp_path / "a.pt")
    assert message_of(tmp_path / "a.pt").splitlines()[1:-1] == [
        "  input_layer.0.weight: (8, 4, 3, 3) float32 where (8, 3, 3, 3) is expected",
        "  body.0.res_layer.1.weight: missing",
        "  extra.0: unexpected",
        "  extra.1: unexpected",
        "  extra.2: unexpected",
        "  ... and 3 more",
    ]


def renamed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


SHORTER = {"output_layer.3.weight": torch.zeros(32, 3136), "output_layer.3.bias": torch.zeros(32)} | {
    f"output_layer.4.running_{kind}": torch.zeros(32) for kind in ("mean", "var")
}
INT8 = {"input_layer.0.weight": torch.zeros(8, 3, 3, 3, dtype=torch.int8)}
DEEPER = {key: torch.zeros(8) for key in ("body.0.res_layer.1.weight", "body.4.res_layer.0.weight")}
GUESSES = {
    "torchvision": (lambda s: {"layer1.0.conv1.weight": torch.zeros(8)}, "residual network of torchvision"),
    "other": (lambda s: {"conv1.weight": torch.zeros(64, 3, 7, 7)}, "another kind of network"),
    "embedding": (lambda s: s | SHORTER, "another image size, embedding size or precision"),
    "quantised": (lambda s: s | INT8, "int8 where floating point is expected"),
    "part": (lambda s: {k: v for k, v in s.items() if "output" not in k}, "Part of the network is missing"),
    "depth": (lambda s: s | DEEPER, "of another depth or with other blocks"),
    "aggregator": (lambda s: {"aggregate_model.gamma": torch.ones(1)}, "found only aggregate_model"),
    "foreign part": (lambda s: renamed(s, "model.") | {"ema.decay": torch.zeros(1)}, "ema.decay: unexpected"),
    "empty": (lambda s: {}, "found only an empty state dict"),
    "no dictionary": (lambda s: list(s.values()), "found a list"),
    "nested": (lambda s: {"epoch": 3, "w": s}, "with the keys epoch, w; 'epoch' is a int"),
    "numbered": (lambda s: {3: torch.zeros(1)}, "3 is a Tensor"),
}


@pytest.mark.parametrize("case", GUESSES)
def test_likely_cause_of_mismatches_is_named(case: str, tiny: Backbone, tmp_path: Path) -> None:
    change, message = GUESSES[case]
    torch.save(change(dict(tiny.state_dict())), tmp_path / "a.pt")  # type: ignore[no-untyped-call]
    assert message in message_of(tmp_path / "a.pt")


def broken(value: Tensor, kind: float | torch.dtype) -> Tensor:
    """One value of NaN, infinity or, of float64, beyond what float32 holds."""
    changed = value.clone() if isinstance(kind, float) else value.to(kind)
    changed.view(-1)[-1] = 1e300 if isinstance(kind, torch.dtype) else kind
    return changed


@pytest.mark.parametrize("kind", [float("nan"), float("inf"), -float("inf"), torch.float64])
@pytest.mark.parametrize("part", ["model.input_layer.1.bias", "aggregator.gamma", "head.kernel"])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_nan_and_infinity_are_refused_in_every_part(
    part: str, kind: float | torch.dtype, suffix: str, tiny: Backbone, tmp_path: Path
) -> None:
    state = renamed(dict(tiny.state_dict()), "model.")
    state |= {"aggregator.gamma": torch.tensor(1.0), "head.kernel": torch.zeros(64, 3)}
    state[part] = broken(state[part], kind)
    path = tmp_path / f"a{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path, {"architecture": "ir_tiny"})
    for load in (load_backbone, load_aggregator):
        with pytest.raises(InputError, match=rf"a\{suffix}: NaN or inf.* in 1 of .*{re.escape(part)}\."):
            load(path)


def test_sparse_entries_are_refused(tiny: Backbone, tmp_path: Path) -> None:
    state = dict(tiny.state_dict())
    torch.save(state | {"input_layer.1.bias": state["input_layer.1.bias"].to_sparse()}, tmp_path / "a.pt")
    assert "input_layer.1.bias" in message_of(tmp_path / "a.pt")


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_weights_that_give_the_same_for_all_images_are_refused(
    bias: float, tiny: Backbone, tmp_path: Path
) -> None:
    state = {key: torch.zeros_like(value) for key, value in tiny.state_dict().items()}
    state["output_layer.4.running_var"] += 1
    torch.save(state | {"output_layer.3.bias": torch.full((64,), bias)}, tmp_path / "a.pt")
    assert "the same for all images" in message_of(tmp_path / "a.pt")


def test_finite_weights_whose_features_overflow_are_refused(tiny: Backbone, tmp_path: Path) -> None:
    state = dict(tiny.state_dict())
    torch.save(state | {"output_layer.4.running_var": torch.full((64,), -1.0)}, tmp_path / "a.pt")
    assert "not finite" in message_of(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"state_dict": {}, "hyper_parameters": {"out": PurePosixPath("a")}}, "pathlib.PurePosixPath"),
        ({"state_dict": {}, "callback": Payload()}, "print"),
        (build_backbone("ir_tiny"), "net.IResNet"),
    ],
)
def test_a_pickle_that_needs_classes_is_refused_by_their_name(
    content: object, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    message = message_of(tmp_path / "a.ckpt")
    assert f"{named}," in message
    assert "save its state dict alone" in message.lower()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"  <!DOCTYPE html><html>", "this is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PK\x03\x04 and no more", "no weights can be read from its 16 bytes"),
        (b"\x89PNG\r\n\x1a\n", "no weights can be read"),
    ],
)
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_other_files_are_recognised(content: bytes, message: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert message in message_of(path)


def written(form: str, backbone: Backbone, folder: Path) -> Path:
    path = folder / ("a.safetensors" if form == "safetensors" else "a.pt")
    if form == "safetensors":
        save_weights(path, backbone)
    else:
        torch.save(backbone.state_dict(), path, _use_new_zipfile_serialization=form == "zip")
    return path


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_file_is_an_error_at_any_length(
    form: str, share: float, tiny: Backbone, tmp_path: Path
) -> None:
    path = written(form, tiny, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    message_of(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_damaged_file_loads_or_is_an_input_error(form: str, tiny: Backbone, tmp_path: Path) -> None:
    path = written(form, tiny, tmp_path)
    content, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(content)
        for position in random.integers(0, 4000, 3):
            damaged[position] = random.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):
            load_backbone(path)


def test_missing_files_and_other_suffixes_are_errors(tiny: Backbone, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"written as \.safetensors"):
        save_weights(tmp_path / "tiny.pt", tiny)
    assert "no such file" in message_of(tmp_path / "none.pt")
    assert "no such file" in message_of(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"{}")
    assert "end in .safetensors, .ckpt, .pt, .pth" in message_of(tmp_path / "a.bin")


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_a_flipped_bit_of_a_weight_is_noticed(kind: str, tmp_path: Path) -> None:
    """Neither safetensors nor `torch.load` compares a checksum."""
    backbone = build_backbone("ir_tiny")
    path = tmp_path / f"tiny.{kind}"
    if kind == "ckpt":
        torch.save(backbone.state_dict(), path)
    else:
        save_weights(path, backbone)
    load_backbone(path)
    content = bytearray(path.read_bytes())
    weight = next(iter(backbone.state_dict().values())).numpy().tobytes()
    content[content.find(weight) + 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(InputError, match=path.name):
        load_backbone(path)


def test_a_checkpoint_written_without_checksums_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(build_backbone("ir_tiny").state_dict(), path)
    finally:
        torch.serialization.set_crc32_options(True)
    load_backbone(path)


@pytest.mark.parametrize("strides", [(0, 0), (1, 1)])
def test_tensor_that_repeats_bytes_is_not_expanded(
    strides: tuple[int, int], tiny: Backbone, tmp_path: Path
) -> None:
    path = tmp_path / "a.pt"
    for value, is_finite in ((1.0, True), (float("nan"), False)):
        few = torch.full((2_000_000,), value, dtype=torch.float16)
        head = few.as_strided((1_000_000, 1_000_000), strides)
        torch.save({**tiny.state_dict(), "head.kernel": head}, path)
        if is_finite:
            load_backbone(path)
        else:
            assert "head.kernel" in message_of(path)


@pytest.mark.parametrize("form", ["compressed", "one member twice"])
def test_archives_that_torch_does_not_write_are_refused(form: str, tiny: Backbone, tmp_path: Path) -> None:
    """Mapped, a compressed member gives its packed bytes as values."""
    path, other = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(tiny.state_dict(), path)
    compression = zipfile.ZIP_DEFLATED if form == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(other, "w", compression) as made:
        for member in stored.infolist():
            made.writestr(member.filename, stored.read(member))
        if form == "one member twice":
            largest = max(made.filelist, key=lambda member: member.file_size)
            made.filelist.extend([largest] * 3)
    assert ("compress" if form == "compressed" else "larger than the file") in message_of(other)

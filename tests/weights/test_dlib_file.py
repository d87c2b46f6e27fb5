"""dlib's serialisation: the parameters of each layer, against separate layers as dlib runs them."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from runtime.errors import InputError
from weights import load_backbone, save_weights
from weights.dlib_file import read_dlib_file

# (filters, channels, side, stride, padding) of the 29 convolutions, from the input on.
_BLOCKS = [(32, 32, 1)] * 3 + [(64, 32, 2)] + [(64, 64, 1)] * 3 + [(128, 64, 2)] + [(128, 128, 1)] * 2
_BLOCKS += [(256, 128, 2)] + [(256, 256, 1)] * 2 + [(256, 256, 2)]
LAYERS = [(32, 3, 7, 2, 0)]
for _width, _inputs, _stride in _BLOCKS:
    LAYERS += [(_width, _inputs, 3, _stride, 2 - _stride), (_width, _width, 3, 1, 1)]


def integer(value: int) -> bytes:
    """As dlib writes it: the number of bytes with the sign, and the bytes."""
    size = max(1, (abs(value).bit_length() + 7) // 8)
    return bytes([size | (0x80 if value < 0 else 0)]) + abs(value).to_bytes(size, "little")


def text(value: str) -> bytes:
    return integer(len(value)) + value.encode()


def tensor(values: np.ndarray) -> bytes:
    sizes = b"".join(map(integer, (2, values.size, 1, 1, 1)))
    return sizes + struct.pack(f"<{values.size}f", *values.ravel())


@pytest.fixture(scope="module")
def parameters() -> list[tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(0)
    found = []
    for filters, channels, side, *_ in LAYERS:
        shape = (filters, channels, side, side)
        weight = rng.normal(0, (2 / (channels * side * side)) ** 0.5, shape).astype(np.float32)
        found.append((weight, *rng.normal(0.5, 0.2, (3, filters)).astype(np.float32)))
    found.append((rng.normal(0, 0.1, (256, 128)).astype(np.float32),))
    return found


@pytest.fixture(scope="module")
def content(parameters: list[tuple[np.ndarray, ...]]) -> bytes:
    parts = [integer(1), text("loss_metric_2"), integer(3), bytes(12)]
    for (weight, bias, scale, shift), (filters, channels, side, stride, padding) in zip(
        parameters, LAYERS, strict=False
    ):
        parts += [text("con_4"), tensor(np.concatenate([weight.ravel(), bias]))]
        numbers = (filters, side, side, stride, stride, padding, padding, 1, filters, channels, side, side)
        parts += [*map(integer, numbers), bytes(8)]
        parts += [text("affine_"), tensor(np.concatenate([scale, shift])), integer(1), bytes(5)]
    parts += [text("fc_2"), integer(128), integer(256), tensor(parameters[-1][0]), bytes(4)]
    return b"".join(parts)


def reference(parameters: list[tuple[np.ndarray, ...]], x: torch.Tensor) -> torch.Tensor:
    """Convolution, then affine layer, block by block; the shortcut is written out by index."""
    layers = iter(zip(parameters, LAYERS, strict=False))

    def unit(values: torch.Tensor) -> torch.Tensor:
        (weight, bias, scale, shift), (*_, stride, padding) = next(layers)
        out = F.conv2d(values, torch.tensor(weight), torch.tensor(bias), stride, padding)
        return out * torch.tensor(scale)[:, None, None] + torch.tensor(shift)[:, None, None]

    x = F.max_pool2d(F.relu(unit(x)), 3, 2)
    for _ in _BLOCKS:
        out = unit(F.relu(unit(x)))
        if out.shape != x.shape:
            x = F.avg_pool2d(x, 2, 2)
        total = torch.zeros(len(x), *(max(a, b) for a, b in zip(x.shape[1:], out.shape[1:], strict=True)))
        for part in (x, out):
            total[:, : part.shape[1], : part.shape[2], : part.shape[3]] += part
        x = F.relu(total)
    return x.mean(dim=(2, 3)) @ torch.tensor(parameters[-1][0])


def test_the_loaded_network_computes_what_dlib_s_layers_compute(
    tmp_path: Path, parameters: list[tuple[np.ndarray, ...]], content: bytes
) -> None:
    path = tmp_path / "network.dat"
    path.write_bytes(content)
    backbone = load_backbone(path)
    assert (backbone.spec.name, backbone.spec.input_size) == ("dlib_resnet", 150)
    images = torch.randn(2, 3, 150, 150, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = reference(parameters, images), backbone.features(images)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    save_weights(tmp_path / "stored.safetensors", backbone)
    again = load_backbone(tmp_path / "stored.safetensors")
    with torch.inference_mode():
        assert torch.equal(again.features(images), found)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_shortened_file_is_refused_with_its_name(tmp_path: Path, content: bytes, share: float) -> None:
    path = tmp_path / "network.dat"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"network\.dat"):
        read_dlib_file(path)


def test_another_number_of_layers_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "network.dat"
    path.write_bytes(content + content)
    with pytest.raises(InputError, match=r"network\.dat"):
        read_dlib_file(path)

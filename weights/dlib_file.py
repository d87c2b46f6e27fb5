"""Read dlib_face_recognition_resnet_model_v1.dat, dlib's serialisation of its face recognition network.

dlib writes each layer as its name followed by a tensor of its parameters. Integers are a byte with their sign
and number of bytes, then these bytes; tensors are a version, four sizes and little-endian float32. Layers
without parameters and the optimiser's state are skipped. Source: dlib/serialize.h, dlib/cuda/tensor.h and
dlib/dnn/layers.h (Boost licence).
"""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from runtime.errors import InputError

SUFFIX = ".dat"
# Names with their length, as dlib writes them: convolution, affine layer, linear layer.
_LAYER = re.compile(rb"\x01(?:\x05(con_4)|\x07(affine_)|\x04(fc_2))")
_TENSOR_VERSION = 2


def read_dlib_file(path: Path) -> dict[str, Tensor]:
    """State dict of `backbones.dlib_resnet.DlibResNet`, the affine layers folded into the convolutions.

    Raises:
        InputError: not dlib's face recognition network, or a damaged one.
    """
    content = path.read_bytes()
    state: dict[str, Tensor] = {}
    convolution: tuple[np.ndarray, np.ndarray] | None = None
    names = iter(_convolution_names())
    try:
        for match in _LAYER.finditer(content):
            layer, at = match[0][2:], match.end()
            if layer == b"fc_2":
                (outputs, inputs), at = _integers(content, at, 2)
                values, _ = _tensor(content, at)
                state["output_layer.weight"] = torch.from_numpy(values.reshape(inputs, outputs).T.copy())
                continue
            values, at = _tensor(content, at)
            if layer == b"con_4":
                # Number of filters, height, width, strides, paddings, and the shape of the filters.
                sizes, _ = _integers(content, at, 12)
                shape = sizes[8:12]
                convolution = values[: prod(shape)].reshape(shape), values[prod(shape) :]
            elif convolution is not None:
                filters, bias = convolution
                scale, shift = values.reshape(2, -1)
                name = next(names)
                state[f"{name}.weight"] = torch.from_numpy(filters * scale[:, None, None, None])
                state[f"{name}.bias"] = torch.from_numpy(bias * scale + shift)
        if next(names, None) is not None or "output_layer.weight" not in state:
            raise ValueError
    except (IndexError, ValueError, StopIteration):
        raise InputError(
            f"{path}: is damaged, or another network than dlib_face_recognition_resnet_model_v1."
        ) from None
    return state


def _convolution_names() -> list[str]:
    return ["input_layer", *(f"body.{block}.conv{number}" for block in range(14) for number in (1, 2))]


def _integers(content: bytes, at: int, count: int) -> tuple[list[int], int]:
    values = []
    for _ in range(count):
        size = content[at] & 0x0F
        value = int.from_bytes(content[at + 1 : at + 1 + size], "little")
        values.append(-value if content[at] & 0x80 else value)
        at += 1 + size
    return values, at


def _tensor(content: bytes, at: int) -> tuple[np.ndarray, int]:
    """The values of a tensor (n,) float32, and where it ends."""
    (version, *sizes), at = _integers(content, at, 5)
    if version != _TENSOR_VERSION or min(sizes) < 0:
        raise ValueError
    values = np.frombuffer(content, "<f4", prod(sizes), at).astype(np.float32)
    return values, at + 4 * prod(sizes)

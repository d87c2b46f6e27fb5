"""An ONNX graph as a backbone: the call of `net.Backbone`, run by onnxruntime on the CPU.

The graph's bytes are its state, so that checkpoints, digests and worker processes treat it as any other
backbone; it cannot be trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbones.auxiliary import subtract_centre
from backbones.face_template import SIDE
from backbones.spec import BackboneSpec, with_current_names
from coreset.sets import unit_and_norm
from net import BACKBONES, Backbone
from runtime.errors import InputError
from runtime.onnx_files import check_onnx_values, external_files, onnx_tensors
from weights.specs import ONNX, spec_in

GRAPH = "graph"


class OnnxBackbone(Backbone):
    """A graph with one input (N, 3, H, W) float32 and features (N, D), or unit rows and norms, as outputs.

    Raises:
        InputError: onnxruntime is not installed, or the graph is none of a backbone.
    """

    graph: Tensor

    def __init__(self, spec: BackboneSpec, graph: Tensor | None = None) -> None:
        super().__init__(spec)
        self.register_buffer(GRAPH, torch.zeros(0, dtype=torch.uint8) if graph is None else graph)
        self._session: Any = None

    def features(self, images: Tensor) -> Tensor:
        """See the base class."""
        session = self._running()
        shape = session.get_inputs()[0].shape
        pixels = images.detach().float().cpu().numpy()
        count = len(pixels)
        # An export without a free batch size takes so many images and no others: the last are filled up.
        at_once = shape[0] if isinstance(shape[0], int) else max(1, count)
        pixels = np.concatenate((pixels, np.zeros((-count % at_once, *pixels.shape[1:]), np.float32)))
        parts = [
            _features_of(session, _run(session, pixels[start : start + at_once]))
            for start in range(0, len(pixels), at_once)
        ]
        found = np.concatenate(parts) if parts else np.zeros((0, self.spec.embedding_size), np.float32)
        return torch.from_numpy(found[:count]).to(images.device)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class; always float32."""
        embedding, norm = unit_and_norm(self.features(images))
        return subtract_centre(embedding, self.spec.centre, self.spec.auxiliary_size), norm.unsqueeze(1)

    def set_auxiliary(self, size: int) -> None:
        """See the base class. InputError: another size than the graph has."""
        if size != self.spec.auxiliary_size:
            raise InputError(
                f"asked for {size} auxiliary values, and an ONNX graph of {self.spec.auxiliary_size} cannot "
                "be changed. Give the weights it was made from."
            )

    def _running(self) -> Any:
        if self._session is None:
            self._session = _opened(self.graph.cpu().numpy().tobytes())
        return self._session

    def __getstate__(self) -> dict[str, Any]:
        # A session can be neither copied nor sent to another process; it is opened again there.
        return self.__dict__ | {"_session": None}

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        graph = state.get(f"{prefix}{GRAPH}")
        if isinstance(graph, Tensor):
            self.graph, self._session = torch.empty_like(graph, device=self.graph.device), None
        super()._load_from_state_dict(state, prefix, *rest)


def read_onnx(
    path: Path, arch: str | None, channel_order: str | None, stated: Mapping[str, Any] | None = None
) -> OnnxBackbone:
    """The backbone of an .onnx file; its spec is that of its metadata, else that of `arch`, else `stated`.

    Metadata are `architecture` ("onnx", or a name of `BACKBONES`) and fields of `BackboneSpec`: the strings
    RGB or BGR for `channel_order`, JSON for all others. Of what a graph of others does not say, `input_size`
    is that of its input and `norm_is_quality` is not known; `arch` says how pixels go in, and nothing of the
    norm.

    Args:
        path: of the file.
        arch: that it was made from.
        channel_order: overrules what else says it.
        stated: fields of the spec, which overrule it too.

    Raises:
        InputError: no such file, nothing says how pixels go in, the graph is none of a backbone, or its
            metadata or the size of its output say that it is another one than `arch`.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; expected the weights of a backbone.")
    content = path.read_bytes()
    if external_files(path, content):
        content = _with_its_weights(path)
    try:
        session = _opened(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    check_onnx_values(path, content)
    graph = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    stated = dict(stated or {}) | ({} if channel_order is None else {"channel_order": channel_order})
    stored = with_current_names(session.get_modelmeta().custom_metadata_map)
    claimed = BACKBONES.get(arch or stored.get("architecture", ""))
    taken = claimed.input_size if claimed else _input_side(session)
    side = int(stated.get("input_size") or taken)
    if stored.get("architecture") == ONNX:
        stored = {"input_size": str(taken)} | stored
        side = int(stated.get("input_size") or json.loads(stored["input_size"]))
        stored = {"embedding_size": str(_embedding_size(path, session, side))} | stored
    spec = spec_in(path, stored if "architecture" in stored else None)
    if spec is not None and arch is not None and spec.name not in (ONNX, arch):
        raise InputError(f"{path}: holds {spec.name}, but {arch} was asked for. Ask for {spec.name} or none.")
    asked = BACKBONES[arch] if arch else None
    size = _embedding_size(path, session, side)
    if spec is None and asked is not None:
        spec = replace(asked, norm_is_quality=None)
    if spec is None:
        spec = _stated_spec(path, size, side, stated)
    for told in (spec, asked.with_auxiliary(spec.auxiliary_size) if asked else spec):
        if told.embedding_size != size:
            fitting = [name for name, each in BACKBONES.items() if each.embedding_size == size]
            raise InputError(
                f"{path}: its output has {size} values a face, and {told.name} has {told.embedding_size}. "
                f"Give the --arch that it was made from; of {size} values are {', '.join(fitting) or 'none'}."
            )
    return OnnxBackbone(replace(spec, name=ONNX, **(stated | {"input_size": side})), graph).eval()


def _stated_spec(path: Path, size: int, side: int, stated: Mapping[str, Any]) -> BackboneSpec:
    needed = ("channel_order", "mean", "std")
    if missing := [f"--{name}" for name in needed if name not in stated]:
        raise InputError(
            f"{path}: an ONNX file does not say which colours and pixel values it takes. Say it once: python "
            f"convert.py --weights {path.name} OUT.safetensors --channel_order RGB --mean 127.5 --std 127.5 "
            f"(missing here: {', '.join(missing)}), or what it was made from: --arch, one of "
            f"{', '.join(BACKBONES)}."
        )
    pixels = {name: stated[name] for name in needed}
    return BackboneSpec(ONNX, size, norm_is_quality=None, input_size=side, **pixels)


def _input_side(session: Any) -> int:
    """Of the images that a graph takes; that of our faces where it takes any."""
    shape = session.get_inputs()[0].shape
    return shape[2] if len(shape) == 4 and isinstance(shape[2], int) else SIDE


def _embedding_size(path: Path, session: Any, side: int) -> int:
    """D of a graph's features. InputError: it is not the graph of a backbone for images of this side."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape = list(inputs[0].shape)
    fits = len(shape) == 4 and all(
        not isinstance(found, int) or found == wanted
        for found, wanted in zip(shape[1:], (3, side, side), strict=True)
    )
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or not fits:
        found = ", ".join(f"{each.name} {each.shape} {each.type}" for each in inputs)
        raise InputError(
            f"{path}: expected one input (n, 3, {side}, {side}) of float32, found {found}. "
            f"{_what_it_may_be(outputs)}"
        )
    count = shape[0] if isinstance(shape[0], int) else 1
    images = np.zeros((count, 3, side, side), np.float32)
    try:
        found = _features_of(session, _run(session, images))
    except (InputError, ValueError, IndexError) as error:
        names = ", ".join(f"{each.name} {each.shape}" for each in outputs)
        raise InputError(
            f"{path}: expected features (n, D) as its output, found {names}. {_what_it_may_be(outputs)}"
        ) from error
    return int(found.shape[1])


def _what_it_may_be(outputs: Sequence[Any]) -> str:
    if len(outputs) > 2:
        return f"With {len(outputs)} outputs it seems to be a face detector (inference.py --detector)."
    return "Is it the graph of a backbone?"


def _features_of(session: Any, outputs: list[Any]) -> Any:
    """Un-normalised features (N, D) from the outputs: the first, times `norm` where there is one."""
    names = [each.name for each in session.get_outputs()]
    features = outputs[0]
    if features.ndim != 2 or features.dtype != np.float32:
        raise InputError("no features")
    if "norm" in names[1:]:
        features = features * outputs[names.index("norm")].reshape(-1, 1)
    return features


def _opened(content: bytes) -> Any:
    """A session of a graph that holds all of its weights.

    onnxruntime would look for others in the working directory, where any file may have their name.
    """
    runtime = _onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        if any(tensor.files for tensor in onnx_tensors(content)):
            raise ValueError(
                "the graph takes weights from other files; convert the .onnx file beside them anew"
            )
        session: Any = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(
            f"no ONNX graph can be read from its {len(content)} bytes. It may be cut short. The reader says: "
            f"{_first_line(error)}"
        ) from error
    return session


def _run(session: Any, images: Any) -> list[Any]:
    try:
        outputs: list[Any] = session.run(None, {session.get_inputs()[0].name: images})
    except Exception as error:
        raise InputError(f"onnxruntime cannot run the graph: {_first_line(error)}") from error
    return outputs


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _with_its_weights(path: Path) -> bytes:
    """The graph with its weights, which stand in files beside it, as torch.onnx.export writes them.

    So whatever is made of the graph's bytes (digests, checkpoints, copies) is made of its weights too.
    """
    try:
        import onnx
    except ImportError as error:
        raise InputError(
            f"{path}: its weights stand in another file. Install onnx (pip install onnx), or export it as "
            "one file: torch.onnx.export(..., external_data=False)."
        ) from error
    try:
        found: bytes = onnx.load(path).SerializeToString()
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path}: its weights stand in a file that cannot be read: {error}") from error
    return found


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            "an ONNX file is run by onnxruntime, which is not installed: pip install onnxruntime"
        ) from error
    return onnxruntime

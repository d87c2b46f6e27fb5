"""An ONNX graph as a backbone, run by onnxruntime on the CPU; it cannot be trained.

The graph's bytes are its state, so that checkpoints, digests and worker processes treat it as any other
backbone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
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
from runtime.text import first_line
from weights.sources import check_weights_exist
from weights.specs import ONNX, check_architecture, spec_in

GRAPH = "graph"


class OnnxBackbone(Backbone):
    """A graph with one input (N, 3, H, W) float32 and as outputs features (N, D), or unit rows and norms.

    Raises:
        InputError: onnxruntime is not installed, or the graph is not that of a backbone.
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
        # A graph of fixed batch size: the last batch is padded.
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
                f"{size} auxiliary values are needed, but an ONNX graph of {self.spec.auxiliary_size} "
                "cannot be changed. Pass the weights that it was exported from."
            )

    def _running(self) -> Any:
        if self._session is None:
            self._session = _opened(self.graph.cpu().numpy().tobytes())
        return self._session

    def __getstate__(self) -> dict[str, Any]:
        # A session can be neither copied nor pickled; it is opened again.
        return self.__dict__ | {"_session": None}

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        graph = state.get(f"{prefix}{GRAPH}")
        if isinstance(graph, Tensor):
            self.graph, self._session = torch.empty_like(graph, device=self.graph.device), None
        super()._load_from_state_dict(state, prefix, *rest)


def read_onnx(
    path: Path, arch: str | None, channel_order: str | None, stated: Mapping[str, Any] | None = None
) -> OnnxBackbone:
    """Read an .onnx file; its spec is that of its metadata, else that of `arch`, else `stated`.

    Metadata are `architecture` ("onnx", or a name of `BACKBONES`) and fields of `BackboneSpec`: the texts RGB
    or BGR for `channel_order`, JSON for the others. Where they are not stated, `input_size` is that of the
    graph's input and `norm_is_quality` is unknown; `arch` determines the preprocessing only.

    Args:
        path: of the file.
        arch: architecture that it was exported from.
        channel_order: overrides the other sources.
        stated: fields of the spec, which override them too.

    Raises:
        InputError: no such file, unknown preprocessing, a graph that is not a backbone's, or metadata or an
            output size that contradict `arch`.
    """
    check_weights_exist(path)
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
    if spec is not None and spec.name != ONNX:
        check_architecture(path, spec, arch)
    asked = BACKBONES[arch] if arch else None
    size = _embedding_size(path, session, side)
    if spec is None and asked is not None:
        spec = replace(asked, norm_is_quality=None)
    if spec is None:
        spec = _stated_spec(path, size, side, stated)
    for each in (spec, asked.with_auxiliary(spec.auxiliary_size) if asked else spec):
        if each.embedding_size != size:
            fitting = [name for name, other in BACKBONES.items() if other.embedding_size == size]
            raise InputError(
                f"{path}: its output has {size} values per face, but {each.name} has {each.embedding_size}. "
                f"Pass the --arch that it was exported from; {size} values: {', '.join(fitting) or 'none'}."
            )
    return OnnxBackbone(replace(spec, name=ONNX, **(stated | {"input_size": side})), graph).eval()


def _stated_spec(path: Path, size: int, side: int, stated: Mapping[str, Any]) -> BackboneSpec:
    needed = ("channel_order", "mean", "std")
    if missing := [f"--{name}" for name in needed if name not in stated]:
        raise InputError(
            f"{path}: the preprocessing of this ONNX graph is unknown. State it once: python convert.py "
            f"--weights {path.name} OUT.safetensors --channel_order RGB --mean 127.5 --std 127.5 (missing "
            f"here: {', '.join(missing)}), or the architecture that it was exported from: --arch, one of "
            f"{', '.join(BACKBONES)}."
        )
    pixels = {name: stated[name] for name in needed}
    return BackboneSpec(ONNX, size, norm_is_quality=None, input_size=side, **pixels)


def _input_side(session: Any) -> int:
    """Side of a graph's input images; that of aligned faces where it is dynamic."""
    shape = session.get_inputs()[0].shape
    return shape[2] if len(shape) == 4 and isinstance(shape[2], int) else SIDE


def _embedding_size(path: Path, session: Any, side: int) -> int:
    """D of a graph's features; InputError unless it is a backbone for images of this side."""
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
        return f"With {len(outputs)} outputs it may be a face detector (inference.py --detector)."
    return "It may not be the graph of a backbone."


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
    """Open a session of a graph that contains all of its weights.

    onnxruntime would read external weights from the working directory, where any file may have their name.
    """
    require_packages("an ONNX file", "onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        if any(tensor.files for tensor in onnx_tensors(content)):
            raise ValueError("the graph has external weights; convert the .onnx file beside them again")
        session: Any = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(
            f"no ONNX graph can be read from its {len(content)} bytes. It may be incomplete. The reader "
            f"says: {first_line(error)}"
        ) from error
    return session


def _run(session: Any, images: Any) -> list[Any]:
    try:
        outputs: list[Any] = session.run(None, {session.get_inputs()[0].name: images})
    except Exception as error:
        raise InputError(f"onnxruntime cannot run the graph: {first_line(error)}") from error
    return outputs


def _with_its_weights(path: Path) -> bytes:
    """The graph with the external weights beside it, so that digests and checkpoints include them."""
    try:
        import onnx
    except ImportError as error:
        raise InputError(
            f"{path}: its weights are in another file. Install onnx (pip install onnx), or export it as "
            "one file: torch.onnx.export(..., external_data=False)."
        ) from error
    try:
        found: bytes = onnx.load(path).SerializeToString()
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path}: its external weights cannot be read: {error}") from error
    return found


def require_packages(what: str, *packages: str) -> None:
    """Raise InputError for packages that are not installed; `what` needs them."""
    if missing := " ".join(name for name in packages if find_spec(name) is None):
        raise InputError(f"{what} needs {missing}, which is not installed: pip install {missing}")

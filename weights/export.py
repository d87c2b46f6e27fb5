"""Export a backbone and a trained aggregator as ONNX graphs with their spec as metadata.

Needs onnx and onnxscript. With onnxruntime the graphs are compared with PyTorch before they are written.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from backbones.auxiliary import append_auxiliary
from coreset.set_attention import SetAttention
from coreset.sets import unit_and_norm
from net import Backbone
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.output_checks import require_free_space
from weights.loading import load_backbone, load_stored_aggregator, open_weights
from weights.onnx_backbone import OnnxBackbone, require_packages
from weights.overrides import AS_STORED, Overrides
from weights.specs import metadata_of

FORMATS = ("onnx",)
BACKBONE_FILE, AGGREGATOR_FILE = "backbone.onnx", "aggregator.onnx"
_OPSET = 18
# Rounding in another order of summation; a wrong graph differs by far more.
_LARGEST_DIFFERENCE = 1e-4
# Noise of the sets that are compared, relative to the identity: good faces, poor ones, random ones.
_NOISE = (1.0, 3.0, 100.0)


@dataclass(frozen=True)
class Exported:
    """A written file; `difference`: largest of its embeddings from PyTorch's, None if not compared."""

    path: Path
    difference: float | None


class ExportedAggregator(nn.Module):
    """A trained aggregator on padded tensors, for any number of sets and faces.

    Raises:
        InputError: it has no `aggregate_padded`, like poolings.
    """

    def __init__(self, aggregator: nn.Module) -> None:
        super().__init__()
        if not hasattr(aggregator, "aggregate_padded"):
            raise InputError(f"{type(aggregator).__name__}: has no padded form to export.")
        self.aggregator = copy.deepcopy(aggregator).eval()
        for module in list(self.aggregator.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, SetAttention):
                    setattr(module, name, _FoldedAttention(child))

    def forward(self, features: Tensor, norms: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Aggregate padded sets.

        Args:
            features: (B, T, D) float32, unit rows.
            norms: (B, T) float32.
            mask: (B, T) bool, True where there is a face; other values are ignored.

        Returns:
            Unit embeddings (B, D) without auxiliary values, norms (B,) before normalisation, and picks
            (B, K), -1 for none. A set without faces gives zeros and no picks.
        """
        inner: Any = self.aggregator
        features, norms = features.masked_fill(~mask.unsqueeze(-1), 0), norms.masked_fill(~mask, 0)
        is_empty = ~mask.any(dim=1, keepdim=True)
        vectors, picks, _ = inner.aggregate_padded(features, norms, mask | is_empty)
        return *unit_and_norm(vectors.masked_fill(is_empty, 0)), picks.masked_fill(is_empty, -1)


class _FoldedAttention(nn.Module):
    """Attention that is always folded: a graph has one form for all numbers of faces."""

    def __init__(self, attention: SetAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        attended: tuple[Tensor, Tensor] = self.attention(queries, keys, values, mask, folded=True)
        return attended


class _PlainBackbone(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        embedding, norm = self.backbone(images)
        return embedding, norm.squeeze(1)


def export_onnx(
    source: Path | str,
    out: Path,
    arch: str | None = None,
    channel_order: str | None = None,
    overrides: Overrides = AS_STORED,
) -> list[Exported]:
    """Write backbone.onnx, and aggregator.onnx if the weights have a trained one.

    Args:
        source: as for `weights.load_backbone`, like `arch` and `channel_order`.
        out: folder, which is created.
        overrides: coreset size and gamma of the aggregator in place of the stored values.

    Raises:
        InputError: a missing package, unreadable weights, weights that are an ONNX graph, or a full disk.
    """
    require_packages("an ONNX export", "onnx", "onnxscript")
    opened = open_weights(source)
    backbone = load_backbone(opened, arch, channel_order=channel_order)
    if isinstance(backbone, OnnxBackbone):
        raise InputError(f"{source}: is already an ONNX graph.")
    aggregator = load_stored_aggregator(opened, overrides)
    overrides.check_effect([] if aggregator is None else [aggregator.module])
    wrapped = None
    if aggregator is not None and any(True for _ in aggregator.module.parameters()):
        wrapped = ExportedAggregator(aggregator.module)
    parameters = [*backbone.state_dict().values(), *(wrapped.state_dict().values() if wrapped else ())]
    require_free_space(out, 2 * sum(value.nbytes for value in parameters))
    written = [export_backbone(backbone, out / BACKBONE_FILE)]
    if aggregator is not None and wrapped is not None:
        metadata = metadata_of(backbone.spec) | aggregator.metadata()
        written.append(export_aggregator(wrapped, out / AGGREGATOR_FILE, metadata))
    return written


def export_backbone(backbone: Backbone, path: Path) -> Exported:
    """Write a backbone for any number of images; `weights.load_backbone` reads it back.

    Input `images` (N, 3, H, W) float32, in the channel order of the metadata, normalised as (value - mean) /
    std; outputs `embedding` (N, D), unit rows, and `norm` (N,). A centre is subtracted in the graph and is
    not in the metadata.
    """
    if backbone.spec.auxiliary_size:
        # A constant of the graph.
        backbone.auxiliary_layer()
    side = backbone.spec.input_size
    images = backbone.spec.normalise(torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8))
    names = ("images",), ("embedding", "norm")
    shapes = {"images": {0: Dim("images")}}
    module = _PlainBackbone(backbone.eval())
    metadata = metadata_of(replace(backbone.spec, centre=None))
    return _export(module, [{"images": images}], names, shapes, path, metadata)


def export_aggregator(aggregator: ExportedAggregator, path: Path, metadata: Mapping[str, str]) -> Exported:
    """Write an aggregator; its inputs and outputs are those of `ExportedAggregator.forward`."""
    inner: Any = aggregator.aggregator
    checked = [_sets(inner.embedding_size, getattr(inner, "auxiliary_size", 0), noise) for noise in _NOISE]
    sets, faces = Dim("sets"), Dim("faces")
    shapes = {name: {0: sets, 1: faces} for name in checked[0]}
    names = tuple(checked[0]), ("embedding", "norm", "picks")
    return _export(aggregator, checked, names, shapes, path, metadata)


def _sets(embedding_size: int, auxiliary_size: int, noise: float) -> dict[str, Tensor]:
    """Sets for the comparison: faces of one identity with noise, a third of them near-duplicates; one set of
    copies, one of a single face, one empty.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([30, 2, 1, 11, 12, 0])

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    own = embedding_size - auxiliary_size
    faces = draw(len(sizes), 1, own) + noise * draw(len(sizes), 30, own)
    faces[:, 1::3] = faces[:, ::3] + 1e-3 * noise * draw(len(sizes), 10, own)
    features = F.normalize(faces, dim=-1)
    if auxiliary_size:
        features = append_auxiliary(features, draw(len(sizes), 30, auxiliary_size))
    features[4] = features[4, :1]
    norms = 5 + 20 * torch.rand(len(sizes), 30, generator=generator)
    return {"features": features, "norms": norms, "mask": torch.arange(30) < sizes.unsqueeze(1)}


def _export(
    module: nn.Module,
    checked: Sequence[Mapping[str, Tensor]],
    names: tuple[Sequence[str], Sequence[str]],
    shapes: Mapping[str, Mapping[int, Any]],
    path: Path,
    metadata: Mapping[str, str],
) -> Exported:
    """Write the graph of a module if its outputs equal the module's on all `checked` inputs."""
    import onnx

    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            tuple(checked[0].values()),
            input_names=list(names[0]),
            output_names=list(names[1]),
            dynamic_shapes=dict(shapes),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    graph = program.model_proto
    onnx.helper.set_model_props(graph, dict(metadata))
    # Source locations of every node, which take as much space as the weights of a small graph.
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    content = graph.SerializeToString()
    difference = _difference(content, module, checked)
    if difference is not None and not difference <= _LARGEST_DIFFERENCE:
        raise RuntimeError(f"{path.name}: onnxruntime differs from PyTorch by {difference:g}; not written")
    atomic_write(path, content)
    return Exported(path, difference)


def _difference(content: bytes, module: nn.Module, checked: Sequence[Mapping[str, Tensor]]) -> float | None:
    """Largest difference of the embeddings; None where onnxruntime is not installed."""
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    differences = []
    for tensors in checked:
        found = session.run(None, {name: value.numpy() for name, value in tensors.items()})[0]
        with torch.no_grad():
            wanted = module(*tensors.values())[0]
        differences.append((torch.from_numpy(found) - wanted).abs().max())
    return float(torch.stack(differences).max())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence notes of the exporter on its internals, such as operators of packages that are missing."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)

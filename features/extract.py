"""Faces -> features on the disk: through a backbone, over workers, GPUs and nodes, continued after a kill.

What comes out is a `features.store` that says what it was made from; what is there is not made again.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import DataLoader

from backbones.spec import preprocessing
from data.checks.colour_order import (
    FEWEST_PAIRS,
    GivenFaces,
    LabelledFaces,
    check_colour_order,
    wrong_order_advice,
)
from data.sources.face_loader import FaceBatch, Faces, face_loader
from data.sources.face_source import PIXEL_LIBRARIES
from data.sources.unusable_images import first_faults
from features.flips import NO_FLIP, fuse_flips
from features.options import FACES_AT_ONCE, EmbedOptions
from features.store import (
    MANIFEST,
    STAMP,
    FeatureStore,
    FeatureWriter,
    StoreLayout,
    fingerprint,
    is_complete,
    open_store,
)
from net import Backbone
from photos.alignment import AS_STORED
from runtime.distributed import gathered_union
from runtime.errors import InputError, InputWarning
from runtime.machine import versions_of
from runtime.matmul_precision import EXACT, FAST, matmul_precision
from runtime.process_group import EndAtSignal, WatchedDDP, interruptible, take_rank
from runtime.progress import progress_bar
from weights import weights_digest

# Rises with every change here that changes a feature.
_REVISION = "2"
# Mated pairs that are embedded in both colour orders before all others: a second or two on a CPU.
_COLOUR_PAIRS = 40
# Rows of a part: 4 MiB at 512 values. A kill costs one, about three minutes of an IR-50 on two cores; small
# sets are cut in more parts than there are processes.
_MOST_PART_ROWS, _FEWEST_PART_ROWS, _PARTS = 2048, 32, 64


# Of Lightning and of PyTorch's loader, which counts processors: --num_workers has a default for any machine.
_EXPECTED_WARNINGS = (
    *("does not have many workers", "LeafSpec", "predict returned None"),
    "This DataLoader will create",
)


def embed_faces(
    backbone: Backbone,
    faces: Faces,
    images: Mapping[str, str],
    cache: Path,
    options: EmbedOptions,
    *,
    stamps: NDArray[np.uint64] | None = None,
    columns: Mapping[str, NDArray[Any]] | None = None,
    labels: NDArray[np.int64] | None = None,
    about: Mapping[str, str] | None = None,
    known: Callable[[range], Mapping[str, NDArray[Any]] | None] | None = None,
    name: str = "faces",
) -> FeatureStore | None:
    """Embeds all faces into a store below `cache`, or opens the one that is there.

    Only what is missing is made: after a kill, or when images have changed (by their stamps). Under several
    processes each makes every n-th part.

    Args:
        backbone: in evaluation mode.
        faces: N faces.
        images: what the faces are: the list they come from, and 'alignment' if they are aligned here. With
            the weights, the spec and the options it is the identity of the store, whose folder it names.
        cache: folder of stores; on a disk that all nodes share.
        options: how.
        stamps: (N,) of the image files, such as their sizes and times; another stamp is another image.
        columns: (N,) arrays to keep beside the features; they follow from what `images` says.
        labels: (N,) subjects 0..S-1, where they are known: some mated pairs are looked at first, and an
            InputWarning tells that the backbone wants another colour order.
        about: what is only good to know of the features, beside device and versions.
        known: features and norms of some rows, where another store holds them all; they are copied.
        name: what the progress bar calls them.

    Returns:
        The store; None in every process but the first, which have no more to do.

    Raises:
        InputError: images that cannot be used (the first ten; all others are embedded and kept), features
            that are not finite, a full disk.
    """
    take_rank(options.devices, options.num_nodes)
    stamps = np.zeros(len(faces), np.uint64) if stamps is None else stamps
    identity = identity_of(backbone, images, options)
    folder = cache / fingerprint(identity)[:16]
    if is_complete(folder):
        store = open_store(folder, identity, verify=process_rank() == 0)
        if np.array_equal(store.columns[STAMP], stamps):
            return store if process_rank() == 0 else None
    size = backbone.spec.embedding_size * (2 if options.flip == "concat" else 1)
    rows = min(max(-(-len(faces) // _PARTS), _FEWEST_PART_ROWS), _MOST_PART_ROWS)
    beside = {STAMP: stamps, **(columns or {})}
    kinds = {name: str(column.dtype) for name, column in beside.items()}
    layout = StoreLayout(len(faces), size, options.feature_type, kinds, rows)
    place = (folder, layout, identity, _about(options) | dict(about or {}))
    if process_rank() == 0:
        # Before the processes start: it may find no room.
        writer = FeatureWriter(*place)
        if known is not None:
            writer.copy_parts(known, beside)
        if labels is not None:
            _warn_of_colours(backbone, GivenFaces(name, labels, faces.image))
    module = _Embedding(backbone, faces, options, beside, place)
    with _quiet_lightning():
        trainer = _trainer(options, name)
        with interruptible():
            trainer.predict(module, return_predictions=False)
    # Also the signal that all processes have written.
    faults = gathered_union(module.faults)
    if process_rank() != 0:
        return None
    if faults:
        raise InputError(_sentence_of_faults(faults, folder))
    return FeatureWriter(*place).finish()


def identity_of(backbone: Backbone, images: Mapping[str, str], options: EmbedOptions) -> dict[str, str]:
    """All that a feature depends on, as text."""
    spec = backbone.spec
    alignment = images.get("alignment", AS_STORED)
    return {
        "backbone": spec.name,
        "backbone_sha256": weights_digest(backbone),
        **preprocessing(spec, alignment=alignment, flip=options.flip, precision=options.precision),
        **PIXEL_LIBRARIES,
        "embedding": f"revision {_REVISION}",
        "features": options.feature_type,
        **images,
    }


@torch.no_grad()
def embed_arrays(backbone: Backbone, images: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """A few faces on the CPU, nothing kept: (N, 112, 112, 3) RGB -> unit features (N, D), norms (N,)."""
    backbone.eval()
    pixels = torch.from_numpy(backbone.spec.from_rgb(images))
    parts = [backbone(backbone.spec.normalise(part)) for part in torch.split(pixels, FACES_AT_ONCE["cpu"])]
    features, norms = (torch.cat(column) for column in zip(*parts, strict=True))
    return features.numpy(), norms.squeeze(1).numpy()


def colour_warning(backbone: Backbone, faces: LabelledFaces) -> str:
    """A sentence where the backbone seems to want the colours in the other order; else nothing.

    The faces are known to be in true colours.
    """
    report = check_colour_order(
        faces,
        lambda images: embed_arrays(backbone, images)[0],
        backbone.spec,
        num_pairs=_COLOUR_PAIRS,
        advice=wrong_order_advice(backbone.spec),
    )
    return report.sentence if report.verdict == "swapped" and report.num_pairs >= FEWEST_PAIRS else ""


def _warn_of_colours(backbone: Backbone, faces: LabelledFaces) -> None:
    try:
        warning = colour_warning(backbone, faces)
    except InputError:
        return  # An image that cannot be used: embedding tells it together with all others.
    if warning:
        warnings.warn(warning, InputWarning, stacklevel=2)


def fused_for_inference(backbone: Backbone) -> Backbone:
    """A copy whose batch norms are part of the convolutions before them: equal to 1e-6, and faster."""
    if backbone.spec.auxiliary_size:
        # Of the norms as they are.
        backbone.auxiliary_layer()
    fused = copy.deepcopy(backbone).eval()
    for module in list(fused.modules()):
        children = list(module.named_children())
        for (first, convolution), (second, norm) in pairwise(children):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(convolution, norm))
                setattr(module, second, nn.Identity())
    return fused


class _Embedding(pl.LightningModule):
    """One process's share: every n-th of the parts that are pending."""

    def __init__(
        self,
        backbone: Backbone,
        faces: Faces,
        options: EmbedOptions,
        columns: Mapping[str, NDArray[Any]],
        place: tuple[Path, StoreLayout, dict[str, str], dict[str, str]],
    ) -> None:
        super().__init__()
        self.backbone = fused_for_inference(backbone).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.faults: dict[int, str] = {}
        self.pending: list[int] = []
        self._faces, self._options, self._columns = faces, options, columns
        self._place = place
        self.layout = place[1]
        self._made: list[tuple[Tensor, Tensor]] = []
        # A process may be left without any part.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def setup(self, stage: str) -> None:
        """All processes learn from the first what is pending, so that none is left out or made twice."""
        folder = self._place[0]
        stamps = {STAMP: self._columns[STAMP]}
        pending = FeatureWriter(*self._place).pending(stamps) if self.global_rank == 0 else []
        self.pending = self.trainer.strategy.broadcast(pending)
        if not (folder / MANIFEST).is_file():
            raise InputError(f"{folder}: is not seen from all nodes. It has to be on a disk that they share.")
        self._writer = FeatureWriter(*self._place)
        self._mine = self.pending[self.global_rank :: self.trainer.world_size]

    def predict_dataloader(self) -> DataLoader[Any]:
        """The faces of this process's parts, in order."""
        return face_loader(
            self._faces,
            self.backbone.spec,
            [row for part in self._mine for row in self.layout.rows(part)],
            batch_size=self._options.batch_size,
            num_workers=self._options.num_workers,
            pin_memory=self._options.gpu,
        )

    def predict_step(self, batch: FaceBatch, batch_idx: int) -> None:
        """Embeds a batch; writes the parts that it completes."""
        self.faults |= batch.faults
        with matmul_precision(FAST if batch.images.is_cuda else EXACT):
            self._made.append(self._embed(batch.images))
        while self._mine and sum(len(norms) for _, norms in self._made) >= len(
            self.layout.rows(self._mine[0])
        ):
            self._write(self._mine.pop(0))

    def _embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = self.backbone.spec.normalise(images).contiguous(memory_format=torch.channels_last)
        first, first_norms = self.backbone(pixels)
        if self._options.flip == NO_FLIP:
            return first, first_norms.squeeze(1)
        second, second_norms = self.backbone(pixels.flip(3))
        return fuse_flips(first, second, first_norms.squeeze(1), second_norms.squeeze(1), self._options.flip)

    def _write(self, part: int) -> None:
        rows = self.layout.rows(part)
        features, norms = (torch.cat(column) for column in zip(*self._made, strict=True))
        self._made = [(features[len(rows) :], norms[len(rows) :])]
        if any(number in self.faults for number in rows):
            return
        arrays = {
            # One transfer a part: a GPU is not kept waiting for each batch.
            "features": features[: len(rows)].float().cpu().numpy(),
            "norms": norms[: len(rows)].float().cpu().numpy(),
            **{name: column[rows.start : rows.stop] for name, column in self._columns.items()},
        }
        self._writer.write_part(part, arrays)


class _Bar(Callback):
    """Images a second over all processes; they go at the same pace, so the first one's count serves."""

    def __init__(self, name: str) -> None:
        self._name = name

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Starts at what was there before."""
        self._total: int = pl_module.layout.num_rows
        pending = sum(len(pl_module.layout.rows(part)) for part in pl_module.pending)
        self._bar = progress_bar(
            total=self._total,
            initial=self._total - pending,
            desc=f"embedding {self._name}",
            unit=" images",
            unit_scale=True,
            mininterval=1,
            disable=not trainer.is_global_zero,
        )

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: FaceBatch, *_: Any
    ) -> None:
        """Counts a batch of each process."""
        count = len(batch.numbers) * trainer.world_size
        self._bar.update(min(self._total - int(self._bar.n), count))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the last state on the screen."""
        self._bar.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """The message begins on a line of its own."""
        if hasattr(self, "_bar"):
            self._bar.close()


def _trainer(options: EmbedOptions, name: str) -> pl.Trainer:
    backend = "nccl" if options.gpu else "gloo"
    several = options.devices * options.num_nodes > 1
    return pl.Trainer(
        accelerator="gpu" if options.gpu else "cpu",
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=WatchedDDP(process_group_backend=backend) if several else "auto",
        precision=options.precision,  # type: ignore[arg-type]
        # All batches but a process's last have one shape.
        benchmark=options.gpu,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[EndAtSignal(), _Bar(name)],
    )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    logger = logging.getLogger("pytorch_lightning")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in _EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", f".*{message}")
            yield
    finally:
        logger.setLevel(before)


def _sentence_of_faults(faults: Mapping[int, str], folder: Path) -> str:
    # Views of one image fail alike, and are one image.
    images = dict(enumerate(dict.fromkeys(faults[number] for number in sorted(faults))))
    first = (
        f"{len(images):,} images cannot be used. All others are embedded and kept in {folder}; mend these "
        "and run the command again:"
    )
    return "\n".join([first, *first_faults(images)])


def _about(options: EmbedOptions) -> dict[str, str]:
    device = torch.cuda.get_device_name() if options.gpu else "CPU"
    matmul = {"float32_matmul_precision": FAST if options.gpu else EXACT}
    return {"device": device} | matmul | versions_of("torch", "opencv")


def process_rank() -> int:
    """Number of this process, as its launcher says it, whether a group of processes is there or not."""
    rank: int = rank_zero_only.rank  # type: ignore[attr-defined]
    return rank

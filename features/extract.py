"""Images -> unit features and norms: in memory, or into a store on the disk over devices and nodes.

This is the one place where images go through a backbone: normalisation, memory format, precision and fusion
of horizontal flips are the same for every caller.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from backbones.preprocessing import describe_preprocessing
from data.checks.colour_order import (
    GivenFaces,
    LabelledFaces,
    check_colour_order,
    wrong_order_advice,
)
from data.sources.decoding import FACE_SIZE
from data.sources.face_loader import Faces
from data.sources.fingerprint import PIXEL_LIBRARIES
from data.sources.unusable_images import first_faults
from features.flips import NO_FLIP, fuse_flips, fused_size
from features.options import FACES_AT_ONCE, PRECISIONS, EmbedOptions
from features.store import (
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
from runtime.errors import InputError, InputWarning
from runtime.machine import versions_of
from runtime.matmul_precision import EXACT, FAST, matmul_precision
from weights import weights_digest

# Increment with every change here that changes a feature.
_REVISION = "2"
# Mated pairs that are embedded in both colour orders before all other faces: 1 to 2 s on a CPU.
_COLOUR_PAIRS = 40
# Rows of a part: 4 MiB at 512 values. A kill loses at most one part, about three minutes of an IR-50 on two
# cores; small sets are cut into more parts than there are processes.
_MAX_PART_ROWS, _MIN_PART_ROWS, _PARTS = 2048, 32, 64
_AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


# ----------------------------------------------------------------------------------------- in memory


def embed_batch(backbone: Backbone, images: Tensor, flip: str = NO_FLIP) -> tuple[Tensor, Tensor]:
    """Embed one batch, differentiably.

    Args:
        backbone: on the device of the images; its mode is left as it is.
        images: (N, 3, H, W) uint8 in the backbone's channel order.
        flip: `NO_FLIP` or one of `features.flips.FLIP_RULES`.

    Returns:
        Unit features (N, D), (N, 2 D) for 'concat', and norms (N,).
    """
    # The layout of a GPU's tensor cores; up to twice as fast on a CPU too.
    pixels = backbone.spec.normalise(images).contiguous(memory_format=torch.channels_last)
    first, first_norms = backbone(pixels)
    if flip == NO_FLIP:
        return first, first_norms.squeeze(1)
    second, second_norms = backbone(pixels.flip(3))
    return fuse_flips(first, second, first_norms.squeeze(1), second_norms.squeeze(1), flip)


@torch.no_grad()
def embed_tensor(
    backbone: Backbone, images: Tensor, flip: str = NO_FLIP, batch_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """`embed_batch` in parts of `batch_size` images (default: `FACES_AT_ONCE`), without gradient."""
    with matmul_precision(FAST if images.is_cuda else EXACT):
        parts = [
            embed_batch(backbone, part, flip)
            for part in torch.split(images, batch_size or FACES_AT_ONCE[images.device.type])
        ]
    features, norms = (torch.cat(column) for column in zip(*parts, strict=True))
    return features, norms


def extract(
    images: NDArray[np.uint8] | Iterable[NDArray[np.uint8]],
    backbone: Backbone,
    *,
    flip: str = NO_FLIP,
    precision: str = "32",
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Embed aligned faces in memory.

    Args:
        images: (N, 112, 112, 3) uint8 RGB, N may be 0; or an iterable of such arrays, which is read once.
        backbone: in evaluation mode, on `device`.
        flip: `NO_FLIP` or one of `features.flips.FLIP_RULES`.
        precision: one of `PRECISIONS`; 16 bit by autocast.
        device: where the backbone is.
        batch_size: images at once; None: `FACES_AT_ONCE` of the device.

    Returns:
        Unit features (N, D), (N, 2 D) for 'concat', and their norms (N,) before.

    Raises:
        InputError: another shape or dtype, another precision, or features that are not finite.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}.")
    place, dtype = torch.device(device), _AUTOCAST.get(precision)
    size = fused_size(backbone.spec.embedding_size, flip)
    features, norms = [np.empty((0, size), np.float32)], [np.empty(0, np.float32)]
    for block in [images] if isinstance(images, np.ndarray) else images:
        if block.ndim != 4 or block.shape[1:] != (FACE_SIZE, FACE_SIZE, 3) or block.dtype != np.uint8:
            raise InputError(
                f"expected aligned faces as uint8 RGB of shape (N, {FACE_SIZE}, {FACE_SIZE}, 3), found "
                f"{block.dtype} of shape {block.shape}."
            )
        step = batch_size or FACES_AT_ONCE[place.type]
        for start in range(0, len(block), step):
            pixels = torch.from_numpy(backbone.spec.from_rgb(block[start : start + step])).to(place)
            with torch.autocast(place.type, dtype, enabled=dtype is not None):
                found = embed_tensor(backbone, pixels, flip, step)
            features.append(found[0].float().cpu().numpy())
            norms.append(found[1].float().cpu().numpy())
    all_features, all_norms = np.concatenate(features), np.concatenate(norms)
    if not (np.isfinite(all_features).all() and np.isfinite(all_norms).all()):
        raise InputError(f"{backbone.spec.name}: features that are not finite; the weights may be damaged.")
    return all_features, all_norms


def fused_for_inference(backbone: Backbone) -> Backbone:
    """Copy a backbone with each BatchNorm folded into the convolution before it; equal to 1e-6, faster."""
    if backbone.spec.auxiliary_size:
        # Computed from the BatchNorms before they are folded.
        backbone.auxiliary_layer()
    fused = copy.deepcopy(backbone).eval()
    for module in list(fused.modules()):
        children = list(module.named_children())
        for (first, convolution), (second, norm) in pairwise(children):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(convolution, norm))
                setattr(module, second, nn.Identity())
    return fused


# ------------------------------------------------------------------------------------ into a store


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
    """Embed all faces into a store below `cache`, or open the store that is there.

    Only missing parts are computed: after a kill, or when images have changed (by their stamps). With several
    processes each computes every n-th part.

    Args:
        backbone: in evaluation mode.
        faces: N faces.
        images: what identifies the faces: the list they come from, and 'alignment' if they are aligned here.
            Together with the weights, the spec and the options it names the store's folder.
        cache: folder of stores, on a disk that all nodes share.
        options: flip rule, precision, batch size, devices.
        stamps: (N,) of the image files, such as their sizes and times; another stamp means another image.
        columns: (N,) arrays to keep beside the features; they have to follow from `images`.
        labels: (N,) subjects 0..S-1, where they are known: some mated pairs are embedded first, and an
            InputWarning says if the backbone seems to expect the other channel order.
        about: further facts to record, beside device and versions.
        known: features and norms of rows that another store holds, which are copied; None where it does not.
        name: for the progress bar.

    Returns:
        The store on rank 0; None on the other ranks, which have no more to do.

    Raises:
        InputError: images that cannot be used (the first ten are named; all others are embedded and kept),
            features that are not finite, a full disk.
    """
    # Lightning takes seconds to import.
    from features.devices import embed_pending_parts
    from features.process_group import take_rank

    rank = take_rank(options.devices, options.num_nodes)
    stamps = np.zeros(len(faces), np.uint64) if stamps is None else stamps
    identity = identity_of(backbone, images, options)
    folder = cache / fingerprint(identity)[:16]
    if is_complete(folder):
        store = open_store(folder, identity, verify=rank == 0)
        if np.array_equal(store.columns[STAMP], stamps):
            return store if rank == 0 else None
    size = fused_size(backbone.spec.embedding_size, options.flip)
    rows = min(max(-(-len(faces) // _PARTS), _MIN_PART_ROWS), _MAX_PART_ROWS)
    beside = {STAMP: stamps, **(columns or {})}
    kinds = {name: str(column.dtype) for name, column in beside.items()}
    layout = StoreLayout(len(faces), size, options.feature_type, kinds, rows)
    place = (folder, layout, identity, _about(options) | dict(about or {}))
    if rank == 0:
        # Before the processes start: the disk may be full.
        writer = FeatureWriter(*place)
        if known is not None:
            writer.copy_parts(known, beside)
        if labels is not None:
            _warn_of_colours(backbone, GivenFaces(name, labels, faces.image))
    fused = fused_for_inference(backbone).to(memory_format=torch.channels_last)
    # Returns once all processes have written.
    faults = embed_pending_parts(fused, embed_batch, faces, options, beside, place, name)
    if rank != 0:
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
        **describe_preprocessing(spec, alignment=alignment, flip=options.flip, precision=options.precision),
        **PIXEL_LIBRARIES,
        "embedding": f"revision {_REVISION}",
        "features": options.feature_type,
        **images,
    }


def _warn_of_colours(backbone: Backbone, faces: LabelledFaces) -> None:
    """Warn where the backbone seems to expect the other channel order than faces in true colours have."""
    try:
        report = check_colour_order(
            faces,
            lambda images: extract(images, backbone)[0],
            backbone.spec,
            num_pairs=_COLOUR_PAIRS,
            advice=wrong_order_advice(backbone.spec),
        )
    except InputError:
        return  # Images that cannot be used are reported together, after embedding.
    if report.is_swapped:
        warnings.warn(report.sentence, InputWarning, stacklevel=2)


def _sentence_of_faults(faults: Mapping[int, str], folder: Path) -> str:
    # Views of one image fail alike, and are one image.
    images = dict(enumerate(dict.fromkeys(faults[number] for number in sorted(faults))))
    first = (
        f"{len(images):,} images cannot be used. All others are embedded and kept in {folder}; repair "
        "them and run the command again:"
    )
    return "\n".join([first, *first_faults(images)])


def _about(options: EmbedOptions) -> dict[str, str]:
    device = torch.cuda.get_device_name() if options.gpu else "CPU"
    matmul = {"float32_matmul_precision": FAST if options.gpu else EXACT}
    return {"device": device} | matmul | versions_of("torch", "opencv")

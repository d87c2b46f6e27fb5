"""How faces are embedded: flip rule, precision, batch size, devices."""

from __future__ import annotations

from dataclasses import dataclass

from features.flips import NO_FLIP

PRECISIONS = ("32", "16-mixed", "bf16-mixed")
# Default batch sizes without gradient. On a CPU small batches stay in the caches: MobileFaceNet on one core
# embeds 80 images/s in batches of 16, 52 in batches of 64 and 34 in batches of 192.
FACES_AT_ONCE = {"cpu": 16, "cuda": 512}


@dataclass(frozen=True)
class EmbedOptions:
    """How faces are embedded.

    Attributes:
        flip: `NO_FLIP` or one of `FLIP_RULES`.
        precision: one of `PRECISIONS`.
        batch_size: images per batch and process.
        num_workers: loader processes per process.
        gpu: use GPUs.
        devices: GPUs per node, or processes per node without GPUs.
        num_nodes: machines.
        feature_type: dtype of stored features, float32 or float16.
    """

    flip: str = NO_FLIP
    precision: str = "32"
    batch_size: int = 64
    num_workers: int = 0
    gpu: bool = False
    devices: int = 1
    num_nodes: int = 1
    feature_type: str = "float32"

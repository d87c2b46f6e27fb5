"""How faces are embedded: flip rule, precision, batch size, devices."""

from __future__ import annotations

from dataclasses import dataclass

from features.flips import NO_FLIP

PRECISIONS = ("32", "16-mixed", "bf16-mixed")
# Images that go through the backbone at once where no gradient is kept. On a CPU what fits its caches is
# fast: MobileFaceNet on one core embeds 80 images/s by 16, 52 by 64 and 34 by 192.
FACES_AT_ONCE = {"cpu": 16, "cuda": 512}


@dataclass(frozen=True)
class EmbedOptions:
    """How faces are embedded.

    `flip`: of `FLIP_RULES`, or `NO_FLIP`; `devices`: GPUs of a node, or processes on a CPU where `gpu` is
    False; `precision`: as Lightning names it; `feature_type`: how features are kept, float32 or float16.
    """

    flip: str = NO_FLIP
    precision: str = "32"
    batch_size: int = 64
    num_workers: int = 0
    gpu: bool = False
    devices: int = 1
    num_nodes: int = 1
    feature_type: str = "float32"

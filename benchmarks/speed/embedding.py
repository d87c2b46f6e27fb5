"""Images/s of a backbone on a CPU: this project, plain PyTorch and, if installed, ONNX Runtime.

python benchmarks/speed/embedding.py                 (ir_50 with fresh weights; the network only, no decoding)
python benchmarks/speed/embedding.py --arch mobilefacenet --threads 1

Rounds are interleaved, so that other load affects all; medians are printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.speed.usage import measured
from features.extract import fused_for_inference
from net import BACKBONES, build_backbone


def main() -> None:
    """Measure and print the rates and their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", choices=BACKBONES, default="ir_50")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10, help="batches of each")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    plain = build_backbone(args.arch).eval()
    ours = fused_for_inference(plain).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(args.batch_size, 3, 112, 112)
    fast = images.contiguous(memory_format=torch.channels_last)
    ways: dict[str, Callable[[], object]] = {
        "plain PyTorch": lambda: plain(images),
        "ours": lambda: ours(fast),
    }
    session = _onnx_session(plain, images, args.threads)
    if session is not None:
        ways["ONNX Runtime"] = session
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode(), measured() as usage:
        difference = (plain(images)[0] - ours(fast)[0]).abs().max()
        for _ in range(args.rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)
    rates = {name: args.batch_size / statistics.median(taken) for name, taken in seconds.items()}
    print(
        f"{args.arch}, batches of {args.batch_size}, {args.threads} threads; others kept {usage.others:.1f} "
        f"cores busy; embeddings differ by {difference:.0e}"
    )
    for name, rate in rates.items():
        print(f"{name:14} {rate:8.1f} images/s, ours is {rates['ours'] / rate:.2f} times as fast")


def _onnx_session(model: nn.Module, images: Tensor, threads: int) -> Callable[[], object] | None:
    try:
        import onnxruntime
    except ImportError:
        print("ONNX Runtime is not installed (pip install onnxruntime onnx): left out")
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/backbone.onnx"
        torch.onnx.export(model, (images,), path, input_names=["images"], dynamo=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given: dict[str, np.ndarray] = {"images": images.numpy()}
    return lambda: session.run(None, given)


if __name__ == "__main__":
    main()

"""Steps of the coreset stage on a GPU: templates/s by precision, with and without torch.compile.

python benchmarks/speed/gpu_training.py                     # on a GPU; compiles six times, half a minute each
python benchmarks/speed/gpu_training.py --no-compile        # a minute
python benchmarks/speed/gpu_training.py --device cpu --rounds 3 --templates 64

512 ragged templates per step as the preset `good` samples them (1 to 160 faces), features of 512 values,
10,000 classes, contrastive loss, gradient clipping, AdamW: forward, backward and update of batches in device
memory, then with sampling and copying. Aggregators compute in float32 at any precision, so that half
precision changes the head only.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.speed.training import drawn_bank
from coreset import FaceSets, build_aggregator
from data.sampling.positions import Item
from features.bank import FeatureBatch
from features.templates import TemplateRecipe, TemplateSampler
from head import build_head
from training.contrastive_loss import pair_contrast

D, CLASSES = 512, 10_000
AGGREGATORS = ("weighted_coreset", "coreset")
PRECISIONS = ("32", "16-mixed", "bf16-mixed")
_HALF = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
_BATCHES = 4


class Training:
    """Aggregator, head, optimiser and, with float16, loss scaling, as Lightning has them."""

    def __init__(self, name: str, precision: str, device: torch.device, *, compiled: bool) -> None:
        torch.manual_seed(0)
        self.device, self.half = device, _HALF.get(precision)
        self.aggregator = build_aggregator(name, {"embedding_size": D}).train().to(device)
        if compiled:
            self.aggregator.compile_padded()
        self.head = build_head("cosface", D, CLASSES).train().to(device)
        self.parameters = [*self.aggregator.parameters(), *self.head.parameters()]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "16-mixed")

    def step(self, sets: FaceSets, labels: Tensor) -> None:
        """Forward, backward, clip, update."""
        self.optimiser.zero_grad()
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            found = self.aggregator(sets)
            logits = self.head(found.embedding, found.norm[:, None], labels)
            loss = F.cross_entropy(logits, labels) + pair_contrast(found.embedding, labels)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.scaler.step(self.optimiser)
        self.scaler.update()


def on_device(batch: FeatureBatch, device: torch.device) -> tuple[FaceSets, Tensor]:
    """The batch as training gives it to the aggregator."""
    sets = FaceSets(batch.features, batch.norms, batch.offsets, media=batch.media).to(device)
    return FaceSets(sets.features.float(), sets.norms, sets.offsets, media=sets.media), batch.labels.to(
        device
    )


def seconds_of(call: Callable[[int], None], rounds: int, device: torch.device) -> float:
    """Median seconds of a call, each waited for."""
    found = []
    for number in range(rounds):
        _wait(device)
        start = time.perf_counter()
        call(number)
        _wait(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def compare(args: argparse.Namespace, template_sampler: TemplateSampler) -> None:
    """A line for each aggregator, precision and way."""
    device, B = torch.device(args.device), args.templates

    def drawn(number: int) -> FeatureBatch:
        return template_sampler.batch([Item(0, B * number + place, place // 2) for place in range(B)])

    batches = [on_device(drawn(number), device) for number in range(_BATCHES)]
    faces = statistics.mean(sets.num_faces for sets, _ in batches)
    chunks = [len(sets.chunks()) for sets, _ in batches]
    print(f"{B} templates per step, {faces:.0f} faces in {statistics.mean(chunks):.1f} rectangles")
    print("aggregator        precision   compiled  ms per step  templates/s  with drawing  first step, s")
    for name in args.aggregators:
        for precision in args.precisions:
            for compiled in (False, True) if args.compile else (False,):
                training = Training(name, precision, device, compiled=compiled)
                first = seconds_of(lambda n, t=training: t.step(*batches[n]), 1, device)
                seconds_of(lambda n, t=training: t.step(*batches[n]), _BATCHES, device)
                resident = seconds_of(
                    lambda n, t=training: t.step(*batches[n % _BATCHES]), args.rounds, device
                )
                whole = seconds_of(
                    lambda n, t=training: t.step(*on_device(drawn(9 + n), device)), args.rounds, device
                )
                print(
                    f"{name:16}  {precision:10}  {'yes' if compiled else 'no':8}  {1e3 * resident:11.1f}  "
                    f"{B / resident:11,.0f}  {B / whole:12,.0f}  {first:13.1f}",
                    flush=True,
                )


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--aggregators", nargs="+", default=AGGREGATORS)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--templates", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=20, help="steps of which medians are taken")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"torch {torch.__version__}, {name}")
    with tempfile.TemporaryDirectory() as folder:
        bank = drawn_bank(Path(folder), subjects=1000, images=5)
        compare(args, TemplateSampler(bank, TemplateRecipe(impostor_media_prob=0.1, paired=True), seed=0))


if __name__ == "__main__":
    main()
